"""Trainings as runs of Weights & Biases, for people who watch them there; offline, files that are uploaded later.

    with track.run(order, recipe, folder) as tracked:
        tracked.log(entry)          # an epoch, as the history holds it
        tracked.conclude(outputs)

Everything that wandb does happens in a thread of its own: loading it takes two seconds, and whatever it fails at or
hangs on costs the training nothing. A training is one run however often it is stopped: the run's name follows from the
run folder, and each attempt tells all epochs from the first. So what an earlier one left behind offline, which a kill
may have cut off anywhere, is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import ModuleType
from typing import Any, cast

from pipeline.run_folder import Recipe

Order = Mapping[str, Any]
""""mode" ("offline", "online", "disabled"), "project", "folder" (wandb makes its folder `wandb` in it), "group"."""

WAIT_SECONDS = 60.0  # at the end of a training, for what is still to be written or sent
FINISHED = "finished"  # a file in an offline run's folder: the attempt has ended, the run can be uploaded
SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",  # standard output is the protocol's
    "disable_git": True,
    "save_code": False,
    "disable_job_creation": True,
    "init_timeout": 30.0,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


class Run:
    """One training as it is tracked; what is told waits here for the thread that tells wandb."""

    def __init__(self) -> None:
        self.waiting: SimpleQueue[Callable[[Any], None] | None] = SimpleQueue()  # acts on wandb's run; None: the end
        self.succeeded = False

    def log(self, entry: Mapping[str, Any]) -> None:
        """An epoch, at the step of its number. What an online run has had of an earlier attempt it gets no more."""
        step = int(entry["epoch"])
        self.waiting.put(lambda run: run.log(dict(entry), step=step) if step >= run.step else None)

    def conclude(self, outputs: Mapping[str, Any]) -> None:
        """What came of it."""
        self.waiting.put(lambda run: run.summary.update(dict(outputs)))


@contextmanager
def run(order: Order | None, recipe: Recipe, folder: Path) -> Iterator[Run]:
    """Tracks the training of this run folder while the block lasts; without an order nobody listens."""
    tracked = Run()
    if order is None or order["mode"] == "disabled":
        yield tracked
        return
    thread = Thread(target=_tell, args=(tracked, order, recipe, folder), name="wandb", daemon=True)
    thread.start()
    try:
        yield tracked
        tracked.succeeded = True
    finally:
        tracked.waiting.put(None)
        thread.join(WAIT_SECONDS)
        if thread.is_alive():
            _say(f"it has not finished within {WAIT_SECONDS:g} seconds")


def _tell(tracked: Run, order: Order, recipe: Recipe, folder: Path) -> None:
    try:
        wandb = _load()
        run = _begin(order, recipe, folder)
        for act in iter(tracked.waiting.get, None):
            act(run)
        run.finish(exit_code=0 if tracked.succeeded else 1)
        wandb.teardown()  # its service is a process of its own
        if order["mode"] == "offline":
            Path(run.settings.sync_dir, FINISHED).touch()
    except Exception as error:  # whatever it is, it is not the training's
        _say(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")


def put_off() -> None:
    """Keeps wandb from being loaded before a training tells it something.

    timm loads it with any of its modules, for scripts of its own: 0.6 seconds of every child.
    """
    sys.modules.setdefault("wandb", cast(ModuleType, None))


def _load() -> Any:
    """wandb, without the temporary folders that it makes as it is loaded, for media and artifacts: nothing has any.

    A child ends without taking itself apart, and would leave them behind.
    """
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # read when it is loaded; it would call home, offline too
    if not sys.modules.get("wandb"):
        sys.modules.pop("wandb", None)  # was put off
    aside, home = tempfile.tempdir, tempfile.mkdtemp(prefix="relearn-wandb-")
    tempfile.tempdir = home
    try:
        return importlib.import_module("wandb")
    finally:
        tempfile.tempdir = aside
        for made in Path(home).glob("*wandb-*"):
            shutil.rmtree(made, ignore_errors=True)
        with contextlib.suppress(OSError):  # what another thread has put there meanwhile
            Path(home).rmdir()


def _begin(order: Order, recipe: Recipe, folder: Path) -> Any:
    import wandb

    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    place = Path(order["folder"])
    place.mkdir(parents=True, exist_ok=True)
    for earlier in place.glob(f"wandb/offline-run-*-{name}"):
        shutil.rmtree(earlier, ignore_errors=True)
    return wandb.init(
        id=name,
        mode=order["mode"],
        resume="allow" if order["mode"] == "online" else None,
        project=order["project"],
        group=order["group"],
        name=f"{recipe.architecture} {recipe.snapshot[:8]}",
        config=recipe.plain(),
        dir=place,
        reinit="create_new",
        settings=wandb.Settings(**SETTINGS),
    )


def _say(what: str) -> None:
    print(f"Weights & Biases: {what}; the training goes on without it", file=sys.stderr)
