"""The lane that audits labels: each drop's, together with all those in use, by the champion's embedding."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from daemon import decisions, flags, jobs, schema, snapshot, targets
from daemon.children import Child
from daemon.config import Config
from daemon.events import Event
from daemon.journal import change, now
from daemon.stock import model_folder
from policies.facts import Job, StageOrder, to_dict
from policies.labels import hold_drop

log = logging.getLogger("relearn")


class Auditor:
    """Drops wait here for a champion to audit them by; a drop with too many wrong labels is held."""

    def __init__(self, config: Config, journal: Engine, put: Callable[[Event], None]) -> None:
        self.config = config
        self.journal = journal
        self.put = put
        self.child: Child | None = None
        self.due = False
        self.drops: list[int] = []  # that are being audited
        self.model = ""

    @property
    def busy(self) -> bool:
        return self.child is not None or self.due

    def want(self) -> None:
        """A drop has come, or a champion."""
        self.due = True

    def step(self) -> bool:
        """Begins the audit of all drops that are due. False: there is none, or one is under way."""
        if self.child is not None or not self.due:
            return False
        self.due = False
        with self.journal.connect() as connection:
            drops = flags.due_drops(connection)
            model = targets.embedding_model(connection) if drops else None
            if model is None:
                return True
            rows = snapshot.labelled(connection)
        self.drops, self.model = drops, model
        self._start(rows)
        return True

    def _start(self, rows: list[snapshot.Labelled]) -> None:
        folder = self.config.state / "audits"
        folder.mkdir(parents=True, exist_ok=True)
        classes = sorted({row.name for row in rows})
        index = {name: number for number, name in enumerate(classes)}
        asked = {
            "classes": classes,
            "samples": [row.sha256.hex() for row in rows],
            "labels": [index[row.name] for row in rows],
            "judge": [row.role == "judge" for row in rows],
        }
        (folder / "rows.json").write_text(json.dumps(asked), encoding="utf-8")
        threads = self.config.settings.compute.serve_threads
        inputs = {
            "model": str(model_folder(self.config.state, self.model)),
            "store": str(self.config.state / "store"),
            "embeddings": str(self.config.state / "embeddings" / self.model),
            "rows": str(folder / "rows.json"),
            "found": str(folder / "found.json"),
            "seed": self.config.settings.train.seed,
            "threads": threads,
        }
        token = f"audit.{self.model}.{self.drops[-1]}.{len(rows)}"
        job = Job(token, "pipeline", (StageOrder("audit", inputs),), threads=threads)
        (folder / "job.json").write_text(json.dumps(to_dict(job)), encoding="utf-8")
        environment = jobs.environment(threads)
        self.child = Child(token, "pipeline", [str(folder / "job.json")], self.put, environment=environment)

    def stop_overdue(self) -> None:
        """Stops a child that hangs; its drops are audited with the next."""
        minutes = self.config.settings.compute.stage_timeout_minutes
        if self.child is not None and self.child.age > minutes * 60:
            log.warning("the audit of labels took longer than compute.stage_timeout_minutes")
            self.child.stop(grace_seconds=5.0)

    def hear(self, line: dict[str, Any]) -> None:
        if line["event"] == "failed":
            log.warning("the labels could not be audited: %s", line["error"])
        if line["event"] != "finished":
            return
        found = json.loads(Path(line["outputs"]["found"]).read_text(encoding="utf-8"))
        with self.journal.begin() as connection:
            flags.record(connection, self.model, found)
            for drop in self.drops:
                self._judge(connection, drop, found["audited"])

    def _judge(self, connection: Connection, drop: int, audited: list[str]) -> None:
        audit = flags.count(connection, drop, self.drops, audited)
        decision = hold_drop(audit, self.config.settings.policies.labels)
        (finding,) = decision.findings
        log.info("%s", decision.reason)
        change(connection, schema.drops, drop, audited=now(), reason=finding.reason)
        if decision.action == "hold":
            change(connection, schema.drops, drop, state="held")
            for target in targets.requirements(connection):
                decisions.write(connection, self.config, target, f"drop {drop}", decision, audit)

    def bury(self, status: int, last_words: str) -> None:
        if status != 0:
            log.warning("the audit of labels ended with status %d: %s", status, last_words[-500:])
        self.child = None
        self.drops = []
