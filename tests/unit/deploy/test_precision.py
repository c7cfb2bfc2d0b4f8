"""Every engine and precision of a real network, exported as the training does: graphs, answers and accuracy.

A small network with what the usual ones are made of, trained for moments on handwritten digits.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from deploy import artifact, build, prove
from deploy.engines import find_engine, find_installed
from deploy.pixels import read_pixels
from deploy.precision import choose_images, find_normalization, write_graph
from policies.job import StageError
from tests.unit.deploy.models import (
    answer,
    class_names,
    make_model,
    names,
    noise,
    order,
    silent,
    write_manifest,
    write_pixels,
)

SIZE, EPOCHS = 16, 6
DIGITS = class_names(10, "digit")
OPTIONS = {"compute_capability": "8.9"}
BUILDS = [(name, precision) for name, engine in find_installed().items() for precision in engine.describe()["graphs"]]
STYLES = ["half", "asymmetric", "symmetric"]


@dataclass(frozen=True)
class Given:
    """A model folder, the decoded digits, and what its graph answers of those for judge."""

    model: Path
    index: Path
    judge: np.ndarray
    answers: np.ndarray
    accuracy: float  # on tune

    @property
    def graph(self) -> Path:
        return self.model / "model.onnx"


def make_given(folder: Path, net: Any) -> Given:
    """A network as the training exports it, fitted to 1,000 digits; of the others 400 are tune, 397 judge."""
    import torch
    from sklearn.datasets import load_digits

    from pipeline.export import export_graph
    from pipeline.model import Served

    digits = load_digits()
    images = np.repeat(np.kron(digits.images, np.ones((2, 2)))[..., None] * 255 / 16, 3, 3).astype(np.uint8)
    served = Served(net, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    fit(served, torch.from_numpy(images[:1000]), torch.from_numpy(digits.target[:1000]).long())
    folder.mkdir(exist_ok=True)
    model = folder / "model"
    model.mkdir()
    export_graph(served.eval(), (SIZE, SIZE), model / "model.onnx")
    (model / "weights.safetensors").write_bytes(b"weights")
    write_manifest(model, DIGITS, SIZE)
    rows = [("tune" if i < 400 else "judge", DIGITS[label]) for i, label in enumerate(digits.target[1000:])]
    index = write_pixels(folder / "pixels", DIGITS, rows, images[1000:])
    answers = answer(model / "model.onnx", images[1000:])
    right = answers[:400].argmax(axis=1) == digits.target[1000:1400]
    return Given(model, index, images[1400:], answers[400:], float(right.mean()))


def fit(served: Any, images: Any, labels: Any) -> None:
    """A few quick epochs."""
    import torch

    optimizer = torch.optim.AdamW(served.parameters(), lr=3e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps so small are slower with more
    served.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(50):
            logits = served.net(served.normalize(images[batch].float().permute(0, 3, 1, 2)))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
    torch.set_num_threads(threads)


def make_network() -> Any:
    """Convolutions with batch norms, then attention with layer norms and a class token, as many as the batch has."""
    import torch
    from torch import Tensor, nn

    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(*block(3, 32), *block(32, 64))
            self.token = nn.Parameter(torch.zeros(1, 1, 64))
            self.before, self.after = nn.LayerNorm(64), nn.LayerNorm(64)
            self.attend, self.head = nn.Linear(64, 3 * 64), nn.Linear(64, len(DIGITS))

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.stem(images).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.token.expand(images.shape[0], -1, -1), tokens], 1)
            query, key, value = self.attend(self.before(tokens)).chunk(3, -1)
            tokens = tokens + torch.softmax(query @ key.transpose(1, 2) / 8, -1) @ value
            return self.head(self.after(tokens).mean(1))

    torch.manual_seed(0)
    return Network()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return make_given(tmp_path_factory.mktemp("digits"), make_network())


@pytest.fixture(scope="module")
def styles(given: Given, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The graph in every style that has to be written."""
    folder = tmp_path_factory.mktemp("styles")
    images = choose_images(read_pixels(given.index))
    for style in STYLES:
        write_graph(given.graph, folder / style, style, images)
    return {style: folder / style for style in STYLES}


def test_the_network_is_a_test(given: Given) -> None:
    assert given.accuracy > 0.85


@pytest.mark.parametrize(("engine", "precision"), BUILDS)
def test_every_precision_of_every_engine_keeps_the_accuracy(
    given: Given, tmp_path: Path, engine: str, precision: str
) -> None:
    inputs = order(given.model, tmp_path / "artifacts", engine=engine, precision=precision, options=OPTIONS)
    built = build.run({**inputs, "pixels": str(given.index)}, {}, silent)
    facts = artifact.verify(Path(built["path"]))
    assert (facts["engine"], facts["precision"]) == (built["engine"], built["precision"]) == (engine, precision)
    here = find_engine(engine).why_not_here()
    assert facts["verified"] is (here is None)
    asked = {"artifact": built["path"], "pixels": str(given.index), "tune": None, "threads": 1}
    proven = prove.run({**asked, "answers": str(tmp_path / "answers.json")}, {}, silent)
    assert proven["tune_accuracy"] >= given.accuracy - (0.02 if precision == "int8" else 0.005)
    assert (proven["stand_in"] is None) is (here is None)


def ask(given: Given, graph: Path) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"images": given.judge})[0]
    return found


# By measurement: agreement of 1 and at most 0.005 in half; 0.99 and on average 0.003 in int8.
@pytest.mark.parametrize(
    ("style", "agreement", "mean"), [("half", 0.99, 0.001), ("asymmetric", 0.97, 0.006), ("symmetric", 0.97, 0.006)]
)
def test_the_graph_of_each_style_answers_almost_as_the_exported_one(
    given: Given, styles: dict[str, Path], style: str, agreement: float, mean: float
) -> None:
    found = ask(given, styles[style])
    assert (found.argmax(axis=1) == given.answers.argmax(axis=1)).mean() >= agreement
    assert 0 < np.abs(found - given.answers).mean() < mean


def initializers(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


@pytest.mark.parametrize("style", STYLES)
def test_the_ends_and_the_normalization_stay_as_they_are(given: Given, styles: dict[str, Path], style: str) -> None:
    graph = onnx.load(styles[style])
    [images], [answers] = graph.graph.input, graph.graph.output
    assert (images.name, images.type.tensor_type.elem_type) == ("images", TensorProto.UINT8)
    assert (answers.name, answers.type.tensor_type.elem_type) == ("probabilities", TensorProto.FLOAT)
    kinds = {node.name: node.op_type for node in graph.graph.node}
    path = [kinds[name] for name in find_normalization(graph)]
    assert path[:4] == ["Cast", "Transpose", "Sub", "Mul"]  # TensorRT takes uint8 no other way
    assert set(path[4:]) <= {"Cast", "QuantizeLinear", "DequantizeLinear"}
    onnx.checker.check_model(graph, full_check=True)


def test_in_half_the_weights_are_half_and_norms_are_not(given: Given, tmp_path: Path) -> None:
    write_graph(given.graph, tmp_path / "half", "half")
    graph = onnx.load(tmp_path / "half")
    held = initializers(graph)
    kinds: dict[str, set[str]] = {}
    for node in graph.graph.node:
        for name in node.input:
            if name in held:
                kinds.setdefault(node.op_type, set()).add(str(held[name].dtype))
    assert kinds["MatMul"] == kinds["Conv"] == {"float16"}
    assert kinds["LayerNormalization"] == {"float32"}
    assert (tmp_path / "half").stat().st_size < 0.6 * given.graph.stat().st_size


@pytest.mark.parametrize(("style", "kind"), [("asymmetric", np.uint8), ("symmetric", np.int8)])
def test_int8_is_written_in_the_style_that_was_asked(styles: dict[str, Path], style: str, kind: type) -> None:
    graph = onnx.load(styles[style])
    held = initializers(graph)
    activations = [held[node.input[2]] for node in graph.graph.node if node.op_type == "QuantizeLinear"]
    weights = [
        [held[name] for name in node.input]
        for node in graph.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in held
    ]
    assert {zero.dtype.type for zero in activations} == {kind}
    assert any(zero.any() for zero in activations) is (style == "asymmetric")
    assert any(scale.ndim == 1 and len(scale) > 1 for _, scale, _ in weights)  # a scale for each channel
    if style == "symmetric":
        assert {values.dtype.type for values, _, _ in weights} == {np.int8}  # no bias, which TensorRT does not take
        assert not any(zero.any() for _, _, zero in weights)


def test_int8_quantizes_products_alone(styles: dict[str, Path]) -> None:
    graph = onnx.load(styles["symmetric"])
    plain = {node.output[0]: node for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    takers = Counter(node.op_type for node in graph.graph.node if any(name in plain for name in node.input))
    assert takers["Conv"] > 0
    assert not {"LayerNormalization", "ReduceMean"} & set(takers)


def test_what_the_builder_cannot_read_of_another_engines_style_is_said(given: Given, tmp_path: Path) -> None:
    """The style that is fast in ONNX Runtime is none for TensorRT: hence a graph for each engine."""
    write_graph(given.graph, tmp_path / "graph", "asymmetric", choose_images(read_pixels(given.index)))
    options = {**OPTIONS, "max_batch_size": 4}
    with pytest.raises(ValueError, match=r"it refuses the operator DequantizeLinear: "):
        find_engine("tensorrt_rtx").build(given.model, tmp_path / "graph", tmp_path, "int8", options)
    assert names(tmp_path) == ["graph"]


# --- calibration ------------------------------------------------------------------------------------------------


def test_the_calibration_takes_as_many_of_each_class_as_there_are(tmp_path: Path) -> None:
    rows = [("tune", "class0")] * 50 + [("tune", "class1")] * 3 + [("tune", "class2")] * 20 + [("judge", "class1")] * 9
    images = noise(len(rows), seed=4)
    pixels = read_pixels(write_pixels(tmp_path, class_names(3), rows, images))
    chosen = choose_images(pixels, 20)
    found = [next(i for i, image in enumerate(images) if (image == one).all()) for one in chosen]
    assert Counter(rows[i] for i in found) == {("tune", "class0"): 9, ("tune", "class1"): 3, ("tune", "class2"): 8}
    assert len(set(found)) == 20
    np.testing.assert_array_equal(choose_images(pixels, 20), chosen)
    assert len(choose_images(pixels)) == 73


@pytest.mark.parametrize("roles", [None, ["judge"], ["train", "judge"]])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "tensorrt_rtx"])
def test_without_tune_images_int8_is_refused_in_words(tmp_path: Path, roles: list[str] | None, engine: str) -> None:
    model = make_model(tmp_path / "model", class_names(4))
    index = None
    if roles:
        rows = [(role, "class0") for role in roles]
        index = str(write_pixels(tmp_path / "pixels", class_names(4), rows, noise(len(rows))))
    inputs = order(model, tmp_path / "artifacts", engine=engine, precision="int8", options=OPTIONS, pixels=index)
    with pytest.raises(StageError, match=r"^int8 is calibrated on tune images and there are none; add images until"):
        build.run(inputs, {}, silent)
    assert names(tmp_path / "artifacts") == []


def test_images_of_another_size_calibrate_nothing(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", class_names(4))
    index = write_pixels(tmp_path / "pixels", class_names(4), [("tune", "class0")], noise(1, size=16))
    with pytest.raises(StageError, match=r"holds images of shape \(16, 16, 3\), model \S+ takes \(8, 8, 3\); run the"):
        build.run(order(model, tmp_path / "artifacts", precision="int8", pixels=str(index)), {}, silent)


@pytest.mark.parametrize("style", STYLES)
def test_what_is_no_graph_is_named(tmp_path: Path, style: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"model\.onnx is no graph: "):
        write_graph(tmp_path / "model.onnx", tmp_path / "out", style, noise(2))
    assert names(tmp_path) == ["model.onnx"]


def test_an_unknown_style_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no style of graph 'double' to write; there are: as exported, half, "):
        write_graph(tmp_path / "model.onnx", tmp_path / "out", "double")


def test_the_same_int8_build_makes_the_same_artifact(given: Given, tmp_path: Path) -> None:
    inputs = order(given.model, tmp_path / "one", precision="int8", pixels=str(given.index))
    first = build.run(inputs, {}, silent)
    again = build.run({**inputs, "artifacts": str(tmp_path / "two")}, {}, silent)
    assert first["artifact"] == again["artifact"]
    shutil.rmtree(first["path"])
    assert first["artifact_mb"] < 0.5 * given.graph.stat().st_size / 1e6
