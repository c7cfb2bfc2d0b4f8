"""A float32 graph made half: half weights and arithmetic where it is safe, casts where the two meet.

onnxruntime has a converter of its own; between two operators that it leaves in float32 it goes through half and back,
where a sum of squares overflows.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

FULL = frozenset({
    "LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization", "Softmax", "LogSoftmax",
    "Pow", "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "Sqrt", "Reciprocal",  # of which norms are made
    "CumSum", "NonMaxSuppression", "Range", "RoiAlign", "TopK", "Upsample",  # not everywhere there is half of these
    "If", "Loop", "Scan",
})  # fmt: skip
SIZES = {"Resize": (1, 2)}  # inputs that are float32 by the operator's definition
LARGEST = float(np.finfo(np.float16).max)


class Halving:
    """One graph on its way: which tensors are float, and which of those are half by now."""

    def __init__(self, model: onnx.ModelProto, full: Collection[str]) -> None:
        self.model = model
        self.full = full  # names of nodes that stay in float32, besides those of the operators in FULL
        self.held = {tensor.name: tensor for tensor in model.graph.initializer}
        self.floats = find_floats(model)
        self.half: set[str] = set()  # tensors
        self.nodes: list[NodeProto] = []
        self.cast: dict[tuple[str, int], str] = {}  # (tensor, type) -> what it is called in that type

    def run(self) -> onnx.ModelProto:
        """The model; it is changed in place."""
        graph = self.model.graph
        outputs = {tensor.name for tensor in graph.output}
        for node in graph.node:
            stays = node.op_type in FULL or node.name in self.full or bool(outputs & set(node.output))
            self.add(node, TensorProto.FLOAT if stays else TensorProto.FLOAT16)
        used = {name for node in self.nodes for name in node.input} | outputs
        for repeated, kept in (
            (graph.node, self.nodes),
            (graph.initializer, [tensor for name, tensor in self.held.items() if name in used]),
        ):
            del repeated[:]
            repeated.extend(kept)
        del graph.value_info[:]  # they name the types of before
        return self.model

    def add(self, node: NodeProto, kind: int) -> None:
        """Takes the node over with its float inputs and outputs of this type."""
        for place, name in enumerate(node.input):
            if name in self.floats and place not in SIZES.get(node.op_type, ()):
                node.input[place] = self.convert(name, kind)
        if kind == TensorProto.FLOAT16:
            halve_attributes(node)
            self.half.update(name for name in node.output if name in self.floats)
        self.nodes.append(node)

    def convert(self, name: str, kind: int) -> str:
        """The name of this float tensor in the type, made where there is none yet."""
        if (name in self.half) == (kind == TensorProto.FLOAT16):
            return name
        if (name, kind) not in self.cast:
            other = f"{name}_{'half' if kind == TensorProto.FLOAT16 else 'full'}"
            if name in self.held:
                self.held[other] = halve_tensor(self.held[name], other)
            else:
                self.nodes.append(helper.make_node("Cast", [name], [other], name=f"{other}_cast", to=kind))
            self.cast[name, kind] = other
        return self.cast[name, kind]


def find_floats(model: onnx.ModelProto) -> set[str]:
    """The names of the graph's float32 tensors."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    told = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    told |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name for name, kind in told.items() if kind == TensorProto.FLOAT}


def halve_attributes(node: NodeProto) -> None:
    """A node that says the type of what it makes makes half instead of float32."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(halve_tensor(attribute.t, attribute.t.name))


def halve_tensor(tensor: TensorProto, name: str) -> TensorProto:
    """The same values in half precision; those beyond its range become its largest."""
    values = np.clip(numpy_helper.to_array(tensor), -LARGEST, LARGEST).astype(np.float16)
    return numpy_helper.from_array(values, name)
