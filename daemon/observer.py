"""The lane that asks the champion about new labelled samples: evidence of how good it still is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from daemon import evidence, jobs, schema, targets
from daemon.children import Child
from daemon.config import Config
from daemon.events import Event
from daemon.journal import get
from daemon.stock import model_folder
from policies.facts import Job, StageOrder, to_dict

log = logging.getLogger("relearn")


class Observer:
    """The champions of all targets, each asked once about each new sample of train and tune (never of judge)."""

    def __init__(self, config: Config, journal: Engine, put: Callable[[Event], None]) -> None:
        self.config = config
        self.journal = journal
        self.put = put
        self.child: Child | None = None
        self.due: list[str] = []  # targets whose champion is to be asked
        self.asking: targets.Champion | None = None

    @property
    def busy(self) -> bool:
        return self.child is not None or bool(self.due)

    def want(self) -> None:
        """New samples have come: every champion is to be asked about them."""
        with self.journal.connect() as connection:
            self.due = list(targets.requirements(connection))

    def step(self) -> bool:
        if self.child is not None or not self.due:
            return False
        target = self.due.pop(0)
        with self.journal.connect() as connection:
            found = evidence.unobserved(connection, self.config, target)
            if found is None or not found[1]:
                return True
            self.asking, shas = found
            artifact = get(connection, schema.artifacts, self.asking.artifact)
        self._start(model_folder(self.config.state, artifact.model_id), [sha.hex() for sha in shas])
        return True

    def _start(self, model: Path, shas: list[str]) -> None:
        assert self.asking is not None
        folder = self.config.state / "observations"
        folder.mkdir(parents=True, exist_ok=True)
        threads = self.config.settings.compute.serve_threads
        inputs = {
            "model": str(model),
            "store": str(self.config.state / "store"),
            "samples": shas,
            "threads": threads,
            "answers": str(folder / f"{self.asking.artifact}.answers.json"),
        }
        token = f"observe.{self.asking.artifact}.{shas[0][:8]}.{len(shas)}"
        file = folder / f"{self.asking.artifact}.json"
        job = Job(token, "pipeline", (StageOrder("observe", inputs),), threads=threads)
        file.write_text(json.dumps(to_dict(job)), encoding="utf-8")
        self.child = Child(token, "pipeline", [str(file)], self.put, environment=jobs.environment(threads))

    def stop_overdue(self) -> None:
        """Stops a child that hangs; the new samples are asked about after the next drop."""
        minutes = self.config.settings.compute.stage_timeout_minutes
        if self.child is not None and self.child.age > minutes * 60:
            log.warning("asking the champion about new samples took longer than compute.stage_timeout_minutes")
            self.child.stop(grace_seconds=5.0)

    def hear(self, line: dict[str, Any]) -> None:
        if line["event"] == "failed":
            log.warning("the champion could not be asked about new samples: %s", line["error"])
        if line["event"] != "finished" or self.asking is None:
            return
        said = json.loads(Path(line["outputs"]["answers"]).read_text(encoding="utf-8"))
        said["predicted"] = [self.asking.classes[index] for index in said["predicted"]]
        with self.journal.begin() as connection:
            jobs.record_answers(connection, "observations", self.asking.artifact, said)

    def bury(self, status: int, last_words: str) -> None:
        if status != 0:
            log.warning("asking the champion about new samples ended with status %d: %s", status, last_words[-500:])
        self.child = None
        self.asking = None
