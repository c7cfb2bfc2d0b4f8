"""Cross-checked against SciPy and by enumeration."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats import contingency_tables, multitest

from policies.statistics import (
    binomial_tail,
    clopper_pearson,
    holm,
    mcnemar,
    normal_quantile,
    paired_lower_bound,
    samples_to_show,
    smallest_fall,
)

RANDOM = random.Random(7)
TABLES = [
    (RANDOM.randint(0, n), n, RANDOM.random())
    for n in [*range(1, 40), 100, 500, 2_000, 5_000, 20_000, 100_000]
    for _ in range(12)
]


def test_binomial_tail_is_scipys() -> None:
    for k, n, p in TABLES:
        assert binomial_tail(k, n, p) == pytest.approx(stats.binom.sf(k - 1, n, p), rel=1e-7, abs=1e-300)


@pytest.mark.parametrize(
    ("k", "n", "p", "expected"),
    [(0, 10, 0.5, 1.0), (11, 10, 0.5, 0.0), (3, 10, 0.0, 0.0), (10, 10, 1.0, 1.0), (0, 0, 0.5, 1.0)],
)
def test_binomial_tail_at_the_edges(k: int, n: int, p: float, expected: float) -> None:
    assert binomial_tail(k, n, p) == expected


def test_binomial_tail_far_out_is_neither_lost_nor_raised() -> None:
    assert binomial_tail(5_000, 5_000, 0.5) == 0.0  # 2**-5000: below the smallest float
    assert binomial_tail(1_000, 1_000, 0.5) == pytest.approx(2.0**-1000, rel=1e-9)


def test_mcnemar_is_the_exact_sign_test() -> None:
    for _ in range(200):
        won, lost = RANDOM.randint(0, 60), RANDOM.randint(0, 60)
        if won + lost:
            expected = stats.binomtest(won, won + lost, 0.5, alternative="greater").pvalue
            assert mcnemar(won, lost) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(0, 0) == 1.0


def test_mcnemar_is_statsmodels_exact_test() -> None:
    """Theirs is two-sided: twice the smaller tail, 1 at most."""
    for _ in range(200):
        both, won, lost, neither = (RANDOM.randint(0, 80) for _ in range(4))
        if won + lost:
            theirs = contingency_tables.mcnemar([[both, lost], [won, neither]], exact=True).pvalue
            assert min(1.0, 2 * min(mcnemar(won, lost), mcnemar(lost, won))) == pytest.approx(theirs, rel=1e-9)


def test_clopper_pearson_is_scipys() -> None:
    for k, n, _ in TABLES[::3]:
        for confidence in (0.9, 0.95, 0.999):
            lower = stats.binomtest(k, n, alternative="greater").proportion_ci(confidence, "exact").low
            upper = stats.binomtest(k, n, alternative="less").proportion_ci(confidence, "exact").high
            assert clopper_pearson(k, n, confidence) == pytest.approx((lower, upper), abs=1e-8)
    assert clopper_pearson(0, 0, 0.95) == (0.0, 1.0)


def test_normal_quantile() -> None:
    for p in (1e-6, 0.025, 0.5, 0.95, 0.9999):
        assert normal_quantile(p) == pytest.approx(stats.norm.ppf(p), abs=1e-9)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_is_statsmodels() -> None:
    for number in (1, 2, 3, 5, 8, 13, 40, 100):  # theirs takes 50 ms, however few
        p_values = [RANDOM.random() ** RANDOM.choice([1, 4, 20]) for _ in range(number)]
        assert holm(p_values) == pytest.approx(multitest.multipletests(p_values, method="holm")[1].tolist())


def test_holm_rejects_as_the_step_down_procedure() -> None:
    for _ in range(200):
        p_values = [RANDOM.random() ** 4 for _ in range(RANDOM.randint(1, 12))]
        rejected = set()
        for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if p_values[i] > 0.05 / (len(p_values) - rank):
                break
            rejected.add(i)
        assert {i for i, p in enumerate(holm(p_values)) if p <= 0.05} == rejected


def _score(won: int, lost: int, n: int, difference: float) -> float:
    """Tango's statistic with the likelihood maximised numerically instead of in closed form."""
    low, high = max(0.0, -difference), min(1.0, (1.0 - difference) / 2)

    def loss(lost_share: float) -> float:
        won_share, rest = lost_share + difference, 1.0 - 2 * lost_share - difference
        parts = ((won, won_share), (lost, lost_share), (n - won - lost, rest))
        return -sum(count * math.log(max(share, 1e-300)) for count, share in parts if count)

    found = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (won - lost - n * difference) / math.sqrt(n * (2 * found + difference * (1 - difference)))


def test_paired_bound_solves_the_score_equation() -> None:
    for _ in range(60):
        n = RANDOM.choice([20, 100, 500, 5_000])
        won, lost = RANDOM.randint(0, n // 6), RANDOM.randint(0, n // 6)
        bound = paired_lower_bound(won, lost, n, 0.95)
        assert bound < (won - lost) / n
        assert _score(won, lost, n, bound) == pytest.approx(normal_quantile(0.95), abs=2e-3)


def test_paired_bound_without_discordant_pairs_does_not_collapse() -> None:
    z = normal_quantile(0.95)
    assert paired_lower_bound(0, 0, 200, 0.95) == pytest.approx(-z * z / (200 + z * z), abs=1e-9)
    assert paired_lower_bound(0, 0, 0, 0.95) == -1.0


def test_paired_bound_is_monotone() -> None:
    for n in (50, 1_000):
        bounds = [paired_lower_bound(won, 5, n, 0.99) for won in range(40)]
        assert bounds == sorted(bounds)
        assert paired_lower_bound(10, 10, n, 0.999) < paired_lower_bound(10, 10, n, 0.9)


@pytest.mark.parametrize("samples", [100, 360, 1_000])
@pytest.mark.parametrize("margin", [0.02, 0.05])
@pytest.mark.parametrize("alpha", [0.05, 0.022, 0.0002])
def test_a_challenger_worse_by_the_margin_passes_no_more_often_than_allowed(
    samples: int, margin: float, alpha: float
) -> None:
    """The whole distribution, enumerated: the largest loss that passes for each number won is found by bisection."""
    for won_share in (0.0, 0.005, 0.02, 0.1):
        lost_share = won_share + margin
        passed = 0.0
        for won in range(int(stats.binom.ppf(1 - 1e-9, samples, won_share)) + 1):
            low, high = -1, samples - won
            while low < high:
                middle = (low + high + 1) // 2
                if paired_lower_bound(won, middle, samples, 1 - alpha) >= -margin:
                    low = middle
                else:
                    high = middle - 1
            rest = lost_share / (1 - won_share)
            chance = stats.binom.pmf(won, samples, won_share) * stats.binom.cdf(low, samples - won, rest)
            passed += float(chance)
        assert passed <= 1.05 * alpha


def test_samples_to_show() -> None:
    assert samples_to_show(0.05) == 5
    assert samples_to_show(0.5**8) == 8
    for alpha in (0.05, 0.005, 0.0005):
        n = samples_to_show(alpha)
        assert mcnemar(n, 0) <= alpha < mcnemar(n - 1, 0)


def _power(samples: int, exchange: float, fall: float, alpha: float) -> float:
    discordant = np.arange(samples + 1)
    needed = stats.binom.isf(alpha, discordant, 0.5) + 1
    lost = stats.binom.sf(needed - 1, discordant, (exchange + fall) / (2 * exchange + fall))
    return float((stats.binom.pmf(discordant, samples, 2 * exchange + fall) * lost).sum())


@pytest.mark.parametrize("samples", [50, 100, 500, 1_600, 5_000])
@pytest.mark.parametrize("exchange", [0.001, 0.02, 0.075])
@pytest.mark.parametrize("alpha", [0.05, 0.005, 0.0005])
def test_smallest_fall_would_be_found(samples: int, exchange: float, alpha: float) -> None:
    fall = smallest_fall(samples, exchange, alpha, 0.978)
    assert fall is not None
    assert _power(samples, exchange, fall, alpha) >= 0.973
    assert _power(samples, exchange, 0.6 * fall, alpha) < 0.978


@pytest.mark.parametrize(("samples", "expected"), [(100, 0.29), (500, 0.10), (1_600, 0.05)])
def test_smallest_fall_of_ten_classes(samples: int, expected: float) -> None:
    fall = smallest_fall(samples, 0.075, 0.05 / 10, 0.978)
    assert fall == pytest.approx(expected, abs=0.01)


def test_smallest_fall_of_too_few_samples_is_none() -> None:
    assert smallest_fall(4, 0.0, 0.05, 0.9) is None
    assert smallest_fall(30, 0.5, 0.05, 0.9) is None
