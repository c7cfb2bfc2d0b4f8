"""A build makes a complete artifact under its own name, or nothing; the same model makes the same."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from deploy import artifact, build
from policies.job import StageError
from tests.unit.deploy.models import (
    ROUNDING,
    answer,
    class_names,
    describe,
    make_model,
    names,
    noise,
    order,
    silent,
    tree,
    write_graph,
    write_manifest,
    write_pixels,
)

Start = Callable[..., subprocess.Popen[str]]
CLASSES = class_names(4)
SECONDS = 60.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", CLASSES)


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


def complete(artifacts: Path) -> list[str]:
    """The names of what may be taken for an artifact: every folder with a manifest, hidden or not."""
    return sorted(path.parent.name for path in artifacts.rglob("manifest.json"))


def test_an_artifact_is_built(model: Path, artifacts: Path) -> None:
    said: list[tuple[Any, ...]] = []
    outputs = build.run(order(model, artifacts), {}, lambda *done, **_: said.append(done))
    folder = artifacts / outputs["artifact"]
    assert (outputs["path"], said) == (str(folder), [(1, 1, "artifact")])
    assert outputs["seconds"] >= 0
    assert names(artifacts) == [folder.name]
    told = ["golden.npz", "labels.txt", "manifest.json", "model.onnx", *artifact.SPECIMENS]
    assert names(folder) == sorted(told)
    assert (folder / "model.onnx").read_bytes() == (model / "model.onnx").read_bytes()
    assert (folder / "labels.txt").read_text() == "class0\nclass1\nclass2\nclass3\n"
    assert outputs["artifact_mb"] == (model / "model.onnx").stat().st_size / 1e6


def test_the_manifest_says_of_what_and_by_what_it_was_built(model: Path, artifacts: Path) -> None:
    folder = Path(build.run(order(model, artifacts), {}, silent)["path"])
    manifest = artifact.verify(folder)
    given = json.loads((model / "manifest.json").read_text())
    files = manifest.pop("files")
    assert manifest == {
        "format": 1,
        "id": folder.name,
        "model": given["id"],
        "architecture": "small",
        "engine": "onnxruntime",
        "engine_version": onnxruntime.__version__,
        "precision": "fp32",
        "device": None,
        "flavour": "onnxruntime",
        "max_batch_size": None,
        "verified": True,
        "unverified": None,
        "classes": CLASSES,
        "input": given["input"],
        "snapshot": "snapshot1",
        "bytes": (folder / "model.onnx").stat().st_size,
    }
    assert {name: entry["sha256"] for name, entry in files.items()} == {
        name: describe(folder / name)["sha256"]
        for name in ("golden.npz", "labels.txt", "model.onnx", *artifact.SPECIMENS)
    }


def test_earlier_stages_name_the_model_and_the_pixels(model: Path, artifacts: Path, tmp_path: Path) -> None:
    images = noise(2)
    index = write_pixels(tmp_path / "pixels", CLASSES, [("tune", "class1"), ("judge", "class2")], images)
    earlier = {"export": {"path": str(model)}, "pixels": {"pixels": str(index)}}
    folder = Path(build.run(order(None, artifacts), earlier, silent)["path"])
    np.testing.assert_array_equal(artifact.read_golden(folder)[0], images[:1])


def test_the_golden_batch_has_one_image_a_class_of_tune(model: Path, artifacts: Path, tmp_path: Path) -> None:
    rows = [
        ("train", "class0"),
        ("tune", "class2"),
        ("judge", "class1"),
        ("tune", "class2"),
        ("tune", "class0"),
        ("tune", "class3"),
    ]
    images = noise(len(rows))
    index = write_pixels(tmp_path / "pixels", CLASSES, rows, images)
    folder = Path(build.run(order(model, artifacts, pixels=str(index)), {}, silent)["path"])
    found, probabilities = artifact.read_golden(folder)
    np.testing.assert_array_equal(found, images[[1, 4, 5]])
    np.testing.assert_allclose(probabilities, answer(model / "model.onnx", found), atol=ROUNDING)


def test_the_golden_batch_has_eight_images_at_most(artifacts: Path, tmp_path: Path) -> None:
    classes = class_names(12)
    model = make_model(tmp_path / "model", classes)
    index = write_pixels(tmp_path / "pixels", classes, [("tune", name) for name in classes], noise(12))
    folder = Path(build.run(order(model, artifacts, pixels=str(index)), {}, silent)["path"])
    np.testing.assert_array_equal(artifact.read_golden(folder)[0], noise(12)[:8])


def test_without_tune_the_golden_batch_is_noise_that_is_always_the_same(
    model: Path, artifacts: Path, tmp_path: Path
) -> None:
    index = write_pixels(tmp_path / "pixels", CLASSES, [("judge", "class0")], noise(1))
    found = []
    for place, pixels in (("a", None), ("b", None), ("c", str(index))):
        folder = Path(build.run(order(model, artifacts / place, pixels=pixels), {}, silent)["path"])
        images, probabilities = artifact.read_golden(folder)
        np.testing.assert_allclose(probabilities, answer(model / "model.onnx", images), atol=ROUNDING)
        found.append(images)
    assert found[0].shape == (8, 8, 8, 3)
    assert not (found[0] == found[0][:1]).all()
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_the_same_model_builds_the_same_artifact_and_keeps_the_one_that_is_there(model: Path, artifacts: Path) -> None:
    first = build.run(order(model, artifacts), {}, silent)
    before = {path: path.stat() for path in Path(first["path"]).iterdir()}
    again = build.run(order(model, artifacts), {}, silent)
    elsewhere = build.run(order(model, artifacts.with_name("elsewhere")), {}, silent)
    assert first["artifact"] == again["artifact"] == elsewhere["artifact"]
    assert {path: path.stat() for path in Path(first["path"]).iterdir()} == before
    assert names(artifacts) == [first["artifact"]]


def test_an_artifact_of_before_there_were_unverified_ones_is_kept(model: Path, artifacts: Path) -> None:
    first = build.run(order(model, artifacts), {}, silent)
    file = Path(first["path"]) / "manifest.json"
    facts = json.loads(file.read_text())
    for name in ("flavour", "max_batch_size", "verified", "unverified"):
        del facts[name]
    file.write_text(json.dumps(facts))
    again = build.run(order(model, artifacts), {}, silent)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    assert json.loads(file.read_text()) == facts


def test_another_graph_or_other_classes_build_another(tmp_path: Path, artifacts: Path) -> None:
    models = [
        make_model(tmp_path / "model", CLASSES),
        make_model(tmp_path / "graph", CLASSES, seed=1),
        make_model(tmp_path / "classes", class_names(4, "other")),
        make_model(tmp_path / "order", CLASSES[::-1]),
    ]
    for model in models:
        build.run(order(model, artifacts), {}, silent)
    assert len(names(artifacts)) == len(complete(artifacts)) == 4


@pytest.mark.parametrize("spoil", ["model.onnx", "labels.txt", "golden.npz", "manifest.json"])
def test_a_damaged_artifact_gives_way_to_a_new_one(model: Path, artifacts: Path, spoil: str) -> None:
    folder = Path(build.run(order(model, artifacts), {}, silent)["path"])
    whole = tree(folder)
    (folder / spoil).write_bytes(b"junk")
    (folder / "more").write_text("left by somebody")
    assert build.run(order(model, artifacts), {}, silent)["path"] == str(folder)
    assert artifact.verify(folder)["id"] == folder.name
    assert tree(folder) == whole


def spoil_weights(model: Path) -> str:
    (model / "weights.safetensors").write_bytes(b"others")
    return f"{model / 'weights.safetensors'} is damaged"


def spoil_graph(model: Path) -> str:
    (model / "model.onnx").write_bytes(b"junk")
    return f"{model / 'model.onnx'} is damaged"


def lose_graph(model: Path) -> str:
    (model / "model.onnx").unlink()
    return f"{model / 'model.onnx'} cannot be read (No such file or directory)"


def lose_manifest(model: Path) -> str:
    (model / "manifest.json").unlink()
    return f"{model / 'manifest.json'} is missing: the folder is not complete; make it again"


def junk_graph(model: Path) -> str:
    (model / "model.onnx").write_bytes(b"junk")
    write_manifest(model, CLASSES)
    return f"{model / 'model.onnx'} is no graph that ONNX Runtime can run"


def empty_graph(model: Path) -> str:
    (model / "model.onnx").write_bytes(b"")
    write_manifest(model, CLASSES)
    return f"{model / 'model.onnx'} is no graph that ONNX Runtime can run"


def other_names(model: Path) -> str:
    write_graph(model / "model.onnx", 4, ends=("x", "y"))
    write_manifest(model, CLASSES)
    return f"{model / 'model.onnx'} has inputs ['x'] and outputs ['y'], not images and probabilities"


def more_classes(model: Path) -> str:
    write_manifest(model, [*CLASSES, "more"])
    return "the graph answers with shape (8, 4) for 5 classes"


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_weights,
        spoil_graph,
        lose_graph,
        lose_manifest,
        junk_graph,
        empty_graph,
        other_names,
        more_classes,
    ],
)
def test_a_model_that_cannot_be_built_is_refused_in_words(
    model: Path, artifacts: Path, spoil: Callable[[Path], str]
) -> None:
    words = spoil(model)
    with pytest.raises(StageError) as refused:
        build.run(order(model, artifacts), {}, silent)
    assert words in str(refused.value)
    assert not artifacts.exists() or names(artifacts) == []


@pytest.mark.parametrize("graph", [{"size": 16}, {"batch": 1}, {"kind": TensorProto.FLOAT}], ids=str)
def test_a_graph_that_does_not_take_the_manifests_input_is_refused_in_words(
    model: Path, artifacts: Path, graph: dict[str, Any]
) -> None:
    write_graph(model / "model.onnx", 4, **graph)
    write_manifest(model, CLASSES)
    with pytest.raises(
        StageError, match=r"building model with onnxruntime failed: ONNX Runtime cannot run the graph on uint8"
    ):
        build.run(order(model, artifacts), {}, silent)


def test_a_failed_build_leaves_nothing(model: Path, artifacts: Path) -> None:
    write_graph(model / "model.onnx", 4, size=16)
    write_manifest(model, CLASSES)
    with pytest.raises(Exception, match="images"):
        build.run(order(model, artifacts), {}, silent)
    assert names(artifacts) == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"engine": "abacus"}, "there is no engine 'abacus'; there are: onnxruntime"),
        ({"precision": "fp16"}, "onnxruntime builds fp32, int8, not 'fp16'"),
        ({"options": {"max_batch_size": 0}}, "max_batch_size must be a whole number from 1 upwards, not 0"),
        ({"options": {"max_batch_size": "8"}}, "max_batch_size must be a whole number from 1 upwards, not '8'"),
    ],
    ids=["engine", "precision", "batch of none", "batch in words"],
)
def test_what_no_engine_can_do_is_refused_in_words(
    model: Path, artifacts: Path, asked: dict[str, str], words: str
) -> None:
    with pytest.raises(StageError, match=words):
        build.run(order(model, artifacts) | asked, {}, silent)
    assert complete(artifacts.parent) == ["model"]


def test_class_names_of_all_kinds_are_kept(tmp_path: Path, artifacts: Path) -> None:
    classes = ["naïve café", "a:b", " leading", "日本"]
    folder = Path(build.run(order(make_model(tmp_path / "model", classes), artifacts), {}, silent)["path"])
    assert (folder / "labels.txt").read_text(encoding="utf-8").split("\n") == [*classes, ""]
    assert artifact.read_manifest(folder)["classes"] == classes


KILL = """
import json, os, signal, sys
from deploy import build, durable
function = getattr(durable, sys.argv[1])
def killed(*arguments):
    if sys.argv[2] == "after":
        function(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(durable, sys.argv[1], killed)
build.run(json.loads(sys.argv[3]), {}, lambda *_: None)
"""


@pytest.mark.parametrize("when", ["before sync_tree", "before write_json", "after write_json", "before move"])
def test_a_build_that_is_killed_leaves_nothing_that_is_taken_for_an_artifact(
    model: Path, artifacts: Path, start: Start, when: str
) -> None:
    moment, function = when.split()
    child = start("-c", KILL, function, moment, json.dumps(order(model, artifacts)))
    _, errors = child.communicate(timeout=SECONDS)
    assert child.returncode == -signal.SIGKILL, errors
    assert all(name.startswith(".build-") for name in names(artifacts))
    outputs = build.run(order(model, artifacts), {}, silent)
    assert artifact.verify(artifacts / outputs["artifact"])["id"] == outputs["artifact"]


def test_a_build_that_is_killed_at_its_end_has_made_the_artifact(model: Path, artifacts: Path, start: Start) -> None:
    child = start("-c", KILL, "move", "after", json.dumps(order(model, artifacts)))
    child.communicate(timeout=SECONDS)
    assert child.returncode == -signal.SIGKILL
    (folder,) = [path for path in artifacts.iterdir() if not path.name.startswith(".")]
    assert artifact.verify(folder)["id"] == folder.name


def test_the_next_build_removes_what_a_killed_one_left(model: Path, artifacts: Path, start: Start) -> None:
    child = start("-c", KILL, "move", "before", json.dumps(order(model, artifacts)))
    child.communicate(timeout=SECONDS)
    assert child.returncode == -signal.SIGKILL
    outputs = build.run(order(model, artifacts), {}, silent)
    assert names(artifacts) == [outputs["artifact"]]


def test_a_full_disk_leaves_nothing(model: Path, artifacts: Path, start: Start) -> None:
    """A limit on the size of files, below that of the graph, stands for the full disk."""
    code = (
        "import json, resource, sys\nfrom deploy import build\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (200, {resource.RLIM_INFINITY}))\n"
        "build.run(json.loads(sys.argv[1]), {}, lambda *_: None)"
    )
    child = start("-c", code, json.dumps(order(model, artifacts)))
    _, errors = child.communicate(timeout=SECONDS)
    assert child.returncode == 1
    assert "File too large" in errors
    assert names(artifacts) == []
