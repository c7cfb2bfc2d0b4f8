"""Model search: which architecture of many to train, where none that is known meets a target's constraints.

First every architecture is drawn untrained and measured: what cannot fit by latency, memory or size is dropped, with
the constraint that it breaks and by how much. The rest race by successive halving (Jamieson and Talwalkar 2016,
«Non-stochastic best arm identification and hyperparameter optimization»): all train for a few epochs, the better part
goes on for more, until one is left, which is trained to its end. Pure: it names the next step, from what is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from policies.constraints import shortfalls
from policies.facts import Candidate, Measurement, Requirement
from policies.steps import Race, Shortlist, Sketch


@dataclass(frozen=True, slots=True)
class Sketched:
    """What was measured of an untrained network in one variant, or why nothing could be."""

    measurement: Measurement | None
    error: str = ""
    artifact_mb: float | None = None  # where it was built and cannot be run here
    unverified: str | None = None  # why not


@dataclass(frozen=True, slots=True)
class Heat:
    """How an architecture stood on `tune` after so many epochs; without an accuracy it dropped out, for the reason."""

    epochs: int
    accuracy: float | None
    loss: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class SearchFacts:
    """What is known in a search."""

    patterns: tuple[str, ...] = ()  # search.architectures; none: there is no search
    names: tuple[str, ...] | None = None  # the architectures that they name; None: not asked yet
    sketches: Mapping[str, Mapping[str, Sketched]] = field(default_factory=dict)  # architecture -> variant ->
    heats: Mapping[str, tuple[Heat, ...]] = field(default_factory=dict)  # architecture -> each rung that it ran
    first_epochs: int = 1
    reduction: float = 3.0
    epochs: int = 20  # of a whole training


@dataclass(frozen=True, slots=True)
class Found:
    """The search is over: the winner, if there is one, and a sentence."""

    winner: str | None
    reason: str


def next_search(
    search: SearchFacts, requirement: Requirement, variants: tuple[str, ...], known: frozenset[str]
) -> Shortlist | Sketch | Race | Found:
    """The next step of the search, or its end. `known`: architectures that were tried already: no part of it."""
    if search.names is None:
        return Shortlist(f"nothing known meets the constraints: {', '.join(search.patterns)} of timm are searched")
    names = [name for name in search.names if name not in known]
    for name in names:
        if (variant := _unsketched(search, requirement, variants, name)) is not None:
            return Sketch(name, variant)
    dropped = rejected(search, requirement, known)
    fitting = [name for name in names if name not in dropped]
    reason = f"{len(fitting)} of {len(names)} architectures can meet the constraints{_list(dropped)}"
    if not fitting:
        return Found(None, reason)
    return _race(search, fitting, reason)


def rejected(search: SearchFacts, requirement: Requirement, known: frozenset[str] = frozenset()) -> dict[str, str]:
    """The architectures of the search that cannot meet the constraints, each with what it breaks, and by how much."""
    said = {}
    for name in search.names or ():
        if name not in known and not any(_fits(requirement, name, s) for s in search.sketches.get(name, {}).items()):
            by_variant = {
                variant: sketched.error or _shortfalls(requirement, _candidate(name, variant, sketched))
                for variant, sketched in search.sketches.get(name, {}).items()
            }
            one = len(by_variant) == 1
            said[name] = ", ".join(why if one else f"{variant}: {why}" for variant, why in by_variant.items())
    return said


def as_candidates(search: SearchFacts) -> list[Candidate]:
    """What was measured untrained, to be compared with the constraints like all else."""
    return [
        _candidate(name, variant, sketched)
        for name, by_variant in search.sketches.items()
        for variant, sketched in by_variant.items()
        if not sketched.error
    ]


def _unsketched(search: SearchFacts, requirement: Requirement, variants: tuple[str, ...], name: str) -> str | None:
    """The variant to measure next: one that fits is enough to know."""
    have = search.sketches.get(name, {})
    if any(_fits(requirement, name, pair) for pair in have.items()):
        return None
    return next((variant for variant in variants if variant not in have), None)


def _fits(requirement: Requirement, name: str, pair: tuple[str, Sketched]) -> bool:
    variant, sketched = pair
    return not sketched.error and not _shortfalls(requirement, _candidate(name, variant, sketched))


def _shortfalls(requirement: Requirement, candidate: Candidate) -> str:
    return " and ".join(shortfall.sentence for shortfall in shortfalls(requirement, candidate))


def _candidate(name: str, variant: str, sketched: Sketched) -> Candidate:
    measured = sketched.measurement
    return Candidate(
        artifact="untrained",
        model="",
        architecture=name,
        snapshot="",
        classes=(),
        artifact_mb=measured.artifact_mb if measured else sketched.artifact_mb or 0.0,
        tune_accuracy=None,
        measurement=measured,
        variant=variant,
        unverified=sketched.unverified,
    )


def _race(search: SearchFacts, running: list[str], reason: str) -> Race | Found:
    """The next heat of the first rung that is not run yet; the winner where one is left, or all ran to their end."""
    epochs = min(search.first_epochs, search.epochs)
    while len(running) > 1:
        heats = {name: _heat(search, name, epochs) for name in running}
        for name, heat in heats.items():
            if heat is None:
                return Race(name, epochs, reason)
        order = sorted(running, key=lambda name: _rank(heats[name]))
        keep = math.ceil(len(order) / search.reduction) if epochs < search.epochs else 1
        finished = [name for name in order if _rank(heats[name])[0] < math.inf]
        standing = ", ".join(f"{name} {_stand(heats[name])}" for name in order)
        reason = f"after {epochs} {'epoch' if epochs == 1 else 'epochs'}: {standing}; {keep} of {len(order)} go on"
        running = finished[:keep]
        epochs = min(search.epochs, math.ceil(epochs * search.reduction))
    if not running:
        return Found(None, f"no architecture came through its race: {reason}")
    return Found(running[0], f"{running[0]} wins the search: {reason}")


def _heat(search: SearchFacts, name: str, epochs: int) -> Heat | None:
    """The architecture's heat of so many epochs; one that dropped out before stays out."""
    return next((heat for heat in search.heats.get(name, ()) if heat.epochs == epochs or heat.accuracy is None), None)


def _rank(heat: Heat | None) -> tuple[float, float]:
    """Lower is better: accuracy first, then loss; one that dropped out is last."""
    if heat is None or heat.accuracy is None:
        return math.inf, math.inf
    return -heat.accuracy, math.inf if heat.loss is None else heat.loss


def _stand(heat: Heat | None) -> str:
    assert heat is not None
    return f"dropped out ({heat.error})" if heat.accuracy is None else f"{heat.accuracy:.1%}"


def _list(dropped: Mapping[str, str]) -> str:
    return "".join(f"; {name} cannot: {why}" for name, why in dropped.items())
