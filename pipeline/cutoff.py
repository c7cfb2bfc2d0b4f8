"""Where the flags of an audit end, class by class, kept so that later labels can be held to it without all the others.

What confident learning needs to know of the labels that were audited is little (pipeline/flags.py names the paper): the
mean probability of each class on its own labels, above which a label counts as sure; how many labels of each class are
surely of each other class; and, in order, the probabilities that the labels of each class got. So many of a class are
wrong as the counts say, and those with the lowest probabilities are taken for them. Labels that come later are counted
in and take their place in that order; only the thresholds stay as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.flags import Flag, Labels, Probabilities

_NUMBERS, _OWN = "cutoff.npz", "own.npy"


@dataclass(frozen=True, slots=True)
class Cutoff:
    """Of k classes, all of which occur as labels."""

    thresholds: NDArray[np.float64]  # (k,)
    sure: NDArray[np.int64]  # (k, k): labels of the class of the row that are surely of that of the column
    starts: NDArray[np.int64]  # (k + 1,): where each class's own probabilities begin
    own: NDArray[np.float64]  # (n,) of the label given, by class, ascending

    def flag(self, labels: Labels, probabilities: Probabilities, new: NDArray[np.bool_]) -> list[Flag]:
        """Flags of labels (m,) with probabilities (m, k), the least likely first; `new`: not counted in yet."""
        scores, likeliest = probabilities[np.arange(len(labels)), labels], probabilities.argmax(1)
        wrong = self._count_wrong(labels[new], probabilities[new])
        flagged = np.zeros(len(labels), bool)
        for label in np.unique(labels):
            here = labels == label
            before = self.own[self.starts[label] : self.starts[label + 1]]
            rank = np.searchsorted(before, scores[here]) + np.searchsorted(np.sort(scores[here & new]), scores[here])
            flagged[here] = rank < wrong[label]
        found = np.flatnonzero(flagged & (likeliest != labels))
        return [
            Flag(int(i), int(labels[i]), int(likeliest[i]), float(scores[i]))
            for i in found[np.argsort(scores[found], kind="stable")]
        ]

    def _count_wrong(self, labels: Labels, probabilities: Probabilities) -> NDArray[np.int64]:
        """(k,) how many labels of each class are wrong, with these counted in; one of each is right at least."""
        sure = self.sure + _count_sure(labels, probabilities, self.thresholds)
        counts = np.diff(self.starts) + np.bincount(labels, minlength=len(sure))
        right = np.maximum(np.diagonal(sure), 1)
        others = sure.sum(1) - np.diagonal(sure)
        found: NDArray[np.int64] = counts - np.maximum(np.round(counts * (right / (right + others))), 1).astype(int)
        return found

    def save(self, folder: Path) -> None:
        np.savez(folder / _NUMBERS, thresholds=self.thresholds, sure=self.sure, starts=self.starts)
        np.save(folder / _OWN, self.own)


def load(folder: Path) -> Cutoff:
    """What was saved; of the labels' own probabilities only what is asked for is read."""
    with np.load(folder / _NUMBERS, allow_pickle=False) as kept:
        numbers = {name: kept[name] for name in ("thresholds", "sure", "starts")}
    return Cutoff(**numbers, own=np.load(folder / _OWN, mmap_mode="r", allow_pickle=False))


def find_cutoff(labels: Labels, probabilities: Probabilities) -> Cutoff:
    """Of labels (n,) and calibrated probabilities (n, k) of all of them; each of the k classes occurs."""
    scores = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    thresholds = np.maximum(np.bincount(labels, scores, len(counts)) / counts, 2e-6)  # cleanlab's lower bound
    sure = _count_sure(labels, probabilities, thresholds)
    own = scores[np.lexsort((scores, labels))]
    return Cutoff(thresholds, sure, np.concatenate([[0], counts.cumsum()]), own)


def _count_sure(labels: Labels, probabilities: Probabilities, thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Labels of each class (row) that are surely of each class (column), as cleanlab counts them."""
    above = probabilities >= thresholds - 1e-6
    found = np.where(above.sum(1) > 1, probabilities.argmax(1), above.argmax(1))
    some = above.any(1)
    counted = np.zeros((len(thresholds), len(thresholds)), np.int64)
    np.add.at(counted, (labels[some], found[some]), 1)
    return counted
