"""What a benchmark remembers and writes down. That a network is measured is tests/integration/test_benchmark.py's part.

What is measured stands in here for minutes of real measuring; journal and CSV file are real.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from daemon import benchmark as benchmarks
from daemon.benchmark import Order, benchmark
from daemon.config import Config
from daemon.events import ChildSpoke

ORDER = Order(64, 64, 10, 1, 1, "onnxruntime:fp32", seconds=60.0, memory_mb=2_000.0)
NAMES = ("one", "two", "three")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured, in this order; `bad` fails."""
    done: list[str] = []

    def measure(_config: Config, name: str, _order: Order) -> dict[str, Any]:
        done.append(name)
        if name == "bad":
            return {"seconds": 1.0, "error": "took too much"}
        figures = dict.fromkeys(benchmarks.FIGURES, float(len(done)))
        return {**figures, "parameters": 7, "seconds": 1.0, "error": None}

    monkeypatch.setattr(benchmarks, "_measure", measure)
    return done


def run(config: Config, *names: str, table: Path | None = None, again: bool = False, **limits: Any) -> list[Any]:
    return list(benchmark(config, names, dataclasses.replace(ORDER, **limits), table, again=again))


def lines(table: Path) -> list[str]:
    with table.open(newline="") as file:
        return [row["architecture"] for row in csv.DictReader(file)]


@pytest.mark.usefixtures("journal")
def test_it_goes_on_where_it_was_ended_with_each_row_once(config: Config, measured: list[str], tmp_path: Path) -> None:
    """Ended when the second row was in the journal and half in the file."""
    table = tmp_path / "rows.csv"
    rows: Iterator[Any] = benchmark(config, NAMES, ORDER, table)
    next(rows)
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert lines(table) == ["one", "two"]
    content = table.read_bytes()
    table.write_bytes(content[:-20])
    assert [row["architecture"] for row in run(config, *NAMES, table=table)] == list(NAMES)
    assert (measured, lines(table)) == (list(NAMES), list(NAMES))
    assert table.read_bytes().startswith(content)
    assert [file.name for file in tmp_path.iterdir() if "rows" in file.name] == ["rows.csv"]
    run(config, "three", table=table)
    assert lines(table) == ["three"]  # what is asked for now
    run(config, "one", table=table, batch_size=8)
    assert (measured[3:], lines(table)) == (["one"], ["one"])
    with table.open(newline="") as file:
        assert [row["batch_size"] for row in csv.DictReader(file)] == ["8"]


@pytest.mark.usefixtures("journal")
def test_again_measures_what_has_a_row(config: Config, measured: list[str], tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    (first,) = run(config, "one", table=table)
    (second,) = run(config, "one", table=table, again=True)
    assert (measured, lines(table)) == (["one", "one"], ["one"])
    assert first["latency_p50_ms"] < second["latency_p50_ms"]
    assert run(config, "one")[0]["latency_p50_ms"] == second["latency_p50_ms"]  # the newest counts


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        ({}, False),
        ({"seconds": 30.0}, False),
        ({"seconds": 61.0}, True),
        ({"memory_mb": 2_001.0}, True),
        ({"seconds": 30.0, "memory_mb": 4_000.0}, True),
    ],
)
@pytest.mark.usefixtures("journal")
def test_what_failed_is_tried_again_where_it_may_take_more(
    config: Config, measured: list[str], limits: dict[str, float], asked: bool
) -> None:
    run(config, "bad", "one")
    run(config, "bad", "one", **limits)
    assert measured[2:] == ["bad"] * asked


@pytest.mark.usefixtures("journal")
def test_figures_of_another_method_are_not_taken(
    config: Config, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, "one", "bad")
    monkeypatch.setattr(benchmarks, "METHOD", benchmarks.METHOD + 1)
    run(config, "one", "bad")
    assert measured == ["one", "bad"] * 2


def test_a_child_that_talks_without_end_is_checked_too() -> None:
    queue: SimpleQueue[Any] = SimpleQueue()
    for number in range(10):
        queue.put(ChildSpoke("token", {"event": "progress", "done": number}))

    def check() -> None:
        raise TimeoutError

    heard = benchmarks._listen(queue, check)
    next(heard)
    with pytest.raises(TimeoutError):
        next(heard)
