"""The child that reads a manifest: the file in a watched folder that says which image is of which class.

    python -m daemon.manifest, told a JOB.json

CSV with a header (path,label or path,label,group, in any order, other columns are passed over; "," ";" or a tab), or
JSON Lines ({"path": …, "label": …, "group": …}). It is streamed: rows whose image is not there are counted, not kept,
and what is kept lies in a file, so that ten million rows take no more memory than ten.
JOB.json: {"token", "folder", "manifest", "paths": [path, …] | null, "kept", "journal"}; null: all that are there, and
images of the journal that it does not mention any more are told to have no class; "kept": where that file is made. It
prints {"token", "stage": "manifest", "event": "rows", "rows": [[path, label | null, group | null], …]}, at the end one
of event "read" with {"size", "mtime_ns", "rows", "waiting", "refused", "problems": [sentence, …]}.
"""

from __future__ import annotations

import csv
import json
import os
import posixpath
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from daemon.children import die_with_parent, wait_for_job
from daemon.originals import Unusable, stream_within
from daemon.said import Row, Said
from daemon.walk import UNREADABLE, stat_of, text

LONGEST_LINE = 65_536  # bytes
SAID = 200  # problems that are told one by one
CHUNK = 2_000  # rows in one line of output


class Refused(ValueError):
    """A row that says nothing that can be used."""


class ManifestError(Exception):
    """The file as a whole cannot be read as a manifest."""


@dataclass(slots=True)
class Reading:
    """What a manifest says of the images that are wanted and there."""

    said: Said
    rows: int = 0
    waiting: int = 0  # rows whose image is not there
    refused: int = 0
    problems: list[str] = field(default_factory=list)

    def refuse(self, line: int, why: str) -> None:
        self.refused += 1
        if self.refused <= SAID:
            self.problems.append(f"line {line}: {why}")

    def take(self, line: int, row: Row) -> None:
        path, label, group = row
        before = self.said.add(line, row)
        if before and before[1:] != (label, group):
            was = _phrase(*before[1:])
            self.refuse(line, f"says of {path} {_phrase(label, group)}, line {before[0]} says {was}: it has no class")
            self.said.clear(path)


def read(
    stream: BinaryIO,
    said: Said,
    *,
    lines: bool,
    is_there: Callable[[str], bool],
    wanted: Collection[str] | None = None,
) -> Reading:
    """What a manifest says of the wanted paths (None: of all that are there), which is kept in `said`.

    lines: it is JSON Lines, not CSV. Raises ManifestError.
    """
    reading = Reading(said)
    parse = _json if lines else _read_header(stream)
    for line, raw in _lines(stream, start=1 if lines else 2):
        if raw is not None and not raw.strip():
            continue
        reading.rows += 1
        try:
            row = _check(*parse(_decode(raw)))
        except Refused as error:
            reading.refuse(line, str(error))
            continue
        if not is_there(row[0]):
            reading.waiting += 1
        elif wanted is None or row[0] in wanted:
            reading.take(line, row)
    if reading.refused > SAID:
        reading.problems.append(f"and {reading.refused - SAID:,} lines more that say nothing of use")
    return reading


def _phrase(label: str | None, group: str | None) -> str:
    return f"{label or 'no class'}{f', group {group}' if group else ''}"


def _lines(stream: BinaryIO, start: int) -> Iterator[tuple[int, bytes | None]]:
    """Number and bytes of each line; None in place of one that is longer than any row can be."""
    number = start
    while raw := stream.readline(LONGEST_LINE):
        if len(raw) == LONGEST_LINE and not raw.endswith(b"\n"):
            while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        else:
            yield number, raw
        number += 1


def _decode(raw: bytes | None) -> str:
    if raw is None:
        raise Refused(f"is longer than {LONGEST_LINE:,} bytes")
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise Refused("is not UTF-8 text") from None


def _read_header(stream: BinaryIO) -> Callable[[str], Row]:
    try:
        header = stream.readline(LONGEST_LINE).decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ManifestError("line 1: is not UTF-8 text") from None
    separator = max(",;\t", key=header.count)
    names = [name.strip().lower() for name in next(csv.reader([header], delimiter=separator), [])]
    if "path" not in names or "label" not in names:
        raise ManifestError(f"line 1: must name the columns path and label (and group, if any), not {header[:80]!r}")
    places = [names.index(name) if name in names else None for name in ("path", "label", "group")]

    def parse(line: str) -> Row:
        try:
            fields = next(csv.reader([line], delimiter=separator, strict=True))
        except (csv.Error, StopIteration) as error:
            raise Refused(f"is no row of CSV: {error}") from None
        if len(fields) != len(names):
            raise Refused(f"has {len(fields)} columns, not {len(names)}")
        path, label, group = (None if place is None else fields[place].strip() or None for place in places)
        return path or "", label, group

    return parse


def _json(line: str) -> Row:
    try:
        said = json.loads(line.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise Refused(f"is no JSON: {error}") from None
    if not isinstance(said, dict) or "path" not in said or "label" not in said:
        raise Refused('must be an object with "path" and "label"')
    row = said["path"], said["label"], said.get("group")
    if not isinstance(row[0], str) or not all(value is None or isinstance(value, str) for value in row[1:]):
        raise Refused('"path", "label" and "group" must be text')
    return row[0], row[1] or None, row[2] or None


def _check(path: str, label: str | None, group: str | None) -> Row:
    if not path:
        raise Refused("names no path")
    if path.startswith("/"):
        raise Refused(f"names an absolute path, {path[:200]}: write it below the watched folder")
    if ".." in path.split("/"):
        raise Refused(f"leads out of the watched folder, by {path[:200]}")
    if not all(_is_text(value) for value in (path, label or "", group or "")):
        raise Refused("holds control characters")
    if label and (len(label) > 255 or "/" in label or label[0] == "."):
        raise Refused("has a label that is no name of a class: at most 255 signs, no / in it, no dot before it")
    return posixpath.normpath(path), label, group


def _is_text(value: str) -> bool:
    if value.isascii() and value.isprintable():  # as almost all are
        return True
    try:
        return text(value) == value
    except UnicodeEncodeError:  # JSON can write half of a character
        return False


def main() -> int:
    die_with_parent()
    if (job := wait_for_job()) is None:
        return 0
    folder, name = job["folder"], job["manifest"]
    wanted = None if job["paths"] is None else set(job["paths"])

    def say(event: str, **what: Any) -> None:
        print(json.dumps({"token": job["token"], "stage": "manifest", "event": event, **what}), flush=True)

    found = (Path(folder) / name).stat()
    size, mtime_ns = stat_of(found)
    with closing(Said(Path(job["kept"]))) as said:
        try:
            if stat.S_ISDIR(found.st_mode):
                raise ManifestError("is a folder, and no manifest")
            with stream_within(f"{folder}/{name}", os.path.realpath(folder)) as stream:
                there: Callable[[str], bool] = lambda path: os.path.lexists(f"{folder}/{path}")  # noqa: E731
                reading = read(stream, said, lines=name.endswith(".jsonl"), is_there=there, wanted=wanted)
        except (ManifestError, Unusable) as error:
            reading = Reading(said, refused=1, problems=[str(error)])
        except PermissionError as error:
            reading = Reading(said, refused=1, problems=[f"may not be read: {error.strerror}"])
            size, mtime_ns = UNREADABLE
        whole = wanted is None and reading.rows > reading.refused
        unmentioned = said.unmentioned(Path(job["journal"]), folder) if whole else ()
        rows = chain(said.rows(), unmentioned)
        while chunk := list(islice(rows, CHUNK)):
            say("rows", rows=chunk)
    counts = {"rows": reading.rows, "waiting": reading.waiting, "refused": reading.refused}
    say("read", size=size, mtime_ns=mtime_ns, **counts, problems=reading.problems)
    return 0


if __name__ == "__main__":
    sys.exit(main())
