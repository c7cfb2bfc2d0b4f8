"""Pauses: who, since when and why is kept; nothing begins; what rests goes on where it was."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine

from daemon import decisions, pauses, schema, views
from daemon.errors import NotFound, UsageError
from daemon.journal import change

World = Any  # tests/unit/daemon/conftest.py


@pytest.fixture
def targets(world: World) -> World:
    for name in ("cat", "dog"):
        world.samples(name, "train", 18)
        world.samples(name, "judge", 2)
    world.require("a")
    world.require("b")
    return world


def pause(journal: Engine, target: str | None = None, because: str | None = None) -> str:
    with journal.begin() as connection:
        return pauses.pause(connection, target, "ann", because)


def resume(journal: Engine, target: str | None = None) -> str:
    with journal.begin() as connection:
        return pauses.resume(connection, target, "bob")


def told(journal: Engine, target: str) -> str | None:
    with journal.connect() as connection:
        return pauses.tell(connection, target)


def decide(world: World) -> list[tuple[str, str]]:
    """What is decided now, by target."""
    before = len(world.rows(schema.decisions))
    decisions.decide_all(world.journal, world.config, "drop 1", devices=world.devices)
    return [(row.target, row.action) for row in world.rows(schema.decisions)[before:]]


def test_a_pause_holds_all_targets_or_one(journal: Engine, targets: World) -> None:
    assert pause(journal, "a", "the line is rebuilt").startswith("a is paused by ann since 2")
    assert told(journal, "b") is None
    assert str(told(journal, "a")).endswith(" (the line is rebuilt)")
    pause(journal)
    assert [str(told(journal, name)).count("paused by ann since") for name in ("a", "b")] == [2, 1]
    assert str(told(journal, "b")).startswith("all targets are paused by ann")


def test_a_pause_is_begun_once_and_ended_once(journal: Engine, targets: World) -> None:
    pause(journal)
    with pytest.raises(UsageError, match=r"all targets are paused by ann since .* already; `relearn resume` ends that"):
        pause(journal)
    with pytest.raises(UsageError, match=r"a is not paused by itself: all targets are paused by ann .* ends that"):
        resume(journal, "a")
    assert resume(journal) == "everything goes on"
    with pytest.raises(UsageError, match="nothing is paused"):
        resume(journal)
    row = targets.row(schema.pauses)
    assert (row.by, row.ended_by, row.ended >= row.at) == ("ann", "bob", True)


def test_one_target_goes_on_and_all_do(journal: Engine, targets: World) -> None:
    pause(journal, "a")
    pause(journal)
    assert resume(journal, "a").startswith("a goes on; still, all targets are paused by ann")
    pause(journal, "b")
    assert resume(journal) == "everything, b goes on"
    assert told(journal, "b") is None


def test_an_unknown_target_cannot_be_paused(journal: Engine, targets: World) -> None:
    with pytest.raises(NotFound, match="no target 'phone'"):
        pause(journal, "phone")
    with pytest.raises(UsageError, match="phone is not paused"):  # a paused one whose file has gone may go on
        resume(journal, "phone")


def test_while_it_is_paused_nothing_begins_and_each_decision_says_so(journal: Engine, targets: World) -> None:
    pause(journal, "a", "a visit")
    assert decide(targets) == [("a", "wait"), ("b", "train")]
    waits = targets.rows(schema.decisions, action="wait")[0]
    assert waits.reason.startswith(f"{told(journal, 'a')}; otherwise: train: volume: 2 classes have 20 samples")
    with journal.connect() as connection:
        assert views.explain(connection, f"d{waits.id}")["replayed"] == "the same"
    assert [row.target for row in targets.rows(schema.cycles)] == ["b"]
    with journal.begin() as connection:
        change(connection, schema.cycles, 1, state="done", outcome="kept", reason="", ended=1.0)
    resume(journal, "a")
    assert decide(targets) == [("a", "train")]


def test_what_calls_for_nothing_says_that_it_is_paused_too(journal: Engine, targets: World) -> None:
    targets.champion("of a", target="a")
    targets.champion("of b", target="b")
    pause(journal)
    assert decide(targets) == [("a", "nothing"), ("b", "nothing")]
    assert all("paused by ann" in row.reason for row in targets.rows(schema.decisions, action="nothing"))


def test_what_rests_is_shown_behind_what_runs(journal: Engine, targets: World) -> None:
    pause(journal, "a")
    resting, running = targets.cycle("a"), targets.cycle("b")
    with journal.connect() as connection:
        assert (views.working(connection) or {})["cycle"] == running
    with journal.begin() as connection:
        change(connection, schema.cycles, running, state="done")
        view = views.working(connection) or {}
    assert (view["cycle"], view["paused"]) == (resting, told(journal, "a"))
