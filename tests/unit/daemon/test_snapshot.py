"""Snapshots: what is in one, how it is named, and what is left out."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from daemon import schema
from daemon.config import Config
from daemon.snapshot import Snapshot, choose_classes, read, take
from daemon.standings import usable


@pytest.fixture
def drop(config: Config, png: Callable[..., Path], read_in: Callable[..., Any]) -> Callable[..., None]:
    """Drops samples: `drop(cat=20, dog=30)`."""

    def bring(**classes: int) -> None:
        for name, number in classes.items():
            for index in range(number):
                png(config.folders[0] / name / f"{index}.png", seed=index + zlib.crc32(name.encode()))
        read_in()

    return bring


@pytest.fixture
def snap(config: Config, journal: Engine) -> Callable[..., Snapshot]:
    def taken(known: tuple[str, ...] = (), at_least: int = 1) -> Snapshot:
        with journal.begin() as connection:
            return take(connection, config.state / "snapshots", known=known, at_least=at_least)

    return taken


def test_what_is_written_is_read_again(
    drop: Callable[..., None], snap: Callable[..., Snapshot], journal: Engine
) -> None:
    drop(cat=12, dog=11)
    taken = snap()
    classes, rows = read(taken.file)
    with journal.connect() as connection:
        found = list(usable(connection))
        (row,) = connection.execute(select(schema.snapshots))
    assert classes == taken.classes == ("cat", "dog")
    assert dict(rows.items()) == {one.sha256: (one.name, one.role) for one in found}
    assert (row.id, row.classes, row.counts, row.file) == (
        taken.id,
        ["cat", "dog"],
        taken.counts,
        f"{taken.id}.snapshot",
    )
    assert {name: sum(roles.values()) for name, roles in taken.counts.items()} == {"cat": 12, "dog": 11}
    assert taken.counts["cat"]["judge"] >= 1


def test_the_file_has_the_form_that_the_other_packages_read(
    drop: Callable[..., None], snap: Callable[..., Snapshot]
) -> None:
    drop(cat=3, dog=2)
    taken = snap()
    head, _, body = taken.file.read_bytes().partition(b"\n")
    assert json.loads(head) == {"format": 1, "id": taken.id, "classes": ["cat", "dog"], "rows": 5}
    assert len(body) == 5 * 35
    rows = list(struct.iter_unpack("<32sHB", body))
    assert rows == sorted(rows)
    assert Counter(label for _, label, _ in rows) == {0: 3, 1: 2}
    assert {role for _, _, role in rows} <= {0, 1, 2}


def test_it_is_written_again_only_where_something_has_changed(
    drop: Callable[..., None], snap: Callable[..., Snapshot]
) -> None:
    drop(cat=12, dog=11)
    first = snap()
    written = first.file.stat().st_mtime_ns
    assert snap() == first
    assert first.file.stat().st_mtime_ns == written
    other = snap(("dog", "cat"))
    assert other.classes == ("dog", "cat")
    assert other.id != first.id
    assert snap() == first
    first.file.write_bytes(first.file.read_bytes()[:-40])
    assert snap() == first
    assert len(read(first.file)[1]) == 23
    first.file.unlink()
    assert snap() == first
    assert first.file.exists()
    drop(cat=13)
    assert len(read(snap().file)[1]) == 24


def test_the_name_is_a_hash_of_the_content(
    drop: Callable[..., None], snap: Callable[..., Snapshot], config: Config
) -> None:
    drop(cat=3, dog=2)
    first = snap()
    body = first.file.read_bytes().partition(b"\n")[2]
    assert first.id == hashlib.sha256(json.dumps(("cat", "dog")).encode() + body).hexdigest()[:16]
    assert snap().id == first.id
    assert snap(known=("dog",)).id != first.id
    drop(cat=4)
    assert snap().id != first.id
    (config.folders[0] / "cat" / "3.png").unlink()
    drop()
    assert snap().id == first.id
    assert not list((config.state / "snapshots").glob("*.writing"))


def test_known_classes_keep_their_order_and_new_ones_follow(
    drop: Callable[..., None], snap: Callable[..., Snapshot]
) -> None:
    drop(ant=2, bee=2, cat=2, dog=2)
    assert snap(known=("dog", "bee")).classes == ("dog", "bee", "ant", "cat")


@pytest.mark.parametrize(
    ("counts", "known", "at_least", "classes"),
    [
        ({"a": 5, "b": 5}, (), 5, ("a", "b")),
        ({"a": 5, "b": 4}, (), 5, ("a",)),
        ({"a": 5, "b": 4}, ("b",), 5, ("b", "a")),  # the champion knows it: it stays, however few
        ({"a": 5}, ("b", "a"), 5, ("a",)),  # nothing is left of it
        ({}, ("b",), 5, ()),
    ],
)
def test_choose_classes(
    counts: dict[str, int], known: tuple[str, ...], at_least: int, classes: tuple[str, ...]
) -> None:
    assert choose_classes(Counter(counts), known, at_least) == classes


def test_small_classes_conflicts_and_unlabelled_samples_are_left_out(
    drop: Callable[..., None],
    snap: Callable[..., Snapshot],
    config: Config,
    png: Callable[..., Path],
    read_in: Callable[..., Any],
) -> None:
    png(config.folders[0] / "cat" / "both.png", seed=5)
    png(config.folders[0] / "dog" / "both.png", seed=5)
    png(config.folders[0] / "loose.png", seed=6)
    drop(cat=10, dog=10, newt=2)
    taken = snap(at_least=5)
    assert taken.classes == ("cat", "dog")
    assert sum(sum(roles.values()) for roles in taken.counts.values()) == 20
    assert taken.left_out == {"class newt has only 2 samples": 2, "in two classes at once": 1}
    (config.folders[0] / "dog" / "both.png").unlink()
    read_in()
    assert snap(at_least=5).counts["cat"] != taken.counts["cat"]
    assert "in two classes at once" not in snap(at_least=5).left_out


def test_the_same_image_twice_in_a_class_is_one_sample(
    snap: Callable[..., Snapshot], config: Config, png: Callable[..., Path], read_in: Callable[..., Any]
) -> None:
    for name in ("one", "two", "deeper/three"):
        png(config.folders[0] / "cat" / f"{name}.png", seed=1)
    read_in()
    assert sum(snap().counts["cat"].values()) == 1


def test_a_sample_keeps_its_role_when_it_moves_or_comes_back(
    drop: Callable[..., None], snap: Callable[..., Snapshot], config: Config, read_in: Callable[..., Any]
) -> None:
    drop(cat=12)
    _, before = read(snap().file)
    (config.folders[0] / "cat").rename(config.folders[0] / "dog")
    read_in()
    _, moved = read(snap().file)
    assert {sha: role for sha, (_, role) in moved.items()} == {sha: role for sha, (_, role) in before.items()}
    assert {name for name, _ in moved.values()} == {"dog"}


@pytest.mark.parametrize(
    "content", [b"", b"no JSON\n", b"[1, 2]\n", b'{"format": 1}\n', b'{"classes": ["a"], "rows": 2}\n' + b"x" * 35]
)
def test_a_damaged_file_is_named_as_what_the_daemon_bears(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "0123.snapshot"
    file.write_bytes(content)
    with pytest.raises(OSError, match="is no whole snapshot: restore it from a backup, or remove it") as told:
        read(file)
    assert str(file) in str(told.value)


def test_the_rows_are_found_by_hash_and_no_other(drop: Callable[..., None], snap: Callable[..., Snapshot]) -> None:
    drop(cat=12, dog=11)
    _, rows = read(snap().file)
    listed = dict(rows.items())
    assert list(listed) == sorted(listed)
    assert all(rows[sha] == said for sha, said in listed.items())
    assert all(sha not in rows for sha in (bytes(32), b"\xff" * 32, next(iter(listed))[:-1] + b"?"))
    judged = {sha: name for sha, (name, role) in listed.items() if role == "judge"}
    assert dict(rows.of_role("judge")) == judged
