"""The daemon's loop: which lane an event goes to, when it decides, that it stops; no Triton is asked.

Where a cycle runs, its children stand in for pipeline and deploy, so that the daemon's side alone is tried.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from daemon import configurations, loop, outbox, people, schema, servers, store
from daemon.config import Config, load
from daemon.errors import ConfigError, WorkspaceBusy
from daemon.events import (
    ArtifactLost,
    ChildEnded,
    ChildSpoke,
    ConfigTouched,
    ConstraintsTouched,
    DropSettled,
    Event,
    ImagesComing,
    PersonAsked,
    SourceFailed,
    Stop,
    SwitchEnded,
    TimerFired,
)
from daemon.journal import claim
from daemon.lock import is_running, locked
from daemon.loop import Daemon, children_of
from daemon.serving import Serving
from daemon.stock import artifact_folder
from daemon.sweeper import Sweeper

World = Any  # tests/unit/daemon/conftest.py
StandIn = Any
Png = Callable[..., Path]


@pytest.fixture
def config(workspace: Path) -> Config:
    (workspace / "state" / "duplicates").mkdir(parents=True)
    overrides = ["watch.settle_seconds=0.01", "triton.url=127.0.0.1:9", "policies.cooldown.minutes=0"]
    return load(workspace, overrides)


@pytest.fixture
def daemon(world: World, stand_in: StandIn) -> Iterator[Daemon]:
    """A daemon whose events the test hands over; its timers go off at no time of their own."""
    daemon = begin(world)
    yield daemon
    end(daemon)


def begin(world: World) -> Daemon:
    daemon = Daemon(world.config)
    daemon.serving.devices = world.devices
    daemon.sources.scheduler.start(paused=True)
    return daemon


def end(daemon: Daemon) -> None:
    daemon.sources.scheduler.remove_all_jobs()  # one that falls due while it stops would be missed
    daemon.sources.scheduler.shutdown(wait=False)
    daemon.sources._unwatch_all()
    for keeper in daemon.serving.keepers:
        keeper.stop()
    for child in (
        *daemon.reader.children,
        *daemon.reader.crew.ready,
        daemon.worker.child,
        daemon.observer.child,
        daemon.auditor.child,
        daemon.drift_watch.child,
        *daemon.worker.leaving.values(),
    ):
        if child:
            child.kill()
            child.wait(30)


def enough(world: World) -> None:
    for name in ("cat", "dog"):
        world.samples(name, "train", 18)
        world.samples(name, "judge", 2)


def test_a_cycle_that_could_not_begin_is_gone_on_with(
    daemon: Daemon, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk error between its decision and its first step: no second one is begun beside it."""

    def fail(file: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    daemon.read_constraints()  # they are as they were when the cycle is gone on with
    enough(world)
    daemon.because.append("drop 1")
    with monkeypatch.context() as broken:
        broken.setattr("daemon.cycle.snapshot.read", fail)
        with pytest.raises(OSError, match="Input/output error"):
            daemon.work()
    daemon.handle(TimerFired("after trouble"))
    daemon.work()
    (cycle,) = world.rows(schema.cycles)
    assert daemon.worker.cycle is not None
    assert (cycle.state, daemon.worker.cycle.id) == ("running", cycle.id)


def work(daemon: Daemon, until: Callable[[], object] = lambda: False) -> None:
    """As the loop does it, until nothing is under way or a condition holds."""
    daemon.work()
    while not until() and (daemon.worker.busy or any(map(loop.children_of, daemon.lanes))):
        if daemon.worker.cycle and not daemon.worker.child:
            return  # it waits for Triton, or for a retry
        daemon.handle(daemon.queue.get(timeout=60))
        daemon.work()


def decided(world: World) -> list[tuple[str, str, str]]:
    return [(row.target, row.event, row.action) for row in world.rows(schema.decisions)]


# --- from event to lane ---------------------------------------------------------------------------------------------


def test_a_drop_goes_to_the_reader(daemon: Daemon, config: Config, world: World, png: Png) -> None:
    world.require()
    file = png(config.folders[0] / "cat" / "1.png")
    daemon.handle(DropSettled(config.folders[0], frozenset({file})))
    work(daemon)
    assert [row.path for row in world.rows(schema.occurrences)] == ["cat/1.png"]
    assert decided(world) == [("edge", "drop 1: 1 images, 0 gone, 0 rejected", "nothing")]


def test_a_scan_finds_what_notification_missed(
    daemon: Daemon, config: Config, world: World, png: Png, eventually: Callable[..., None]
) -> None:
    file = png(config.folders[0] / "cat" / "1.png")
    eventually(lambda: time.time() > file.stat().st_ctime + 0.05)  # it is no longer too fresh for a scan
    daemon.handle(TimerFired("rescan"))
    work(daemon)
    assert [row.path for row in world.rows(schema.occurrences)] == ["cat/1.png"]


@pytest.mark.parametrize("timer", ["rescan", "overdue", "timeout", "retry", "reading", "unheard of"])
def test_no_timer_calls_for_a_decision_by_itself(daemon: Daemon, world: World, timer: str) -> None:
    world.require()
    daemon.read_constraints()
    daemon.because.clear()
    daemon.handle(TimerFired(timer))
    work(daemon)
    assert decided(world) == []


def test_a_wait_that_is_over_is_decided_on(daemon: Daemon, world: World) -> None:
    world.require()
    daemon.handle(TimerFired("look again"))
    work(daemon)
    assert decided(world) == [("edge", "the wait is over", "nothing")]


def test_the_causes_of_one_decision_are_told_together(daemon: Daemon, world: World) -> None:
    world.require()
    daemon.because += ["drop 1", "constraints of edge changed"]
    daemon.work()
    daemon.work()
    assert [event for _, event, _ in decided(world)] == ["drop 1; constraints of edge changed"]


def test_a_source_that_failed_is_told_and_stops_nothing(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    daemon.handle(SourceFailed("/images: cannot be watched"))
    assert "/images: cannot be watched" in caplog.text


def test_an_artifact_that_is_lost_is_decided_on(daemon: Daemon, world: World) -> None:
    world.require()
    enough(world)
    world.champion()
    shutil.rmtree(artifact_folder(world.config.state, "old"))
    daemon.handle(ArtifactLost("edge"))
    daemon.work()
    assert decided(world)[-1] == ("edge", "what edge serves is lost", "rebuild")
    assert world.rows(schema.cycles)[-1].trigger == "stock"


def test_what_people_ask_is_answered(daemon: Daemon, config: Config, world: World) -> None:
    world.require()
    enough(world)
    people.ask(world.journal, config.state, "retrain", target="edge")
    daemon.handle(PersonAsked())
    daemon.work()
    row = world.row(schema.decisions)
    assert (row.action, row.reason.startswith("requested: ")) == ("train", True)
    assert daemon.worker.busy


def test_a_training_that_was_promised_is_owed_by_the_next_daemon_too(
    daemon: Daemon, config: Config, world: World
) -> None:
    world.require()
    enough(world)
    people.ask(world.journal, config.state, "retrain", target="edge")
    daemon.handle(PersonAsked())  # and killed before it decides
    later = begin(world)
    try:
        later.because.append("the daemon started")
        later.work()
        assert world.row(schema.decisions).reason.startswith("requested: ")
    finally:
        end(later)


def test_a_switch_that_ended_goes_to_the_worker(daemon: Daemon, world: World, caplog: pytest.LogCaptureFixture) -> None:
    enough(world)
    world.champion()
    daemon.handle(SwitchEnded(world.row(schema.promotions).id, "probe: other answers"))
    assert "edge: version 1 is not served: probe: other answers" in caplog.text


# --- children -------------------------------------------------------------------------------------------------------


def training(daemon: Daemon, world: World, stand_in: StandIn) -> None:
    """A cycle is in the midst of its training."""
    stand_in.behave(train=["hang", "ok"])
    if not world.rows(schema.constraint_files):
        world.require()
    enough(world)
    daemon.because.append("drop 1")
    work(daemon, lambda: any(row.name == "train" and row.state == "running" for row in world.rows(schema.stages)))
    assert daemon.worker.child is not None


def pause(daemon: Daemon, world: World, kind: str = "pause") -> None:
    people.ask(world.journal, world.config.state, kind, target=None, because="a visit")
    daemon.handle(PersonAsked())


def test_a_pause_stops_what_runs_and_its_end_goes_on_with_it(
    daemon: Daemon, world: World, stand_in: StandIn, config: Config, png: Png
) -> None:
    training(daemon, world, stand_in)
    pause(daemon, world)
    daemon.handle(DropSettled(config.folders[0], frozenset({png(config.folders[0] / "cat" / "1.png")})))
    work(daemon)
    assert (daemon.worker.busy, world.row(schema.cycles).state) == (False, "running")
    last = world.rows(schema.decisions)[-1]
    assert ("paused by" in last.reason, "(a visit)" in last.reason) == (True, True)
    assert [row.path for row in world.rows(schema.occurrences)][-1] == "cat/1.png"  # what comes is read
    pause(daemon, world, "resume")
    work(daemon)
    assert [run["stage"] for run in stand_in.runs].count("train") == 2
    assert world.row(schema.promotions).cycle_id == world.row(schema.cycles).id


def test_what_rested_is_not_gone_on_with_where_its_constraints_were_edited(
    daemon: Daemon, world: World, stand_in: StandIn
) -> None:
    training(daemon, world, stand_in)
    pause(daemon, world)
    work(daemon)
    world.require(at=2.0, latency_p95_ms=4.0)
    pause(daemon, world, "resume")
    daemon.work()
    first, second = world.rows(schema.cycles)
    assert (first.state, first.reason) == ("interrupted", "constraints of edge changed")
    assert second.requirement["latency_p95_ms"] == 4.0


def test_a_child_of_the_past_is_not_listened_to(daemon: Daemon, world: World, stand_in: StandIn) -> None:
    """A late line with another token changes nothing, and neither does a late end."""
    training(daemon, world, stand_in)
    before = [tuple(row) for table in (schema.stages, schema.attempts) for row in world.rows(table)]
    child = daemon.worker.child
    for token in ("c1.s1.a99", "c99.s1.a1", "drop1.3.0", "observe.old.ab.3"):
        daemon.handle(ChildSpoke(token, {"token": token, "stage": "train", "event": "finished", "outputs": {}}))
        daemon.handle(ChildEnded(token, 1, "late"))
    assert [tuple(row) for table in (schema.stages, schema.attempts) for row in world.rows(table)] == before
    assert daemon.worker.child is child


def test_where_a_stage_fails_the_copies_that_the_store_lacks_are_made_again(
    daemon: Daemon, world: World, stand_in: StandIn, config: Config, png: Png
) -> None:
    files = [png(config.folders[0] / "cat" / f"{number}.png", number) for number in range(2)]
    shas = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    training(daemon, world, stand_in)
    daemon.handle(DropSettled(config.folders[0], frozenset(files)))
    work(daemon, lambda: daemon.drops)
    copies = [store.place(config.state / "store", sha) for sha in shas]
    before = copies[1].stat()
    copies[0].unlink()
    assert daemon.worker.child is not None
    daemon.worker.child.kill()
    while not copies[0].exists() or daemon.reader.busy:
        daemon.handle(daemon.queue.get(timeout=60))
        daemon.work()
    assert hashlib.sha256(copies[0].read_bytes()).hexdigest() == shas[0]
    assert copies[1].stat() == before  # what is there is left alone
    seen = [row for row in world.rows(schema.occurrences) if row.path == "cat/0.png"]
    assert [row.gone is None for row in seen] == [False, True]
    assert seen[0].class_name == seen[1].class_name


def test_what_comes_while_a_cycle_runs_is_decided_when_it_has_ended(
    daemon: Daemon, world: World, stand_in: StandIn, config: Config, png: Png
) -> None:
    training(daemon, world, stand_in)
    file = png(config.folders[0] / "cat" / "1.png")
    daemon.handle(DropSettled(config.folders[0], frozenset({file})))
    work(daemon, lambda: daemon.drops)
    assert len(decided(world)) == 1
    assert daemon.worker.cycle is not None
    snapshot = daemon.worker.cycle.ground.snapshot
    assert world.row(schema.cycles).snapshot_id == snapshot
    assert daemon.worker.child is not None
    daemon.worker.child.kill()  # it is tried again, and goes on
    while daemon.worker.child:
        daemon.handle(daemon.queue.get(timeout=60))
    assert len(decided(world)) == 1


def test_a_cycle_that_failed_leaves_the_daemon_waiting(
    daemon: Daemon, world: World, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three attempts, each after its wait; then a decision that waits, and nothing before its moment."""
    clock = [1_800_000_000.0]
    for module in ("cycle", "worker", "evidence", "decisions"):
        monkeypatch.setattr(f"daemon.{module}.now", lambda: clock[0])
    stand_in.behave(train=["fail"])
    world.require()
    enough(world)
    daemon.because.append("drop 1")
    for wait in (5.0, 10.0):
        work(daemon)
        clock[0] += wait
        daemon.handle(TimerFired("retry"))
    work(daemon)
    assert world.row(schema.cycles).state == "failed"
    assert [action for *_, action in decided(world)] == ["train", "wait"]
    until = world.rows(schema.decisions)[-1].until
    assert until == clock[0] + 20.0
    job = daemon.sources.scheduler.get_job("look again")
    assert job.next_run_time.timestamp() == until
    runs = len(stand_in.runs)
    for _ in range(3):
        daemon.work()
    assert (len(stand_in.runs), len(decided(world)), daemon.worker.busy) == (runs, 2, False)
    clock[0] = until
    daemon.handle(TimerFired("look again"))
    daemon.work()
    assert len(world.rows(schema.cycles)) == 2


def serve(daemon: Daemon, world: World) -> None:
    """Triton has what was promoted."""
    promotion = world.row(schema.promotions)
    with world.journal.begin() as connection:
        assert claim(connection, schema.promotions, promotion.id, "switching", "serving", served=3.0)
    daemon.handle(SwitchEnded(promotion.id, None))


def test_from_a_drop_to_what_is_served(daemon: Daemon, world: World) -> None:
    world.require()
    enough(world)
    daemon.because.append("drop 1")
    work(daemon)
    serve(daemon, world)
    work(daemon)
    assert world.row(schema.cycles).outcome == "promoted"
    assert decided(world) == [("edge", "drop 1", "train"), ("edge", "cycle 1 ended: promoted", "nothing")]


def test_the_champion_is_asked_about_a_drop_before_it_is_decided_on(
    daemon: Daemon, world: World, stand_in: StandIn, config: Config, png: Png
) -> None:
    world.require()
    enough(world)
    world.champion()
    files = frozenset(png(config.folders[0] / "cat" / f"{index}.png", index) for index in range(8))
    daemon.handle(DropSettled(config.folders[0], files))
    work(daemon)
    asked = world.rows(schema.observations)
    assert len(asked) == sum(run["stage"] == "observe" for run in stand_in.runs) * len(asked) > 0
    row = world.rows(schema.decisions)[-1]
    assert row.event.startswith("drop ")
    assert [run["stage"] for run in stand_in.runs] == ["observe", "audit"]
    assert row.evidence["new_answers"] == [{"name": "cat", "samples": len(asked), "correct": len(asked)}]


def test_labels_and_drift_are_never_looked_at_at_once(
    daemon: Daemon, world: World, stand_in: StandIn, eventually: Callable[..., None]
) -> None:
    """Both write embeddings of the same model; the one that comes meanwhile waits."""
    world.require()
    for name in ("cat", "dog"):
        world.samples(name, "train", 15)
        world.samples(name, "tune", 20)
        world.samples(name, "judge", 5)
    world.champion()
    world.samples("cat", "train", 12, mark="new")
    stand_in.behave(drift=["hang", "ok"])
    daemon.brought("drop 1")
    work(daemon, lambda: daemon.drift_watch.child)
    eventually(lambda: stand_in.runs[-1]["stage"] == "drift")
    world.samples("cat", "train", 3, mark="newer")
    daemon.brought("drop 2")
    work(daemon, lambda: not daemon.observer.busy)
    assert (daemon.auditor.child, daemon.auditor.busy) == (None, True)
    assert daemon.drift_watch.child is not None
    daemon.drift_watch.child.kill()
    work(daemon, lambda: daemon.auditor.child)
    assert daemon.auditor.child is not None
    assert (daemon.drift_watch.child, daemon.drift_watch.busy) == (None, True)
    work(daemon)
    assert [run["stage"] for run in stand_in.runs if run["stage"] in ("audit", "drift")] == [
        "audit", "drift", "audit", "drift",
    ]  # fmt: skip


def test_a_copy_that_goes_on_is_waited_for_but_not_for_ever(
    daemon: Daemon, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training would begin on the classes that came first."""
    clock = [1_800_000_000.0]
    monkeypatch.setattr(loop, "now", lambda: clock[0])
    going_on = [True]
    monkeypatch.setattr(type(daemon.sources), "unsettled", property(lambda _self: going_on[0]))
    world.require()
    daemon.brought("drop 1")
    daemon.work()
    assert decided(world) == []
    going_on[0] = False
    daemon.work()
    assert decided(world) == [("edge", "drop 1", "nothing")]
    going_on[0] = True
    daemon.brought("drop 2")
    daemon.work()
    clock[0] += loop.PATIENCE_SECONDS
    daemon.work()
    assert decided(world)[1:] == [("edge", "drop 2", "nothing")]
    daemon.brought("drop 3")
    daemon.because.append("constraints of edge changed")  # an edit waits for no copy
    daemon.work()
    assert decided(world)[2:] == [("edge", "drop 3; constraints of edge changed", "nothing")]


def test_a_start_on_a_full_disk_is_tried_again(
    daemon: Daemon, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_journal: object, **_named: object) -> None:
        raise OperationalError("", None, Exception("database or disk is full"))

    with monkeypatch.context() as broken:
        broken.setattr(loop.intake, "leave_folders", full)
        with pytest.raises(OperationalError) as caught:
            daemon.handle(TimerFired("start"))
        daemon.bear(caught.value)
        daemon.bear(caught.value)
    assert caplog.text.count("the journal: database or disk is full") == 1  # however many events meet it
    assert daemon.sources.scheduler.get_job("start") is not None
    caplog.set_level("INFO", "relearn")
    daemon.handle(TimerFired("start"))
    assert "what was in the way is over" in caplog.text
    assert daemon.because == ["constraints of edge changed", "the daemon started"]


@pytest.mark.parametrize("part", ["register", "forget_others"])
def test_a_journal_that_cannot_be_written_at_the_start_ends_nothing(
    world: World, workspace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    """Neither what the entries of [[notify]] nor what the servers write down then."""
    monkeypatch.setattr(loop, "TROUBLE_SECONDS", 0.2)
    (workspace / "config.toml").write_text('version = 1\n[[notify]]\nurl = "json://127.0.0.1:9"\n')
    daemon = Daemon(load(workspace, ["triton.url=127.0.0.1:9"]))
    module = {"register": outbox, "forget_others": servers}[part]
    real, refused = getattr(module, part), []

    def write(*given: object) -> None:
        if len(refused) < 2:
            refused.append(given)
            raise OperationalError("", {}, Exception("database or disk is full"))
        real(*given)
        daemon.stop()

    monkeypatch.setattr(module, part, write)
    daemon.run()
    assert caplog.text.count("the journal: database or disk is full; all is looked through again") == 1
    assert [row.name for row in world.rows(schema.listeners)] == ["json"]


def test_trouble_and_its_end_are_noted_for_whoever_is_told(daemon: Daemon, world: World) -> None:
    away = OSError(errno.EIO, "Input/output error", "/images")
    daemon.bear(away)
    daemon.bear(away)
    assert daemon.describe() == "trouble: [Errno 5] Input/output error: '/images'"
    daemon.get_over()
    assert daemon.describe() == "watching 1 folder"
    daemon.bear(OperationalError("", None, Exception("database or disk is full")))  # nothing can be written now
    daemon.get_over()
    assert [(row.kind, row.about, row.what, row.reason) for row in world.rows(schema.notices)] == [
        ("trouble", "the daemon", what, f"{said}{reason}")
        for what, said, reason in (
            ("the daemon is in trouble", "", "[Errno 5] Input/output error: '/images'"),
            ("the daemon goes on", "what was in the way is over: ", "[Errno 5] Input/output error: '/images'"),
            ("the daemon goes on", "what was in the way is over: ", "the journal: database or disk is full"),
        )
    ]


def test_what_measures_has_the_machine_to_itself(
    daemon: Daemon, world: World, stand_in: StandIn, config: Config, png: Png
) -> None:
    """A drop that comes while the challenger is measured is read when that has ended."""
    world.require()
    enough(world)
    stand_in.behave(measure=["hang", "ok"])
    daemon.because.append("drop 1")
    work(daemon, lambda: stand_in.order and stand_in.order[-1][-1] == "measure")
    daemon.handle(DropSettled(config.folders[0], frozenset({png(config.folders[0] / "cat" / "1.png")})))
    daemon.work()
    assert (daemon.reader.children, daemon.reader.busy) == ([], True)
    assert daemon.worker.child is not None
    daemon.worker.child.kill()
    work(daemon, lambda: daemon.reader.children)
    assert daemon.worker.child is None


def test_what_is_to_be_measured_waits_for_the_reader_and_no_drop_overtakes_it(
    daemon: Daemon, world: World, config: Config, png: Png
) -> None:
    world.require()
    enough(world)
    daemon.because.append("drop 1")
    daemon.work()
    while daemon.worker.child:  # to the end of the training
        daemon.handle(daemon.queue.get(timeout=60))
    images = config.folders[0]
    daemon.reader.waiting.append(DropSettled(images, frozenset({png(images / "cat" / "1.png")})))
    while not daemon.reader.children:
        assert daemon.reader.step()
    reading = daemon.reader.children[0]
    daemon.reader.waiting.append(DropSettled(images, frozenset({png(images / "cat" / "2.png")})))
    daemon.work()
    assert (daemon.worker.measures, daemon.worker.child) == (True, None)
    while daemon.worker.child is None:
        daemon.handle(daemon.queue.get(timeout=60))
        daemon.work()
    assert reading is not None
    assert (reading.wait(0), daemon.reader.child, len(daemon.reader.waiting)) == (True, None, 1)


def test_what_is_to_be_measured_waits_for_the_tidying_up(daemon: Daemon, world: World) -> None:
    world.require()
    enough(world)
    daemon.because.append("drop 1")
    daemon.work()
    while daemon.worker.child:  # to the end of the training
        daemon.handle(daemon.queue.get(timeout=60))
    daemon.sweeper.chore = "delete"
    daemon.work()
    assert (daemon.worker.measures, daemon.worker.child) == (True, None)
    daemon.sweeper.chore = None
    daemon.work()
    assert daemon.worker.child is not None


# --- constraints ----------------------------------------------------------------------------------------------------


def edit(config: Config, old: str, new: str) -> None:
    file = config.constraints / "edge.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_an_edit_interrupts_its_target_s_cycle(daemon: Daemon, world: World, stand_in: StandIn, config: Config) -> None:
    daemon.read_constraints()
    training(daemon, world, stand_in)
    edit(config, "artifact_max_mb = 50", "artifact_max_mb = 49")
    daemon.handle(ConstraintsTouched())
    assert world.row(schema.cycles).state == "interrupted"
    daemon.work()
    assert len(world.rows(schema.cycles)) == 1  # the child is not gone yet
    while daemon.worker.leaving:
        daemon.handle(daemon.queue.get(timeout=60))
    daemon.work()
    row = world.rows(schema.cycles)[-1]
    assert (row.state, row.requirement["artifact_max_mb"]) == ("running", 49)
    assert world.rows(schema.decisions)[-1].event == "constraints of edge changed"


@pytest.mark.parametrize("change", ["invalid", "another target"])
def test_what_is_not_the_target_s_valid_edit_interrupts_nothing(
    daemon: Daemon, world: World, stand_in: StandIn, config: Config, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.read_constraints()
    training(daemon, world, stand_in)
    if change == "invalid":
        edit(config, "artifact_max_mb", "artefact_max_mb")
    else:
        text = (config.constraints / "edge.toml").read_text()
        (config.constraints / "phone.toml").write_text(text)
    daemon.handle(ConstraintsTouched())
    daemon.work()
    assert world.row(schema.cycles).state == "running"
    assert daemon.worker.child is not None
    assert ("the last valid constraints of edge stand" in caplog.text) == (change == "invalid")


@pytest.mark.parametrize("change", ["a comment", "broken and mended"])
def test_an_edit_that_asks_for_the_same_interrupts_nothing(
    daemon: Daemon, world: World, stand_in: StandIn, config: Config, change: str
) -> None:
    daemon.read_constraints()
    training(daemon, world, stand_in)
    before = (config.constraints / "edge.toml").read_text()
    if change == "a comment":
        edit(config, "version = 1", "version = 1  # of ours")
    else:
        edit(config, "artifact_max_mb", "artefact_max_mb")
        daemon.handle(ConstraintsTouched())
        (config.constraints / "edge.toml").write_text(before)
    daemon.handle(ConstraintsTouched())
    assert world.row(schema.cycles).state == "running"


def test_a_removed_constraint_file_ends_its_target_s_cycle(
    daemon: Daemon, world: World, stand_in: StandIn, config: Config
) -> None:
    daemon.read_constraints()
    training(daemon, world, stand_in)
    (config.constraints / "edge.toml").unlink()
    daemon.handle(ConstraintsTouched())
    row = world.row(schema.cycles)
    assert (row.state, row.reason) == ("interrupted", "constraints of edge removed")


# --- start and stop -------------------------------------------------------------------------------------------------


def test_a_start_finds_what_changed_while_nobody_looked(daemon: Daemon, config: Config, world: World) -> None:
    daemon.read_constraints()
    daemon.because.clear()
    enough(world)
    running = world.cycle(requirement=world.row(schema.constraint_files).requirement)
    with world.journal.begin() as connection:
        connection.execute(schema.drops.update().values(state="reading"))
    people.ask(world.journal, config.state, "retrain", target="phone")
    daemon.recover()
    assert daemon.worker.cycle is not None
    assert daemon.worker.cycle.id == running
    assert {row.state for row in world.rows(schema.drops)} == {"matching"}  # near-duplicates are looked for first
    assert [row.target for row in world.rows(schema.constraint_files)] == ["edge"]
    assert [settled.paths for settled in daemon.reader.waiting] == [None]
    assert daemon.because == ["the daemon started"]
    assert world.row(schema.requests).state == "refused"


def test_memory_is_given_back_once_it_is_quiet_after_work(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def give_back() -> None:
        given.append("back")
        daemon.queue.put(PersonAsked())

    monkeypatch.setattr(loop, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(loop.memory, "give_back", give_back)
    daemon.because.append("drop 1")
    daemon.work()
    daemon.queue.put(TimerFired("overdue"))
    assert (daemon.wait(), given) == (TimerFired("overdue"), [])
    assert (daemon.wait(), given) == (PersonAsked(), ["back"])
    daemon.work()  # there is nothing to do
    daemon.queue.put(TimerFired("overdue"))
    assert (daemon.wait(), daemon.worked, given) == (TimerFired("overdue"), False, ["back"])


def test_an_edit_made_while_no_daemon_ran_interrupts_what_was_unfinished(daemon: Daemon, world: World) -> None:
    enough(world)
    world.require(artifact_max_mb=1.0)
    world.cycle()
    daemon.recover()
    assert world.row(schema.cycles).state == "interrupted"
    assert daemon.worker.cycle is None


def test_a_daemon_stops_when_it_is_told_to_and_its_children_with_it(
    world: World, stand_in: StandIn, eventually: Callable[..., None]
) -> None:
    """The whole daemon in a thread: what is unfinished goes on at the next start."""
    stand_in.behave(train=["hang"])
    enough(world)
    daemon = Daemon(world.config)
    thread = threading.Thread(target=daemon.run)
    thread.start()
    try:
        eventually(lambda: any(run["stage"] == "train" for run in stand_in.runs), seconds=60)
        eventually(lambda: any(row.outcome == "done" for row in world.rows(schema.attempts)))  # of what came before it
        child = daemon.worker.child
        assert child is not None
    finally:
        daemon.queue.put(Stop())
        thread.join(60)
    assert not thread.is_alive()
    assert child.wait(0)
    assert world.row(schema.cycles).state == "running"
    later = begin(world)
    try:
        later.worker.recover()
        assert later.worker.cycle is not None
        assert [row.outcome for row in world.rows(schema.attempts)] == ["done", "lost"]
    finally:
        end(later)


def test_the_child_that_gets_ready_is_asked_to_end_with_the_others(daemon: Daemon, config: Config, png: Png) -> None:
    """It is no work at hand: nobody waits for it, nor listens to it, until it is told to begin."""
    images = config.folders[0]
    file = png(images / "cat" / "1.png")
    daemon.reader.waiting.append(DropSettled(images, frozenset({file})))
    while not daemon.reader.crew.ready:
        if not daemon.reader.step():
            daemon.handle(daemon.queue.get(timeout=30))
    (ready,) = daemon.reader.crew.ready
    assert ready not in children_of(daemon.reader)
    daemon.end_children()
    assert ready.wait(0)


def test_readers_get_ready_where_images_come_and_nothing_needs_the_machine(
    daemon: Daemon, world: World, stand_in: StandIn
) -> None:
    """What is measured is measured alone."""
    daemon.handle(ImagesComing(many=True))
    ready = daemon.reader.crew.ready
    assert len(ready) == 3
    training(daemon, world, stand_in)
    assert daemon.reader.crew.ready == []
    assert all(child.wait(30) for child in ready)
    daemon.handle(ImagesComing(many=True))
    assert daemon.reader.crew.ready == []


def test_readers_at_work_are_enough(daemon: Daemon, config: Config, png: Png) -> None:
    images = config.folders[0]
    daemon.handle(DropSettled(images, frozenset({png(images / "cat" / "1.png")})))
    work(daemon, lambda: daemon.reader.children)
    ready = daemon.reader.crew.ready
    daemon.handle(ImagesComing(many=True))
    assert daemon.reader.crew.ready == ready
    later = png(images / "cat" / "2.png", 2)
    daemon.handle(DropSettled(images, frozenset({later})))
    work(daemon)
    with daemon.journal.connect() as connection:
        assert connection.execute(select(schema.drops.c.added)).scalars().all() == [1, 1]


# --- the configuration is read again --------------------------------------------------------------------------------


def configure(config: Config, old: str, new: str) -> None:
    text = config.file.read_text()
    assert old in text
    config.file.write_text(text.replace(old, new, 1))


@pytest.fixture
def _log_level() -> Iterator[None]:
    before = loop.log.level
    yield
    loop.log.setLevel(before)


@pytest.mark.usefixtures("_log_level")
def test_every_part_goes_on_with_what_was_edited(daemon: Daemon, config: Config, world: World) -> None:
    configure(config, "serve_threads = 1", "serve_threads = 2")
    configure(config, 'level = "info"', 'level = "error"')
    daemon.handle(ConfigTouched())
    parts = (daemon, daemon.sources, daemon.serving, daemon.sweeper, *daemon.lanes)
    assert {part.config.settings.compute.serve_threads for part in parts} == {2}
    assert all("2 threads" in device for device in daemon.serving.devices.values())
    assert loop.log.level == logging.ERROR
    row = world.row(schema.configurations)
    assert (row.because, row.error, row.settings["compute"]["serve_threads"]) == ("SIGHUP", None, 2)


@pytest.mark.usefixtures("_log_level")
def test_an_edited_policy_decides_at_once(daemon: Daemon, config: Config, world: World) -> None:
    world.require()
    enough(world)
    configure(config, "first_classes = 2", "first_classes = 3")
    daemon.handle(ConfigTouched())
    work(daemon)
    configure(config, "first_classes = 3", "first_classes = 2")
    daemon.handle(ConfigTouched())
    work(daemon, lambda: daemon.worker.busy)
    assert [action for _, _, action in decided(world)] == ["nothing", "train"]
    assert decided(world)[1][1] == "the configuration was read again"


@pytest.mark.usefixtures("_log_level")
def test_what_cannot_be_used_is_refused_and_nothing_changes(
    daemon: Daemon, config: Config, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    configure(config, "epochs = 20", "epochs = 3")
    configure(config, "nice = 5", "nice = 50")
    daemon.handle(ConfigTouched())
    assert daemon.worker.config is daemon.config is config
    (said,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert said.startswith(f"{config.file}:")
    assert "compute.nice: " in said
    assert said.endswith("the settings before stand")
    assert said.startswith(world.row(schema.configurations).error)
    assert world.row(schema.configurations).settings is None
    assert daemon.because == []


@pytest.mark.usefixtures("_log_level")
@pytest.mark.parametrize(("new", "state"), [("epochs = 3", "done"), ("epochs = 0", "refused")])
def test_who_asks_for_it_is_told_what_came_of_it(
    daemon: Daemon, config: Config, world: World, new: str, state: str
) -> None:
    configure(config, "epochs = 20", new)
    people.ask(daemon.journal, config.state, "reload")
    daemon.handle(PersonAsked())
    request = world.row(schema.requests)
    assert request.state == state
    assert ("train.epochs 20 -> 3" in request.answer) is (state == "done")
    assert ("train.epochs: " in request.answer) is (state == "refused")


@pytest.mark.usefixtures("_log_level")
def test_a_daemon_killed_before_it_answered_has_read_it_at_its_next_start(daemon: Daemon, world: World) -> None:
    people.ask(daemon.journal, daemon.config.state, "reload")
    with daemon.journal.begin() as connection:
        claim(connection, schema.requests, world.row(schema.requests).id, "asked", "working")
    daemon.handle(TimerFired("start"))
    assert world.row(schema.requests).state == "done"
    assert world.row(schema.configurations).because == "the daemon started"


def fail_once(broken: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """The journal cannot be written the first time that this is called."""
    real, asked = getattr(owner, name), []

    def call(*arguments: Any) -> Any:
        asked.append(name)
        if len(asked) == 1:
            raise OperationalError("", None, Exception("database or disk is full"))
        return real(*arguments)

    broken.setattr(owner, name, call)


def meet(daemon: Daemon, event: Event) -> None:
    """The event is handled as `run` handles it, and meets a full disk."""
    with pytest.raises(OperationalError) as caught:
        daemon.handle(event)
    daemon.bear(caught.value)


PLACES = [
    ("the first write", configurations, "take"),
    ("servers", Serving, "settle"),
    ("who is told", outbox, "register"),
    ("the last part", Sweeper, "reconfigure"),
    ("the answer", configurations, "answer"),
]


@pytest.mark.usefixtures("_log_level")
@pytest.mark.parametrize(("owner", "name"), [place[1:] for place in PLACES], ids=[place[0] for place in PLACES])
def test_a_reload_that_meets_a_full_disk_is_done_once_there_is_room(
    daemon: Daemon, config: Config, world: World, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    daemon.handle(TimerFired("start"))
    configure(config, "nice = 5", "nice = 7")
    people.ask(daemon.journal, config.state, "reload")
    fail_once(monkeypatch, owner, name)
    meet(daemon, PersonAsked())
    assert world.row(schema.requests).state == "working"  # nobody is told that it is done
    daemon.handle(TimerFired("after trouble"))
    parts = (daemon, daemon.sources, daemon.serving, daemon.couriers, daemon.sweeper, *daemon.lanes)
    assert {part.config.settings.compute.nice for part in parts} == {7}
    request = world.row(schema.requests)
    assert request.state == "done"
    assert "is in force: " in request.answer
    assert ("compute.nice 5 -> 7" in request.answer) == (name != "answer")
    daemon.couriers.stop()


@pytest.mark.usefixtures("_log_level")
def test_a_file_that_is_spoilt_halfway_brings_all_back(
    daemon: Daemon, config: Config, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.handle(TimerFired("start"))
    configure(config, "nice = 5", "nice = 7")
    fail_once(monkeypatch, Sweeper, "reconfigure")
    meet(daemon, ConfigTouched())
    configure(config, "nice = 7", "nice = 70")
    daemon.handle(TimerFired("after trouble"))
    parts = (daemon, daemon.sources, daemon.serving, daemon.couriers, daemon.sweeper, *daemon.lanes)
    assert {part.config.settings.compute.nice for part in parts} == {5}


@pytest.mark.usefixtures("_log_level")
def test_one_that_was_asked_before_the_daemon_could_begin_is_not_said_to_be_a_start(
    daemon: Daemon, config: Config, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    people.ask(daemon.journal, config.state, "reload")
    configure(config, "nice = 5", "nice = 7")
    fail_once(monkeypatch, configurations, "take")
    meet(daemon, PersonAsked())
    daemon.handle(TimerFired("start"))
    assert "compute.nice 5 -> 7" in world.row(schema.requests).answer
    assert daemon.config.settings.compute.nice == 7


@pytest.mark.usefixtures("_log_level")
def test_a_folder_that_is_watched_no_more_is_left_as_at_a_restart(
    daemon: Daemon, config: Config, world: World, png: Png
) -> None:
    images, more = config.folders[0], config.workspace / "more"
    png(images / "cat" / "1.png", 1)
    png(more / "cat" / "2.png", 2)
    configure(config, 'folders = ["images"]', 'folders = ["images", "more"]')
    daemon.handle(ConfigTouched())
    work(daemon)
    assert {row.folder for row in world.rows(schema.occurrences, gone=None)} == {str(images), str(more)}
    configure(config, 'folders = ["images", "more"]', 'folders = ["images"]')
    daemon.handle(ConfigTouched())
    daemon.handle(DropSettled(more, None))  # what its watch said last
    daemon.sources.touch(more, more / "cat")
    work(daemon)
    assert {row.folder for row in world.rows(schema.occurrences, gone=None)} == {str(images)}


@pytest.mark.usefixtures("_log_level")
def test_a_drop_of_a_folder_that_is_taken_out_meanwhile_is_left_too(
    daemon: Daemon, config: Config, world: World, png: Png
) -> None:
    more = config.workspace / "more"
    png(more / "cat" / "2.png", 2)
    configure(config, 'folders = ["images"]', 'folders = ["images", "more"]')
    daemon.handle(ConfigTouched())
    work(daemon, lambda: daemon.reader.drop is not None and daemon.reader.drop.folder == more)
    configure(config, 'folders = ["images", "more"]', 'folders = ["images"]')
    daemon.handle(ConfigTouched())
    work(daemon)
    (row,) = world.rows(schema.occurrences)
    assert (row.folder, row.gone is None) == (str(more), False)


@pytest.fixture
def _handlers() -> Iterator[None]:
    """The signals' handlers, put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers", "stand_in")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it(
    world: World, caplog: pytest.LogCaptureFixture, number: int, eventually: Callable[..., None]
) -> None:
    caplog.set_level("INFO", "relearn")

    def send() -> None:
        eventually(lambda: world.rows(schema.decisions))
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        loop.run(world.config)
    finally:
        sender.join()  # before the handlers are put back
    assert "stopped; the next start goes on from here" in caplog.text
    assert not is_running(world.config.state)


@pytest.mark.usefixtures("_handlers", "stand_in")
def test_it_goes_down_with_its_terminal(
    world: World, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    ours, terminal = os.openpty()
    with os.fdopen(terminal) as opened:
        monkeypatch.setattr("sys.stdin", opened)

        def hang_up() -> None:
            eventually(lambda: world.rows(schema.decisions))
            os.kill(os.getpid(), signal.SIGHUP)
            eventually(lambda: not is_running(world.config.state))

        sender = threading.Thread(target=hang_up)
        sender.start()
        loop.run(world.config)
        sender.join()
    os.close(ours)
    assert [row.because for row in world.rows(schema.configurations)] == ["the daemon started"]


@pytest.mark.parametrize("missing", ["images", "constraints"])
def test_it_does_not_start_without_its_folders(config: Config, missing: str) -> None:
    (config.folders[0] if missing == "images" else config.constraints).rename(config.workspace / "away")
    with pytest.raises(ConfigError, match=f"{missing} is watched and not there"):
        loop.run(config)


def test_it_does_not_start_beside_another(world: World) -> None:
    with locked(world.config.state), pytest.raises(WorkspaceBusy):
        loop.run(world.config)
    with world.journal.connect() as connection:
        assert connection.execute(select(schema.decisions)).all() == []
