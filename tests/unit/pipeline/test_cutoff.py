"""Where flags end, kept: of the labels that it was made of it says what cleanlab says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import cutoff
from pipeline.cutoff import find_cutoff
from pipeline.flags import calibrate, find_flags


def noisy(number: int, classes: int, wrong: float, seed: int) -> tuple[Any, Any]:
    """Labels, a share of which is wrong, and calibrated probabilities of a classifier that knows the truth roughly."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, classes, number)
    raised = draw.normal(size=(number, classes)) + 2.5 * np.eye(classes)[truth]
    shares = np.exp(raised) / np.exp(raised).sum(1, keepdims=True)
    labels = np.where(draw.random(number) < wrong, draw.integers(0, classes, number), truth)
    return labels, calibrate(labels, shares)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("classes", [2, 5])
def test_of_what_it_was_made_of_it_says_what_cleanlab_says(classes: int, wrong: float, seed: int) -> None:
    labels, probabilities = noisy(400, classes, wrong, seed)
    own = find_cutoff(labels, probabilities).flag(labels, probabilities, np.zeros(400, bool))
    theirs = find_flags(labels, probabilities)
    # Counts are rounded so that rows of the joint keep their sum there: one of a class may be more or less.
    assert len({flag.index for flag in own} ^ {flag.index for flag in theirs}) <= classes // 2
    assert [flag.score for flag in own] == sorted(flag.score for flag in own)


@pytest.mark.parametrize("wrong", [0.05, 0.3])
def test_later_labels_are_held_to_it_as_if_all_were_looked_at(wrong: float, tmp_path: Path) -> None:
    labels, probabilities = noisy(2000, 4, wrong, seed=5)
    find_cutoff(labels[:1800], probabilities[:1800]).save(tmp_path)
    later = cutoff.load(tmp_path).flag(labels[1800:], probabilities[1800:], np.ones(200, bool))
    together = {flag.index - 1800 for flag in find_flags(labels, probabilities) if flag.index >= 1800}
    assert len(together) >= 5
    assert len({flag.index for flag in later} ^ together) <= 1


def test_one_wrong_label_among_clean_ones_is_counted_in() -> None:
    labels = np.arange(100) % 2
    probabilities = np.where(np.eye(2)[labels] > 0, 0.97, 0.03)
    kept = find_cutoff(labels, probabilities)
    assert kept.flag(labels, probabilities, np.zeros(100, bool)) == []
    (flag,) = kept.flag(np.array([0, 1, 0]), np.array([[0.97, 0.03], [0.99, 0.01], [0.96, 0.04]]), np.ones(3, bool))
    assert (flag.index, flag.given, flag.suggested, flag.score) == (1, 1, 0, 0.01)
    assert kept.flag(np.zeros(0, int), np.zeros((0, 2)), np.zeros(0, bool)) == []
