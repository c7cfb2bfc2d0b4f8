"""`relearn benchmark`: any of timm's architectures, exported and measured untrained, in processes of their own.

Each row is in the journal and in the CSV file as soon as it is known. What has a row is not measured again, so that a
benchmark that was stopped anywhere goes on where it was, and the CSV file is written anew from the journal. A network
that fails, takes too long or too much memory is a row with its reason.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import psutil
from sqlalchemy import Connection, Engine, select

from daemon import jobs, measurements, schema
from daemon.children import Child
from daemon.config import Config
from daemon.errors import DaemonRuns, UsageError, WorkspaceBusy
from daemon.events import ChildEnded, ChildSpoke, Event
from daemon.journal import add, now, open_journal
from daemon.lock import locked
from daemon.variants import split
from deploy import durable
from deploy.device import fingerprint
from policies.facts import METHOD, Job, Requirement, StageOrder, to_dict

FIGURES = (
    "latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "throughput", "memory_mb", "artifact_mb", "repetitions",
)  # fmt: skip
COLUMNS = (
    "architecture", "height", "width", "classes", "batch_size", "concurrency", "variant", "device", "parameters",
    *FIGURES, "slowdown", "steady", "seconds", "error",
)  # fmt: skip
TIMED = ("threads", "steady", "raw", "clear", "uncertainty", "reference", "reference_device")  # what a correction needs
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Order:
    """What each architecture is measured for, and what it may take."""

    height: int
    width: int
    classes: int
    batch_size: int
    concurrency: int
    variant: str  # engine and precision
    seconds: float  # of one architecture
    memory_mb: float  # of one of its processes


def order_for(requirement: Requirement, classes: int, variant: str, seconds: float, memory_mb: float) -> Order:
    """As a target asks for it."""
    size, load = (requirement.height, requirement.width), (requirement.batch_size, requirement.concurrency)
    return Order(*size, classes, *load, variant, seconds, memory_mb)


def benchmark(
    config: Config, names: Sequence[str], order: Order, table: Path | None, *, again: bool = False
) -> Iterator[Row]:
    """A row of each architecture, as it comes. Raises DaemonRuns: two that measure would be in each other's figures."""
    config.state.mkdir(parents=True, exist_ok=True)
    try:
        with locked(config.state):
            yield from _go_through(config, names, order, table, again=again)
    except WorkspaceBusy:
        raise DaemonRuns from None


def _go_through(
    config: Config, names: Sequence[str], order: Order, table: Path | None, *, again: bool
) -> Iterator[Row]:
    journal = open_journal(config.state, migrate=True)
    device = fingerprint(split(order.variant)[0], config.settings.compute.serve_threads)
    about = {**_about(order), "device": device}
    known: dict[str, Row] = {}
    if not again:
        with journal.connect() as connection:
            rows = {name: find(connection, {**about, "architecture": name}, order) for name in names}
            known = {name: _corrected(connection, row) for name, row in rows.items() if row is not None}
    if table is not None:
        try:
            _write(table, known.values())
        except OSError as error:
            raise UsageError(f"--csv {table}: {error.strerror}") from None
    for name in names:
        row = known.get(name)
        if row is None:
            row = {**about, "architecture": name, **_measure(config, name, order)}
            _keep(journal, row, order)
            with journal.connect() as connection:
                row = _corrected(connection, row)
            if table is not None:
                _append(table, row)
        yield row


def _about(order: Order) -> Row:
    return {
        "height": order.height,
        "width": order.width,
        "classes": order.classes,
        "batch_size": order.batch_size,
        "concurrency": order.concurrency,
        "variant": order.variant,
    }


def find(connection: Connection, about: Row, order: Order) -> Row | None:
    """The newest row of an architecture under the same load on the same device, by the method that counts now.

    One that failed is none where it may take more now than it might then.
    """
    rows = schema.benchmarks
    where = [rows.c[key] == value for key, value in about.items()]
    for found in connection.execute(select(rows).where(*where).order_by(rows.c.id.desc())):
        if found.figures.get("method") == METHOD and (found.error is None or not _is_more(order, found.figures)):
            return {**about, **found.figures, "error": found.error}
    return None


def _corrected(connection: Connection, row: Row) -> Row:
    """A row as on a quiet machine, as far as that is known by now."""
    if not row.get("reference"):
        return row
    found = measurements.read(connection, {**row, "method": METHOD})
    figures = {key: getattr(found, key) for key in (*FIGURES, "steady")}
    return {**row, **figures, "slowdown": round(found.slowdown("throughput"), 3)}


def _is_more(order: Order, figures: Row) -> bool:
    return order.seconds > float(figures["seconds_max"]) or order.memory_mb > float(figures["memory_mb_max"])


def _keep(journal: Engine, row: Row, order: Order) -> None:
    limits = {"seconds_max": order.seconds, "memory_mb_max": order.memory_mb, "method": METHOD}
    load = {"concurrency": row["concurrency"]}
    figures = {**load, **{key: row.get(key) for key in ("parameters", *FIGURES, *TIMED, "seconds")}, **limits}
    about = {key: row[key] for key in row if key in schema.benchmarks.c and key != "error"}
    with journal.begin() as connection:
        add(connection, schema.benchmarks, **about, figures=figures, error=row.get("error"), at=now())


def _write(table: Path, rows: Iterable[Row]) -> None:
    """The CSV file anew, with what is known: a line that an end cut off, or that stands there already, is gone."""
    aside = table.with_name(f".{table.name}.writing")
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    durable.move(aside, table)


def _append(table: Path, row: Row) -> None:
    """One more line of the CSV file, in the file before the next architecture begins."""
    with table.open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, COLUMNS, extrasaction="ignore").writerow(row)


def _measure(config: Config, name: str, order: Order) -> Row:
    """Exports, builds and measures one architecture; what goes wrong is its row."""
    began = time.monotonic()
    work = config.state / "benchmark"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    settings = config.settings
    threads = settings.compute.serve_threads
    sketch = {
        "architecture": name, "classes": order.classes, "height": order.height, "width": order.width,
        "model": str(work / "model"),
    }  # fmt: skip
    build = {
        "model": str(work / "model"), "artifacts": str(work / "artifacts"), "pixels": None,
        **jobs.engine_inputs(settings.model_dump(mode="json"), order.variant),
    }  # fmt: skip
    load = {
        "artifact": None, "batch_size": order.batch_size, "concurrency": order.concurrency, "threads": threads,
        "seconds_max": settings.measure.seconds_max,
    }  # fmt: skip
    try:
        all_threads = jobs.training_threads(settings.compute.threads)
        drawn = _run("pipeline", work, {"sketch": sketch}, order, began, all_threads)["sketch"]
        found = _run("deploy", work, {"build": build, "measure": load}, order, began, threads)["measure"]
        figures: Row = {key: found[key] for key in (*FIGURES, *TIMED)}
        return {**figures, "parameters": drawn["parameters"], "seconds": _since(began), "error": None}
    except _Failed as error:
        return {"seconds": _since(began), "error": str(error)}
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 2)


class _Failed(Exception):
    pass


def _run(
    package: Any, work: Path, stages: dict[str, Row], order: Order, began: float, threads: int
) -> dict[str, dict[str, Any]]:
    """Runs a child to its end; the outputs of its stages. Raises _Failed with the reason."""
    queue: SimpleQueue[Event] = SimpleQueue()
    job = Job(f"benchmark.{package}", package, tuple(StageOrder(*pair) for pair in stages.items()), threads=threads)
    file = work / f"{package}.json"
    file.write_text(json.dumps(to_dict(job)), encoding="utf-8")
    child = Child(job.token, package, [str(file)], queue.put, environment=jobs.environment(threads))
    outputs: dict[str, dict[str, Any]] = {}
    error = ""
    try:
        for event in _listen(queue, lambda: _check(child, order, began)):
            if isinstance(event, ChildEnded):
                if event.status != 0 or len(outputs) < len(stages):
                    last = next(reversed(event.last_words.strip().splitlines()), f"ended with status {event.status}")
                    raise _Failed(error or last)
                return outputs
            if isinstance(event, ChildSpoke) and event.line["event"] == "finished":
                outputs[event.line["stage"]] = event.line["outputs"]
            elif isinstance(event, ChildSpoke) and event.line["event"] == "failed":
                error = str(event.line["error"])
    finally:
        child.kill()
        child.wait(10)
    raise AssertionError("unreachable")


def _listen(queue: SimpleQueue[Event], check: Callable[[], None]) -> Iterator[Event]:
    while True:
        with suppress(Empty):
            yield queue.get(timeout=0.1)
        check()


def _check(child: Child, order: Order, began: float) -> None:
    """Raises _Failed where the child takes more than it may."""
    if time.monotonic() - began - child.waited > order.seconds:
        raise _Failed(f"took longer than {order.seconds:g} s")
    try:
        family = psutil.Process(child.pid)
        taken = sum(process.memory_info().rss for process in (family, *family.children(recursive=True))) / 1e6
    except psutil.NoSuchProcess:
        return
    if taken > order.memory_mb:
        raise _Failed(f"took {taken:,.0f} MB of memory, more than {order.memory_mb:,g}")
