"""Stage `adopt`: a model that was trained elsewhere becomes a model folder, which is built and proven as any other.

Nothing is believed of it: the file, normalised in numpy as a person says it is, and what it became, are both asked, and
answer alike, at several sizes of the batch; its answers are probabilities of as many classes as there are names. What
it learnt from nobody can know: its manifest names no snapshot.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.durable import fresh_folder, hash_file, settle, write_json
from pipeline.embedding import find_embedding
from pipeline.graft import Ends, Expected, find_ends, graft, normalisation, read_graph
from pipeline.images import Size
from policies.job import Outputs, Report, StageError

GRAPH = "model.onnx"
BATCHES = (1, 2, 5)  # sizes at which both are asked
TOLERANCE = 1e-4  # of a probability
SUM = 1e-3  # that probabilities may be away from 1
KIND = "adopted:"  # of an architecture that nobody can train here
Floats = NDArray[np.float32]
Ask = Callable[[NDArray[Any]], Floats]


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """The stage: `file` with its `classes`, for images of `height` x `width`, as a folder of `models`.

    "expected" holds the fields of graft.Expected, "resize" how clients and this project resize. Outputs: "model" (id),
    "path", "embeds" (whether labels can be audited by what its classifier looks at). Raises StageError, naming the
    file, for all that keeps it from being taken; nothing is left then.
    """
    began = time.monotonic()
    file, size = Path(inputs["file"]), (int(inputs["height"]), int(inputs["width"]))
    expected, classes = read_expected(inputs["expected"]), list(inputs["classes"])
    model = read_graph(file)
    ends = find_ends(model, file, size, expected)
    if ends.classes not in (None, len(classes)):
        raise StageError(f"{file} answers with {ends.classes} classes, and {len(classes)} are named")
    models = Path(inputs["models"])
    models.mkdir(parents=True, exist_ok=True)
    threads = int(inputs["threads"])
    truth = answer_as_it_was(file, open_graph(model.SerializeToString(), str(file), threads), ends, expected, size)
    if truth.shape[1] != len(classes):
        raise StageError(f"{file} answers with {truth.shape[1]} classes, and {len(classes)} are named")
    grafted = graft(model, ends, expected, size)
    with filling(models / f"adopt-{hash_file(file)[:16]}") as folder:
        onnx.save(grafted, folder / GRAPH)
        compare(file, open_graph(folder / GRAPH, f"{file}, with our input and output,", threads), truth, size)
        about = manifest(folder, file, classes, size, inputs["resize"], grafted)
        write_json(folder / "manifest.json", about)
        settle(folder, models / about["id"])
    return {
        "model": about["id"],
        "path": str(models / about["id"]),
        "embeds": about["embeds"],
        "seconds": time.monotonic() - began,
    }


@contextmanager
def filling(path: Path) -> Iterator[Path]:
    """A folder beside this path to fill and settle; of one that was not settled nothing is left.

    Who fills another there waits until it is: it may be the same file, under another word on what it expects.
    """
    beside = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(beside, fcntl.LOCK_EX)  # until it is closed, or the process ends
        folder = fresh_folder(path)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(beside)


def read_expected(plain: Mapping[str, Any]) -> Expected:
    lists = {name: tuple(plain[name]) for name in ("mean", "std") if plain.get(name) is not None}
    return Expected(**{**plain, **lists})


def open_graph(graph: Path | bytes, what: str, threads: int) -> Ask:
    """The graph in ONNX Runtime, ready to answer (n, …). Raises StageError where it does not take it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a class of its own for each kind of damage
        raise StageError(f"{what} cannot be run by ONNX Runtime {onnxruntime.__version__}: {error}") from error
    name = session.get_inputs()[0].name

    def ask(values: NDArray[Any]) -> Floats:
        try:
            answers: Floats = session.run(None, {name: values})[0]
        except Exception as error:
            raise StageError(f"{what} cannot answer a batch of shape {values.shape}: {error}") from error
        return answers

    return ask


def answer_as_it_was(file: Path, ask: Ask, ends: Ends, expected: Expected, size: Size) -> Floats:
    """What the graph itself answers to the examples, one after another; what it lacks is done here, in numpy.

    Raises StageError where that are no probabilities.
    """
    values: NDArray[Any] = examples(size)
    if ends.kind == onnx.TensorProto.FLOAT:
        values = values.astype(np.float32)
        for operator, by in normalisation(expected):
            values = values / by if operator == "Div" else values - by
    if ends.layout == "nchw":
        values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    found = np.concatenate([ask(np.repeat(value[None], ends.batch or 1, 0))[:1] for value in values])
    if found.ndim != 2 or not np.isfinite(found).all():
        raise StageError(f"{file} answers with shape {found.shape}, or what is no number; check --scale, --mean, --std")
    likely = bool((found > -SUM).all() and (np.abs(found.sum(1) - 1) < SUM).all())
    if likely == expected.logits:
        what = "answers with probabilities: leave --logits out" if likely else "does not answer with probabilities"
        hint = "" if likely else f" (from {found.min():.3g} to {found.max():.3g}): say --logits if they are logits"
        raise StageError(f"{file} {what}{hint}")
    return softmax(found) if expected.logits else found


def softmax(logits: Floats) -> Floats:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    shares: Floats = raised / raised.sum(1, keepdims=True)
    return shares


def compare(file: Path, ask: Ask, truth: Floats, size: Size) -> None:
    """Raises StageError where the adopted graph answers otherwise than the file did, at any of several batches."""
    images = examples(size)
    for number in BATCHES:
        try:
            found = ask(images[:number])
        except StageError as error:
            raise StageError(f"{error}; export it with a batch of any size") from error
        wanted = truth[:number]
        if found.shape != wanted.shape or not np.abs(found - wanted).max() <= TOLERANCE:
            raise StageError(
                f"{file} answers {number} images at once otherwise than one by one: its batch is part of what it "
                "computes; export it with a batch of any size"
            )


def examples(size: Size) -> NDArray[np.uint8]:
    """Images of noise, each of a colour and a contrast of its own, from a fixed seed."""
    random = np.random.default_rng(0)
    colours, contrast = random.uniform(0, 255, (max(BATCHES), 1, 1, 3)), random.uniform(5, 90, (max(BATCHES), 1, 1, 1))
    noise = random.normal(0, 1, (max(BATCHES), *size, 3))
    return np.clip(colours + contrast * noise, 0, 255).astype(np.uint8)


def manifest(
    folder: Path, file: Path, classes: Sequence[str], size: Size, resize: str, graph: onnx.ModelProto
) -> dict[str, Any]:
    """What the model is. Its id is a hash of its graph and of what its answers mean."""
    described = {"file": GRAPH, "sha256": hash_file(folder / GRAPH), "bytes": (folder / GRAPH).stat().st_size}
    named = json.dumps(["adopted", described["sha256"], list(classes), size, resize])
    return {
        "format": 1,
        "id": hashlib.sha256(named.encode()).hexdigest()[:16],
        "architecture": KIND + "".join(c if c.isprintable() and not c.isspace() else "_" for c in file.name),
        "classes": list(classes),
        "input": {"height": size[0], "width": size[1], "channels": 3, "dtype": "uint8", "layout": "NHWC"},
        "resize": resize,
        "snapshot": "",
        "adopted": str(file),
        "embeds": _embeds(graph),
        "weights": described,  # they are in the graph
        "graph": {**described, "opset": max(e.version for e in graph.opset_import if e.domain in ("", "ai.onnx"))},
    }


def _embeds(graph: onnx.ModelProto) -> bool:
    try:
        find_embedding(graph.graph)
    except StageError:
        return False
    return True
