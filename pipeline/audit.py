"""Stage `audit`: which labels are probably wrong, told by a classifier of a model's embeddings that never saw them.

Out-of-sample probabilities by K-fold over `train` and `tune`: a linear discriminant with the shrinkage of Ledoit and
Wolf, which needs no tuning. `judge` is never fitted on: its labels are looked at by a classifier of all the others.
The flags are cleanlab's (pipeline/flags.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.durable import read_json, write_json
from pipeline.embedding import Embeddings, embed_all
from pipeline.flags import Labels, Probabilities, find_flags
from policies.job import Outputs, Report

FOLDS = 5
Mask = NDArray[np.bool_]


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """The stage, on a file of rows: {"classes": […], "samples": [SHA-256 in hex, …], "labels": [int], "judge": [bool]}.

    It writes {"audited": [sample, …], "flags": [{"sample", "given", "suggested", "score", "suggested_score"}, …]},
    classes by name.
    """
    rows = read_json(Path(inputs["rows"]))
    labels, judge = np.array(rows["labels"], np.int64), np.array(rows["judge"], bool)
    samples = [bytes.fromhex(name) for name in rows["samples"]]
    model, store, folder = Path(inputs["model"]), Path(inputs["store"]), Path(inputs["embeddings"])
    embeddings = embed_all(model, store, folder, samples, int(inputs["threads"]), report)
    audited = find_auditable(labels, judge)
    probabilities = out_of_sample(embeddings[audited], labels[audited], judge[audited], int(inputs["seed"]))
    flags = find_flags(labels[audited], probabilities) if len(probabilities) else []
    names, kept = rows["classes"], [rows["samples"][i] for i in np.flatnonzero(audited)]
    said = [
        {
            "sample": kept[flag.index],
            "given": names[flag.given],
            "suggested": names[flag.suggested],
            "score": flag.score,
            "suggested_score": float(probabilities[flag.index, flag.suggested]),
        }
        for flag in flags
    ]
    write_json(Path(inputs["found"]), {"audited": kept, "flags": said})
    return {"found": str(inputs["found"]), "n": len(kept), "flags": len(said)}


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
