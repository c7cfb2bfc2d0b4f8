"""The verdict as tables, its sentences, and simulations with fixed seeds."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from policies.budget import DAY
from policies.facts import (
    Asking,
    Candidate,
    ClassCount,
    ClassTally,
    Measurement,
    Requirement,
    Verdict,
    from_dict,
    to_dict,
)
from policies.promotion import judge
from policies.settings import PromotionSettings

ASKED = Requirement(target="edge", accelerator="cpu", height=64, width=64)
SETTINGS = PromotionSettings()
NOW = 1_000 * DAY


def model(
    name: str,
    *,
    classes: Sequence[str] = ("a", "b"),
    latency: float = 5.0,
    megabytes: float = 40.0,
    tune: float = 0.9,
    proof: Sequence[tuple[str, int, int]] | None = (("a", 500, 480), ("b", 500, 480)),
) -> Candidate:
    speed = 1_000 / latency
    measured = Measurement("cpu", 1, 1, 1, 1, latency, latency, latency, speed, 300.0, megabytes, 100)
    counts = None if proof is None else tuple(ClassCount(*count) for count in proof)
    return Candidate(name, name, "net", "s", tuple(classes), megabytes, tune, measured, counts)


def tally(name: str, samples: int, lost: int = 0, won: int = 0) -> ClassTally:
    return ClassTally(name, samples - lost - won, lost, won, 0)


def ask(
    tallies: Sequence[ClassTally] = (),
    *,
    challenger: Candidate | None = None,
    champion: Candidate | None = None,
    first: bool = False,
    anchor: Sequence[ClassTally] | None = None,
    feasible: bool = True,
    askings: Sequence[Asking] = (),
    settings: PromotionSettings = SETTINGS,
    forgotten: tuple[int, int] = (0, 0),
    newest: Sequence[ClassTally] = (),
    **limits: Any,
) -> Verdict:
    return judge(
        dataclasses.replace(ASKED, **limits),
        challenger or model("new"),
        None if first else champion or model("old"),
        tuple(tallies),
        anchor=None if anchor is None else tuple(anchor),
        champion_feasible=feasible,
        askings=askings,
        now=NOW,
        settings=settings,
        forgotten=forgotten,
        newest=tuple(newest),
    )


def past(number: int, *, passed: bool = False, samples: int = 1_000) -> list[Asking]:
    """Askings of the period under way, the last of them a day ago."""
    return [Asking(NOW - DAY - number + k, NOW - DAY - number, samples, passed) for k in range(number)]


def halves(samples: int, lost: int, won: int) -> list[ClassTally]:
    """The samples in two classes, so that neither falls alone."""
    return [
        tally("a", samples // 2, lost - lost // 2, won - won // 2),
        tally("b", samples - samples // 2, lost // 2, won // 2),
    ]


def learned(samples: int, correct: int) -> Candidate:
    """A challenger that knows a third class."""
    return model("new", classes=("a", "b", "c"), proof=(("a", 500, 480), ("b", 500, 480), ("c", samples, correct)))


LEARNED = learned(20, 18)

CASES: list[tuple[str, dict[str, Any], str, bool, str]] = [
    # what, arguments, answer, better, said
    ("first", {"first": True}, "promote", True, "is 96.00% right on 1,000 judge samples; nothing is served yet"),
    ("first, too large", {"first": True, "artifact_max_mb": 20.0}, "keep", False, "above artifact_max_mb 20.0"),
    ("first, too poor", {"first": True, "accuracy_min": 0.97}, "keep", False, "below accuracy_min 0.97"),
    ("too slow", {"latency_p95_ms": 4.0, "tallies": halves(1_000, 0, 60)}, "keep", False, "p95 latency 5 ms"),
    ("unproven", {"challenger": model("new", proof=None)}, "keep", False, "the judge set as it is now was not asked"),
    ("better", {"tallies": halves(1_000, 10, 40)}, "promote", True, "(won 40, lost 10)"),
    ("better within chance", {"tallies": halves(1_000, 10, 14)}, "promote", False, "0.4 points more accuracy"),
    ("equal on judge, no better on tune", {"tallies": halves(1_000, 8, 8)}, "keep", False, "brings neither"),
    (
        "equal on judge, better on tune",
        {"tallies": halves(1_000, 8, 8), "challenger": model("new", tune=0.91)},
        "promote",
        False,
        "more accuracy on tune (91.00% instead of 90.00%",
    ),
    ("slightly worse", {"tallies": halves(1_000, 12, 8)}, "keep", False, "brings neither"),
    ("slightly worse, new class", {"tallies": halves(1_000, 12, 8), "challenger": LEARNED}, "promote", False, "c (1"),
    ("worse", {"tallies": halves(1_000, 36, 15), "challenger": LEARNED}, "keep", False, "the estimate itself is below"),
    ("too few to tell", {"tallies": halves(60, 1, 2), "challenger": LEARNED}, "keep", False, "samples would show"),
    ("no samples", {"tallies": [], "challenger": model("new", tune=0.99)}, "keep", False, "nothing can be compared"),
    (
        "new class below the floor",
        {"tallies": halves(1_000, 10, 40), "challenger": learned(20, 9)},
        "keep",
        False,
        "new: c (9 of 20 right) below new_class_recall_min 0.5",
    ),
    (
        "new class too small to tell, nothing else",
        {"tallies": halves(1_000, 8, 8), "challenger": learned(2, 2)},
        "keep",
        False,
        "new, but too few on judge to tell: c (2 of 3 samples)",
    ),
    (
        "one class falls",
        {"tallies": [tally("a", 500, 25, 2), tally("b", 500, 0, 60)]},
        "keep",
        False,
        "worse beyond chance, corrected over the classes, in a (lost 25, won 2 of 500)",
    ),
    (
        "a class is dropped",
        {"tallies": [tally("a", 500, 0, 60)], "challenger": model("new", classes=("a",))},
        "keep",
        False,
        "does not know b",
    ),
    (
        "a class whose images are all gone is a person's to drop",
        {
            "tallies": [tally("a", 500, 0, 60)],
            "challenger": model("new", classes=("a",), proof=(("a", 500, 490),)),
            "champion": model("old", proof=(("a", 500, 430),)),
        },
        "ask",
        False,
        "does not know b, which the champion serves: none of its images is left to judge by. Where clients need it no "
        "longer, `relearn approve edge` serves",
    ),
    (
        "champion infeasible",
        {"tallies": halves(1_000, 30, 10), "feasible": False, "artifact_max_mb": 40.0},
        "promote",
        True,
        "Accuracy changes by -2.00 points: 97.00% against 99.00%",
    ),
    (
        "both infeasible",
        {"tallies": halves(1_000, 0, 60), "feasible": False, "artifact_max_mb": 20.0},
        "keep",
        False,
        "does not meet the constraints",
    ),
    (
        "faster, as preferred",
        {"tallies": halves(1_000, 9, 8), "challenger": model("new", latency=4.0), "prefer": "latency_p95_ms"},
        "promote",
        False,
        "latency_p95_ms 4 ms instead of 5",
    ),
    (
        "faster within the noise of measuring",
        {"tallies": halves(1_000, 8, 9), "challenger": model("new", latency=4.9), "prefer": "latency_p95_ms"},
        "keep",
        False,
        "brings neither",
    ),
    (
        "faster, which nobody prefers",
        {"tallies": halves(1_000, 8, 8), "challenger": model("new", latency=1.0)},
        "keep",
        False,
        "brings neither",
    ),
    (
        "better on the newest images, where another thing is preferred",
        {"tallies": halves(1_000, 20, 28), "newest": [tally("a", 100, 3, 11)], "prefer": "latency_p95_ms"},
        "promote",
        False,
        "it brings 8.0 points more accuracy on the 100 judge samples that came since the champion was trained",
    ),
    (
        "the champion cannot be asked any more",
        {"tallies": halves(800, 5, 60), "champion": model("old", proof=[("a", 400, 380), ("b", 400, 380)])},
        "promote",
        True,
        "Limits: the champion was never asked about 200 of 1,000 judge samples; ",
    ),
    (
        "more throughput",
        {"tallies": halves(1_000, 8, 8), "challenger": model("new", latency=4.0), "prefer": "throughput"},
        "promote",
        False,
        "throughput 250 images/s instead of 200",
    ),
    (
        "better within the margin, slower where speed is preferred",
        {"tallies": halves(5_000, 20, 60), "challenger": model("new", latency=6.0), "prefer": "latency_p95_ms"},
        "keep",
        False,
        "what is preferred would be given up",
    ),
    (
        "better by more than the margin, slower where speed is preferred",
        {"tallies": halves(5_000, 20, 300), "challenger": model("new", latency=6.0), "prefer": "latency_p95_ms"},
        "promote",
        True,
        "better than the champion beyond chance",
    ),
    (
        "no worse than the champion, worse than the anchor",
        {"tallies": halves(1_000, 5, 8), "anchor": halves(1_000, 40, 15)},
        "keep",
        False,
        "not shown to be no worse than the last one promoted as better",
    ),
    (
        "no worse than either",
        {"tallies": halves(1_000, 5, 8), "anchor": halves(1_000, 9, 8)},
        "promote",
        False,
        "no worse than the champion",
    ),
    (
        "better than the champion, not than the anchor, which stays",
        {"tallies": halves(1_000, 10, 40), "anchor": halves(1_000, 9, 8)},
        "promote",
        False,
        "against the last one promoted as better: 99.1",
    ),
    (
        "better than both",
        {"tallies": halves(1_000, 10, 40), "anchor": halves(1_000, 10, 40)},
        "promote",
        True,
        "beyond chance",
    ),
    (
        "all that the champion knows is gone from the data",
        {
            "tallies": [],
            "challenger": model("new", classes=("c",), proof=(("c", 30, 29),)),
            "champion": model("old", proof=()),
        },
        "ask",
        False,
        "does not know a, b, which the champion serves",
    ),
    (
        "nothing of what the champion knows is left on judge",
        {
            "tallies": [],
            "challenger": model("new", classes=("a", "b", "c"), proof=(("c", 30, 29),)),
            "champion": model("old", proof=()),
        },
        "promote",
        False,
        "the new class c (29 of 30 right)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "answer", "better", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_verdict(arguments: dict[str, Any], answer: str, better: bool, said: str) -> None:
    verdict = ask(**arguments)
    assert (verdict.answer, verdict.better) == (answer, better), verdict.reason
    assert said in verdict.reason
    assert from_dict(Verdict, json.loads(json.dumps(to_dict(verdict)))).reason == verdict.reason


def test_an_infeasible_challenger_carries_each_shortfall() -> None:
    verdict = ask(latency_p95_ms=4.0, artifact_max_mb=20.0, accuracy_min=0.99, tallies=halves(1_000, 0, 60))
    assert not verdict.feasible
    assert [s.constraint for s in verdict.shortfalls] == ["artifact_max_mb", "latency_p95_ms", "accuracy_min"]


def test_what_is_asked_but_not_measured_is_not_waved_through() -> None:
    challenger = dataclasses.replace(model("new"), measurement=None)
    verdict = ask(halves(1_000, 0, 60), challenger=challenger, latency_p95_ms=50.0)
    assert verdict.answer == "keep" and not verdict.feasible
    assert "latency_p95_ms is asked for, but was not measured" in verdict.reason


def test_the_table_has_every_class() -> None:
    verdict = ask([tally("a", 500, 5, 3), tally("b", 4)], challenger=LEARNED)
    rows = {row["class"]: row for row in verdict.table}
    assert list(rows) == ["a", "b", "1 small class, pooled", "c"]
    assert rows["a"]["lost"] == 5 and rows["a"]["won"] == 3 and 0 < rows["a"]["smallest_fall"] < 0.2
    assert rows["b"]["p_fall"] is None and rows["b"]["smallest_fall"] is None
    assert rows["c"]["new"] and rows["c"]["challenger_correct"] == 18
    assert len({frozenset(row) for row in verdict.table}) == 1  # the same keys in each


def test_later_askings_need_more() -> None:
    evidence = halves(1_000, 10, 26)
    assert ask(evidence).better
    assert not ask(evidence, askings=past(50)).better
    assert ask(evidence, askings=past(50, passed=True)).better  # what was passed leaves its share to the next
    over = ask(evidence, askings=past(50), settings=dataclasses.replace(SETTINGS, period_days=0.5))
    assert over.better and "asking 1 of this period" in over.reason


def test_the_verdict_remembers_the_asking() -> None:
    before = past(3)
    asking = ask(halves(2_000, 10, 10), askings=before).asking
    assert asking == Asking(NOW, before[0].began, 2_000, passed=True)  # though it brings nothing
    assert ask(halves(2_000, 10, 10)).asking == Asking(NOW, NOW, 2_000, passed=True)
    fallen = ask([tally("a", 500, 40, 0), tally("b", 1_500, 0, 40)]).asking
    below_anchor = ask(halves(2_000, 10, 10), anchor=halves(2_000, 90, 10)).asking
    assert fallen and below_anchor and not fallen.passed and not below_anchor.passed
    unmet = ask(halves(2_000, 10, 10), latency_p95_ms=1.0)
    assert (unmet.asking, ask(first=True).asking, ask(feasible=False).asking) == (None, None, None)


def test_two_models_never_replace_each_other_in_turn() -> None:
    samples = 2_000
    counts = (0, 3, 10, 40, 120)
    for lost, won, (mine, theirs), prefer in itertools.product(
        counts, counts, [(5.0, 5.0), (4.0, 5.0), (5.0, 4.0)], ["accuracy", "latency_p95_ms"]
    ):
        one, other = model("one", latency=mine, tune=0.91), model("other", latency=theirs)
        forth = ask(halves(samples, lost, won), challenger=one, champion=other, prefer=prefer)
        back = ask(halves(samples, won, lost), challenger=other, champion=one, prefer=prefer)
        assert not (forth.answer == "promote" and back.answer == "promote"), (lost, won, mine, theirs, prefer)


def test_a_training_without_forgotten_images_is_something_to_bring_and_never_taken_back() -> None:
    same = halves(2_000, 10, 10)
    assert ask(same).answer == "keep"
    forth = ask(same, forgotten=(3, 0))
    assert (forth.answer, "it brings a training without 3 images that you had forgotten" in forth.reason) == (
        "promote",
        True,
    )
    back = ask(halves(2_000, 10, 200), challenger=model("old", latency=1.0), forgotten=(0, 3))
    assert (back.answer, "learnt from 3 images that were forgotten" in back.reason) == ("keep", True)
    assert ask(halves(2_000, 200, 10), forgotten=(3, 0)).answer == "keep"  # worse is worse
    assert ask(same, feasible=False, forgotten=(0, 3)).answer == "keep"  # nor where constraints are broken
    assert ask(same, feasible=False).answer == "promote"


# ------------------------------------------------------------------------------------------------ simulations


def draw(rng: random.Random, samples: int, classes: int, won: float, lost: Sequence[float]) -> list[ClassTally]:
    """Paired answers where the challenger wins and loses samples at these rates, `lost` by class."""
    tallies = []
    for c in range(classes):
        draws = [rng.random() for _ in range(samples // classes)]
        wins = sum(d < won for d in draws)
        losses = sum(won <= d < won + lost[c] for d in draws)
        tallies.append(tally(str(c), len(draws), losses, wins))
    return tallies


def promoted(seed: int, runs: int, *, lost: Sequence[float], won: float, samples: int = 1_000) -> float:
    rng = random.Random(seed)
    names = [str(c) for c in range(len(lost))]
    newer = model("new", classes=[*names, "n"], proof=(("n", 20, 20),))  # which always brings something
    older = model("old", classes=names)
    verdicts = [ask(draw(rng, samples, len(lost), won, lost), challenger=newer, champion=older) for _ in range(runs)]
    return sum(v.answer == "promote" for v in verdicts) / runs


def test_equal_challengers_with_something_to_bring_are_promoted() -> None:
    assert promoted(1, 200, won=0.01, lost=[0.01] * 5) >= 0.9


def test_worse_by_the_margin_is_promoted_no_more_often_than_the_asking_allows() -> None:
    assert promoted(2, 300, won=0.01, lost=[0.03] * 5) <= 0.045  # 0.022 allowed, 3 sigma


def test_worse_by_five_points_is_not_promoted() -> None:
    assert promoted(3, 200, won=0.01, lost=[0.06] * 5) == 0.0


def test_worse_in_one_class_by_what_could_be_shown_is_not_promoted() -> None:
    """200 samples a class: the verdict says what it could show; a class that falls by so much is refused."""
    rng = random.Random(4)
    rows = ask(draw(rng, 1_000, 5, 0.01, [0.01] * 5), champion=model("old", classes="01234")).table
    smallest = max(row["smallest_fall"] for row in rows if not row["new"])
    assert 0.05 < smallest < 0.2
    assert promoted(5, 200, won=0.02, lost=[0.0, 0.0, 0.0, 0.0, 0.02 + smallest]) <= 0.06


def test_better_challengers_are_promoted_at_the_first_asking() -> None:
    """Better by 1.5 times what a single 5% test finds with 80% power: 1.5 (1.645 + 0.842) sqrt(.03 / 1000)."""
    assert promoted(6, 200, won=0.025, lost=[0.005] * 5) >= 0.9


def test_twenty_small_steps_down_do_not_add_up() -> None:
    """Challengers each one point worse than what is served, on a judge set that grows; the truth is known."""
    rng = random.Random(8)
    for _ in range(6):
        served = best = 0.95
        askings: list[Asking] = []
        for asking in range(20):
            samples = 1_000 + 200 * asking
            truth = served - 0.01
            drawn = [draw(rng, samples, 5, 0.01, [0.01 + level - truth] * 5) for level in (served, best)]
            newer = model("new", classes=[*"01234", "n"], proof=(("n", 20, 20),))
            verdict = ask(
                drawn[0],
                challenger=newer,
                champion=model("old", classes="01234"),
                anchor=None if served == best else drawn[1],
                askings=askings,
            )
            askings += [verdict.asking] if verdict.asking else []
            served = truth if verdict.answer == "promote" else served
        assert served >= best - SETTINGS.margin - 1e-9
