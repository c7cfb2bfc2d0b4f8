"""What the policies say of a model that was trained elsewhere: its cycle, its verdict, its proof when images come."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from policies.combine import decide
from policies.cycle_facts import CycleFacts
from policies.evidence import Evidence
from policies.facts import Candidate, ClassCount, ClassTally, Measurement, Requirement, Verdict
from policies.next_step import next_step
from policies.promotion import judge
from policies.settings import PoliciesSettings, PromotionSettings
from policies.steps import Build, Finish, Judge, Promote, Prove, Step

FP32, OPENVINO = "onnxruntime:fp32", "openvino:fp32"
ASKED = Requirement("edge", "cpu", 32, 32, artifact_max_mb=20.0, latency_p95_ms=5.0, accuracy_min=0.9)
MEASURED = Measurement("cpu", 1, 1, 1, 1, 1.0, 2.0, 3.0, 500.0, 100.0, 10.0, 100)
SLOW = dataclasses.replace(MEASURED, latency_p95_ms=9.0)
THEIRS = Candidate("theirs", "m", "adopted:m.onnx", "nothing", ("a", "b"), 10.0, None, MEASURED, (), adopted="ann")
QUICK = dataclasses.replace(THEIRS, artifact="quick", variant=OPENVINO, artifact_mb=9.0)
OURS = Candidate("old", "o", "net", "s", ("a", "b"), 10.0, 0.9, MEASURED, (ClassCount("a", 50, 49),))
ADOPT = CycleFacts("adopt", ASKED, "s", ("large", "small"), (), variants=(FP32, OPENVINO), fresh=frozenset({"m"}))
SERVED: dict[str, Any] = {"champion": "old", "champion_feasible": True}
PROOF = CycleFacts("proof", ASKED, "s", ("large",), (), champion="theirs", champion_feasible=True)
GOOD, BAD = (ClassCount("a", 20, 19), ClassCount("b", 20, 19)), (ClassCount("a", 20, 9),)
KEEP, PROMOTE = Verdict("keep", "it is worse"), Verdict("promote", "it is good")


def facts(base: CycleFacts, *candidates: Candidate, **known: Any) -> CycleFacts:
    return dataclasses.replace(base, candidates=candidates, **known)


@pytest.mark.parametrize(
    ("known", "step"),
    [
        (facts(ADOPT, unbuilt=(("m", FP32), ("m", OPENVINO))), Build("m", FP32)),
        (facts(ADOPT, THEIRS, QUICK), Judge("quick")),  # of equal ones the smaller
        (facts(ADOPT, THEIRS, verdicts={"theirs": PROMOTE}), Promote("theirs")),
        (facts(ADOPT, THEIRS, verdicts={"theirs": PROMOTE}, promoted="theirs"), Finish("promoted", "it is good")),
        (facts(ADOPT, THEIRS, OURS, **SERVED), Judge("theirs")),  # the champion is no candidate of this cycle
        (facts(ADOPT, THEIRS, OURS, rivals=("old",), **SERVED), Prove("old", measure=False)),
        (facts(ADOPT, THEIRS, OURS, verdicts={"theirs": KEEP}, **SERVED), Finish("kept", "it is worse")),
        (facts(ADOPT, THEIRS, verdicts={"theirs": KEEP}), Finish("violated", "it is worse")),
    ],
    ids=["build", "judge", "promote", "done", "a challenger", "the rival first", "kept", "alone, and refused"],
)
def test_it_goes_the_way_of_every_candidate(known: CycleFacts, step: Step) -> None:
    assert next_step(known) == step


@pytest.mark.parametrize(
    ("known", "outcome", "words"),
    [
        (facts(ADOPT, dataclasses.replace(THEIRS, measurement=SLOW)), "violated", "p95 latency 9 ms is above"),
        (facts(ADOPT, dataclasses.replace(THEIRS, artifact_mb=50.0), OURS, **SERVED), "kept", "artifact 50.0 MB"),
        (facts(ADOPT, refused={f"build m {FP32}": "no such operator"}), "failed", f"build m {FP32}, no such operator"),
        (facts(ADOPT, variants=()), "failed", "nothing of build.engines runs on 'cpu'"),
        (facts(ADOPT), "failed", "its folder is gone"),
    ],
)
def test_where_it_cannot_be_served_nothing_is_trained_in_its_stead(known: CycleFacts, outcome: str, words: str) -> None:
    step = next_step(known)
    assert isinstance(step, Finish)
    assert (step.outcome, words in step.reason) == (outcome, True), step


@pytest.mark.parametrize(
    ("known", "step"),
    [
        (facts(PROOF, THEIRS, rivals=("theirs",)), Prove("theirs", measure=False)),
        (
            facts(PROOF, dataclasses.replace(THEIRS, proof=GOOD)),
            Finish("kept", "the adopted champion is 95.00% right on 40 judge samples"),
        ),
        (
            facts(PROOF, dataclasses.replace(THEIRS, proof=BAD), champion_feasible=False),
            Finish(
                "violated",
                "the adopted champion is 45.00% right on 20 judge samples, and does not meet the constraints: accuracy "
                "45.00% (9 of 20) is below accuracy_min 0.9 by 45.0 points",
            ),
        ),
        (
            facts(PROOF, THEIRS, rivals=("theirs",), unanswered={"theirs": "it fell over"}),
            Finish("failed", "the champion cannot be asked about judge: it fell over"),
        ),
        (facts(PROOF), Finish("failed", "the champion cannot be asked about judge: it is not in stock")),
    ],
    ids=["ask", "good", "bad", "it fails", "gone"],
)
def test_a_proof_says_what_the_champion_is_worth(known: CycleFacts, step: Step) -> None:
    assert next_step(known) == step


def ask(challenger: Candidate, champion: Candidate | None = None, tallies: tuple[ClassTally, ...] = ()) -> Verdict:
    settings = PromotionSettings()
    about = {"anchor": None, "champion_feasible": True, "askings": (), "now": 0.0, "settings": settings}
    return judge(ASKED, challenger, champion, tallies, **about)


def test_before_there_are_images_a_person_answers_for_it() -> None:
    verdict = ask(THEIRS)
    assert verdict.answer == "promote"
    assert "it is proven on nothing, and served on the word of ann" in verdict.reason
    ours = dataclasses.replace(THEIRS, adopted=None)
    assert ask(ours).answer == "keep"  # nobody answers for that one
    assert ask(dataclasses.replace(THEIRS, proof=None)).answer == "keep"  # it was not even asked
    slow = ask(dataclasses.replace(THEIRS, measurement=SLOW))
    assert (slow.answer, "p95 latency" in slow.reason) == ("keep", True)


def test_with_images_it_is_held_to_what_is_asked_of_all() -> None:
    good = ask(dataclasses.replace(THEIRS, proof=GOOD))
    assert good.answer == "promote"
    assert "95.00% right on 40 judge samples (adopted by ann: whether it learnt from these very images" in good.reason
    assert ask(dataclasses.replace(THEIRS, proof=BAD)).answer == "keep"


def test_against_a_champion_a_word_is_no_proof() -> None:
    verdict = ask(THEIRS, OURS)
    assert (verdict.answer, "nothing can be compared" in verdict.reason) == ("keep", True)


TALLIES = (ClassTally("a", 300, 2, 40, 8), ClassTally("b", 300, 2, 40, 8))


@pytest.mark.parametrize("feasible", [True, False])
def test_what_nobody_can_know_of_it_is_said_against_a_champion_too(feasible: bool) -> None:
    about = {"anchor": None, "champion_feasible": feasible, "askings": (), "now": 0.0, "settings": PromotionSettings()}
    challenger = dataclasses.replace(THEIRS, proof=GOOD)
    verdict = judge(ASKED, challenger, OURS, TALLIES, **about)
    assert (verdict.answer, "adopted by ann: whether it learnt from these very images" in verdict.reason) == (
        "promote",
        True,
    )
    ours = judge(ASKED, dataclasses.replace(challenger, adopted=None), OURS, TALLIES, **about)
    assert "adopted" not in ours.reason


def test_without_images_it_is_not_said_to_meet_what_images_show() -> None:
    about = {"anchor": None, "champion_feasible": False, "askings": (), "now": 0.0, "settings": PromotionSettings()}
    verdict = judge(ASKED, THEIRS, OURS, (), **about)
    assert (verdict.answer, "it meets every constraint that does without images" in verdict.reason) == ("promote", True)


def test_who_adopts_what_was_declined_has_thought_better_of_it() -> None:
    known = facts(ADOPT, THEIRS, declined={"theirs": "ann went back from theirs"})
    assert next_step(known) == Judge("theirs")


def test_an_unproven_champion_is_proven_once_there_is_something_to_prove_it_on() -> None:
    quiet = Evidence(now=1e9, target="edge", champion=True, champion_classes=("a", "b"), feasible=True, unproven=True)
    settings = PoliciesSettings()
    decision = decide(quiet, settings)
    assert (decision.action, "adopted before there was anything" in decision.reason) == ("prove", True)
    failed = dataclasses.replace(quiet, failures=1, last_failure=1e9 - 1, failure_reason="it fell over")
    assert decide(failed, settings).action == "wait"
    assert decide(dataclasses.replace(quiet, unmeasured=True), settings).action == "rejudge"
    trains = dataclasses.replace(quiet, counts={"a": 300, "b": 300}, new_by_class={"a": 300, "b": 300})
    assert decide(trains, settings).action == "train"  # which proves it too, to compare
