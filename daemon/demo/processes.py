"""The demonstration's own workspace, and the two programs that a user would start in it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from daemon import views
from daemon.children import CHECKOUT
from daemon.config import Config, load
from daemon.demo.digits import SIZE
from daemon.errors import NotFound, RelearnError, UsageError
from daemon.journal import open_journal
from deploy.server import free_ports
from deploy.triton import Triton

TARGET = "digits"
ROOMY_MB = 10.0  # of an artifact: both networks fit
TIGHT_MB = 1.0  # only the second fits
ARCHITECTURES = ("test_resnet", "test_nfnet")  # the second is half as large, and a third as fast

CONFIG = """\
# The demonstration's settings; all others are at their defaults (see config.toml of the checkout).
version = 1

[watch]
settle_seconds = 1.0

[roles]           # digits are few: a fifth of them judges
train = 0.7
tune = 0.1
judge = 0.2

[promotion]       # and five points are what so few can tell
margin = 0.05

[model]
architectures = {architectures}

[train]
epochs = {epochs}
learning_rate = 3e-3

[train.augment]
crop_min = 0.8
flip = false      # a mirrored digit is another sign
rotate_degrees = 10.0

[policies.cooldown]
minutes = 0.0

[triton]
url = "127.0.0.1:{port}"
"""

CONSTRAINTS = """\
version = 1

[input]
height = {size}
width = {size}

[require]
latency_p95_ms = 20.0
artifact_max_mb = {artifact_max_mb}
accuracy_min = 0.80

[prefer]
maximize = "throughput"
"""


class StepFailed(RelearnError):
    """A step of the demonstration did not do what it should."""


class Workspace:
    """A workspace, the daemon and the Triton that run in it, and the journal to look into."""

    def __init__(self, folder: Path, epochs: int) -> None:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder}: is not empty; name a new folder for the demonstration")
        self.folder = folder
        for name in ("images", "constraints", "triton"):
            (folder / name).mkdir(parents=True)
        text = CONFIG.format(architectures=list(ARCHITECTURES), epochs=epochs, port=free_ports(1)[0])
        (folder / "config.toml").write_text(text.replace("'", '"'), encoding="utf-8")
        self.constrain(ROOMY_MB)
        self.config: Config = load(folder)
        self.daemon: subprocess.Popen[bytes] | None = None
        self.triton: subprocess.Popen[bytes] | None = None
        self._journal: Engine | None = None

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def constraint_file(self) -> Path:
        return self.constraints_of(TARGET)

    @property
    def url(self) -> str:
        return self.config.settings.triton[0].url

    def constraints_of(self, target: str) -> Path:
        return self.folder / "constraints" / f"{target}.toml"

    def write_constraints(self, target: str, text: str) -> None:
        self.constraints_of(target).write_text(text, encoding="utf-8")

    def constrain(self, artifact_max_mb: float) -> None:
        text = CONSTRAINTS.format(size=SIZE, artifact_max_mb=artifact_max_mb)
        self.write_constraints(TARGET, text)

    def start_triton(self) -> None:
        self.triton = self._start("triton")
        deadline = time.monotonic() + 60
        with Triton(self.url) as triton:
            while not triton.is_live():
                if self.triton.poll() is not None or time.monotonic() > deadline:
                    raise StepFailed(f"Triton did not start; see {self.folder / 'triton.log'}:\n{self.log('triton')}")
                time.sleep(0.2)

    def start_daemon(self, *overrides: str) -> None:
        self.daemon = self._start("run", *(word for override in overrides for word in ("--set", override)))

    def restart_daemon(self, *overrides: str) -> None:
        """As a user would: it is told to end, and started with other settings."""
        self.stop_daemon()
        self.start_daemon(*overrides)

    def stop_daemon(self) -> None:
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGTERM)
        self.daemon.wait(40)

    def ask(self, *words: str) -> Any:
        """What a command answers. Raises StepFailed where it fails."""
        command = [str(CHECKOUT / "relearn"), *words, "--workspace", str(self.folder), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StepFailed(f"relearn {' '.join(words)}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def _start(self, command: str, *more: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{command}.log").open("ab") as log:
            return subprocess.Popen(
                [str(CHECKOUT / "relearn"), command, "--workspace", str(self.folder), *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C ends the demonstration, which ends them in order
            )

    def kill_daemon(self) -> None:
        """SIGKILL: no chance to save anything."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()

    def stop(self) -> None:
        """Ends what is running: the daemon first, so that it takes no stopped Triton for a fault."""
        for process in (self.daemon, self.triton):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    process.kill()

    def log(self, command: str) -> str:
        """The end of a program's log."""
        return (self.folder / f"{command}.log").read_text(encoding="utf-8", errors="replace")[-2000:]

    def look(self, view: Callable[[Connection], Any]) -> Any:
        """A view of the daemon's journal; None as long as there is none."""
        if self._journal is None:
            try:
                self._journal = open_journal(self.config.state)
            except RelearnError:
                return None
        with self._journal.connect() as connection:
            return view(connection)

    def target(self, name: str = TARGET) -> dict[str, Any]:
        """What the journal says of a target; empty before its constraint file was read."""

        def view(connection: Connection) -> dict[str, Any]:
            try:
                return views.target(connection, self.config, name)
            except NotFound:
                return {}

        return self.look(view) or {}

    def version(self) -> int:
        """The version that is served; 0: none."""
        champion = self.target().get("champion")
        return int(champion["version"]) if champion else 0

    def cycles(self) -> list[dict[str, Any]]:
        """All cycles, the oldest first."""
        return list(reversed(self.look(lambda c: views.cycles(c, 1000)) or []))
