"""Graphs that were made elsewhere become model folders, or are refused with a sentence."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from pipeline import adopt
from pipeline.graft import LARGEST
from policies.job import StageError

CLASSES = ["cat", "dog", "naïve café"]
SIZE = (8, 12)
IMAGENET = {"scale": 255.0, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
Make = Callable[..., Path]


def network(
    file: Path,
    *,
    shape: Sequence[int | str] = ("n", 3, 8, 12),
    kind: int = TensorProto.FLOAT,
    logits: bool = True,
    flat: Sequence[int] = (-1, 4),
    classes: int | str = 3,
    opset: int = 17,
    rows: str | int = "n",
    names: tuple[str, str] = ("images", "probabilities"),
    **reshape: int,
) -> Path:
    """Convolution, mean, a new shape, a classifier: as an export writes it, but small. Its names are those of ours."""
    random = np.random.default_rng(3)
    start, end = names
    nhwc = shape[3] == 3
    nodes = [helper.make_node("Cast", [start], ["floats"], to=TensorProto.FLOAT)] if kind != TensorProto.FLOAT else []
    name = nodes[-1].output[0] if nodes else start
    if nhwc:
        nodes.append(helper.make_node("Transpose", [name], ["planes"], perm=[0, 3, 1, 2]))
        name = "planes"
    nodes += [
        helper.make_node("Conv", [name, "kernel"], ["felt"], kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["felt"], ["pooled"]),
        helper.make_node("Reshape", ["pooled", "flat"], ["embedding"], **reshape),
        helper.make_node("Gemm", ["embedding", "weights"], [end if logits else "logits"]),
        *([] if logits else [helper.make_node("Softmax", ["logits"], [end], axis=1)]),
    ]
    held = {
        "kernel": random.normal(0, 1, (4, 3, 3, 3)).astype(np.float32),
        "flat": np.array(flat, np.int64),
        "weights": random.normal(0, 1, (4, 3)).astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(start, kind, shape)],
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, [rows, classes])],
        [numpy_helper.from_array(values, name) for name, values in held.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), file)
    return file


def order(file: Path, models: Path, classes: Sequence[str] = CLASSES, **expected: Any) -> dict[str, Any]:
    about = {"file": str(file), "models": str(models), "height": SIZE[0], "width": SIZE[1], "threads": 1}
    return {**about, "classes": list(classes), "resize": "stretch", "expected": expected}


def silent(done: float, total: float, unit: str, **figures: Any) -> None:
    """A report that nobody hears."""


def take(file: Path, folder: Path, classes: Sequence[str] = CLASSES, **expected: Any) -> dict[str, Any]:
    return adopt.run(order(file, folder / "models", classes, **expected), {}, silent)


def answers(graph: Path | str, values: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: values})[0]


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


IMAGES = np.random.default_rng(5).integers(0, 256, (7, *SIZE, 3), dtype=np.uint8)


def test_a_graph_that_expects_normalised_planes_answers_to_our_images(tmp_path: Path) -> None:
    file = network(tmp_path / "theirs.onnx")
    done = take(file, tmp_path, logits=True, **IMAGENET)
    model = Path(done["path"])
    about = json.loads((model / "manifest.json").read_text())
    assert (about["id"], about["classes"], about["architecture"]) == (done["model"], CLASSES, "adopted:theirs.onnx")
    assert about["input"] == {"height": 8, "width": 12, "channels": 3, "dtype": "uint8", "layout": "NHWC"}
    mean, std = np.float32(IMAGENET["mean"]), np.float32(IMAGENET["std"])
    planes = ((IMAGES.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(answers(model / "model.onnx", IMAGES), softmax(answers(file, planes)), atol=1e-5)
    assert done["embeds"] is True
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [model.name]


def test_ours_is_taken_as_it_is_and_again_under_the_same_name(tmp_path: Path) -> None:
    file = network(tmp_path / "ours.onnx", shape=("n", 8, 12, 3), kind=TensorProto.UINT8, logits=False)
    done = take(file, tmp_path)
    np.testing.assert_array_equal(answers(Path(done["path"]) / "model.onnx", IMAGES), answers(file, IMAGES))
    assert take(file, tmp_path)["model"] == done["model"]
    assert take(file, tmp_path, CLASSES[::-1])["model"] != done["model"]  # the same graph, read otherwise


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ({"shape": (1, 3, 8, 12), "rows": 1, "flat": (1, 4)}, {"scale": 255.0}),
        ({"shape": (1, 3, 8, 12), "rows": 1, "flat": (1, -1)}, {"scale": 255.0}),
        ({"shape": (1, 3, 8, 12), "rows": 1, "flat": (1, 4), "allowzero": 1}, {"scale": 255.0}),
        ({"shape": (4, 3, 8, 12), "rows": 4, "flat": (4, 4)}, {"scale": 1.0, "mean": [127.5], "std": [127.5]}),
        ({"shape": ("n", 8, 12, 3), "classes": "c"}, {"mean": [0.0, 1.0, 2.0]}),
        ({"shape": ("n", "c", "h", "w")}, {"std": [99.0], "layout": "nchw"}),
        ({"shape": (1, 3, 8, 12), "kind": TensorProto.UINT8, "rows": 1, "opset": 11}, {}),
    ],
    ids=[
        "batch of one",
        "and what is left over",
        "as torch exports it",
        "batch of four",
        "nhwc",
        "nothing fixed",
        "uint8 planes",
    ],
)
def test_what_an_export_may_fix_or_leave_open(tmp_path: Path, made: dict[str, Any], expected: dict[str, Any]) -> None:
    done = take(network(tmp_path / "theirs.onnx", **made), tmp_path, logits=True, **expected)
    found = answers(Path(done["path"]) / "model.onnx", IMAGES)
    assert found.shape == (7, 3)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


def test_a_fixed_batch_is_let_go_where_it_is_one_and_not_in_the_shape_of_a_weight(tmp_path: Path) -> None:
    """A vector becomes planes of one, by the very shape that the images are given."""
    model = onnx.load(network(tmp_path / "theirs.onnx", shape=(1, 3, 8, 12), rows=1))
    nodes = [
        helper.make_node("Reshape", ["vector", "planes"], ["offset"]),
        helper.make_node("Reshape", ["images", "planes"], ["same"]),
        helper.make_node("Add", ["same", "offset"], ["moved"]),
    ]
    model.graph.node[0].input[0] = "moved"
    kept = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    vector = np.arange(3 * 8 * 12, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(vector, "vector"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, -1, 8, 12], np.int64), "planes"))
    onnx.save(model, tmp_path / "theirs.onnx")
    done = take(tmp_path / "theirs.onnx", tmp_path, logits=True, scale=255.0)
    assert answers(Path(done["path"]) / "model.onnx", IMAGES).shape == (7, 3)


def test_a_branch_within_the_graph_is_taken_with_it(tmp_path: Path) -> None:
    """A subgraph names tensors from outside itself, which are renamed."""
    file = network(tmp_path / "theirs.onnx")
    model = onnx.load(file)
    body = helper.make_graph(
        [helper.make_node("Add", ["logits", "logits"], ["twice"])],
        "then",
        [],
        [helper.make_tensor_value_info("twice", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["logits"], ["once"])],
        "else",
        [],
        [helper.make_tensor_value_info("once", TensorProto.FLOAT, None)],
    )
    model.graph.node[-1].output[0] = "logits"
    branch = helper.make_node("If", ["yes"], ["probabilities"], then_branch=body, else_branch=other)
    model.graph.node.append(branch)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    onnx.save(model, file)
    done = take(file, tmp_path, logits=True, scale=1.0)
    planes = IMAGES.astype(np.float32).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(
        answers(Path(done["path"]) / "model.onnx", IMAGES), softmax(answers(file, planes)), atol=1e-5
    )


def test_a_graph_without_a_classifier_gives_no_embedding(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Softmax", ["means"], ["y"], axis=1),
    ]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 12])]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])]
    graph = helper.make_graph(nodes, "colours", ends, out)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "c.onnx")
    assert take(tmp_path / "c.onnx", tmp_path, scale=255.0)["embeds"] is False


def test_weights_beside_the_file_are_taken_into_it(tmp_path: Path) -> None:
    file = network(tmp_path / "theirs.onnx")
    model = onnx.load(file)
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, tmp_path / "large.onnx")
    done = take(tmp_path / "large.onnx", tmp_path, logits=True, scale=255.0)
    (tmp_path / "weights.bin").unlink()
    assert answers(Path(done["path"]) / "model.onnx", IMAGES).shape == (7, 3)
    with pytest.raises(StageError, match=r"weights\.bin, which is missing; put it beside"):
        take(tmp_path / "large.onnx", tmp_path, logits=True, scale=255.0)


def _tensor_outside(file: Path) -> Path:
    model = onnx.load(network(file))
    tensor = model.graph.initializer[0]
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    tensor.ClearField("raw_data")
    file.write_bytes(model.SerializeToString())
    return file


def _several_inputs(file: Path) -> Path:
    model = onnx.load(network(file))
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n"]))
    onnx.save(model, file)
    return file


def _huge(file: Path) -> Path:
    with file.open("wb") as stream:
        stream.truncate(LARGEST + 1)  # a hole: it takes no room
    return file


def _junk(file: Path) -> Path:
    file.write_bytes(b"GIF89a, or so")
    return file


def _empty(file: Path) -> Path:
    file.touch()
    return file


def _newer(file: Path) -> Path:
    model = onnx.load(network(file))
    model.opset_import[0].version = 999
    file.write_bytes(model.SerializeToString())
    return file


def _batch_norm_of_the_batch(file: Path) -> Path:
    """What it answers to an image depends on the others of its batch."""
    model = onnx.load(network(file, logits=False))
    model.graph.node[-1].attribute[0].i = 0
    onnx.save(model, file)
    return file


@pytest.mark.parametrize(
    ("make", "expected", "words"),
    [
        (_junk, {}, r"model\.onnx is no ONNX file"),
        (_empty, {}, r"model\.onnx is no ONNX file, or an empty graph"),
        (lambda file: file, {}, r"model\.onnx cannot be read: No such file"),
        (_huge, {}, r"model\.onnx has 2\.0 GB, and a graph of more than 2 GB"),
        (_tensor_outside, {"scale": 1.0}, r"outside its folder"),
        (_several_inputs, {"scale": 1.0}, r"has the inputs images, mask and the outputs probabilities"),
        (_newer, {"scale": 1.0, "logits": True}, r"model\.onnx cannot be run by ONNX Runtime"),
        (lambda f: network(f, opset=6), {"scale": 1.0}, "is of opset 6, the oldest taken is 7"),
        (network, {}, "say it by --scale, --mean and --std"),
        (network, {"scale": 255.0}, r"does not answer with probabilities .*say --logits"),
        (lambda f: network(f, logits=False), {"scale": 255.0, "logits": True}, "leave --logits out"),
        (network, {"scale": 0.0}, "cannot be 0"),
        (network, {"mean": [1.0, 2.0]}, "--mean has 2 numbers"),
        (lambda f: network(f, kind=TensorProto.UINT8), {"scale": 1.0}, "normalises inside: leave --scale"),
        (lambda f: network(f, kind=TensorProto.DOUBLE), {"scale": 1.0}, "is of type DOUBLE; export it with float32"),
        (lambda f: network(f, shape=("n", 3, 8, 8)), {"scale": 1.0}, r"of 8 x 8, the target asks for 8 x 12"),
        (lambda f: network(f, shape=("n", "c", "h", "w")), {"scale": 1.0}, "say where the channels are"),
        (lambda f: network(f, shape=("n", 3, 8, 12)), {"scale": 1.0, "layout": "nhwc"}, "that is not --layout nhwc"),
        (lambda f: network(f, shape=("n", 1, 8, 12)), {"scale": 1.0}, "that is not images of 3 channels"),
        (_batch_norm_of_the_batch, {"scale": 1.0}, r"one by one|does not answer with probabilities"),
    ],
)  # fmt: skip
def test_what_cannot_be_adopted_says_why_and_leaves_nothing(
    tmp_path: Path, make: Make, expected: dict[str, Any], words: str
) -> None:
    file = make(tmp_path / "model.onnx")
    with pytest.raises(StageError, match=words):
        take(file, tmp_path, **expected)
    assert not list((tmp_path / "models").glob("*"))


def test_the_number_of_classes_must_fit(tmp_path: Path) -> None:
    for made in ({}, {"classes": "c"}):
        file = network(tmp_path / "theirs.onnx", **made)
        with pytest.raises(StageError, match="answers with 3 classes, and 2 are named"):
            take(file, tmp_path, ["cat", "dog"], scale=1.0, logits=True)


def test_two_at_once_do_not_fill_one_folder(tmp_path: Path) -> None:
    left: list[str] = []

    def fill() -> None:
        with adopt.filling(tmp_path / "adopt-1") as folder:
            left.append("the second begins")
            assert not list(folder.iterdir())

    second = threading.Thread(target=fill)
    with adopt.filling(tmp_path / "adopt-1") as folder:
        second.start()
        second.join(0.3)
        (folder / "model.onnx").write_bytes(b"the first's")
        adopt.settle(folder, tmp_path / "1")
        left.append("the first is settled")
    second.join()
    assert left == ["the first is settled", "the second begins"]
    assert [file.name for file in (tmp_path / "1").iterdir()] == ["model.onnx"]
