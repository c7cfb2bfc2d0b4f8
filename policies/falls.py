"""Whether a class is answered worse by the challenger, beyond chance, and what could be shown.

Demanding a proof of no fall for each class would refuse almost every honest challenger, and a plain rule of
so many points a class refuses most equal ones. So the burden lies the other way: a class has fallen when the
exact paired test says so after Holm's correction, which happens to at most `FALSE_ALARM` of equal
challengers, and the fall that this test would have found almost surely is told with the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from policies.facts import ClassTally
from policies.statistics import holm, mcnemar, paired_lower_bound, samples_to_show, smallest_fall

FALSE_ALARM = 0.05  # chance that an equal challenger is refused for any of its classes


@dataclass(frozen=True, slots=True)
class ClassTest:
    """One class, or all those that are too small to be tested apart, pooled."""

    tally: ClassTally
    p: float | None  # of a fall, corrected over the classes; None: too small, tested in the pool
    smallest: float | None  # the fall that would have been found, 0..1; None: none could be
    fallen: bool = False
    pool: tuple[str, ...] = ()  # the classes pooled

    def row(self) -> dict[str, Any]:
        """The line of the verdict's table."""
        t = self.tally
        return {
            "class": t.name,
            "samples": t.samples,
            "champion_correct": t.both + t.champion_only,
            "challenger_correct": t.both + t.challenger_only,
            "lost": t.champion_only,
            "won": t.challenger_only,
            "p_fall": self.p,
            "smallest_fall": self.smallest,
            "fallen": self.fallen,
            "pool": list(self.pool),
            "new": False,
        }


def compare_classes(tallies: Sequence[ClassTally], class_margin: float, alpha: float) -> tuple[ClassTest, ...]:
    """Each class tested for a fall, the pool of the small ones last.

    `alpha`: the chance allowed that a truly fallen class passes. A significant fall is forgiven only where
    the class is shown at `alpha` to be no worse by `class_margin` (very many samples); a fall is missed with
    at most that chance where it is as large as the `smallest` told.
    """
    present = [t for t in tallies if t.samples]
    if not present:
        return ()
    needed = samples_to_show(FALSE_ALARM / len(present))
    small = [t for t in present if t.samples < needed]
    tested = [t for t in present if t.samples >= needed]
    if small:
        tested.append(add_up(small, f"{len(small)} small {'class' if len(small) == 1 else 'classes'}, pooled"))
    won = sum(t.challenger_only for t in present) / sum(t.samples for t in present)
    pool = tuple(t.name for t in small)
    adjusted = holm([mcnemar(t.champion_only, t.challenger_only) for t in tested])
    level = FALSE_ALARM / len(tested)
    results = []
    for tally, p in zip(tested, adjusted, strict=True):
        pooled = pool if small and tally is tested[-1] else ()
        smallest = _could_show(tally, won, class_margin, level, alpha)
        results.append(ClassTest(tally, p, smallest, _fallen(tally, p, class_margin, alpha), pooled))
    apart = [ClassTest(t, None, None) for t in small]
    return (*results[: len(results) - bool(small)], *apart, *results[len(results) - bool(small) :])


def _fallen(tally: ClassTally, p: float, class_margin: float, alpha: float) -> bool:
    if p > FALSE_ALARM:
        return False
    bound = paired_lower_bound(tally.challenger_only, tally.champion_only, tally.samples, 1.0 - alpha)
    return bound < -class_margin


def _could_show(tally: ClassTally, won: float, class_margin: float, level: float, alpha: float) -> float | None:
    """What the test finds with chance 1 - alpha; it wins back as much as this class, or all, do now."""
    exchange = min(max(won, tally.challenger_only / tally.samples), 0.5)
    fall = smallest_fall(tally.samples, exchange, level, 1.0 - alpha)
    return None if fall is None else max(fall, class_margin)


def add_up(tallies: Sequence[ClassTally], name: str = "all") -> ClassTally:
    """The tallies as one."""
    return ClassTally(
        name,
        sum(t.both for t in tallies),
        sum(t.champion_only for t in tallies),
        sum(t.challenger_only for t in tallies),
        sum(t.neither for t in tallies),
    )
