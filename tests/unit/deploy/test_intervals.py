"""Intervals hold what they promise, also where times that follow each other are alike."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from deploy import intervals

BLOCKS, RUNS, TRIALS = 12, 20, 300


def drawn(generator: np.random.Generator, alike: float) -> list[NDArray[np.float64]]:
    """Times whose logarithms share so much of their spread within a block."""
    shared = generator.normal(0, alike, (BLOCKS, 1))
    return list(np.exp(shared + generator.normal(0, 1, (BLOCKS, RUNS))))


@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_the_median_lies_in_its_interval_as_often_as_promised(alike: float) -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(TRIALS):
        value, half = intervals.quantile(drawn(generator, alike), 0.5)
        held += abs(np.log(value)) <= np.log1p(half) or abs(value - 1.0) <= half * value
    assert held / TRIALS >= 0.92


def test_a_formula_for_independent_times_would_promise_too_much() -> None:
    """What the blocks add to the interval is not little."""
    generator = np.random.default_rng(1)
    apart = np.mean([intervals.quantile(drawn(generator, 0.0), 0.5)[1] for _ in range(50)])
    alike = np.mean([intervals.quantile(drawn(generator, 1.0), 0.5)[1] for _ in range(50)])
    assert alike > 2 * apart


def test_an_interval_of_equal_times_is_none() -> None:
    assert intervals.quantile([np.full(5, 2.0)] * 3, 0.95) == (2.0, 0.0)


def test_a_high_percentile_of_few_times_reaches_to_the_slowest() -> None:
    value, half = intervals.quantile([np.array([1.0, 1.0, 1.0]), np.array([1.0, 1.0, 9.0])], 0.95)
    assert value * (1 + 2 * half) >= 9.0


def test_a_rate_is_over_all_blocks() -> None:
    assert intervals.rate([10, 10], [1.0, 1.0]) == (10.0, 0.0)
    value, half = intervals.rate([10, 20, 30], [1.0, 1.0, 1.0])
    assert value == 20.0
    assert half == pytest.approx(stats.t.ppf(0.975, 2) * 10 / np.sqrt(3) / 20)


@pytest.mark.parametrize(("alike", "share"), [(0.0, 0.92), (0.7, 0.85)])
def test_a_low_quantile_of_a_series_lies_in_its_interval_nearly_as_often_as_promised(
    alike: float, share: float
) -> None:
    """Also where each figure is made up in part of the one before; how alike, sixty tell roughly."""
    generator = np.random.default_rng(1)
    truth, held = float(np.exp(stats.norm.ppf(0.25))), 0
    for _ in range(TRIALS):
        noise = generator.normal(0, np.sqrt(1 - alike**2), 60)
        for number in range(1, 60):
            noise[number] += alike * noise[number - 1]
        figures = np.exp(noise)
        value = float(np.quantile(figures, 0.25))
        held += abs(value - truth) <= intervals.of_series(figures, 0.25) * value
    assert held / TRIALS >= share


def test_a_series_of_equal_figures_leaves_no_doubt() -> None:
    assert intervals.of_series(np.full(8, 2.0), 0.125) == 0.0


@pytest.mark.parametrize(("freedom", "within"), [(1, 1e-5), (2, 1e-5), (3, 0.03), (5, 0.005), (11, 5e-4), (60, 1e-5)])
def test_students_t_is_that_of_scipy(freedom: int, within: float) -> None:
    assert intervals.student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=within)
