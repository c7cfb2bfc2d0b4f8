"""One running cycle: asks the policy for the next step, runs it in children, writes down what comes of it.

All that a cycle knows is in the journal, so that a daemon that was killed goes on from the last finished stage.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, select, update

from daemon import jobs, schema, snapshot, targets, verdicts
from daemon.children import Child
from daemon.config import Config
from daemon.events import Event
from daemon.jobs import Ground, StagePlan
from daemon.journal import AnyRow, add, change, claim, get, now
from policies.facts import Job, Requirement, StageOrder, Verdict, from_dict, to_dict
from policies.next_step import Build, CycleFacts, Finish, Judge, Prove, Step, Train, next_step
from policies.retry import wait_before
from policies.settings import RetrySettings

GRACE_SECONDS = 5.0  # between asking a child to end and ending it
Put = Callable[[Event], None]


class Cycle:
    """The cycle that runs now; there is one at a time, so that what measures has the machine to itself."""

    def __init__(self, config: Config, journal: Engine, id_: int, put: Put, device: str) -> None:
        self.config = config
        self.journal = journal
        self.id = id_
        self.put = put
        self.device = device
        self.child: Child | None = None
        self.retry_at: float | None = None
        self.timed_out = False
        with journal.begin() as connection:
            self.row = get(connection, schema.cycles, id_)
            _lose_attempts(connection, id_)
        self.target: str = self.row.target
        self.ground = Ground(
            cycle=id_,
            state=config.state,
            settings=self.row.settings,
            requirement=from_dict(Requirement, self.row.requirement),
            snapshot=self.row.snapshot_id,
        )
        _, self.rows = snapshot.read(config.state / "snapshots" / f"{self.row.snapshot_id}.snapshot")

    # --- deciding what is next --------------------------------------------------------------------------------

    def next(self) -> Step:
        with self.journal.connect() as connection:
            return next_step(self.facts(connection))

    def facts(self, connection: Connection) -> CycleFacts:
        """What the policy looks at, read from the journal anew at each step."""
        requirement = self.ground.requirement
        champion = targets.champion(connection, self.target)
        judge = targets.judge_set(connection, self.rows)
        classes = self._classes()
        if champion and self.row.trigger == "constraints":
            classes = tuple(name for name in champion.classes if name in classes)
        proven = set(self._proven(connection))
        candidates = tuple(
            dataclasses.replace(c, proof=judge.counts(connection, c.artifact, c.classes)) if c.artifact in proven else c
            for c in targets.candidates(connection, requirement, classes, self.device)
        )
        said = {row.artifact_id: from_dict(Verdict, row.verdict) for row in self._verdicts(connection)}
        return CycleFacts(
            trigger=self.row.trigger,
            requirement=requirement,
            snapshot=self.ground.snapshot,
            architectures=tuple(self.ground.settings["model"]["architectures"]),
            candidates=candidates,
            unbuilt=self._unbuilt(connection),
            trained=self._trained(connection),
            too_large=self._too_large(connection),
            champion=champion.artifact if champion else None,
            champion_feasible=champion is not None
            and targets.feasible(
                connection,
                requirement,
                champion,
                judge.counts(connection, champion.artifact, champion.classes),
                device=self.device,
                confidence=self.config.settings.promotion.confidence,
            ),
            rivals=verdicts.unproven(connection, requirement, judge, self.device),
            verdicts=said,
            promoted=next(iter(self._promoted(connection)), None),
            failed=self._failed(connection),
        )

    def _classes(self) -> tuple[str, ...]:
        return tuple(sorted({name for name, _ in self.rows.values()}))

    def _proven(self, connection: Connection) -> list[str]:
        proofs = schema.proofs
        return list(connection.execute(select(proofs.c.artifact_id).where(proofs.c.cycle_id == self.id)).scalars())

    def _verdicts(self, connection: Connection) -> list[AnyRow]:
        table = schema.verdicts
        return list(connection.execute(select(table).where(table.c.cycle_id == self.id).order_by(table.c.id)))

    def _promoted(self, connection: Connection) -> list[str]:
        table = schema.promotions
        return list(
            connection.execute(
                select(table.c.artifact_id).where(table.c.cycle_id == self.id, table.c.served.is_not(None))
            ).scalars()
        )

    def _recipes(self) -> dict[str, str]:
        return {name: self.ground.recipe(name) for name in self.ground.settings["model"]["architectures"]}

    def _trained(self, connection: Connection) -> tuple[str, ...]:
        table = schema.models
        found = set(
            connection.execute(
                select(table.c.recipe).where(table.c.recipe.in_(list(self._recipes().values())))
            ).scalars()
        )
        return tuple(name for name, recipe in self._recipes().items() if recipe in found)

    def _unbuilt(self, connection: Connection) -> tuple[str, ...]:
        models, artifacts = schema.models, schema.artifacts
        rows = connection.execute(
            select(models.c.id)
            .outerjoin(artifacts, artifacts.c.model_id == models.c.id)
            .where(models.c.recipe.in_(list(self._recipes().values())), artifacts.c.id.is_(None))
        )
        stages = schema.stages
        begun = connection.execute(  # built, but the proof or the measurement was interrupted
            select(stages.c.step).where(
                stages.c.cycle_id == self.id,
                stages.c.step.startswith("build "),
                stages.c.state.in_(("waiting", "running")),
            )
        )
        return tuple(dict.fromkeys([*(step.removeprefix("build ") for step in begun.scalars()), *rows.scalars()]))

    def _too_large(self, connection: Connection) -> dict[str, str]:
        limit = self.ground.requirement.artifact_max_mb
        if limit is None:
            return {}
        table = schema.measurements
        rows = connection.execute(select(table.c.architecture, table.c.figures).where(table.c.artifact_id.is_(None)))
        sizes = {name: figures["weights_mb"] for name, figures in rows if "weights_mb" in figures}
        return {
            name: f"its weights alone are {size:.2f} MB, above artifact_max_mb {limit:g} by {size - limit:.2f}"
            for name, size in sizes.items()
            if size > limit
        }

    def _failed(self, connection: Connection) -> dict[str, str]:
        table = schema.stages
        rows = connection.execute(
            select(table.c.id, table.c.step, table.c.name).where(table.c.cycle_id == self.id, table.c.state == "failed")
        )
        return {f"{row.step}, stage {row.name}": _last_words(connection, row.id) for row in rows}

    # --- doing it -----------------------------------------------------------------------------------------------

    def advance(self) -> Step | None:
        """Does the next step, or starts it. Returns a step that the loop must see to: Promote or Finish."""
        if self.child is not None or (self.retry_at is not None and now() < self.retry_at):
            return None
        self.retry_at = None
        step = self.next()
        while isinstance(step, Judge):
            if self._champion_changes():
                return None  # the end of the switch wakes the loop
            self._ask(step.artifact)
            step = self.next()
        if isinstance(step, Train | Build | Prove):
            self._start(step)
            return None if self.child else self.next()
        return step

    def _champion_changes(self) -> bool:
        """Whether a rollback is under way: a verdict against what it replaces would be void."""
        table = schema.promotions
        mine = (table.c.target == self.target, table.c.kind == "rollback", table.c.state == "switching")
        with self.journal.connect() as connection:
            return connection.execute(select(table.c.id).where(*mine)).first() is not None

    def _ask(self, artifact: str) -> None:
        with self.journal.begin() as connection:
            facts = self.facts(connection)
            challenger = next(c for c in facts.candidates if c.artifact == artifact)
            judge = targets.judge_set(connection, self.rows)
            verdicts.ask(
                connection,
                cycle=self.id,
                requirement=self.ground.requirement,
                challenger=challenger,
                champion_feasible=facts.champion_feasible,
                judge=judge,
                device=self.device,
                settings=self.config.settings.promotion,
            )

    def _start(self, step: Train | Build | Prove) -> None:
        with self.journal.begin() as connection:
            _skip_waiting(connection, self.id, unless=step.key)
            plans = jobs.plan(step, self.ground, connection)
            rows = [self._stage(connection, step, plan) for plan in plans]
            if plans[0].name == "pixels" and self.ground.pixels_index.exists() and rows[0].state != "done":
                done = {"pixels": str(self.ground.pixels_index), "from": "the cache"}
                change(connection, schema.stages, rows[0].id, state="done", outputs=done, ended=now())
                rows[0] = get(connection, schema.stages, rows[0].id)
            earlier = {row.name: row.outputs for row in rows if row.state == "done"}
            waiting = [(plan, row) for plan, row in zip(plans, rows, strict=True) if row.state != "done"]
            if not waiting:  # it would be asked for again and again
                self._begin_attempt(connection, rows[-1].id, f"c{self.id}.s{rows[-1].id}")
                words = "all its stages are done, and still it is asked for; please report this"
                connection.execute(_open_attempt(rows[-1].id).values(ended=now(), outcome="failed", last_words=words))
                change(connection, schema.stages, rows[-1].id, state="failed")
                return
            package = waiting[0][0].package
            together = [pair for pair in waiting if pair[0].package == package]
            first = together[0][1]
            job = self._job(f"c{self.id}.s{first.id}.a{first.attempts + 1}", together, earlier)
        self._spawn(job)

    def _stage(self, connection: Connection, step: Step, plan: StagePlan) -> AnyRow:
        assert not isinstance(step, Finish)
        table = schema.stages
        mine = (table.c.cycle_id == self.id, table.c.step == step.key, table.c.name == plan.name)
        row = connection.execute(select(table).where(*mine)).first()
        if row is not None and row.state == "skipped":
            change(connection, table, row.id, state="waiting")
            row = get(connection, table, row.id)
        if row is None:
            values = {
                "cycle_id": self.id,
                "step": step.key,
                "name": plan.name,
                "state": "waiting",
                "attempts": 0,
            }
            row = get(connection, table, add(connection, table, **values))
        return row

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
        self.child = Child(
            job.token,
            job.package,
            [str(file)],
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
                    self._begin_attempt(connection, stage, line["token"])
                case "progress":
                    said = {key: value for key, value in line.items() if key not in ("token", "event", "stage")}
                    connection.execute(_open_attempt(stage).values(progress=said))
                case "finished":
                    connection.execute(_open_attempt(stage).values(ended=now(), outcome="done"))
                    jobs.record(connection, self.ground, get(connection, schema.stages, stage), line["outputs"])
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
                    connection.execute(_open_attempt(stage).values(last_words=line["error"]))

    def ended(self, status: int, last_words: str) -> None:
        """The child is gone: if it left a stage unfinished, that attempt failed; the policy says when to try again."""
        self.child = None
        how = "timed out" if self.timed_out else "failed"
        with self.journal.begin() as connection:
            row = connection.execute(
                select(schema.stages).where(schema.stages.c.cycle_id == self.id, schema.stages.c.state == "running")
            ).first()
            if row is None:
                states = [get(connection, schema.stages, id_).state for id_ in self._stage_rows.values()]
                if "done" in states:  # what it said is done, however it ended; what is left is begun anew
                    return
                first = next(iter(self._stage_rows.values()))  # it ended before it began a stage
                self._begin_attempt(connection, first, f"c{self.id}.s{first}")
                row = get(connection, schema.stages, first)
            words = _last_words(connection, row.id) or last_words or f"ended with status {status}"
            if self.timed_out:
                words = f"took longer than compute.stage_timeout_minutes; {words}"
            connection.execute(_open_attempt(row.id).values(ended=now(), outcome=how, last_words=words))
            self._retry(connection, row.id)

    def _begin_attempt(self, connection: Connection, stage: int, token: str) -> None:
        row = get(connection, schema.stages, stage)
        number = row.attempts + 1
        change(connection, schema.stages, stage, state="running", attempts=number, started=row.started or now())
        add(connection, schema.attempts, stage_id=stage, number=number, token=token, started=now())

    def _retry(self, connection: Connection, stage: int) -> None:
        attempts = schema.attempts
        failed = len(
            connection.execute(
                select(attempts.c.id).where(
                    attempts.c.stage_id == stage, attempts.c.outcome.in_(("failed", "timed out"))
                )
            ).all()
        )
        wait = wait_before(failed + 1, RetrySettings(**self.ground.settings["policies"]["retry"]))
        if wait is None:
            change(connection, schema.stages, stage, state="failed", ended=now())
        else:
            change(connection, schema.stages, stage, state="waiting")
            self.retry_at = now() + wait

    def interrupt(self, reason: str) -> None:
        """Ends the cycle before its verdict: a constraint was edited. What was trained so far stays on disk."""
        if self.child is not None:
            self.child.stop(GRACE_SECONDS)
        with self.journal.begin() as connection:
            _lose_attempts(connection, self.id, "interrupted")
            self.close(connection, "interrupted", "interrupted", reason)

    def finish(self, outcome: str, reason: str) -> None:
        with self.journal.begin() as connection:
            self.close(connection, "failed" if outcome == "failed" else "done", outcome, reason)

    def close(self, connection: Connection, state: str, outcome: str, reason: str) -> None:
        _skip_waiting(connection, self.id)
        claim(
            connection,
            schema.cycles,
            self.id,
            "running",
            state,
            outcome=outcome,
            reason=reason,
            ended=now(),
        )


def _open_attempt(stage: int) -> Any:
    return update(schema.attempts).where(schema.attempts.c.stage_id == stage, schema.attempts.c.outcome.is_(None))


def _last_words(connection: Connection, stage: int) -> str:
    table = schema.attempts
    words = connection.execute(
        select(table.c.last_words).where(table.c.stage_id == stage).order_by(table.c.id.desc())
    ).scalar()
    return words or ""


def _skip_waiting(connection: Connection, cycle: int, unless: str = "") -> None:
    """What a step that was left (for a better one, or at the end) had still planned is not done by it any more."""
    stages = schema.stages
    others = (stages.c.cycle_id == cycle, stages.c.step != unless, stages.c.state == "waiting")
    connection.execute(update(stages).where(*others).values(state="skipped"))


def _lose_attempts(connection: Connection, cycle: int, outcome: str = "lost") -> None:
    """Attempts still open are over: their child died with the daemon, or was stopped."""
    stages = schema.stages
    running = list(
        connection.execute(select(stages.c.id).where(stages.c.cycle_id == cycle, stages.c.state == "running")).scalars()
    )
    for stage in running:
        connection.execute(_open_attempt(stage).values(ended=now(), outcome=outcome))
        change(connection, stages, stage, state="waiting")
