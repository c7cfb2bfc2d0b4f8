"""What a cycle does next, as a table of what is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from policies.cycle_facts import CycleFacts
from policies.facts import Candidate, ClassCount, Measurement, Requirement, Verdict
from policies.next_step import next_step
from policies.next_training import known_unfit
from policies.search import Heat, SearchFacts, Sketched
from policies.steps import Build, Finish, Judge, Measure, Promote, Prove, Race, Shortlist, Sketch, Step, Train, Tune
from policies.tuning import TuningFacts

FP32 = "onnxruntime:fp32"
PROOF = (ClassCount("a", 10, 9), ClassCount("b", 10, 9))
REQUIREMENT = Requirement(
    target="edge", accelerator="cpu", height=32, width=32, artifact_max_mb=20.0, latency_p95_ms=5.0
)
MEASURED = Measurement(
    device="cpu", batch_size=1, concurrency=1, threads=1, method=1, latency_p50_ms=1.0, latency_p95_ms=2.0,
    latency_p99_ms=3.0, throughput=500.0, memory_mb=100.0, artifact_mb=10.0, repetitions=100,
)  # fmt: skip
SLOW = dataclasses.replace(MEASURED, latency_p95_ms=9.0)
PROMOTE = Verdict("promote", "the first of its kind")
KEEP = Verdict("keep", "no better")
DATA = CycleFacts("data", REQUIREMENT, "new", ("large", "small"), ())
EDIT = dataclasses.replace(DATA, trigger="constraints")


def candidate(name: str, architecture: str = "large", **known: Any) -> Candidate:
    facts: dict[str, Any] = {
        "model": f"model of {name}",
        "snapshot": "new",
        "classes": ("a", "b"),
        "artifact_mb": 10.0,
        "tune_accuracy": 0.9,
        "measurement": MEASURED,
        "proof": PROOF,
    }
    return Candidate(artifact=name, architecture=architecture, **{**facts, **known})


FRESH = candidate("fresh")
OLD = candidate("old", snapshot="old")
STORED = candidate("stored", "small", snapshot="old", tune_accuracy=0.8, artifact_mb=1.0)
SERVED: dict[str, Any] = {"champion": "old", "champion_feasible": True}


LOST = dataclasses.replace(DATA, trigger="stock", **SERVED)


def facts(base: CycleFacts, *candidates: Candidate, **known: Any) -> CycleFacts:
    """The candidates of this snapshot are of the settings as they are now, unless it is said otherwise."""
    known.setdefault("fresh", frozenset(c.model for c in candidates if c.snapshot == base.snapshot))
    return dataclasses.replace(base, candidates=candidates, **known)


@pytest.mark.parametrize(
    ("known", "step"),
    [
        (facts(DATA), Train("large")),
        (facts(DATA, trained=("large",), unbuilt=(("m1", FP32),)), Build("m1", FP32)),
        (facts(DATA, FRESH, trained=("large",)), Judge("fresh")),
        (facts(DATA, FRESH, trained=("large",), verdicts={"fresh": PROMOTE}), Promote("fresh")),
        (
            facts(DATA, FRESH, trained=("large",), verdicts={"fresh": PROMOTE}, promoted="fresh"),
            Finish("promoted", "the first of its kind"),
        ),
    ],
    ids=["train", "build", "judge", "promote", "finish"],
)
def test_a_first_training_goes_from_step_to_step(known: CycleFacts, step: Step) -> None:
    assert next_step(known) == step


@pytest.mark.parametrize(
    ("known", "step"),
    [
        (facts(DATA, too_large={"large": "its weights alone are 44 MB"}), Train("small")),
        (facts(DATA, candidate("big", artifact_mb=44.8), trained=("large",)), Train("small")),
        (facts(DATA, candidate("slow", measurement=SLOW), trained=("large",)), Train("small")),
        (
            facts(DATA, candidate("slow", measurement=SLOW, snapshot="old"), measured=frozenset({"slow"})),
            Train("small"),
        ),
        (
            facts(DATA, FRESH, trained=("large",), verdicts={"fresh": KEEP}),
            Train("small"),
        ),  # too few right, no champion
    ],
    ids=["by weights", "by artifact", "by latency", "by an earlier model", "by judge"],
)
def test_an_architecture_that_does_not_fit_gives_way_to_the_next(known: CycleFacts, step: Step) -> None:
    assert next_step(known) == step


@pytest.mark.parametrize(
    ("earlier", "changes", "step"),
    [
        ([candidate("slow", measurement=SLOW)], {}, Prove("slow", measure=True)),
        ([candidate("first", measurement=SLOW), candidate("slow", measurement=SLOW)], {}, Prove("slow", measure=True)),
        ([candidate("slow", measurement=SLOW), candidate("fits")], {"fresh": frozenset()}, Train("large")),
        ([candidate("big", artifact_mb=44.8)], {}, Train("small")),
        ([candidate("slow", measurement=SLOW)], {"too_large": {"large": "44 MB of weights"}}, Train("small")),
    ],
    ids=["is measured again", "the newest of them", "another of its models fits", "its size is no noise", "too large"],
)
def test_one_noisy_measurement_rules_no_architecture_out(
    earlier: list[Candidate], changes: dict[str, Any], step: Step
) -> None:
    earlier = [dataclasses.replace(known, model="earlier") for known in earlier]
    assert next_step(facts(DATA, *earlier, **changes)) == step


def test_the_reasons_against_an_architecture_are_told() -> None:
    known = facts(DATA, candidate("slow", "small", measurement=SLOW), too_large={"large": "44 MB of weights"})
    assert known_unfit(known) == {
        "large": "44 MB of weights",
        "small": "p95 latency 9 ms is above latency_p95_ms 5 by 4",
    }


@pytest.mark.parametrize(
    ("known", "step"),
    [
        (facts(EDIT, OLD, STORED, champion="old"), Judge("stored")),
        (facts(EDIT, OLD, dataclasses.replace(STORED, proof=None), champion="old"), Prove("stored", measure=False)),
        (
            facts(EDIT, OLD, dataclasses.replace(STORED, measurement=None), champion="old"),
            Prove("stored", measure=True),
        ),
        (facts(EDIT, OLD, STORED, champion="old", verdicts={"stored": PROMOTE}), Promote("stored")),
        (
            facts(EDIT, OLD, STORED, champion="old", verdicts={"stored": PROMOTE}, promoted="stored"),
            Finish("promoted", PROMOTE.reason),
        ),
    ],
    ids=["judge", "prove", "measure", "promote", "finish"],
)
def test_after_an_edit_a_stored_candidate_that_fits_needs_no_training(known: CycleFacts, step: Step) -> None:
    assert next_step(known) == step


def test_after_an_edit_that_nothing_stored_meets_the_next_architecture_is_trained() -> None:
    tight = dataclasses.replace(REQUIREMENT, artifact_max_mb=5.0)
    served = facts(EDIT, OLD, requirement=tight, champion="old", champion_feasible=False)
    assert next_step(served) == Train("small")


def test_after_an_edit_a_champion_that_still_ranks_first_stays() -> None:
    step = next_step(facts(EDIT, OLD, STORED, **SERVED))
    assert isinstance(step, Finish)
    assert (step.outcome, step.reason) == (
        "kept",
        "of 2 stored candidates that meet the constraints, the champion has the best accuracy on tune",
    )
    alone = next_step(facts(EDIT, OLD, **SERVED))
    assert isinstance(alone, Finish)
    assert (alone.outcome, "no other stored candidate does" in alone.reason) == ("kept", True)


def test_after_an_edit_a_champion_is_measured_under_the_new_load_first() -> None:
    old = dataclasses.replace(OLD, measurement=None)
    assert next_step(facts(EDIT, STORED, old, **SERVED)) == Prove("old", measure=True)


def test_after_an_edit_what_is_preferred_now_is_judged() -> None:
    smaller = dataclasses.replace(REQUIREMENT, prefer="artifact_mb")
    known = facts(EDIT, OLD, STORED, requirement=smaller, **SERVED)
    assert next_step(known) == Judge("stored")
    step = next_step(dataclasses.replace(known, verdicts={"stored": KEEP}))
    assert isinstance(step, Finish)
    assert step.outcome == "kept"


def test_an_edit_that_the_champion_meets_trains_nothing() -> None:
    known = facts(EDIT, candidate("big", "small", artifact_mb=44.0, snapshot="old"), OLD, **SERVED)
    assert isinstance(next_step(known), Finish)


@pytest.mark.parametrize("base", [DATA, EDIT])
def test_when_nothing_fits_the_target_is_violated_and_the_nearest_is_named(base: CycleFacts) -> None:
    far = candidate("far", "large", artifact_mb=44.8)
    near = candidate("near", "small", artifact_mb=21.0)
    step = next_step(facts(base, far, near, trained=("large", "small")))
    assert isinstance(step, Finish)
    assert step.outcome == "violated"
    assert "large: artifact 44.8 MB is above artifact_max_mb 20.0 by 24.8" in step.reason
    assert "small: artifact 21.0 MB is above artifact_max_mb 20.0 by 1" in step.reason
    assert "Nearest: near (small)" in step.reason


def test_when_nothing_is_accurate_enough_the_target_is_violated() -> None:
    refused = Verdict("keep", "accuracy 45.00% is below accuracy_min 0.9", feasible=False)
    known = facts(DATA, FRESH, candidate("other", "small"), trained=("large", "small"))
    step = next_step(dataclasses.replace(known, verdicts={"fresh": refused, "other": refused}))
    assert isinstance(step, Finish)
    assert (step.outcome, "accuracy 45.00%" in step.reason) == ("violated", True)


@pytest.mark.parametrize(
    ("known", "step"),
    [
        (facts(DATA, OLD, **SERVED), Train("large")),  # what is stored is of older data
        (facts(DATA, OLD, FRESH, trained=("large",), **SERVED), Judge("fresh")),
        (
            facts(DATA, OLD, FRESH, trained=("large",), verdicts={"fresh": KEEP}, **SERVED),
            Finish("kept", "no better"),  # one training a drop: the next architecture is not tried
        ),
        (
            facts(DATA, OLD, FRESH, trained=("large",), verdicts={"fresh": Verdict("ask", "who knows")}, **SERVED),
            Finish("ask", "who knows"),
        ),
        (facts(DATA, OLD, FRESH, trained=("large",), verdicts={"fresh": PROMOTE}, **SERVED), Promote("fresh")),
    ],
    ids=["train", "judge", "kept", "ask", "promote"],
)
def test_new_data_with_a_champion(known: CycleFacts, step: Step) -> None:
    assert next_step(known) == step


def test_a_training_that_gives_what_is_served_is_kept() -> None:
    step = next_step(facts(DATA, FRESH, trained=("large",), champion="fresh", champion_feasible=True))
    assert step == Finish(
        "kept", "the best artifact of this snapshot and these settings is the one that is served already"
    )


def test_rivals_are_proven_before_anybody_is_judged() -> None:
    known = facts(DATA, OLD, FRESH, trained=("large",), rivals=("old", "anchor"), **SERVED)
    assert next_step(known) == Prove("old", measure=False)
    assert next_step(dataclasses.replace(known, rivals=("anchor",))) == Prove("anchor", measure=False)
    assert next_step(dataclasses.replace(known, rivals=())) == Judge("fresh")


def test_the_winner_on_tune_alone_is_judged_first() -> None:
    better = candidate("better", tune_accuracy=0.95)
    known = facts(DATA, FRESH, better, trained=("large",))
    assert next_step(known) == Judge("better")
    assert next_step(dataclasses.replace(known, verdicts={"better": KEEP})) == Judge("fresh")


@pytest.mark.parametrize(
    "known",
    [facts(DATA), facts(DATA, FRESH), facts(EDIT, OLD, **SERVED), facts(DATA, unbuilt=(("m1", FP32),))],
)
def test_used_up_retries_end_the_cycle_with_the_last_words(known: CycleFacts) -> None:
    failed = dataclasses.replace(known, failed={"train large, stage train": "out of memory"})
    assert next_step(failed) == Finish("failed", "train large, stage train: out of memory")


def test_steps_are_told_apart_by_their_keys() -> None:
    steps = [Train("x"), Build("x", FP32), Prove("x", measure=True), Judge("x"), Promote("x")]
    assert [step.key for step in steps] == ["train x", "build x onnxruntime:fp32", "prove x", "judge x", "promote x"]


def test_every_first_cycle_comes_to_an_end() -> None:
    """Whatever comes of it: each step's result is fed back until the cycle finishes."""
    for fits in (True, False):
        for verdict in (PROMOTE, KEEP):
            outcome, steps = walk(fits, verdict)
            assert outcome == ("promoted" if fits and verdict is PROMOTE else "violated")
            assert steps < 15


def walk(fits: bool, verdict: Verdict) -> tuple[str, int]:
    known = DATA
    for steps in range(100):
        match next_step(known):
            case Train(architecture=name):
                known = dataclasses.replace(known, trained=(*known.trained, name), unbuilt=((f"model_{name}", FP32),))
            case Build(model=model):
                made = candidate(model, model.removeprefix("model_"), measurement=MEASURED if fits else SLOW)
                known = dataclasses.replace(known, unbuilt=(), candidates=(*known.candidates, made))
                known = dataclasses.replace(known, fresh=known.fresh | {made.model})
            case Judge(artifact=artifact):
                known = dataclasses.replace(known, verdicts={**known.verdicts, artifact: verdict})
            case Promote(artifact=artifact):
                known = dataclasses.replace(known, promoted=artifact)
            case Finish(outcome=outcome):
                return outcome, steps
            case other:
                pytest.fail(f"unexpected {other}")
    return "never", 100


@pytest.mark.parametrize(
    ("known", "step"),
    [
        (facts(LOST, STORED, unbuilt=(("model of old", FP32),)), Build("model of old", FP32)),
        (facts(LOST, STORED, OLD), Finish("kept", "what is served was built again, the same to the last byte")),
        (
            facts(LOST, STORED, FRESH),
            Finish(
                "violated",
                "the build gave another artifact than the one that is served: the next training replaces it",
            ),
        ),
    ],
    ids=["build", "done", "another"],
)
def test_what_was_lost_is_built_again_and_nothing_else_is_begun(known: CycleFacts, step: Step) -> None:
    assert next_step(known) == step


INT8 = "openvino:int8"
BOTH = dataclasses.replace(DATA, variants=(FP32, INT8))


def test_a_model_is_built_in_every_variant_before_anything_of_it_is_judged() -> None:
    known = facts(BOTH, FRESH, trained=("large",), unbuilt=((FRESH.model, INT8),))
    assert next_step(known) == Build(FRESH.model, INT8)
    quick = candidate("quick", model=FRESH.model, variant=INT8, tune_accuracy=0.95)
    assert next_step(facts(BOTH, FRESH, quick, trained=("large",))) == Judge("quick")


def test_what_one_builder_refuses_another_may_take() -> None:
    pair = ("m1", INT8)
    refused = {Build(*pair).key: "stage build: an operator is unknown"}
    known = facts(BOTH, dataclasses.replace(FRESH, model="m1"), unbuilt=(pair,), refused=refused, trained=("large",))
    assert next_step(known) == Judge("fresh")
    alone = facts(BOTH, unbuilt=(("m1", FP32), pair), refused=refused, trained=("large",))
    assert next_step(alone) == Build("m1", FP32)
    words = {f"build m1 {variant}": "stage build: no" for variant in BOTH.variants}
    neither = dataclasses.replace(alone, refused=words, unbuildable={"large": "stage build: no"})
    assert next_step(neither) == Train("small")
    step = next_step(dataclasses.replace(neither, architectures=("large",)))
    assert isinstance(step, Finish)
    assert (step.outcome, "large: stage build: no" in step.reason) == ("failed", True)


def test_an_artifact_that_cannot_be_asked_harms_no_other() -> None:
    broken = candidate("broken", model=FRESH.model, variant=INT8, tune_accuracy=0.95, proof=None)
    known = facts(BOTH, FRESH, broken, trained=("large",), unanswered={"broken": "no such operator"})
    assert next_step(known) == Judge("fresh")
    unmeasured = dataclasses.replace(broken, measurement=None)
    assert next_step(dataclasses.replace(known, candidates=(FRESH, unmeasured))) == Judge("fresh")
    asked = dataclasses.replace(known, rivals=("gone", "anchor"), unanswered={"gone": "", "broken": ""})
    assert next_step(asked) == Prove("anchor", measure=False)
    alone = facts(BOTH, broken, trained=("large",), unanswered={"broken": "no such operator"})
    assert next_step(alone) == Finish("failed", "broken: no such operator")
    old = facts(DATA, candidate("slow", measurement=SLOW, model="earlier"), unanswered={"slow": "no such operator"})
    assert next_step(dataclasses.replace(old, fresh=frozenset())) == Train("small")


def test_an_architecture_is_unfit_when_every_variant_of_it_is() -> None:
    slow = candidate("slow", measurement=SLOW, model="m1")
    assert known_unfit(facts(BOTH, slow)) == {}  # it was never built as int8
    big = candidate("big", artifact_mb=44.8, model="m1", variant=INT8)
    said = known_unfit(facts(BOTH, slow, big))["large"]
    assert said == (
        "onnxruntime:fp32: p95 latency 9 ms is above latency_p95_ms 5 by 4, "
        "openvino:int8: artifact 44.8 MB is above artifact_max_mb 20.0 by 24.8"
    )


def test_before_a_training_a_stored_model_is_built_as_it_might_fit() -> None:
    slow = candidate("slow", measurement=SLOW, model="earlier", snapshot="old")
    known = facts(BOTH, slow, stored=frozenset({"earlier"}), measured=frozenset({"slow"}))
    assert next_step(known) == Build("earlier", INT8)
    assert next_step(dataclasses.replace(known, stored=frozenset())) == Train("large")  # its folder is gone
    refused = {Build("earlier", INT8).key: "stage build: no"}
    assert next_step(dataclasses.replace(known, refused=refused)) == Train("large")
    fits = candidate("fits", model="other", snapshot="old")
    assert next_step(dataclasses.replace(known, candidates=(slow, fits))) == Train("large")


def test_what_this_machine_cannot_run_is_taken_where_the_target_says_so_alone() -> None:
    plan = candidate("plan", measurement=None, unverified="no NVIDIA GPU here", variant="tensorrt_rtx:fp16")
    gpu = dataclasses.replace(REQUIREMENT, accelerator="cuda")
    base = dataclasses.replace(DATA, requirement=gpu, variants=(plan.variant,))  # no other architecture is tried
    refused = next_step(facts(base, plan, trained=("large",), built=frozenset({"plan"})))
    assert isinstance(refused, Finish)
    assert (refused.outcome, "tensorrt_rtx:fp16 is unverified (no NVIDIA GPU here)" in refused.reason) == (
        "violated",
        True,
    )
    bold = dataclasses.replace(base, requirement=dataclasses.replace(gpu, allow_unverified=True))
    assert next_step(facts(bold, plan, trained=("large",))) == Judge("plan")  # and nothing waits for its figures
    earlier = facts(base, dataclasses.replace(plan, model="earlier"), trained=("large",), fresh=frozenset())
    assert next_step(earlier) == Train("small")  # that was unverified another day


TUNING = TuningFacts(trials=8)
SEARCH = SearchFacts(("*",))


def test_a_first_model_is_tuned_before_it_is_trained() -> None:
    known = facts(DATA, tuning=TUNING)
    assert next_step(known) == Tune("large", "large was never tuned for this target: 8 trials")
    tuned = dataclasses.replace(TUNING, ages={"large": 0.0})
    assert next_step(facts(DATA, tuning=tuned)) == Train("large")
    given_up = dataclasses.replace(TUNING, given_up=frozenset({"large"}))
    assert next_step(facts(DATA, tuning=given_up)) == Train("large")  # without: a training is better than none


def test_where_nothing_known_fits_more_architectures_are_searched() -> None:
    too_large = {"large": "44 MB of weights", "small": "30 MB of weights"}
    known = facts(DATA, too_large=too_large, search=SEARCH)
    assert isinstance(next_step(known), Shortlist)
    named = dataclasses.replace(SEARCH, names=("large", "tiny", "mini"))
    assert next_step(dataclasses.replace(known, search=named)) == Sketch("tiny", FP32)  # large was tried
    drawn = dataclasses.replace(
        named, sketches={"tiny": {FP32: Sketched(MEASURED)}, "mini": {FP32: Sketched(MEASURED)}}
    )
    race = next_step(dataclasses.replace(known, search=drawn))
    assert isinstance(race, Race)
    assert (race.architecture, race.epochs) == ("tiny", 1)
    run = dataclasses.replace(drawn, heats={"tiny": (Heat(1, 0.8),), "mini": (Heat(1, 0.9),)})
    won = dataclasses.replace(known, search=run)
    assert next_step(won) == Train("mini")
    assert isinstance(next_step(dataclasses.replace(won, tuning=TUNING)), Tune)
    trained = facts(won, candidate("found", "mini", model="mm"), trained=("mini",), fresh=frozenset({"mm"}))
    assert next_step(trained) == Judge("found")


def test_a_search_that_finds_nothing_names_the_nearest_by_constraint() -> None:
    sketches = {
        "tiny": {FP32: Sketched(dataclasses.replace(SLOW, artifact_mb=1.0))},
        "mini": {FP32: Sketched(dataclasses.replace(MEASURED, artifact_mb=21.0))},
    }
    found = dataclasses.replace(SEARCH, names=("tiny", "mini"), sketches=sketches)
    step = next_step(facts(DATA, too_large={"large": "44 MB", "small": "30 MB"}, search=found))
    assert isinstance(step, Finish)
    assert step.outcome == "violated"
    assert "tiny cannot: p95 latency 9 ms is above latency_p95_ms 5 by 4" in step.reason
    assert "Nearest: untrained (mini): artifact 21.0 MB" in step.reason
    assert "latency_p95_ms: mini as onnxruntime:fp32 meets it" in step.reason
    strict = dataclasses.replace(REQUIREMENT, accuracy_min=0.99)
    more = facts(DATA, FRESH, too_large={"small": "30 MB"}, trained=("large",), search=found, requirement=strict)
    said = next_step(dataclasses.replace(more, verdicts={"fresh": KEEP}))
    assert isinstance(said, Finish)
    assert "accuracy_min: " not in said.reason  # of what is untrained nobody knows it
    assert "artifact_max_mb: tiny as onnxruntime:fp32 meets it" in step.reason


def test_a_champion_that_fits_starts_no_search() -> None:
    known = facts(DATA, OLD, FRESH, trained=("large",), verdicts={"fresh": KEEP}, search=SEARCH, **SERVED)
    assert next_step(known) == Finish("kept", "no better")


def test_without_an_engine_for_its_accelerator_a_target_is_told_so() -> None:
    gpu = dataclasses.replace(REQUIREMENT, accelerator="cuda")
    step = next_step(facts(dataclasses.replace(DATA, requirement=gpu, variants=())))  # before anything is trained
    assert step == Finish("violated", "nothing of build.engines runs on 'cuda': add an engine that does")


def test_a_model_of_other_settings_does_not_stand_for_a_training() -> None:
    """Someone changed train.epochs and asked for a training, of the same images."""
    known = facts(DATA, candidate("old"), fresh=frozenset(), **SERVED)
    assert next_step(known) == Train("large")


# --- what people say ------------------------------------------------------------------------------------------------

ASKED = dataclasses.replace(DATA, trigger="asked", about="stored", **SERVED)


def test_what_is_for_a_person_to_approve_ends_the_cycle() -> None:
    known = facts(DATA, FRESH, trained=("large",), verdicts={"fresh": PROMOTE}, unapproved=frozenset({"fresh"}))
    assert next_step(known) == Finish(
        "ask",
        "fresh would be promoted, and waits for a person: the first of its kind. "
        "`relearn approve edge` promotes it, `relearn refuse edge` does not",
    )


@pytest.mark.parametrize(
    ("known", "step"),
    [
        (facts(ASKED, OLD, dataclasses.replace(STORED, measurement=None)), Prove("stored", measure=True)),
        (facts(ASKED, dataclasses.replace(OLD, measurement=None), STORED), Prove("old", measure=True)),
        (facts(ASKED, OLD, dataclasses.replace(STORED, proof=None)), Prove("stored", measure=False)),
        (facts(ASKED, OLD, STORED, rivals=("old",)), Prove("old", measure=False)),
        (facts(ASKED, OLD, STORED, FRESH), Judge("stored")),  # whatever else there is
        (facts(ASKED, OLD, STORED, declined={"stored": "ann refused it"}), Judge("stored")),
        (facts(ASKED, OLD, STORED, unbuilt=(("m1", FP32),)), Judge("stored")),
        (facts(ASKED, OLD, STORED, verdicts={"stored": PROMOTE}), Promote("stored")),
        (facts(ASKED, OLD, STORED, verdicts={"stored": KEEP}), Finish("kept", "no better")),
        (facts(ASKED, OLD, STORED, unanswered={"stored": "not opened"}), Finish("failed", "not opened")),
        (
            facts(ASKED, OLD),
            Finish("failed", "stored is not in stock any more, or cannot run where the target does"),
        ),
        (facts(ASKED, STORED, champion="stored"), Finish("kept", "stored is served by now")),
    ],
    ids=[
        "measured first", "the champion too", "proven", "its rival too", "judged", "declined before",
        "nothing is built", "promoted", "kept", "not to be asked", "gone", "served by now",
    ],
)  # fmt: skip
def test_a_cycle_about_one_artifact_asks_about_that_alone(known: CycleFacts, step: Step) -> None:
    assert next_step(known) == step


def test_nothing_of_judge_is_spent_on_what_does_not_meet_the_constraints() -> None:
    step = next_step(facts(ASKED, OLD, dataclasses.replace(STORED, measurement=SLOW)))
    assert isinstance(step, Finish)
    assert (step.outcome, step.reason.startswith("stored does not meet the constraints: ")) == ("kept", True)


DECLINED = {"declined": {"fresh": "ann went back from fresh"}}


@pytest.mark.parametrize("base", [DATA, EDIT])
def test_what_people_declined_is_not_brought_again(base: CycleFacts) -> None:
    better = dataclasses.replace(FRESH, tune_accuracy=0.99)
    served = dataclasses.replace(base, **SERVED)
    known = facts(served, OLD, better, trained=("large",), **DECLINED)
    step = next_step(known)
    expected = {"data": "the champion stays: ann went back from fresh"}.get(
        base.trigger, "the champion meets the constraints, and no other stored candidate does"
    )
    assert step == Finish("kept", expected)
    assert next_step(dataclasses.replace(known, declined={})) == Judge("fresh")


def test_where_nothing_else_fits_it_says_who_declined_what_would() -> None:
    known = facts(EDIT, FRESH, trained=("large", "small"), **DECLINED)
    step = next_step(known)
    assert isinstance(step, Finish)
    assert (step.outcome, "ann went back from fresh" in step.reason) == ("violated", True)


# --- what a measurement leaves in doubt -----------------------------------------------------------------------------

JUST_ABOVE = dataclasses.replace(MEASURED, latency_p95_ms=5.1, uncertainty={"latency_p95_ms": 0.05})
JUST_BELOW = dataclasses.replace(MEASURED, latency_p95_ms=4.9, uncertainty={"latency_p95_ms": 0.05})
TRAINED: dict[str, Any] = {"trained": ("large", "small")}


@pytest.mark.parametrize("measured", [JUST_ABOVE, JUST_BELOW], ids=["misses", "meets"])
def test_what_misses_or_meets_a_constraint_narrowly_is_measured_longer_first(measured: Measurement) -> None:
    fresh = candidate("fresh", measurement=measured)
    assert next_step(facts(DATA, fresh, **TRAINED)) == Measure("fresh")


@pytest.mark.parametrize(
    ("measured", "step"),
    [(JUST_ABOVE, Finish), (JUST_BELOW, Judge)],
    ids=["misses", "meets"],
)
def test_after_that_the_estimate_decides(measured: Measurement, step: type) -> None:
    fresh = candidate("fresh", measurement=measured)
    known = facts(DATA, fresh, measured=frozenset({"fresh"}), measured_longer=frozenset({"fresh"}), **TRAINED)
    found = next_step(known)
    assert isinstance(found, step)
    if isinstance(found, Finish):
        assert "within the uncertainty of the measurement (4.84 to 5.35)" in found.reason


@pytest.mark.parametrize(
    "fresh",
    [
        candidate("fresh", measurement=JUST_ABOVE, artifact_mb=44.8),
        candidate("fresh", measurement=dataclasses.replace(SLOW, uncertainty={"latency_p95_ms": 0.05})),
    ],
    ids=["too large anyway", "clearly too slow"],
)
def test_what_is_ruled_out_anyway_is_not_measured_longer(fresh: Candidate) -> None:
    assert not isinstance(next_step(facts(DATA, fresh, measured=frozenset({"fresh"}), **TRAINED)), Measure)


def test_of_several_the_best_alone_is_measured_longer() -> None:
    best = candidate("best", tune_accuracy=0.95)
    narrow = candidate("narrow", measurement=JUST_BELOW, tune_accuracy=0.5)
    assert next_step(facts(DATA, best, narrow, **TRAINED)) == Judge("best")
    assert next_step(facts(DATA, best, candidate("narrow", measurement=JUST_ABOVE, tune_accuracy=0.99), **TRAINED)) == (
        Measure("narrow")
    )


@pytest.mark.parametrize("feasible", [True, False])
def test_a_champion_in_doubt_is_measured_before_anybody_is_judged(feasible: bool) -> None:
    old = candidate("old", measurement=JUST_ABOVE, snapshot="old")
    served = {"champion": "old", "champion_feasible": feasible, **TRAINED}
    assert next_step(facts(DATA, FRESH, old, **served)) == Measure("old")
    assert next_step(facts(DATA, FRESH, old, measured_longer=frozenset({"old"}), **served)) == Judge("fresh")


def test_a_longer_measurement_that_fails_leaves_the_shorter_one() -> None:
    fresh = candidate("fresh", measurement=JUST_BELOW)
    assert next_step(facts(DATA, fresh, measured_longer=frozenset({"fresh"}), **TRAINED)) == Judge("fresh")


def test_an_architecture_is_not_ruled_out_by_a_doubtful_measurement() -> None:
    """One of an earlier snapshot was measured in this cycle and missed by less than it can tell."""
    earlier = candidate("earlier", measurement=JUST_ABOVE, snapshot="old")
    measured = {"measured": frozenset({"earlier"})}
    assert next_step(facts(DATA, earlier, **measured)) == Measure("earlier")
    assert next_step(facts(DATA, earlier, **measured, measured_longer=frozenset({"earlier"}))) == Train("small")


def test_what_is_preferred_is_not_gone_by_where_its_correction_is_not_believed() -> None:
    speeds = {"latency_p50_ms": 1.0, "latency_p95_ms": 2.0, "latency_p99_ms": 3.0, "throughput": 500.0}
    busy = dataclasses.replace(MEASURED, raw=speeds, clear=speeds, reference={**speeds})
    fresh = candidate("fresh", measurement=busy.corrected({"throughput": 1500.0}))
    fastest = dataclasses.replace(DATA, requirement=dataclasses.replace(REQUIREMENT, prefer="throughput"))
    assert next_step(facts(fastest, fresh, **TRAINED)) == Measure("fresh")
    assert next_step(facts(fastest, fresh, measured_longer=frozenset({"fresh"}), **TRAINED)) == Judge("fresh")
    assert next_step(facts(DATA, fresh, **TRAINED)) == Judge("fresh")


def test_a_near_miss_is_measured_longer_where_the_correction_is_not_believed_too() -> None:
    speeds = {"latency_p50_ms": 5.1, "latency_p95_ms": 5.1, "latency_p99_ms": 5.1, "throughput": 500.0}
    busy = dataclasses.replace(JUST_ABOVE, raw=speeds, clear=speeds, reference={**speeds})
    measured = dataclasses.replace(busy.corrected({"latency_p50_ms": 2.0}), latency_p95_ms=5.1)
    assert not measured.is_believed("latency_p50_ms")
    quick = dataclasses.replace(REQUIREMENT, prefer="latency_p95_ms")
    known = facts(dataclasses.replace(DATA, requirement=quick), candidate("fresh", measurement=measured), **TRAINED)
    assert next_step(known) == Measure("fresh")


def test_a_champion_that_cannot_be_measured_is_no_champion_that_is_fine() -> None:
    """Else it would be measured again at once, and so on, and no other target would ever have its turn."""
    old = dataclasses.replace(OLD, measurement=None)
    served = dataclasses.replace(EDIT, **SERVED)
    assert next_step(facts(served, old)) == Prove("old", measure=True)
    step = next_step(facts(served, old, unanswered={"old": "the machine was measuring for others"}))
    said = "whether the champion meets the constraints cannot be told: the machine was measuring for others"
    assert step == Finish("failed", said)


def test_what_is_promoted_narrowly_is_said_to_be() -> None:
    fresh = candidate("fresh", measurement=JUST_BELOW)
    found = next_step(facts(DATA, fresh, verdicts={"fresh": PROMOTE}, promoted="fresh", **TRAINED))
    assert found == Finish(
        "promoted",
        "the first of its kind (narrowly, by a measurement at length: "
        "p95 latency 4.9 ms is between 4.66 and 5.15, latency_p95_ms 5)",
    )
