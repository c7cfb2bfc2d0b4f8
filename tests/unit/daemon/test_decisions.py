"""Deciding for all targets: each answer is a row that can be replayed, and perhaps a cycle, once for one cause."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from daemon import decisions, people, schema, snapshot, views
from daemon.config import Config, load
from daemon.decisions import Decided
from daemon.journal import change, claim, now
from daemon.serving import Serving
from daemon.stock import artifact_folder
from policies.decision import Decision
from policies.facts import to_dict

World = Any  # tests/unit/daemon/conftest.py
Decide = Callable[..., Decided]


@pytest.fixture
def decide(config: Config, journal: Engine, world: World) -> Decide:
    def decided(because: str = "drop 1: 40 images", config: Config = config) -> Decided:
        return decisions.decide_all(journal, config, because, devices=world.devices)

    return decided


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of evidence and decisions: its one entry."""
    clock = [1_800_000_000.0]
    for module in ("evidence", "decisions"):
        monkeypatch.setattr(f"daemon.{module}.now", lambda: clock[0])
    return clock


def enough(world: World, mark: str = "", number: int = 18) -> None:
    for name in ("cat", "dog"):
        world.samples(name, "train", number, mark=mark)
        world.samples(name, "judge", 2, mark=mark)


def test_without_targets_nothing_is_decided(decide: Decide, world: World) -> None:
    enough(world)
    assert decide() == Decided()
    assert world.rows(schema.decisions) == []


def test_what_was_lost_is_built_again_on_the_data_that_it_was_built_on(decide: Decide, world: World) -> None:
    """int8 is calibrated on images: on others it would be another artifact, and never what is served."""
    enough(world)
    world.require()
    before = world.row(schema.cycles, id=world.champion()).snapshot_id
    enough(world, mark="new", number=3)
    shutil.rmtree(artifact_folder(world.config.state, "old"))
    assert decide().cycle is not None
    cycle = world.rows(schema.cycles)[-1]
    assert (cycle.trigger, cycle.snapshot_id) == ("stock", before)


def test_too_few_images_call_for_nothing(decide: Decide, world: World) -> None:
    world.require()
    enough(world, number=3)
    assert decide() == Decided()
    row = world.row(schema.decisions)
    assert (row.target, row.event, row.action, row.until) == ("edge", "drop 1: 40 images", "nothing", None)
    assert "class cat has 5 of 20" in row.reason
    assert world.rows(schema.cycles) == world.rows(schema.snapshots) == []


def test_enough_images_begin_a_cycle(decide: Decide, world: World, config: Config, clock: list[float]) -> None:
    requirement = world.require()
    enough(world)
    world.samples("newt", "train", 3)  # too few to be a class yet
    decided = decide()
    row, cycle = world.row(schema.decisions), world.row(schema.cycles)
    assert (row.action, decided) == ("train", Decided(cycle.id))
    assert (cycle.decision_id, cycle.target, cycle.trigger, cycle.state) == (row.id, "edge", "data", "running")
    assert (cycle.requirement, cycle.started, cycle.outcome) == (to_dict(requirement), clock[0], None)
    assert cycle.settings["train"]["epochs"] == config.settings.train.epochs
    taken = world.row(schema.snapshots)
    assert (cycle.snapshot_id, taken.classes) == (taken.id, ["cat", "dog"])
    assert taken.left_out == {"class newt has only 3 samples": 3}
    _, rows = snapshot.read(config.state / "snapshots" / taken.file)
    assert len(rows) == 40


def test_the_settings_of_a_cycle_are_frozen(decide: Decide, world: World, config: Config) -> None:
    world.require()
    enough(world)
    decide(config=load(config.workspace, ["train.epochs=3"]))
    assert world.row(schema.cycles).settings["train"]["epochs"] == 3


def test_nothing_is_decided_twice_for_one_cause(decide: Decide, world: World, clock: list[float]) -> None:
    """Whatever becomes of the cycle, the samples that set it off set off no second one."""
    world.require()
    enough(world)
    cycle = decide().cycle
    assert cycle is not None
    with world.journal.begin() as connection:
        change(connection, schema.cycles, cycle, state="done", outcome="violated", reason="", ended=clock[0])
    clock[0] += 86_400
    assert decide("cycle 1 ended: violated") == Decided()
    assert [row.action for row in world.rows(schema.decisions)] == ["train", "nothing"]
    assert len(world.rows(schema.cycles)) == 1


def test_a_promotion_sets_off_nothing(decide: Decide, world: World, clock: list[float]) -> None:
    world.require()
    enough(world)
    world.champion()
    clock[0] += 86_400
    assert decide() == Decided()
    assert world.rows(schema.decisions)[-1].action == "nothing"


def test_a_new_class_waits_for_the_cool_down(decide: Decide, world: World, clock: list[float]) -> None:
    world.require()
    enough(world)
    cycle = world.champion()
    world.samples("newt", "train", 30)
    with world.journal.begin() as connection:
        change(connection, schema.cycles, cycle, ended=clock[0] - 60)
    until = clock[0] + 540
    assert decide() == Decided(until=until)
    row = world.rows(schema.decisions)[-1]
    assert (row.action, row.until) == ("wait", until)
    assert "cool-down of 10 minutes" in row.reason
    clock[0] = until - 0.001
    assert decide("too early") == Decided(until=until)
    clock[0] = until
    begun = world.row(schema.cycles, id=decide("the wait is over").cycle)
    assert world.row(schema.snapshots, id=begun.snapshot_id).classes == ["cat", "dog", "newt"]


def test_a_cycle_that_failed_is_tried_again_later_and_not_at_once(
    decide: Decide, world: World, config: Config, clock: list[float]
) -> None:
    world.require()
    enough(world)
    eager = load(config.workspace, ["policies.cooldown.minutes=0"])
    waits = []
    for _ in range(3):
        cycle = decide(config=eager).cycle
        assert cycle is not None
        with world.journal.begin() as connection:
            assert claim(connection, schema.cycles, cycle, "running", "failed", reason="disk full", ended=clock[0])
        decided = decide("cycle ended: failed", eager)
        assert decided.cycle is None
        assert decided.until is not None
        waits.append(decided.until - clock[0])
        assert "disk full" in world.rows(schema.decisions)[-1].reason
        clock[0] = decided.until
    assert waits == [20.0, 40.0, 80.0]  # on from where the attempts of a stage left off


def test_an_edit_judges_what_is_stored(decide: Decide, world: World) -> None:
    world.require()
    enough(world)
    world.champion()
    world.require(at=3.0, latency_p95_ms=1.0)
    assert decide("constraints of edge changed").cycle is not None
    cycle = world.rows(schema.cycles)[-1]
    assert (cycle.trigger, cycle.requirement["latency_p95_ms"]) == ("constraints", 1.0)
    row = world.row(schema.decisions, id=cycle.decision_id)
    assert (row.action, row.evidence["feasible"]) == ("rejudge", False)


def test_one_target_at_a_time_begins_a_cycle(decide: Decide, world: World, clock: list[float]) -> None:
    world.require("a")
    world.require("b")
    enough(world)
    first = decide().cycle
    assert [row.target for row in world.rows(schema.decisions)] == ["a"]
    with world.journal.begin() as connection:
        change(connection, schema.cycles, first, state="done", outcome="kept", reason="", ended=clock[0])
    second = decide("cycle 1 ended: kept").cycle
    assert [(row.target, row.action) for row in world.rows(schema.decisions)] == [
        ("a", "train"),
        ("a", "nothing"),
        ("b", "train"),
    ]
    assert world.row(schema.cycles, id=second).target == "b"


def test_the_soonest_wait_of_several_targets_counts(decide: Decide, world: World, clock: list[float]) -> None:
    enough(world)
    for target, ago in (("a", 60), ("b", 300)):
        world.require(target)
        with world.journal.begin() as connection:
            change(connection, schema.cycles, world.champion(target, target=target), ended=clock[0] - ago)
    world.samples("newt", "train", 30)
    assert decide() == Decided(until=clock[0] + 300)
    assert [row.until - clock[0] for row in world.rows(schema.decisions)[-2:]] == [540, 300]


# --- what people asked for ------------------------------------------------------------------------------------------


def ask(world: World, target: str = "edge") -> None:
    people.ask(world.journal, world.config.state, "retrain", target=target)
    list(people.take(world.journal, Serving(world.config, world.journal, lambda _event: None)))


def test_a_request_is_answered_once_whatever_the_data_say(decide: Decide, world: World, clock: list[float]) -> None:
    world.require()
    enough(world)
    cycle = world.champion()
    with world.journal.begin() as connection:
        change(connection, schema.cycles, cycle, ended=clock[0])  # no cool-down for people
    ask(world)
    begun = decide().cycle
    assert begun is not None
    assert world.row(schema.decisions, action="train", event="drop 1: 40 images").reason.startswith("requested: ")
    with world.journal.begin() as connection:
        change(connection, schema.cycles, begun, state="done", outcome="kept", reason="", ended=clock[0])
        people.settle(connection, "edge", before=now())
    assert decide() == Decided()


def test_a_request_for_one_target_is_not_another_s(decide: Decide, world: World) -> None:
    world.require("a")
    world.require("b")
    enough(world)
    for target in ("a", "b"):
        world.champion(f"of {target}", target=target)
    ask(world, "b")
    before = len(world.rows(schema.decisions))
    decide()
    found = world.rows(schema.decisions)[before:]
    assert [(row.target, row.action) for row in found] == [("a", "nothing"), ("b", "train")]


def test_a_request_outlives_an_edit_that_goes_first(decide: Decide, world: World, clock: list[float]) -> None:
    world.require()
    enough(world)
    world.champion()
    world.require(at=3.0, latency_p95_ms=4.0)
    ask(world)
    cycle = decide().cycle
    assert world.row(schema.cycles, id=cycle).trigger == "constraints"
    with world.journal.begin() as connection:
        change(connection, schema.cycles, cycle, state="done", outcome="kept", reason="", ended=clock[0])
    assert decide("cycle ended: kept").cycle is not None
    assert world.rows(schema.decisions)[-1].reason.startswith("requested: ")


# --- replayed -------------------------------------------------------------------------------------------------------


def replayed(world: World, id_: int) -> dict[str, Any]:
    with world.journal.connect() as connection:
        return views.explain(connection, f"d{id_}")


def test_a_decision_is_stored_with_all_that_it_rests_on(decide: Decide, world: World, clock: list[float]) -> None:
    world.require()
    enough(world)
    decide()
    view = replayed(world, 1)
    assert view["replayed"] == "the same"
    assert view["evidence"]["counts"] == {"cat": 20, "dog": 20}
    assert view["evidence"]["now"] == view["at"] == clock[0]
    assert view["settings"] == to_dict(world.config.settings.policies)
    assert view["policy"] == Decision("wait", "").version
    assert [finding["policy"] for finding in view["findings"]] == [
        "volume",
        "new_class",
        "accuracy",
        "drift",
        "drift_unlabelled",
        "staleness",
    ]
    assert [finding["fired"] for finding in view["findings"]] == [True, *[False] * 5]


def test_a_decision_is_replayed_with_the_settings_of_its_time(decide: Decide, world: World, config: Config) -> None:
    world.require()
    enough(world)
    strict = load(config.workspace, ["policies.volume.first_samples_per_class=50"])
    assert decide(config=strict) == Decided()
    view = replayed(world, 1)
    assert (view["action"], view["replayed"]) == ("nothing", "the same")


def test_a_wait_is_replayed_at_its_own_moment(decide: Decide, world: World, clock: list[float]) -> None:
    world.require()
    enough(world)
    cycle = world.champion()
    world.samples("newt", "train", 30)
    with world.journal.begin() as connection:
        change(connection, schema.cycles, cycle, ended=clock[0] - 60)
    decide()
    clock[0] += 86_400
    view = replayed(world, world.rows(schema.decisions)[-1].id)
    assert (view["action"], view["replayed"]) == ("wait", "the same")


def test_a_policy_that_would_say_something_else_now_is_told(decide: Decide, world: World) -> None:
    world.require()
    enough(world, number=3)
    decide()
    row = world.row(schema.decisions)
    with world.journal.begin() as connection:
        change(connection, schema.decisions, row.id, evidence={**row.evidence, "counts": {"cat": 99, "dog": 99}})
    said = replayed(world, row.id)["replayed"]
    assert said.startswith("this version would say: train: ")


def test_a_decision_of_a_person_has_nothing_to_replay(world: World, config: Config) -> None:
    from policies.decision import Decision

    with world.journal.begin() as connection:
        id_ = decisions.write(connection, config, "edge", "by hand", Decision("train", "so it is"), None)
    view = replayed(world, id_)
    assert (view["reason"], "replayed" in view) == ("so it is", False)
    assert dataclasses.asdict(Decision("train", "so it is"))["until"] is view["until"] is None
