"""What the daemon costs while nothing happens: 50,000 samples in its journal, a champion served, ten minutes of rest.

    pss_mb           memory of all the daemon's processes (proportional set size; Triton is not of them), each second:
                     the peak over the ten minutes; `pss_median_mb` beside it. Of what they share with other
                     programs (libraries that others have loaded) a part is counted
    cpu_percent      processor time of all of them, in percent of one core, over the minutes without an event
    bytes_written    what they had the kernel write to a disk in the minutes without an event, in all: /proc/PID/io
                     counts a page when it is made dirty

A row is a minute: its processor time, its median and peak of memory, the bytes, how often a thread gave up the
processor to wait (`wakes`; a thread that polls shows there), and what the daemon logged in it (`event`). One rescan
of the watched folder falls into the ten minutes; it logs, and so the minute that holds it is one with an event.

The 50,000 images are JPEGs of 32 x 32 pixels that are dropped and taken in as a user's would be, after a first wave of
digits of which a champion was trained: looked for near-duplicates, given their roles, asked of the champion, audited.
The policies of the workspace decide on them, and train nothing. The daemon that did all that is the one that is
watched: it is not started afresh.

Goals: at most 120 MB, at most 0.3% and 0 bytes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from sqlalchemy import func, select

from benchmarks.reaction import settled, until
from benchmarks.results import publish
from daemon import schema
from daemon.demo.digits import FIRST, SIZE, cut, drop
from daemon.demo.processes import Workspace

IMAGES = 50_000
EPOCHS = 12
MINUTES = 10
SECONDS = 60  # of a row
APART = 90.0  # seconds that the rescan keeps from either end
CALM_SECONDS = 20.0  # after the last thing that happened, before the first look
TICKS = os.sysconf("SC_CLK_TCK")
# The images are to be decided on, not trained on; a rescan comes as often as the window is long: one falls into it.
CONFIG = """
[policies.rule]
alone = ["new_class"]
together = []
"""


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--images", type=int, default=IMAGES)
    arguments.add_argument("--minutes", type=int, default=MINUTES)
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="relearn-idle-", dir=os.environ.get("TMPDIR")) as folder:
        workspace = Workspace(Path(folder) / "workspace", EPOCHS)
        config = workspace.folder / "config.toml"
        config.write_text(config.read_text(encoding="utf-8") + CONFIG, encoding="utf-8")
        try:
            workspace.start_triton()
            started = time.monotonic()
            workspace.start_daemon(f"watch.rescan_minutes={asked.minutes}")
            take_in(workspace, asked.images)
            rest(workspace, started, asked.minutes * SECONDS)
            rows = list(watch(workspace, asked.minutes))
        finally:
            workspace.stop()
    quiet = [row for row in rows if not row["event"]]
    figures = {
        "pss_mb": max(row["pss_peak_mb"] for row in rows),
        "pss_median_mb": statistics.median(row["pss_mb"] for row in rows),
        "cpu_percent": statistics.mean(row["cpu_percent"] for row in quiet),
        "bytes_written": sum(row["bytes_written"] for row in quiet),
        "quiet_minutes": len(quiet),
    }
    publish("idle", rows, figures)


# --- what is there, and how it comes to rest ------------------------------------------------------------------------


def take_in(workspace: Workspace, images: int) -> None:
    """A champion, then so many images more."""
    drop(cut().first, workspace.images)
    until(lambda: workspace.version() == 1, "the first model is served")
    settled(workspace)
    before = samples(workspace)
    aside = workspace.folder / "coming"
    draw(aside, images)
    for folder in sorted(aside.iterdir()):
        for file in folder.iterdir():
            file.rename(workspace.images / folder.name / file.name)
    until(lambda: samples(workspace) >= before + images, "all images are taken in", 1.0)


def draw(folder: Path, images: int) -> None:
    """So many JPEGs, no two alike, of the digits' classes: each has its colour, with clouds over it."""
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 215, (len(FIRST), 1, 1, 3))
    for name in FIRST:
        (folder / name).mkdir(parents=True)
    for number in range(images):
        index = number % len(FIRST)
        clouds = rng.normal(0, 40, (SIZE // 4, SIZE // 4, 3))
        pixels = np.clip(colours[index] + clouds, 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        image.save(folder / FIRST[index] / f"idle{number}.jpg", quality=90)


def samples(workspace: Workspace) -> int:
    """With a role, in drops that are ready."""
    drops = schema.drops
    ready = select(func.coalesce(func.sum(drops.c.added), 0)).where(drops.c.state.in_(("ready", "held")))
    return int(workspace.look(lambda connection: connection.execute(ready).scalar_one()))


def rest(workspace: Workspace, started: float, window: float) -> None:
    """Waits until nothing has been logged and no child been seen for a while, and no rescan is near."""
    assert workspace.daemon is not None
    log = Log(workspace)
    calm = time.monotonic()
    while True:
        if log.new() or len(processes(workspace.daemon.pid)) > 1:
            calm = time.monotonic()
        since = (time.monotonic() - started) % window  # the last rescan, or the start
        in_the_midst = 20 < since % SECONDS < 40  # of a row: the rescan is to begin and end in one
        if time.monotonic() - calm > CALM_SECONDS and APART < since < window - APART and in_the_midst:
            return
        time.sleep(1.0)


# --- what it costs ----------------------------------------------------------------------------------------------------


class Log:
    """What the daemon has said since one last asked; paths are below the workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.above = f"{workspace.folder}/"
        self.file = workspace.folder / "run.log"
        self.read = self.file.stat().st_size

    def new(self) -> list[str]:
        with self.file.open("rb") as file:
            file.seek(self.read)
            said = file.read()
        self.read += len(said)
        lines = said.decode("utf-8", "replace").replace(self.above, "").splitlines()
        return [line.partition(" INFO ")[2] or line for line in lines]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of the daemon's processes since they began; those that have ended are in their parent's figures."""

    cpu_seconds: float
    bytes_written: int
    wakes: int


def watch(workspace: Workspace, minutes: int) -> Iterator[dict[str, Any]]:
    assert workspace.daemon is not None
    pid, log = workspace.daemon.pid, Log(workspace)
    before, began = cost(pid), time.monotonic()
    for minute in range(minutes):
        memory, most = [], 0
        start = time.monotonic()
        while (left := began + (minute + 1) * SECONDS - time.monotonic()) > 0:
            memory.append(pss(pid))
            most = max(most, len(processes(pid)))
            time.sleep(min(1.0, left))
        after, seconds = cost(pid), time.monotonic() - start
        yield {
            "minute": minute,
            "cpu_percent": 100 * (after.cpu_seconds - before.cpu_seconds) / seconds,
            "pss_mb": statistics.median(memory),
            "pss_peak_mb": max(memory),
            "bytes_written": after.bytes_written - before.bytes_written,
            "wakes": after.wakes - before.wakes,
            "processes": most,
            "event": "; ".join(log.new()),
        }
        before = after


def processes(pid: int) -> list[int]:
    """The daemon's and those of all its children."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def pss(pid: int) -> float:
    """Proportional set size of all of them, in MB."""
    total = 0
    for one in processes(pid):
        try:
            total += psutil.Process(one).memory_full_info().pss
        except psutil.Error:  # it has ended meanwhile
            continue
    return total / 1e6


def cost(pid: int) -> Cost:
    found = [each for one in processes(pid) if (each := cost_of(Path(f"/proc/{one}")))]
    return Cost(sum(c.cpu_seconds for c in found), sum(c.bytes_written for c in found), sum(c.wakes for c in found))


def cost_of(process: Path) -> Cost | None:
    """None: it has ended."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        io = dict(line.split(": ") for line in (process / "io").read_text().splitlines())
        threads = [file.read_text() for file in process.glob("task/*/status")]
    except (FileNotFoundError, ProcessLookupError):
        return None
    wakes = (line.split()[1] for text in threads for line in text.splitlines() if line.startswith("voluntary"))
    # utime, stime, and those of children that were waited for; proc_pid_stat(5)
    return Cost(sum(map(int, fields[11:15])) / TICKS, int(io["write_bytes"]), sum(map(int, wakes)))


if __name__ == "__main__":
    main()
