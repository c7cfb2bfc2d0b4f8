"""Whether a challenger may replace the champion: the daemon's hardest promise.

In this order: the challenger meets its constraints and knows every class that the champion knows; a feasible
challenger beats an infeasible champion; new classes pass their floor and no class falls (policies/falls.py);
and it is better than the champion beyond chance, wherever the last one promoted as better stands, or no worse by the
margin than both, and brings something (policies/gains.py).

On the same answers and figures two models never replace each other in turn: what the one brings the other
lacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from policies.budget import share, this_period
from policies.comparison import Comparison, compare
from policies.constraints import accuracy_shortfalls, shortfalls, unmeasured
from policies.facts import Asking, Candidate, ClassCount, ClassTally, Requirement, Shortfall, Verdict
from policies.falls import ClassTest, add_up, compare_classes
from policies.gains import FEW, Gains, NewClass, new_classes, on_newest, weigh
from policies.settings import PromotionSettings

POLICY = 2  # version
_ELSEWHERE = "adopted by {}: whether it learnt from these very images nobody here knows"
_NAMED = 5  # classes named in a sentence; the table has all


def judge(
    requirement: Requirement,
    challenger: Candidate,
    champion: Candidate | None,
    tallies: tuple[ClassTally, ...],
    *,
    anchor: tuple[ClassTally, ...] | None,
    champion_feasible: bool,
    askings: Sequence[Asking],
    now: float,
    settings: PromotionSettings,
    forgotten: tuple[int, int] = (0, 0),
    newest: tuple[ClassTally, ...] = (),
) -> Verdict:
    """The verdict on a challenger that is measured, and proven on the judge set as it is now.

    `tallies`: paired answers by class, of the classes that champion and challenger both know. `anchor`: the
    same against the last champion promoted as better; None where that is the champion itself or there was
    none. `askings`: the target's, oldest first, of the last `settings.period_days`; `now`: seconds since the epoch.
    `forgotten`: images that a person had forgotten, from which the champion alone learnt, and the challenger alone.
    `newest`: of `tallies`, the samples that came since the champion was trained.
    """
    period = this_period(askings, now, settings.period_days)
    alpha = share(period, sum(t.samples for t in tallies), settings.error_budget)
    against = partial(compare, asking=len(period) + 1, alpha=alpha, margin=settings.margin)
    whole = against(tallies)
    tests = compare_classes(tallies, settings.class_margin, whole.alpha) if champion else ()
    newcomers = new_classes(challenger, champion, settings.new_class_recall_min)
    say = partial(Verdict, table=(*(t.row() for t in tests), *(n.row() for n in newcomers)), policy=POLICY)
    broken, unknown = _unmet(requirement, challenger)
    if broken or unknown:
        unmet = "; ".join([*(shortfall.sentence for shortfall in broken), *unknown])
        return say(
            "keep",
            f"the challenger does not meet the constraints: {unmet}",
            feasible=False,
            shortfalls=broken,
        )
    if champion is None:
        first = f"nothing is served yet that takes {requirement.height}x{requirement.width} images"
        return say("promote", f"it meets every constraint{_proof(challenger)}; {first}", better=True)
    if outright := _refused_outright(challenger, champion, requirement.target, forgotten[1]):
        return say(*outright)
    limits = _blind(tests, newcomers, challenger, champion)
    if not champion_feasible:
        meets = f"it meets every constraint{_unjudged(challenger)}, the champion does not"
        return say("promote", f"{meets}. {_cost(whole, tests)}{_elsewhere(challenger)}", better=True)
    old = None if anchor is None else against(anchor)
    say = partial(say, asking=_asking(whole, old, tests, period, now))
    gains = weigh(requirement, challenger, champion, whole.tally, newcomers)
    gains = replace(gains, forgotten=forgotten[0], newest=on_newest(add_up(newest)))
    refusal = _class_refusal(tests, newcomers) or _refusal(whole, old, gains)
    if refusal:
        return say("keep", f"{refusal}.{limits}")
    better = whole.better and (old is None or old.better)
    return say("promote", f"{_praise(whole, old, gains)}.{limits}", better=better)


def _asking(
    whole: Comparison, old: Comparison | None, tests: Sequence[ClassTest], period: Sequence[Asking], now: float
) -> Asking | None:
    """What the error budget remembers of this comparison; None where nothing could be compared."""
    if not whole.tally.samples:
        return None
    shown = (whole.better or whole.no_worse) and (old is None or not old.tally.samples or old.no_worse)
    passed = shown and not any(test.fallen for test in tests)
    return Asking(now, period[0].began if period else now, whole.tally.samples, passed)


def _unmet(requirement: Requirement, challenger: Candidate) -> tuple[tuple[Shortfall, ...], list[str]]:
    """What is known not to hold, and, in words, what is not known."""
    unknown = [f"{key} is asked for, but was not measured" for key in unmeasured(requirement, challenger)]
    broken = shortfalls(requirement, challenger)
    if challenger.adopted and challenger.proof is not None and not _samples(challenger):
        return broken, unknown  # before there are images a person answers for it; the first ones prove it
    if challenger.proof is None:
        return broken, [*unknown, "the judge set as it is now was not asked"]
    return (*broken, *accuracy_shortfalls(requirement, challenger.proof)), unknown


def _refused_outright(
    challenger: Candidate, champion: Candidate, target: str, forgotten: int
) -> tuple[Literal["keep", "ask"], str] | None:
    """What stands against a challenger whatever it answers: forgotten images do not come back, no class is lost."""
    if forgotten:
        return "keep", f"the challenger learnt from {forgotten:,} images that were forgotten, the champion did not"
    dropped = [name for name in champion.classes if name not in challenger.classes]
    return _dropped(dropped, challenger, champion, target) if dropped else None


def _dropped(
    dropped: Sequence[str], challenger: Candidate, champion: Candidate, target: str
) -> tuple[Literal["keep", "ask"], str]:
    """A class that clients are served is not taken from them: where its images have left the data, a person decides."""
    present = {c.name for c in (*(challenger.proof or ()), *(champion.proof or ())) if c.samples}
    if judged := [name for name in dropped if name in present]:
        return "keep", f"the challenger does not know {_names(judged)}, which the champion serves and judge still has"
    return "ask", (
        f"the challenger does not know {_names(dropped)}, which the champion serves: none of its images is left to "
        f"judge by. Where clients need it no longer, `relearn approve {target}` serves the challenger; where they do, "
        f"`relearn refuse {target}` keeps the champion, and its images are to be brought back"
    )


def _class_refusal(tests: Sequence[ClassTest], newcomers: Sequence[NewClass]) -> str:
    below = [n for n in newcomers if n.told and not n.passed]
    if below:
        floor = f"below new_class_recall_min {below[0].floor:g}"
        return f"new: {_names(map(str, below))} {floor}; more samples to train on may help"
    fallen = [
        f"{t.tally.name} (lost {t.tally.champion_only}, won {t.tally.challenger_only} of {t.tally.samples})"
        for t in tests
        if t.fallen
    ]
    if not fallen:
        return ""
    which = "it" if len(fallen) == 1 else "them"
    remedy = f"more images of {which} to train on may help, and a look at their labels"
    return f"worse beyond chance, corrected over the classes, in {_names(fallen)}; {remedy}"


def _refusal(whole: Comparison, old: Comparison | None, gains: Gains) -> str:
    """Why the champion stays, the classes apart; "" where nothing speaks against the challenger."""
    if whole.better:
        return _sacrifice(whole, gains)
    if not whole.tally.samples:  # unless all that the champion knows has gone from the data
        return "" if gains.classes else f"nothing can be compared: {whole}; labelled samples of them must come first"
    if not whole.no_worse:
        return f"not shown to be no worse than the champion: {whole}; {whole.bound()}; {whole.remedy()}"
    if old is not None and old.tally.samples and not old.no_worse:
        last = "not shown to be no worse than the last one promoted as better"
        return f"no worse than the champion, but {last}: {old}; {old.bound()}; {old.remedy()}"
    if not gains:
        nothing = "it brings neither a new class, nor more on the newest images, nor what is preferred"
        return f"no worse than the champion, but {nothing}: {whole}"
    return ""


def _sacrifice(whole: Comparison, gains: Gains) -> str:
    """Better in accuracy where something else is preferred and would be given up: the margin decides.

    Without this, a faster model and a better one within the margin would replace each other for ever.
    """
    if gains.classes or not gains.given_up or whole.lower > whole.margin:
        return ""
    small = "better, but not shown to be so by more than the margin, and what is preferred would be given up"
    return f"{small} ({gains.given_up}): {whole}; {whole.bound()}; with accuracy preferred it would be promoted"


def _praise(whole: Comparison, old: Comparison | None, gains: Gains) -> str:
    if whole.better:
        allowed = f"{whole.alpha:.2g} is allowed at asking {whole.asking} of this period"
        chance = f"p = {whole.p_better:.2g} where {allowed}"
        learned = f", and it brings {gains}" if gains.classes else ""
        below = "" if old is None or old.better else f"; against the last one promoted as better: {old}"
        return f"better than the champion beyond chance: {whole}, {chance}{learned}{below}"
    if not whole.tally.samples:
        return f"all that the champion knows has gone from the data ({whole}), and it brings {gains}"
    return f"no worse than the champion: {whole}; {whole.bound()}; it brings {gains}"


def _blind(
    tests: Sequence[ClassTest], newcomers: Sequence[NewClass], challenger: Candidate, champion: Candidate
) -> str:
    """What could not be told."""
    said = [_ELSEWHERE.format(challenger.adopted)] if challenger.adopted and _samples(challenger) else []
    said += _unanswered(challenger, champion)
    smallest = sorted((t.smallest, t.tally.name) for t in tests if t.smallest is not None)
    if smallest:
        (least, _), (most, name) = smallest[0], smallest[-1]
        span = f"{least * 100:.0f}" if least == most else f"{least * 100:.0f} (class {name}: {most * 100:.0f})"
        said.append(f"a fall of one class would show only from {span} points on")
    if pooled := [name for t in tests for name in t.pool]:
        said.append(f"too small to test apart: {_names(pooled)}")
    if untold := [f"{n.name} ({n.samples} of {FEW} samples)" for n in newcomers if not n.told]:
        said.append(f"new, but too few on judge to tell: {_names(untold)}")
    return f" Limits: {'; '.join(said)}." if said else ""


def _unanswered(challenger: Candidate, champion: Candidate) -> list[str]:
    """That a champion whose artifact has gone is compared on what it answered while it could be asked."""
    if champion.proof is None:
        return []
    answered = {count.name: count.samples for count in champion.proof}
    both = [count for count in challenger.proof or () if count.name in champion.classes]
    missing = sum(max(0, count.samples - answered.get(count.name, 0)) for count in both)
    samples = sum(count.samples for count in both)
    return [f"the champion was never asked about {missing:,} of {samples:,} judge samples"] if missing else []


def _cost(whole: Comparison, tests: Sequence[ClassTest]) -> str:
    worst = [t.tally.name for t in tests if t.fallen]
    falls = f"; worse beyond chance in {_names(worst)}" if worst else ""
    if not whole.tally.samples:
        return f"What that costs is not known: {whole}"
    return f"Accuracy changes by {whole.difference * 100:+.2f} points: {whole}{falls}"


def _elsewhere(challenger: Candidate) -> str:
    return f" Limits: {_ELSEWHERE.format(challenger.adopted)}." if challenger.adopted and _samples(challenger) else ""


def _unjudged(challenger: Candidate) -> str:
    """Accuracy is not asked of an adopted model where there is no image of what it knows."""
    return " that does without images" if challenger.adopted and not _samples(challenger) else ""


def _proof(challenger: Candidate) -> str:
    samples, correct = _samples(challenger), sum(c.correct for c in challenger.proof or ())
    right = f" and is {correct / samples:.2%} right on {samples:,} judge samples" if samples else ""
    if challenger.adopted is None:
        return right
    if not samples:
        word = f"it is proven on nothing, and served on the word of {challenger.adopted}"
        return f"{_unjudged(challenger)}; {word}"
    return f"{right} ({_ELSEWHERE.format(challenger.adopted)})"


def _samples(candidate: Candidate) -> int:
    counts: Sequence[ClassCount] = candidate.proof or ()
    return sum(count.samples for count in counts)


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more
