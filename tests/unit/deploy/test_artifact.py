"""An artifact folder is complete with its manifest, and damaged where a file has another SHA-256."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy import artifact
from deploy.artifact import ArtifactError
from policies.job import StageError
from tests.unit.deploy.models import ROUNDING, answer, class_names, describe, make_artifact, make_model, names

FILES = sorted(["golden.npz", "labels.txt", "model.onnx", *artifact.SPECIMENS])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("artifact"), class_names(4))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """An artifact to spoil."""
    return Path(shutil.copytree(made, tmp_path / made.name))


def test_a_whole_artifact_gives_its_manifest(folder: Path) -> None:
    manifest = artifact.verify(folder)
    assert manifest == json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["files"]) == FILES
    for name, entry in manifest["files"].items():
        found = describe(folder / name)
        assert entry == {"sha256": found["sha256"], "bytes": found["bytes"]}


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_found_and_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="SHA-256") as refused:
        artifact.verify(folder)
    assert str(refused.value).startswith(f"{folder / name} is damaged: ")
    assert str(refused.value).endswith("; make the folder again")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found_and_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError) as refused:
        artifact.verify(folder)
    assert str(refused.value) == f"{folder / name} cannot be read (No such file or directory); make the folder again"


def test_a_folder_without_a_manifest_is_not_complete(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError) as refused:
        artifact.verify(folder)
    assert str(refused.value) == f"{folder / 'manifest.json'} is missing: the folder is not complete; make it again"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "cannot be read"),
        (b'{"format": 1, "files"', "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "has format None, this version reads 1"),
        (b"{}", "has format None, this version reads 1"),
        (b'{"format": 2}', "has format 2, this version reads 1"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named(folder: Path, text: bytes, words: str) -> None:
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(ArtifactError, match=words) as refused:
        artifact.verify(folder)
    assert str(refused.value).startswith(f"{folder / 'manifest.json'} ")
    assert "make the folder again" in str(refused.value)


def test_the_folder_of_a_model_is_no_artifact(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", class_names(4))
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        artifact.verify(model)


def test_what_is_wrong_with_an_artifact_is_said_to_a_person() -> None:
    assert issubclass(ArtifactError, StageError)


def test_the_id_is_of_the_engines_files_and_the_labels(folder: Path) -> None:
    files = artifact.describe_files(folder, FILES)
    model = artifact.read_manifest(folder)["model"]
    name = artifact.name_artifact(model, files)
    assert name == folder.name == artifact.read_manifest(folder)["id"]
    assert artifact.name_artifact(model, dict(reversed(files.items()))) == name
    assert (
        artifact.name_artifact(model, {k: v for k, v in files.items() if k != "golden.npz" and "specimen" not in k})
        == name
    )
    for changed in ("labels.txt", "model.onnx"):
        other = {**files, changed: {**files[changed], "sha256": "0" * 64}}
        assert artifact.name_artifact(model, other) != name
    renamed = {("other.onnx" if k == "model.onnx" else k): v for k, v in files.items()}
    assert artifact.name_artifact(model, renamed) != name
    assert artifact.name_artifact("another", files) != name


def test_the_golden_batch_holds_images_and_the_graphs_answers(folder: Path) -> None:
    images, probabilities = artifact.read_golden(folder)
    assert (images.dtype, images.shape[1:], probabilities.dtype) == (np.uint8, (8, 8, 3), np.float32)
    np.testing.assert_allclose(probabilities, answer(folder / "model.onnx", images), atol=ROUNDING)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "spoil",
    [
        cut,
        lambda _: b"junk",
        pytest.param(
            lambda _: b"",
        ),
    ],
    ids=["cut", "junk", "empty"],
)
def test_a_golden_batch_that_cannot_be_read_is_named(folder: Path, spoil: Callable[[bytes], bytes]) -> None:
    file = folder / "golden.npz"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ArtifactError, match="make the folder again") as refused:
        artifact.read_golden(folder)
    assert str(refused.value).startswith(f"{file} cannot be read (")


@pytest.mark.parametrize("arrays", [{}, {"images": np.zeros(1)}, {"images": np.array([object()])}])
def test_a_golden_batch_without_its_arrays_is_refused(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(folder / "golden.npz", **arrays, allow_pickle=True)
    with pytest.raises(ArtifactError, match="make the folder again"):
        artifact.read_golden(folder)


RECORDED = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)


def shifted(by: float) -> np.ndarray:
    found = RECORDED.copy()
    found[1, 0] += by
    return found


@pytest.mark.parametrize("by", [0.0, 0.0005, -0.0009])
def test_answers_within_the_tolerance_are_the_same(by: float) -> None:
    assert artifact.compare_golden(shifted(by), RECORDED) == pytest.approx(abs(by), abs=1e-6)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (shifted(0.0011), r"largest difference 0\.0011, allowed 0\.001$"),
        (shifted(-0.5), r"largest difference 0\.5, allowed 0\.001$"),
        (shifted(float("nan")), "other answers than recorded"),
        (shifted(float("inf")), "other answers than recorded"),
        (RECORDED[:1], r"answers of shape \(1, 2\), recorded \(2, 2\)"),
        (np.ones((2, 3), np.float32), r"answers of shape \(2, 3\), recorded \(2, 2\)"),
    ],
)
def test_other_answers_are_refused(found: np.ndarray, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        artifact.compare_golden(found, RECORDED)


def test_the_tolerance_may_be_told() -> None:
    assert artifact.compare_golden(shifted(0.2), RECORDED, tolerance=0.3) == pytest.approx(0.2, abs=1e-6)
    with pytest.raises(ArtifactError, match=r"allowed 1e-05"):
        artifact.compare_golden(shifted(0.0001), RECORDED, tolerance=1e-5)


def test_an_empty_batch_differs_in_nothing() -> None:
    assert artifact.compare_golden(RECORDED[:0], RECORDED[:0]) == 0.0


def test_nothing_is_written_by_reading(folder: Path) -> None:
    artifact.verify(folder)
    artifact.read_golden(folder)
    assert names(folder) == sorted([*FILES, "manifest.json"])
