"""What a challenger brings that the champion lacks.

A class, more right answers on the newest images, more of what [prefer] names, or a training without forgotten images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from policies.constraints import preferred
from policies.facts import MAXIMIZED, Candidate, ClassTally, Requirement
from policies.statistics import mcnemar

CHANCE = 0.1  # of two equal models the one is as far ahead on the newest images; never enough alone, as all gains
FEW = 3  # judge samples of a new class; by guessing among ten classes, two of three are right in 3 of 100 cases
NOISE = {  # shares by which two measurements of one artifact may differ however sure each is of itself
    "latency_p95_ms": 0.05,
    "throughput": 0.05,
    "memory_mb": 0.05,
    "artifact_mb": 0.01,
}
_UNITS = {"latency_p95_ms": "ms", "throughput": "images/s", "memory_mb": "MB", "artifact_mb": "MB"}


@dataclass(frozen=True, slots=True)
class NewClass:
    """A class that the challenger knows and the champion does not, with the challenger's answers on judge."""

    name: str
    samples: int
    correct: int
    floor: float

    @property
    def told(self) -> bool:
        return self.samples >= FEW

    @property
    def passed(self) -> bool:
        return self.told and self.correct >= self.floor * self.samples - 1e-9

    def __str__(self) -> str:
        return f"{self.name} ({self.correct} of {self.samples} right)"

    def row(self) -> dict[str, Any]:
        """The line of the verdict's table."""
        told = {"class": self.name, "samples": self.samples, "challenger_correct": self.correct}
        untold = dict.fromkeys(("champion_correct", "lost", "won", "p_fall", "smallest_fall"))
        return {**told, **untold, "fallen": False, "pool": [], "new": True}


def new_classes(challenger: Candidate, champion: Candidate | None, floor: float) -> tuple[NewClass, ...]:
    """The classes that only the challenger knows, in its order; without a champion all of them."""
    known = champion.classes if champion else ()
    counts = {c.name: c for c in challenger.proof or ()}
    return tuple(
        NewClass(
            name,
            counts[name].samples if name in counts else 0,
            counts[name].correct if name in counts else 0,
            floor,
        )
        for name in challenger.classes
        if name not in known
    )


@dataclass(frozen=True, slots=True)
class Gains:
    """What speaks for the challenger, and what of the preferred it would give up, in words ("" for none)."""

    classes: tuple[NewClass, ...] = ()
    preferred: str = ""
    given_up: str = ""
    forgotten: int = 0  # images that were forgotten: the champion learnt from them, the challenger did not
    newest: str = ""  # what it is ahead on the judge samples that came since the champion was trained

    def __bool__(self) -> bool:
        return bool(self.classes or self.newest or self.preferred or self.forgotten)

    def __str__(self) -> str:
        learned = f"{_plural(self.classes)} {', '.join(map(str, self.classes))}" if self.classes else ""
        images = "image" if self.forgotten == 1 else "images"
        free = f"a training without {self.forgotten:,} {images} that you had forgotten" if self.forgotten else ""
        return " and ".join(part for part in (learned, self.newest, self.preferred, free) if part)


def _plural(classes: Sequence[NewClass]) -> str:
    return "the new class" if len(classes) == 1 else "the new classes"


def on_newest(tally: ClassTally) -> str:
    """What the challenger is ahead on the judge samples that came since the champion was trained, in words; "": not."""
    won, lost = tally.challenger_only, tally.champion_only
    if won <= lost or mcnemar(won, lost) > CHANCE:
        return ""
    points = (won - lost) / tally.samples * 100
    since = f"the {tally.samples:,} judge samples that came since the champion was trained"
    return f"{points:.1f} points more accuracy on {since} (won {won}, lost {lost})"


def weigh(
    requirement: Requirement,
    challenger: Candidate,
    champion: Candidate,
    tally: ClassTally,
    newcomers: Sequence[NewClass],
) -> Gains:
    """What the challenger brings. Accuracy: by the estimate on judge, a tie there broken by tune.

    An estimate is enough, for it is never enough alone: the challenger must also be shown to be no worse.
    Speed, memory and size must differ by more than `NOISE`, and by more than both measurements are unsure of.
    """
    learned = tuple(n for n in newcomers if n.passed)
    if requirement.prefer == "accuracy":
        return Gains(learned, _more_accurate(challenger, champion, tally))
    mine, theirs = preferred(challenger, requirement), preferred(champion, requirement)
    if mine is None or theirs is None:
        return Gains(learned)
    name, unit = requirement.prefer, _UNITS[requirement.prefer]
    said = f"{name} {figure(mine)} {unit} instead of {figure(theirs)}"
    if _beats(requirement, challenger, champion):
        return Gains(learned, said)
    return Gains(learned, given_up=said if _beats(requirement, champion, challenger) else "")


def figure(value: float) -> str:
    """Three digits that count, and never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _more_accurate(challenger: Candidate, champion: Candidate, tally: ClassTally) -> str:
    won, lost = tally.challenger_only, tally.champion_only
    if won > lost:
        return f"{(won - lost) / tally.samples * 100:.1f} points more accuracy by the estimate"
    mine, theirs = challenger.tune_accuracy, champion.tune_accuracy
    if won == lost and mine is not None and theirs is not None and mine > theirs:
        return f"more accuracy on tune ({mine:.2%} instead of {theirs:.2%}, equal on judge)"
    return ""


def _beats(requirement: Requirement, one: Candidate, other: Candidate) -> bool:
    """Whether one has more of what is preferred, beyond noise.

    A difference of two figures is as unsure as both together: the root of the sum of the squares, for neither
    measurement knows of the other.
    """
    name = requirement.prefer
    first, second = preferred(one, requirement), preferred(other, requirement)
    if first is None or second is None:
        return False
    ahead = first - second if name in MAXIMIZED else second - first
    unsure = math.hypot(_reach(one, name, worse=True), _reach(other, name, worse=False))
    return ahead > max(NOISE[name] * max(first, second), unsure)


def _reach(candidate: Candidate, name: str, *, worse: bool) -> float:
    """How far the figure may lie from its estimate to the worse, or the better, side, in its own unit."""
    found = candidate.measurement
    if found is None:  # of its size nothing is unsure
        return 0.0
    low, high = found.interval(name)
    value: float = getattr(found, name)
    return value - low if worse == (name in MAXIMIZED) else high - value
