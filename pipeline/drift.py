"""Stage `drift`: whether images look different from those that the model was tuned on, by its own embedding.

The classifier two-sample test in its simplest form (Lopez-Paz and Oquab, ICLR 2017): two folds; on one the direction
between the two means is taken, each number scaled by its spread; on the other the area under the ROC curve along it
says how well the sides are told apart.

The threshold is calibrated, not looked up: windows of the same size are drawn from `tune` itself and compared with the
rest of it, and what that gives by chance is the scale. Embeddings of `train` would not do: a model knows its own
training images. Where the labels are known, each image is compared with its own class (the class's mean on `tune` is
taken off), so that another mix of classes is no drift. A mean of few images is off by itself, and by as much for all
that it is taken off of. Each clean window therefore has as many images of each class as the window has, the means are
always those of the rest, and of no class more is compared than half of what `tune` has of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.durable import read_json, write_json
from pipeline.embedding import embed_all
from pipeline.embedding_cache import Embeddings
from policies.job import Outputs, Report

DRAWS = 400  # of clean windows
SPLITS = 4  # into two folds, each way round: one split alone is noisy
LARGEST = 256  # images of a window: more would only cost time
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A window compared with the reference. `chance`: the share of clean windows that look at least as different."""

    samples: int
    reference: int
    statistic: float  # area under the ROC curve; 0.5: not told apart
    chance: float


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """The stage, on a file {"reference": {"samples": [SHA-256 in hex], "labels": [int]}, "windows": [{"kind": str,
    "samples": [SHA-256 in hex], "labels": [int] or null}]}.

    It writes [{"kind", "samples", "reference", "statistic", "chance"}, …].
    """
    asked = read_json(Path(inputs["windows"]))
    model, store, folder = Path(inputs["model"]), Path(inputs["store"]), Path(inputs["embeddings"])
    parts = [asked["reference"], *asked["windows"]]
    names = [bytes.fromhex(name) for part in parts for name in part["samples"]]
    embedded = embed_all(model, store, folder, names, int(inputs["threads"]), report)
    found = []
    at = 0
    for part in parts:
        here = slice(at, at := at + len(part["samples"]))
        usable = embedded.usable[here]
        labels = None if part["labels"] is None else np.array(part["labels"], np.int64)[usable]
        found.append((embedded.values[here][usable], labels))
    (known, tuned), *windows = found
    assert tuned is not None
    said = []
    for window, (seen, given) in zip(asked["windows"], windows, strict=True):
        draw = np.random.default_rng(int(inputs["seed"]))
        said.append({"kind": window["kind"], **asdict(compare(known, tuned, seen, given, draw))})
    write_json(Path(inputs["compared"]), said)
    return {"compared": str(inputs["compared"]), "n": len(names), "left_out": embedded.left_out}


def compare(
    reference: Embeddings, labels: Labels, window: Embeddings, given: Labels | None, draw: np.random.Generator
) -> Comparison:
    """A window of images with a reference; what is compared is drawn from a window that is too large.

    labels: classes of the reference; given: of the window, None where they are not known. What cannot be compared,
    because the reference has one image of its class or none, is left out; fewer than two images are never different.
    """
    if given is None:  # as if all were of one class: the mean of all is taken off
        labels, given = np.zeros_like(labels), np.zeros(len(window), np.int64)
    counts = np.bincount(labels, minlength=int(given.max(initial=0)) + 1)
    chosen = draw.permutation(_draw(given, counts // 2, draw))[:LARGEST]
    if len(chosen) < 2:
        return Comparison(len(chosen), len(reference), 0.5, 1.0)
    mix = np.bincount(given[chosen], minlength=len(counts))
    rest = _without(len(reference), _draw(labels, mix, draw))
    statistic = _differ(reference[rest], labels[rest], window[chosen], given[chosen], draw)
    clean = []
    for _ in range(DRAWS):
        picked = _draw(labels, mix, draw)
        rest = _without(len(reference), picked)
        clean.append(_differ(reference[rest], labels[rest], reference[picked], labels[picked], draw))
    chance = (1 + int((np.array(clean) >= statistic).sum())) / (1 + DRAWS)
    return Comparison(len(chosen), len(reference), statistic, chance)


def tell_apart(reference: Embeddings, window: Embeddings, draw: np.random.Generator) -> float:
    """The mean area under the ROC curve over splits into two folds."""
    areas = []
    for _ in range(SPLITS):
        one, other = _halve(reference, draw), _halve(window, draw)
        for fitted, asked in ((0, 1), (1, 0)):
            spread = one[fitted].std(0) + 1e-6
            direction = (other[fitted].mean(0) - one[fitted].mean(0)) / spread**2
            areas.append(_area(one[asked] @ direction, other[asked] @ direction))
    return float(np.mean(areas))


def _differ(
    reference: Embeddings, labels: Labels, window: Embeddings, given: Labels, draw: np.random.Generator
) -> float:
    """The area between them, each image less the mean of its class in the reference."""
    means = _class_means(reference, labels)
    return tell_apart(_off(reference, labels, means), window - means[given], draw)


def _draw(labels: Labels, most: Labels, draw: np.random.Generator) -> Labels:
    """The numbers of so many of each class (by its index), or of all where there are fewer."""
    drawn = [draw.permutation(np.flatnonzero(labels == label))[: most[label]] for label in np.flatnonzero(most)]
    return np.concatenate(drawn) if drawn else np.zeros(0, np.int64)


def _without(number: int, picked: Labels) -> NDArray[np.bool_]:
    rest = np.ones(number, bool)
    rest[picked] = False
    return rest


def _halve(rows: Embeddings, draw: np.random.Generator) -> tuple[Embeddings, Embeddings]:
    order = draw.permutation(len(rows))
    return rows[order[: len(rows) // 2]], rows[order[len(rows) // 2 :]]


def _area(low: NDArray[np.float32], high: NDArray[np.float32]) -> float:
    """How often a value of `high` is above one of `low`, ties counted half (Mann and Whitney)."""
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, "left") + np.searchsorted(ordered, high, "right")
    return float(below.mean() / (2 * len(low)))


def _class_means(rows: Embeddings, labels: Labels) -> Embeddings:
    means = np.zeros((int(labels.max()) + 1, rows.shape[1]), np.float32)
    for label in np.unique(labels):
        means[label] = rows[labels == label].mean(0)
    return means


def _off(rows: Embeddings, labels: Labels, means: Embeddings) -> Embeddings:
    """Each row less the mean of its class's *other* rows: of a row in its own mean the distance would be too small."""
    counts = np.bincount(labels, minlength=len(means)).astype(np.float32)[labels][:, None]
    scale = np.where(counts > 1, counts / np.maximum(counts - 1, 1), 1)
    residual: Embeddings = ((rows - means[labels]) * scale).astype(np.float32)
    return residual
