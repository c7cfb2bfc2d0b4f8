"""Asks a stored model about images with ONNX Runtime: no torch, so that a drop is answered within a second."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.durable import read_json, write_json
from pipeline.pixels import decode_all
from policies.job import Outputs, Report, StageError


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """The stage: the model's predicted class and its probability for each sample, into the answers file."""
    import onnxruntime

    model = Path(inputs["model"])
    about = read_json(model / "manifest.json")
    size = (about["input"]["height"], about["input"]["width"])
    samples, threads = list(inputs["samples"]), int(inputs["threads"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    graph = model / about["graph"]["file"]
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a class of its own for each kind of damage
        raise StageError(f"{graph} cannot be loaded: {error}") from error
    predicted: list[int] = []
    confidence: list[float] = []
    for images in decode_all(Path(inputs["store"]), samples, size, about["resize"], threads):
        (probabilities,) = session.run(["probabilities"], {"images": images})
        predicted += probabilities.argmax(1).tolist()
        confidence += probabilities.max(1).tolist()
        report(len(predicted), len(samples), "image")
    answers = Path(inputs["answers"])
    write_json(answers, {"samples": samples, "predicted": predicted, "confidence": confidence})
    return {"answers": str(answers), "n": len(samples)}
