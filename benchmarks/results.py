"""How every benchmark ends: a table for people, the raw rows as CSV, the figures as JSON, the last line printed."""

from __future__ import annotations

import csv
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent / "results"


def publish(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Any],
    table: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Writes results/NAME.csv and results/NAME.json, prints a table and the figures as the last line.

    table: what is printed where the rows are too many to read.
    """
    FOLDER.mkdir(exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (FOLDER / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    console = Console(width=160)
    console.print(_draw(name, rows if table is None else table))
    said = {**figures, "machine": machine()}
    (FOLDER / f"{name}.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(said))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes of some seconds (or what they are)."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {
        "median": round(middle, 4),
        "quartile_low": round(low, 4),
        "quartile_high": round(high, 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "n": len(values),
    }


def machine() -> str:
    """The processor and the cores given, so that figures of two machines are not compared by mistake."""
    from deploy.device import processor

    return f"{processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def _draw(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    drawn = Table(*columns, title=name)
    for row in rows:
        drawn.add_row(*(_cell(row.get(column)) for column in columns))
    return drawn


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
