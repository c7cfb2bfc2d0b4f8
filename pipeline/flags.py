"""Which labels are probably wrong: confident learning on out-of-sample probabilities, by cleanlab.

    python -m pipeline.flags LABELS.npy PROBABILITIES.npy

prints {"flagged": [{"index", "given", "suggested", "score"}, …], "noise_rate": {"estimate", "low", "high"}} as JSON,
the least likely label first. Exit 2: the arrays cannot be used, standard error says why.

A label is flagged where it is among those that the class's own estimated number of errors reaches («prune by class»:
Northcutt, Jiang and Chuang, Confident Learning, JAIR 70, 2021), its score is the probability that the classifier gave
it. The noise rate is the number of errors that the confident joint estimates, with the interval of Clopper and Pearson
for so many of so many: the sampling is in it, the classifier's own mistakes are not.
"""

from __future__ import annotations

import json
import sys
import warnings
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from policies.job import StageError

CONFIDENCE = 0.95
SUM_TOLERANCE = 1e-3  # half precision keeps that
TEMPERATURES = np.geomspace(0.5, 32.0, 25)
NOISES = np.arange(0.0, 0.41, 0.05)  # shares of labels that are of no class in particular; half is not told from all
Labels = NDArray[np.int64]  # (n,), indices of classes
Probabilities = NDArray[np.float64]  # (n, classes)


@dataclass(frozen=True, slots=True)
class Flag:
    """One label that is probably wrong; classes are indices."""

    index: int
    given: int
    suggested: int
    score: float  # probability of the given label: the smaller, the less likely


@dataclass(frozen=True, slots=True)
class NoiseRate:
    """The share of wrong labels, with its confidence interval."""

    estimate: float
    low: float
    high: float


def check(labels: NDArray[np.generic], probabilities: NDArray[np.generic]) -> tuple[Labels, Probabilities]:
    """The arrays as they are worked with. Raises StageError, naming the first row that cannot be used."""
    if labels.ndim != 1 or probabilities.ndim != 2 or len(labels) != len(probabilities):
        raise StageError(
            f"labels have the shape {labels.shape}, probabilities {probabilities.shape}: they have to be (n,) and "
            "(n, classes)"
        )
    if not len(labels):
        raise StageError("there are no labels")
    if not np.issubdtype(labels.dtype, np.integer):
        raise StageError(f"labels are {labels.dtype}: the index of each label's class is needed, as integers")
    if not np.issubdtype(probabilities.dtype, np.number) or np.issubdtype(probabilities.dtype, np.complexfloating):
        raise StageError(f"probabilities are {probabilities.dtype}: real numbers are needed")
    given, found = labels.astype(np.int64), probabilities.astype(np.float64)
    classes = found.shape[1]
    if classes < 2:
        raise StageError(f"probabilities have {classes} column: two classes at least are needed")
    for wrong, what in (
        (~np.isfinite(found).all(1), "holds a value that is no number"),
        ((found < 0).any(1) | (found > 1 + SUM_TOLERANCE).any(1), "holds a value that is not between 0 and 1"),
        (np.abs(found.sum(1) - 1) > SUM_TOLERANCE, "does not sum to 1"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise StageError(f"row {row} of the probabilities {what}: {_short(found[row])} ({wrong.sum():,} such rows)")
    outside = (given < 0) | (given >= classes)
    if outside.any():
        row = int(outside.argmax())
        raise StageError(f"label {row} is {labels[row]}: probabilities have {classes} columns ({outside.sum():,} such)")
    return given, found


def _short(row: Probabilities) -> str:
    return np.array2string(row, precision=4, threshold=8, edgeitems=3, separator=", ")


def find_flags(labels: Labels, probabilities: Probabilities) -> list[Flag]:
    """The flags, the least likely label first, of arrays that `check` has seen.

    A class none of whose labels the classifier would give, or that no other label is taken for, gives none.
    """
    from cleanlab.filter import find_label_issues

    present, dense = np.unique(labels, return_inverse=True)
    if len(present) < 2:  # nothing else that a label could be
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with few labels, which are the usual case here
        found = find_label_issues(
            dense,
            _among(probabilities, present),
            filter_by="prune_by_class",
            return_indices_ranked_by="self_confidence",
            min_examples_per_class=1,
            n_jobs=1,
        )
    likeliest = probabilities.argmax(1)
    return [
        Flag(int(i), int(labels[i]), int(likeliest[i]), float(probabilities[i, labels[i]]))
        for i in found
        if likeliest[i] != labels[i]
    ]


def calibrate(labels: Labels, probabilities: Probabilities) -> Probabilities:
    """The probabilities as sure as they have a right to be: cooled until they fit the labels best."""
    present = np.unique(labels)
    if len(present) < 2:
        return probabilities
    cooled = np.zeros_like(probabilities)
    cooled[:, present] = cool(probabilities[:, present], find_temperature(labels, probabilities))
    return cooled


def find_temperature(labels: Labels, probabilities: Probabilities) -> float:
    """What the probabilities, of two classes at least that occur as labels, have to be cooled by.

    Temperature scaling (Guo and others, On Calibration of Modern Neural Networks, ICML 2017), with a share of labels
    that are of any class, fitted at once, since else wrong labels would be taken for doubt of the classifier. A
    discriminant of few samples with wide embeddings needs it: without, it was sure of its mistake on 31 of 100 right
    labels (benchmarks/LOG.md).
    """
    present, dense = np.unique(labels, return_inverse=True)
    among = np.log(_among(probabilities, present))
    own = np.arange(len(labels)), dense

    def fit(temperature: float) -> float:
        right = softmax(among / temperature)[own]
        return min(-float(np.log((1 - noise) * right + noise / len(present)).mean()) for noise in NOISES)

    return float(min(TEMPERATURES, key=fit))


def cool(probabilities: Probabilities, temperature: float) -> Probabilities:
    """The probabilities with their logarithms divided by the temperature; all classes occur as labels."""
    return softmax(np.log(_among(probabilities, np.arange(probabilities.shape[1]))) / temperature)


def softmax(values: Probabilities) -> Probabilities:
    """The shares of each row's exponentials."""
    raised = np.exp(values - values.max(1, keepdims=True))
    shares: Probabilities = raised / raised.sum(1, keepdims=True)
    return shares


def estimate_noise(labels: Labels, probabilities: Probabilities) -> NoiseRate:
    """The share of wrong labels, of arrays that `check` has seen."""
    from cleanlab.count import num_label_issues
    from scipy.stats import binomtest

    present, dense = np.unique(labels, return_inverse=True)
    wrong = 0
    if len(present) > 1:
        among = _among(probabilities, present)
        wrong = int(num_label_issues(dense, among, estimation_method="off_diagonal_calibrated"))
    interval = binomtest(wrong, len(labels)).proportion_ci(CONFIDENCE, method="exact")
    return NoiseRate(wrong / len(labels), float(interval.low), float(interval.high))


def _among(probabilities: Probabilities, present: NDArray[np.int64]) -> Probabilities:
    """Of the classes that occur as labels alone, which is what cleanlab takes."""
    kept = probabilities[:, present] + 1e-12
    shares: Probabilities = kept / kept.sum(1, keepdims=True)
    return shares


def load(file: Path) -> NDArray[np.generic]:
    """An array of a .npy file. Raises StageError; nothing is unpickled."""
    try:
        array = np.load(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise StageError(f"{file}: there is no such file") from error
    except (OSError, ValueError, EOFError, MemoryError, OverflowError, zipfile.BadZipFile) as error:
        why = "" if "pickle" in str(error) else f": {error}"  # numpy would have it loaded unsafely
        raise StageError(f"{file}: is no array of numbers as numpy.save writes it{why}") from error
    if not isinstance(array, np.ndarray):
        raise StageError(f"{file}: holds several arrays: save each in a .npy file of its own")
    return array


def main() -> int:
    try:
        labels, probabilities = check(load(Path(sys.argv[1])), load(Path(sys.argv[2])))
    except StageError as error:
        print(error, file=sys.stderr)
        return 2
    flagged = [asdict(flag) for flag in find_flags(labels, probabilities)]
    print(json.dumps({"flagged": flagged, "noise_rate": asdict(estimate_noise(labels, probabilities))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
