"""What is gathered of a target for the policies: counted from the journal, never guessed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import Engine

from daemon import evidence, schema
from daemon.config import Config
from daemon.journal import add, change, now
from policies.evidence import Evidence
from policies.facts import ClassCount, DriftCheck, from_dict, to_dict

World = Any  # tests/unit/daemon/conftest.py


@pytest.fixture
def gather(config: Config, journal: Engine, world: World) -> Any:
    def gathered(**limits: Any) -> Evidence:
        with journal.connect() as connection:
            asked = world.requirement(**limits)
            return evidence.gather(connection, config, asked, devices=world.devices)

    return gathered


def unobserved(world: World) -> Any:
    with world.journal.connect() as connection:
        return evidence.unobserved(connection, world.config, "edge")


def data(world: World) -> None:
    for role, number in (("train", 4), ("tune", 2), ("judge", 3)):
        world.samples("cat", role, number)
        world.samples("dog", role, number)


def test_of_an_empty_workspace_nothing_is_known(gather: Any) -> None:
    found = gather()
    assert found.now > 1_700_000_000
    assert found == Evidence(now=found.now, target="edge")


def test_before_the_first_training_all_is_new(gather: Any, world: World) -> None:
    data(world)
    world.samples(None, "", 5)
    found = gather()
    assert found.counts == {"cat": 9, "dog": 9}
    assert found.new_by_class == {}  # as long as no class is large enough for a snapshot
    world.samples("cat", "train", 20, mark="more")
    assert gather().new_by_class == {"cat": 29}
    assert (found.champion, found.champion_classes, found.feasible, found.trained_on) == (False, (), None, 0)


def test_after_a_training_what_came_since_is_new(gather: Any, world: World) -> None:
    data(world)
    world.champion()
    assert gather().new_by_class == {}
    world.samples("cat", "train", 2, mark="later")
    world.samples("newt", "judge", 1)
    found = gather()
    assert found.counts == {"cat": 11, "dog": 9, "newt": 1}
    # A newt is no new data as long as no snapshot would hold it.
    assert (found.new_by_class, found.trained_on, found.gone) == ({"cat": 2}, 18, 0)
    assert (found.champion, found.champion_classes, found.feasible) == (True, ("cat", "dog"), True)


def test_a_sample_that_changed_its_class_is_new(gather: Any, world: World) -> None:
    data(world)
    (cat,) = world.samples("cat", "train", 1, mark="odd")
    world.champion()
    world.relabel(cat, "dog")
    found = gather()
    assert (found.new_by_class, found.gone, found.counts) == ({"dog": 1}, 0, {"cat": 9, "dog": 10})


def test_samples_without_a_file_are_gone(gather: Any, world: World) -> None:
    data(world)
    cats = world.samples("cat", "train", 3, mark="odd")
    world.champion()
    world.vanish(*cats[:2])
    found = gather()
    assert (found.gone, found.counts["cat"], found.trained_on) == (2, 10, 21)


def test_a_sample_in_two_classes_is_used_nowhere(gather: Any, world: World) -> None:
    data(world)
    (cat,) = world.samples("cat", "train", 1, mark="odd")
    world.champion()
    world.samples("dog", "train", 1, mark="new")
    world.appear(cat, "dog")
    found = gather()
    assert (found.counts, found.new_by_class, found.gone) == ({"cat": 9, "dog": 10}, {"dog": 1}, 1)
    assert unobserved(world)[1] == [world.rows(schema.samples)[-1].sha256]


def test_a_second_file_of_the_same_content_is_no_second_sample(gather: Any, world: World) -> None:
    data(world)
    (cat,) = world.samples("cat", "train", 1, mark="odd")
    world.appear(cat, "cat")
    assert gather().counts == {"cat": 10, "dog": 9}


@pytest.mark.parametrize(
    ("state", "trigger", "trains", "new"),
    [
        ("done", "data", True, 0),
        ("done", "data", False, 0),  # whatever the verdict was
        ("done", "constraints", True, 0),  # an edit set off a training
        ("done", "constraints", False, 1),  # what is stored was judged: no sample was trained on
        ("failed", "data", True, 1),
        ("interrupted", "data", True, 1),
        ("running", "data", True, 1),
    ],
)
def test_since_which_cycle_samples_are_new(
    gather: Any, world: World, state: str, trigger: str, trains: bool, new: int
) -> None:
    data(world)
    world.champion()
    world.samples("cat", "train", 1, mark="later")
    cycle = world.cycle(state=state, trigger=trigger)
    if trains:
        world.model("m", cycle)
    assert sum(gather().new_by_class.values()) == new


def test_another_target_has_its_own_history(gather: Any, world: World) -> None:
    data(world)
    world.champion("theirs", target="other")
    found = gather()
    assert (found.champion, found.trained_on, found.last_cycle_ended) == (False, 0, None)


# --- the champion's answers -----------------------------------------------------------------------------------------


def test_the_champion_s_answers_to_new_samples_count_by_class(gather: Any, world: World) -> None:
    data(world)
    world.champion()
    cats = world.samples("cat", "train", 3, mark="later")
    dogs = world.samples("dog", "tune", 2, mark="later")
    world.answer("observations", "old", dict.fromkeys(cats, "cat") | {cats[0]: "dog", dogs[0]: "dog"})
    assert gather().new_answers == (ClassCount("cat", 3, 2), ClassCount("dog", 1, 1))
    world.relabel(cats[0], "dog")  # the label is what is true now
    assert gather().new_answers == (ClassCount("cat", 2, 2), ClassCount("dog", 2, 2))


def test_answers_to_what_is_no_longer_new_do_not_count(gather: Any, world: World) -> None:
    data(world)
    world.champion()
    cats = world.samples("cat", "train", 3, mark="later")
    world.answer("observations", "old", dict.fromkeys(cats, "cat"))
    world.cycle(state="done", outcome="kept", reason="", ended=9.0)
    assert gather().new_answers == ()


def test_the_proof_is_the_champion_s_on_judge(gather: Any, world: World) -> None:
    data(world)
    cycle = world.champion("first")
    world.artifact("second", cycle)
    judge = world.truth()
    cat = next(sample for sample, name in judge.items() if name == "cat")
    world.prove("second", cycle, wrong=[cat])
    world.promote("second", 2)
    found = gather()
    assert found.judge == (ClassCount("cat", 3, 2), ClassCount("dog", 3, 3))
    assert found.new_answers == ()


def test_a_champion_too_slow_for_what_is_asked_now_is_infeasible(gather: Any, world: World) -> None:
    data(world)
    world.champion()
    assert gather().feasible is True
    assert gather(latency_p95_ms=1.0).feasible is False


def test_a_champion_on_another_machine_has_no_figures(gather: Any, world: World) -> None:
    data(world)
    world.champion()
    assert gather().unmeasured is False
    assert gather(batch_size=4).unmeasured is True
    world.devices = {"onnxruntime": "another machine"}
    assert gather().unmeasured is True
    world.measure("old", method=0)
    assert gather().unmeasured is True  # by a method that is no longer used
    world.measure("old")
    assert gather().unmeasured is False


def test_a_champion_without_a_proof_has_none(gather: Any, world: World) -> None:
    data(world)
    world.artifact("old", world.cycle(state="done"))
    world.promote("old")
    assert gather().judge == ()


def test_the_champion_is_asked_about_new_samples_that_it_could_know(world: World) -> None:
    """Labelled, new, of train and tune, of a class that it knows, and not answered yet."""
    data(world)
    assert unobserved(world) is None
    world.champion()
    assert unobserved(world)[1] == []
    train = world.samples("cat", "train", 2, mark="later")
    tune = world.samples("dog", "tune", 1, mark="later")
    world.samples("cat", "judge", 2, mark="later")
    world.samples("newt", "train", 2)
    world.samples(None, "", 2)
    champion, shas = unobserved(world)
    hashes = {row.id: row.sha256 for row in world.rows(schema.samples)}
    assert champion.artifact == "old"
    assert set(shas) == {hashes[id_] for id_ in [*train, *tune]}
    world.answer("observations", "old", {train[0]: "cat", tune[0]: "dog"})
    assert unobserved(world)[1] == [hashes[train[1]]]
    world.vanish(train[1])
    assert unobserved(world)[1] == []


# --- history --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], (None, 0, None, "")),
        ([("done", 5.0)], (5.0, 0, None, "")),
        ([("failed", 5.0)], (5.0, 1, 5.0, "because 5")),
        ([("done", 3.0), ("failed", 4.0), ("failed", 5.0)], (5.0, 2, 5.0, "because 5")),
        ([("failed", 4.0), ("done", 5.0)], (5.0, 0, None, "")),
        ([("failed", 4.0), ("interrupted", 5.0)], (4.0, 1, 4.0, "because 4")),  # an edit is no success
        ([("failed", 4.0), ("running", None)], (4.0, 1, 4.0, "because 4")),
    ],
)
def test_failures_in_a_row_are_counted(
    gather: Any, world: World, history: list[tuple[str, float | None]], expected: tuple[Any, ...]
) -> None:
    for state, ended in history:
        world.cycle(state=state, ended=ended, reason=f"because {ended:g}" if ended else None)
    found = gather()
    assert (found.last_cycle_ended, found.failures, found.last_failure, found.failure_reason) == expected


# --- what was trained, and refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "began", "ended", "seconds"),
    [
        ("train", -7_200, -3_600, 3_600),
        ("tune", -7_200, -3_600, 3_600),
        ("prove", -7_200, -3_600, 0),
        ("train", -90_000, -60, 86_340),  # it began before the 24 hours
        ("train", -180_000, -90_000, 0),
        ("train", -600, None, 600),  # it runs
    ],
)
def test_what_was_trained_in_the_last_day_is_counted(
    gather: Any, world: World, name: str, began: float, ended: float | None, seconds: float
) -> None:
    cycle, at = world.cycle(), now()
    with world.journal.begin() as connection:
        stage = add(connection, schema.stages, cycle_id=cycle, step="s", name=name, state="done", attempts=1)
        when = {"started": at + began, "ended": None if ended is None else at + ended}
        add(connection, schema.attempts, stage_id=stage, number=1, token="t", **when)
    assert gather().trained_seconds == pytest.approx(seconds, abs=5)


def check(world: World, kind: str, at: float, samples: int) -> None:
    figures = to_dict(DriftCheck(kind, samples, 40, 0.9, 0.0025))
    with world.journal.begin() as connection:
        add(connection, schema.drift_checks, kind=kind, model_id="old", up_to_drop=1, figures=figures, at=at)


@pytest.mark.parametrize(("outcome", "refused"), [("kept", True), ("violated", True), ("promoted", False)])
def test_what_looked_new_before_a_refused_training_is_known(
    gather: Any, world: World, outcome: str, refused: bool
) -> None:
    data(world)
    world.champion()
    assert (gather().refused_drift, gather().refused_new) == ((), 0)
    for at, samples in ((3.0, 10), (4.0, 20), (6.0, 30)):
        check(world, "labelled", at, samples)
    cycle = world.cycle(state="done", outcome=outcome, reason="", started=5.0, ended=6.0)
    decision = world.row(schema.cycles, id=cycle).decision_id
    with world.journal.begin() as connection:
        change(connection, schema.decisions, decision, evidence={"new_by_class": {"cat": 30, "dog": 10}})
    found = gather()
    assert [known.samples for known in found.refused_drift] == ([20] if refused else [])
    assert found.refused_new == (40 if refused else 0)
    assert [known.samples for known in found.drift] == [30]


@pytest.mark.parametrize(("served", "refused"), [(None, True), (7.0, False)])
def test_what_a_person_approved_later_was_not_refused(
    gather: Any, world: World, served: float | None, refused: bool
) -> None:
    data(world)
    world.champion()
    check(world, "labelled", 4.0, 20)
    cycle = world.cycle(state="done", outcome="ask", reason="", started=5.0, ended=6.0)
    world.artifact("new", cycle)
    said = {"answer": "promote", "reason": "", "better": True, "verdict": {}, "facts": {}, "at": 6.0}
    with world.journal.begin() as connection:
        verdict = add(connection, schema.verdicts, cycle_id=cycle, target="edge", artifact_id="new", **said)
    world.promote("new", 2, by="ann", verdict_id=verdict, served=served, state="switching")
    assert bool(gather().refused_drift) == refused


# --- constraints ----------------------------------------------------------------------------------------------------


def answered(world: World, state: str, trigger: str = "data", **limits: Any) -> None:
    world.cycle(trigger=trigger, state=state, requirement=to_dict(world.requirement(**limits)), ended=1.0, reason="")


@pytest.mark.parametrize(
    ("history", "changed"),
    [
        ([], False),  # nothing was ever judged: the first training will see them
        ([("done", 20.0)], False),
        ([("done", 10.0)], True),
        ([("done", 10.0), ("interrupted", 20.0)], True),
        ([("done", 20.0), ("done", 10.0)], True),
        ([("done", 10.0), ("done", 20.0)], False),
        ([("interrupted", 10.0)], False),
        pytest.param(
            [("done", 10.0), ("failed", 20.0)],
            True,
        ),
    ],
)
def test_whether_the_constraints_changed_since_they_were_judged_by(
    gather: Any, world: World, history: list[tuple[str, float]], changed: bool
) -> None:
    for state, limit in history:
        answered(world, state, artifact_max_mb=limit)
    assert gather(artifact_max_mb=20.0).constraints_changed is changed


@pytest.mark.parametrize("trigger", ["adopt", "asked", "stock", "proof"])
def test_a_cycle_that_judged_no_stored_candidate_answers_no_edit(gather: Any, world: World, trigger: str) -> None:
    answered(world, "done", artifact_max_mb=10.0)
    answered(world, "done", trigger=trigger, artifact_max_mb=20.0)
    assert gather(artifact_max_mb=20.0).constraints_changed


def test_where_what_is_served_was_adopted_an_edit_is_one_too(gather: Any, world: World) -> None:
    answered(world, "done", trigger="adopt", artifact_max_mb=10.0)
    assert not gather(artifact_max_mb=10.0).constraints_changed
    assert gather(artifact_max_mb=20.0).constraints_changed
    answered(world, "done", trigger="constraints", artifact_max_mb=20.0)
    assert not gather(artifact_max_mb=20.0).constraints_changed


def test_the_last_valid_edit_is_the_one_that_counts(gather: Any, world: World) -> None:
    world.require(at=5.0)
    world.require(at=7.0, artifact_max_mb=1.0)
    world.require("other", at=9.0)
    with world.journal.begin() as connection:
        connection.execute(schema.constraint_files.insert().values(target="edge", at=8.0, text="?", error="bad"))
    assert gather().constraints_changed_at == 7.0


def test_the_evidence_goes_through_the_journal_unchanged(gather: Any, world: World) -> None:
    data(world)
    world.require()
    world.champion()
    cats = world.samples("cat", "train", 3, mark="later")
    world.answer("observations", "old", dict.fromkeys(cats, "cat"))
    found = gather(accuracy_min=0.5)
    assert from_dict(Evidence, json.loads(json.dumps(to_dict(found)))) == found


def test_a_champion_is_lost_until_a_cycle_came_to_its_end(gather: Any, world: World) -> None:
    data(world)
    world.champion()
    assert not gather().lost
    with world.journal.begin() as connection:
        change(connection, schema.artifacts, "old", gone=5.0)
    assert gather().lost
    with world.journal.begin() as connection:
        change(connection, schema.models, "old", gone=5.0)
    assert (gather().lost, gather().rebuildable, gather().beyond_repair) == (True, False, True)
    with world.journal.begin() as connection:
        change(connection, schema.models, "old", gone=None)
    world.cycle("other", state="done", outcome="kept", reason="", started=6.0, ended=7.0)
    world.cycle(state="failed", outcome="failed", reason="", started=4.0, ended=7.0)
    assert gather().lost
    world.cycle(state="failed", outcome="failed", reason="", started=6.0, ended=7.0)
    assert gather().lost  # tried again, and not at once: it failed
    assert gather().failures == 2
    world.cycle(trigger="asked", state="done", outcome="kept", reason="", started=6.0, ended=7.0)
    assert gather().lost  # nothing is built in such a one
    world.cycle(state="done", outcome="kept", reason="", started=6.0, ended=7.0)
    assert not gather().lost  # what it built is another, or it would no longer be gone
    assert not gather().beyond_repair


def test_without_the_snapshot_of_the_last_training_all_counts_as_new(gather: Any, world: World) -> None:
    """A training that this asks for brings a new one: nothing waits for what is lost."""
    data(world)
    world.champion()
    assert gather().new_by_class == {}
    for file in (world.config.state / "snapshots").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    found = gather()
    assert (found.trained_on, found.judge) == (0, ())
    assert unobserved(world) is None
    assert found.new_by_class == {"cat": 9, "dog": 9}
