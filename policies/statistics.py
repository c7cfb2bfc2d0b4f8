"""The statistics that promotion and the triggers rest on, each with its source.

All of it is exact or tried against enumeration in the tests, stable to 100,000 samples (sums start at the
largest term, in log space) and quick enough to be asked class by class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

_NORMAL = NormalDist()
_HALVINGS = 45  # of an interval of length 1 or 2: to about 1e-13


def normal_quantile(probability: float) -> float:
    """z with P(Z <= z) = probability for a standard normal Z (Wichura 1988, algorithm AS 241)."""
    return _NORMAL.inv_cdf(probability)


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """P(X >= successes) for X ~ Binomial(trials, probability), exactly.

    The sum starts at the largest term of the smaller tail and ends when a term no longer counts.
    """
    if successes <= 0:
        return 1.0
    if successes > trials or probability <= 0.0:
        return 0.0
    if probability >= 1.0:
        return 1.0
    if successes <= trials * probability:
        return 1.0 - _upper_sum(trials - successes + 1, trials, 1.0 - probability)
    return _upper_sum(successes, trials, probability)


def _upper_sum(successes: int, trials: int, probability: float) -> float:
    """The tail from `successes`, at or above the mean, where the terms only fall."""
    if successes > trials:
        return 0.0
    ways = math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
    log_term = ways + successes * math.log(probability) + (trials - successes) * math.log1p(-probability)
    odds = probability / (1.0 - probability)
    term = total = 1.0
    for k in range(successes, trials):
        term *= (trials - k) / (k + 1) * odds
        total += term
        if term < 1e-17 * total:
            break
    log_total = log_term + math.log(total)
    return math.exp(min(log_total, 0.0))


def mcnemar(more: int, fewer: int) -> float:
    """One-sided exact p-value that `more` of the discordant pairs fell one way by chance alone.

    Under the hypothesis of no difference each discordant pair falls either way with probability one half
    (McNemar 1947; the exact form is the sign test). No discordant pair: 1.
    """
    return binomial_tail(more, more + fewer, 0.5)


def paired_lower_bound(won: int, lost: int, samples: int, confidence: float) -> float:
    """Lower confidence bound, one-sided, of challenger's accuracy minus champion's on the same samples.

    `won` of `samples` the challenger alone answered rightly, `lost` the champion alone. The score bound of
    Tango 1998 (Statistics in Medicine 17:891): chosen over Wald's, whose bound collapses to the estimate when
    nothing or almost nothing is discordant, as with two good models, and over Newcombe's method 10, which has
    no test behind it. Enumerated for 100 to 5,000 samples and margins of 2 and 5 points, a challenger worse
    by exactly the margin passes with at most 1.04 times the chance allowed, down to a chance of 1e-4.

    No samples: -1.
    """
    if samples == 0:
        return -1.0
    z = normal_quantile(confidence)
    estimate = (won - lost) / samples
    return _edge(-1.0, estimate, lambda difference: paired_score(won, lost, samples, difference) > z)


def paired_score(won: int, lost: int, samples: int, difference: float) -> float:
    """Tango's score statistic for a true difference of `difference`, which is at most the estimate.

    Standard normal under that hypothesis, about; the larger, the more speaks for a larger difference.
    """
    a = 2 * samples
    b = (2 * samples - won + lost) * difference - won - lost
    c = -lost * difference * (1.0 - difference)
    lost_share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)  # most likely under the hypothesis
    variance = samples * (2 * lost_share + difference * (1.0 - difference))
    distance = won - lost - samples * difference
    if variance <= 0.0:
        return math.inf if distance > 0 else 0.0
    return distance / math.sqrt(variance)


def clopper_pearson(successes: int, samples: int, confidence: float) -> tuple[float, float]:
    """Exact lower and upper confidence bound of one proportion, each one-sided at `confidence`.

    Clopper and Pearson 1934 (Biometrika 26:404). Never less than the confidence promised. No samples: (0, 1).
    """
    alpha = 1.0 - confidence
    if samples == 0:
        return 0.0, 1.0
    estimate = successes / samples
    lower = upper = estimate
    if successes > 0:
        lower = _edge(0.0, estimate, lambda p: binomial_tail(successes, samples, p) < alpha)
    if successes < samples:
        failures = samples - successes
        upper = 1.0 - _edge(0.0, 1.0 - estimate, lambda q: binomial_tail(failures, samples, q) < alpha)
    return lower, upper


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being several, in their order: those at most alpha are rejected.

    The chance of any false rejection is at most alpha, whatever the dependence (Holm 1979, Scandinavian
    Journal of Statistics 6:65).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min((len(p_values) - rank) * p_values[i], 1.0))
        adjusted[i] = highest
    return adjusted


def samples_to_show(alpha: float) -> int:
    """The fewest samples on which the exact paired test can reach `alpha` at all: all of them lost."""
    return math.ceil(math.log(alpha) / math.log(0.5) - 1e-9)


def smallest_fall(samples: int, exchange: float, alpha: float, power: float) -> float | None:
    """The smallest true fall of an accuracy that the exact paired test at `alpha` finds with chance `power`.

    `exchange`: the share of samples that the challenger wins back, so that exchange + fall are lost. The
    sample size of McNemar's test by Connor 1987 (Biometrics 43:207), solved for the fall, with the continuity
    correction of 1/fall samples for the exact test: from 50 samples its true power is at most half a point
    below `power` (enumerated), more often above. None: no fall could be shown.
    """
    if samples < samples_to_show(alpha):
        return None
    most = 1.0 - 2 * exchange
    z_alpha, z_power = normal_quantile(1.0 - alpha), normal_quantile(power)

    def too_small(fall: float) -> bool:
        discordant = 2 * exchange + fall
        root = z_alpha * math.sqrt(discordant) + z_power * math.sqrt(max(discordant - fall * fall, 0.0))
        return fall <= 0.0 or root**2 / fall**2 + 1.0 / fall > samples

    if most <= 0.0 or too_small(most):
        return None
    return _edge(0.0, most, too_small)


def _edge(low: float, high: float, holds: Callable[[float], bool]) -> float:
    """Where a condition that holds at `low` and not at `high` ceases to, by bisection."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2
