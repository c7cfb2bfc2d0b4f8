"""Stage `audit`: which labels are probably wrong, told by a classifier of a model's embeddings that never saw them.

Out-of-sample probabilities by K-fold over `train` and `tune`: a linear discriminant with the shrinkage of Ledoit and
Wolf, which needs no tuning. `judge` is never fitted on: its labels are looked at by a classifier of all the others.
The flags are cleanlab's, on calibrated probabilities (pipeline/flags.py).

What the last audit by this model found is kept. A drop that is small beside it is looked at by one classifier of what
was audited before, for which all of the drop is new; folds are made again once the data has grown by a fifth.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.durable import read_json, replacing, write_json
from pipeline.embedding import Embeddings, embed_all
from pipeline.flags import Labels, Probabilities, calibrate, find_flags
from policies.job import Outputs, Report

FOLDS = 5
KEPT = "audit.npz"  # beside the model's embeddings
Mask = NDArray[np.bool_]


GROWN = 1.2  # times what was audited in folds, above which folds are made again


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """The stage, on a file of rows: {"classes": […], "samples": [SHA-256 in hex, …], "labels": [int], "judge": [bool]}.

    It writes {"audited": [sample, …], "flags": [{"sample", "given", "suggested", "score", "suggested_score"}, …]},
    classes by name. Samples that cannot be embedded are left out and named.
    """
    rows = read_json(Path(inputs["rows"]))
    names = rows["classes"]
    labels, judge = np.array(rows["labels"], np.int64), np.array(rows["judge"], bool)
    samples = [bytes.fromhex(name) for name in rows["samples"]]
    model, store, folder = Path(inputs["model"]), Path(inputs["store"]), Path(inputs["embeddings"])
    embedded = embed_all(model, store, folder, samples, int(inputs["threads"]), report)
    kept = np.flatnonzero(embedded.usable)
    kept = kept[find_auditable(labels[kept], judge[kept])]
    rest = Rows([rows["samples"][i] for i in kept], labels[kept], judge[kept], names)
    probabilities = _ask(folder / KEPT, rest, embedded.values[kept], int(inputs["seed"]))
    said = _tell(rest, calibrate(rest.labels, probabilities)) if len(kept) else []
    write_json(Path(inputs["found"]), {"audited": rest.samples, "flags": said})
    return {"found": str(inputs["found"]), "n": len(kept), "flags": len(said), "left_out": embedded.left_out}


@dataclass(frozen=True, slots=True)
class Rows:
    """What is audited: n samples (SHA-256 in hex), their labels and whether they are of judge; the classes' names."""

    samples: list[str]
    labels: Labels
    judge: Mask
    classes: list[str]


def _tell(rows: Rows, probabilities: Probabilities) -> list[dict[str, Any]]:
    return [
        {
            "sample": rows.samples[flag.index],
            "given": rows.classes[flag.given],
            "suggested": rows.classes[flag.suggested],
            "score": flag.score,
            "suggested_score": float(probabilities[flag.index, flag.suggested]),
        }
        for flag in find_flags(rows.labels, probabilities)
    ]


def _ask(file: Path, rows: Rows, embeddings: Embeddings, seed: int) -> Probabilities:
    """Out-of-sample probabilities: those that `file` keeps, and of what is new by one classifier of what is kept.

    All in folds where nothing that fits is kept, or much is new. What was found is kept for the next.
    """
    found, known, in_folds = _recall(file, rows)
    few = len(rows.samples) <= GROWN * in_folds
    if few and _can_answer(rows, known):
        fitted, unseen = np.flatnonzero(known & ~rows.judge), np.flatnonzero(~known)
        if len(unseen):
            _answer(embeddings, rows.labels, fitted, unseen, found)
    else:
        found, in_folds = out_of_sample(embeddings, rows.labels, rows.judge, seed), len(rows.samples)
    if len(found):
        _keep(file, rows, found, in_folds)
    return found


def _can_answer(rows: Rows, known: Mask) -> bool:
    """Whether each class of the new ones has two samples at least among the known ones to fit on."""
    counts = np.bincount(rows.labels[known & ~rows.judge], minlength=len(rows.classes))
    return bool((counts[np.unique(rows.labels)] >= 2).all())


def _recall(file: Path, rows: Rows) -> tuple[Probabilities, Mask, int]:
    """What is kept of these rows with these labels: probabilities, of which rows, and how many were in folds."""
    found = np.zeros((len(rows.samples), int(rows.labels.max(initial=-1)) + 1))
    known = np.zeros(len(rows.samples), bool)
    try:
        with np.load(file, allow_pickle=False) as stored:
            kept = {name: stored[name] for name in stored.files}
            column = {str(name): number for number, name in enumerate(kept["classes"])}
            place = dict(zip(kept["samples"].tolist(), range(len(kept["samples"])), strict=True))
            in_folds = int(kept["in_folds"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return found, known, 0
    columns = [column.get(name, -1) for name in rows.classes[: found.shape[1]]]
    for row, sample in enumerate(rows.samples):
        at = place.get(sample)
        if at is not None and kept["labels"][at] == columns[rows.labels[row]]:
            known[row] = True
            found[row] = [kept["probabilities"][at, c] if c >= 0 else 0.0 for c in columns]
    return found, known, in_folds


def _keep(file: Path, rows: Rows, probabilities: Probabilities, in_folds: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    classes = rows.classes[: probabilities.shape[1]]
    with replacing(file) as aside, aside.open("wb") as stream:
        np.savez(
            stream, samples=np.array(rows.samples), labels=rows.labels, probabilities=probabilities,
            classes=np.array(classes), in_folds=np.array(in_folds),
        )  # fmt: skip


def find_auditable(labels: Labels, judge: Mask) -> Mask:
    """Samples of classes with two samples at least to fit on: of others no classifier could have learnt anything.

    None where fewer than two classes are left.
    """
    present, counts = np.unique(labels[~judge], return_counts=True)
    learnt = present[counts >= 2]
    found: Mask = np.isin(labels, learnt)
    return found if len(learnt) > 1 else np.zeros(len(labels), bool)


def out_of_sample(embeddings: Embeddings, labels: Labels, judge: Mask, seed: int) -> Probabilities:
    """(n, classes up to the highest label): each row by a classifier that was not fitted on its sample.

    All labels are auditable. Of embeddings that are all alike each class is as likely as it is frequent.
    """
    from sklearn.model_selection import StratifiedKFold

    if not len(labels):
        return np.zeros((0, 0))
    fitted = np.flatnonzero(~judge)
    largest = int(np.unique(labels[fitted], return_counts=True)[1].max())
    folds = StratifiedKFold(min(FOLDS, largest), shuffle=True, random_state=seed)
    found = np.zeros((len(labels), int(labels.max()) + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer samples than folds
        for known, unseen in folds.split(fitted, labels[fitted]):
            _answer(embeddings, labels, fitted[known], fitted[unseen], found)
        if judge.any():
            _answer(embeddings, labels, fitted, np.flatnonzero(judge), found)
    return found


def _answer(
    embeddings: Embeddings, labels: Labels, known: NDArray[np.int64], unseen: NDArray[np.int64], into: Probabilities
) -> None:
    """Writes the probabilities of the unseen samples into their rows."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    values = embeddings[known].astype(np.float64)
    spread = values.std(0)
    told = spread > 1e-6 * max(float(np.abs(values).max(initial=0.0)), 1e-12)
    if not told.any():
        present, counts = np.unique(labels[known], return_counts=True)
        into[np.ix_(unseen, present)] = counts / counts.sum()
        return
    centre, scale = values[:, told].mean(0), spread[told]
    discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    discriminant.fit((values[:, told] - centre) / scale, labels[known])
    answers = discriminant.predict_proba((embeddings[unseen][:, told].astype(np.float64) - centre) / scale)
    into[np.ix_(unseen, discriminant.classes_)] = answers
