"""Promotions and rollbacks on the packaged Triton while eight clients ask all the time; every answer is looked at.

Each promotion is of another model (benchmarks/tiny_models.py), whose labels, number of classes and answers are its own,
and goes the daemon's way: a row in the journal, then daemon.serving with all steps of the switch. A rollback serves the
artifact before once more, under a new version. An answer must come from a version that could serve at that moment: from
when its load began to when the load of the next was over, by the journal's word, looked at every few milliseconds.

    requests, failed     of the clients, eight of a constant rate that leaves the server room on two cores
    wrong_version        answers of a version that did not serve then, or that are not those of its artifact
    wrong_label          answers whose labels are not those of the version that gave them
    longest_stall_ms     the longest that a client which asked had no answer, while versions were switched
    quiet_stall_ms       the same without a switch: after each one the clients ask on for as long as it took
    swap_seconds         from the request to the last step, the version before being gone; median
    full_speed           the same figures of a quarter of the switches, the clients asking as fast as they are answered

SWAPS=10 makes so many promotions in place of 100. Goal: nothing failed, nothing wrong.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.asking import Answer, Known, Stall, asking, find_stalls, longest_ms
from benchmarks.results import publish
from benchmarks.tiny_models import ask_artifact, draw_images, make_artifact, name_classes, require_different
from daemon import schema
from daemon.config import dump
from daemon.constraint_file import take_in
from daemon.demo.digits import SIZE
from daemon.demo.processes import TARGET, Workspace
from daemon.journal import add, now, open_journal
from daemon.serving import Serving
from deploy.switch import STEPS

SWAPS = int(os.environ.get("SWAPS", "100"))  # promotions
ROLLBACK_AFTER = 5  # promotions there is a rollback
CLIENTS = 8
PER_SECOND = 12.0  # requests of each
FULL_SPEED_SHARE = 0.25  # of the promotions, once more
IMAGES = 64
LOOK_SECONDS = 0.004  # between two looks into the journal
LEAST_QUIET_SECONDS = 0.5
SWITCH_SECONDS = 120.0  # in which a switch must be over


@dataclass
class Version:
    """One version, and when it could answer."""

    number: int
    artifact: str
    begins: float  # not before: its load had not begun
    ends: float = float("inf")  # not to a request sent later: the load of the next was over


@dataclass
class Swap:
    """One switch and the quiet time after it."""

    kind: str
    version: Version
    before: Version | None
    began: float
    ended: float = 0.0
    quiet_until: float = 0.0
    error: str | None = None
    steps: dict[str, float] = field(default_factory=dict)  # when each was first seen to be done


class Hall:
    """A workspace with a real Triton, a journal and the daemon's serving thread; models to switch between."""

    def __init__(self, workspace: Workspace, count: int) -> None:
        self.workspace = workspace
        state = workspace.config.state
        state.mkdir(exist_ok=True)
        self.journal = open_journal(state, migrate=True)
        self.serving = Serving(workspace.config, self.journal, SimpleQueue[Any]().put)
        self.images = draw_images(IMAGES, SIZE)
        self.known: dict[str, Known] = {}
        self.versions: list[Version] = []
        made = [make_artifact(state / "models", state / "artifacts", number, SIZE) for number in range(count)]
        for number, built in enumerate(made):
            self.known[built["artifact"]] = ask_artifact(Path(built["path"]), number, self.images)
        require_different(list(self.known.values()))
        self.artifacts = iter(list(self.known))
        self._write_down(made)

    def _write_down(self, made: Sequence[dict[str, Any]]) -> None:
        """Rows as a cycle would have left them."""
        with self.journal.begin() as connection:
            [required] = take_in(connection, self.workspace.config.constraints)
            said = {"at": now(), "event": "", "action": "train", "reason": "", "findings": [], "evidence": {}}
            decision = add(connection, schema.decisions, target=TARGET, settings={}, policy=1, **said)
            counted = {"created": now(), "classes": [], "counts": {}, "left_out": {}, "file": ""}
            add(connection, schema.snapshots, id="none", **counted)
            cycle = add(
                connection, schema.cycles, decision_id=decision, target=TARGET, trigger="data", state="done",
                snapshot_id="none", requirement=required.requirement, settings=dump(self.workspace.config),
                started=now(), ended=now(),
            )  # fmt: skip
            for number, built in enumerate(made):
                add(
                    connection, schema.models, id=f"{number:016x}", architecture="tiny", snapshot_id="none",
                    cycle_id=cycle, recipe=str(number), classes=name_classes(number), height=SIZE, width=SIZE,
                    train_seconds=0.0, created=now(),
                )  # fmt: skip
                add(
                    connection, schema.artifacts, id=built["artifact"], model_id=f"{number:016x}",
                    engine=built["engine"], precision=built["precision"], artifact_mb=built["artifact_mb"],
                    created=now(),
                )  # fmt: skip

    def promote(self) -> Swap:
        """The next model, that was never served."""
        return self._switch(next(self.artifacts), "promotion")

    def roll_back(self) -> Swap:
        """The artifact that was served before."""
        return self._switch(self.versions[-2].artifact, "rollback")

    def _switch(self, artifact: str, kind: str) -> Swap:
        began = time.time()
        with self.journal.begin() as connection:
            row = self.serving.request(connection, TARGET, artifact, kind=kind, by="benchmark", cycle=None)
        self.serving.tend()
        swap = Swap(kind, Version(row.version, artifact, began), self.versions[-1] if self.versions else None, began)
        self._watch(row.id, swap)
        if swap.error is None:
            self.versions.append(swap.version)
        return swap

    def _watch(self, promotion: int, swap: Swap) -> None:
        """Notes when each step of the switch is over. Raises TimeoutError."""
        looked = swap.began
        with closing(sqlite3.connect(self.workspace.config.state / "journal.db", timeout=30)) as journal:
            while swap.error is None and "retire" not in swap.steps:
                asked = "select state, step, error from promotions where id = ?"
                state, step, error = journal.execute(asked, (promotion,)).fetchone()
                for done in STEPS[: STEPS.index(step) + 1] if step else ():
                    swap.steps.setdefault(done, time.time())
                if "put" not in swap.steps:
                    swap.version.begins = looked  # it is loaded after this moment
                elif "load" in swap.steps and swap.before:
                    swap.before.ends = swap.steps["load"]
                if state in ("undoing", "failed"):
                    swap.error = error
                looked = time.time()
                if looked > swap.began + SWITCH_SECONDS:
                    raise TimeoutError(f"version {swap.version.number} is {state} after {step}: {error}")
                time.sleep(LOOK_SECONDS)
        swap.ended = time.time()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started ends too
    quick = max(2, round(SWAPS * FULL_SPEED_SHARE))
    with tempfile.TemporaryDirectory(prefix="relearn-swap-") as folder:
        workspace = Workspace(Path(folder) / "workspace", epochs=1)
        try:
            workspace.start_triton()
            hall = Hall(workspace, 1 + SWAPS + quick)
            with hall.serving.running():
                hall.promote()
                constant_rows, constant = measure(hall, "constant rate", SWAPS, PER_SECOND)
                quick_rows, full_speed = measure(hall, "full speed", quick, None)
        finally:
            workspace.stop()
    said = {"clients": CLIENTS, "per_second_each": PER_SECOND, "full_speed": full_speed}
    publish("swap", constant_rows + quick_rows, constant | said)


def measure(
    hall: Hall, load: str, promotions: int, per_second: float | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """So many promotions with their rollbacks under one load: a row for each switch, and the figures."""
    url = hall.workspace.url
    with asking(url, TARGET, hall.images, clients=CLIENTS, per_second=per_second) as answers:
        time.sleep(1.0)
        swaps = list(switch_to_and_fro(hall, promotions))
    stalls = find_stalls(answers)
    faults = [(answer, find_fault(answer, hall)) for answer in answers]
    rows = [{"load": load, **describe(swap, hall, faults, stalls)} for swap in swaps]
    for answer, fault in [(answer, fault) for answer, fault in faults if fault][:10]:
        print(f"{fault}: {answer}")
    counts = {name: sum(fault == name for _, fault in faults) for name in ("failed", "wrong_version", "wrong_label")}
    seconds = max(answer.ended for answer in answers) - min(answer.sent for answer in answers)
    return rows, {
        "requests": len(answers),
        **counts,
        "longest_stall_ms": max(row["stall_ms"] for row in rows),
        "quiet_stall_ms": max(row["quiet_stall_ms"] for row in rows),
        "swap_seconds": round(statistics.median(row["seconds"] for row in rows), 3),
        "promotions": sum(swap.kind == "promotion" and swap.error is None for swap in swaps),
        "rollbacks": sum(swap.kind == "rollback" and swap.error is None for swap in swaps),
        "requests_per_second": round(len(answers) / seconds, 1),
    }


def switch_to_and_fro(hall: Hall, promotions: int) -> Iterator[Swap]:
    for number in range(1, promotions + 1):
        yield in_quiet(hall.promote())
        if number % ROLLBACK_AFTER == 0:
            yield in_quiet(hall.roll_back())


def in_quiet(swap: Swap) -> Swap:
    """After a switch the clients ask on without one for as long as it took: what the machine itself makes them wait."""
    time.sleep(max(LEAST_QUIET_SECONDS, swap.ended - swap.began))
    swap.quiet_until = time.time()
    return swap


def find_fault(answer: Answer, hall: Hall) -> str | None:
    """What is wrong with an answer: "failed", "wrong_version", "wrong_label"; None: nothing."""
    if answer.error is not None:
        return "failed"
    version = next((version for version in hall.versions if version.number == answer.version), None)
    if version is None or answer.ended < version.begins or answer.sent > version.ends:
        return "wrong_version"
    known = hall.known[version.artifact]
    if not known.has_values(answer):
        return "wrong_version"
    return None if known.has_labels(answer) else "wrong_label"


def describe(
    swap: Swap, hall: Hall, faults: Sequence[tuple[Answer, str | None]], stalls: Sequence[Stall]
) -> dict[str, Any]:
    """The row of one switch."""
    until = swap.quiet_until
    mine = [(answer, fault) for answer, fault in faults if swap.began <= answer.sent < until]
    before = swap.before
    return {
        "kind": swap.kind,
        "version": swap.version.number,
        "artifact": swap.version.artifact[:8],
        "classes": len(hall.known[swap.version.artifact].classes),
        "seconds": swap.ended - swap.began,
        **{f"{step}_at": swap.steps[step] - swap.began for step in ("probe", "load", "retire") if step in swap.steps},
        "requests": len(mine),
        "wrong": sum(fault is not None for _, fault in mine),
        "by_old": sum(before is not None and answer.version == before.number for answer, _ in mine),
        "by_new": sum(answer.version == swap.version.number for answer, _ in mine),
        "stall_ms": round(longest_ms(stalls, swap.began, swap.ended), 1),
        "quiet_stall_ms": round(longest_ms(stalls, swap.ended, until), 1),
        "error": swap.error,
    }


if __name__ == "__main__":
    main()
