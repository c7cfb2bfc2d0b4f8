"""Writes the model folder: all that anyone else ever knows of a training."""

from __future__ import annotations

import hashlib
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from timm.utils.model import reparameterize_model

from pipeline.durable import fresh_folder, hash_file, read_json, settle, write_json
from pipeline.images import Size
from pipeline.model import Served
from pipeline.pixels import Pixels, read_pixels
from pipeline.run_folder import Recipe, RunFolder, load_trained, training_of
from policies.job import Outputs, Report, StageError

BATCHES = (1, 2, 5)  # sizes at which the graph is compared with torch
TOLERANCE = 1e-4  # of a probability
WEIGHTS, GRAPH = "weights.safetensors", "model.onnx"


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """The stage: exports the best weights, checks the graph against torch, and writes the model folder."""
    started = time.monotonic()
    torch.set_num_threads(int(inputs["threads"]))
    run_folder, recipe = training_of(earlier)
    served = load_trained(run_folder, recipe)
    models = Path(inputs["models"])
    models.mkdir(parents=True, exist_ok=True)
    folder = fresh_folder(models / f"export-{run_folder.path.name}")
    opset = export_graph(served, recipe.size, folder / GRAPH)
    images = examples(read_pixels(Path(earlier["pixels"]["pixels"])))
    compare(served, folder / GRAPH, images, int(inputs["threads"]))
    shutil.copyfile(run_folder.weights, folder / WEIGHTS)
    for file in run_folder.told:
        shutil.copyfile(file, folder / file.name)
    about = manifest(folder, recipe, run_folder, opset)
    write_json(folder / "manifest.json", about)
    settle(folder, models / about["id"])
    return {
        "model": about["id"],
        "path": str(models / about["id"]),
        "classes": about["classes"],
        "tune_accuracy": about["tune_accuracy"],
        "seconds": time.monotonic() - started,
    }


def export_graph(served: Served, size: Size, file: Path) -> int:
    """Writes the network as ONNX and returns its opset: "images" uint8 (batch, H, W, 3) in, "probabilities" out.

    Networks that train with more branches than they need to answer (RepVGG, MobileOne) are folded first. Raises
    StageError where torch cannot export the network.
    """
    folded = Served(reparameterize_model(served.net), served.mean, served.std).eval()
    example = torch.zeros((2, *size, 3), dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                folded,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise StageError(f"torch cannot export the network to ONNX: {error}") from error
    assert program is not None
    graph = program.model_proto
    strip(graph)
    onnx.save(graph, file)
    opset: int = max(entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx"))
    return opset


def strip(graph: onnx.ModelProto) -> None:
    """Takes out what the exporter noted of its own run (stack traces, paths of this machine): larger, and private."""
    for holder in (graph.graph, *graph.functions):
        del holder.metadata_props[:]
        for part in (*holder.node, *holder.value_info):
            del part.metadata_props[:]
            part.doc_string = ""
    for part in (*graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def examples(pixels: Pixels) -> NDArray[np.uint8]:
    """Images to compare answers on: of the train samples, which every snapshot has, spread over all of them."""
    samples = pixels.select("train")
    return pixels.take(samples[np.linspace(0, len(samples) - 1, max(BATCHES)).astype(int)])


def compare(served: Served, graph: Path, images: NDArray[np.uint8], threads: int) -> None:
    """Raises StageError where ONNX Runtime answers otherwise than torch, at any of several batch sizes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    for size in BATCHES:
        batch = images[:size]
        (found,) = session.run(["probabilities"], {"images": batch})
        with torch.inference_mode():
            wanted = served(torch.from_numpy(batch)).numpy()
        difference = float(np.abs(found - wanted).max())
        if found.shape != wanted.shape or not difference <= TOLERANCE:
            raise StageError(
                f"the exported graph answers otherwise than the network it was made of: by {difference:.2g} of a "
                f"probability at batch size {size}, more than {TOLERANCE:g}"
            )


def manifest(folder: Path, recipe: Recipe, run_folder: RunFolder, opset: int) -> dict[str, Any]:
    """What the model is. Its id is a hash of weights, graph, snapshot and architecture."""
    result, history = read_json(run_folder.result), read_json(run_folder.history)
    weights, graph = _describe(folder / WEIGHTS), _describe(folder / GRAPH)
    named = weights["sha256"] + graph["sha256"] + recipe.snapshot + recipe.architecture
    return {
        "format": 1,
        "id": hashlib.sha256(named.encode()).hexdigest()[:16],
        "architecture": recipe.architecture,
        "classes": list(recipe.classes),
        "input": {
            "height": recipe.height,
            "width": recipe.width,
            "channels": 3,
            "dtype": "uint8",
            "layout": "NHWC",
        },
        "resize": recipe.resize,
        "mean": result["mean"],
        "std": result["std"],
        "snapshot": recipe.snapshot,
        "recipe": {**recipe.plain()["settings"], "weights": recipe.weights},
        "weights": weights,
        "graph": {**graph, "opset": opset},
        "beside": [_describe(folder / file.name) for file in run_folder.told],
        "tune_accuracy": read_json(run_folder.evaluation)["accuracy"],
        "epochs": len(history["epochs"]),
        "train_seconds": sum(epoch["seconds"] for epoch in history["epochs"]),
    }


def _describe(file: Path) -> dict[str, Any]:
    return {"file": file.name, "sha256": hash_file(file), "bytes": file.stat().st_size}
