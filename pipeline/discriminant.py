"""A linear discriminant with the shrinkage of Ledoit and Wolf, which needs no tuning, as two arrays that can be kept.

The covariance within a class is shrunk class by class, as scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr",
shrinkage="auto")` does it (Ledoit and Wolf, Honey, I Shrunk the Sample Covariance Matrix, 2004). One class at a time is
in memory as float64, so that a million embeddings need no second and third copy.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.embedding_cache import Embeddings
from pipeline.flags import Labels, Probabilities, softmax

BLOCK = 16_384  # rows that are looked at together
Rows = NDArray[np.int64]  # (m,) of n


@dataclass(frozen=True, slots=True)
class Discriminant:
    """The logarithm of a class's probability is linear in the embedding, but for what all classes have in common."""

    weights: NDArray[np.float64]  # (width, classes)
    bias: NDArray[np.float64]  # (classes,), -inf of those that it was not fitted on

    def ask(self, embeddings: Embeddings) -> Probabilities:
        """(n, classes) of embeddings (n, width)."""
        found = np.empty((len(embeddings), len(self.bias)))
        for start in range(0, len(embeddings), BLOCK):
            some = slice(start, start + BLOCK)
            found[some] = softmax(embeddings[some].astype(np.float64) @ self.weights + self.bias)
        return found


def fit(embeddings: Embeddings, labels: Labels, rows: Rows, classes: int) -> Discriminant:
    """The discriminant of these rows of embeddings (n, width) with labels (n,) below `classes`.

    Where all embeddings are alike each class is as likely as it is frequent.
    """
    present, counts = np.unique(labels[rows], return_counts=True)
    shares = counts / counts.sum()
    weights, bias = np.zeros((embeddings.shape[1], classes)), np.full(classes, -np.inf)
    centre, spread, told = _spread(embeddings, rows)
    if not told.any():
        bias[present] = np.log(shares)
        return Discriminant(weights, bias)
    means = np.zeros((len(present), int(told.sum())))
    within = np.zeros((means.shape[1], means.shape[1]))
    for number, label in enumerate(present):
        own = embeddings[rows[labels[rows] == label]][:, told].astype(np.float64)
        own = (own - centre[told]) / spread[told]
        means[number] = own.mean(0)
        within += shares[number] * _covariance(own)
    directions = np.linalg.lstsq(within, means.T, rcond=None)[0]  # (told, present)
    height = np.log(shares) - 0.5 * (means * directions.T).sum(1)
    directions /= spread[told][:, None]
    weights[np.ix_(told, present)] = directions
    bias[present] = height - centre[told] @ directions
    return Discriminant(weights, bias)


def _spread(embeddings: Embeddings, rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Mean and standard deviation of each number over these rows, and whether it tells one from another at all."""
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    centre = sum((embeddings[some].sum(0, dtype=np.float64) for some in blocks), np.zeros(embeddings.shape[1]))
    centre /= max(len(rows), 1)
    square, largest = np.zeros_like(centre), 1e-12
    for some in blocks:
        off = embeddings[some].astype(np.float64)
        largest = max(largest, float(np.abs(off).max(initial=0.0)))
        off -= centre
        square += (off * off).sum(0)
    spread = np.sqrt(square / max(len(rows), 1))
    return centre, spread, spread > 1e-6 * largest


def _covariance(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of one class, shrunk as its numbers are when each is scaled by its own spread."""
    from sklearn.covariance import ledoit_wolf

    scale = values.std(0)
    scale[scale < 10 * np.finfo(np.float64).eps] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a class of one sample
        shrunk, _ = ledoit_wolf((values - values.mean(0)) / scale)
    covariance: NDArray[np.float64] = shrunk * scale * scale[:, None]
    return covariance
