"""How much of a period's chance of a wrong promotion the next asking may spend.

The judge samples are asked again and again; what may go wrong over all askings of a period is one budget. Each asking
is given a part of it beforehand, whatever comes out:

- four fifths by its place in the period, the k-th of them in proportion to k**-1.6 (a series that adds up however many
  follow; the exponent is the one that Ramdas et al. 2018, «SAFFRON», settled on);
- one fifth by what the judge samples have grown since the asking before, as 1 - first/now grows towards 1 (spending
  by information: Lan and DeMets 1983, Biometrika 70:659). Growth raises power, never the budget.

An asking that the challenger has passed was no wrong decision unless it was the one that the budget allows, so that its
chance goes on to the next: the fallback procedure (Wiens 2003, Pharmaceutical Statistics 2:211; Wiens and Dmitrienko
2005, Journal of Biopharmaceutical Statistics 15:929; without an end, Tian and Ramdas 2021, Statistical Methods in
Medical Research 30:976). It keeps the chance of any wrong promotion within the budget, whatever the dependence of the
askings. So a line of good challengers is held to little more than a single test; each one that does not pass costs
those that follow.

benchmarks/promotions.py tries it on simulated histories; of those tried, benchmarks/LOG.md tells.
"""

from __future__ import annotations

from collections.abc import Sequence

from policies.facts import Asking

_DECAY, _ZETA = 1.6, 2.2857656655801  # and the sum of k**-1.6 over k = 1, 2, …
_BY_PLACE = 0.8
DAY = 86_400.0  # seconds


def this_period(askings: Sequence[Asking], now: float, period_days: float) -> tuple[Asking, ...]:
    """Those of the period that is under way, oldest first: a period begins with its first asking, and is over after so
    many days. `askings`: of one target, oldest first, from the last `period_days` at least.
    """
    if not askings or askings[-1].began + period_days * DAY <= now:
        return ()
    return tuple(asking for asking in askings if asking.began == askings[-1].began)


def parts(samples: Sequence[int]) -> list[float]:
    """What each of these askings, by its number of judge samples, is given of the budget: together at most 1."""
    given, most = [], 0
    for place, number in enumerate(samples, 1):
        grown = samples[0] / most - samples[0] / max(number, most) if most else 0.0
        given.append(_BY_PLACE * place**-_DECAY / _ZETA + (1.0 - _BY_PLACE) * grown)
        most = max(most, number)
    return given


def share(period: Sequence[Asking], samples: int, budget: float) -> float:
    """The chance of a wrong promotion that an asking on so many samples may spend, after those of its period."""
    given = parts([*(asking.samples for asking in period), samples])
    first = len(period)
    while first and period[first - 1].passed:
        first -= 1
    return float(budget * sum(given[first:]))
