"""What fifty thousand samples cost, and a million.

At 50,000 all is real: small images of digits, moved, scaled and noisy, dropped, trained on and judged by; the reactions
of `reaction` are measured on them. Then the daemon is stopped and its journal is given rows up to a million, with
descriptors, embeddings and answers, but without pixels: their files lie in a watched folder that is away. The next
drop makes what is made once (the audit of all labels by folds), and is told of apart; those after it are measured.

    start_seconds, decide_seconds, promote_seconds   as in `reaction`, at 50,000 (goals: 1, 4 and 2)
    status_ratio, drop_ratio    `relearn status`, and from the last file closed, beyond settling, to the decision on a
                                drop of 100: at a million by 50,000 (goal: at most 3)
    snapshot_seconds            of 50,000 samples (goal: below 1); snapshot_ratio: of a million by that, by 20 (about 1)
    snapshot_mb                 of 50,000 (goal: below 2)
    pss_mb                      of the daemon, its children apart, the most while it reacts at a million
    growth_mb                   that, less the same at 50,000 (flat)
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.grown import grow
from benchmarks.reaction import (
    TIMES,
    by_class,
    decided_since,
    last_decision,
    react_to_drops,
    react_to_edits,
    settled,
    until,
    warp,
)
from benchmarks.results import publish, spread
from daemon import snapshot
from daemon.children import CHECKOUT
from daemon.demo.processes import Workspace
from daemon.journal import open_journal

SMALL, LARGE = 50_000, 1_000_000
EPOCHS = 2
STATUS_TIMES = 11
SETTINGS = """
[policies.rule]   # the drops are to be decided on, not trained on
alone = ["new_class"]
together = []
"""


def main() -> None:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="relearn-scale-", dir=os.environ.get("TMPDIR")) as name:
        workspace = Workspace(Path(name) / "workspace", EPOCHS)
        configure(workspace)
        try:
            workspace.start_triton()
            fill(workspace.images, SMALL)
            workspace.start_daemon()
            until(lambda: workspace.version() == 1, "the first model is served", patience=1800)
            settled(workspace)
            rows += react(workspace, SMALL, edits=True)
            grow(workspace, LARGE)
            start_daemon(workspace)
            rows += react(workspace, LARGE, edits=False)
        finally:
            workspace.stop()
    publish("scale", rows, figures(rows))


def configure(workspace: Workspace) -> None:
    file = workspace.folder / "config.toml"
    text = file.read_text(encoding="utf-8")
    text = text.replace("[watch]\n", '[watch]\nfolders = ["images", "away"]\n')
    roles = {"train = 0.7": "train = 0.8", "judge = 0.2": "judge = 0.1"}
    for old, new in roles.items():
        text = text.replace(old, new)
    file.write_text(text + SETTINGS, encoding="utf-8")
    (workspace.folder / "away").mkdir()


def fill(images: Path, number: int) -> None:
    rng, digits = np.random.default_rng(0), [digit for of_class in by_class().values() for digit in of_class]
    for name in by_class():
        (images / name).mkdir(parents=True, exist_ok=True)
    for index in range(number):
        digit = digits[index % len(digits)]
        Image.fromarray(warp(digit.pixels, rng)).save(images / digit.name / f"{index}.png", compress_level=1)


def react(workspace: Workspace, samples: int, *, edits: bool) -> Iterator[dict[str, Any]]:
    if edits:
        yield from ({"samples": samples, **row} for row in react_to_edits(workspace))
    once = [row for row in react_to_drops(workspace, 1, mark=f"first{samples}") if row["what"] == "decide"]
    yield {"samples": samples, **once[0], "what": "first drop"}
    with watching(workspace) as peak:
        yield from ({"samples": samples, **row} for row in react_to_drops(workspace, TIMES, mark=str(samples)))
    yield {"samples": samples, "what": "pss", "mb": peak[0] / 1e6}
    for number in range(STATUS_TIMES):
        yield {"samples": samples, "what": "status", "number": number, "seconds": ask_status(workspace)}
    workspace.stop_daemon()
    for number in range(3):
        yield {"samples": samples, "what": "snapshot", "number": number, **take_snapshot(workspace)}


def start_daemon(workspace: Workspace) -> None:
    """And waits until it has looked through all that there is."""
    decided = last_decision(workspace)["id"]
    workspace.start_daemon()
    until(lambda: decided_since(workspace, decided), "it has started", patience=1800)
    settled(workspace)


def ask_status(workspace: Workspace) -> float:
    began = time.monotonic()
    command = [str(CHECKOUT / "relearn"), "status", "--workspace", str(workspace.folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def take_snapshot(workspace: Workspace) -> dict[str, Any]:
    """In a process of its own, as the daemon takes it; nothing of it is kept in the journal."""
    asked = [sys.executable, "-P", "-m", "benchmarks.scale", str(workspace.config.state)]
    told = subprocess.run(asked, check=True, capture_output=True, text=True, cwd=CHECKOUT)
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def _take_snapshot(state: Path) -> None:
    engine = open_journal(state)
    with tempfile.TemporaryDirectory(dir=state) as folder, engine.connect() as connection:
        began = time.monotonic()
        taken = snapshot.take(connection, Path(folder), known=(), at_least=1)
        seconds = time.monotonic() - began
        rows = sum(sum(counts.values()) for counts in taken.counts.values())
        print(json.dumps({"seconds": seconds, "mb": taken.file.stat().st_size / 1e6, "rows": rows}))
        connection.rollback()


@contextmanager
def watching(workspace: Workspace) -> Iterator[list[float]]:
    """The most that the daemon's own process holds meanwhile: bytes, proportional set size, each 50 ms."""
    assert workspace.daemon is not None
    peak, over, process = [0.0], threading.Event(), workspace.daemon.pid

    def look() -> None:
        while not over.wait(0.05):
            said = Path(f"/proc/{process}/smaps_rollup").read_text()
            line = next(line for line in said.splitlines() if line.startswith("Pss:"))
            peak[0] = max(peak[0], int(line.split()[1]) * 1024)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def of(samples: int, what: str, key: str = "seconds") -> list[float]:
        return [row[key] for row in rows if row["samples"] == samples and row["what"] == what]

    def ratio(what: str) -> float:
        return statistics.median(of(LARGE, what)) / statistics.median(of(SMALL, what))

    at_small = {f"{what}_seconds": spread(of(SMALL, what)) for what in ("start", "decide", "promote")}
    pss = {samples: of(samples, "pss", "mb")[0] for samples in (SMALL, LARGE)}
    per_row = [
        statistics.median(of(samples, "snapshot")) / of(samples, "snapshot", "rows")[0] for samples in (SMALL, LARGE)
    ]
    return {
        **{name: found["median"] for name, found in at_small.items()},
        "status_ratio": ratio("status"),
        "drop_ratio": ratio("decide"),
        "snapshot_seconds": statistics.median(of(SMALL, "snapshot")),
        "snapshot_ratio": per_row[1] / per_row[0],
        "snapshot_mb": of(SMALL, "snapshot", "mb")[0],
        "pss_mb": pss[LARGE],
        "growth_mb": pss[LARGE] - pss[SMALL],
        "spread": at_small | {"decide_seconds_large": spread(of(LARGE, "decide"))},
    }


if __name__ == "__main__":
    _take_snapshot(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
