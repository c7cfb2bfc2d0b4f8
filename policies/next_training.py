"""What a cycle trains next, once none of the stored candidates is left to be asked about: it ends where nothing is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policies.constraints import nearest, nearest_by_constraint, shortfalls
from policies.cycle_facts import CycleFacts
from policies.next_measurement import is_doubtful
from policies.search import Found, as_candidates, next_search
from policies.steps import Build, Finish, Measure, Prove, Step, Train, Tune
from policies.tuning import why_tune

_LASTING = {"artifact_max_mb", "allow_unverified"}  # constraints that no second measurement changes anything about


def next_training(facts: CycleFacts) -> Step:
    if stays := _champion_stays(facts):
        return stays
    if stuck := _unanswered(facts):
        return Finish("failed", stuck)
    unfit = known_unfit(facts)
    if _nothing_runs_here(facts):
        return Finish("kept" if facts.champion_feasible else "violated", _nothing_left(facts, unfit))
    if again := _measured_long_ago(facts, unfit):
        return again
    return _next_architecture(facts, unfit)


def _champion_stays(facts: CycleFacts) -> Finish | None:
    """Why the champion, which is feasible, stays without another training; None: there is one to be made."""
    if not facts.champion_feasible:
        return None
    if facts.verdicts:
        return Finish("kept", [verdict.reason for verdict in facts.verdicts.values()][-1])
    if declined := _declined(facts):
        return Finish("kept", f"the champion stays: {'; '.join(declined)}")
    if facts.trigger != "constraints":
        return None
    if unknown := facts.unanswered.get(facts.champion or ""):
        return Finish("failed", f"whether the champion meets the constraints cannot be told: {unknown}")
    return Finish("kept", "the champion meets the constraints as they are now")


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
            if is_doubtful(facts, candidate):
                return Measure(candidate.artifact)
    return None


def _declined(facts: CycleFacts) -> list[str]:
    """What would have been considered, had no person declined it: who did."""
    mine = [c for c in facts.candidates if c.artifact in facts.declined and c.artifact != facts.champion]
    if facts.trigger == "data":
        mine = [c for c in mine if c.model in facts.fresh]
    return [facts.declined[c.artifact] for c in mine if not shortfalls(facts.requirement, c)]


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
