"""The lane that looks for drift; the child stands in for pipeline, the journal is real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from daemon import data_views, evidence, flags, schema
from daemon.drift_watch import DriftWatch
from daemon.events import ChildEnded, ChildSpoke, Event
from daemon.journal import change

World = Any  # tests/unit/daemon/conftest.py
StandIn = Any


class Lane:
    """A watch with its queue."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.queue: SimpleQueue[Event] = SimpleQueue()
        self.watch = DriftWatch(world.config, world.journal, self.queue.put)

    def work(self) -> None:
        self.watch.want()
        while self.watch.step() or self.watch.child:
            if self.watch.child:
                event = self.queue.get(timeout=60)
                if isinstance(event, ChildSpoke):
                    self.watch.hear(event.line)
                elif isinstance(event, ChildEnded):
                    self.watch.bury(event.status, event.last_words)

    def checks(self) -> list[tuple[str, int, int]]:
        return [
            (row.kind, row.figures["samples"], row.figures["reference"]) for row in self.world.rows(schema.drift_checks)
        ]


@pytest.fixture
def lane(world: World, stand_in: StandIn) -> Iterator[Lane]:
    """A champion that was tuned on 40 images."""
    for name in ("cat", "dog"):
        world.samples(name, "train", 15)
        world.samples(name, "tune", 20)
        world.samples(name, "judge", 5)
    world.require()
    world.champion()
    lane = Lane(world)
    lane.work()
    yield lane
    if lane.watch.child:
        lane.watch.child.kill()


def test_what_the_champion_was_trained_on_is_not_new(lane: Lane, stand_in: StandIn) -> None:
    assert lane.checks() == []
    assert stand_in.runs == []


def test_small_drops_gather_until_there_are_enough(lane: Lane, stand_in: StandIn) -> None:
    lane.world.samples("cat", "train", 6, mark="new")
    lane.work()
    assert lane.checks() == []
    lane.world.samples("dog", "tune", 5, mark="new")
    lane.work()
    assert lane.checks() == [("labelled", 11, 40)]
    lane.work()
    assert len(stand_in.runs) == 1  # nothing has come since
    asked = json.loads(Path(stand_in.runs[0]["inputs"]["windows"]).read_text())
    assert sorted(asked["windows"][0]["labels"]) == [0] * 6 + [1] * 5
    lane.world.samples("cat", "train", 10, mark="newer")
    lane.work()
    assert lane.checks()[1:] == [("labelled", 10, 40)]  # each image is in one check


def test_a_drop_of_one_class_waits_for_more_where_tune_has_few_of_it(lane: Lane) -> None:
    """Of a class no more is compared than half of what tune has of it."""
    world = lane.world
    world.samples("owl", "tune", 6)
    world.samples("owl", "train", 9)
    world.champion("newer", version=2)
    world.samples("owl", "train", 30, mark="new")
    lane.work()
    assert lane.checks() == []
    world.samples("cat", "train", 7, mark="new")
    lane.work()
    assert lane.checks() == [("labelled", 37, 46)]


def test_judge_and_classes_that_are_not_known_are_not_looked_at(lane: Lane) -> None:
    lane.world.samples("cat", "judge", 30, mark="new")
    lane.world.samples("owl", "train", 30, mark="new")
    lane.work()
    assert lane.checks() == []


def test_unlabelled_images_are_a_window_of_their_own(lane: Lane) -> None:
    lane.world.samples(None, "", 12)
    lane.world.samples("cat", "train", 10, mark="new")
    lane.work()
    assert lane.checks() == [("labelled", 10, 40), ("unlabelled", 12, 40)]
    with lane.world.journal.connect() as connection:
        shown = data_views.drift(connection, lane.world.config.settings.policies.drift)
    assert [(check["kind"], check["alarm"]) for check in shown] == [("labelled", True), ("unlabelled", True)]
    assert "told apart from 40 of tune with an area of 0.90" in shown[0]["reason"]


def test_a_drop_that_was_held_is_looked_at_once_it_is_released(lane: Lane) -> None:
    world = lane.world
    world.samples("cat", "train", 12, mark="odd")
    held = world.rows(schema.drops)[-1].id
    with world.journal.begin() as connection:
        change(connection, schema.drops, held, state="held", reason="")
    for mark in ("new", "newer"):  # it is not forgotten by the second check either
        world.samples("dog", "train", 11, mark=mark)
        lane.work()
    assert lane.checks() == [("labelled", 11, 40)] * 2
    with world.journal.begin() as connection:
        flags.release(connection, held, "ann")
    lane.work()
    lane.work()
    assert lane.checks()[2:] == [("labelled", 12, 40)]


def test_without_a_champion_or_enough_of_tune_nothing_is_said(world: World, stand_in: StandIn) -> None:
    world.samples("cat", "train", 15)
    world.samples("dog", "tune", 15)
    world.require()
    lane = Lane(world)
    lane.work()
    world.samples("cat", "judge", 2)
    world.samples("dog", "judge", 2)
    world.champion()
    world.samples("dog", "train", 30, mark="new")
    lane.work()
    assert stand_in.runs == []
    assert not lane.watch.busy


def test_a_look_that_fails_is_taken_again(lane: Lane, stand_in: StandIn) -> None:
    stand_in.behave(drift=["fail", "ok"])
    lane.world.samples("cat", "train", 10, mark="new")
    lane.work()
    assert lane.checks() == []
    lane.work()
    assert lane.checks() == [("labelled", 10, 40)]


def test_a_check_is_evidence_until_the_next_training(lane: Lane) -> None:
    lane.world.samples("cat", "train", 10, mark="new")
    lane.work()
    world = lane.world

    def found() -> Any:
        with world.journal.connect() as connection:
            about = {"devices": world.devices}
            return evidence.gather(connection, world.config, world.requirement(), **about).drift

    (check,) = found()
    assert (check.kind, check.samples) == ("labelled", 10)
    at = world.rows(schema.drift_checks)[-1].at
    world.cycle(state="done", outcome="kept", reason="", started=at + 1, ended=at + 2)
    assert found() == ()
