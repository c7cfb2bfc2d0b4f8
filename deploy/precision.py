"""The graph of a precision, in the style that an engine wants it.

    as exported   float32 throughout
    half          half weights and arithmetic; normalisation and softmax stay in float32, where half loses accuracy
    asymmetric    static int8 as Q/DQ nodes: uint8 activations with a zero point, int8 weights
    symmetric     the same with int8 activations around zero, outputs and biases left alone: what TensorRT reads

Both engines of TensorRT know only strongly typed networks, so that precision is a property of the graph.

In int8 convolutions and matrix products alone are quantised. By measurement on four networks of 89 to 99% on
handwritten digits: with all quantised that can be (additions above all) a vision transformer answered 3.2% of the
images otherwise, with products alone 0.3%; the convolutional ones answered as well either way and took up to a tenth
longer in ONNX Runtime. Leaving out the first or the last product changed nothing beyond chance. Ranges are the smallest
and largest value seen: entropy and percentile gave the same accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from deploy.half import Halving
from deploy.pixels import Pixels
from policies.job import StageError

STYLES = ("as exported", "half", "asymmetric", "symmetric")
CALIBRATION_IMAGES = 200
BATCH = 20  # images a run of the calibration
PRODUCTS = ("Conv", "MatMul", "Gemm")
Images = NDArray[np.uint8]


def write_graph(exported: Path, out: Path, style: str, images: Images | None = None) -> None:
    """Writes the exported graph (uint8 NHWC in, probabilities out) as `out`, in this style.

    images: uint8 (n, H, W, 3) to calibrate int8 on. Raises StageError where int8 is asked without any.
    """
    if style == "half":
        graph = read_graph(exported)
        onnx.save(Halving(graph, find_normalization(graph)).run(), out)
    elif style in ("asymmetric", "symmetric"):
        if images is None or not len(images):
            raise StageError(
                "int8 is calibrated on tune images and there are none; add images until some have the role tune, or "
                "build another precision"
            )
        quantize(exported, out, images, symmetric=style == "symmetric")
    else:
        raise ValueError(f"there is no style of graph {style!r} to write; there are: {', '.join(STYLES)}")


def choose_images(pixels: Pixels, most: int = CALIBRATION_IMAGES) -> Images:
    """Images of `tune` to calibrate on: the same number of each class as far as there are, from a fixed seed."""
    tune = np.random.default_rng(0).permutation(pixels.select("tune"))
    labels = pixels.labels[tune]
    turn = np.empty(len(tune), np.int64)  # a sample's number within its class
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        turn[mine] = np.arange(len(mine))
    chosen = tune[np.lexsort((labels, turn))][:most]
    return pixels.take(chosen) if len(chosen) else np.empty((0, 0, 0, 3), np.uint8)


def quantize(exported: Path, out: Path, images: Images, symmetric: bool) -> None:
    """Static int8 with a scale for each channel of the weights.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference, 2018; carried out by onnxruntime.quantization.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    # OpenVINO squeezes what is joined to a quantised output (a class token) into that output's range, which cost a
    # network ten points; ONNX Runtime needs quantised outputs to compute in int8 at all.
    inputs_alone = {"OpTypesToExcludeOutputQuantization": list(PRODUCTS)}
    around_zero = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, **inputs_alone}
    quantize_static(
        read_graph(exported),
        str(out),
        Batches(images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(PRODUCTS),
        per_channel=True,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options=around_zero if symmetric else {},
    )


class Batches:
    """The calibration's images, as onnxruntime.quantization asks for them (its CalibrationDataReader)."""

    def __init__(self, images: Images) -> None:
        self._left: Iterator[Images] = iter([images[i : i + BATCH] for i in range(0, len(images), BATCH)])

    def get_next(self) -> dict[str, Images] | None:
        images = next(self._left, None)
        return None if images is None else {"images": images}


def find_normalization(graph: onnx.ModelProto) -> list[str]:
    """The names of the nodes that the pixels pass before the first product: cast, order of axes, mean and deviation."""
    reached = {"images"}
    names = []
    for node in graph.graph.node:
        passes = node.op_type not in (*PRODUCTS, "Shape") and any(name in reached for name in node.input)
        if passes:
            names.append(node.name)
            reached.update(node.output)
    return names


def read_graph(file: Path) -> Any:
    """The graph of the file. Raises ValueError, naming it, where it is none."""
    try:
        return onnx.load(file)
    except Exception as error:  # protobuf's own classes
        raise ValueError(f"{file} is no graph: {error}") from error
