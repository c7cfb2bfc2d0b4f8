"""The JPEG files of an artifact tell how a client prepares images, and are part of what is verified."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from deploy import artifact, specimens
from deploy.client import prepare
from deploy.specimens import RIGHT, WAYS, Record
from tests.unit.deploy.models import answer, class_names, make_artifact, rewrite

CLASSES = ["cat", "dog", "bird", "naïve café"]
SIZE = (24, 40)


def see(images: np.ndarray) -> np.ndarray:
    """A small network in numpy that minds where things are, their colours and their fine structure."""
    random = np.random.default_rng(2)
    values = images.astype(np.float32) / 255
    fine = np.abs(np.diff(values, axis=2)).mean((1, 2))
    coarse = values.reshape(len(values), 4, SIZE[0] // 4, 5, SIZE[1] // 5, 3).mean((2, 4)).reshape(len(values), -1)
    logits = np.concatenate([coarse, 12 * fine], 1) @ random.normal(0, 1, (coarse.shape[1] + 3, len(CLASSES)))
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return (raised / raised.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture(params=["stretch", "crop"])
def record(request: pytest.FixtureRequest, tmp_path: Path) -> Record:
    model = {"input": {"height": SIZE[0], "width": SIZE[1]}, "resize": request.param, "classes": CLASSES}
    folder = tmp_path / "artifact"
    folder.mkdir()
    specimens.write(folder, model, see)
    manifest = {"format": 1, "precision": "fp32", "files": artifact.describe_files(folder, artifact.SPECIMENS)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return specimens.read(folder)


def files(size: tuple[int, int] = SIZE) -> list[bytes]:
    return list(specimens.draw(size).values())


@pytest.mark.parametrize("way", [way for way in WAYS if way != RIGHT])
def test_each_way_of_doing_it_wrong_is_told(record: Record, way: str) -> None:
    assert record.hidden == []
    found = see(np.stack([WAYS[way][0](data, SIZE, record.resize) for data in files()]))
    told = specimens.compare(record, found)
    assert (told.agrees, told.likeliest) == (False, way)
    assert WAYS[way][1] in told.said


def test_a_client_of_pillow_alone_is_right_or_told_what_it_lacks() -> None:
    """As a person would write it, without this project's functions."""

    def write(upright: bool, method: Image.Resampling) -> np.ndarray:
        found = []
        for data in files():
            image = Image.open(io.BytesIO(data))
            image = ImageOps.exif_transpose(image) if upright else image
            found.append(np.asarray(image.convert("RGB").resize(SIZE[::-1], method)))
        return see(np.stack(found))

    right = {way: see(np.stack([how(data, SIZE, "stretch") for data in files()])) for way, (how, _) in WAYS.items()}
    record = Record("stretch", CLASSES, list(artifact.SPECIMENS[1:]), right, 1e-3)
    assert specimens.compare(record, write(True, Image.Resampling.BILINEAR)).agrees
    assert specimens.compare(record, write(False, Image.Resampling.BILINEAR)).likeliest == "not upright"
    assert specimens.compare(record, write(True, Image.Resampling.BICUBIC)).likeliest == "bicubic"


def test_what_is_right_agrees_and_what_is_near_is_said_to_be(record: Record) -> None:
    right = record.answers[RIGHT]
    assert specimens.compare(record, right + np.float32(record.tolerance / 2)).agrees
    near = right.copy()
    near[0, :2] += np.float32([0.004, -0.004])
    told = specimens.compare(record, near)
    assert (told.agrees, told.likeliest) == (False, RIGHT)
    assert "nearest to those of images that are prepared rightly, and not the same (by up to 0.004)" in told.said


def test_classes_alone_tell_as_far_as_they_differ(record: Record) -> None:
    names = {way: [CLASSES[i] for i in rows.argmax(1)] for way, rows in record.answers.items()}
    told = specimens.compare(record, names[RIGHT])
    assert told.agrees
    assert sorted(told.hidden) == sorted(way for way in WAYS if way != RIGHT and names[way] == names[RIGHT])
    assert not specimens.compare(record, [CLASSES[(CLASSES.index(name) + 1) % 4] for name in names[RIGHT]]).agrees


def test_an_artifact_carries_them_and_says_what_its_model_does_not_show(tmp_path: Path) -> None:
    """The network of these tests takes the mean of each channel: fine structure and place are one to it."""
    folder = make_artifact(tmp_path, class_names(4))
    found = specimens.read(folder)
    pixels = np.stack([prepare(folder / name, (8, 8)) for name in found.files])
    np.testing.assert_allclose(answer(folder / "model.onnx", pixels), found.answers[RIGHT], atol=1e-4)
    assert "not upright" in found.hidden or "bicubic" in found.hidden
    assert "bgr" not in found.hidden


def test_they_are_verified_and_an_older_artifact_says_that_it_has_none(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path, class_names(4))
    good = (folder / "specimen-2.jpg").read_bytes()
    (folder / "specimen-2.jpg").write_bytes(good[:-1])
    with pytest.raises(artifact.ArtifactError, match=r"specimen-2\.jpg is damaged"):
        specimens.read(folder)
    rewrite(folder, "specimen-2.jpg", good)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in artifact.SPECIMENS:
        del manifest["files"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(artifact.ArtifactError, match="was built before there were such files"):
        specimens.read(folder)


def test_the_same_files_are_drawn_each_time_and_lie_as_exif_says() -> None:
    assert files() == files()
    images = [Image.open(io.BytesIO(data)) for data in files()]
    assert [image.getexif().get(0x0112) for image in images] == list(specimens.TURNED)
    assert len({image.size for image in images}) == 2


def test_a_picture_of_a_large_input_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (1200, 2400)
    tracemalloc.start()
    try:
        drawn = specimens.picture(size, seed=1)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 * drawn.nbytes
    monkeypatch.setattr(specimens, "ROWS", size[0])
    np.testing.assert_array_equal(drawn, specimens.picture(size, seed=1))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("{", "cannot be read"),
        ([], "has no answer to specimen-1.jpg, "),
        ({"specimen-1.jpg": "cat"}, "has no answer to specimen-2.jpg, specimen-3.jpg, specimen-4.jpg"),
        (dict.fromkeys(artifact.SPECIMENS[1:], "horse"), "the model has no class horse"),
        ({name: [0.5, 0.5] for name in artifact.SPECIMENS[1:]}, "for each of the 4 classes"),
        ({name: [0.5, 0.5, 0, None] for name in artifact.SPECIMENS[1:]}, "specimen-1.jpg: give a probability"),
        ({name: {"cat": 1.0} for name in artifact.SPECIMENS[1:]}, "for each of the 4 classes"),
    ],
)
def test_answers_that_cannot_be_used_are_named(record: Record, tmp_path: Path, said: Any, words: str) -> None:
    (tmp_path / "answers.json").write_text(said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(ValueError, match=words):
        specimens.read_answers(tmp_path / "answers.json", record)


def test_answers_come_by_path_as_rows_or_by_class(record: Record, tmp_path: Path) -> None:
    right, file = record.answers[RIGHT], tmp_path / "answers.json"
    rows = {f"/elsewhere/{name}": row.tolist() for name, row in zip(record.files, right, strict=True)}
    file.write_text(json.dumps(rows))
    np.testing.assert_allclose(specimens.read_answers(file, record), right)
    named = {name: dict(zip(CLASSES, row.tolist(), strict=True)) for name, row in zip(record.files, right, strict=True)}
    file.write_text(json.dumps(named))
    np.testing.assert_allclose(specimens.read_answers(file, record), right)
    file.write_text(json.dumps(dict.fromkeys(record.files, "dog")))
    assert specimens.read_answers(file, record) == ["dog"] * 4
