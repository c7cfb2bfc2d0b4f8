"""The lane that runs cycles: begun, finished, waiting for Triton, retried, timed out.

The children stand in for pipeline and deploy, so that the daemon's side alone is tried; no Triton is asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from daemon import pauses, schema
from daemon.config import load
from daemon.events import ChildEnded, ChildSpoke, Event, SwitchEnded
from daemon.journal import add, change, claim
from daemon.serving import Serving
from daemon.sources import Sources
from daemon.worker import Worker

SECONDS = 60.0
World = Any  # tests/unit/daemon/conftest.py
StandIn = Any


class Lane:
    """A worker with its queue; the timers are set, and none goes off by itself."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.queue: SimpleQueue[Event] = SimpleQueue()
        self.told: list[str] = []
        self.sources = Sources(world.config, self.queue)
        self.sources.scheduler.start(paused=True)
        self.serving = Serving(world.config, world.journal, self.queue.put)
        self.serving.devices = world.devices
        self.worker = self.start()

    def start(self) -> Worker:
        """A worker as a daemon has it that was just started."""
        about = (self.world.config, self.world.journal, self.queue.put, self.sources, self.serving, self.told.append)
        self.worker = Worker(*about)
        return self.worker

    def hear(self) -> Event:
        event = self.queue.get(timeout=SECONDS)
        child = self.worker.child
        if isinstance(event, ChildSpoke) and child and child.token == event.token:
            self.worker.hear(event.line)
        elif isinstance(event, ChildEnded) and not self.worker.left(event.token):
            self.worker.bury(event.status, event.last_words)
        return event

    def work(self) -> None:
        """Until it waits for something other than a child."""
        while self.worker.step() or self.worker.child:
            if self.worker.child:
                self.hear()

    def until(self, stage: str) -> None:
        """Until it says how far it is: by then it is written down that it runs, whoever kills it."""
        while True:
            event = self.hear()
            if isinstance(event, ChildSpoke) and (event.line["stage"], event.line["event"]) == (stage, "progress"):
                return
            assert not isinstance(event, ChildEnded), event

    def timer(self, name: str) -> float | None:
        job = self.sources.scheduler.get_job(name)
        return job.next_run_time.timestamp() if job else None


@pytest.fixture
def lane(world: World, stand_in: StandIn) -> Iterator[Lane]:
    for role in ("train", "judge"):
        world.samples("cat", role, 2)
        world.samples("dog", role, 2)
    lane = Lane(world)
    yield lane
    lane.sources.scheduler.remove_all_jobs()
    lane.sources.scheduler.shutdown(wait=False)
    for child in (lane.worker.child, *lane.worker.leaving.values()):
        if child:
            child.kill()


def test_without_a_cycle_there_is_nothing_to_do(lane: Lane) -> None:
    lane.world.cycle(state="done")
    lane.worker.recover()
    assert (lane.worker.busy, lane.worker.child, lane.worker.step()) == (False, None, False)


def test_the_running_cycle_is_taken_up_again(lane: Lane) -> None:
    lane.world.cycle(state="interrupted")
    running = lane.world.cycle()
    lane.world.cycle(state="done")
    lane.worker.recover()
    assert lane.worker.cycle is not None
    assert (lane.worker.cycle.id, lane.worker.busy) == (running, True)


def test_a_promotion_waits_for_triton_and_is_asked_for_once(lane: Lane) -> None:
    cycle = lane.world.cycle()
    lane.worker.begin(cycle)
    lane.work()
    promotion = lane.world.row(schema.promotions)
    verdict = lane.world.row(schema.verdicts)
    assert (promotion.state, promotion.kind, promotion.by, promotion.version) == ("switching", "promotion", "policy", 1)
    assert (promotion.cycle_id, promotion.verdict_id, promotion.reason) == (cycle, verdict.id, verdict.reason)
    for _ in range(3):
        assert lane.worker.step() is False
    lane.start().recover()  # a restart asks for no second one
    lane.work()
    assert len(lane.world.rows(schema.promotions)) == len(lane.world.rows(schema.verdicts)) == 1
    assert lane.worker.busy
    assert lane.world.row(schema.cycles).state == "running"
    assert lane.told == []


def serve(lane: Lane) -> None:
    """Triton has it."""
    promotion = lane.world.row(schema.promotions)
    with lane.world.journal.begin() as connection:
        assert claim(connection, schema.promotions, promotion.id, "switching", "serving", served=3.0)
    lane.worker.switched(SwitchEnded(promotion.id, None))


def test_a_cycle_ends_when_triton_serves_what_it_promoted(lane: Lane) -> None:
    cycle = lane.world.cycle()
    lane.worker.begin(cycle)
    lane.work()
    serve(lane)
    assert lane.worker.step() is True
    row = lane.world.row(schema.cycles)
    assert (row.state, row.outcome, row.reason) == ("done", "promoted", lane.world.row(schema.verdicts).reason)
    assert lane.told == [f"cycle {cycle} ended: promoted"]
    assert (lane.worker.busy, lane.worker.step()) == (False, False)


def fail_switch(lane: Lane) -> None:
    promotion = lane.world.row(schema.promotions)
    with lane.world.journal.begin() as connection:
        change(connection, schema.promotions, promotion.id, state="failed", error="probe: the answers are others")
    lane.worker.switched(SwitchEnded(promotion.id, "probe: the answers are others"))


def test_a_promotion_that_fails_ends_its_cycle(lane: Lane) -> None:
    cycle = lane.world.cycle()
    lane.worker.begin(cycle)
    lane.work()
    fail_switch(lane)
    lane.work()
    row = lane.world.row(schema.cycles)
    assert (row.state, row.outcome) == ("failed", "failed")
    assert row.reason.startswith("promotion of built-")
    assert lane.told == [f"cycle {cycle} ended: failed"]
    assert not lane.worker.busy


def test_a_promotion_that_fails_says_why(lane: Lane) -> None:
    lane.worker.begin(lane.world.cycle())
    lane.work()
    fail_switch(lane)
    lane.work()
    assert "probe: the answers are others" in lane.world.row(schema.cycles).reason


# --- retries and time -----------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of cycle and worker: its one entry."""
    clock = [1_800_000_000.0]
    for module in ("cycle", "worker"):
        monkeypatch.setattr(f"daemon.{module}.now", lambda: clock[0])
    return clock


def test_a_retry_is_waited_for_by_a_timer(lane: Lane, stand_in: StandIn, clock: list[float]) -> None:
    stand_in.behave(train=["die"])
    lane.worker.begin(lane.world.cycle())
    lane.work()
    assert lane.timer("retry") == clock[0] + 5.0
    assert lane.worker.step() is False  # no hot loop
    assert len(stand_in.order) == 1
    clock[0] += 5.0
    lane.work()
    assert lane.timer("retry") == clock[0] + 10.0
    assert len(stand_in.order) == 2


def test_after_the_last_attempt_the_cycle_ends_and_the_lane_is_free(
    lane: Lane, stand_in: StandIn, clock: list[float]
) -> None:
    stand_in.behave(train=["die"])
    cycle = lane.world.cycle()
    lane.worker.begin(cycle)
    for _ in range(3):
        lane.work()
        clock[0] += 10.0
    row = lane.world.row(schema.cycles)
    assert (row.state, row.outcome) == ("failed", "failed")
    assert row.reason.endswith("stage train: Traceback: the seventh layer")
    assert lane.told == [f"cycle {cycle} ended: failed"]
    assert not lane.worker.busy
    assert len(stand_in.order) == 3


def test_a_child_is_given_the_time_that_is_configured(lane: Lane, stand_in: StandIn, clock: list[float]) -> None:
    stand_in.behave(pixels=["hang"])
    lane.worker.begin(lane.world.cycle())
    lane.worker.step()
    assert lane.timer("timeout") == pytest.approx(clock[0] + 720 * 60, abs=60)  # less what its start took


def test_what_else_happens_gives_a_child_no_more_time(lane: Lane, stand_in: StandIn, clock: list[float]) -> None:
    stand_in.behave(pixels=["hang"])
    lane.worker.begin(lane.world.cycle())
    lane.worker.step()
    due = lane.timer("timeout")
    child = lane.worker.child
    assert child is not None
    clock[0] += 600
    child.started -= 600
    lane.worker.step()
    assert lane.timer("timeout") == pytest.approx(due, abs=5)


def test_an_overdue_child_is_stopped_and_its_stage_retried(lane: Lane, stand_in: StandIn) -> None:
    stand_in.behave(train=["hang", "ok"])
    lane.worker.begin(lane.world.cycle())
    lane.worker.step()
    lane.until("train")
    assert lane.worker.child is not None
    lane.worker.child.started -= 720 * 60  # as if it had begun so long ago
    lane.worker.stop_overdue()
    lane.work()
    (attempt,) = [row for row in lane.world.rows(schema.attempts) if row.outcome != "done"]
    assert attempt.outcome == "timed out"
    assert lane.timer("retry") is not None
    assert lane.world.row(schema.cycles).state == "running"


def test_a_child_that_is_not_overdue_goes_on(lane: Lane, stand_in: StandIn) -> None:
    stand_in.behave(train=["hang"])
    lane.worker.begin(lane.world.cycle())
    lane.worker.step()
    lane.until("train")
    child = lane.worker.child
    assert child is not None
    child.started -= 719 * 60
    lane.worker.stop_overdue()
    assert not child.wait(0.05)
    assert lane.worker.cycle is not None
    assert lane.worker.cycle.timed_out is False


@pytest.mark.parametrize(
    ("behaviour", "overdue"), [("wait and hang", False), ("wait and take its turn and hang", True)]
)
def test_waiting_for_another_measurement_uses_up_no_time(
    lane: Lane, stand_in: StandIn, clock: list[float], monkeypatch: pytest.MonkeyPatch, behaviour: str, overdue: bool
) -> None:
    later = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("daemon.children.time", SimpleNamespace(monotonic=lambda: time.monotonic() + later.seconds))
    stand_in.behave(measure=[behaviour])
    lane.worker.begin(lane.world.cycle())
    said: dict[str, Any] = {}
    while said.get("unit") != "measure" or ("waiting" in said) is overdue:
        if lane.worker.child is None:
            lane.worker.step()
        event = lane.hear()
        said = event.line if isinstance(event, ChildSpoke) else {}
    child = lane.worker.child
    assert child is not None
    later.seconds = 721 * 60.0
    lane.worker.step()
    due = lane.timer("timeout")
    assert due is not None
    assert (due > clock[0] + 700 * 60) is not overdue
    lane.worker.stop_overdue()
    assert lane.worker.cycle is not None
    assert lane.worker.cycle.timed_out is overdue
    assert child.wait(SECONDS if overdue else 0.05) is overdue


def test_without_a_child_nobody_is_overdue(lane: Lane) -> None:
    lane.worker.stop_overdue()
    lane.worker.begin(lane.world.cycle())
    lane.worker.stop_overdue()
    assert lane.worker.busy


# --- interrupted ----------------------------------------------------------------------------------------------------


def test_another_target_is_not_interrupted(lane: Lane) -> None:
    lane.worker.interrupt("edge", "nothing runs")
    lane.worker.begin(lane.world.cycle())
    lane.worker.interrupt("other", "constraints of other changed")
    assert lane.worker.busy
    assert lane.world.row(schema.cycles).state == "running"


def test_after_an_interruption_nothing_starts_before_the_child_has_left(lane: Lane, stand_in: StandIn) -> None:
    stand_in.behave(train=["hang"])
    lane.worker.begin(lane.world.cycle())
    lane.worker.step()
    lane.until("train")
    lane.worker.interrupt("edge", "constraints of edge changed")
    assert lane.world.row(schema.cycles).state == "interrupted"
    assert (lane.worker.cycle, lane.worker.child, lane.worker.busy) == (None, None, True)
    assert lane.told == []
    while lane.worker.busy:
        lane.hear()
    assert [row.outcome for row in lane.world.rows(schema.attempts)] == ["done", "interrupted"]
    lane.worker.begin(lane.world.cycle())
    assert lane.worker.step() is False
    assert lane.worker.child is not None


def test_an_interruption_takes_the_promotion_back(lane: Lane) -> None:
    lane.worker.begin(lane.world.cycle())
    lane.work()
    lane.worker.interrupt("edge", "constraints of edge changed")
    promotion = lane.world.row(schema.promotions)
    assert (promotion.state, promotion.error) == ("undoing", "withdrawn: constraints of edge changed")


def test_an_interruption_leaves_what_is_served(lane: Lane) -> None:
    lane.worker.begin(lane.world.cycle())
    lane.work()
    serve(lane)
    lane.worker.interrupt("edge", "constraints of edge changed")
    assert lane.world.row(schema.promotions).state == "serving"


def test_the_end_of_a_child_that_left_is_told_once(lane: Lane, stand_in: StandIn) -> None:
    assert lane.worker.left("unknown") is False
    stand_in.behave(train=["hang"])
    lane.worker.begin(lane.world.cycle())
    lane.worker.step()
    lane.until("train")
    token = lane.worker.child.token if lane.worker.child else ""
    lane.worker.interrupt("edge", "")
    assert (lane.worker.left(token), lane.worker.left(token)) == (True, False)


def test_what_failed_to_be_served_is_an_error_in_the_log(lane: Lane, caplog: pytest.LogCaptureFixture) -> None:
    lane.worker.begin(lane.world.cycle())
    lane.work()
    fail_switch(lane)
    assert "edge: version 1 is not served: probe: the answers are others" in caplog.text


# --- pauses and people ----------------------------------------------------------------------------------------------


def pause(lane: Lane, target: str | None = None) -> None:
    lane.world.require()
    with lane.world.journal.begin() as connection:
        pauses.pause(connection, target, "ann", None)


def resume(lane: Lane) -> None:
    with lane.world.journal.begin() as connection:
        pauses.resume(connection, None, "ann")


@pytest.mark.parametrize("restarted", [False, True])
def test_a_training_rests_while_it_is_paused_and_goes_on(lane: Lane, stand_in: StandIn, restarted: bool) -> None:
    stand_in.behave(train=["hang", "ok"])
    cycle = lane.world.cycle()
    lane.worker.begin(cycle)
    lane.worker.step()
    lane.until("train")
    pause(lane)
    lane.worker.rest()
    assert (lane.worker.cycle, lane.worker.busy) == (None, True)  # until its child has gone
    while lane.worker.leaving:
        lane.hear()
    if restarted:
        lane.start()
    assert (lane.worker.recover(), lane.worker.busy) == (False, False)
    assert lane.world.row(schema.cycles).state == "running"
    resume(lane)
    assert lane.worker.recover()
    lane.work()
    assert [run["stage"] for run in stand_in.runs].count("train") == 2
    assert [run["stage"] for run in stand_in.runs].count("pixels") == 1  # what was finished stays so
    outcomes = [row.outcome for row in lane.world.rows(schema.attempts)]
    assert (outcomes.count("paused"), outcomes.count("failed")) == (1, 0)
    assert lane.world.row(schema.promotions).state == "switching"


def test_another_target_goes_on_beside_one_that_rests(lane: Lane) -> None:
    resting, other = lane.world.cycle(), lane.world.cycle("other")
    pause(lane, "edge")
    lane.worker.rest()  # nothing runs
    assert lane.worker.recover()
    assert lane.worker.cycle is not None
    assert lane.worker.cycle.id == other
    lane.worker.rest()  # it is not paused
    assert lane.worker.cycle is not None
    lane.worker.interrupt("edge", "ann asked for a rollback of edge")
    assert [row.state for row in lane.world.rows(schema.cycles)] == ["interrupted", "running"]
    assert lane.world.row(schema.cycles, id=resting).reason == "ann asked for a rollback of edge"
    assert lane.worker.busy


@pytest.mark.parametrize(("step", "rests"), [(None, True), ("probe", True), ("put", False), ("load", False)])
def test_what_triton_may_be_loading_goes_through_to_its_end(lane: Lane, step: str | None, rests: bool) -> None:
    lane.worker.begin(lane.world.cycle())
    lane.work()
    with lane.world.journal.begin() as connection:
        change(connection, schema.promotions, lane.world.row(schema.promotions).id, step=step)
    pause(lane)
    lane.worker.rest()
    assert (lane.worker.cycle is None) == rests
    serve(lane)
    if not rests:
        assert lane.worker.step() is True
        assert lane.world.row(schema.cycles).outcome == "promoted"


def test_with_approval_a_challenger_waits_for_a_person(lane: Lane) -> None:
    lane.worker.config = load(lane.world.config.workspace, ["promotion.approval=ask"])
    lane.worker.begin(lane.world.cycle())
    lane.work()
    verdict, cycle = lane.world.row(schema.verdicts), lane.world.row(schema.cycles)
    assert (verdict.answer, verdict.approval) == ("promote", "waiting")
    assert (cycle.state, cycle.outcome) == ("done", "ask")
    assert cycle.reason.startswith(f"{verdict.artifact_id} would be promoted, and waits for a person: it meets every")
    assert cycle.reason.endswith(". `relearn approve edge` promotes it, `relearn refuse edge` does not")
    assert lane.world.rows(schema.promotions) == []


def asked(lane: Lane, artifact: str) -> None:
    with lane.world.journal.begin() as connection:
        values = {"kind": "promote", "arguments": {"target": "edge", "artifact": artifact, "force": False}}
        add(connection, schema.requests, **values, by="ann", at=1.0, state="owed")


def test_what_a_person_asked_about_is_judged_alone_and_promoted_in_their_name(lane: Lane, stand_in: StandIn) -> None:
    """Also with approval: they have said already that it is to be promoted."""
    lane.worker.config = load(lane.world.config.workspace, ["promotion.approval=ask"])
    before = lane.world.cycle(state="done")
    for name in ("mine", "better"):
        lane.world.artifact(name, before, tune_accuracy=0.99 if name == "better" else 0.5)
    asked(lane, "mine")
    lane.worker.begin(lane.world.cycle(trigger="asked", about="mine"))
    lane.work()
    assert stand_in.order == [["pixels"], ["prove", "measure"]]
    promotion = lane.world.row(schema.promotions)
    assert (promotion.artifact_id, promotion.kind, promotion.by) == ("mine", "promotion", "ann")
    serve(lane)
    lane.worker.step()
    request = lane.world.row(schema.requests)
    assert (request.state, request.answer.startswith("promoted: it meets every constraint")) == ("done", True)


def test_what_a_person_asked_about_may_be_refused_too(lane: Lane) -> None:
    before = lane.world.champion()
    lane.world.artifact("mine", before)
    lane.world.measure("mine", latency_p95_ms=99.0)
    asked(lane, "mine")
    lane.worker.begin(lane.world.cycle(trigger="asked", about="mine"))
    lane.work()
    request = lane.world.row(schema.requests)
    assert (request.state, request.answer.startswith("kept: mine does not meet the constraints: ")) == ("done", True)
    assert lane.world.rows(schema.verdicts) == []  # and nothing of judge was spent


def test_what_a_rollback_went_back_from_is_not_brought_again(lane: Lane, stand_in: StandIn) -> None:
    """What is served now was never measured as it is served: all that is stored is judged, as after an edit."""
    cycle = lane.world.champion("good")
    lane.world.artifact("bad", cycle, tune_accuracy=0.99)
    lane.world.measure("bad")
    lane.world.promote("bad", 2, state="retired")
    lane.world.promote("good", 3, kind="rollback", by="ann", started=3.0)
    with lane.world.journal.begin() as connection:
        connection.execute(schema.measurements.delete().where(schema.measurements.c.artifact_id == "good"))
    lane.worker.begin(lane.world.cycle(trigger="constraints"))
    lane.work()
    last = lane.world.rows(schema.cycles)[-1]
    assert (last.state, last.outcome) == ("done", "kept")
    assert "bad" not in {run["inputs"].get("artifact", "").rpartition("/")[2] for run in stand_in.runs}
    assert lane.world.rows(schema.verdicts) == []
