"""One running cycle: asks the policy for the next step, runs it in children, writes down what comes of it.

All that a cycle knows is in the journal, so that a daemon that was killed goes on from the last finished stage.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, Engine, select

from daemon import (
    adoption,
    attempts,
    cycle_facts,
    decisions,
    forget,
    jobs,
    outcomes,
    people,
    schema,
    sketches,
    snapshot,
    stock,
    targets,
    tunings,
    verdicts,
)
from daemon.children import Child
from daemon.config import Config, dump
from daemon.cycle_facts import words_of
from daemon.events import Event
from daemon.ground import Ground
from daemon.jobs import StagePlan
from daemon.journal import AnyRow, change, claim, get, now
from daemon.variants import Devices, split
from policies.cycle_facts import CycleFacts
from policies.decision import Action, Decision
from policies.facts import Job, Requirement, StageOrder, from_dict, to_dict
from policies.next_step import next_step
from policies.settings import PromotionSettings, RetrySettings
from policies.steps import Build, Finish, Judge, Measure, Prove, Race, Shortlist, Sketch, Step, Train, Tune, Work

log = logging.getLogger("relearn")
GRACE_SECONDS = 5.0  # between asking a child to end and ending it
Put = Callable[[Event], None]


class Cycle:
    """The cycle that runs now; there is one at a time, so that what measures has the machine to itself."""

    def __init__(self, config: Config, journal: Engine, id_: int, put: Put, devices: Devices) -> None:
        self.config = config
        self.journal = journal
        self.id = id_
        self.put = put
        self.devices = devices
        self.child: Child | None = None
        self.retry_at: float | None = None
        self.timed_out = False
        self.drawing = False  # a search measures an untrained architecture
        self.measures = False  # its deploy child runs, or waits to: what else computes would be in its figures
        with journal.begin() as connection:
            self.row = get(connection, schema.cycles, id_)
            attempts.lose(connection, id_, alive=config.state / "cycles" / str(id_))
            settings = complete(self.row.settings, dump(config))
            tuned = tunings.best(connection, self.row.target, settings)
        self.target: str = self.row.target
        names, self.rows = snapshot.read(config.state / "snapshots" / f"{self.row.snapshot_id}.snapshot")
        self.ground = Ground(
            cycle=id_,
            state=config.state,
            settings=settings,
            requirement=from_dict(Requirement, self.row.requirement),
            snapshot=self.row.snapshot_id,
            classes=len(names),
            tuned=tuned,
        )
        for rest in self.ground.folder.rglob(".*.tmp"):  # of a child that was killed while it wrote
            rest.unlink(missing_ok=True)

    def reconfigure(self, config: Config, devices: Devices) -> None:
        """Other settings are in force. Its own are frozen, but for the use of the machine."""
        self.config, self.devices = config, devices
        self.ground = dataclasses.replace(self.ground, settings=complete(self.row.settings, dump(config)))

    @property
    def limit_minutes(self) -> float:
        """How long a child may take."""
        if self.drawing:
            return float(self.ground.settings["search"]["minutes_per_architecture"])
        return self.config.settings.compute.stage_timeout_minutes

    # --- deciding what is next --------------------------------------------------------------------------------

    def next(self) -> Step:
        with self.journal.connect() as connection:
            return next_step(self.facts(connection))

    def facts(self, connection: Connection) -> CycleFacts:
        return cycle_facts.gather(
            connection,
            self.row,
            self.ground,
            self.rows,
            repository_of=self.config.repository_of,
            devices=self.devices,
            confidence=self.config.settings.promotion.confidence,
        )

    # --- doing it -----------------------------------------------------------------------------------------------

    def advance(self, *, alone: bool = True) -> Step | None:
        """Does the next step, or starts it. Returns a step that the loop must see to: Promote or Finish.

        `alone`: whether no other child of the daemon runs; what measures waits until it is.
        """
        if self.child is not None or (self.retry_at is not None and now() < self.retry_at):
            return None
        self.retry_at = None
        self.measures = False
        damaged: set[str] = set()
        while True:
            match step := self.next():
                case Judge() if self._champion_changes():
                    return None  # the end of the switch wakes the loop
                case Build() | Prove() | Measure() | Judge() if self._is_damaged(step):
                    if step.key in damaged:
                        return Finish("failed", f"{step.key}: what it begins with is gone, and nothing makes it again")
                    damaged.add(step.key)  # the next step makes it again
                case Judge():
                    self._ask(step.artifact)
                case Tune() | Train() | Shortlist() | Sketch() | Race() | Build() | Prove() | Measure():
                    self._start(step, alone=alone)
                    if self.child is not None or self.measures:
                        return None
                case _:
                    return step

    def _is_damaged(self, step: Build | Prove | Measure | Judge) -> bool:
        """Whether what the step begins with is not what was made: it is made again then.

        What is judged was perhaps proven long ago.
        """
        with self.journal.begin() as connection:
            if isinstance(step, Build):
                fault = stock.find_model_damage(connection, self.config.state, step.model)
            else:
                fault = stock.find_damage(connection, self.config.state, step.artifact)
        if fault:
            log.warning("%s", fault)
        return fault is not None

    def _champion_changes(self) -> bool:
        """Whether another promotion is under way: a verdict against what it replaces would be void."""
        table = schema.promotions
        others = table.c.cycle_id.is_(None) | (table.c.cycle_id != self.id)
        mine = (table.c.target == self.target, others, table.c.state == "switching")
        with self.journal.connect() as connection:
            return connection.execute(select(table.c.id).where(*mine)).first() is not None

    def _ask(self, artifact: str) -> None:
        with self.journal.begin() as connection:
            facts = self.facts(connection)
            challenger = next(c for c in facts.candidates if c.artifact == artifact)
            judge = targets.judge_set(connection, self.rows)
            champion = targets.champion(connection, self.target)
            before = champion.snapshot if champion else challenger.snapshot
            verdicts.ask(
                connection,
                cycle=self.id,
                requirement=self.ground.requirement,
                challenger=challenger,
                champion_feasible=facts.champion_feasible,
                judge=judge,
                devices=self.devices,
                settings=self._promotion_settings(),
                forgotten=forget.compare(connection, self.config.state / "snapshots", before, challenger.snapshot),
                newest=judge.since(snapshot.known(self.config.state / "snapshots" / f"{before}.snapshot")),
            )

    def _promotion_settings(self) -> PromotionSettings:
        """Those in force. Who asked about an artifact has said that it is to be promoted, if the policy agrees."""
        settings = self.config.settings.promotion
        return dataclasses.replace(settings, approval="policy") if self.row.trigger == "asked" else settings

    def _start(self, step: Work, *, alone: bool) -> None:
        with self.journal.begin() as connection:
            self._explain(connection, step)
            # Their end could not be written down: the disk was full.
            attempts.lose(connection, self.id, alive=self.ground.folder)
            attempts.skip_waiting(connection, self.id, unless=step.key)
            plans = jobs.plan(step, self.ground, connection, self.devices)
            rows = [attempts.find_stage(connection, self.id, step.key, plan.name) for plan in plans]
            if plans[0].name == "pixels":
                rows[0] = self._look_for_pixels(connection, rows[0])
            earlier = {row.name: row.outputs for row in rows if row.state == "done"}
            waiting = [(plan, row) for plan, row in zip(plans, rows, strict=True) if row.state != "done"]
            if not waiting:
                attempts.do_again(connection, rows)
                return
            package = waiting[0][0].package
            self.measures = package == "deploy"
            if self.measures and not alone:
                return
            together = [pair for pair in waiting if pair[0].package == package]
            first = together[0][1]
            job = self._job(f"c{self.id}.s{first.id}.a{first.attempts + 1}", together, earlier)
        self.drawing = isinstance(step, Sketch)
        self._spawn(job)

    def _explain(self, connection: Connection, step: Work) -> None:
        """What the search and the tuning decide within a cycle is a decision like any other, told once."""
        if not isinstance(step, Tune | Shortlist | Race):
            return
        table, event = schema.decisions, f"cycle {self.id}"
        told = (table.c.target == self.target, table.c.event == event, table.c.reason == step.reason)
        if connection.execute(select(table.c.id).where(*told)).first() is None:
            action: Action = "tune" if isinstance(step, Tune) else "search"
            decisions.write(connection, self.config, self.target, event, Decision(action, step.reason), None)
            log.info("%s: %s: %s", self.target, action, step.reason)

    def _look_for_pixels(self, connection: Connection, stage: AnyRow) -> AnyRow:
        """The stage that decodes is done where its result lies, whoever made it, and only there."""
        index = self.ground.pixels_index
        if stock.has_pixels(index):
            done = {"pixels": str(index), **({} if stage.state == "done" else {"from": "the cache"})}
            outputs = {**(stage.outputs or {}), **done}
            change(connection, schema.stages, stage.id, state="done", outputs=outputs, ended=stage.ended or now())
        elif stage.state == "done":
            change(connection, schema.stages, stage.id, state="waiting")
        return get(connection, schema.stages, stage.id)

    def _job(self, token: str, together: list[tuple[StagePlan, AnyRow]], earlier: dict[str, dict[str, Any]]) -> Job:
        compute = self.ground.settings["compute"]
        package = together[0][0].package
        training = package == "pipeline"
        threads = jobs.training_threads(compute["threads"]) if training else compute["serve_threads"]
        orders = tuple(StageOrder(plan.name, plan.inputs) for plan, _ in together)
        self._stage_rows = {plan.name: row.id for plan, row in together}
        return Job(token, package, orders, earlier, threads)

    def _spawn(self, job: Job) -> None:
        file = self.ground.work("jobs") / f"{job.token}.json"
        file.write_text(json.dumps(to_dict(job)), encoding="utf-8")
        nice = self.ground.settings["compute"]["nice"] if job.package == "pipeline" else 0
        self.timed_out = False
        module, arguments = jobs.command(job.package, str(file), nice, self.ground.settings["cluster"]["address"])
        self.child = Child(
            job.token,
            module,
            arguments,
            self.put,
            environment=jobs.environment(job.threads),
            nice=nice,
        )

    def spoke(self, line: dict[str, Any]) -> None:
        """Writes down what the child says of its stages."""
        stage = self._stage_rows[line["stage"]]
        with self.journal.begin() as connection:
            match line["event"]:
                case "started":
                    attempts.begin(connection, stage, line["token"])
                case "progress":
                    said = {key: value for key, value in line.items() if key not in ("token", "event", "stage")}
                    attempts.write(connection, stage, progress=said)
                case "finished":
                    attempts.write(connection, stage, ended=now(), outcome="done")
                    outcomes.record(connection, self.ground, get(connection, schema.stages, stage), line["outputs"])
                    tuned = tunings.best(connection, self.target, self.ground.settings)
                    self.ground = dataclasses.replace(self.ground, tuned=tuned)
                    claim(
                        connection,
                        schema.stages,
                        stage,
                        "running",
                        "done",
                        outputs=line["outputs"],
                        ended=now(),
                    )
                case "failed":
                    attempts.write(connection, stage, last_words=line["error"])

    def ended(self, status: int, last_words: str) -> str:
        """The child is gone: if it left a stage unfinished, that attempt failed; the policy says when to try again.

        Returns why.
        """
        self.child = None
        self.measures = False
        with self.journal.begin() as connection:
            row = connection.execute(
                select(schema.stages).where(schema.stages.c.cycle_id == self.id, schema.stages.c.state == "running")
            ).first()
            if row is None:
                states = [get(connection, schema.stages, id_).state for id_ in self._stage_rows.values()]
                if "done" in states:  # what it said is done, however it ended; what is left is begun anew
                    return last_words
                first = next(iter(self._stage_rows.values()))  # it ended before it began a stage
                attempts.begin(connection, first, f"c{self.id}.s{first}")
                row = get(connection, schema.stages, first)
            words = words_of(connection, row.id) or last_words or f"ended with status {status}"
            if self.timed_out:
                words = f"took longer than {self.limit_minutes:g} minutes; {words}"
            how = "timed out" if self.timed_out else "waited" if attempts.waits(connection, row.id) else "failed"
            attempts.write(connection, row.id, ended=now(), outcome=how, last_words=words)
            waited = how == "waited"  # in vain, which says nothing of what was to be measured
            if row.step.startswith("sketch ") and not waited:
                self._give_up_sketch(connection, row, words)
            else:
                settings = RetrySettings(**self.ground.settings["policies"]["retry"])
                wait = attempts.retry(connection, row.id, settings, waited=waited)
                self.retry_at = None if wait is None else now() + wait
        return words

    def _give_up_sketch(self, connection: Connection, row: AnyRow, words: str) -> None:
        """An architecture that cannot be drawn or measured is out of the search, for that reason, at once."""
        _, name, variant = row.step.split()
        change(connection, schema.stages, row.id, state="failed", ended=now())
        device = self.devices[split(variant)[0]]
        sketches.record_failure(connection, self.ground, name, variant, device, words)

    def interrupt(self, reason: str) -> None:
        """Ends the cycle before its verdict: a constraint was edited. What was trained so far stays on disk."""
        with self.journal.begin() as connection:
            attempts.lose(connection, self.id, "interrupted")
            self.close(connection, "interrupted", "interrupted", reason)
        if self.child is not None:
            self.child.stop(GRACE_SECONDS)

    def rest(self) -> None:
        """Leaves the cycle as it is, to be gone on with after a pause: no attempt is counted as failed."""
        with self.journal.begin() as connection:
            attempts.lose(connection, self.id, "paused")
        if self.child is not None:
            self.child.stop(GRACE_SECONDS)

    def finish(self, outcome: str, reason: str) -> None:
        with self.journal.begin() as connection:
            self.close(connection, "failed" if outcome == "failed" else "done", outcome, reason)

    def close(self, connection: Connection, state: str, outcome: str, reason: str) -> None:
        attempts.skip_waiting(connection, self.id)
        shutil.rmtree(self.ground.sketches, ignore_errors=True)
        claim(connection, schema.cycles, self.id, "running", state, outcome=outcome, reason=reason, ended=now())
        if state == "interrupted":
            return
        if self.row.trigger == "data":
            people.settle(connection, self.target, before=self.row.started)
        elif self.row.trigger == "asked":
            people.settle_asked(connection, self.target, f"{outcome}: {reason}", self.row.about)
        elif self.row.trigger == "adopt":
            adoption.settle(connection, self.target, self.id, f"{outcome}: {reason}")


def complete(frozen: Mapping[str, Any], today: Mapping[str, Any]) -> dict[str, Any]:
    """A cycle's frozen settings; today's for what an older version did not know, and for the use of the machine."""
    settings = dict(today)
    for key, value in frozen.items():
        free = key in ("space", "optimizers")  # tables of any keys: they are taken whole
        inner = isinstance(value, Mapping) and isinstance(today.get(key), Mapping) and not free
        settings[key] = complete(value, today[key]) if inner else value
    return {**settings, "compute": today["compute"]} if "compute" in today else settings
