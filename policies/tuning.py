"""When the settings of a training are searched anew: for a first model, where a constraint is missed, and in time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from policies.settings import TuningSettings


@dataclass(frozen=True, slots=True)
class TuningFacts:
    """What is known of tunings in a cycle."""

    trials: int = 0  # tune.trials; 0: there is no tuning
    ages: Mapping[str, float] = field(default_factory=dict)  # architecture -> days since its last tuning
    given_up: frozenset[str] = frozenset()  # architectures whose tuning failed in this cycle
    spent_minutes: float = 0.0  # of training and tuning, in the last 24 hours
    budget_minutes: float = 0.0  # policies.budget.minutes_per_day; 0: no limit
    settings: TuningSettings = field(default_factory=TuningSettings)


def why_tune(facts: TuningFacts, architecture: str, *, feasible: bool, served: bool) -> str | None:
    """The reason to tune this architecture before it is trained, with its numbers; None: there is none.

    `served`: the target has a champion; `feasible`: it meets the constraints.
    """
    settings, age = facts.settings, facts.ages.get(architecture)
    if not facts.trials or architecture in facts.given_up:
        return None
    if facts.budget_minutes and facts.spent_minutes >= facts.budget_minutes:
        return None
    trials = f"{facts.trials} trials"
    if age is None:
        return f"{architecture} was never tuned for this target: {trials}"
    if served and not feasible and settings.missed_days and age >= settings.missed_days:
        missed = "the champion does not meet the constraints, and the last tuning"
        return f"{missed} of {architecture} was {age:.1f} days ago (it takes {settings.missed_days:g}): {trials}"
    if settings.days and age >= settings.days:
        return f"{architecture} was tuned {age:.1f} days ago (it takes {settings.days:g}): {trials}"
    return None
