"""A class folder that becomes a link out of the watched folder while it is read: nothing from outside comes in.

What was opened before the swap is read from inside, what is opened after it is refused, at whatever moment it comes.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from sqlalchemy import Table, select

from daemon import decode, scan, schema
from daemon import reader as module
from daemon.config import load
from daemon.journal import AnyRow, open_journal
from daemon.reader import Reader
from daemon.sources import Sources
from tests.driven import drive
from tests.hostile import image

FILES = 200
WHY = "is a link out of the watched folder, to "


class Swap:
    """A class folder, a link to another with files of the same names, and which of both has the class's name."""

    def __init__(self, images: Path, outside: Path) -> None:
        self.cat, self.aside, self.link = images / "cat", images / ".aside", images / ".link"
        self.inside: set[str] = set()
        outside.mkdir()
        self.cat.mkdir()
        for number in range(FILES):
            for folder, seed in ((self.cat, number), (outside, FILES + number)):
                (folder / f"{number}.png").write_bytes(image(size=(8, 8), seed=seed))
        self.inside = {hashlib.sha256(file.read_bytes()).hexdigest() for file in self.cat.iterdir()}
        self.link.symlink_to(outside)

    def out(self) -> None:
        self.cat.rename(self.aside)
        self.link.rename(self.cat)

    def back(self) -> None:
        self.cat.rename(self.link)
        self.aside.rename(self.cat)

    @contextmanager
    def all_the_time(self) -> Iterator[None]:
        stop = threading.Event()

        def swap() -> None:
            while not stop.is_set():
                self.out()
                self.back()

        swapping = threading.Thread(target=swap)
        swapping.start()
        try:
            yield
        finally:
            stop.set()
            swapping.join()


@pytest.fixture
def swap(workspace: Path) -> Swap:
    return Swap(workspace / "images", workspace / "outside")


@pytest.mark.parametrize(
    ("call", "before", "reason"),
    [("open", True, WHY), ("open", False, None), ("fstat", False, None), ("readlink", False, None)],
    ids=["before it is taken hold of", "after that", "after it was looked at", "after it was found to lie within"],
)
def test_whenever_it_comes_while_a_file_is_opened(
    workspace: Path, swap: Swap, monkeypatch: pytest.MonkeyPatch, call: str, before: bool, reason: str | None
) -> None:
    """At each moment between the system calls of the reading child, in this process."""
    real, calls = getattr(os, call), count()

    def and_swap(*arguments: Any, **named: Any) -> Any:
        first = next(calls) == 0
        if first and before:
            swap.out()
        answer = real(*arguments, **named)
        if first and not before:
            swap.out()
        return answer

    about = {"store": str(workspace / "store"), "keep": "copy", "part": 0, "pictures": str(workspace / "pictures")}
    reading = decode.Reading({**about, "folder": str(workspace / "images"), "max_pixels": 1e8})
    monkeypatch.setattr(os, call, and_swap)
    told = reading.read("cat/1.png")
    monkeypatch.undo()
    assert swap.cat.is_symlink()
    if reason is None:
        assert told["sha256"] in swap.inside
    else:
        assert told["reason"].startswith(reason)
    assert {file.name for file in (workspace / "store").rglob("*") if file.is_file()} <= swap.inside


class Lane:
    """A reader with its children."""

    def __init__(self, workspace: Path) -> None:
        config = load(workspace, ["triton.url=127.0.0.1:9"])
        self.store = config.state / "store"
        config.state.mkdir()
        self.journal = open_journal(config.state, migrate=True)
        self.queue: SimpleQueue[Any] = SimpleQueue()
        sources = Sources(config, self.queue)  # that hear of nothing: the test says when to look
        self.reader = Reader(config, self.journal, self.queue.put, sources, lambda _told: None)

    def work(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.reader.scan()
        self.reader.step()
        meanwhile()
        drive(self.reader, self.queue, patience=60)

    def rows(self, table: Table) -> list[AnyRow]:
        with self.journal.connect() as connection:
            return [row for row in connection.execute(select(table)) if row.gone is None]

    def taken_in(self) -> set[str]:
        """What is known and what is stored, by hash."""
        with self.journal.connect() as connection:
            known = {row.sha256.hex() for row in connection.execute(select(schema.samples))}
        return known | {file.name for file in self.store.rglob("*") if file.is_file()}


@pytest.fixture
def lane(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Lane:
    monkeypatch.setattr(
        module, "compare", lambda c, watched, paths, _seconds, writing: scan.compare(c, watched, paths, -60, writing)
    )
    return Lane(workspace)


def test_between_the_scan_and_the_reading(lane: Lane, swap: Swap) -> None:
    lane.work(meanwhile=swap.out)
    assert lane.taken_in() == set()
    assert len(lane.rows(schema.rejections)) == FILES
    assert all(row.reason.startswith(WHY) for row in lane.rows(schema.rejections))
    swap.back()
    lane.work()
    assert lane.taken_in() == swap.inside
    assert lane.rows(schema.rejections) == []


def test_all_the_time(lane: Lane, swap: Swap) -> None:
    """Again and again, until both have happened: files that were read, and files that were refused."""
    read = refused = False
    while not (read and refused):
        with swap.all_the_time():
            lane.work()
        read |= bool(lane.rows(schema.occurrences))
        refused |= bool(lane.rows(schema.rejections))
        assert lane.taken_in() <= swap.inside
    lane.work()
    assert lane.taken_in() == swap.inside
    assert len(lane.rows(schema.occurrences)) == FILES
