"""Confidence intervals of what was timed in blocks: of quantiles and of rates, whatever the distribution.

Times that follow each other are alike (another process runs for a while, a processor warms up), so that formulas for
independent ones promise too much. What varies here is the block: how far a block's share of times below the quantile
strays from the whole's gives the standard error of that share (batch means: Conway 1963, «Some tactical problems in
digital simulation», Management Science 10), and the quantiles at that share more and less bound the interval
(Woodruff 1952, «Confidence intervals for medians and other position measures», JASA 47). Never less than independent
times would have.

Of one figure a block, as its median, blocks that follow each other are alike too (a neighbour stays for seconds): as
many independent ones are counted as a first-order autoregression of being below the quantile leaves (Law and Kelton
1991, «Simulation Modeling and Analysis», 4.4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NORMAL = 1.959964  # of 95% confidence, both sides

Times = Sequence[NDArray[np.float64]]  # seconds of each run, block by block


def quantile(blocks: Times, share: float) -> tuple[float, float]:
    """The quantile of all times, and half its 95% interval as a share of it. Needs two blocks."""
    pooled = np.concatenate(blocks)
    value = float(np.quantile(pooled, share))
    below = np.array([np.count_nonzero(block <= value) for block in blocks], dtype=np.float64)
    error = _error_of_ratio(below, np.array([len(block) for block in blocks], dtype=np.float64))
    reach = student(len(blocks) - 1) * max(error, math.sqrt(share * (1 - share) / len(pooled)))
    low, high = np.quantile(pooled, [max(0.0, share - reach), min(1.0, share + reach)])
    return value, float(high - low) / 2 / value


def of_series(figures: NDArray[np.float64], share: float) -> float:
    """Half the 95% interval of the quantile of figures that came in this order, as a share of it. Needs two."""
    value = float(np.quantile(figures, share))
    strays = (figures <= value) - np.mean(figures <= value)
    alike = max(0.0, float(strays[1:] @ strays[:-1]) / float(strays @ strays)) if strays.any() else 0.0
    independent = max(2.0, len(figures) * (1 - alike) / (1 + alike))
    reach = student(len(figures) - 1) * math.sqrt(share * (1 - share) / independent)
    low, high = np.quantile(figures, [max(0.0, share - reach), min(1.0, share + reach)])
    return float(high - low) / 2 / value


def rate(counts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """What was counted a second over all blocks, and half its 95% interval as a share of it. Needs two blocks."""
    done, took = np.array(counts, dtype=np.float64), np.array(seconds, dtype=np.float64)
    value = float(done.sum() / took.sum())
    return value, student(len(done) - 1) * _error_of_ratio(done, took) / value


def _error_of_ratio(parts: NDArray[np.float64], wholes: NDArray[np.float64]) -> float:
    """The standard error of sum(parts) / sum(wholes), the blocks being what varies."""
    strays = parts - parts.sum() / wholes.sum() * wholes
    number = len(parts)
    return math.sqrt(number / (number - 1) * float(strays @ strays)) / float(wholes.sum())


def student(freedom: int) -> float:
    """Student's t of 95% confidence (Cornish and Fisher's expansion; exact for one and two degrees of freedom)."""
    if freedom <= 2:
        return 12.7062 if freedom == 1 else 4.30265
    z = NORMAL
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
