"""What the lanes share that send a child of `pipeline` with one question at a time, and wait for no cycle."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import Engine

from daemon import jobs
from daemon.children import Child
from daemon.config import Config
from daemon.events import Event
from policies.facts import Job, StageOrder, to_dict

log = logging.getLogger("relearn")


class Errand(ABC):
    """A lane whose child runs one stage; a failure holds nothing up, what it was about is asked with the next drop."""

    doing: ClassVar[str]  # for the log: "the audit of labels"

    def __init__(self, config: Config, journal: Engine, put: Callable[[Event], None]) -> None:
        self.config = config
        self.journal = journal
        self.put = put
        self.child: Child | None = None

    def send(self, stage: str, token: str, inputs: dict[str, Any], file: Path) -> None:
        """Starts the child on this stage; `file` becomes its job."""
        threads = self.config.settings.compute.serve_threads
        common = {"store": str(self.config.state / "store"), "threads": threads}
        job = Job(token, "pipeline", (StageOrder(stage, {**common, **inputs}),), threads=threads)
        file.write_text(json.dumps(to_dict(job)), encoding="utf-8")
        self.child = Child(token, "pipeline", [str(file)], self.put, environment=jobs.environment(threads))

    def stop_overdue(self) -> None:
        """Stops a child that hangs."""
        minutes = self.config.settings.compute.stage_timeout_minutes
        if self.child is not None and self.child.age > minutes * 60:
            log.warning("%s took longer than compute.stage_timeout_minutes", self.doing)
            self.child.stop(grace_seconds=5.0)

    def hear(self, line: dict[str, Any]) -> None:
        if line["event"] == "failed":
            log.warning("%s failed: %s", self.doing, line["error"])
        if line["event"] == "finished":
            for why in line["outputs"].get("left_out", ()):
                log.warning("%s: left out: %s", self.doing, why)
            self.take(line["outputs"])

    def bury(self, status: int, last_words: str) -> None:
        if status != 0:
            log.warning("%s ended with status %d: %s", self.doing, status, last_words[-500:])
        self.child = None

    @abstractmethod
    def take(self, outputs: dict[str, Any]) -> None:
        """Writes down what the stage answered."""
