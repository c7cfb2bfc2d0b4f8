"""What a running cycle does next: a pure function of what the journal knows, so that a restart goes on by itself.

A cycle alternates between training and measuring until a candidate is promoted, the champion is kept, or nothing is
left to try. Naming the next job here, rather than looping inside a package, lets the two never meet.
"""

from __future__ import annotations

from policies.constraints import accuracy_shortfalls, rank, shortfalls
from policies.cycle_facts import CycleFacts
from policies.facts import Candidate, Verdict
from policies.next_measurement import is_doubtful, narrowly, next_measurement
from policies.next_training import next_training
from policies.steps import Build, Finish, Judge, Outcome, Promote, Prove, Step


def next_step(facts: CycleFacts) -> Step:
    """The next step of a cycle; `Finish` ends it."""
    if facts.failed:
        step, words = next(iter(facts.failed.items()))
        return Finish("failed", f"{step}: {words}")
    if facts.promoted:
        return Finish("promoted", facts.verdicts[facts.promoted].reason + narrowly(facts))
    if ahead := _answered(facts) or (_next_asked(facts) if facts.trigger == "asked" else _next_build(facts)):
        return ahead
    if facts.trigger == "stock":
        return _rebuilt(facts)
    if facts.trigger == "proof":
        return _proof(facts)
    # The winner alone is asked about on judge: each further asking would spend more of the error budget.
    refused = facts.champion_feasible and bool(facts.verdicts)
    ahead = None if refused else _next_candidate(facts)
    return ahead or (_not_adopted(facts) if facts.trigger == "adopt" else next_training(facts))


def _answered(facts: CycleFacts) -> Step | None:
    """What follows from a verdict that is more than a refusal."""
    for artifact, verdict in facts.verdicts.items():
        if verdict.answer == "promote" and artifact in facts.unapproved:
            return Finish("ask", _would_promote(artifact, verdict, facts.requirement.target))
        if verdict.answer == "promote":
            return Promote(artifact)
        if verdict.answer == "ask":
            return Finish("ask", verdict.reason)
    return None


def _would_promote(artifact: str, verdict: Verdict, target: str) -> str:
    how = f"`relearn approve {target}` promotes it, `relearn refuse {target}` does not"
    return f"{artifact} would be promoted, and waits for a person: {verdict.reason.rstrip('.')}. {how}"


def _next_asked(facts: CycleFacts) -> Step:
    """Measured, proven and judged is what a person asked about, and nothing else; no more of judge is spent than that.

    What people declined earlier may be asked about: this is a person's word too.
    """
    candidate = next((c for c in facts.candidates if c.artifact == facts.about), None)
    if candidate is None or candidate.artifact in facts.unanswered:
        lost = f"{facts.about} is not in stock any more, or cannot run where the target does"
        return Finish("failed", facts.unanswered.get(facts.about or "", lost))
    if candidate.artifact == facts.champion:
        return Finish("kept", f"{candidate.artifact} is served by now")
    if candidate.artifact in facts.verdicts:
        return Finish("kept", facts.verdicts[candidate.artifact].reason)
    if untold := next_measurement(facts, [candidate]):
        return untold
    if broken := shortfalls(facts.requirement, candidate):
        unmet = "; ".join(shortfall.sentence for shortfall in broken)
        return Finish("kept", f"{candidate.artifact} does not meet the constraints: {unmet}")
    return _prove_or_judge(facts, candidate)


def _prove_or_judge(facts: CycleFacts, candidate: Candidate) -> Prove | Judge:
    if candidate.proof is None:
        return Prove(candidate.artifact, measure=False)
    if rivals := [artifact for artifact in facts.rivals if artifact not in facts.unanswered]:
        return Prove(rivals[0], measure=False)
    return Judge(candidate.artifact)


def _next_build(facts: CycleFacts) -> Step | None:
    """What is to be built next. That one builder refuses a model ends nothing."""
    for model, variant in facts.unbuilt:
        if (build := Build(model, variant)).key not in facts.refused:
            return build
    return None


def _rebuilt(facts: CycleFacts) -> Finish:
    if any(candidate.artifact == facts.champion for candidate in facts.candidates):
        return Finish("kept", "what is served was built again, the same to the last byte")
    if refused := [f"{key}, {words}" for key, words in facts.refused.items()]:
        return Finish("failed", "; ".join(refused))
    # Not failed: that would have it tried for ever, before anything else.
    return Finish(
        "violated", "the build gave another artifact than the one that is served: the next training replaces it"
    )


def _proof(facts: CycleFacts) -> Step:
    """The champion, which was adopted before there were images, is asked about them. Nothing is trained for that."""
    if facts.champion in facts.rivals and facts.champion not in facts.unanswered:
        return Prove(facts.champion, measure=False)
    counts = next((c.proof for c in facts.candidates if c.artifact == facts.champion and c.proof), None)
    if not counts:
        why = facts.unanswered.get(facts.champion or "", "it is not in stock")
        return Finish("failed", f"the champion cannot be asked about judge: {why}")
    samples, correct = sum(c.samples for c in counts), sum(c.correct for c in counts)
    said = f"the adopted champion is {correct / samples:.2%} right on {samples:,} judge samples"
    if facts.champion_feasible:
        return Finish("kept", said)
    return Finish("violated", f"{said}, and does not meet the constraints: {_missed(facts, facts.champion)}")


def _not_adopted(facts: CycleFacts) -> Finish:
    """Why what was to be adopted is not served."""
    outcome: Outcome = "kept" if facts.champion_feasible else "violated"
    if facts.verdicts:
        return Finish(outcome, [verdict.reason for verdict in facts.verdicts.values()][-1])
    mine = [c for c in facts.candidates if c.model in facts.fresh]
    if unfit := "; ".join(f"{c.variant}: {why}" for c in mine if (why := _missed(facts, c.artifact))):
        return Finish(outcome, f"the adopted model does not meet the constraints ({unfit})")
    said = [f"{key}, {words}" for key, words in {**facts.refused, **facts.unanswered}.items()]
    if not facts.variants:
        said.append(f"nothing of build.engines runs on {facts.requirement.accelerator!r}")
    return Finish("failed", f"nothing could be built of the adopted model: {'; '.join(said) or 'its folder is gone'}")


def _missed(facts: CycleFacts, artifact: str | None) -> str:
    candidate = next(c for c in facts.candidates if c.artifact == artifact)
    missed = (*shortfalls(facts.requirement, candidate), *accuracy_shortfalls(facts.requirement, candidate.proof or ()))
    return "; ".join(shortfall.sentence for shortfall in missed)


def _next_candidate(facts: CycleFacts) -> Step | None:
    """The step that brings the most promising candidate closer to a verdict; None: none is left."""
    pool = [c for c in facts.candidates if c.artifact not in (*facts.verdicts, *facts.unanswered)]
    if facts.trigger in ("data", "adopt"):
        pool = [c for c in pool if c.model in facts.fresh]
    if not facts.champion_feasible:
        pool = [c for c in pool if c.artifact != facts.champion]
    declined = {} if facts.trigger == "adopt" else facts.declined  # who adopts it has thought better of it
    pool = [c for c in pool if c.artifact == facts.champion or c.artifact not in declined]
    fitting = [c for c in pool if not shortfalls(facts.requirement, c) or is_doubtful(facts, c)]
    if untold := next_measurement(facts, fitting):
        return untold
    if not fitting:
        return None
    winner = rank(fitting, facts.requirement)[0]
    if winner.artifact == facts.champion:
        return Finish("kept", _champion_first(facts, len(fitting)))
    return _prove_or_judge(facts, winner)


def _champion_first(facts: CycleFacts, fitting: int) -> str:
    if facts.trigger == "data":
        return "the best artifact of this snapshot and these settings is the one that is served already"
    if fitting == 1:
        return "the champion meets the constraints, and no other stored candidate does"
    best = "accuracy on tune" if facts.requirement.prefer == "accuracy" else facts.requirement.prefer
    return f"of {fitting} stored candidates that meet the constraints, the champion has the best {best}"
