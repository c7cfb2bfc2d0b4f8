"""What changed in a watched folder, compared with the journal, and what is written down of a drop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from daemon import schema
from daemon.config import Config
from daemon.intake import Drop, leave_folders
from daemon.journal import AnyRow
from daemon.scan import Difference, compare
from daemon.schema import groups, occurrences, rejections, samples
from daemon.walk import LATEST
from daemon.watched import Watched

Png = Callable[..., Path]
ReadIn = Callable[..., Any]


@pytest.fixture
def images(config: Config) -> Path:
    return config.folders[0]


@pytest.fixture
def look(journal: Engine, config: Config, images: Path) -> Callable[..., Difference]:
    def at(*paths: Path, settle_seconds: float = -60) -> Difference:
        with journal.connect() as connection:
            return compare(connection, config.watched(images), paths or None, settle_seconds)

    return at


def rows(journal: Engine, table: Any) -> list[AnyRow]:
    with journal.connect() as connection:
        return list(connection.execute(select(table).order_by(table.c.id)))


def live(journal: Engine, table: Any = schema.occurrences) -> set[str]:
    return {row.path for row in rows(journal, table) if row.gone is None}


@pytest.mark.parametrize(
    ("path", "name"),
    [("cat/x.png", "cat"), ("cat/deep/er/x.png", "cat"), ("x.png", None), ("a b/ü.png", "a b")],
)
def test_the_first_folder_is_the_class(path: str, name: str | None) -> None:
    assert Watched(Path()).class_of(path) == name


def test_new_files_are_read_and_known_ones_not(
    look: Callable[..., Difference], read_in: ReadIn, images: Path, png: Png
) -> None:
    png(images / "cat" / "1.png", 1)
    (images / "cat" / "text.png").write_text("text")
    assert look() == Difference(read=["cat/1.png", "cat/text.png"])
    read_in()
    assert look() == Difference()
    png(images / "dog" / "deep" / "2.png", 2)
    assert look() == Difference(read=["dog/deep/2.png"])


def test_a_changed_file_is_read_again(
    look: Callable[..., Difference], read_in: ReadIn, images: Path, png: Png, journal: Engine
) -> None:
    png(images / "cat" / "1.png", 1)
    bad = images / "cat" / "bad.png"
    bad.write_text("text")
    read_in()
    png(images / "cat" / "1.png", 2, (9, 9))
    png(bad, 3)
    assert look() == Difference(read=["cat/1.png", "cat/bad.png"], known={"cat/1.png", "cat/bad.png"})
    read_in()
    assert live(journal) == {"cat/1.png", "cat/bad.png"}
    assert live(journal, schema.rejections) == set()
    assert len(rows(journal, schema.occurrences)) == 3


def test_the_same_size_at_another_time_is_a_change(
    look: Callable[..., Difference], read_in: ReadIn, images: Path, png: Png
) -> None:
    file = png(images / "cat" / "1.png", 1)
    read_in()
    os.utime(file, ns=(1, 1))
    assert look() == Difference(read=["cat/1.png"], known={"cat/1.png"})


def test_what_is_gone_ends_its_occurrence(
    look: Callable[..., Difference], read_in: ReadIn, images: Path, png: Png, journal: Engine
) -> None:
    one, two = png(images / "cat" / "1.png", 1), png(images / "cat" / "2.png", 2)
    (images / "cat" / "bad.png").write_text("text")
    read_in()
    one.unlink()
    (images / "cat" / "bad.png").unlink()
    assert look() == Difference(gone=["cat/1.png", "cat/bad.png"])
    drop = read_in()
    assert live(journal) == {"cat/2.png"}
    assert live(journal, schema.rejections) == set()
    assert rows(journal, schema.drops)[-1].gone == 2
    assert drop.id == rows(journal, schema.drops)[-1].id
    assert len(rows(journal, schema.samples)) == 2
    assert two.exists()


def test_a_moved_folder_is_a_change_of_class(
    look: Callable[..., Difference], read_in: ReadIn, images: Path, png: Png, journal: Engine
) -> None:
    for index in range(3):
        png(images / "cat" / f"{index}.png", index)
    png(images / "catalogue" / "x.png", 9)  # a name that begins alike is another
    read_in()
    (images / "cat").rename(images / "dog")
    expected = Difference(
        read=[f"dog/{index}.png" for index in range(3)], gone=[f"cat/{index}.png" for index in range(3)]
    )
    assert look(images / "cat", images / "dog") == expected
    assert look() == expected
    read_in(images / "cat", images / "dog")
    assert live(journal) == {"catalogue/x.png", *(f"dog/{index}.png" for index in range(3))}
    assert len(rows(journal, schema.samples)) == 4


def test_only_the_paths_that_were_touched_are_looked_at(
    look: Callable[..., Difference], images: Path, png: Png
) -> None:
    one = png(images / "cat" / "1.png", 1)
    png(images / "cat" / "2.png", 2)
    assert look(one) == Difference(read=["cat/1.png"])
    assert look(images / "dog" / "never.png") == Difference()
    assert look(images / "cat") == Difference(read=["cat/1.png", "cat/2.png"])


def test_hidden_files_and_folders_are_ignored(look: Callable[..., Difference], images: Path, png: Png) -> None:
    hidden = [
        png(images / ".thumbnails" / "x.png", 1),
        png(images / "cat" / ".x.png.part", 2),
        png(images / "cat" / ".git" / "x.png", 3),
    ]
    png(images / "cat" / "x.png", 4)
    assert look() == Difference(read=["cat/x.png"])
    assert look(*hidden) == Difference()


def test_fresh_files_are_looked_at_again_by_a_scan_and_read_when_settled(
    look: Callable[..., Difference], images: Path, png: Png
) -> None:
    file = png(images / "cat" / "1.png", 1)
    os.utime(file, (time.time() - 5000, time.time() - 5000))  # copied with its old time: it is fresh nevertheless
    assert look(settle_seconds=60) == Difference(fresh=["cat/1.png"])
    assert look(file, settle_seconds=60) == Difference(read=["cat/1.png"])


@pytest.mark.parametrize("how", ["empty", "missing"])
def test_a_folder_that_is_away_is_not_an_emptied_one(
    look: Callable[..., Difference], read_in: ReadIn, images: Path, png: Png, journal: Engine, how: str
) -> None:
    png(images / "cat" / "1.png", 1)
    read_in()
    away = images.with_name("away")
    images.rename(away)
    if how == "empty":
        images.mkdir()
    for paths in ((), (images / "cat",), (images / "cat" / "1.png",)):  # whatever notification says of them
        with pytest.raises(FileNotFoundError, match="is empty or away; what is known of its files stays as it is"):
            look(*paths)
    assert live(journal) == {"cat/1.png"}
    if how == "empty":
        images.rmdir()
    away.rename(images)
    assert look() == Difference()


def test_an_empty_folder_of_which_nothing_is_known_is_fine(look: Callable[..., Difference]) -> None:
    assert look() == Difference()


def test_links_are_taken_as_they_are(look: Callable[..., Difference], images: Path, png: Png, tmp_path: Path) -> None:
    png(tmp_path / "elsewhere" / "x.png", 1)
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    (images / "round").symlink_to("round")
    (images / "dangling.png").symlink_to("nowhere.png")
    (images / "cat").mkdir()
    (images / "cat" / "around").symlink_to(images)
    # each is refused by the child with its reason: out of the folder, to what holds it, to nothing, to itself
    assert look() == Difference(read=["cat/around", "dangling.png", "linked", "round"])


def test_a_link_to_a_folder_within_is_followed_once(
    look: Callable[..., Difference], read_in: ReadIn, images: Path, png: Png
) -> None:
    png(images / "dog" / "1.png", 1)
    (images / "dog" / "back").symlink_to(images / "puppy")
    (images / "puppy").symlink_to(images / "dog")
    found = look()
    assert found == Difference(read=["dog/1.png", "dog/back", "puppy/1.png", "puppy/back"], links=True)
    read_in()
    (images / "dog" / "1.png").unlink()
    assert look().gone == ["dog/1.png", "puppy/1.png"]


@pytest.mark.parametrize("touched", ["cat/linked", "cat/linked/x.png", "cat/linked/sub"])
def test_a_link_out_that_is_touched_is_not_followed(
    look: Callable[..., Difference], images: Path, png: Png, tmp_path: Path, touched: str
) -> None:
    png(tmp_path / "elsewhere" / "x.png", 1)
    png(tmp_path / "elsewhere" / "sub" / "y.png", 2)
    (images / "cat").mkdir()
    (images / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    assert look(images / touched) == Difference(read=["cat/linked"])  # refused by the child: it leads out


@pytest.mark.parametrize("touched", ["cat/inner", "cat/inner/1.png"])
def test_a_link_within_that_is_touched_is_followed(
    look: Callable[..., Difference], images: Path, png: Png, touched: str
) -> None:
    png(images / "dog" / "1.png", 3)
    (images / "cat").mkdir()
    (images / "cat" / "inner").symlink_to(images / "dog")
    assert look(images / touched) == Difference(read=["cat/inner/1.png"], links=True)


def test_names_that_are_not_utf8_are_rejected_and_named(
    look: Callable[..., Difference], read_in: ReadIn, images: Path, png: Png, journal: Engine
) -> None:
    folder = os.fsencode(images) + b"/caf\xe9"
    Path(os.fsdecode(folder)).mkdir()
    file = png(Path(os.fsdecode(folder)) / "1.png", 1)
    png(images / "café" / "2.png", 2)
    difference = look()
    assert difference.read == ["café/2.png"]
    assert [os.fsencode(path) for path in difference.unnamable] == [b"caf\xe9/1.png"]
    assert look(file).unnamable == difference.unnamable
    # what the reader does with it
    drop = read_in()
    drop.refuse(difference.unnamable, "its name is not UTF-8: rename it")
    (row,) = rows(journal, schema.rejections)
    assert (row.path, row.reason) == ("caf\\xe9/1.png", "its name is not UTF-8: rename it")
    assert look() == Difference()
    file.unlink()
    assert look().gone == ["caf\\xe9/1.png"]


def test_a_drop_is_written_down_whole(read_in: ReadIn, images: Path, png: Png, journal: Engine, config: Config) -> None:
    for index in range(10):
        png(images / "cat" / f"{index}.png", index, (12, 9))
    png(images / "loose.png", 99)
    (images / "cat" / "bad.png").write_text("text")
    read_in()
    (drop,) = rows(journal, schema.drops)
    assert (drop.state, drop.added, drop.gone, drop.rejected) == ("ready", 11, 0, 1)
    assert drop.ended is not None
    samples = rows(journal, schema.samples)
    assert {(row.width, row.height, row.mode) for row in samples} == {(12, 9, "RGB"), (8, 8, "RGB")}
    assert sum(row.group_id is None for row in samples) == 1  # unlabelled: its role comes with its label
    assert {row.class_name for row in rows(journal, schema.labels)} == {"cat"}
    assert [row.role for row in rows(journal, schema.groups)].count("judge") == 1
    (bad,) = rows(journal, schema.rejections)
    assert (bad.path, bad.drop_id) == ("cat/bad.png", drop.id)


def test_the_same_image_in_two_places_is_one_sample_with_one_role(
    read_in: ReadIn, images: Path, png: Png, journal: Engine
) -> None:
    png(images / "cat" / "1.png", 1)
    png(images / "dog" / "1.png", 1)
    read_in()
    assert len(rows(journal, schema.samples)) == len(rows(journal, schema.groups)) == 1
    assert len(rows(journal, schema.occurrences)) == len(rows(journal, schema.labels)) == 2


def test_an_unlabelled_image_gets_its_role_with_its_label(
    read_in: ReadIn, images: Path, png: Png, journal: Engine
) -> None:
    png(images / "1.png", 1)
    read_in()
    assert rows(journal, schema.groups) == []
    (images / "cat").mkdir()
    (images / "1.png").rename(images / "cat" / "1.png")
    read_in()
    assert len(rows(journal, schema.groups)) == 1
    assert rows(journal, schema.samples)[0].group_id == rows(journal, schema.groups)[0].id


def test_nothing_of_the_users_is_touched(read_in: ReadIn, images: Path, png: Png) -> None:
    file = png(images / "cat" / "1.png", 1)
    (images / "cat" / "bad.png").write_text("text")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in images.rglob("*.png")}
    read_in()
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in images.rglob("*.png")} == before
    assert file.stat().st_nlink == 1


@pytest.mark.parametrize("name", ["weird\nclass", "bell\x07", "next\u2028line"])
def test_names_with_control_characters_are_not_taken_in(
    images: Path, png: Png, look: Callable[..., Difference], name: str
) -> None:
    """A line break in a class's name would be two lines of Triton's labels."""
    png(images / name / "1.png", 1)
    found = look()
    assert (found.read, found.unnamable) == ([], [f"{name}/1.png"])


def test_what_is_below_a_folder_that_cannot_be_listed_stays(
    look: Callable[..., Difference], read_in: ReadIn, images: Path, png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    png(images / "cat" / "1.png", 1)
    png(images / "dog" / "1.png", 2)
    png(images / "dog" / "2.png", 3)
    read_in()
    scandir = os.scandir

    def refuse(at: str) -> Any:
        if at == str(images / "cat"):
            raise PermissionError(13, "Permission denied", at)
        return scandir(at)

    (images / "dog" / "1.png").unlink()
    monkeypatch.setattr(os, "scandir", refuse)
    assert look() == Difference(gone=["dog/1.png"], closed={"cat": "Permission denied"}, shut=frozenset({"cat"}))


def test_a_file_that_may_not_be_read_is_rejected_once_and_read_when_it_may(
    look: Callable[..., Difference], journal: Engine, config: Config, images: Path, png: Png,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    png(images / "cat" / "1.png", 1)
    drop = Drop(config, journal, images, Difference(read=["cat/1.png"]))
    drop.record([{"path": "cat/1.png", "size": -1, "mtime_ns": -1, "reason": "may not be read: Permission denied"}])
    drop.finish("ready")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert look() == Difference()
    monkeypatch.undo()
    assert look() == Difference(read=["cat/1.png"], known={"cat/1.png"})


def test_what_cannot_be_looked_at_for_its_name_or_its_way_stays_as_it_is_known(
    look: Callable[..., Difference], images: Path
) -> None:
    assert look(images / ("n" * 300)) == Difference()


def test_samples_of_a_folder_that_is_no_longer_watched_are_no_longer_seen(
    journal: Engine, config: Config, images: Path, png: Png, read_in: ReadIn
) -> None:
    png(images / "cat" / "1.png", 1)
    (images / "cat" / "2.png").write_text("no image")
    read_in()
    leave_folders(journal, but=[images, images / "other"])
    assert rows(journal, occurrences)[0].gone is rows(journal, rejections)[0].gone is None
    leave_folders(journal, but=[images / "other"])
    assert None not in (rows(journal, occurrences)[0].gone, rows(journal, rejections)[0].gone)
    assert len(rows(journal, samples)) == 1
    read_in()  # watched again
    assert [row.gone for row in rows(journal, occurrences)][1:] == [None]
    assert len(rows(journal, samples)) == len(rows(journal, groups)) == 1


def test_a_file_of_a_later_date_than_a_journal_can_hold_is_known_like_any_other(
    read_in: ReadIn, look: Callable[..., Difference], images: Path, png: Png
) -> None:
    file = png(images / "cat" / "1.png", 1)
    os.utime(file, (2**34, 2**34))
    if file.stat().st_mtime_ns <= LATEST:
        pytest.skip("this file system holds no such date")
    assert look() == Difference(read=["cat/1.png"])
    read_in()
    assert look() == Difference()
