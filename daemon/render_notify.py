"""`relearn notify`, drawn for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from daemon.notices import KINDS

View = Mapping[str, Any]


def entries(view: Sequence[View]) -> RenderableType:
    numbers = [Column(name, justify="right") for name in ("sent", "waits", "given up")]
    table = Table("entry", "told of", "last", *numbers)
    for entry in view:
        kinds = "all" if set(entry["kinds"]) == set(KINDS) else ", ".join(entry["kinds"])
        of = f"{kinds}, of {', '.join(entry['targets'])}" if entry["targets"] else kinds
        counts = (str(entry[key]) for key in ("sent", "waiting", "given_up"))
        table.add_row(*map(Text, (entry["name"], of, _last(entry), *counts)))
    troubles = [Text(f"{entry['name']}: {_trouble(entry)}", "red") for entry in view if entry["error"]]
    return Group(table, *troubles)


def tried(view: Sequence[View]) -> RenderableType:
    said = [(f"{line['name']}: {line['error'] or 'sent'}", "green" if line["sent"] else "red") for line in view]
    return Group(*(Text(*line) for line in said))


def _last(entry: View) -> str:
    if last := entry["last"]:
        return f"{_time(last['at'])} {last['target'] or 'relearnd'}: {last['what']}"
    return "nothing yet" if entry["since"] else "not yet known to the daemon"


def _trouble(entry: View) -> str:
    again = f"; it is tried again at {_time(entry['next_try'])}" if entry["waiting"] else ""
    return f"{entry['error']}{again}"


def _time(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment).astimezone():%Y-%m-%d %H:%M:%S}"
