"""The lane that asks the champion about new samples; the child stands in for pipeline, the journal is real."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from daemon import errand, schema
from daemon.events import ChildEnded, ChildSpoke, Event
from daemon.observer import Observer
from daemon.stock import model_folder

World = Any  # tests/unit/daemon/conftest.py
StandIn = Any


class Lane:
    """An observer with its queue."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.queue: SimpleQueue[Event] = SimpleQueue()
        self.observer = Observer(world.config, world.journal, self.queue.put)

    def work(self) -> None:
        """All that is wanted, to its end."""
        while self.observer.step() or self.observer.child:
            if self.observer.child:
                event = self.queue.get(timeout=60)
                if isinstance(event, ChildSpoke):
                    self.observer.hear(event.line)
                elif isinstance(event, ChildEnded):
                    self.observer.bury(event.status, event.last_words)

    def ask(self) -> None:
        self.observer.want()
        self.work()

    def answers(self) -> dict[int, str]:
        return {row.sample_id: row.predicted for row in self.world.rows(schema.observations)}


@pytest.fixture
def lane(world: World, stand_in: StandIn) -> Iterator[Lane]:
    """A target with a champion that knows dog and cat, in this order; the stand-in always answers the first."""
    for role in ("train", "judge"):
        world.samples("cat", role, 2)
        world.samples("dog", role, 2)
    world.require()
    cycle = world.cycle(state="done", outcome="promoted", reason="", ended=1.0)
    world.artifact("old", cycle, ["dog", "cat"])
    world.promote("old")
    lane = Lane(world)
    yield lane
    if lane.observer.child:
        lane.observer.child.kill()


def test_without_new_samples_nobody_is_asked(lane: Lane, stand_in: StandIn) -> None:
    lane.ask()
    assert stand_in.runs == []
    assert not lane.observer.busy


def test_without_a_champion_nobody_is_asked(world: World, stand_in: StandIn) -> None:
    world.samples("cat", "train", 2)
    world.require()
    lane = Lane(world)
    lane.ask()
    assert stand_in.runs == []


def test_the_champion_is_asked_once_about_what_is_new(lane: Lane, stand_in: StandIn) -> None:
    train = lane.world.samples("cat", "train", 2, mark="new")
    tune = lane.world.samples("dog", "tune", 1, mark="new")
    lane.world.samples("cat", "judge", 3, mark="new")
    lane.ask()
    assert lane.answers() == dict.fromkeys([*train, *tune], "dog")
    (run,) = stand_in.runs
    model = str(model_folder(lane.world.config.state, "old"))
    assert (run["stage"], run["package"], run["inputs"]["model"]) == ("observe", "pipeline", model)
    hashes = {row.id: row.sha256.hex() for row in lane.world.rows(schema.samples)}
    assert set(run["inputs"]["samples"]) == {hashes[id_] for id_ in [*train, *tune]}
    assert run["inputs"]["store"] == str(lane.world.config.state / "store")
    lane.ask()
    assert len(stand_in.runs) == 1


def test_the_judge_is_never_asked_about(lane: Lane, stand_in: StandIn) -> None:
    lane.world.samples("cat", "judge", 3, mark="new")
    lane.ask()
    assert stand_in.runs == []
    assert lane.answers() == {}


def test_what_comes_while_it_is_asked_is_asked_about_later(lane: Lane, stand_in: StandIn) -> None:
    lane.world.samples("cat", "train", 1, mark="new")
    lane.observer.want()
    lane.observer.step()
    assert lane.observer.busy
    lane.world.samples("cat", "train", 1, mark="later")
    lane.observer.want()
    assert lane.observer.step() is False  # one child at a time
    lane.work()
    assert len(lane.answers()) == 2
    assert [len(run["inputs"]["samples"]) for run in stand_in.runs] == [1, 1]


def test_the_champion_of_each_target_is_asked(lane: Lane, stand_in: StandIn) -> None:
    lane.world.require("phone")
    done = lane.world.cycle("phone", state="done", outcome="promoted", reason="", ended=1.0)
    lane.world.artifact("theirs", done, ["cat", "dog"])
    lane.world.promote("theirs", target="phone")
    lane.world.require("idle")
    (new,) = lane.world.samples("dog", "train", 1, mark="new")
    lane.ask()
    found = {(row.artifact_id, row.sample_id, row.predicted) for row in lane.world.rows(schema.observations)}
    assert found == {("old", new, "dog"), ("theirs", new, "cat")}


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("fail", "observe is not possible today"), ("die", "the seventh layer"), ("die without a word", "status -9")],
)
def test_a_champion_that_cannot_be_asked_holds_nothing_up(
    lane: Lane, stand_in: StandIn, caplog: pytest.LogCaptureFixture, behaviour: str, said: str
) -> None:
    stand_in.behave(observe=[behaviour, "ok"])
    lane.world.samples("cat", "train", 1, mark="new")
    lane.ask()
    assert said in caplog.text
    assert (lane.answers(), lane.observer.busy, lane.observer.step()) == ({}, False, False)  # and no hot loop
    assert len(stand_in.runs) == 1
    lane.ask()
    assert len(lane.answers()) == 1


def test_a_champion_that_hangs_is_stopped(lane: Lane, stand_in: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    lane.observer.stop_overdue()
    stand_in.behave(observe=["hang"])
    lane.world.samples("cat", "train", 2, mark="new")
    lane.observer.want()
    assert lane.observer.step()
    child = lane.observer.child
    assert child is not None
    lane.observer.stop_overdue()
    assert not caplog.messages
    child.started -= errand.SECONDS + 2 * errand.SECONDS_AN_IMAGE  # of an hour that a training may take
    lane.observer.stop_overdue()
    assert child.wait(30)
    lane.work()
    assert "took longer than 5 minutes, and is given up until more comes" in caplog.text
    assert not lane.observer.busy
