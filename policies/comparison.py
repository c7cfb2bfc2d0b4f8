"""A challenger compared with another model on judge, paired, within the error budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from policies.facts import ClassTally
from policies.falls import add_up
from policies.statistics import mcnemar, normal_quantile, paired_lower_bound

_POWER = 0.8  # with which the number of judge samples that would be enough is told


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired answers over all classes that both know, and what they show at this asking's share of error."""

    tally: ClassTally
    lower: float  # confidence bound of the challenger's accuracy minus the other's, -1..1
    p_better: float
    asking: int  # of the period; the first is 1
    alpha: float  # the chance of error that this asking may spend
    margin: float

    @property
    def difference(self) -> float:
        """Challenger's accuracy minus the other's, by the estimate."""
        t = self.tally
        return (t.challenger_only - t.champion_only) / t.samples if t.samples else 0.0

    @property
    def better(self) -> bool:
        """Better beyond chance."""
        return self.p_better <= self.alpha

    @property
    def no_worse(self) -> bool:
        """Worse by at most the margin, by the bound and not by the estimate."""
        return self.lower >= -self.margin

    def __str__(self) -> str:
        t = self.tally
        if not t.samples:
            return "judge has no sample of a class that both know"
        mine, theirs = (t.both + t.challenger_only) / t.samples, (t.both + t.champion_only) / t.samples
        won, lost = t.challenger_only, t.champion_only
        return f"{mine:.2%} against {theirs:.2%} right on {t.samples:,} judge samples (won {won}, lost {lost})"

    def bound(self) -> str:
        """What the lower bound says beside the margin."""
        at = f"at {1 - self.alpha:.2%} confidence, asking {self.asking} of this period"
        far = (
            f"worse by at most {-self.lower * 100:.2f}"
            if self.lower < 0
            else f"better by at least {self.lower * 100:.2f}"
        )
        return f"{far} points {at}; the margin is {self.margin * 100:g}"

    def remedy(self) -> str:
        """What would show the challenger to be no worse, where these samples do not."""
        gap = self.margin + min(self.difference, 0.0)
        if gap <= 0.0:
            return "the estimate itself is below the margin, only a better model helps"
        t = self.tally
        discordant = (t.challenger_only + t.champion_only + 1) / (t.samples + 1)
        z = normal_quantile(1.0 - self.alpha) + normal_quantile(_POWER)
        enough = max(math.ceil(z * z * discordant / gap**2), t.samples + 1)
        unit = 10 ** max(len(str(enough)) - 2, 0)
        return f"about {math.ceil(enough / unit) * unit:,} judge samples would show it if the estimate holds"


def compare(tallies: Sequence[ClassTally], *, asking: int, alpha: float, margin: float) -> Comparison:
    """What these answers show at the asking's share of error (policies/budget.py)."""
    tally = add_up(tallies)
    won, lost = tally.challenger_only, tally.champion_only
    lower = paired_lower_bound(won, lost, tally.samples, 1.0 - alpha)
    return Comparison(tally, lower, mcnemar(won, lost), asking, alpha, margin)
