"""Whatever is done to a watched folder, and whenever it is cut off: what is known afterwards is what lies there.

Hypothesis draws what is done to the files, how the daemon hears of it (by a scan, or by the paths that notification
tells), and what comes between: it is killed before some transaction of the journal, its children are, files change
while it reads them, the folder is away. When all is read the journal is compared with a model, which is a dictionary.

The examples are the same at every run, and one that fails is shown as it is, with all its steps. FILE_OPERATIONS=500 in
the environment tries so many new ones (some seconds each), and makes one that fails as short as can be.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import Table, event, func, select

from daemon import conflicts, data_views, labels, reader, schema, store
from daemon.config import Config, load
from daemon.events import ChildEnded, ChildSpoke, DropSettled
from daemon.intake import leave_folders
from daemon.journal import AnyRow, open_journal
from daemon.reader import Reader
from daemon.sources import Sources
from tests.hostile import image

MORE = int(os.environ.get("FILE_OPERATIONS", "0"))
SETTLE = 0.01  # seconds
CLASSES = ("cat", "dog", "owl")
PLACES = tuple(f"{name}{number}.png" for name in ("cat/", "dog/", "owl/", "") for number in (1, 2))
ANCHOR = "anchor/0.png"  # is never touched: a folder from which all has gone would be taken to be away


def _smaller(content: bytes) -> bytes:
    """A near-duplicate."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(content)) as opened:
        opened.resize((48, 48)).save(out, "PNG")
    return out.getvalue()


PICTURES = {f"picture {seed}": image(size=(64, 64), seed=seed) for seed in range(16)}
PICTURES["picture 0, smaller"] = _smaller(PICTURES["picture 0"])
BROKEN = {"nothing": b"", "text": b"this is text\n", "half a picture": PICTURES["picture 1"][:2000]}
WHY = {"nothing": "is empty", "text": "is no image that can be recognised", "half a picture": "cannot be decoded"}
CONTENTS = {**PICTURES, **BROKEN}
SHAS = {name: hashlib.sha256(content).hexdigest() for name, content in PICTURES.items()}

Operation = tuple[Any, ...]  # the name of a method of World, and how

places, classes = st.sampled_from(PLACES), st.sampled_from(CLASSES)
files = st.integers(0, 15)  # of those that are there then
pictures = st.sampled_from(sorted(PICTURES))
many = st.tuples(st.just("write_many"), classes, st.lists(pictures, min_size=3, max_size=6, unique=True))
operations = st.one_of(
    many,
    st.tuples(st.just("write"), places, st.sampled_from(sorted(CONTENTS)), st.booleans()),
    st.tuples(st.just("touch"), files),
    st.tuples(st.just("move"), files, places),
    st.tuples(st.just("copy"), files, places),
    st.tuples(st.just("delete"), files),
    st.tuples(st.just("mend"), pictures),
    st.tuples(st.just("rename_class"), classes, classes),
    st.tuples(st.just("delete_class"), classes),
)
several = st.lists(operations, min_size=1, max_size=5)
enough = st.tuples(several, many).map(lambda drawn: [*drawn[0], drawn[1]])  # that a drop has several batches
events = st.one_of(
    st.tuples(st.just("the daemon is killed"), st.integers(0, 6), st.none()),  # before which transaction
    st.tuples(st.just("the children are killed"), st.integers(0, 5), st.none()),  # after how many moments
    st.tuples(st.just("people go on"), st.integers(0, 5), several),
    st.tuples(st.just("the folder is away"), st.booleans(), st.none()),
)
by_scan = st.booleans()
rounds = st.lists(st.tuples(several, by_scan, enough, by_scan, events, st.booleans()), min_size=2, max_size=4)


class Killed(BaseException):
    """The daemon ends here: nothing that it holds in memory is there any more."""


class Hints(Sources):
    """Sources that were not started: the test says what they would. What is asked for is told at once."""

    def touch(self, folder: Path, *paths: Path) -> None:
        self.put(DropSettled(folder, frozenset(paths)))


class Lane:
    """The part of a daemon that takes drops in, for as long as it lives."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.journal = open_journal(config.state)
        self.commits_left: int | None = None  # until it is killed
        event.listen(self.journal, "connect", lambda opened, _: opened.execute("PRAGMA synchronous=OFF"))
        event.listen(self.journal, "commit", self._count)
        self.queue: SimpleQueue[Any] = SimpleQueue()
        self.reader = Reader(config, self.journal, self.queue.put, Hints(config, self.queue), lambda _told: None)
        self.reader.recover()
        leave_folders(self.journal, but=config.folders)

    def _count(self, _connection: object) -> None:
        """Whoever is killed before a commit leaves what SQLite rolls back."""
        if self.commits_left is not None:
            self.commits_left -= 1
            if self.commits_left < 0:
                raise Killed

    def work(self, moment: int = -1, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Until all is read; what is to happen meanwhile does at that moment."""
        moments = count()
        while self.reader.step() or self.reader.busy or not self.queue.empty():
            if next(moments) == moment:
                meanwhile()
            if self.reader.children or not self.queue.empty():
                self.handle(self.queue.get(timeout=60))

    def handle(self, heard: Any) -> None:
        tokens = {child.token for child in self.reader.children}
        if isinstance(heard, DropSettled):
            self.reader.waiting.append(heard)
        elif isinstance(heard, ChildSpoke) and heard.token in tokens:
            self.reader.hear(heard.line)
        elif isinstance(heard, ChildEnded) and heard.token in tokens:
            self.reader.bury(heard.token, heard.status, heard.last_words)

    def kill_children(self) -> None:
        for child in self.reader.children:
            child.kill()

    def die(self) -> None:
        """As the kernel ends it: with its children (PR_SET_PDEATHSIG), and without a word."""
        for child in (*self.reader.children, *self.reader.crew.ready):
            child.kill()
            child.wait(30)
        self.journal.dispose()


class World:
    """A workspace with a daemon in it. `files` is the model: what lies where; `changed` is what notification tells."""

    def __init__(self, template: Path) -> None:
        self.home = Path(tempfile.mkdtemp(dir=template.parent))
        shutil.copytree(template, self.home / "workspace")
        self.config = load(self.home / "workspace", [f"watch.settle_seconds={SETTLE}", "triton.url=127.0.0.1:9"])
        self.images = self.config.folders[0]
        self.lane = Lane(self.config)
        self.files: dict[str, str] = {}
        self.changed: set[str] = set()
        self.certain = True  # all that has changed was told, and nothing was cut off since the last rest
        self.labels: list[AnyRow] = []  # as they were when last looked at
        self.roles: dict[int, tuple[int, str]] = {}  # sample -> group and role, once given
        self.write(ANCHOR, "picture 4")
        self.write_many("cat", ["picture 0", "picture 1"])
        self.write_many("dog", ["picture 2", "text"])

    # --- what people do ----------------------------------------------------------------------------------------------

    def do(self, operations: list[Operation]) -> None:
        for name, *how in operations:
            getattr(self, name)(*how)

    def write(self, path: str, content: str, over: bool = False) -> None:
        """New, or in place of what is there: in the file itself, or by a rename over it."""
        file = self.images / path
        file.parent.mkdir(exist_ok=True)
        target = file.with_name(f".{file.name}.new") if over else file
        target.write_bytes(CONTENTS[content])
        target.rename(file)
        self.files[path] = content
        self.changed.add(path)

    def write_many(self, folder: str, pictures: list[str]) -> None:
        for number, content in enumerate(pictures):
            self.write(f"{folder}/many{number}.png", content)

    def touch(self, number: int) -> None:
        if path := self._find(number):
            (self.images / path).touch()
            self.changed.add(path)

    def move(self, number: int, to: str) -> None:
        """Within a class, to another, out of all of them; over what is there."""
        if path := self._find(number):
            (self.images / to).parent.mkdir(exist_ok=True)
            (self.images / path).rename(self.images / to)
            self.files[to] = self.files.pop(path)
            self.changed |= {path, to}

    def copy(self, number: int, to: str) -> None:
        if (path := self._find(number)) and path != to:
            (self.images / to).parent.mkdir(exist_ok=True)
            shutil.copy2(self.images / path, self.images / to)
            self.files[to] = self.files[path]
            self.changed.add(to)

    def delete(self, number: int) -> None:
        if path := self._find(number):
            (self.images / path).unlink()
            del self.files[path]
            self.changed.add(path)

    def _find(self, number: int) -> str | None:
        there = sorted(self.files.keys() - {ANCHOR})
        return there[number % len(there)] if there else None

    def mend(self, content: str) -> None:
        for path in [path for path, name in self.files.items() if name in BROKEN]:
            self.write(path, content)

    def rename_class(self, folder: str, to: str) -> None:
        if (self.images / folder).exists() and not (self.images / to).exists():
            (self.images / folder).rename(self.images / to)
            inside = [path for path in self.files if path.startswith(f"{folder}/")]
            self.files |= {path.replace(folder, to, 1): self.files.pop(path) for path in inside}
            self.changed |= {folder, to}

    def delete_class(self, folder: str) -> None:
        shutil.rmtree(self.images / folder, ignore_errors=True)
        self.files = {path: content for path, content in self.files.items() if not path.startswith(f"{folder}/")}
        self.changed.add(folder)

    # --- what the daemon does, and what is done to it ----------------------------------------------------------------

    def read(self, by_scan: bool) -> None:
        self._let_settle()
        self._look(by_scan)
        self.lane.work()
        if self.certain:
            self.check()

    def read_and_be_disturbed(self, by_scan: bool, event: tuple[str, Any, Any]) -> None:
        self._let_settle()
        self.certain = False
        what, *about = event
        match what:
            case "the folder is away":
                self._read_while_away(*about)
            case "the daemon is killed":
                self._read_until_killed(by_scan, *about)
            case "the children are killed":
                self._look(by_scan)
                self.lane.work(about[0], self.lane.kill_children)
            case "people go on":
                self._look(by_scan)
                self.lane.work(about[0], lambda: self._go_on(about[1]))

    def _read_while_away(self, mounted_on: bool, _: None) -> None:
        """The whole folder is gone; what it was mounted on may be there, and is empty."""
        before = self._live()
        away = self.images.with_name("away")
        self.images.rename(away)
        if mounted_on:
            self.images.mkdir()
        self.lane.reader.scan()
        self.lane.reader.waiting.append(DropSettled(self.images, frozenset(self.images / name for name in CLASSES)))
        self.lane.work()
        if mounted_on:
            self.images.rmdir()
        away.rename(self.images)
        assert self._live() == before, "of what is away all stays as it is known"

    def _read_until_killed(self, by_scan: bool, transactions: int, _: None) -> None:
        self.lane.commits_left = transactions
        try:
            self._look(by_scan)
            self.lane.work()
        except Killed:
            self.lane.die()
            self.lane = Lane(self.config)
            self.lane.reader.scan()
        self.lane.commits_left = None

    def _go_on(self, operations: list[Operation]) -> None:
        for operation in operations:
            self._let_settle()
            self.do([operation])

    def rest(self) -> None:
        """All is read: what has ended a child by the scan after the next."""
        for _ in range(1 if self.certain else 2):
            self._let_settle()
            self._look(by_scan=True)
            self.lane.work()
        self.check()
        self.certain = True

    def _look(self, by_scan: bool) -> None:
        if by_scan:
            self.lane.reader.scan()
        elif self.changed:
            changed = frozenset(self.images / path for path in self.changed)
            self.lane.reader.waiting.append(DropSettled(self.images, changed))
        self.changed.clear()

    def _let_settle(self) -> None:
        """So long that no file is too fresh to be read, and that what changes from now on has another time."""
        time.sleep(2 * SETTLE)

    def end(self) -> None:
        self.lane.die()
        shutil.rmtree(self.home)

    # --- what must be known then -------------------------------------------------------------------------------------

    def check(self) -> None:
        with self.lane.journal.connect() as connection:
            doubled = [path for table in (schema.occurrences, schema.rejections) for path in self._paths(table)]
            assert Counter(doubled).most_common(1)[0][1] == 1, "a path is one thing"
            assert self._live() == self._expected()
            self._check_rejections(data_views.rejected(connection))
            said = connection.execute(select(labels.current())).all()
            shas = {row.id: row.sha256 for row in connection.execute(select(schema.samples))}
            classes = {(shas[row.sample_id].hex(), row.class_name) for row in said}
            self._check_classes(classes, conflicts.find(connection))
            unfinished = select(func.count()).where(schema.drops.c.state.in_(("reading", "matching")))
            assert connection.execute(unfinished).scalar() == 0
        self._check_labels()
        self._check_roles({row.sample_id for row in said})
        for sha in shas.values():
            file = store.place(self.config.state / "store", sha.hex())
            assert hashlib.sha256(file.read_bytes()).digest() == sha, "what was taken in is kept"

    def _rows(self, table: Table) -> list[AnyRow]:
        with self.lane.journal.connect() as connection:
            return list(connection.execute(select(table).order_by(table.c.id)))

    def _paths(self, table: Table) -> list[str]:
        return [row.path for row in self._rows(table) if row.gone is None]

    def _live(self) -> dict[str, tuple[str, str | None]]:
        shas = {row.id: row.sha256.hex() for row in self._rows(schema.samples)}
        live = (row for row in self._rows(schema.occurrences) if row.gone is None)
        return {row.path: (shas[row.sample_id], row.class_name) for row in live}

    def _expected(self) -> dict[str, tuple[str, str | None]]:
        return {path: (SHAS[name], class_of(path)) for path, name in self.files.items() if name in PICTURES}

    def _check_rejections(self, shown: list[dict[str, Any]]) -> None:
        broken = {str(self.images / path): WHY[name] for path, name in self.files.items() if name in BROKEN}
        assert {view["file"] for view in shown} == broken.keys()
        for view in shown:
            assert re.search(broken[view["file"]], view["reason"])

    def _check_classes(self, said: set[tuple[str, str]], shown: list[dict[str, Any]]) -> None:
        expected = self._classes()
        assert said == {(sha, name) for sha, names in expected.items() for name in names}
        in_conflict = {sha: sorted(names) for sha, names in expected.items() if len(names) > 1}
        assert {view["sha256"]: view["classes"] for view in shown} == in_conflict

    def _classes(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        for sha, name in self._expected().values():
            if name is not None:
                found[sha].add(name)
        return found

    def _check_labels(self) -> None:
        """Nothing that was said is changed; each class that is said now was written down with its occurrence."""
        rows = self._rows(schema.labels)
        assert rows[: len(self.labels)] == self.labels
        self.labels = rows
        written = {(row.drop_id, row.sample_id, row.class_name) for row in rows}
        for row in self._rows(schema.occurrences):
            assert row.class_name is None or (row.drop_id, row.sample_id, row.class_name) in written

    def _check_roles(self, labelled: set[int]) -> None:
        given = {row.id: row.role for row in self._rows(schema.groups)}
        rows = self._rows(schema.samples)
        roles = {row.id: (row.group_id, given[row.group_id]) for row in rows if row.group_id is not None}
        assert roles.items() >= self.roles.items(), "a role is given for ever"
        self.roles = roles
        twins = [row.id for row in rows if row.sha256.hex() in (SHAS["picture 0"], SHAS["picture 0, smaller"])]
        assert labelled <= roles.keys() | set(twins)
        assert len({roles[twin] for twin in twins if twin in roles}) <= 1, "near-duplicates share group and role"


def class_of(path: str) -> str | None:
    name, slash, _ = path.partition("/")
    return name if slash else None


@pytest.fixture
def template(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace with an empty journal. Drops are read by two children, in many batches, however small they are."""
    monkeypatch.setattr(reader, "FEW", 3)
    monkeypatch.setattr(reader, "BATCH", 2)
    monkeypatch.setattr(reader, "TROUBLE_SECONDS", 0.0)
    (workspace / "state").mkdir()
    open_journal(workspace / "state", migrate=True).dispose()
    yield workspace


@pytest.mark.timeout(0 if MORE else 300)
def test_what_is_known_is_what_lies_there(template: Path) -> None:
    @settings(
        max_examples=MORE or 12,
        derandomize=not MORE,
        phases=[Phase.generate, Phase.shrink] if MORE else [Phase.generate],
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(rounds)
    def live_through(rounds: list[tuple[list[Operation], bool, list[Operation], bool, Any, bool]]) -> None:
        world = World(template)
        try:
            world.rest()
            for operations, by_scan, more, by_scan_again, event, and_rest in rounds:
                world.do(operations)
                world.read(by_scan)
                world.do(more)
                world.read_and_be_disturbed(by_scan_again, event)
                if and_rest:
                    world.rest()
            world.rest()
        finally:
            world.end()

    live_through()
