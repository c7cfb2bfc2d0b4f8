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
SECONDS = 300.0  # that a child may take …
SECONDS_AN_IMAGE = 0.25  # … and so many more for each image: a large network on a slow machine


class Errand(ABC):
    """A lane whose child answers by one stage; after a failure, which holds nothing up, the next drop asks again."""

    doing: ClassVar[str]  # for the log: "the audit of labels"

    def __init__(self, config: Config, journal: Engine, put: Callable[[Event], None]) -> None:
        self.config = config
        self.journal = journal
        self.put = put
        self.child: Child | None = None
        self.limit = 0.0  # seconds, of the child
        self.stage = ""  # that answers the question

    def reconfigure(self, config: Config) -> None:
        """The next child is sent as these settings say."""
        self.config = config

    def send(
        self,
        stage: str,
        token: str,
        inputs: dict[str, Any],
        file: Path,
        images: int | None = None,
        first: tuple[StageOrder, ...] = (),
    ) -> None:
        """Starts the child on this stage; `file` becomes its job.

        images: how many it looks at, where its inputs do not name them; they give it more time. first: stages that it
        needs before, of whose outputs nothing is taken.
        """
        self.stage = stage
        threads = self.config.settings.compute.serve_threads
        common = {"store": str(self.config.state / "store"), "threads": threads}
        number = len(inputs.get("samples", ())) if images is None else images
        longest = self.config.settings.compute.stage_timeout_minutes * 60
        self.limit = min(SECONDS + number * SECONDS_AN_IMAGE, longest)
        job = Job(token, "pipeline", (*first, StageOrder(stage, {**common, **inputs})), threads=threads)
        file.write_text(json.dumps(to_dict(job)), encoding="utf-8")
        self.child = Child(token, "pipeline", [str(file)], self.put, environment=jobs.environment(threads))

    def stop_overdue(self) -> None:
        """Stops a child that hangs: every decision waits for it."""
        if self.child is not None and self.child.age > self.limit:
            log.warning(
                "%s took longer than %.0f minutes, and is given up until more comes", self.doing, self.limit / 60
            )
            self.child.stop(grace_seconds=5.0)

    def hear(self, line: dict[str, Any]) -> None:
        if line["event"] == "failed":
            log.warning("%s failed: %s", self.doing, line["error"])
        if line["event"] == "finished" and line["stage"] == self.stage:
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
