"""What of a cycle's candidates is to be measured before anything is decided: never measured, or in doubt."""

from __future__ import annotations

from collections.abc import Sequence

from policies.constraints import in_doubt, rank, shortfalls
from policies.cycle_facts import CycleFacts
from policies.facts import Candidate
from policies.steps import Measure, Prove, Step


def next_measurement(facts: CycleFacts, fitting: Sequence[Candidate]) -> Step | None:
    """What is to be measured before anything is decided: what never was, then what leaves in doubt who is to win.

    Of the champion too: whether it is feasible decides how a challenger is judged.
    """
    champion = [c for c in facts.candidates if c.artifact == facts.champion]
    for candidate in (*(champion if facts.champion_feasible else ()), *fitting):
        if candidate.measurement is None and not candidate.unverified and candidate.artifact not in facts.unanswered:
            return Prove(candidate.artifact, measure=True)
    for candidate in (*champion, *rank(fitting, facts.requirement)[:1]):
        if is_doubtful(facts, candidate):
            return Measure(candidate.artifact)
    return None


def is_doubtful(facts: CycleFacts, candidate: Candidate) -> bool:
    """Whether a longer measurement may change whether it meets the constraints, or wins. It is made once in a cycle."""
    if candidate.measurement is None or candidate.artifact in (*facts.measured_longer, *facts.unanswered):
        return False
    doubts = in_doubt(facts.requirement, candidate)
    missed = shortfalls(facts.requirement, candidate)
    if not missed and not candidate.measurement.is_believed(facts.requirement.prefer):
        return True
    return bool(doubts) and all(shortfall.constraint in doubts for shortfall in missed)


def narrowly(facts: CycleFacts) -> str:
    """What is promoted may meet a constraint by less than even the longer measurement can tell."""
    promoted = [c for c in facts.candidates if c.artifact == facts.promoted]
    doubts = [sentence for c in promoted for sentence in in_doubt(facts.requirement, c).values()]
    return f" (narrowly, by a measurement at length: {'; '.join(doubts)})" if doubts else ""
