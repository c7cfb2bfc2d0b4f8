"""Trainings as runs of Weights & Biases, for people who watch them there; offline, files that are uploaded later.

    with track.tracking(order) as tracker, tracker.run(recipe, folder) as run:
        run.log(entry)          # an epoch, as the history holds it
        run.conclude(outputs)

Everything that wandb does happens in a process of its own (pipeline/tracker.py), which is told of it in lines of JSON:
loading it takes a second, and whatever it fails at or hangs on costs the training nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any, cast

from pipeline.run_folder import Recipe

Order = Mapping[str, Any]
""""mode" ("offline", "online", "disabled"), "project", "folder" (wandb makes its folder `wandb` in it), "group"."""

CHECKOUT = str(Path(__file__).resolve().parents[1])
WAIT_SECONDS = 60.0  # at the end, for what is still to be written or sent


class Run:
    """One training as it is tracked."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def log(self, entry: Mapping[str, Any]) -> None:
        """An epoch, at the step of its number."""
        self._tracker.tell(log=entry)

    def conclude(self, outputs: Mapping[str, Any]) -> None:
        """What came of it."""
        self._tracker.tell(summary=outputs)


class Tracker:
    """What is told to the process that tells wandb; to nobody where it is gone, or there is none."""

    def __init__(self, order: Order, pipe: IO[str] | None) -> None:
        self._order, self._pipe = order, pipe

    @contextmanager
    def run(self, recipe: Recipe, folder: Path) -> Iterator[Run]:
        """Tracks the training of this run folder while the block lasts; one that raises is a failed one.

        A training is one run however often it is stopped: the run's name follows from the run folder, and each
        attempt tells all epochs from the first.
        """
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        title = f"{recipe.architecture} {recipe.snapshot[:8]}"
        self.tell(begin={**self._order, "id": name, "name": title, "config": recipe.plain()})
        code = 1
        try:
            yield Run(self)
            code = 0
        finally:
            self.tell(end=code)

    def tell(self, **line: Any) -> None:
        if self._pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # it has said why
                print(json.dumps(line), file=self._pipe, flush=True)


@contextmanager
def tracking(order: Order | None) -> Iterator[Tracker]:
    """The process that tells wandb, while the block lasts; none without an order."""
    process = None if order is None or order["mode"] == "disabled" else _start()
    if order is None or process is None:
        yield Tracker({}, None)
        return
    assert process.stdin is not None
    try:
        yield Tracker(order, process.stdin)
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            say(f"it has not finished within {WAIT_SECONDS:g} seconds")


def _start() -> subprocess.Popen[str] | None:
    found = filter(None, (CHECKOUT, os.environ.get("PYTHONPATH")))
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "pipeline.tracker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(found)},
            text=True,
        )
    except OSError as error:  # no memory, or no more processes
        say(f"its process could not be started: {error}")
        return None


def say(what: str) -> None:
    print(f"Weights & Biases: {what}; the training goes on without it", file=sys.stderr, flush=True)


def put_off() -> None:
    """Keeps wandb from being loaded: timm does so with any of its modules, for scripts of its own; it takes 0.6 s."""
    sys.modules.setdefault("wandb", cast(ModuleType, None))
