"""How long a large drop takes to be taken in, beside a plain loop that does the least that must be done.

    cifar_ratio      the 50,000 training images of CIFAR-10 (JPEG, 32 x 32) as class folders, and
    photos_ratio     the clothing photos (3,409, short side 224): from the moment that the drop has settled until all
                     is in the journal and the store, durable, near-duplicates resolved and roles given; divided by
    floor            two processes that read, hash with SHA-256, decode and copy each file, with one sync at the end
    growth_mb        memory (proportional set size) of all the daemon's processes meanwhile, above that at rest
    rescan_seconds   from the start of a fresh daemon on the 50,000 known files to the end of its full scan

Goals: 1.5 (either), 250 and 2. Floor and daemon take turns, on the same disk; medians over the turns. Nothing is
removed before the end: ext4 looks for a free inode several times longer in the minutes after many were freed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Process
from pathlib import Path
from typing import Any

from PIL import Image
from sqlalchemy import Engine, func, select

from benchmarks.results import publish
from daemon import schema
from daemon.journal import open_journal

CHECKOUT = Path(__file__).resolve().parent.parent
DATA = CHECKOUT.parent / "shared" / "data"
SETTLE = 1.0
LOOK_SECONDS = 0.1  # between two looks at memory; looking more often takes from what is measured
ASK_SECONDS = 0.02  # between two questions to the journal
SETS = {"cifar": ("cifar10/images.tar.gz", "train"), "photos": ("clothing/images.tar", ".")}
CONFIG = """version = 1
[watch]
settle_seconds = {settle}
[triton]
url = "127.0.0.1:9"
"""


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--turns", type=int, default=3)
    turns = arguments.parse_args().turns
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="relearn-intake-", dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        sources = {kind: unpack(kind, folder / kind) for kind in SETS}
        for turn in range(turns):
            for kind, source in sources.items():
                rows.append({"set": kind, "turn": turn, **one_turn(source, folder / f"{kind}{turn}")})
    figures: dict[str, Any] = {
        f"{kind}_ratio": statistics.median(row["ratio"] for row in rows if row["set"] == kind) for kind in SETS
    }
    figures["growth_mb"] = max(row["growth_mb"] for row in rows)
    figures["rescan_seconds"] = statistics.median(row["rescan_seconds"] for row in rows if row["set"] == "cifar")
    publish("intake", rows, figures)


def unpack(kind: str, folder: Path) -> Path:
    archive, inner = SETS[kind]
    with tarfile.open(DATA / archive) as stream:
        stream.extractall(folder, filter="data")
    if inner != ".":
        return folder / inner
    flat = folder / "classes"  # of train and validation together
    for part in ("train", "validation"):
        for file in sorted((folder / part).rglob("*.jpg")):
            target = flat / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
    return flat


def one_turn(source: Path, folder: Path) -> dict[str, Any]:
    files = sorted(path for path in source.rglob("*") if path.is_file())
    floor = run_floor(files, folder / "floor")
    taken = take_in(source, len(files), folder / "workspace")
    os.sync()
    return {"files": len(files), "floor": floor, "ratio": taken["seconds"] / floor, **taken}


def run_floor(files: Sequence[Path], target: Path) -> float:
    """The plain loop: seconds."""
    target.mkdir(parents=True)
    started = time.monotonic()
    processes = [Process(target=_loop, args=(files[part::2], target)) for part in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    os.sync()
    return time.monotonic() - started


def _loop(files: Sequence[Path], target: Path) -> None:
    for file in files:
        content = file.read_bytes()
        name = hashlib.sha256(content).hexdigest()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
        (target / name).write_bytes(content)


def take_in(source: Path, number: int, workspace: Path) -> dict[str, Any]:
    (workspace / "images").mkdir(parents=True)
    (workspace / "constraints").mkdir()
    (workspace / "config.toml").write_text(CONFIG.format(settle=SETTLE))
    copied = workspace / "coming"
    shutil.copytree(source, copied)
    os.sync()
    with daemon(workspace) as process:
        wait((workspace / "state" / "journal.db").exists)
        time.sleep(2 * SETTLE)
        rest = memory(process)
        journal = open_journal(workspace / "state")
        with watching(process) as peak:
            for inner in copied.iterdir():
                inner.rename(workspace / "images" / inner.name)
            moved = time.monotonic()
            wait(lambda: known(journal) >= number)
            seconds = time.monotonic() - moved - SETTLE
        journal.dispose()
    started = time.monotonic()
    with daemon(workspace) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "looked through" in line:
                break
        rescan = time.monotonic() - started
    return {"seconds": seconds, "growth_mb": max(peak) - rest, "rest_mb": rest, "rescan_seconds": rescan}


@contextmanager
def daemon(workspace: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-P", "-m", "daemon", "run", "--workspace", str(workspace)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    log = subprocess.PIPE
    process = subprocess.Popen(command, env=environment, stderr=log, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


@contextmanager
def watching(process: subprocess.Popen[str]) -> Iterator[list[float]]:
    """The memory of a process and its children, again and again."""
    seen: list[float] = [0.0]
    done = threading.Event()

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            seen.append(memory(process))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def memory(process: subprocess.Popen[str]) -> float:
    """Proportional set size of a process and its children, in MB."""
    return sum(map(_pss, [process.pid, *_children_of(process.pid)])) / 1e6


def _children_of(process: int) -> list[int]:
    """As the kernel lists them: a look through all processes would take a good part of a core."""
    try:
        lists = [file.read_text() for file in Path(f"/proc/{process}/task").glob("*/children")]
    except OSError:
        return []
    return [int(word) for said in lists for word in said.split()]


def _pss(process: int) -> int:
    """Bytes; 0: it is gone."""
    try:
        said = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in said.splitlines() if line.startswith("Pss:")), 0)


def known(journal: Engine) -> int:
    """Samples with a role, in drops that are ready."""
    table = schema.drops
    with journal.connect() as connection:
        ready = select(func.coalesce(func.sum(table.c.added), 0)).where(table.c.state == "ready")
        return int(connection.execute(ready).scalar_one())


def wait(condition: Any, seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come to that in time")
        time.sleep(ASK_SECONDS)


if __name__ == "__main__":
    main()
