"""The numbers that a stored model knows an image by: what its last linear layer, the classifier, looks at.

The exported graph has them inside; here the tensor is found and made a second output, in memory. They are kept, so
that each image is embedded once by each model (pipeline/embedding_cache.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.durable import read_json
from pipeline.embedding_cache import Cache, Embeddings
from pipeline.pixels import CHUNK, decode_all
from policies.job import Report, StageError

KEEP = 4096  # images that are embedded before they are kept: a kill loses no more
_LINEAR = ("Gemm", "MatMul", "Conv")


def find_embedding(graph: onnx.GraphProto) -> str:
    """The name of the tensor that goes into the classifier: back from the output to the first layer with weights.

    Where a network averages several classifiers it is that of the first. Raises StageError where there is none.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    weights = {initializer.name for initializer in graph.initializer}
    for node in graph.node:  # in the order in which they are computed
        if all(name in weights for name in node.input):
            weights.update(node.output)
    reached = [graph.output[0].name]
    while reached:
        node = made_by.get(reached.pop(0))
        if node is None:
            continue
        if node.op_type in _LINEAR and any(name in weights for name in node.input[1:]):
            return str(node.input[0])
        reached += [name for name in node.input if name not in weights]
    raise StageError("the graph has no classifier with weights: it gives no embedding")


class Embedder:
    """A stored model that answers with embeddings. Raises StageError where it cannot be loaded."""

    def __init__(self, model: Path, threads: int) -> None:
        import onnxruntime

        about = read_json(model / "manifest.json")
        file = model / about["graph"]["file"]
        self.size = (int(about["input"]["height"]), int(about["input"]["width"]))
        self.resize: Any = about["resize"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            graph = onnx.load(file)
            self.tensor = find_embedding(graph.graph)
            if self.tensor != graph.graph.output[0].name:
                graph.graph.output.append(onnx.ValueInfoProto(name=self.tensor))
            content = graph.SerializeToString()
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except StageError:
            raise
        except Exception as error:  # ONNX and ONNX Runtime have classes of their own for each kind of damage
            raise StageError(f"{file} cannot be loaded: {error}") from error

    def embed(self, images: NDArray[np.uint8]) -> Embeddings:
        """The embeddings of uint8 (n, H, W, 3)."""
        (found,) = self.session.run([self.tensor], {"images": images})
        flat: Embeddings = found.reshape(len(images), -1)
        return flat


@dataclass(frozen=True, slots=True)
class Embedded:
    """What came of embedding n samples."""

    values: Embeddings  # (n, width), zeros where there is none
    usable: NDArray[np.bool_]  # (n,)
    left_out: list[str]  # why, each in a sentence


def embed_all(
    model: Path, store: Path, folder: Path, samples: Sequence[bytes], threads: int, report: Report
) -> Embedded:
    """The embeddings of these samples by this model: those that lie in `folder`, and the others made and put there.

    A sample that is missing or damaged in the store, or whose embedding is no number, is left out and named.
    """
    cache = Cache(folder)
    places = cache.find(samples)
    missing = list(dict.fromkeys(sample for sample, place in zip(samples, places[:, 0], strict=True) if place < 0))
    left_out = _embed_missing(cache, model, store, missing, threads, report) if missing else []
    if missing:
        places = cache.find(samples)
    usable = places[:, 0] >= 0
    values = cache.take(places)
    sound = np.isfinite(values).all(1)
    left_out += [f"the embedding of {samples[i].hex()} is no number" for i in np.flatnonzero(~sound).tolist()]
    values[~sound] = 0
    return Embedded(values, usable & sound, left_out)


def _embed_missing(
    cache: Cache, model: Path, store: Path, missing: Sequence[bytes], threads: int, report: Report
) -> list[str]:
    """Embeds them and adds them to the cache; of what cannot be decoded, why."""
    embedder = Embedder(model, threads)
    parts: list[Embeddings] = []
    done: list[bytes] = []
    left_out: list[str] = []
    for start in range(0, len(missing), CHUNK):
        for some, images in _decode(store, missing[start : start + CHUNK], embedder, threads, left_out):
            parts.append(embedder.embed(images))
            done += some
        report(min(start + CHUNK, len(missing)), len(missing), "image")
        if done and (len(done) >= KEEP or start + CHUNK >= len(missing)):
            cache.add(done, np.concatenate(parts))
            parts, done = [], []
    return left_out


def _decode(
    store: Path, samples: Sequence[bytes], embedder: Embedder, threads: int, left_out: list[str]
) -> Iterator[tuple[Sequence[bytes], NDArray[np.uint8]]]:
    """All at once; where one cannot be decoded, each for itself, so that the others are not lost with it."""

    def decode(some: Sequence[bytes]) -> NDArray[np.uint8]:
        names = [sample.hex() for sample in some]
        return np.concatenate(list(decode_all(store, names, embedder.size, embedder.resize, threads)))

    try:
        yield samples, decode(samples)
        return
    except StageError as error:
        if len(samples) == 1:
            left_out.append(str(error))
            return
    for sample in samples:
        yield from _decode(store, [sample], embedder, threads, left_out)
