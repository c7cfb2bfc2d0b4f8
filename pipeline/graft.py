"""A graph that was trained elsewhere becomes one of ours: "images" uint8 (n, H, W, 3) in, "probabilities" out.

What it expects is put in front of it (type, scale, mean, deviation, order of axes), a softmax behind it where it
answers with logits, and a batch that its export fixed is let go. pipeline/adopt.py asks both, the file as it was and
what became of it, and compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper
from onnx.external_data_helper import (
    ExternalDataInfo,
    _get_all_tensors,
    load_external_data_for_model,
    uses_external_data,
)

from pipeline.images import Size
from policies.job import StageError

LARGEST = 2_000_000_000  # bytes: protobuf holds no more in one file
OLDEST = 7  # opset: from here on operators broadcast as numpy does
CHANNELS = 3
INPUT, OUTPUT, BATCH = "images", "probabilities", "batch"
PREFIX = "adopted/"
Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True, slots=True)
class Expected:
    """What the graph expects of its input, as a person says it: (pixel / scale - mean) / std, in this order of axes."""

    scale: float | None = None  # what the pixels of 0 to 255 are divided by
    mean: tuple[float, ...] | None = None  # by channel, after the scale
    std: tuple[float, ...] | None = None
    layout: Layout | None = None  # None: as the graph's shape tells
    logits: bool = False

    @property
    def said(self) -> bool:
        return self.scale is not None or self.mean is not None or self.std is not None


@dataclass(frozen=True, slots=True)
class Ends:
    """What goes into a graph and comes out."""

    input: str
    kind: int  # TensorProto.UINT8 or FLOAT
    layout: Layout
    batch: int | None  # None: any
    output: str
    classes: int | None  # None: the graph does not say


def read_graph(file: Path) -> onnx.ModelProto:
    """The graph, with the weights that lie beside it. Raises StageError, naming the file, where there is none."""
    try:
        _check_bytes(file, file.stat().st_size)
        model = onnx.load(file, load_external_data=False)
    except OSError as error:
        raise StageError(f"{file} cannot be read: {error.strerror}; name an ONNX file") from error
    except StageError:
        raise
    except Exception as error:  # protobuf's own classes
        raise StageError(f"{file} is no ONNX file: {error}") from error
    if not model.graph.node or not model.graph.output:
        raise StageError(f"{file} is no ONNX file, or an empty graph: it computes nothing")
    _load_beside(model, file)
    return model


def _load_beside(model: onnx.ModelProto, file: Path) -> None:
    """Reads the weights that an export laid in files of their own, of this folder alone."""
    beside: dict[str, int] = {}
    for tensor in filter(uses_external_data, _get_all_tensors(model)):
        name = ExternalDataInfo(tensor).location
        path = (file.parent / name).resolve()
        if not path.is_relative_to(file.parent.resolve()):
            raise StageError(f"{file} takes weights from {name!r}, outside its folder; export it into one file")
        if not path.is_file():
            raise StageError(f"{file} keeps weights in {path}, which is missing; put it beside the model")
        beside[name] = path.stat().st_size
    _check_bytes(file, file.stat().st_size + sum(beside.values()))
    if beside:
        try:
            load_external_data_for_model(model, str(file.parent))
        except Exception as error:  # ValueError, onnx.checker.ValidationError, OSError
            raise StageError(f"the weights beside {file} ({', '.join(beside)}) cannot be read: {error}") from error


def _check_bytes(file: Path, size: int) -> None:
    if size > LARGEST:
        raise StageError(
            f"{file} has {size / 1e9:.1f} GB, and a graph of more than {LARGEST / 1e9:g} GB does not fit into one "
            "file; export it in half precision, or a smaller model"
        )


def find_ends(model: onnx.ModelProto, file: Path, size: Size, expected: Expected) -> Ends:
    """The graph's ends, once they are such that images of this (height, width) can be answered. Raises StageError."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST:
        raise StageError(f"{file} is of opset {opset}, the oldest taken is {OLDEST}; export it again with a newer one")
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        ends = [", ".join(value.name for value in side) or "none" for side in (inputs, model.graph.output)]
        raise StageError(
            f"{file} has the inputs {ends[0]} and the outputs {ends[1]}; export it with one of images, one of classes"
        )
    (image,), (answer,) = inputs, model.graph.output
    kind = image.type.tensor_type.elem_type
    if kind not in (TensorProto.UINT8, TensorProto.FLOAT):
        name = TensorProto.DataType.Name(kind)
        raise StageError(f"the input {image.name} of {file} is of type {name}; export it with float32 or uint8")
    _check_normalisation(file, kind, expected)
    shape, rows = _shape(image), _shape(answer)
    if len(shape) != 4:
        raise StageError(f"the input {image.name} of {file} has {len(shape)} dimensions; images in batches have 4")
    if len(rows) != 2:
        raise StageError(f"the output {answer.name} of {file} has {len(rows)} dimensions; it takes (batch, classes)")
    layout = _layout(file, shape, expected.layout)
    _check_size(file, shape, layout, size)
    return Ends(image.name, kind, layout, shape[0], answer.name, rows[1])


def _shape(value: onnx.ValueInfoProto) -> list[int | None]:
    """Its dimensions; None: any."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]


def _check_normalisation(file: Path, kind: int, expected: Expected) -> None:
    if kind == TensorProto.FLOAT and not expected.said:
        raise StageError(
            f"{file} takes float32, and how its images are normalised is not in it: say it by --scale, --mean and "
            "--std (--scale 255 for values from 0 to 1, --scale 1 for 0 to 255)"
        )
    if kind == TensorProto.UINT8 and expected.said:
        raise StageError(f"{file} takes uint8, and normalises inside: leave --scale, --mean and --std out")
    for name, values in (("--mean", expected.mean), ("--std", expected.std)):
        if values is not None and len(values) not in (1, CHANNELS):
            raise StageError(f"{name} has {len(values)} numbers; give one, or one for each of red, green and blue")
    if expected.scale == 0 or 0 in (expected.std or ()):
        raise StageError("--scale and --std divide: they cannot be 0")


def _layout(file: Path, shape: Sequence[int | None], said: Layout | None) -> Layout:
    """The order of axes. Raises StageError where the shape allows another than is said, both, or none."""
    possible: dict[Layout, bool] = {
        "nchw": shape[1] in (CHANNELS, None), "nhwc": shape[3] in (CHANNELS, None),
    }  # fmt: skip
    sure: list[Layout] = [name for name, at in (("nchw", 1), ("nhwc", 3)) if shape[at] == CHANNELS]  # type: ignore[misc]
    told = "x".join("?" if number is None else str(number) for number in shape)
    if said is not None and possible[said]:
        return said
    if said is not None or not any(possible.values()):
        what = f"--layout {said}" if said else "images of 3 channels"
        raise StageError(f"{file} takes {told}: that is not {what}")
    if len(sure) != 1:
        raise StageError(f"{file} takes {told}: say where the channels are, --layout nchw or --layout nhwc")
    return sure[0]


def _check_size(file: Path, shape: Sequence[int | None], layout: Layout, size: Size) -> None:
    found = (shape[2], shape[3]) if layout == "nchw" else (shape[1], shape[2])
    if any(number not in (None, wanted) for number, wanted in zip(found, size, strict=True)):
        told = " x ".join("any" if number is None else str(number) for number in found)
        raise StageError(
            f"{file} takes images of {told}, the target asks for {size[0]} x {size[1]}: export it for that size, or "
            "write its size into [input] of the constraint file"
        )


def graft(model: onnx.ModelProto, ends: Ends, expected: Expected, size: Size) -> onnx.ModelProto:
    """Another graph, with our ends. The one that is given stays as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    grafted = compose.add_prefix(copy, PREFIX)  # so that nothing in it is called as our ends are
    graph = grafted.graph
    del graph.value_info[:]  # they name the batch and the size of before
    if ends.batch is not None:
        _free_batch(graph, PREFIX + ends.input, ends.batch)
    front, begun = _front(ends, expected)
    back = _back(PREFIX + ends.output, expected)
    nodes = [*front, *graph.node, *back]
    for number, node in enumerate(nodes):
        node.name = node.name or f"{PREFIX}{node.op_type}_{number}"  # what is half or int8 is told by name
    inner = [value for value in graph.input if value.name != PREFIX + ends.input]
    for repeated, kept in (
        (graph.node, nodes),
        (graph.input, [*_images(size), *inner]),
        (graph.output, [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [BATCH, ends.classes])]),
    ):
        del repeated[:]
        repeated.extend(kept)
    graph.initializer.extend(begun)
    return grafted


def _images(size: Size) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [BATCH, *size, CHANNELS])]


def _front(ends: Ends, expected: Expected) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """From uint8 NHWC to what the graph takes. Cast first, then permuted: TensorRT permutes no uint8."""
    steps: list[tuple[str, dict[str, Any], NDArray[np.float32] | None]] = []
    if ends.kind == TensorProto.FLOAT:
        steps.append(("Cast", {"to": TensorProto.FLOAT}, None))
        steps += [(operator, {}, values) for operator, values in normalisation(expected)]
    if ends.layout == "nchw":
        steps.append(("Transpose", {"perm": [0, 3, 1, 2]}, None))
    nodes, held, name = [], [], INPUT
    for number, (operator, attributes, values) in enumerate(steps or [("Identity", {}, None)]):
        inputs, out = [name], f"prepared_{number}"
        if values is not None:
            held.append(numpy_helper.from_array(values, f"prepare_{number}"))
            inputs.append(held[-1].name)
        nodes.append(helper.make_node(operator, inputs, [out], name=f"prepare_{operator}_{number}", **attributes))
        name = out
    nodes[-1].output[0] = PREFIX + ends.input
    return nodes, held


def normalisation(expected: Expected) -> list[tuple[str, NDArray[np.float32]]]:
    """What is done to pixels in NHWC, in order: "Div" or "Sub", and by what."""
    told = (("Div", (expected.scale or 1.0,)), ("Sub", expected.mean or (0.0,)), ("Div", expected.std or (1.0,)))
    found = [(operator, np.asarray(values, np.float32)) for operator, values in told]
    return [(operator, values) for operator, values in found if np.any(values != (operator == "Div"))]


def _back(output: str, expected: Expected) -> list[onnx.NodeProto]:
    if expected.logits:
        return [helper.make_node("Softmax", [output], [OUTPUT], name="answer_softmax", axis=1)]
    return [helper.make_node("Identity", [output], [OUTPUT], name="answer")]


def _free_batch(graph: onnx.GraphProto, start: str, batch: int) -> None:
    """Where an export wrote the batch into a new shape, what is left over counts (-1), or what it was before (0).

    Of what comes from the input alone: a weight's new shape may begin with the same number. Each gets a shape of its
    own, since exports let several share one. Whether that was all of it is seen when the graph is asked with other
    batches.
    """
    moving = _following(graph, start)
    held = {tensor.name: tensor for tensor in graph.initializer}
    held |= {
        node.output[0]: attribute.t
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "Constant" and attribute.name == "value"
    }
    for number, node in enumerate(graph.node):
        target = held.get(node.input[1]) if node.op_type == "Reshape" and node.input[0] in moving else None
        shape = [] if target is None else numpy_helper.to_array(target).tolist()
        if target is None or len(shape) < 2 or shape[0] != batch:
            continue
        if -1 not in shape:
            shape[0] = -1
        elif not any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute):
            shape[0] = 0
        node.input[1] = f"{PREFIX}any_batch_{number}"
        graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), node.input[1]))


def _following(graph: onnx.GraphProto, start: str) -> set[str]:
    """The tensors that depend on this one. Of branches and loops, which may take it from outside, all that come out."""
    found = {start}
    for node in graph.node:  # ONNX has them in an order in which they can be computed
        if found.intersection(node.input) or any(attribute.HasField("g") for attribute in node.attribute):
            found.update(node.output)
    return found
