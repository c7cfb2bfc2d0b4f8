"""The discriminant is scikit-learn's, to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from pipeline import discriminant
from pipeline.discriminant import fit


def clouds(classes: int, each: int, width: int) -> tuple[Any, Any]:
    draw = np.random.default_rng(7)
    labels = draw.permutation(np.repeat(np.arange(classes), each))
    mixed = draw.normal(size=(width, width)) * draw.lognormal(0, 2, width)
    values = (draw.normal(size=(classes, width))[labels] + draw.normal(size=(len(labels), width))) @ mixed + 50
    return values.astype(np.float32), labels


@pytest.mark.parametrize(("classes", "each", "width"), [(2, 30, 8), (5, 40, 16), (4, 12, 64)])
def test_it_is_scikit_learn_s(classes: int, each: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discriminant, "BLOCK", 32)
    values, labels = clouds(classes, each, width)
    values[:, 3] = 5  # tells nothing
    rows = np.flatnonzero(np.arange(len(labels)) % 5)
    told = np.r_[0:3, 4:width]
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    known = values[np.ix_(rows, told)].astype(np.float64)
    centre, scale = known.mean(0), known.std(0)
    theirs.fit((known - centre) / scale, labels[rows])
    wanted = theirs.predict_proba((values[:, told].astype(np.float64) - centre) / scale)
    assert np.allclose(fit(values, labels, rows, classes).ask(values), wanted, atol=1e-6)


def test_a_class_that_it_was_not_fitted_on_has_no_probability() -> None:
    values, labels = clouds(3, 20, 6)
    found = fit(values, labels, np.flatnonzero(labels != 1), 3).ask(values)
    assert (found[:, 1] == 0).all()
    assert np.allclose(found.sum(1), 1)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_of_images_that_are_all_alike_classes_are_as_likely_as_frequent(value: float) -> None:
    labels = np.array([0, 1, 1, 1] * 5)
    found = fit(np.full((20, 8), value, np.float32), labels, np.arange(20), 2).ask(np.zeros((1, 8), np.float32))
    assert np.allclose(found, [[0.25, 0.75]])
