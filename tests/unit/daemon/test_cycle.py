"""A running cycle with real child processes, which stand in for pipeline and deploy, and with a real journal."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from daemon import schema, standings
from daemon.config import load
from daemon.cycle import Cycle
from daemon.events import ChildEnded, ChildSpoke, Event
from daemon.journal import AnyRow, add, change, get
from daemon.stock import artifact_folder, model_folder
from deploy.artifact import MANIFEST
from policies.facts import Job, Verdict, from_dict, to_dict
from policies.steps import Finish, Promote, Step

TRAINING = ["pixels", "train", "evaluate", "export"]
BUILDING = ["build", "prove", "measure"]
FIRST, SECOND = "mobilenetv3_small_100", "test_resnet"  # of model.architectures
SECONDS = 30.0
World = Any  # tests/unit/daemon/conftest.py
StandIn = Any


class Clock:
    """The one clock of what is written down, moved by the test."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("daemon.cycle.now", lambda: clock.now)
    return clock


class Lane:
    """A cycle with its queue: opened, worked and left as the daemon does it."""

    def __init__(self, world: World, stand_in: StandIn) -> None:
        self.world = world
        self.stand_in = stand_in
        self.cycles: list[Cycle] = []
        self.queue: SimpleQueue[Event] = SimpleQueue()

    def open(self, id_: int) -> Cycle:
        """The cycle, as a daemon finds it that was just started."""
        self.queue = SimpleQueue()
        world = self.world
        self.cycles.append(Cycle(world.config, world.journal, id_, self.queue.put, world.devices))
        return self.cycles[-1]

    @property
    def cycle(self) -> Cycle:
        return self.cycles[-1]

    def hear(self) -> Event:
        """One event, handled."""
        try:
            event = self.queue.get(timeout=SECONDS)
        except Empty:
            pytest.fail(f"nothing is heard of the child; it ran {self.stand_in.order}")
        if isinstance(event, ChildSpoke):
            self.cycle.spoke(event.line)
        elif isinstance(event, ChildEnded):
            self.cycle.ended(event.status, event.last_words)
        return event

    def child(self) -> None:
        """To the end of the running child."""
        while self.cycle.child is not None:
            self.hear()

    def until(self, stage: str, event: str = "progress") -> None:
        """Until the running child has said this of a stage."""
        while True:
            heard = self.hear()
            if isinstance(heard, ChildSpoke) and (heard.line["stage"], heard.line["event"]) == (stage, event):
                return
            assert not isinstance(heard, ChildEnded), heard

    def begin(self, stage: str, time: int) -> None:
        """Works until a stage of this name is at it for the time told."""
        while time:
            if self.cycle.child is None:
                assert self.cycle.advance() is None
            heard = self.hear()
            time -= isinstance(heard, ChildSpoke) and (heard.line["stage"], heard.line["event"]) == (stage, "progress")

    def work(self, children: int = 30) -> Step | None:
        """Until the cycle asks for what the loop must see to (a step), or waits for a retry (None)."""
        for _ in range(children):
            if step := self.cycle.advance():
                return step
            if self.cycle.child is None:
                return None
            self.child()
        pytest.fail(f"the cycle goes on for ever: {self.stand_in.order}")

    def killed(self) -> Cycle:
        """The daemon is killed, and its child with it; the next one opens the cycle anew."""
        if child := self.cycle.child:
            child.kill()
            assert child.wait(SECONDS)
        return self.open(self.cycle.id)

    def stage(self, name: str) -> AnyRow:
        return self.world.rows(schema.stages, name=name)[0]

    def states(self) -> dict[str, str]:
        return {row.name: row.state for row in self.world.rows(schema.stages)}

    def attempts(self, name: str) -> list[tuple[int, str | None]]:
        rows = self.world.rows(schema.attempts, stage_id=self.stage(name).id)
        return [(row.number, row.outcome) for row in rows]


@pytest.fixture
def lane(world: World, stand_in: StandIn) -> Iterator[Lane]:
    """A first cycle for the target `edge`, on a few samples, just opened."""
    for role, number in (("train", 3), ("tune", 1), ("judge", 2)):
        world.samples("cat", role, number)
        world.samples("dog", role, number)
    lane = Lane(world, stand_in)
    lane.open(world.cycle())
    yield lane
    for cycle in lane.cycles:
        if cycle.child is not None:
            cycle.child.kill()


def test_a_first_cycle_goes_from_the_snapshot_to_a_verdict(lane: Lane) -> None:
    step = lane.work()
    model = f"{FIRST}-{lane.cycle.ground.snapshot}"
    assert step == Promote(f"built-{model}")
    assert lane.stand_in.order == [TRAINING, BUILDING]  # neighbours of one package in one child
    assert {run["package"] for run in lane.stand_in.runs[:4]} == {"pipeline"}
    assert {run["package"] for run in lane.stand_in.runs[4:]} == {"deploy"}
    rows = lane.world.rows(schema.stages)
    assert [(row.step, row.name, row.state) for row in rows] == [
        *((f"train {FIRST}", name, "done") for name in TRAINING),
        *((f"build {model} onnxruntime:fp32", name, "done") for name in ("pixels", *BUILDING)),
    ]
    assert [row.attempts for row in rows] == [1, 1, 1, 1, 0, 1, 1, 1]
    assert all(row.ended is not None for row in rows)
    trained = lane.world.row(schema.models)
    assert (trained.id, trained.architecture, trained.classes, trained.tune_accuracy) == (
        model,
        FIRST,
        ["cat", "dog"],
        0.875,
    )
    verdict = lane.world.row(schema.verdicts)
    assert (verdict.artifact_id, verdict.champion_id, verdict.answer) == (f"built-{model}", None, "promote")
    assert "is 100.00% right on 4 judge samples; nothing is served yet" in verdict.reason


def test_a_stage_gets_the_outputs_of_all_before_it(lane: Lane) -> None:
    lane.work()
    runs = {(run["stage"]): run for run in lane.stand_in.runs}
    assert list(runs["export"]["earlier"]) == ["pixels", "train", "evaluate"]
    assert runs["export"]["earlier"]["train"]["architecture"] == FIRST
    cached = {"pixels": str(lane.cycle.ground.pixels_index), "from": "the cache"}
    assert runs["measure"]["earlier"]["pixels"] == cached  # decoded once, for another step's stages too
    assert list(runs["measure"]["earlier"]) == ["pixels", "build", "prove"]


@pytest.mark.parametrize("stage", [*TRAINING, "build"])
def test_a_killed_daemon_goes_on_from_the_first_unfinished_stage(lane: Lane, stage: str) -> None:
    lane.stand_in.behave(**{stage: ["hang", "ok"]})
    lane.cycle.advance()
    if stage in BUILDING:
        lane.child()
        lane.cycle.advance()
    lane.until(stage)
    before = lane.stand_in.order
    lane.killed()
    assert lane.attempts(stage) == [(1, "lost")]
    assert lane.stage(stage).state == "waiting"
    assert isinstance(lane.work(), Promote)
    group = TRAINING if stage in TRAINING else BUILDING
    assert lane.stand_in.order[len(before)] == group[group.index(stage) :]
    assert lane.attempts(stage) == [(1, "lost"), (2, "done")]
    again = lane.stand_in.runs[sum(map(len, before))]
    expected = group[: group.index(stage)] if stage in TRAINING else ["pixels", *group[: group.index(stage)]]
    assert list(again["earlier"]) == expected
    assert set(lane.states().values()) == {"done"}


def test_the_time_in_which_a_daemon_was_down_trained_nothing(lane: Lane) -> None:
    """A lost attempt ended when its cycle's folder was last written to."""
    lane.stand_in.behave(train=["hang", "ok"])
    lane.cycle.advance()
    lane.until("train")
    stage = lane.stage("train").id
    with lane.world.journal.begin() as connection:
        connection.execute(update(schema.attempts).where(schema.attempts.c.stage_id == stage).values(started=1_000.0))
    for file in lane.cycle.ground.folder.rglob("*"):
        os.utime(file, (500.0, 500.0))
    checkpoint = lane.cycle.ground.work("run") / "checkpoint"
    checkpoint.touch()
    os.utime(checkpoint, (1_600.0, 1_600.0))
    lane.killed()
    assert [(row.started, row.ended) for row in lane.world.rows(schema.attempts, stage_id=stage)] == [
        (1_000.0, 1_600.0)
    ]
    (attempt,) = lane.world.rows(schema.attempts, stage_id=stage)
    with lane.world.journal.begin() as connection:
        connection.execute(
            update(schema.attempts).where(schema.attempts.c.id == attempt.id).values(ended=None, outcome=None)
        )
        change(connection, schema.stages, stage, state="running")
    os.utime(checkpoint, (500.0, 500.0))
    lane.killed()
    assert lane.world.row(schema.attempts, id=attempt.id).ended == 1_000.0  # it began, and no more is known


def killed_at(lane: Lane, stage: str) -> None:
    """The daemon is killed while a stage of the building runs."""
    lane.stand_in.behave(**{stage: ["hang", "ok"]})
    lane.cycle.advance()
    lane.child()
    lane.cycle.advance()
    lane.until(stage)
    lane.killed()


@pytest.mark.parametrize("stage", ["prove", "measure"])
def test_a_daemon_killed_after_the_build_builds_no_more(lane: Lane, stage: str) -> None:
    killed_at(lane, stage)
    assert lane.attempts(stage) == [(1, "lost")]
    before = len(lane.stand_in.order)
    assert isinstance(lane.work(), Promote)
    assert all("build" not in child for child in lane.stand_in.order[before:])
    assert (len(lane.world.rows(schema.artifacts)), len(lane.world.rows(schema.measurements))) == (1, 1)


def test_a_daemon_killed_while_it_measures_proves_no_more(lane: Lane) -> None:
    killed_at(lane, "measure")
    lane.work()
    assert lane.stand_in.order == [TRAINING, BUILDING, ["measure"]]


def test_a_daemon_killed_between_two_children_repeats_nothing(lane: Lane) -> None:
    lane.cycle.advance()
    lane.child()
    lane.killed()
    assert isinstance(lane.work(), Promote)
    assert lane.stand_in.order == [TRAINING, BUILDING]


def test_a_daemon_killed_before_its_child_began_loses_no_attempt(lane: Lane, eventually: Callable[..., None]) -> None:
    lane.stand_in.behave(start=["hang", "ok"])
    lane.cycle.advance()
    eventually((lane.stand_in.folder / "start.count").exists)
    lane.killed()
    assert lane.world.rows(schema.attempts) == []
    assert isinstance(lane.work(), Promote)
    assert lane.attempts("pixels") == [(1, "done")]


def test_a_daemon_killed_after_the_verdict_does_not_ask_again(lane: Lane) -> None:
    step = lane.work()
    lane.killed()
    assert lane.work() == step
    assert len(lane.world.rows(schema.verdicts)) == 1


def test_opening_again_closes_attempts_of_its_own_cycle_alone(lane: Lane) -> None:
    other = lane.world.cycle(state="interrupted")
    with lane.world.journal.begin() as connection:
        stage = {"step": "train x", "name": "train", "state": "running", "attempts": 1}
        strange = add(connection, schema.stages, cycle_id=other, **stage)
        add(connection, schema.attempts, stage_id=strange, number=1, token="t", started=1.0)
    lane.killed()
    assert get_stage(lane.world.journal, strange).state == "running"


def get_stage(journal: Engine, id_: int) -> AnyRow:
    with journal.connect() as connection:
        return get(connection, schema.stages, id_)


def test_progress_is_written_down_as_it_is_said(lane: Lane) -> None:
    lane.stand_in.behave(train=["hang"])
    lane.cycle.advance()
    lane.until("train")
    attempt = lane.world.row(schema.attempts, stage_id=lane.stage("train").id)
    assert attempt.progress == {"done": 1, "total": 2, "unit": "part", "loss": 0.5}
    assert (attempt.outcome, attempt.ended) == (None, None)
    assert attempt.token == lane.stand_in.runs[-1]["token"]
    assert (lane.stage("train").state, lane.stage("train").attempts) == ("running", 1)
    assert lane.stage("pixels").outputs == {"pixels": str(lane.cycle.ground.pixels_index)}


def test_nothing_starts_beside_a_running_child(lane: Lane) -> None:
    lane.stand_in.behave(pixels=["hang"])
    assert lane.cycle.advance() is None
    child = lane.cycle.child
    assert lane.cycle.advance() is None
    assert lane.cycle.child is child


def test_the_job_that_the_child_was_given_is_kept(lane: Lane) -> None:
    lane.work()
    files = sorted((lane.world.config.state / "cycles" / str(lane.cycle.id) / "jobs").iterdir())
    jobs = [from_dict(Job, json.loads(file.read_text())) for file in files]
    assert {job.package: [order.name for order in job.stages] for job in jobs} == {
        "pipeline": TRAINING,
        "deploy": BUILDING,
    }
    assert all(file.stem == job.token for file, job in zip(files, jobs, strict=True))


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "behaviour", "words"),
    [
        ("train", "fail", "train is not possible today"),
        ("train", "die", "Traceback: the seventh layer"),
        ("train", "die without a word", "ended with status -9"),
        ("build", "fail", "build is not possible today"),
        ("measure", "die", "Traceback: the seventh layer"),
    ],
)
def test_a_failed_attempt_keeps_its_last_words(lane: Lane, stage: str, behaviour: str, words: str) -> None:
    lane.stand_in.behave(**{stage: [behaviour, "ok"]})
    assert lane.work() is None
    assert lane.attempts(stage) == [(1, "failed")]
    attempt = lane.world.row(schema.attempts, stage_id=lane.stage(stage).id)
    assert attempt.last_words == words
    assert attempt.ended is not None
    assert lane.stage(stage).state == "waiting"
    assert lane.cycle.retry_at is not None


def test_a_child_that_dies_before_it_begins_counts_against_its_first_stage(lane: Lane) -> None:
    lane.stand_in.behave(start=["die", "ok"])
    assert lane.work() is None
    attempt = lane.world.row(schema.attempts)
    assert (attempt.stage_id, attempt.outcome) == (lane.stage("pixels").id, "failed")
    assert attempt.last_words == "Traceback: the seventh layer"


def test_a_child_that_never_begins_is_given_up(lane: Lane, clock: Clock) -> None:
    lane.stand_in.behave(start=["die"])
    step = work_through_retries(lane, clock)
    assert step == Finish("failed", f"train {FIRST}, stage pixels: Traceback: the seventh layer")


def work_through_retries(lane: Lane, clock: Clock, most: int = 10) -> Step:
    """Moves the clock to each retry; fails where there is no end to them."""
    for _ in range(most):
        if step := lane.work():
            return step
        assert lane.cycle.retry_at is not None
        clock.now = lane.cycle.retry_at
    pytest.fail("it is tried again for ever")


def test_a_retry_waits_as_the_policy_says(lane: Lane, clock: Clock) -> None:
    """5 s and 10 s at default, then the stage has had its three attempts."""
    lane.stand_in.behave(train=["fail"])
    for wait in (5.0, 10.0):
        began = clock.now
        assert lane.work() is None
        assert lane.cycle.retry_at == began + wait
        clock.now = began + wait - 0.001
        runs = len(lane.stand_in.runs)
        assert lane.cycle.advance() is None
        assert (lane.cycle.child, len(lane.stand_in.runs)) == (None, runs)
        clock.now = began + wait
    step = lane.work()
    assert step == Finish("failed", f"train {FIRST}, stage train: train is not possible today")
    assert lane.attempts("train") == [(1, "failed"), (2, "failed"), (3, "failed")]
    assert lane.states() == {"pixels": "done", "train": "failed", "evaluate": "waiting", "export": "waiting"}
    assert lane.stand_in.order == [["pixels", "train"], ["train"], ["train"]]


def test_a_cycle_that_failed_ends_with_what_was_said_last(lane: Lane, clock: Clock) -> None:
    lane.stand_in.behave(train=["fail"])
    step = work_through_retries(lane, clock)
    assert isinstance(step, Finish)
    lane.cycle.finish(step.outcome, step.reason)
    row = lane.world.row(schema.cycles)
    assert (row.state, row.outcome, row.ended) == ("failed", "failed", clock.now)
    assert "train is not possible today" in row.reason
    assert lane.states() == {"pixels": "done", "train": "failed", "evaluate": "skipped", "export": "skipped"}


def test_a_retry_that_goes_well_is_the_end_of_it(lane: Lane, clock: Clock) -> None:
    lane.stand_in.behave(train=["die", "ok"], build=["fail", "fail", "ok"])
    assert isinstance(work_through_retries(lane, clock), Promote)
    assert lane.attempts("train") == [(1, "failed"), (2, "done")]
    assert lane.attempts("build") == [(1, "failed"), (2, "failed"), (3, "done")]


def in_both_precisions(lane: Lane) -> None:
    """The cycle, opened anew where its model is to be built for two engines."""
    lane.world.config = load(lane.world.config.workspace, ['build.engines=["onnxruntime", "openvino:int8"]'])
    lane.open(lane.world.cycle())


def test_a_model_is_built_for_every_engine_before_the_verdict(lane: Lane) -> None:
    in_both_precisions(lane)
    step = lane.work()
    model = f"{FIRST}-{lane.cycle.ground.snapshot}"
    assert lane.stand_in.order == [TRAINING, BUILDING, BUILDING]
    built = [(row.model_id, row.engine, row.precision) for row in lane.world.rows(schema.artifacts)]
    assert built == [(model, "onnxruntime", "fp32"), (model, "openvino", "int8")]
    assert isinstance(step, Promote)
    assert lane.world.rows(schema.verdicts)[0].artifact_id == step.artifact


def test_what_one_builder_refuses_is_promoted_as_another_built_it(lane: Lane, clock: Clock) -> None:
    in_both_precisions(lane)
    lane.stand_in.behave(build=["ok", "fail", "fail", "fail"])
    step = work_through_retries(lane, clock)
    assert step == Promote(f"built-{FIRST}-{lane.cycle.ground.snapshot}")
    states = {row.step.split()[-1]: row.state for row in lane.world.rows(schema.stages, name="build")}
    assert states == {"onnxruntime:fp32": "done", "openvino:int8": "failed"}


def with_settings(lane: Lane, *overrides: str) -> None:
    """The cycle, opened anew under these settings."""
    lane.world.config = load(lane.world.config.workspace, overrides)
    lane.open(lane.world.cycle())


def decided(lane: Lane) -> list[tuple[str, str]]:
    """What was decided within the cycle."""
    rows = lane.world.rows(schema.decisions, event=f"cycle {lane.cycle.id}")
    return [(row.action, row.reason) for row in rows]


def test_what_a_tuning_found_flows_into_the_training(lane: Lane) -> None:
    with_settings(lane, "tune.trials=8")
    assert isinstance(lane.work(), Promote)
    assert lane.stand_in.order[:2] == [["pixels", "tune"], TRAINING[1:]]
    inputs = {run["stage"]: run["inputs"] for run in lane.stand_in.runs}
    assert (inputs["tune"]["settings"]["learning_rate"], inputs["tune"]["trials"]) == (1e-3, 8)
    settings = inputs["train"]["settings"]
    assert (settings["learning_rate"], settings["augment"]["crop_min"], settings["epochs"]) == (0.5, 0.7, 20)
    assert decided(lane) == [("tune", f"{FIRST} was never tuned for this target: 8 trials")]
    assert (Path(inputs["train"]["run"]) / "a trial").exists()  # of the best one: it is not run again
    row = lane.world.row(schema.tunings)
    assert (row.target, row.architecture, row.best["learning_rate"]) == ("edge", FIRST, 0.5)


def test_a_tuned_training_is_found_again_by_the_next_cycle(lane: Lane) -> None:
    with_settings(lane, "tune.trials=8")
    lane.work()
    runs = len(lane.stand_in.runs)
    assert lane.open(lane.world.cycle()).ground.recipe(FIRST) == lane.world.row(schema.models).recipe
    assert isinstance(lane.work(), Promote)
    assert "train" not in {run["stage"] for run in lane.stand_in.runs[runs:]}
    with_settings(lane)  # tuning was switched off: config.toml is in force
    assert lane.cycle.ground.training(FIRST)["learning_rate"] == 1e-3


def test_a_tuning_that_fails_costs_no_training(lane: Lane, clock: Clock) -> None:
    with_settings(lane, "tune.trials=8")
    lane.stand_in.behave(tune=["fail"])
    assert isinstance(work_through_retries(lane, clock), Promote)
    assert lane.world.rows(schema.tunings) == []


SEARCHED = ('search.architectures=["short", "longest", "longer", "no"]', 'model.architectures=["huge"]')


def test_a_search_draws_races_and_trains_the_winner(lane: Lane, clock: Clock) -> None:
    with_settings(lane, *SEARCHED)
    lane.stand_in.behave(sketch=["ok", "ok", "ok", "fail"])
    step = work_through_retries(lane, clock)
    steps = list(dict.fromkeys(row.step for row in lane.world.rows(schema.stages)))
    drawn = [f"sketch {name} onnxruntime:fp32" for name in ("short", "longest", "longer", "no")]
    raced = [f"race {name} 1" for name in ("short", "longest", "longer")]
    assert steps[1:9] == ["shortlist", *drawn, *raced]
    assert steps[9] == "train longest"
    assert step == Promote(f"built-longest-{lane.cycle.ground.snapshot}")
    lane.cycle.finish("promoted", "it is better")
    assert not lane.cycle.ground.sketches.exists()
    rows = {row.architecture: row for row in lane.world.rows(schema.benchmarks)}
    assert rows["no"].error == "sketch is not possible today"
    assert rows["short"].figures["latency_p95_ms"] == 2.0
    said = [reason for _, reason in decided(lane)]
    assert [action for action, _ in decided(lane)] == ["search"] * 2
    assert said[1] == ("3 of 4 architectures can meet the constraints; no cannot: sketch is not possible today")


def test_a_search_that_is_cut_off_goes_on_where_it_was(lane: Lane) -> None:
    with_settings(lane, *SEARCHED)
    lane.stand_in.behave(sketch=["ok", "ok", "hang", "ok"])
    lane.begin("sketch", 3)
    lane.killed()
    assert isinstance(lane.work(), Promote)
    sketched = [run["inputs"]["architecture"] for run in lane.stand_in.runs if run["stage"] == "sketch"]
    assert sketched == ["short", "longest", "longer", "longer", "no"]


def test_a_drawing_may_take_less_time_than_a_training(lane: Lane) -> None:
    with_settings(lane, *SEARCHED, "search.minutes_per_architecture=2")
    lane.stand_in.behave(sketch=["hang"])
    lane.begin("sketch", 1)
    assert lane.cycle.limit_minutes == 2


def test_no_architecture_is_given_up_for_waiting(lane: Lane, clock: Clock) -> None:
    """Another process measures, or hangs: as long as it takes, oftener than a stage may fail."""
    with_settings(lane, *SEARCHED, "policies.retry.attempts=2")
    lane.stand_in.behave(measure=[*["wait and fail"] * 4, "ok"])
    assert isinstance(work_through_retries(lane, clock), Promote)
    assert lane.attempts("measure") == [*((number, "waited") for number in range(1, 5)), (5, "done")]
    assert [row.error for row in lane.world.rows(schema.benchmarks)] == [None] * 4


def test_what_fails_once_it_has_its_turn_has_failed(lane: Lane, clock: Clock) -> None:
    with_settings(lane, *SEARCHED)
    lane.stand_in.behave(measure=["wait and take its turn and fail", "ok"])
    assert isinstance(work_through_retries(lane, clock), Promote)
    rows = {row.architecture: row.error for row in lane.world.rows(schema.benchmarks)}
    assert rows["short"] == "measure is not possible today"


@pytest.mark.parametrize("stage", ["prove", "measure"])
def test_an_artifact_that_cannot_be_asked_harms_no_other(lane: Lane, clock: Clock, stage: str) -> None:
    in_both_precisions(lane)
    lane.stand_in.behave(**{stage: ["ok", "fail"]})
    step = work_through_retries(lane, clock)
    assert step == Promote(f"built-{FIRST}-{lane.cycle.ground.snapshot}")


def test_a_cycle_that_an_older_version_began_goes_on(lane: Lane) -> None:
    """Its frozen settings know nothing of what came since."""
    frozen = dict(lane.cycle.row.settings)
    for key in ("tune", "search", "cluster", "wandb", "audit"):
        del frozen[key]
    frozen["build"] = {"engine": "onnxruntime", "precision": "fp32"}
    frozen["policies"] = {key: value for key, value in frozen["policies"].items() if key != "tuning"}
    frozen["train"] = {**frozen["train"], "epochs": 7}
    with lane.world.journal.begin() as connection:
        change(connection, schema.cycles, lane.cycle.id, settings=frozen)
    lane.open(lane.cycle.id)
    assert lane.cycle.ground.settings["train"]["epochs"] == 7
    assert isinstance(lane.work(), Promote)


def test_of_other_settings_a_running_cycle_takes_the_use_of_the_machine_alone(lane: Lane) -> None:
    edited = load(lane.world.config.workspace, ["train.epochs=3", "compute.nice=7", "compute.stage_timeout_minutes=9"])
    recipe = lane.cycle.ground.recipe(FIRST)
    lane.cycle.reconfigure(edited, {"onnxruntime": "another"})
    assert lane.cycle.ground.settings["train"]["epochs"] == 20
    assert lane.cycle.ground.recipe(FIRST) == recipe
    assert lane.cycle.ground.settings["compute"]["nice"] == 7
    assert (lane.cycle.limit_minutes, lane.cycle.devices) == (9, {"onnxruntime": "another"})


def test_attempts_lost_with_the_daemon_are_not_held_against_a_stage(lane: Lane, clock: Clock) -> None:
    lane.stand_in.behave(train=["hang", "hang", "hang", "hang", "fail", "ok"])
    for _ in range(4):
        lane.cycle.advance()
        lane.until("train")
        lane.killed()
    assert lane.work() is None
    assert lane.cycle.retry_at == clock.now + 5.0  # after a first failure
    assert isinstance(work_through_retries(lane, clock), Promote)
    assert [outcome for _, outcome in lane.attempts("train")] == ["lost"] * 4 + ["failed", "done"]


def test_attempts_failed_before_a_restart_are_held_against_a_stage(lane: Lane, clock: Clock) -> None:
    lane.stand_in.behave(train=["fail"])
    lane.work()
    lane.killed()
    lane.work()
    lane.killed()
    assert isinstance(lane.work(), Finish)


def test_a_child_stopped_because_its_time_was_up_timed_out(lane: Lane, clock: Clock) -> None:
    lane.stand_in.behave(train=["hang", "ok"])
    lane.cycle.advance()
    lane.until("train")
    assert lane.cycle.child is not None
    lane.cycle.timed_out = True
    lane.cycle.child.stop(SECONDS)
    lane.child()
    attempt = lane.world.row(schema.attempts, stage_id=lane.stage("train").id)
    assert attempt.outcome == "timed out"
    assert attempt.last_words.startswith("took longer than 720 minutes; ")
    assert lane.cycle.retry_at == clock.now + 5.0
    clock.now += 5.0
    lane.stand_in.behave(train=["ok"])
    lane.cycle.advance()
    assert lane.cycle.timed_out is False  # the next child has its own time
    lane.child()
    assert lane.attempts("train") == [(1, "timed out"), (2, "done")]


def test_time_outs_use_up_attempts_too(lane: Lane, clock: Clock) -> None:
    with lane.world.journal.begin() as connection:
        row = {"step": f"train {FIRST}", "name": "train", "state": "waiting", "attempts": 2}
        stage = add(connection, schema.stages, cycle_id=lane.cycle.id, **row)
        for number in (1, 2):
            about = {"number": number, "token": "t", "started": 1.0, "outcome": "timed out"}
            add(connection, schema.attempts, stage_id=stage, **about)
    lane.stand_in.behave(train=["fail"])
    assert isinstance(lane.work(), Finish)


def test_a_child_that_vanishes_in_the_midst_of_a_stage_has_failed(lane: Lane, clock: Clock) -> None:
    lane.stand_in.behave(train=["vanish"])
    assert lane.work(children=2) is None
    assert lane.attempts("train") == [(1, "failed")]
    assert lane.cycle.retry_at == clock.now + 5.0


def test_a_child_that_ends_without_a_word_has_failed(lane: Lane, clock: Clock) -> None:
    lane.stand_in.behave(start=["vanish"])
    assert lane.work(children=2) is None
    assert lane.cycle.retry_at == clock.now + 5.0


@pytest.mark.parametrize("behaviour", ["die", "die without a word"])
def test_a_child_that_dies_when_all_is_done_undoes_nothing(lane: Lane, clock: Clock, behaviour: str) -> None:
    lane.stand_in.behave(afterwards=[behaviour, "ok"])
    lane.cycle.advance()
    lane.child()
    assert lane.states() == dict.fromkeys(TRAINING, "done")
    assert [row.outcome for row in lane.world.rows(schema.attempts)] == ["done"] * 4


# --- interrupted --------------------------------------------------------------------------------------------------


def test_an_interrupted_cycle_is_over(lane: Lane) -> None:
    lane.stand_in.behave(train=["hang"])
    lane.cycle.advance()
    lane.until("train")
    child = lane.cycle.child
    assert child is not None
    lane.cycle.interrupt("constraints of edge changed")
    assert child.wait(SECONDS)
    row = lane.world.row(schema.cycles)
    assert (row.state, row.outcome, row.reason) == ("interrupted", "interrupted", "constraints of edge changed")
    assert row.ended is not None
    assert lane.attempts("train") == [(1, "interrupted")]
    assert lane.states() == {"pixels": "done", "train": "skipped", "evaluate": "skipped", "export": "skipped"}


def test_a_cycle_that_is_over_stays_as_it_ended(lane: Lane) -> None:
    lane.cycle.interrupt("first")
    lane.cycle.finish("promoted", "second")
    row = lane.world.row(schema.cycles)
    assert (row.state, row.outcome, row.reason) == ("interrupted", "interrupted", "first")


def test_an_interruption_between_two_children_needs_none(lane: Lane) -> None:
    lane.cycle.advance()
    lane.child()
    lane.cycle.interrupt("an edit")
    assert lane.world.row(schema.cycles).state == "interrupted"


@pytest.mark.parametrize(
    ("trigger", "asked", "outcome", "state"),
    [
        ("data", 0.5, "kept", "done"),
        ("data", 0.5, "failed", "done"),
        ("data", 1.5, "kept", "owed"),  # while it ran
        ("data", 0.5, "interrupted", "owed"),
        ("constraints", 0.5, "kept", "owed"),  # it trained nothing
    ],
)
def test_a_training_that_a_person_asked_for_is_owed_until_it_has_ended(
    lane: Lane, trigger: str, asked: float, outcome: str, state: str
) -> None:
    with lane.world.journal.begin() as connection:
        change(connection, schema.cycles, lane.cycle.id, trigger=trigger, started=1.0)
        about = {"kind": "retrain", "arguments": {"target": "edge"}, "by": "ada", "at": asked, "state": "owed"}
        add(connection, schema.requests, **about)
    cycle = lane.open(lane.cycle.id)
    cycle.interrupt("an edit") if outcome == "interrupted" else cycle.finish(outcome, "")
    assert lane.world.row(schema.requests).state == state


# --- alone on the machine -----------------------------------------------------------------------------------------


def test_nothing_is_measured_beside_another_child(lane: Lane) -> None:
    assert lane.cycle.advance(alone=False) is None  # a training may share the machine
    assert lane.cycle.child is not None
    assert not lane.cycle.measures
    lane.child()
    for _ in range(2):
        assert lane.cycle.advance(alone=False) is None
        assert (lane.cycle.child, lane.cycle.measures) == (None, True)
    assert lane.cycle.advance() is None
    assert lane.cycle.measures
    lane.child()
    assert not lane.cycle.measures
    assert lane.stand_in.order == [TRAINING, BUILDING]


# --- what is known already ----------------------------------------------------------------------------------------


def end(lane: Lane) -> Cycle:
    """Ends the running cycle as done, and begins another on what is usable now."""
    lane.cycle.finish("kept", "")
    return lane.open(lane.world.cycle(known=("cat", "dog")))


def test_the_same_recipe_is_not_trained_again(lane: Lane) -> None:
    step = lane.work()
    end(lane)
    assert lane.work() == step
    assert lane.stand_in.order == [TRAINING, BUILDING]  # nor proven: it has answered on these images
    assert len(lane.world.rows(schema.verdicts)) == 2


def test_a_network_too_large_by_its_weights_gives_way_before_it_is_trained(lane: Lane) -> None:
    lane.stand_in.say("train", stop="unfit", weights_mb=44.8)
    lane.cycle.advance()
    lane.child()
    assert lane.stand_in.order == [["pixels", "train"]]
    assert lane.states() == {"pixels": "done", "train": "done", "evaluate": "waiting", "export": "waiting"}
    figures = lane.world.row(schema.measurements)
    assert (figures.artifact_id, figures.architecture, figures.figures) == (None, FIRST, {"weights_mb": 44.8})
    step = lane.work()
    assert lane.stand_in.runs[-1]["inputs"]["architecture"] == SECOND
    left = [(row.step, row.name) for row in lane.world.rows(schema.stages, state="skipped")]
    assert left == [(f"train {FIRST}", "evaluate"), (f"train {FIRST}", "export")]  # not what is waited for
    assert isinstance(step, Finish)
    assert step.outcome == "violated"
    assert f"{FIRST}: its weights alone are 44.80 MB, above artifact_max_mb 20 by 24.80" in step.reason
    assert f"{SECOND}: its weights alone are" in step.reason


def test_an_artifact_that_does_not_fit_gives_way_to_the_next_architecture(lane: Lane) -> None:
    lane.stand_in.say("measure", latency_p95_ms=9.0)
    step = lane.work()
    assert isinstance(step, Finish)
    assert step.outcome == "violated"
    assert [run["inputs"]["architecture"] for run in lane.stand_in.runs if run["stage"] == "train"] == [FIRST, SECOND]
    assert "p95 latency 9 ms is above latency_p95_ms 5 by 4" in step.reason
    assert lane.world.rows(schema.verdicts) == []  # nobody is asked about what cannot be served


def test_the_winner_alone_is_proven_against_a_champion_asked_anew(lane: Lane) -> None:
    """More judge samples have come since the champion was proven: it is asked about them first."""
    lane.cycle.finish("kept", "")
    before = lane.world.champion("old")
    assert before
    lane.world.samples("cat", "judge", 2, mark="later")
    lane.open(lane.world.cycle(known=("cat", "dog")))
    step = lane.work()
    assert lane.world.row(schema.stages, step="prove old", name="prove").outputs["asked"] == 2  # the new ones alone
    proven = [(row.artifact_id, row.cycle_id) for row in lane.world.rows(schema.proofs)][1:]
    assert proven == [(f"built-{FIRST}-{lane.cycle.ground.snapshot}", lane.cycle.id), ("old", lane.cycle.id)]
    assert len(lane.world.rows(schema.answers, artifact_id="old")) == 6
    verdict = lane.world.row(schema.verdicts)
    assert verdict.champion_id == "old"
    assert isinstance(step, Finish)
    assert (step.outcome, verdict.answer, step.reason) == ("kept", "keep", verdict.reason)


def test_a_champion_is_asked_about_all_again_once_its_engine_was_upgraded(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane.cycle.finish("kept", "")
    lane.world.champion("old")
    monkeypatch.setattr("daemon.proofs.answerer", lambda _engine: "a newer engine")
    lane.stand_in.say("prove", answered_by="a newer engine")
    lane.open(lane.world.cycle(known=("cat", "dog")))
    lane.work()
    assert lane.world.row(schema.stages, step="prove old", name="prove").outputs["asked"] == 4
    assert {row.answered_by for row in lane.world.rows(schema.proofs, artifact_id="old")} == {None, "a newer engine"}


def test_after_an_edit_a_stored_artifact_is_judged_and_nothing_trained(lane: Lane) -> None:
    lane.cycle.finish("kept", "")
    lane.world.champion("old", latency_p95_ms=9.0)  # too slow for what is asked now
    done = lane.world.row(schema.promotions).cycle_id
    lane.world.artifact("quick", done)
    lane.world.measure("quick")
    lane.open(lane.world.cycle(known=("cat", "dog"), trigger="constraints"))
    assert lane.work() == Promote("quick")
    assert lane.stand_in.order == [["pixels"], ["prove"]]  # its own proof; the champion has answered all
    verdict = lane.world.row(schema.verdicts)
    assert "it meets every constraint, the champion does not" in verdict.reason


def test_a_promotion_that_is_served_ends_the_cycle(lane: Lane) -> None:
    step = lane.work()
    assert isinstance(step, Promote)
    lane.world.promote(step.artifact, cycle_id=lane.cycle.id)
    reason = lane.world.row(schema.verdicts).reason
    assert lane.work() == Finish("promoted", reason)


def test_a_verdict_is_taken_from_the_journal(lane: Lane) -> None:
    lane.work()
    with lane.world.journal.connect() as connection:
        facts = lane.cycle.facts(connection)
        stored = connection.execute(select(schema.verdicts.c.verdict)).scalar_one()
    (found,) = facts.verdicts.values()
    assert found == from_dict(Verdict, stored)


def test_a_training_that_gives_a_known_model_under_another_recipe_goes_on(lane: Lane) -> None:
    """A model's name is a hash of weights, graph, snapshot and architecture: a setting may change none of them."""
    answer_nothing_rightly(lane)
    requirement = to_dict(lane.world.requirement(accuracy_min=0.9))
    lane.cycle.interrupt("")
    lane.open(lane.world.cycle(requirement=requirement))
    step = lane.work()
    settings = json.loads(json.dumps(lane.cycle.row.settings))
    settings["train"]["accelerator"] = "cpu"  # it was "auto", on a machine that has nothing else
    lane.cycle.finish("violated", "")
    lane.open(lane.world.cycle(settings=settings, requirement=requirement))
    assert lane.work() == step


def answer_nothing_rightly(lane: Lane) -> None:
    with lane.world.journal.connect() as connection:
        judged = [row.sha256.hex() for row in standings.usable(connection) if row.role == "judge"]
    file = lane.stand_in.folder / "wrong.json"
    wrong = {"samples": judged, "predicted": ["newt"] * len(judged), "confidence": [0.9] * len(judged)}
    file.write_text(json.dumps(wrong))
    lane.stand_in.say("prove", answers=str(file))


def test_a_model_that_gives_a_known_artifact_goes_on(lane: Lane) -> None:
    """As if two models had one artifact: an artifact's id is also of its model, so that none has."""
    lane.stand_in.say("build", artifact="same")
    lane.stand_in.say("prove", artifact="same")
    lane.stand_in.say("measure", artifact="same")
    lane.world.lay(artifact_folder(lane.world.config.state, "same"))
    assert lane.work() == Promote("same")
    lane.world.samples("dog", "judge", mark="later")
    end(lane)
    ended = lane.work()  # that it is asked for again is a fault: it ends the cycle, and is no loop
    assert isinstance(ended, Finish)
    assert (ended.outcome, "still it is asked for" in ended.reason) == ("failed", True)


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_model_that_is_lost_while_it_is_built_is_trained_again(lane: Lane, clock: Clock, how: str) -> None:
    lane.stand_in.behave(build=["hang" if how == "killed" else "fail", "ok"])
    if how == "killed":
        lane.cycle.advance()
        lane.child()
        lane.cycle.advance()
        lane.until("build")
        lane.killed()
    else:
        lane.work()
        clock.now += 1000.0
    (model,) = lane.world.rows(schema.models)
    shutil.rmtree(model_folder(lane.world.config.state, model.id))
    lane.cycle.advance()
    assert lane.world.row(schema.models, id=model.id).gone is not None
    lane.child()
    assert lane.attempts("train") == [(1, "done"), (2, "done")]


def test_a_verdict_waits_for_a_promotion_of_another_cycle(lane: Lane) -> None:
    """It was begun when an edit came, and Triton is away: what it replaces is no champion to compare with."""
    lane.cycle.finish("kept", "")
    lane.world.champion("old")
    lane.world.artifact("next", lane.cycle.id)
    lane.world.promote("next", 2, cycle_id=lane.cycle.id, state="switching", step="put", served=None)
    lane.open(lane.world.cycle(known=("cat", "dog")))
    assert lane.work() is None
    assert lane.world.rows(schema.verdicts) == []


# --- what is gone from the disk -----------------------------------------------------------------------------------


def damage(lane: Lane, artifact: str) -> None:
    manifest = artifact_folder(lane.world.config.state, artifact) / MANIFEST
    manifest.write_text(json.dumps({"format": 1, "files": {"model.onnx": {"sha256": "0" * 64}}}))


def test_a_damaged_candidate_is_not_proven_but_built_again(lane: Lane, caplog: pytest.LogCaptureFixture) -> None:
    step = lane.work()
    assert isinstance(step, Promote)
    end(lane)
    damage(lane, step.artifact)
    assert lane.work() == step
    assert lane.stand_in.order == [TRAINING, BUILDING, BUILDING]
    assert "is damaged" in caplog.text or "cannot be read" in caplog.text
    assert lane.world.row(schema.artifacts).gone is None


def test_a_plan_of_another_version_is_built_again(lane: Lane) -> None:
    step = lane.work()
    assert isinstance(step, Promote)
    end(lane)
    with lane.world.journal.begin() as connection:
        change(connection, schema.artifacts, step.artifact, device="sm89", engine_version="0")
    for stage in ("build", "prove", "measure"):
        lane.stand_in.say(stage, artifact="newer")
    lane.world.lay(artifact_folder(lane.world.config.state, "newer"))
    assert lane.work() == Promote("newer")


def test_a_champion_that_is_lost_is_built_again_before_it_is_compared(lane: Lane) -> None:
    lane.cycle.finish("kept", "")
    lane.world.champion("old")
    lane.world.samples("cat", "judge", 2, mark="later")
    lane.stand_in.say("build", artifact="old")
    lane.stand_in.say("prove", artifact="old")
    lane.stand_in.say("measure", artifact="old")
    with lane.world.journal.begin() as connection:
        change(connection, schema.artifacts, "old", gone=2.0)
    lane.open(lane.world.cycle(known=("cat", "dog")))
    lane.cycle.advance()
    lane.child()
    lane.cycle.advance()
    lane.child()
    assert lane.stand_in.order == [["pixels"], BUILDING]
    assert lane.stand_in.runs[1]["inputs"]["model"] == str(model_folder(lane.world.config.state, "old"))
    assert lane.world.row(schema.artifacts).gone is None


@pytest.mark.parametrize("served", [True, False])
def test_a_champion_that_is_lost_with_its_model_is_compared_on_what_it_answered(
    lane: Lane, monkeypatch: pytest.MonkeyPatch, served: bool
) -> None:
    """Else anything at all could replace it, as if nothing were served; where Triton lost it too, nothing is."""
    if served:
        monkeypatch.setattr("daemon.targets.verify_model", lambda *_: None)
    lane.cycle.finish("kept", "")
    lane.world.champion("old")
    lane.world.samples("cat", "judge", 2, mark="later")
    with lane.world.journal.begin() as connection:
        change(connection, schema.artifacts, "old", gone=2.0)
        change(connection, schema.models, "old", gone=2.0)
    lane.open(lane.world.cycle(known=("cat", "dog")))
    step = lane.work()
    verdict = lane.world.row(schema.verdicts)
    assert isinstance(step, Finish if served else Promote)
    assert (verdict.champion_id, verdict.answer) == ("old", "keep" if served else "promote")
    assert len(lane.world.rows(schema.answers, artifact_id="old")) == 4


def test_what_a_killed_child_left_half_written_goes(lane: Lane) -> None:
    rest = lane.cycle.ground.work("answers") / ".built.json.4711.tmp"
    rest.write_text("{")
    lane.killed()
    assert not rest.exists()


def test_pixels_that_are_gone_are_decoded_again(lane: Lane) -> None:
    lane.stand_in.behave(train=["hang", "ok"])
    lane.cycle.advance()
    lane.until("train")
    lane.killed()
    lane.cycle.ground.pixels_index.unlink()
    assert isinstance(lane.work(), Promote)
    assert lane.stand_in.order[:2] == [["pixels", "train"], TRAINING]


DOUBTFUL = {"latency_p95_ms": 5.1, "uncertainty": {"latency_p95_ms": 0.05}}  # 5 are asked for


def test_what_is_in_doubt_is_timed_once_more_for_longer_then_the_estimate_decides(lane: Lane) -> None:
    lane.stand_in.say("measure", **DOUBTFUL)
    step = lane.work()
    assert isinstance(step, Finish)
    assert "p95 latency 5.1 ms is above latency_p95_ms 5 by 0.1, within the uncertainty" in step.reason
    assert lane.stand_in.order == [TRAINING, BUILDING, ["measure"], TRAINING[1:], BUILDING, ["measure"]]
    seconds = [run["inputs"]["seconds_max"] for run in lane.stand_in.runs if run["stage"] == "measure"]
    assert seconds == [4.0, 16.0] * 2


def test_a_longer_measurement_that_settles_it_lets_a_candidate_through(lane: Lane) -> None:
    lane.stand_in.say("measure", **DOUBTFUL)
    while lane.stand_in.order != [TRAINING, BUILDING]:
        assert lane.cycle.advance() is None
        lane.child()
    lane.stand_in.say("measure", latency_p95_ms=4.8, uncertainty={"latency_p95_ms": 0.01})
    assert lane.work() == Promote(f"built-{FIRST}-{lane.cycle.ground.snapshot}")
    assert lane.stand_in.order == [TRAINING, BUILDING, ["measure"]]


def test_a_daemon_killed_in_the_longer_measurement_begins_it_anew_and_makes_no_third(lane: Lane) -> None:
    lane.stand_in.say("measure", **DOUBTFUL)
    lane.stand_in.behave(measure=["ok", "hang", "ok"])
    lane.begin("measure", 2)
    lane.killed()
    lane.stand_in.say("measure", **{**DOUBTFUL, "latency_p95_ms": 4.9})
    assert isinstance(lane.work(), Promote)
    assert lane.stand_in.order == [TRAINING, BUILDING, ["measure"], ["measure"]]


def test_a_longer_measurement_that_cannot_be_made_leaves_the_first(lane: Lane, clock: Clock) -> None:
    lane.stand_in.say("measure", latency_p95_ms=4.9, uncertainty={"latency_p95_ms": 0.05})
    lane.stand_in.behave(measure=["ok", "fail"])
    assert isinstance(work_through_retries(lane, clock), Promote)
    assert len(lane.world.rows(schema.measurements)) == 1
