"""Who is promoted in simulated histories: the policy beside three rules that people use.

    make bench NAME=promotions          (HISTORIES=100 make bench …: fewer a scenario)

A history is a line of twenty challengers on a judge set that grows, each compared with what is served then. The truth
of each model is known: whether it answers a sample rightly is drawn from its recall of the class and from how hard the
sample is, which is the same for all models (a threshold model with one common factor), so that any two models are wrong
on much the same samples. Judge sets of 100 to 5,000 samples, 3 to 100 classes, balanced or with Zipf's weights, mean
recalls of 80 to 98% and correlations of .9 to .99 are drawn anew for each history.

Each challenger has something to bring (it is faster, and speed is what is preferred), the worst case for a rule that
must refuse the worse ones; better ones are judged with accuracy preferred. The rules:

- `policy`: policies/promotion.py as the daemon asks it, its period as long as the history;
- `always`: each challenger is promoted;
- `higher`: it is where its accuracy on the judge set is higher;
- `mcnemar`: it is where the exact paired test finds it better at 5%.

What is counted, each beside the same of `mcnemar`:

- `worse_histories`: of the worst scenario, the share of histories with any promotion of a challenger that is truly
  worse than the best that ever was served, by the margin or more, or than what is served in one class, by more than the
  smallest fall that the verdict told;
- `better_promoted`: challengers better by 1.5 times what one one-sided exact 5% test finds with 80% power, promoted at
  the first asking;
- `equal_promoted`: equal ones promoted, of all twenty askings, where one one-sided 5% test of no-worse has 99% power
  (3.97 standard errors within the margin) on that judge set;
- `creep_points`: by how many points what is served in the end lies below the best that ever was, after twenty
  challengers each a point worse: the 95th percentile of the histories.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr, ndtri

from benchmarks.results import publish
from policies.budget import DAY
from policies.facts import (
    METHOD,
    Asking,
    Candidate,
    ClassCount,
    ClassTally,
    Measurement,
    Preference,
    Requirement,
    Verdict,
)
from policies.falls import compare_classes
from policies.promotion import judge
from policies.settings import PromotionSettings
from policies.statistics import mcnemar, normal_quantile, paired_score, smallest_fall

CHALLENGERS = 20
MARGIN = PromotionSettings().margin
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(61)
RULES = ("policy", "always", "higher", "mcnemar")
Bits = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class World:
    """What a history happens in."""

    samples: int  # of the judge set at the first asking
    most: int  # at the last
    weights: NDArray[np.float64]  # of the classes
    recall: NDArray[np.float64]  # by class, of the first champion
    alike: float  # correlation of two models' answers, on the scale of the thresholds
    fall: float  # of one class, where one falls


def draw_world(rng: np.random.Generator) -> World:
    classes = int(rng.choice([3, 10, 30, 100]))
    weights = np.ones(classes) if rng.random() < 0.5 else 1.0 / np.arange(1, classes + 1)
    mean = rng.choice([0.8, 0.9, 0.95, 0.98])
    recall = ndtr(ndtri(mean) + rng.normal(0, 0.2, classes))
    samples = int(rng.choice([100, 200, 360, 500, 1_000, 2_000, 5_000]))
    return World(
        samples=samples,
        most=min(samples * int(rng.choice([1, 2, 4])), 5_000),
        weights=weights / weights.sum(),
        recall=recall,
        alike=float(rng.choice([0.9, 0.97, 0.99])),
        fall=float(rng.choice([0.1, 0.2, 0.3, 0.5])),
    )


def exchange(one: float, other: float, alike: float) -> float:
    """The share of samples that a model of recall `one` answers rightly and one of recall `other` does not."""
    common, own = np.sqrt(alike) * NODES, np.sqrt(1 - alike)
    right, wrong = ndtr((ndtri(one) + common) / own), ndtr(-(ndtri(other) + common) / own)
    return float((WEIGHTS * right * wrong).sum() / WEIGHTS.sum())


class Answers:
    """The judge samples of a history, and which of them each model answers rightly."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self.world, self.rng = world, rng
        self.classes = rng.choice(len(world.weights), world.most, p=world.weights)
        self.hard = rng.normal(0, np.sqrt(world.alike), world.most)

    def of(self, recall: NDArray[np.float64]) -> Bits:
        noise = self.rng.normal(0, np.sqrt(1 - self.world.alike), len(self.hard))
        right: Bits = ndtri(recall)[self.classes] + self.hard + noise > 0
        return right


@dataclass(frozen=True, slots=True)
class Model:
    number: int
    recall: NDArray[np.float64]
    right: Bits
    classes: int  # that it knows, the first ones


Step = Callable[[World, NDArray[np.float64], int], NDArray[np.float64]]


def equal(world: World, served: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    return served


def shifted(points: float, world: World, served: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """Better (worse, below 0) by so many points in all, each class by its share of what is wrong (right) in it."""
    room = 1 - served if points > 0 else served
    moved = served + points / 100 * room / (world.weights @ room)
    return np.clip(moved, 1e-4, 1 - 1e-4)


def one_class(world: World, served: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """Worse in one class alone, another with each challenger."""
    fallen = served.copy()
    which = number % len(served)
    fallen[which] = max(fallen[which] - world.fall, 0.01)
    return fallen


def _lost_to(world: World, other: NDArray[np.float64]) -> float:
    """The share of samples that the first champion alone answers rightly."""
    triples = zip(world.weights, world.recall, other, strict=True)
    return sum(float(weight) * exchange(one, two, world.alike) for weight, one, two in triples)


def clearly_better(world: World, served: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """Better by 1.5 times what one test finds with 80% power on the first judge set; as far as there is room."""
    points = 1.0
    for _ in range(8):
        better = shifted(points, world, served, number)
        found = smallest_fall(world.samples, min(_lost_to(world, better), 0.49), 0.05, 0.8)
        if found is None:
            return served
        points = 150 * found
    return shifted(points, world, served, number)


SCENARIOS: dict[str, Step] = {
    "equal": equal,
    "new class": equal,
    "worse by 1": partial(shifted, -1.0),
    "worse by 2": partial(shifted, -2.0),
    "worse by 5": partial(shifted, -5.0),
    "worse in a class": one_class,
    "better by 1": partial(shifted, 1.0),
    "better by 2": partial(shifted, 2.0),
    "better by 5": partial(shifted, 5.0),
    "clearly better": clearly_better,
}
BETTER = ("better by 1", "better by 2", "better by 5", "clearly better")


@dataclass(slots=True)
class History:
    """What happened so far, and what of it was wrong."""

    served: Model
    anchor: Model
    best: float  # true accuracy of the best that ever was served
    askings: list[Asking]
    promoted: int = 0
    wrong: int = 0


def play(scenario: str, rule: str, seed: int) -> dict[str, Any]:
    """One history; the same seed gives every rule the same world and the same first challenger."""
    rng = np.random.default_rng([list(SCENARIOS).index(scenario), seed])
    world = draw_world(rng)
    answers = Answers(world, rng)
    first = Model(0, world.recall, answers.of(world.recall), len(world.weights) - (scenario == "new class"))
    past = History(first, first, _truth(world, first), [])
    row: dict[str, Any] = {"first": 0, "powered": 0, "powered_promoted": 0}
    needed = _samples_for_power(_discordance(world)) if scenario in ("equal", "new class") else world.most + 1
    number_of_challengers = 1 if scenario == "clearly better" else CHALLENGERS
    for number in range(1, number_of_challengers + 1):
        recall = SCENARIOS[scenario](world, past.served.recall, number)
        challenger = Model(number, recall, answers.of(recall), len(world.weights))
        samples = world.samples + (world.most - world.samples) * (number - 1) // (CHALLENGERS - 1)
        promoted = _meet(past, challenger, answers.classes[:samples], world, rule, scenario in BETTER)
        row["first"] += promoted and number == 1
        row["powered"] += samples >= needed
        row["powered_promoted"] += promoted and samples >= needed
    return {
        "scenario": scenario,
        "rule": rule,
        "seed": seed,
        "samples": world.samples,
        "most": world.most,
        "classes": len(world.weights),
        "balanced": int(world.weights[0] == world.weights[-1]),
        "alike": world.alike,
        "accuracy": round(float(world.weights @ world.recall), 4),
        "promoted": past.promoted,
        "wrong": past.wrong,
        **{key: int(value) for key, value in row.items()},
        "room": int(scenario != "clearly better" or _has_room(world)),
        "creep_points": round(100 * (past.best - _truth(world, past.served)), 3),
    }


def _meet(
    past: History, challenger: Model, seen: NDArray[np.int64], world: World, rule: str, accuracy_first: bool
) -> bool:
    """The rule's answer to a challenger, and what follows from it."""
    served, samples = past.served, len(seen)
    tallies = _tallies(challenger, served, seen)
    if rule == "policy":
        verdict = _ask(past, challenger, seen, tallies, accuracy_first)
        past.askings += [verdict.asking] if verdict.asking else []
        accepted, better, table = verdict.answer == "promote", verdict.better, verdict.table
    else:
        lost = int((served.right[:samples] & ~challenger.right[:samples]).sum())
        won = int((challenger.right[:samples] & ~served.right[:samples]).sum())
        accepted = {"always": True, "higher": won > lost, "mcnemar": mcnemar(won, lost) <= 0.05}[rule]
        better, table = False, _told(tallies) if accepted else ()
    if accepted:
        truth = _truth(world, challenger)
        worse = past.best - truth >= MARGIN - 1e-9 or _fell(challenger, served, seen, table)
        past.promoted, past.wrong = past.promoted + 1, past.wrong + worse
        past.served, past.best = challenger, max(past.best, truth)
        past.anchor = challenger if better else past.anchor
    return bool(accepted)


def _ask(
    past: History,
    challenger: Model,
    seen: NDArray[np.int64],
    tallies: tuple[ClassTally, ...],
    accuracy_first: bool,
) -> Verdict:
    prefer: Preference = "accuracy" if accuracy_first else "latency_p95_ms"
    anchored = past.anchor.number == past.served.number
    return judge(
        Requirement("line", "cpu", 64, 64, prefer=prefer),
        _candidate(challenger, seen),
        _candidate(past.served, seen),
        tallies,
        anchor=None if anchored else _tallies(challenger, past.anchor, seen),
        champion_feasible=True,
        askings=past.askings,
        now=challenger.number * DAY,
        settings=PromotionSettings(),
    )


def _candidate(model: Model, seen: NDArray[np.int64]) -> Candidate:
    names = tuple(str(c) for c in range(model.classes))
    latency = 100.0 * 0.9**model.number
    speed = Measurement("cpu", 1, 1, 1, METHOD, latency, latency, latency, 1e3 / latency, 100.0, 10.0, 100)
    right = np.bincount(seen[model.right[: len(seen)]], minlength=len(names))
    counts = zip(names, np.bincount(seen, minlength=len(names)), right, strict=False)
    proof = tuple(ClassCount(name, int(number), int(correct)) for name, number, correct in counts)
    return Candidate(f"m{model.number}", "m", "net", "s", names, 10.0, 0.9, speed, proof)


def _tallies(challenger: Model, other: Model, seen: NDArray[np.int64]) -> tuple[ClassTally, ...]:
    old, new = other.right[: len(seen)], challenger.right[: len(seen)]
    cells = np.bincount(seen * 4 + 2 * old + new, minlength=4 * challenger.classes).reshape(-1, 4)
    known = min(challenger.classes, other.classes)
    return tuple(
        ClassTally(str(c), int(both), int(lost), int(won), int(neither))
        for c, (neither, won, lost, both) in enumerate(cells[:known])
    )


def _told(tallies: Sequence[ClassTally]) -> tuple[Mapping[str, Any], ...]:
    """What one verdict at 5% would have told of the classes, for the rules that tell nothing."""
    return tuple(test.row() for test in compare_classes(tallies, PromotionSettings().class_margin, 0.05))


def _truth(world: World, model: Model) -> float:
    return float(world.weights @ model.recall)


def _fell(challenger: Model, served: Model, seen: NDArray[np.int64], table: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a class, or the pool of the small ones, is truly worse by more than the verdict said it could show."""
    counts = np.bincount(seen, minlength=len(served.recall))
    for row in table:
        if row["smallest_fall"] is not None:
            among = [int(name) for name in row["pool"] or [row["class"]]]
            fall = np.average(served.recall[among] - challenger.recall[among], weights=counts[among])
            if fall > row["smallest_fall"]:
                return True
    return False


def _discordance(world: World) -> float:
    """The share of samples that one of two equal models answers rightly, and the other not."""
    pairs = zip(world.weights, world.recall, strict=True)
    return 2 * sum(float(weight) * exchange(recall, recall, world.alike) for weight, recall in pairs)


def _samples_for_power(discordance: float) -> int:
    """The fewest judge samples on which a one-sided 5% test of no-worse passes 99 of 100 equal challengers."""
    return _search(float(f"{discordance:.2g}"))


@cache
def _search(discordance: float) -> int:
    low, high = 100, 100_000
    while high - low > low // 50:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, discordance) >= 0.99 else (middle, high)
    return high


def _power(samples: int, discordance: float) -> float:
    """By enumeration: for each number of discordant pairs, the most of them that may be lost."""
    z = normal_quantile(0.95)
    pairs = np.arange(int(stats.binom.ppf(1 - 1e-6, samples, discordance)) + 1)
    lost, bearable = -1, []
    for number in pairs.tolist():
        while lost < number and paired_score(number - lost - 1, lost + 1, samples, -MARGIN) >= z:
            lost += 1
        while lost >= 0 and paired_score(number - lost, lost, samples, -MARGIN) < z:
            lost -= 1
        bearable.append(lost)
    return float((stats.binom.pmf(pairs, samples, discordance) * stats.binom.cdf(bearable, pairs, 0.5)).sum())


def _has_room(world: World) -> bool:
    gained = float(world.weights @ (clearly_better(world, world.recall, 1) - world.recall))
    lost = _lost_to(world, clearly_better(world, world.recall, 1))
    found = smallest_fall(world.samples, min(lost, 0.49), 0.05, 0.8)
    return found is not None and gained >= 1.5 * found - 1e-3


def main() -> None:
    number = int(os.environ.get("HISTORIES", "2000"))
    orders = [(s, rule, seed) for s in SCENARIOS for rule in RULES for seed in range(number)]
    with ProcessPoolExecutor() as pool:
        rows = list(pool.map(_play, orders, chunksize=50))
    publish("promotions", rows, figures(rows), table=summary(rows))


def _play(order: tuple[str, str, int]) -> dict[str, Any]:
    return play(*order)


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line a scenario and rule."""
    return [
        {
            "scenario": scenario,
            "rule": rule,
            "histories": len(mine),
            "promoted": _mean([row["promoted"] for row in mine]) / (1 if scenario == "clearly better" else CHALLENGERS),
            "promoted_first": _mean([row["first"] for row in mine]),
            "wrong_histories": _mean([row["wrong"] > 0 for row in mine]),
            "creep_median": float(np.median([row["creep_points"] for row in mine])),
            "creep_95": float(np.quantile([row["creep_points"] for row in mine], 0.95)),
        }
        for scenario in SCENARIOS
        for rule in RULES
        if (mine := _of(rows, scenario, rule))
    ]


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The goals' figures, and the same of McNemar's test at 5%."""
    found = {rule: _figures(rows, rule) for rule in RULES}
    return {**found["policy"], **{rule: found[rule] for rule in RULES if rule != "policy"}}


def _figures(rows: Sequence[Mapping[str, Any]], rule: str) -> dict[str, float]:
    better = [row["first"] for row in _of(rows, "clearly better", rule) if row["room"]]
    powered = [row for name in ("equal", "new class") for row in _of(rows, name, rule)]
    creep = [row["creep_points"] for row in _of(rows, "worse by 1", rule)]
    told = {
        "worse_histories": max(_mean([row["wrong"] > 0 for row in _of(rows, name, rule)]) for name in SCENARIOS),
        "better_promoted": _mean(better),
        "equal_promoted": sum(row["powered_promoted"] for row in powered) / sum(row["powered"] for row in powered),
        "creep_points": float(np.quantile(creep, 0.95)),
    }
    return {key: round(value, 4) for key, value in told.items()}


def _of(rows: Sequence[Mapping[str, Any]], scenario: str, rule: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["scenario"] == scenario and row["rule"] == rule]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


if __name__ == "__main__":
    main()
