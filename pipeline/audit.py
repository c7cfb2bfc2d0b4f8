"""Stage `audit`: which labels are probably wrong, told by a classifier of a model's embeddings that never saw them.

Out-of-sample probabilities by K-fold over `train` and `tune`: a linear discriminant with the shrinkage of Ledoit and
Wolf. `judge` is never fitted on: its labels are looked at by a classifier of all the others. The flags are cleanlab's,
on calibrated probabilities (pipeline/flags.py).

What such an audit of all labels ends with is kept (pipeline/kept_audit.py). A drop that is small beside it costs what
the drop costs: its samples alone are embedded, asked of the classifier of all that was audited (one that was there
already, of the classifier of its fold), calibrated as then, and flagged where flags ended then. policies/labels.py says
when that will do; what can only be seen here, and calls for folds all the same, is answered in place of flags.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import kept_audit
from pipeline.cutoff import find_cutoff
from pipeline.discriminant import Discriminant, fit
from pipeline.durable import write_json
from pipeline.embedding import embed_all
from pipeline.embedding_cache import Embeddings
from pipeline.flags import Flag, Labels, Probabilities, cool, find_flags, find_temperature
from pipeline.kept_audit import ALL, KeptAudit
from pipeline.snapshot import ROW
from policies.facts import ROLES
from policies.job import Outputs, Report, StageError

FOLDS = 5
KEPT = "audit"  # beside the model's embeddings
MOVED = 0.2  # of a class are of another now: above that its classifier would only repeat what was said before
Mask = NDArray[np.bool_]


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """The stage, on a file of rows as a snapshot has them, without its first line; "classes" are their names.

    "whole": these are all labels there are, and are audited in folds; else those of a drop. "changed" is kept with what
    is found, for whoever asks. It writes {"unaudited": [SHA-256 in hex, …], "audited": how many with those of before,
    "flags": [{"sample", "given", "suggested", "score", "suggested_score"}, …]}, classes by name. Where folds are needed
    it writes nothing, and "folds" says why. Samples that cannot be embedded are left out and named.
    """
    rows = read_rows(Path(inputs["rows"]), inputs["classes"])
    names = [sample.tobytes() for sample in rows.samples]
    model, store, folder = Path(inputs["model"]), Path(inputs["store"]), Path(inputs["embeddings"])
    embedded = embed_all(model, store, folder, names, int(inputs["threads"]), report)
    found: Found | str
    if inputs["whole"]:
        about = {"changed": inputs["changed"]}
        found = audit_all(folder / KEPT, rows, embedded.values, embedded.usable, int(inputs["seed"]), about)
    else:
        kept = kept_audit.load(folder / KEPT)
        found = audit_few(kept, rows, embedded.values, embedded.usable) if kept else "what was kept cannot be read"
    if isinstance(found, str):
        return {"folds": found, "left_out": embedded.left_out}
    said = {"unaudited": [names[i].hex() for i in np.flatnonzero(~found.audited)], "audited": found.number}
    write_json(Path(inputs["found"]), {**said, "flags": found.flags})
    number = int(found.audited.sum())
    return {"found": str(inputs["found"]), "n": number, "flags": len(found.flags), "left_out": embedded.left_out}


@dataclass(frozen=True, slots=True)
class Rows:
    """What is to be audited: n samples, their labels and whether they are of judge; the classes' names."""

    samples: NDArray[np.uint8]  # (n, 32)
    labels: Labels
    judge: Mask
    classes: list[str]


@dataclass(frozen=True, slots=True)
class Found:
    audited: Mask  # (n,)
    number: int  # that were audited, with those of before
    flags: list[dict[str, Any]]


def read_rows(file: Path, classes: list[str]) -> Rows:
    """Raises StageError where the file is not whole."""
    try:
        rows = np.frombuffer(file.read_bytes(), ROW)
    except (OSError, ValueError) as error:
        raise StageError(f"the rows {file} cannot be read: {error}") from error
    return Rows(rows["sha"].copy(), rows["label"].astype(np.int64), rows["role"] == ROLES.index("judge"), classes)


def audit_all(folder: Path, rows: Rows, values: Embeddings, usable: Mask, seed: int, about: Mapping[str, Any]) -> Found:
    """Flags of all rows, in folds; what they rest on is kept in the folder, with `about`."""
    audited = usable.copy()
    audited[usable] = find_auditable(rows.labels[usable], rows.judge[usable])
    if not audited.any():
        kept_audit.drop(folder)
        return Found(audited, 0, [])
    at = np.flatnonzero(audited)
    present, labels = np.unique(rows.labels[at], return_inverse=True)
    judge, classes = rows.judge[at], [rows.classes[label] for label in present]
    folds = ask_in_folds(values if len(at) == len(values) else values[at], labels, judge, seed)
    temperature = find_temperature(labels, folds.probabilities)
    cooled = cool(folds.probabilities, temperature)
    fitted = Counter(rows.classes[label] for label in rows.labels[usable & ~rows.judge].tolist())
    told = {"classes": classes, "fitted": fitted, "audited": len(at), "temperature": temperature, **about}
    end = find_cutoff(labels, cooled)
    kept_audit.keep(folder, rows.samples[at], labels, folds.of, folds.classifiers, end, told)
    return Found(audited, len(at), _tell(rows, at, find_flags(labels, cooled), cooled, classes))


def audit_few(kept: KeptAudit, rows: Rows, values: Embeddings, usable: Mask) -> Found | str:
    """Flags of rows that are few beside those that were audited in folds; or why they have to be made again."""
    index = {name: number for number, name in enumerate(kept.classes)}
    dense = np.array([index.get(name, -1) for name in rows.classes], np.int64)[rows.labels]
    audited = usable & (dense >= 0)
    at = np.flatnonzero(audited)
    labels, (before, of) = dense[at], kept.recall(rows.samples[at])
    moved = (before >= 0) & (before != labels) & (of != ALL)
    left = Counter(kept.classes[label] for label in before[moved].tolist())
    since = kept.since()
    for name, number in (Counter(since["left"]) + left).items():
        if number > MOVED * kept.fitted[name]:
            return f"{number:,} of {kept.fitted[name]:,} samples of {name} are of another class now"
    cooled = cool(kept.ask(values[at], of), kept.temperature)
    said = kept.cutoff.flag(labels, cooled, before != labels)
    new = usable & ~rows.judge
    new[at] &= before < 0
    fitted = Counter(rows.classes[label] for label in rows.labels[new].tolist())
    kept.count(int((before < 0).sum()), fitted, left)
    number = len(kept.keys) + int(kept.since()["audited"])
    return Found(audited, number, _tell(rows, at, said, cooled, kept.classes))


def _tell(
    rows: Rows, at: NDArray[np.int64], flags: list[Flag], probabilities: Probabilities, classes: Any
) -> list[dict[str, Any]]:
    """Flags of the rows `at`, as they are written down."""
    return [
        {
            "sample": rows.samples[at[flag.index]].tobytes().hex(),
            "given": classes[flag.given],
            "suggested": classes[flag.suggested],
            "score": flag.score,
            "suggested_score": float(probabilities[flag.index, flag.suggested]),
        }
        for flag in flags
    ]


def find_auditable(labels: Labels, judge: Mask) -> Mask:
    """Samples of classes with two samples at least to fit on: of others no classifier could have learnt anything.

    None where fewer than two classes are left.
    """
    present, counts = np.unique(labels[~judge], return_counts=True)
    learnt = present[counts >= 2]
    found: Mask = np.isin(labels, learnt)
    return found if len(learnt) > 1 else np.zeros(len(labels), bool)


@dataclass(frozen=True, slots=True)
class Folds:
    """Each of n rows asked of a classifier that was not fitted on it."""

    probabilities: Probabilities  # (n, classes up to the highest label)
    of: NDArray[np.int64]  # (n,) the fold that it was left out of, or ALL
    classifiers: dict[int, Discriminant]  # by fold


def ask_in_folds(embeddings: Embeddings, labels: Labels, judge: Mask, seed: int) -> Folds:
    """All labels are auditable. Of embeddings that are all alike each class is as likely as it is frequent."""
    from sklearn.model_selection import StratifiedKFold

    fitted, classes = np.flatnonzero(~judge), int(labels.max()) + 1
    largest = int(np.bincount(labels[fitted]).max())
    splits = StratifiedKFold(min(FOLDS, largest), shuffle=True, random_state=seed)
    found, of = np.zeros((len(labels), classes)), np.full(len(labels), ALL)
    classifiers = {ALL: fit(embeddings, labels, fitted, classes)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer samples than folds
        for fold, (known, unseen) in enumerate(splits.split(fitted, labels[fitted])):
            of[fitted[unseen]] = fold
            classifiers[fold] = fit(embeddings, labels, fitted[known], classes)
    for fold, classifier in classifiers.items():
        here = np.flatnonzero(of == fold)
        found[here] = classifier.ask(embeddings[here])
    return Folds(found, of, classifiers)
