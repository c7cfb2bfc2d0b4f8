"""Manifests: rows that say labels, rows that say nothing of use, and what they do to images that are there."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from sqlalchemy import Engine, select

from daemon import labels, manifest, schema
from daemon.config import Config, load
from daemon.events import ChildEnded, ChildSpoke
from daemon.intake import Drop
from daemon.manifest import LONGEST_LINE, SAID, ManifestError, Reading, read
from daemon.reader import Reader
from daemon.said import Said
from daemon.scan import Difference, compare
from daemon.sources import Sources

Png = Callable[..., Path]
Read = Callable[..., Reading]
HALF = r'{"path": "\ud800.png", "label": "cat"}'  # of a character


@pytest.fixture
def reading(tmp_path: Path) -> Iterator[Callable[..., Reading]]:
    """Reads what is written in a manifest, of images that are all there."""
    with closing(Said(tmp_path / "said")) as said:

        def work(text: str | bytes, *, lines: bool = False) -> Reading:
            content = text.encode() if isinstance(text, str) else text
            return read(io.BytesIO(content), said, lines=lines, is_there=lambda _path: True)

        yield work


def said_by(reading: Reading) -> dict[str, tuple[str | None, str | None]]:
    return {path: (label, group) for path, label, group in reading.said.rows()}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("path,label,group\na/1.png,cat,part-1\n2.png,dog,\n3.png,,\n", False),
        ("\ufeffLabel;Path;note;GROUP\r\ncat;a/1.png;x;part-1\r\ndog;./2.png;y;\r\n;3.png;;\r\n", False),
        (
            '{"path": "a/1.png", "label": "cat", "group": "part-1"}\n{"path": "2.png", "label": "dog"}\n\n'
            '{"path": "3.png", "label": null}\n',
            True,
        ),
    ],
)
def test_rows_say_class_and_group(reading: Read, text: str, lines: bool) -> None:
    found = reading(text, lines=lines)
    assert said_by(found) == {
        "a/1.png": ("cat", "part-1"), "2.png": ("dog", None), "3.png": (None, None),
    }  # fmt: skip
    assert (found.rows, found.waiting, found.refused, found.problems) == (3, 0, 0, [])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (b"/etc/passwd,cat", "names an absolute path, /etc/passwd"),
        (b"../../x.png,cat", "leads out of the watched folder"),
        (b"a/../../x.png,cat", "leads out of the watched folder"),
        (b",cat", "names no path"),
        (b"x.png", "has 1 columns, not 2"),
        (b"x.png,cat,dog", "has 3 columns, not 2"),
        (b"x.png,a/b", "no name of a class"),
        (b"x.png," + b"n" * 300, "no name of a class"),
        (b"x.png,..", "no name of a class"),
        (b"x\x07.png,cat", "holds control characters"),
        (b"caf\xe9.png,cat", "is not UTF-8 text"),
        (b'"x.png,cat', "is no row of CSV"),
        (b"x" * (LONGEST_LINE + 10), f"is longer than {LONGEST_LINE:,} bytes"),
    ],
)
def test_a_row_that_says_nothing_of_use_is_told_with_its_line_and_costs_no_other(
    reading: Read, row: bytes, why: str
) -> None:
    found = reading(b"path,label\n1.png,cat\n" + row + b"\n2.png,dog\n")
    assert set(said_by(found)) == {"1.png", "2.png"}
    (problem,) = found.problems
    assert problem.startswith("line 3: ")
    assert why in problem


@pytest.mark.parametrize("row", ["text", "[1]", '{"path": "x"}', '{"path": 3, "label": "a"}', "[" * 50_000, HALF])
def test_a_line_that_says_nothing_of_use_is_told(reading: Read, row: str) -> None:
    found = reading(f'{row}\n{{"path": "1.png", "label": "cat"}}\n', lines=True)
    assert set(said_by(found)) == {"1.png"}
    assert found.problems[0].startswith("line 1: ")


@pytest.mark.parametrize("text", ["", "file,class\n1.png,cat\n", b"\xff\xfe\x00"])
def test_a_file_without_its_header_is_no_manifest(reading: Read, text: str | bytes) -> None:
    with pytest.raises(ManifestError, match="line 1: "):
        reading(text)


def test_rows_that_contradict_each_other_give_no_class(reading: Read) -> None:
    found = reading("path,label\n1.png,cat\n1.png,cat\n2.png,cat\n./2.png,dog\n")
    assert said_by(found) == {"1.png": ("cat", None), "2.png": (None, None)}
    assert found.problems == ["line 5: says of 2.png dog, line 4 says cat: it has no class"]


def test_so_many_problems_are_told_one_by_one_and_the_others_counted(reading: Read) -> None:
    found = reading("path,label\n" + ",x\n" * (SAID + 5))
    assert len(found.problems) == SAID + 1
    assert found.problems[-1] == "and 5 lines more that say nothing of use"


# --- in a watched folder ----------------------------------------------------------------------------------------------


@pytest.fixture
def config(workspace: Path) -> Config:
    (workspace / "state" / "duplicates").mkdir(parents=True)
    entry = 'watch.folders=[{path="images", labels="manifest", manifest="labels.csv", group="(?P<group>part-[0-9]+)"}]'
    return load(workspace, ["watch.settle_seconds=0.01", "triton.url=127.0.0.1:9", entry])


class Lane:
    """A reader with its children."""

    def __init__(self, config: Config, journal: Engine) -> None:
        self.queue: SimpleQueue[Any] = SimpleQueue()
        self.journal = journal
        sources = Sources(config, self.queue)  # that hear of nothing: the test says when to look
        self.reader = Reader(config, journal, self.queue.put, sources, lambda _said: None)

    def work(self) -> None:
        self.reader.scan()
        while self.reader.step() or self.reader.busy:
            if not self.reader.children:
                continue
            event = self.queue.get(timeout=60)
            if isinstance(event, ChildSpoke):
                self.reader.hear(event.line)
            elif isinstance(event, ChildEnded):
                self.reader.bury(event.token, event.status, event.last_words)

    def classes(self) -> dict[str, str | None]:
        table = schema.occurrences
        with self.journal.connect() as connection:
            rows = connection.execute(select(table.c.path, table.c.class_name).where(table.c.gone.is_(None)))
            return dict(map(tuple, rows))

    def problems(self) -> list[str]:
        table = schema.rejections
        with self.journal.connect() as connection:
            return list(connection.execute(select(table.c.reason).where(table.c.gone.is_(None))).scalars())

    def row(self, table: Any) -> Any:
        with self.journal.connect() as connection:
            return connection.execute(select(table).order_by(table.c.id.desc())).first()


@pytest.fixture
def lane(config: Config, journal: Engine, monkeypatch: pytest.MonkeyPatch) -> Lane:
    monkeypatch.setattr("daemon.reader.compare", settled())
    return Lane(config, journal)


def settled() -> Callable[..., Any]:
    """The comparison, to which nothing is too fresh."""
    return lambda connection, watched, paths, _seconds, writing: compare(connection, watched, paths, -60, writing)


@pytest.mark.parametrize("first", ["manifest", "images"])
def test_a_manifest_may_come_before_or_after_its_images(lane: Lane, config: Config, png: Png, first: str) -> None:
    images = config.folders[0]

    def label() -> None:
        (images / "labels.csv").write_text("path,label\nsome/1.png,cat\n2.png,dog\nnever.png,dog\n")

    def bring() -> None:
        png(images / "some" / "1.png", 1)
        png(images / "2.png", 2)
        png(images / "cat" / "3.png", 3)  # a folder says nothing here

    for step in (label, bring) if first == "manifest" else (bring, label):
        step()
        lane.work()
    assert lane.classes() == {"some/1.png": "cat", "2.png": "dog", "cat/3.png": None}
    assert lane.row(schema.manifests).rows == 3
    with lane.journal.connect() as connection:
        assert len(connection.execute(select(labels.current())).all()) == 2
    assert lane.row(schema.labels).source == "manifest"


def test_an_edited_manifest_relabels_and_one_that_is_away_changes_nothing(lane: Lane, config: Config, png: Png) -> None:
    images = config.folders[0]
    manifest = images / "labels.csv"
    for number in range(3):
        png(images / f"{number}.png", number)
    manifest.write_text("path,label\n0.png,cat\n1.png,cat\n2.png,cat\n../x,cat\n")
    lane.work()
    assert lane.problems() == ["line 5: leads out of the watched folder, by ../x"]
    manifest.write_text("path,label\n0.png,dog\n1.png,cat\n")
    lane.work()
    assert lane.classes() == {"0.png": "dog", "1.png": "cat", "2.png": None}
    assert lane.problems() == []
    manifest.unlink()
    lane.work()
    assert lane.classes() == {"0.png": "dog", "1.png": "cat", "2.png": None}
    manifest.write_text("nothing of use")
    lane.work()
    assert lane.classes() == {"0.png": "dog", "1.png": "cat", "2.png": None}
    for _ in range(2):  # what is wrong with it is shown as long as it is there
        assert "must name the columns path and label" in lane.problems()[0]
        drop = lane.row(schema.drops)
        lane.work()
        assert lane.row(schema.drops) == drop
    manifest.unlink()
    lane.work()
    assert lane.problems() == []


def test_images_that_come_while_the_manifest_is_away_get_their_class_when_it_is_back(
    lane: Lane, config: Config, png: Png, caplog: pytest.LogCaptureFixture
) -> None:
    images = config.folders[0]
    (images / "labels.csv").write_text("path,label\n1.png,cat\n")
    lane.work()
    (images / "labels.csv").rename(images / ".labels.csv")
    png(images / "1.png", 1)
    lane.work()
    assert lane.classes() == {"1.png": None}
    (images / ".labels.csv").rename(images / "labels.csv")
    lane.work()
    assert lane.classes() == {"1.png": "cat"}
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_the_part_of_the_path_makes_a_group_where_the_manifest_says_none(lane: Lane, config: Config, png: Png) -> None:
    images = config.folders[0]
    rows = ["path,label,group"]
    for number in range(8):
        png(images / f"part-{number % 2}-{number}.png", number)
        rows.append(f"part-{number % 2}-{number}.png,cat,{'own' if number == 7 else ''}")
    (images / "labels.csv").write_text("\n".join(rows))
    lane.work()
    with lane.journal.connect() as connection:
        assert sorted(connection.execute(select(schema.groups.c.key)).scalars()) == [
            "key:own",
            "key:part-0",
            "key:part-1",
        ]


def test_images_of_a_manifest_that_could_not_be_read_get_their_class_with_the_next_scan(
    lane: Lane, config: Config, png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest itself is as it was: what it says of the new image is asked for again all the same."""
    images = config.folders[0]
    png(images / "1.png", 1)
    (images / "labels.csv").write_text("path,label\n1.png,cat\n2.png,dog\n")
    lane.work()
    png(images / "2.png", 2)
    start = lane.reader._start
    with monkeypatch.context() as broken:
        broken.setattr(
            lane.reader,
            "_start",
            lambda kind, about: start(kind, {} if kind == "manifest" else about),
        )
        lane.work()
    assert lane.classes() == {"1.png": "cat", "2.png": None}
    lane.work()
    assert lane.classes() == {"1.png": "cat", "2.png": "dog"}


def test_one_that_may_not_be_read_is_told_once_and_read_when_it_may(
    lane: Lane, config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may read everything: here the refusal is played, the rest is real."""
    (config.folders[0] / "labels.csv").write_text("path,label\n1.png,cat\n")
    about = {"token": "t", "folder": str(config.folders[0]), "manifest": "labels.csv", "paths": None}
    job = config.state / "job.json"
    job.write_text(json.dumps({**about, "kept": str(config.state / "said"), "journal": str(config.state)}))

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(manifest, "stream_within", refuse)
    monkeypatch.setattr(manifest, "die_with_parent", lambda: None)
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(str(job))))
    assert manifest.main() == 0
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == ["may not be read: Permission denied"]
    drop = Drop(config, lane.journal, config.folders[0], Difference(manifest=True))
    drop.hear_manifest(told)

    def is_asked_again() -> bool:
        with lane.journal.connect() as connection:
            return compare(connection, config.watched(config.folders[0]), None, 0.0).manifest

    monkeypatch.setattr(os, "access", lambda *_: False)
    assert not is_asked_again()
    monkeypatch.undo()
    assert is_asked_again()
