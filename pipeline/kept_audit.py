"""What an audit in folds ends with, kept beside the embeddings: enough to look at later labels without all the others.

A folder that is replaced as a whole: `about.json` (which the daemon reads too), a file for the classifier of each fold
and for the one of all, where flags end (pipeline/cutoff.py), and of each sample that was looked at its key, label and
fold. What is large is mapped, not read. `since.json` counts what was audited by it since.
"""

from __future__ import annotations

import shutil
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import cutoff
from pipeline.cutoff import Cutoff
from pipeline.discriminant import Discriminant
from pipeline.durable import fresh_folder, read_json, settle, write_json
from pipeline.embedding_cache import Keys, keys_of
from pipeline.flags import Labels, Probabilities
from policies.job import StageError

FORMAT = 1
ALL = -1  # in place of a fold: the classifier of all that is fitted on, which judge and what is new are asked of
_ABOUT, _SINCE = "about.json", "since.json"


@dataclass(frozen=True, slots=True)
class KeptAudit:
    """Of k classes, by name, and n samples, ordered by key."""

    folder: Path
    classes: Sequence[str]
    fitted: Mapping[str, int]  # samples of each class, of those that are not of judge
    temperature: float
    cutoff: Cutoff
    keys: Keys  # (n,)
    labels: NDArray[np.int32]  # (n,)
    folds: NDArray[np.int8]  # (n,)

    def recall(self, samples: NDArray[np.uint8]) -> tuple[Labels, NDArray[np.int64]]:
        """The label that each sample (uint8, (m, 32)) had then, -1: it was not there; and its fold, or ALL."""
        keys = keys_of(samples)
        if not len(keys):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known = self.keys[at] == keys
        return np.where(known, self.labels[at], -1), np.where(known, self.folds[at], ALL)

    def ask(self, embeddings: NDArray[np.float32], folds: NDArray[np.int64]) -> Probabilities:
        """(m, k): each row of embeddings by the classifier of its fold, which did not see it."""
        found = np.zeros((len(folds), len(self.classes)))
        for fold in np.unique(folds).tolist():
            classifier = np.load(self.folder / _classifier(fold), mmap_mode="r", allow_pickle=False)
            here = folds == fold
            found[here] = Discriminant(classifier[:-1], classifier[-1]).ask(embeddings[here])
        return found

    def since(self) -> dict[str, Any]:
        """{"audited": how many, "fitted": {class: of those that are not of judge}, "left": {class: now of another}}."""
        try:
            found: dict[str, Any] = read_json(self.folder / _SINCE)
        except StageError:
            return {"audited": 0, "fitted": {}, "left": {}}
        return found

    def count(self, audited: int, fitted: Mapping[str, int], left: Mapping[str, int]) -> None:
        """Adds to that. What is audited again after a kill counts twice: folds are made a little sooner for it."""
        before = self.since()
        sums = {"fitted": Counter(before["fitted"]), "left": Counter(before["left"])}
        sums["fitted"].update(fitted)
        sums["left"].update(left)
        write_json(self.folder / _SINCE, {"audited": before["audited"] + audited, **sums})


def load(folder: Path) -> KeptAudit | None:
    """What is kept there; None where nothing is that this version can read."""
    try:
        about: dict[str, Any] = read_json(folder / _ABOUT)
        if about["format"] != FORMAT:
            return None
        columns = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _COLUMNS]
        return KeptAudit(folder, about["classes"], about["fitted"], about["temperature"], cutoff.load(folder), *columns)
    except (StageError, OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def keep(
    folder: Path,
    samples: NDArray[np.uint8],
    labels: Labels,
    folds: NDArray[np.int64],
    classifiers: Mapping[int, Discriminant],
    end: Cutoff,
    about: Mapping[str, Any],
) -> None:
    """Replaces what is kept; `about`: "classes", "fitted", "temperature", and whatever else the daemon is to find."""
    aside = fresh_folder(folder)
    keys = keys_of(samples)
    order = np.argsort(keys)
    columns: tuple[NDArray[Any], ...] = (keys, labels.astype(np.int32), folds.astype(np.int8))
    for name, column in zip(_COLUMNS, columns, strict=True):
        np.save(aside / f"{name}.npy", column[order])
    for fold, classifier in classifiers.items():
        np.save(aside / _classifier(fold), np.concatenate([classifier.weights, classifier.bias[None]]))
    end.save(aside)
    write_json(aside / _ABOUT, {"format": FORMAT, **about})
    settle(aside, folder)


def drop(folder: Path) -> None:
    """Nothing is kept any more."""
    shutil.rmtree(folder, ignore_errors=True)


_COLUMNS = ("keys", "labels", "folds")


def _classifier(fold: int) -> str:
    return f"classifier.{'all' if fold == ALL else fold}.npy"
