"""The model folder: its graph answers as the network does, and its manifest says what is in it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, load_model

from pipeline.export import compare, examples, export_graph, manifest
from pipeline.export import run as export
from pipeline.model import Served, create_network
from pipeline.pixels import read_pixels
from pipeline.run_folder import training_of
from policies.job import StageError

CHECKOUT = Path(__file__).resolve().parents[3]
SIZE = (32, 32)


@pytest.fixture(scope="module")
def session(trained: Any) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(trained.model / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def about(trained: Any) -> dict[str, Any]:
    return json.loads((trained.model / "manifest.json").read_text(encoding="utf-8"))


def some(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (number, *SIZE, 3), dtype=np.uint8)


def by_torch(net: torch.nn.Module, images: NDArray[np.uint8], mean: list[float], std: list[float]) -> NDArray[Any]:
    """The network's answers, normalised by hand."""
    ready = ((images / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        return torch.softmax(net.eval()(torch.from_numpy(ready)), 1).numpy()


def test_the_graph_takes_bytes_of_any_batch_size_and_gives_probabilities(session: Any) -> None:
    (images,), (probabilities,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type) == ("images", "tensor(uint8)")
    assert isinstance(images.shape[0], str) and images.shape[1:] == [32, 32, 3]
    assert (probabilities.name, probabilities.type) == ("probabilities", "tensor(float)")
    assert probabilities.shape[1] == 3


@pytest.mark.parametrize("number", [1, 3, 7])
def test_the_graph_answers_as_the_network_with_its_normalisation_inside(
    trained: Any, session: Any, about: dict[str, Any], number: int
) -> None:
    net = timm.create_model(about["architecture"], num_classes=3)
    load_model(net, trained.model / "weights.safetensors")
    (found,) = session.run(None, {"images": some(number)})
    assert (found.shape, found.dtype) == ((number, 3), np.float32)
    assert np.abs(found.sum(1) - 1).max() < 1e-5
    assert np.abs(found - by_torch(net, some(number), about["mean"], about["std"])).max() < 1e-5


def test_the_graph_gives_each_image_its_own_answer(session: Any, colours: Any) -> None:
    pixels = read_pixels(Path(colours.pixels["good"]["pixels"]))
    samples = pixels.select("train")
    (found,) = session.run(None, {"images": pixels.take(samples)})
    assert np.mean(found.argmax(1) == pixels.labels[samples]) > 0.9


def test_the_graph_tells_nothing_of_where_it_was_made(trained: Any) -> None:
    data = (trained.model / "model.onnx").read_bytes()
    for text in (str(CHECKOUT), "site-packages", "stack_trace", ".py"):
        assert text.encode() not in data, text
    onnx.checker.check_model(onnx.load(trained.model / "model.onnx"))


def test_a_network_of_branches_is_exported_folded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, mean, std = create_network("repghostnet_050", 4, SIZE).eval(), (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    opset = export_graph(Served(net, mean, std), SIZE, tmp_path / "model.onnx")
    assert opset == onnx.load(tmp_path / "model.onnx").opset_import[0].version
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for number in (1, 3):
        (found,) = session.run(None, {"images": some(number)})
        assert np.abs(found - by_torch(net, some(number), list(mean), list(std))).max() < 1e-5


def test_the_manifest_says_what_the_model_is(trained: Any, about: dict[str, Any]) -> None:
    assert about["format"] == 1
    assert (about["id"], about["architecture"], about["snapshot"]) == (trained.model.name, "test_resnet", "good")
    assert about["classes"] == ["red", "green", "blue"]
    assert about["input"] == {"height": 32, "width": 32, "channels": 3, "dtype": "uint8", "layout": "NHWC"}
    assert (about["resize"], about["mean"], about["std"]) == ("stretch", [0.5] * 3, [0.5] * 3)
    assert about["recipe"].items() >= {"epochs": 30, "seed": 5, "optimizer": "adamw", "weights": "none"}.items()
    assert about["recipe"]["augment"]["rotate_degrees"] == 10.0
    assert about["tune_accuracy"] == trained.outputs["train"]["tune_accuracy"]
    assert about["epochs"] == 30 and about["train_seconds"] > 0
    graph = onnx.load(trained.model / "model.onnx")
    assert about["graph"]["opset"] == next(entry.version for entry in graph.opset_import if entry.domain == "")


def test_its_outputs_name_the_model(trained: Any, about: dict[str, Any]) -> None:
    outputs = trained.outputs["export"]
    assert (outputs["model"], outputs["path"]) == (about["id"], str(trained.model))
    assert (outputs["classes"], outputs["tune_accuracy"]) == (about["classes"], about["tune_accuracy"])
    assert [path.name for path in trained.model.parent.iterdir()] == [about["id"]]


@pytest.mark.parametrize("part", ["weights", "graph"])
def test_the_manifest_has_the_hash_and_size_of_its_files(trained: Any, about: dict[str, Any], part: str) -> None:
    data = (trained.model / about[part]["file"]).read_bytes()
    assert about[part]["sha256"] == hashlib.sha256(data).hexdigest()
    assert about[part]["bytes"] == len(data)


def test_the_manifest_has_the_hash_of_every_file(trained: Any, about: dict[str, Any]) -> None:
    text = json.dumps(about)
    for file in trained.model.iterdir():
        if file.name != "manifest.json":
            assert file.name in text and hashlib.sha256(file.read_bytes()).hexdigest() in text, file.name


def test_the_manifest_is_written_last(trained: Any) -> None:
    written = {file.name: file.stat().st_mtime_ns for file in trained.model.iterdir()}
    assert len(written) == 6
    assert written["manifest.json"] == max(written.values())


def test_the_folder_has_what_the_training_left(trained: Any) -> None:
    for name, origin in (("weights.safetensors", "best.safetensors"), ("evaluation.json",) * 2, ("tune.npz",) * 2):
        assert (trained.model / name).read_bytes() == (trained.run / origin).read_bytes()
    assert json.loads((trained.model / "history.json").read_text())["epochs"][-1]["epoch"] == 30


def test_no_file_of_the_folder_can_hold_code(trained: Any) -> None:
    kinds = {file.suffix for file in trained.model.iterdir()}
    assert kinds == {".json", ".npz", ".onnx", ".safetensors"}
    with np.load(trained.model / "tune.npz", allow_pickle=False) as stored:
        assert {name: stored[name].dtype.kind for name in stored.files} == {"sha": "u", "probabilities": "f"}
    assert len(load_file(trained.model / "weights.safetensors")) > 40
    for file in trained.model.glob("*.json"):
        json.loads(file.read_text())


def test_the_same_training_elsewhere_is_the_same_model(trained: Any, interrupted: Any) -> None:
    other = interrupted[0].model
    assert other.parent != trained.model.parent
    assert other.name == trained.model.name
    for name in ("model.onnx", "weights.safetensors"):
        assert (other / name).read_bytes() == (trained.model / name).read_bytes()


@pytest.mark.parametrize("change", [{}, {"snapshot": "other"}, {"architecture": "test_vit"}])
def test_another_snapshot_or_architecture_is_another_model(
    trained: Any, about: dict[str, Any], change: dict[str, str]
) -> None:
    run, recipe = training_of(trained.outputs)
    found = manifest(trained.model, dataclasses.replace(recipe, **change), run, about["graph"]["opset"])
    assert (found["id"] == about["id"]) is not bool(change)
    assert re.fullmatch("[0-9a-f]{16}", found["id"])


@pytest.mark.parametrize("part", ["weights.safetensors", "model.onnx"])
def test_other_weights_or_another_graph_are_another_model(
    trained: Any, about: dict[str, Any], tmp_path: Path, part: str
) -> None:
    run, recipe = training_of(trained.outputs)
    shutil.copytree(trained.model, tmp_path / "model")
    with (tmp_path / "model" / part).open("ab") as file:
        file.write(b"x")
    assert manifest(tmp_path / "model", recipe, run, about["graph"]["opset"])["id"] != about["id"]


def test_exported_again_it_takes_the_place_of_a_damaged_one(trained: Any, tmp_path: Path, said: Any) -> None:
    damaged = tmp_path / trained.model.name
    damaged.mkdir()
    (damaged / "model.onnx").write_bytes(b"damaged")
    (damaged / "left behind").touch()
    outputs = export({"threads": 1, "models": str(tmp_path)}, trained.outputs, said)
    assert Path(outputs["path"]) == damaged
    assert {file.name for file in damaged.iterdir()} == {file.name for file in trained.model.iterdir()}
    assert (damaged / "model.onnx").read_bytes() == (trained.model / "model.onnx").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [damaged.name]


def test_a_graph_that_answers_otherwise_is_refused(trained: Any, colours: Any) -> None:
    images = examples(read_pixels(Path(colours.pixels["good"]["pixels"])))
    graph = trained.model / "model.onnx"
    net = timm.create_model("test_resnet", num_classes=3)
    load_model(net, trained.model / "weights.safetensors")
    compare(Served(net, (0.5,) * 3, (0.5,) * 3).eval(), graph, images, 1)
    with pytest.raises(StageError, match=r"answers otherwise than the network it was made of: by .* at batch size 1"):
        compare(Served(net, (0.4,) * 3, (0.5,) * 3).eval(), graph, images, 1)
    with torch.no_grad():
        net.fc.bias.fill_(torch.nan)
    with pytest.raises(StageError, match="by nan of a probability"):
        compare(Served(net, (0.5,) * 3, (0.5,) * 3).eval(), graph, images, 1)


def test_graphs_are_compared_on_train_samples_from_first_to_last(colours: Any) -> None:
    pixels = read_pixels(Path(colours.pixels["good"]["pixels"]))
    found = examples(pixels)
    samples = pixels.select("train")
    assert found.shape == (5, *SIZE, 3)
    assert np.array_equal(found[[0, -1]], pixels.take(samples[[0, -1]]))
    assert len({image.tobytes() for image in found}) == 5


def test_without_a_training_it_says_so(colours: Any, said: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="needs the outputs of the stage train"):
        export({"threads": 1, "models": str(tmp_path)}, {"pixels": colours.pixels["good"]}, said)


def test_an_export_that_fails_leaves_no_model(trained: Any, tmp_path: Path, said: Any) -> None:
    run, models = tmp_path / "run", tmp_path / "models"
    shutil.copytree(trained.run, run)
    (run / "best.safetensors").write_bytes(b"damaged")
    outputs = {**trained.outputs, "train": {"run": str(run)}}
    with pytest.raises(StageError, match=re.escape(str(run / "best.safetensors"))):
        export({"threads": 1, "models": str(models)}, outputs, said)
    assert not list(models.glob("**/manifest.json"))
