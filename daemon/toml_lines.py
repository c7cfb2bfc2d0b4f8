"""Where a key stands in a TOML text: tomllib tells no line numbers for what it has parsed."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

_HEADER = re.compile(r"^\s*\[\[?\s*([^\]]+?)\s*\]\]?")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")


def line_of(text: str, key: str, entry: int = 0) -> int | None:
    """The line (from 1) at which a dotted key, or the table of that name, is written; None: it is not.

    entry: which of several tables [[of.one.name]] is meant, from 0.
    """
    table, tables = "", Counter[str]()
    for number, kind, name in _written(text):
        if kind != "key":
            table = name
            if kind == "entry":
                tables[table] += 1
            passed = table in tables and tables[table] <= entry
            if table == key and not passed:
                return number
            table = "" if passed else table
        elif (f"{table}.{name}" if table else name) == key:
            return number
    return None


@lru_cache(maxsize=4)  # a file is asked about each of its keys in turn
def _written(text: str) -> tuple[tuple[int, str, str], ...]:
    """The lines that say something: number, "table", "entry" (of an array of tables) or "key", and its name."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            found.append((number, "entry" if line.lstrip().startswith("[[") else "table", _plain(header[1])))
        elif assignment := _KEY.match(line):
            found.append((number, "key", _plain(assignment[1])))
    return tuple(found)


def nearest_line(text: str, key: str, entry: int = 0) -> int:
    """As `line_of`; where the key is not written (a missing one, an inline table) the line of what would hold it."""
    while key:
        if line := line_of(text, key, entry):
            return line
        key = key.rpartition(".")[0]
    return 1


def _plain(name: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in name.split("."))
