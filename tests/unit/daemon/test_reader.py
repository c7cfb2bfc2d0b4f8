"""The lane that reads drops, with real children: what a bad file costs, and what a full disk does."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import Engine, select, update

from daemon import schema
from daemon.config import Config, load
from daemon.duplicates import Index
from daemon.events import ChildEnded, ChildSpoke, DropSettled, Event
from daemon.journal import AnyRow
from daemon.lost_copies import holds_links, read_again
from daemon.reader import FEW, Reader
from daemon.sources import Sources, running
from tests.hostile import bomb

Png = Callable[..., Path]


class Lane:
    """A reader with its queue, worked until it has nothing left to do."""

    def __init__(self, config: Config, journal: Engine, sources: Sources, queue: SimpleQueue[Event]) -> None:
        self.config = config
        self.journal = journal
        self.queue = queue
        self.told: list[str] = []
        self.reader = Reader(config, journal, queue.put, sources, self.told.append)
        self.limits: dict[int, tuple[int, int]] = {}  # resource -> limit of each child
        self.children: list[int] = []

    def work(self, *paths: Path) -> None:
        self.let_settle()
        if paths:
            self.reader.waiting.append(DropSettled(self.config.folders[0], frozenset(paths)))
        else:
            self.reader.scan()
        while self.reader.step() or self.reader.busy:
            self.limit()
            if self.reader.children:
                self.handle(self.queue.get(timeout=30))

    def let_settle(self) -> None:
        """Until no file is so fresh that a scan leaves it for later, nor taken to be written still."""
        files = [path for path in self.config.folders[0].rglob("*") if path.is_file()]
        newest = max((path.stat().st_ctime for path in files), default=0.0)
        sources, folder = self.reader.sources, self.config.folders[0]
        while time.time() <= newest + 2 * self.config.settings.watch.settle_seconds or sources.writing(folder):
            threading.Event().wait(0.01)

    def handle(self, event: Event) -> None:
        tokens = {child.token for child in self.reader.children}
        if isinstance(event, DropSettled):
            self.reader.waiting.append(event)
        elif isinstance(event, ChildSpoke | ChildEnded) and event.token in tokens:
            if isinstance(event, ChildSpoke):
                self.reader.hear(event.line)
            else:
                self.reader.bury(event.token, event.status, event.last_words)

    def limit(self) -> None:
        """The children that read files get the limits."""
        for child in (part.child for part in self.reader.parts if part.child):
            if child.pid not in self.children:
                self.children.append(child.pid)
                with contextlib.suppress(ProcessLookupError):
                    for what, limit in self.limits.items():
                        resource.prlimit(child.pid, what, limit)

    def rows(self, table: Any) -> list[AnyRow]:
        with self.journal.connect() as connection:
            return list(connection.execute(select(table).where(table.c.gone.is_(None)).order_by(table.c.path)))


@pytest.fixture
def lane(config: Config, journal: Engine) -> Iterator[Lane]:
    queue: SimpleQueue[Event] = SimpleQueue()
    with running(Sources(config, queue)) as sources:
        lane = Lane(config, journal, sources, queue)
        yield lane
        for child in (*lane.reader.children, *lane.reader.crew.ready):
            child.kill()


@pytest.fixture
def images(config: Config) -> Path:
    return config.folders[0]


def slow_bitmap(side: int) -> bytes:
    """A bitmap of run-length codes of one pixel each, which Pillow decodes in Python: seconds for a small file."""
    pixels = (b"\x01\x07" * side + b"\0\0") * side + b"\0\1"
    palette = bytes(4 * 256)
    start = 14 + 40 + len(palette)
    header = struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return header + info + palette + pixels


def test_a_scan_reads_what_is_there(lane: Lane, images: Path, png: Png) -> None:
    for index in range(5):
        png(images / "cat" / f"{index}.png", index)
    lane.work()
    assert len(lane.rows(schema.occurrences)) == 5
    assert lane.told == ["drop 1: 5 images, 0 gone, 0 rejected"]
    assert not lane.reader.busy
    assert list((lane.config.state / "drops").iterdir()) == []
    lane.work()
    assert len(lane.told) == 1  # nothing changed: nothing is to be decided


def test_rejected_files_alone_call_for_no_decision(lane: Lane, images: Path) -> None:
    (images / "cat").mkdir()
    (images / "cat" / "text.png").write_text("text")
    lane.work()
    assert [row.path for row in lane.rows(schema.rejections)] == ["cat/text.png"]
    assert lane.told == []


def test_a_file_that_kills_its_reader_costs_itself_alone(lane: Lane, images: Path, png: Png) -> None:
    """The kernel ends a child that decodes for longer than a second of processor time (RLIMIT_CPU)."""
    lane.limits = {resource.RLIMIT_CPU: (1, 2), resource.RLIMIT_CORE: (0, 0)}
    for index in range(3):
        png(images / "cat" / f"{index}.png", index)
        png(images / "zebra" / f"{index}.png", 10 + index)
    (images / "dog").mkdir()
    (images / "dog" / "killer.bmp").write_bytes(slow_bitmap(4000))
    lane.work()
    assert len(lane.rows(schema.occurrences)) == 6
    (bad,) = lane.rows(schema.rejections)
    assert bad.path == "dog/killer.bmp"
    assert bad.reason.startswith("crashed the process that read it: ")
    assert len(lane.children) == 3  # the batch, the killer found, the rest
    assert lane.told == ["drop 1: 6 images, 0 gone, 1 rejected"]
    lane.work()
    assert len(lane.children) == 3  # it is not tried again until it changes


def test_a_store_that_cannot_be_written_is_no_files_fault(lane: Lane, images: Path, png: Png) -> None:
    """As with a full disk: writing fails (RLIMIT_FSIZE). The drop is given up, and read when there is room again."""
    lane.limits = {resource.RLIMIT_FSIZE: (10, 10)}
    for index in range(3):
        png(images / "cat" / f"{index}.png", index)
    lane.work()
    assert lane.rows(schema.rejections) == lane.rows(schema.occurrences) == []
    assert lane.told == []
    lane.limits = {}
    lane.work()
    assert len(lane.rows(schema.occurrences)) == 3


def test_of_a_drop_that_is_given_up_what_came_in_is_told(lane: Lane, images: Path, png: Png) -> None:
    """Room for small files and not for a large one, which is no fault of its own."""
    for index in range(2 * FEW):
        png(images / "cat" / f"{index:03}.png", index)
    png(images / "dog" / "large.png", 1000, (64, 64))
    lane.limits = {resource.RLIMIT_FSIZE: (5000, 5000)}
    lane.work()
    told = lane.told[0]  # what is left may be tried again at once, since the files have just come
    assert told == f"drop 1: {2 * FEW} images, 0 gone, 0 rejected"  # those of the batches before the large one
    assert lane.rows(schema.rejections) == []
    assert lane.reader.sources.scheduler.get_job("after trouble") is not None
    lane.limits = {}
    lane.work()
    assert len(lane.rows(schema.occurrences)) == 2 * FEW + 1


def test_a_child_that_could_not_be_started_is_started_later(
    lane: Lane, images: Path, png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk takes no job file: the loop bears it, and the drop goes on when there is room."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    png(images / "cat" / "1.png", 1)
    lane.let_settle()
    lane.reader.scan()
    assert lane.reader.step()
    with monkeypatch.context() as broken:
        broken.setattr("pathlib.Path.write_text", full)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                lane.reader.step()
    assert lane.reader.busy
    lane.work()
    assert len(lane.rows(schema.occurrences)) == 1
    assert not lane.reader.busy


def test_a_folder_that_cannot_be_looked_into_is_rejected_once_until_it_can(
    lane: Lane, images: Path, png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may look anywhere: the refusal is played."""
    png(images / "cat" / "1.png", 1)
    png(images / "dog" / "1.png", 2)
    scandir = os.scandir

    def refuse(at: str) -> Any:
        if at == str(images / "cat"):
            raise PermissionError(13, "Permission denied", at)
        return scandir(at)

    watched: list[Path] = []
    monkeypatch.setattr(lane.reader.sources, "watch_again", watched.append)
    with monkeypatch.context() as refused:
        refused.setattr(os, "scandir", refuse)
        for _ in range(2):
            lane.work()
            (row,) = lane.rows(schema.rejections)
            assert (row.path, row.reason) == ("cat", "a folder that cannot be looked into: Permission denied")
    assert [row.path for row in lane.rows(schema.occurrences)] == ["dog/1.png"]
    lane.work()
    assert lane.rows(schema.rejections) == []
    assert [row.path for row in lane.rows(schema.occurrences)] == ["cat/1.png", "dog/1.png"]
    assert watched == [images]


def test_what_is_back_after_all_was_away_is_looked_through(lane: Lane, images: Path, png: Png, tmp_path: Path) -> None:
    """Also where another has come in its place: what is not back has gone."""
    png(images / "cat" / "1.png", 1)
    png(images / "dog" / "1.png", 2)
    lane.work()
    for name in ("cat", "dog"):
        (images / name).rename(tmp_path / name)
    lane.work(images / "cat", images / "dog")
    assert len(lane.rows(schema.occurrences)) == 2
    (tmp_path / "cat").rename(images / "lion")
    lane.work(images / "lion")
    assert [(row.path, row.class_name) for row in lane.rows(schema.occurrences)] == [("lion/1.png", "lion")]


@pytest.mark.parametrize("how", ["its file was deleted", "its file has other bytes"])
def test_a_reference_that_leads_nowhere_is_made_again_from_another_file(
    config: Config, journal: Engine, images: Path, png: Png, how: str
) -> None:
    referring = load(config.workspace, ['store.keep="reference"', "watch.settle_seconds=0.05"])
    queue: SimpleQueue[Event] = SimpleQueue()
    with running(Sources(referring, queue)) as sources:
        lane = Lane(referring, journal, sources, queue)
        first = png(images / "cat" / "1.png", 1)
        lane.work()
        shutil.copy(first, images / "cat" / "2.png")
        lane.work()
        sha = hashlib.sha256(first.read_bytes()).hexdigest()
        if how == "its file was deleted":
            first.unlink()
        else:
            png(first, 3)
        lane.work()
        store, suspects = referring.state / "store", {bytes.fromhex(sha)} if first.exists() else set()
        with journal.begin() as connection:
            assert read_again(connection, store, copies=False, suspects=suspects) == [images / "cat" / "2.png"]
        lane.work()
        assert (store / sha[:2] / sha).readlink() == images / "cat" / "2.png"


def test_where_copies_are_to_be_kept_again_references_become_copies(
    lane: Lane, config: Config, journal: Engine, images: Path, png: Png
) -> None:
    file = png(images / "cat" / "1.png", 1)
    lane.work()
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    copy = config.state / "store" / sha[:2] / sha
    copy.unlink()
    assert not holds_links(config.state / "store")
    copy.symlink_to(file)
    assert holds_links(config.state / "store")
    with journal.begin() as connection:
        assert read_again(connection, config.state / "store", copies=True) == [file]
    lane.work()
    assert not copy.is_symlink()
    assert copy.read_bytes() == file.read_bytes()


def test_a_folder_that_is_away_stops_nothing(lane: Lane, images: Path, png: Png) -> None:
    png(images / "cat" / "1.png", 1)
    lane.work()
    images.rename(images.with_name("away"))
    lane.work()
    images.with_name("away").rename(images)
    lane.work()
    assert len(lane.rows(schema.occurrences)) == 1


def test_a_name_that_is_not_utf8_is_rejected_once(lane: Lane, images: Path, png: Png) -> None:
    png(images / "cat" / os.fsdecode(b"caf\xe9.png"), 1)
    png(images / "cat" / "2.png", 2)
    lane.work()
    lane.work()
    assert [(row.path, row.reason) for row in lane.rows(schema.rejections)] == [
        ("cat/caf\\xe9.png", "its name is not UTF-8 text on one line: rename it")
    ]
    assert [row.path for row in lane.rows(schema.occurrences)] == ["cat/2.png"]


def test_fresh_files_are_read_once_they_have_settled(lane: Lane, images: Path, png: Png) -> None:
    png(images / "cat" / "1.png", 1)
    lane.reader.scan()
    while not lane.rows(schema.occurrences):
        if not lane.reader.step():
            lane.handle(lane.queue.get(timeout=30))
    assert [row.path for row in lane.rows(schema.occurrences)] == ["cat/1.png"]


def test_a_reader_that_hangs_is_stopped(lane: Lane, images: Path, png: Png, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a network file system that no longer answers: here a decoder that is busy for seconds."""
    (images / "dog").mkdir()
    (images / "dog" / "slow.bmp").write_bytes(slow_bitmap(6000))
    lane.let_settle()
    lane.reader.scan()
    while not lane.reader.children:
        if not lane.reader.step():
            lane.handle(lane.queue.get(timeout=30))
    (hanging,) = lane.reader.children
    lane.reader.stop_overdue()
    assert hanging is not None and not hanging.wait(0.05)  # within its time it is left alone
    monkeypatch.setattr("daemon.reader.PATIENCE_SECONDS", 0.0)
    lane.reader.stop_overdue()
    while not lane.reader.parts[0].alone:
        lane.handle(lane.queue.get(timeout=30))
    assert hanging.wait(0)
    for child in lane.reader.children:
        child.kill()


def test_near_duplicates_are_looked_for_again_where_that_was_cut_off(lane: Lane, images: Path, png: Png) -> None:
    """Until then the drop is in no snapshot, and nothing is decided on it; what is found again is found whole."""
    for index in range(3):
        png(images / "cat" / f"{index}.png", index, (64, 64))
    with Image.open(images / "cat" / "0.png") as image:
        image.resize((48, 48)).save(images / "cat" / "copy.png")
    lane.let_settle()
    lane.reader.scan()
    while lane.reader.child is None:  # that looks for near-duplicates
        if not lane.reader.step():
            lane.handle(lane.queue.get(timeout=30))
    lane.reader.child.kill()
    while lane.reader.child is not None:
        lane.handle(lane.queue.get(timeout=30))
    assert lane.told == []
    lane.reader.waiting.clear()  # what notification said of these files meanwhile
    assert not lane.reader.step()  # it rests
    later = Lane(lane.config, lane.journal, lane.reader.sources, lane.queue)
    later.reader.recover()
    later.work()
    assert later.told == ["drop 1: 4 images, 0 gone, 0 rejected"]
    with lane.journal.connect() as connection:
        assert len(connection.execute(select(schema.near_duplicates)).all()) == 1
        assert len(connection.execute(select(schema.groups)).all()) == 3


def test_what_got_ready_and_died_is_replaced(lane: Lane, images: Path, png: Png) -> None:
    png(images / "cat" / "1.png", 1)
    lane.let_settle()
    lane.reader.get_ready(many=True)
    ready = lane.reader.crew.ready
    assert len(ready) == 3
    for child in ready:
        child.kill()
        assert child.wait(30)
    lane.work()
    assert lane.told == ["drop 1: 1 images, 0 gone, 0 rejected"]


def test_a_child_that_follows_at_once_is_not_taken_for_the_one_before(
    lane: Lane, images: Path, png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the one that got ready and died is heard of when its successor is at work, within the same second."""
    monkeypatch.setattr("daemon.reader.now", lambda: 1.8e9)
    monkeypatch.setattr(lane.reader.sources, "fire_at", lambda *_: None)
    png(images / "cat" / "1.png", 1)
    lane.let_settle()
    lane.reader.scan()
    while lane.reader.drop is None:
        lane.reader.step()
    lane.reader.step()
    (died,) = lane.reader.crew.ready
    died.kill()
    assert died.wait(30)
    while lane.reader.child is None:
        if not lane.reader.step():
            lane.handle(lane.queue.get(timeout=30))
    lane.handle(ChildEnded(died.token, -9, ""))
    assert lane.reader.child is not None
    lane.work()
    assert lane.told == ["drop 1: 1 images, 0 gone, 0 rejected"]


def test_what_gets_ready_to_look_for_near_duplicates_ends_where_there_is_nothing_to_look_for(
    lane: Lane, images: Path, png: Png
) -> None:
    (images / "cat").mkdir()
    (images / "cat" / "text.png").write_text("text")
    lane.let_settle()
    lane.reader.scan()
    while lane.reader.drop is None:
        lane.reader.step()
    lane.reader.step()
    (ready,) = lane.reader.crew.ready
    lane.work()
    assert not lane.reader.crew.ready
    assert ready.wait(30)


def test_what_got_ready_while_images_came_reads_them(lane: Lane, images: Path, png: Png) -> None:
    png(images / "cat" / "1.png", 1)
    lane.let_settle()
    lane.reader.get_ready(many=False)
    lane.reader.get_ready(many=False)
    (reading,) = lane.reader.crew.ready
    lane.reader.scan()
    while not lane.reader.children:
        lane.reader.step()
    assert lane.reader.children == [reading]
    (matching,) = lane.reader.crew.ready
    lane.work()
    assert matching.wait(30)
    assert lane.told == ["drop 1: 1 images, 0 gone, 0 rejected"]


def test_what_got_ready_is_let_go_where_nothing_came_of_it(lane: Lane, images: Path) -> None:
    lane.reader.get_ready(many=True)
    ready = lane.reader.crew.ready
    lane.reader.scan()
    lane.work()
    assert not lane.reader.crew.ready
    assert all(child.wait(30) for child in ready)


def test_pairs_that_were_found_and_not_heard_of_are_found_again(lane: Lane, images: Path, png: Png) -> None:
    png(images / "cat" / "1.png", 1, (64, 64))
    with Image.open(images / "cat" / "1.png") as image:
        image.resize((48, 48)).save(images / "cat" / "copy.png")
    lane.work()
    with lane.journal.begin() as connection:  # as a daemon leaves it that is killed before it has written them down
        connection.execute(schema.near_duplicates.delete())
        connection.execute(update(schema.samples).values(group_id=None))
        connection.execute(schema.groups.delete())
        connection.execute(update(schema.drops).values(state="matching"))
    later = Lane(lane.config, lane.journal, lane.reader.sources, lane.queue)
    later.reader.recover()
    later.work()
    with lane.journal.connect() as connection:
        assert len(connection.execute(select(schema.near_duplicates)).all()) == 1
        assert len(connection.execute(select(schema.groups)).all()) == 1


def test_an_image_that_gets_its_label_later_is_still_known_to_what_comes(lane: Lane, images: Path, png: Png) -> None:
    png(images / "1.png", 1, (64, 64))
    lane.work()
    png(images / "cat" / "2.png", 2, (64, 64))  # the newest that the index knows
    lane.work()
    (images / "1.png").rename(images / "cat" / "1.png")
    lane.work()
    with Image.open(images / "cat" / "1.png") as image:
        image.resize((48, 48)).save(images / "cat" / "copy.png")
    lane.work()
    with lane.journal.connect() as connection:
        assert len(connection.execute(select(schema.near_duplicates)).all()) == 1
        assert len(connection.execute(select(schema.groups)).all()) == 2


BECOMES: dict[str, Callable[[Path, bytes], object]] = {
    "edited, alike another": lambda file, other: file.write_bytes(other),
    "a pipe": lambda file, _: (file.unlink(), os.mkfifo(file)),
    "a bomb": lambda file, _: file.write_bytes(bomb(12_000)),
    "gone": lambda file, _: file.unlink(),
}


@pytest.mark.parametrize("becomes", BECOMES)
def test_an_index_that_is_made_anew_is_of_the_images_that_were_taken_in(
    lane: Lane, images: Path, png: Png, becomes: str
) -> None:
    """With references the user's own files stand in the store, and may have become anything by then."""
    lane.reader.config = load(lane.config.workspace, ["watch.settle_seconds=0.01", "store.keep=reference"])
    for index in range(3):
        png(images / "cat" / f"{index}.png", index, (64, 64))
    lane.work()
    with Image.open(images / "cat" / "1.png") as image:
        image.resize((48, 48)).save(images.parent / "other.png")
    BECOMES[becomes](images / "cat" / "0.png", (images.parent / "other.png").read_bytes())
    shutil.rmtree(lane.config.state / "duplicates")
    lane.reader.waiting.clear()  # before a scan comes to it
    lane.reader.unmatched = True
    while lane.reader.step() or lane.reader.child:
        if isinstance(event := lane.queue.get(timeout=30), ChildSpoke | ChildEnded):
            lane.handle(event)
    with lane.journal.connect() as connection:
        (changed,) = connection.execute(
            select(schema.occurrences.c.sample_id).where(schema.occurrences.c.path == "cat/0.png")
        ).scalars()
        ids = list(connection.execute(select(schema.samples.c.id)).scalars())
        assert connection.execute(select(schema.near_duplicates)).all() == []
    with Index.open(lane.config.state / "duplicates") as index:
        assert (len(ids), index.missing(ids)) == (3, [changed])
