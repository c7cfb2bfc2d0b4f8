"""The lane that tidies the state folder, in the daemon's loop: when it begins, what it waits for, whom it answers."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import erase, gc, people, schema, store
from daemon.config import Config, load
from daemon.events import ChoreEnded, PersonAsked, TimerFired
from daemon.loop import Daemon

World = Any  # tests/unit/daemon/conftest.py
StandIn = Any


@pytest.fixture
def config(workspace: Path) -> Config:
    (workspace / "state" / "duplicates").mkdir(parents=True)
    overrides = ["watch.settle_seconds=0.01", "triton.url=127.0.0.1:9", "policies.cooldown.minutes=0"]
    return load(workspace, overrides)


@pytest.fixture
def daemon(world: World, stand_in: StandIn) -> Iterator[Daemon]:
    """A daemon whose events the test hands over."""
    daemon = begin(world, world.config)
    yield daemon
    end(daemon)


def begin(world: World, config: Config) -> Daemon:
    daemon = Daemon(config)
    daemon.serving.devices = world.devices
    daemon.sources.scheduler.start(paused=True)
    return daemon


def end(daemon: Daemon) -> None:
    daemon.sources.scheduler.remove_all_jobs()
    daemon.sources.scheduler.shutdown(wait=False)
    lanes = [lane.child for lane in daemon.lanes]
    for child in (*lanes, *daemon.worker.leaving.values()):
        if child:
            child.kill()
            child.wait(30)


def work(daemon: Daemon, until: Callable[[], object] = lambda: False) -> None:
    """As the loop does it, until the sweeper has done all that is due, or a condition holds."""
    daemon.work()
    while not until() and (daemon.sweeper.chore or daemon.worker.leaving):
        daemon.handle(daemon.queue.get(timeout=60))
        daemon.work()


def litter(world: World, size: int = 5000) -> Path:
    """The run folder of a training that ended years ago."""
    file = world.config.state / "runs" / "abc" / "last.ckpt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x" * size)
    for path in (file, file.parent):
        os.utime(path, (1e9, 1e9))
    return file.parent


def asked(world: World, kind: str, **arguments: Any) -> int:
    return people.ask(world.journal, world.config.state, kind, **arguments)


def answer(world: World, request: int) -> tuple[str, str]:
    row = world.row(schema.requests, id=request)
    return row.state, row.answer


def test_the_next_look_is_when_the_settings_in_force_say_it(daemon: Daemon, world: World) -> None:
    daemon.sweeper.recover()
    last = world.row(schema.sweeps).at
    edited = load(world.config.workspace, ["store.gc_hours=2"])
    daemon.sweeper.reconfigure(edited)
    job = daemon.sources.scheduler.get_job("gc")
    assert job.next_run_time.timestamp() == pytest.approx(last + 7200, abs=1)


def test_the_timer_has_the_folder_looked_through(daemon: Daemon, world: World) -> None:
    run = litter(world)
    daemon.handle(TimerFired("gc"))
    work(daemon)
    assert not run.exists()
    (sweep,) = world.rows(schema.sweeps)
    assert (sweep.because, sweep.ended is not None, len(sweep.removed)) == ("the timer", True, 1)
    assert daemon.sources.scheduler.get_job("gc") is not None  # for the next time


def test_a_person_is_answered_when_it_is_done(daemon: Daemon, world: World) -> None:
    run = litter(world)
    request = asked(world, "gc")
    daemon.handle(PersonAsked())
    assert answer(world, request)[0] == "working"
    work(daemon)
    state, said = answer(world, request)
    assert (state, str(run) in said, "whose cycle has ended" in said) == ("done", True, True)
    assert daemon.because == []  # nothing to decide on


def test_the_first_start_removes_nothing_and_the_next_waits_for_its_hour(daemon: Daemon, world: World) -> None:
    run = litter(world)
    daemon.sweeper.recover()
    work(daemon)
    assert run.exists()
    daemon.sweeper.recover()
    (sweep,) = world.rows(schema.sweeps)
    job = daemon.sources.scheduler.get_job("gc")
    assert job.trigger.run_date.timestamp() == pytest.approx(sweep.at + 24 * 3600, abs=1)


def test_a_daemon_that_ended_in_the_midst_goes_on(daemon: Daemon, world: World) -> None:
    run = litter(world)
    aside = run.rename(run.with_name(".abc.7.removed"))
    with world.journal.begin() as connection:
        gc.claim(connection, world.config, gc.Plan((), 0, 0.0, 0), "the timer")
    request = asked(world, "gc")
    list(people.take(world.journal, daemon.serving))  # it was told, and the daemon was killed
    daemon.sweeper.recover()
    work(daemon)
    assert not aside.exists()
    assert answer(world, request)[0] == "done"


def test_under_a_bound_it_is_looked_at_with_every_decision(world: World, stand_in: StandIn) -> None:
    daemon = begin(world, load(world.config.workspace, ["store.max_gb=0.000001", "triton.url=127.0.0.1:9"]))
    run = litter(world)
    os.utime(run / "last.ckpt")
    daemon.because.append("drop 1")
    work(daemon)
    work(daemon)
    assert not run.exists()
    end(daemon)


def test_what_is_too_much_at_once_goes_in_parts(daemon: Daemon, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.sweeper.MOST", 2)
    run = litter(world)
    for number in range(4):
        shutil.copytree(run, run.with_name(f"run{number}"))
    daemon.handle(TimerFired("gc"))
    work(daemon)
    assert list(run.parent.iterdir()) == []
    assert [len(sweep.removed) for sweep in world.rows(schema.sweeps)] == [2, 2, 1]


def test_where_the_bound_cannot_be_reached_it_is_said_once(
    world: World, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = begin(world, load(world.config.workspace, ["store.max_gb=0.000001", "triton.url=127.0.0.1:9"]))
    with caplog.at_level(logging.ERROR, "relearn"):
        for _ in range(3):
            daemon.handle(TimerFired("gc"))
            work(daemon)
    assert caplog.text.count("for what is needed alone") == 1
    end(daemon)


def test_nothing_is_removed_while_a_drop_is_read(daemon: Daemon, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copies lie in the store before they are written down."""
    run = litter(world)
    monkeypatch.setattr(type(daemon.reader), "busy", True)
    daemon.handle(TimerFired("gc"))
    daemon.work()
    assert daemon.sweeper.chore is None
    monkeypatch.undo()
    work(daemon)
    assert not run.exists()


def test_trouble_is_said_and_tried_again_later(
    daemon: Daemon, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("Input/output error")

    (id_,) = world.samples("cat", "train")
    asked(world, "forget", what="class:cat")
    monkeypatch.setattr(erase, "erase", fail)
    with caplog.at_level(logging.ERROR, "relearn"):
        daemon.handle(PersonAsked())
        work(daemon)
        daemon.work()
    assert caplog.text.count("Input/output error") == 1
    assert world.row(schema.erasures, sample_id=id_).erased is None
    monkeypatch.undo()
    daemon.sweeper.rests_until = 0.0
    work(daemon)
    assert world.row(schema.erasures, sample_id=id_).erased is not None


def training(daemon: Daemon, world: World, stand_in: StandIn) -> list[int]:
    """A cycle whose training hangs; the samples of its snapshot."""
    world.require()
    ids = []
    for name in ("cat", "dog"):
        ids += [*world.samples(name, "train", 28), *world.samples(name, "judge", 2)]
    for row in world.rows(schema.samples):
        copy = store.place(world.config.state / "store", row.sha256.hex())
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"image")
    stand_in.behave(train=["hang"])
    daemon.because.append("drop 1")
    daemon.work()
    while "train" not in [run["stage"] for run in stand_in.runs]:
        if not daemon.queue.empty():
            daemon.handle(daemon.queue.get())
            daemon.work()
        time.sleep(0.01)
    return ids


def sha_of(world: World, id_: int) -> str:
    return bytes(world.row(schema.samples, id=id_).sha256).hex()


def test_a_cycle_that_stands_on_it_is_interrupted_before_a_byte_goes(
    daemon: Daemon, world: World, stand_in: StandIn
) -> None:
    ids = training(daemon, world, stand_in)
    sha = sha_of(world, ids[0])
    copy = store.place(world.config.state / "store", sha)
    request = asked(world, "forget", what=sha)
    daemon.handle(PersonAsked())
    cycle = world.rows(schema.cycles)[0]
    assert (cycle.state, cycle.reason) == ("interrupted", "images that it stands on were forgotten")
    assert "cycle 1 for edge is interrupted" in answer(world, request)[1]
    daemon.work()
    assert copy.exists()  # its child may still be reading
    stand_in.behave(train=["hang"])
    work(daemon, until=lambda: answer(world, request)[0] == "done")
    assert not copy.exists()


def test_a_cycle_that_does_not_stand_on_it_goes_on(daemon: Daemon, world: World, stand_in: StandIn) -> None:
    training(daemon, world, stand_in)
    (later,) = world.samples("cat", "train", mark="later")
    request = asked(world, "forget", what=sha_of(world, later))
    daemon.handle(PersonAsked())
    work(daemon, until=lambda: answer(world, request)[0] == "done")
    assert world.row(schema.cycles).state == "running"
    assert world.row(schema.erasures).erased is not None


def test_a_daemon_killed_before_it_interrupted_does_so_at_its_next_start(
    daemon: Daemon, world: World, stand_in: StandIn
) -> None:
    ids = training(daemon, world, stand_in)
    asked(world, "forget", what=sha_of(world, ids[0]))
    list(people.take(world.journal, daemon.serving))
    assert world.row(schema.cycles).state == "running"
    daemon.handle(TimerFired("start"))
    assert world.rows(schema.cycles)[0].state == "interrupted"


def test_a_chore_that_failed_holds_nothing_up(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    daemon.sweeper.chore = "look"
    daemon.handle(ChoreEnded("look", None, "OSError: full"))
    assert daemon.sweeper.chore is None
    assert "OSError: full" in caplog.text
