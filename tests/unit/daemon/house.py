"""The daemon's serving half and Tritons of a module's own, which may be killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import psutil

from daemon import schema
from daemon.config import load
from daemon.events import Event, SettingsEdited
from daemon.journal import AnyRow
from daemon.serving import Serving
from daemon.stock import artifact_folder
from deploy import artifact as artifacts
from deploy.server import Server, free_ports
from deploy.triton import Triton, TritonError

World = Any  # tests/unit/daemon/conftest.py


class Place:
    """A Triton of the module's own, that may be killed and comes back at the same ports, empty."""

    def __init__(self, folder: Path, mode: str = "explicit") -> None:
        self.root = folder / "repository"
        self.root.mkdir(parents=True)
        self.ports = tuple(free_ports(3))
        self.folder, self.mode = folder, mode
        self.url = f"127.0.0.1:{self.ports[0]}"
        self.start()

    def start(self) -> None:
        mode = self.mode

        class Started(Server):
            def _command(self, *given: Any) -> list[str]:
                return [word.replace("mode=explicit", f"mode={mode}") for word in super()._command(*given)]

        cache = self.folder.parent / "cache"
        self.server = Started(self.root, cache, ports=self.ports, log=self.folder / "log")  # type: ignore[arg-type]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.server.process.pid, signal.SIGKILL)
        self.server.stop()

    def stubs(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.server.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith("triton_python") and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


TABLE = '[[triton]]\nname = "{name}"\nurl = "{url}"\nrepository = "{repository}"\ninstances = {instances}\n'


class House:
    """The daemon's serving half, with threads and settings as in life, on one server or two."""

    def __init__(
        self, world: World, workspace: Path, built: Path, *places: Place, more: str = "", instances: int = 1
    ) -> None:
        self.world, self.workspace = world, workspace
        names = ["here", "there"][: len(places)]
        tables = [
            TABLE.format(name=name, url=place.url, repository=place.root, instances=instances)
            for name, place in zip(names, places, strict=True)
        ]
        (workspace / "config.toml").write_text("\n".join(["version = 1", *tables]) + more)
        self.config = load(workspace)
        self.queue: SimpleQueue[Event] = SimpleQueue()
        self.serving = Serving(self.config, world.journal, self.queue.put)
        world.samples("cat", "train")
        world.artifact("first", world.cycle(state="done"))
        shutil.copytree(built, artifact_folder(self.config.state, "first"), dirs_exist_ok=True)

    def start_anew(self) -> None:
        """As a daemon that finds config.toml as it is now."""
        self.config = load(self.workspace)
        self.serving = Serving(self.config, self.world.journal, self.queue.put)
        self.serving.settle(self.config)

    def request(self, target: str) -> AnyRow:
        with self.world.journal.begin() as connection:
            row = self.serving.request(connection, target, "first", kind="rollback", by="ann", cycle=None)
        self.serving.tend()
        return row

    def promotions(self, target: str) -> list[AnyRow]:
        rows: list[AnyRow] = self.world.rows(schema.promotions, target=target)
        return rows

    def serves(self, target: str) -> bool:
        return any((row.state, row.step) == ("serving", "retire") for row in self.promotions(target))

    def answer_events(self) -> None:
        """As the loop does."""
        while not self.queue.empty():
            if isinstance(event := self.queue.get(), SettingsEdited):
                self.serving.renew(event)

    def noted(self) -> dict[str, tuple[str, str | None]]:
        return {row.name: (row.state, row.trouble) for row in self.world.rows(schema.servers)}


def answers(url: str, target: str, built: Path) -> bool:
    """Whether it gives the recorded answers, from each of its two instances."""
    images, recorded = artifacts.read_golden(built)
    with Triton(url, timeout=2.0) as triton:
        try:
            found, _ = triton.infer_all(target, images[:4])
        except TritonError:
            return False
    return bool(np.allclose(found, recorded[:4], atol=1e-3))


def ask_for(house: House, target: str, server: str) -> None:
    house.world.require(target, server=server)
