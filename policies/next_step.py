"""What a running cycle does next: a pure function of what the journal knows, so that a restart goes on by itself.

A cycle alternates between training and measuring until a candidate is promoted, the champion is kept, or nothing is
left to try. Naming the next job here, rather than looping inside a package, lets the two never meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.constraints import accuracy_shortfalls, in_doubt, nearest, nearest_by_constraint, rank, shortfalls
from policies.facts import Candidate, Requirement, Verdict
from policies.search import Found, SearchFacts, as_candidates, next_search
from policies.steps import Build, Finish, Judge, Measure, Outcome, Promote, Prove, Step, Train, Tune
from policies.tuning import TuningFacts, why_tune

_LASTING = {"artifact_max_mb", "allow_unverified"}  # constraints that no second measurement changes anything about
Trigger = Literal["data", "constraints", "stock", "asked", "adopt", "proof"]


@dataclass(frozen=True, slots=True)
class CycleFacts:
    """What is known in a cycle. Candidates are those that the target could serve: its input size, all its classes."""

    trigger: Trigger
    requirement: Requirement
    snapshot: str
    architectures: tuple[str, ...]  # in the order of config.toml
    candidates: tuple[Candidate, ...]
    variants: tuple[str, ...] = ("onnxruntime:fp32",)  # engines and precisions that the target could take
    unbuilt: tuple[tuple[str, str], ...] = ()  # model and variant that there is no artifact of yet
    refused: Mapping[str, str] = field(default_factory=dict)  # build step -> why it came to nothing
    unbuildable: Mapping[str, str] = field(default_factory=dict)  # architecture that nothing could be built of -> why
    unanswered: Mapping[str, str] = field(default_factory=dict)  # artifact that could not be proven or measured -> why
    built: frozenset[str] = frozenset()  # artifacts, in this cycle
    stored: frozenset[str] = frozenset()  # models whose folders are there
    fresh: frozenset[str] = frozenset()  # models of this snapshot and these settings
    trained: tuple[str, ...] = ()  # architectures that have a model of this snapshot and recipe
    too_large: Mapping[str, str] = field(default_factory=dict)  # architecture -> why, found before training it
    champion: str | None = None  # artifact
    champion_feasible: bool = False  # as far as it is measured and proven
    measured: frozenset[str] = frozenset()  # artifacts that were, in this cycle
    measured_longer: frozenset[str] = frozenset()  # artifacts that were once more in this cycle, or could not be
    rivals: tuple[str, ...] = ()  # champion and anchor, where they lack answers to the judge set as it is now
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)  # artifact -> what was said in this cycle
    about: str | None = None  # the artifact that a person asked about, with the trigger "asked"
    unapproved: frozenset[str] = frozenset()  # artifacts whose verdict of this cycle is for a person to approve
    declined: Mapping[str, str] = field(default_factory=dict)  # artifact that people do not want served -> who and when
    promoted: str | None = None  # artifact, in this cycle
    failed: Mapping[str, str] = field(default_factory=dict)  # step -> last words, once its attempts are used up
    tuning: TuningFacts = field(default_factory=TuningFacts)
    search: SearchFacts = field(default_factory=SearchFacts)


def next_step(facts: CycleFacts) -> Step:
    """The next step of a cycle; `Finish` ends it."""
    if facts.failed:
        step, words = next(iter(facts.failed.items()))
        return Finish("failed", f"{step}: {words}")
    if facts.promoted:
        return Finish("promoted", facts.verdicts[facts.promoted].reason + _narrowly(facts))
    if ahead := _answered(facts) or (_next_asked(facts) if facts.trigger == "asked" else _next_build(facts)):
        return ahead
    if facts.trigger == "stock":
        return _rebuilt(facts)
    if facts.trigger == "proof":
        return _proof(facts)
    # The winner alone is asked about on judge: each further asking would spend more of the error budget.
    refused = facts.champion_feasible and bool(facts.verdicts)
    ahead = None if refused else _next_candidate(facts)
    return ahead or (_not_adopted(facts) if facts.trigger == "adopt" else _next_training(facts))


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
    if untold := _next_measurement(facts, [candidate]):
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
    pool = [c for c in pool if c.artifact == facts.champion or c.artifact not in facts.declined]
    fitting = [c for c in pool if not shortfalls(facts.requirement, c) or _is_doubtful(facts, c)]
    if untold := _next_measurement(facts, fitting):
        return untold
    if not fitting:
        return None
    winner = rank(fitting, facts.requirement)[0]
    if winner.artifact == facts.champion:
        return Finish("kept", _champion_first(facts, len(fitting)))
    return _prove_or_judge(facts, winner)


def _next_measurement(facts: CycleFacts, fitting: Sequence[Candidate]) -> Step | None:
    """What is to be measured before anything is decided: what never was, then what leaves in doubt who is to win.

    Of the champion too: whether it is feasible decides how a challenger is judged.
    """
    champion = [c for c in facts.candidates if c.artifact == facts.champion]
    for candidate in (*(champion if facts.champion_feasible else ()), *fitting):
        if candidate.measurement is None and not candidate.unverified and candidate.artifact not in facts.unanswered:
            return Prove(candidate.artifact, measure=True)
    for candidate in (*champion, *rank(fitting, facts.requirement)[:1]):
        if _is_doubtful(facts, candidate):
            return Measure(candidate.artifact)
    return None


def _is_doubtful(facts: CycleFacts, candidate: Candidate) -> bool:
    """Whether a longer measurement may change whether it meets the constraints, or wins. It is made once in a cycle."""
    if candidate.measurement is None or candidate.artifact in (*facts.measured_longer, *facts.unanswered):
        return False
    doubts = in_doubt(facts.requirement, candidate)
    if not candidate.measurement.is_believed(facts.requirement.prefer):
        return not shortfalls(facts.requirement, candidate)
    return bool(doubts) and all(s.constraint in doubts for s in shortfalls(facts.requirement, candidate))


def _narrowly(facts: CycleFacts) -> str:
    """What is promoted may meet a constraint by less than even the longer measurement can tell."""
    promoted = [c for c in facts.candidates if c.artifact == facts.promoted]
    doubts = [sentence for c in promoted for sentence in in_doubt(facts.requirement, c).values()]
    return f" (narrowly, by a measurement at length: {'; '.join(doubts)})" if doubts else ""


def _champion_first(facts: CycleFacts, fitting: int) -> str:
    if facts.trigger == "data":
        return "the best artifact of this snapshot and these settings is the one that is served already"
    if fitting == 1:
        return "the champion meets the constraints, and no other stored candidate does"
    best = "accuracy on tune" if facts.requirement.prefer == "accuracy" else facts.requirement.prefer
    return f"of {fitting} stored candidates that meet the constraints, the champion has the best {best}"


def _next_training(facts: CycleFacts) -> Step:
    declined = _declined(facts)
    if facts.champion_feasible and declined and not facts.verdicts:
        return Finish("kept", f"the champion stays: {'; '.join(declined)}")
    if facts.champion_feasible and (facts.verdicts or facts.trigger == "constraints"):
        reasons = [verdict.reason for verdict in facts.verdicts.values()]
        return Finish("kept", reasons[-1] if reasons else "the champion meets the constraints as they are now")
    if stuck := _unanswered(facts):
        return Finish("failed", stuck)
    unfit = known_unfit(facts)
    if _nothing_runs_here(facts):
        return Finish("kept" if facts.champion_feasible else "violated", _nothing_left(facts, unfit))
    if again := _measured_long_ago(facts, unfit):
        return again
    return _next_architecture(facts, unfit)


def _declined(facts: CycleFacts) -> list[str]:
    """What would have been considered, had no person declined it: who did."""
    mine = [c for c in facts.candidates if c.artifact in facts.declined and c.artifact != facts.champion]
    if facts.trigger == "data":
        mine = [c for c in mine if c.model in facts.fresh]
    return [facts.declined[c.artifact] for c in mine if not shortfalls(facts.requirement, c)]


def _next_architecture(facts: CycleFacts, unfit: Mapping[str, str]) -> Step:
    for architecture in facts.architectures:
        if architecture not in facts.trained and architecture not in unfit:
            return _build_what_is_stored(facts, architecture) or _train(facts, architecture)
    if facts.champion_feasible:
        return Finish("kept", _nothing_left(facts, unfit))
    return _next_in_search(facts, unfit)


def _unanswered(facts: CycleFacts) -> str | None:
    """Why what was trained for this cycle, and would fit, could not be proven or measured; None: nothing such."""
    said = {
        c.artifact: facts.unanswered[c.artifact]
        for c in facts.candidates
        if c.model in facts.fresh and c.artifact in facts.unanswered and not shortfalls(facts.requirement, c)
    }
    return "; ".join(f"{artifact}: {words}" for artifact, words in said.items()) or None


def _nothing_runs_here(facts: CycleFacts) -> bool:
    """Whether there is nothing that the target could take, or all was built unverified: no training changes that."""
    if not facts.variants:
        return True
    unverified = {c.variant for c in facts.candidates if c.unverified and c.artifact in facts.built}
    return not facts.requirement.allow_unverified and len(facts.variants) <= len(unverified & set(facts.variants))


def _build_what_is_stored(facts: CycleFacts, architecture: str) -> Build | None:
    """Where a stored model of the architecture does not fit as it was built: whether it could, another build tells."""
    mine = [candidate for candidate in facts.candidates if candidate.architecture == architecture]
    stored = [candidate for candidate in mine if candidate.model in facts.stored]
    if not stored or not all(shortfalls(facts.requirement, candidate) for candidate in mine):
        return None
    have = {candidate.variant for candidate in mine}
    builds = [Build(stored[-1].model, variant) for variant in facts.variants if variant not in have]
    return next((build for build in builds if build.key not in facts.refused), None)


def _train(facts: CycleFacts, architecture: str) -> Tune | Train:
    """The training of an architecture, with the best settings that are known, once they were searched for."""
    reason = why_tune(facts.tuning, architecture, feasible=facts.champion_feasible, served=facts.champion is not None)
    return Train(architecture) if reason is None else Tune(architecture, reason)


def _next_in_search(facts: CycleFacts, unfit: Mapping[str, str]) -> Step:
    if not facts.search.patterns or not facts.variants:
        broken = unfit and not facts.verdicts and unfit.keys() <= facts.unbuildable.keys()
        return Finish("failed" if broken else "violated", _nothing_left(facts, unfit))
    step = next_search(facts.search, facts.requirement, facts.variants, frozenset(facts.architectures))
    if not isinstance(step, Found):
        return step
    if step.winner is None or step.winner in facts.trained or step.winner in facts.unbuildable:
        return Finish("violated", f"{_nothing_left(facts, unfit)} The search: {step.reason}.")
    return _train(facts, step.winner)


def known_unfit(facts: CycleFacts) -> dict[str, str]:
    """Architectures that cannot meet the constraints, by what was measured of all of their models; with the reason.

    One that was never built in a variant that the target could take is not known to be unfit.
    """
    unfit = {**facts.too_large, **facts.unbuildable}
    broken = {c.artifact: shortfalls(facts.requirement, c) for c in facts.candidates}
    fitting = {c.architecture for c in facts.candidates if not broken[c.artifact]}
    for architecture in {c.architecture: None for c in facts.candidates if c.architecture not in (*unfit, *fitting)}:
        newest = {c.variant: c for c in facts.candidates if c.architecture == architecture}
        if newest.keys() >= set(facts.variants):
            said = {variant: broken[c.artifact][0].sentence for variant, c in newest.items()}
            one = len(said) == 1
            unfit[architecture] = ", ".join(why if one else f"{variant}: {why}" for variant, why in said.items())
    return unfit


def _measured_long_ago(facts: CycleFacts, unfit: Mapping[str, str]) -> Step | None:
    """An artifact whose figures of an earlier cycle, or doubtful ones, rule its architecture out: it is measured again.

    No noisy moment must do so for good. Its size is no such figure, nor that it is unverified.
    """
    newest = {(c.architecture, c.variant): c for c in facts.candidates if c.architecture in unfit}
    for architecture in facts.architectures:
        if architecture in (*facts.trained, *facts.too_large):
            continue
        for candidate in (c for (name, _), c in newest.items() if name == architecture):
            lasting = {s.constraint for s in shortfalls(facts.requirement, candidate)} & _LASTING
            if not lasting and candidate.artifact not in (*facts.measured, *facts.unanswered):
                return Prove(candidate.artifact, measure=True)
            if _is_doubtful(facts, candidate):
                return Measure(candidate.artifact)
    return None


def _nothing_left(facts: CycleFacts, unfit: Mapping[str, str]) -> str:
    if not facts.variants:
        return f"nothing of build.engines runs on {facts.requirement.accelerator!r}: add an engine that does"
    said: Sequence[str] = [f"{name}: {why}" for name, why in unfit.items()]
    said = [*said, *(verdict.reason for verdict in facts.verdicts.values()), *_declined(facts)]
    measured = [*facts.candidates, *as_candidates(facts.search)]
    near = nearest(measured, facts.requirement)
    tail = f" Nearest: {near}." if near else ""
    each = nearest_by_constraint(measured, facts.requirement)
    tail += f" By constraint: {'; '.join(each)}." if len(each) > 1 else ""
    return f"no architecture of model.architectures meets the constraints ({'; '.join(said) or 'none'}).{tail}"
