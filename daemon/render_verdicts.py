"""Verdicts drawn for people: the table class by class, and what a person said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from daemon.dates import moment

View = Mapping[str, Any]
LONGEST = 28  # characters of a class's name on a line: the table fits 80 columns


def by_class(rows: Sequence[View]) -> RenderableType:
    """What a verdict's table says of each class: answers won and lost, and whether it fell.

    `before` and `now`: right answers of champion and challenger. `p`: the chance that an equal challenger loses so
    many, corrected over the classes. `shows from`: the fall that would have been found, in points. What was too small
    to be tested apart has both in its pool, the last line.
    """
    names = ("samples", "before", "now", "won", "lost", "p", "shows from")
    columns = [Column(name, justify="right") for name in names]
    table = Table(Column("class", overflow="fold", max_width=LONGEST), *columns, "", box=None, padding=(0, 1, 0, 0))
    for row in rows:
        samples = row.get("samples")
        table.add_row(
            Text(str(row.get("class"))),
            _plain(samples),
            _share(row.get("champion_correct"), samples),
            _share(row.get("challenger_correct"), samples),
            _plain(row.get("won")),
            _plain(row.get("lost")),
            "" if row.get("p_fall") is None else f"{row['p_fall']:.2g}",
            "" if row.get("smallest_fall") is None else f"{100 * row['smallest_fall']:.0f}",
            _remark(row),
        )
    return table


def _remark(row: View) -> Text:
    if row.get("fallen"):
        return Text("FALLEN", "red")
    return Text("new", "green") if row.get("new") else Text("")


def _plain(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _share(correct: int | None, samples: int | None) -> str:
    return "" if correct is None or not samples else f"{100 * correct / samples:.1f}%"


def said_by_people(view: View) -> list[Text]:
    """What became of a verdict: who approved or refused it, and under which versions it was promoted."""
    lines = []
    approval = view.get("approval")
    if approval == "waiting":
        target = view["target"]
        lines.append(Text(f"waits for a person: `relearn approve {target}` or `relearn refuse {target}`", "magenta"))
    elif approval:
        who = f" by {view['answered_by']} on {moment(view['answered'])}" if view["answered_by"] else ""
        why = f": {view['because']}" if view["because"] else ""
        lines.append(Text(f"{approval}{who}{why}", "magenta"))
    for row in view.get("promotions", ()):
        how = "by force" if row["kind"] == "forced" else row["kind"]
        lines.append(Text(f"version {row['version']}, {how}, by {row['by']}: {row['error'] or row['state']}", "cyan"))
    return lines
