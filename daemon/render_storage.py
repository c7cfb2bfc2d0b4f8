"""What leaves the state folder, drawn for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from daemon import consequences
from daemon.gc import size

View = Mapping[str, Any]


def would_remove(view: View) -> RenderableType:
    table = Table("what", Column("where", overflow="fold"), Column("size", justify="right"), "why")
    for line in view["removed"]:
        what = line["kind"] if line["number"] == 1 else f"{line['number']:,} × {line['kind']}"
        table.add_row(*map(Text, (what, line["path"], size(line["bytes"]), line["reason"])))
    bound = f", the bound is {view['max_gb']:g} GB" if view["max_gb"] else ""
    last = Text(f"{size(view['freed'])} of {size(view['bytes'])} would be removed, {size(view['left'])} stay{bound}")
    over = [Text(view["over"], "red")] if view["over"] else []
    return Group(*([table] if view["removed"] else []), last, *over)


def answer(view: View) -> RenderableType:
    return Text(view["answer"] or view["state"], "red" if view.get("state") == "refused" else "green")


def foreseen(view: View) -> RenderableType:
    return Group(*(Text(line) for line in consequences.tell(dict(view))))
