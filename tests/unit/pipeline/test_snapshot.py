"""Reading the file of a snapshot, whole and otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.snapshot import read_snapshot
from policies.job import StageError

Write = Callable[..., Path]
ROWS = [("ff" * 32, 1, 2), ("0a" * 32, 0, 0), ("7f" * 32, 299, 1)]
CLASSES = [f"c{number}" for number in range(300)]  # more than a byte counts


@pytest.fixture
def file(tmp_path: Path, write_snapshot: Write) -> Path:
    return write_snapshot(tmp_path / "abc.snapshot", ROWS, CLASSES)


def test_its_rows_are_read(file: Path) -> None:
    snapshot = read_snapshot(file)
    assert (snapshot.id, snapshot.classes) == ("abc", tuple(CLASSES))
    assert [sha.tobytes().hex() for sha in snapshot.shas] == ["0a" * 32, "7f" * 32, "ff" * 32]
    assert snapshot.labels.tolist() == [0, 299, 1]
    assert snapshot.roles.tolist() == [0, 1, 2]
    assert (snapshot.shas.dtype, snapshot.labels.dtype, snapshot.roles.dtype) == (np.uint8, np.int32, np.uint8)


def test_a_hash_may_hold_the_byte_that_ends_the_header(tmp_path: Path, write_snapshot: Write) -> None:
    file = write_snapshot(tmp_path / "a.snapshot", [("0a" * 32, 0, 0), ("0b" * 32, 1, 1)])
    assert read_snapshot(file).labels.tolist() == [0, 1]


def test_one_without_rows_is_whole(tmp_path: Path, write_snapshot: Write) -> None:
    snapshot = read_snapshot(write_snapshot(tmp_path / "a.snapshot", [], ["é", "b"]))
    assert (len(snapshot.shas), snapshot.classes) == (0, ("é", "b"))


@pytest.mark.parametrize(
    "head",
    [b"", b"{", b"\xff\xfe", b"[1]", b"3", b'"text"', b'{"format": 1}', b'{"format": 1, "id": "a", "classes": 3}'],
)
def test_a_damaged_header_is_told_with_the_name_of_the_file(file: Path, head: bytes) -> None:
    _, _, body = file.read_bytes().partition(b"\n")
    file.write_bytes(head + b"\n" + body)
    with pytest.raises(StageError) as told:
        read_snapshot(file)
    assert str(file) in str(told.value)


@pytest.mark.parametrize("cut", [1, 34, 35, 70])
def test_rows_that_are_missing_are_told(file: Path, cut: int) -> None:
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(StageError) as told:
        read_snapshot(file)
    assert str(file) in str(told.value)


@pytest.mark.parametrize("more", [b"x", b"x" * 35])
def test_what_follows_the_rows_is_told(file: Path, more: bytes) -> None:
    file.write_bytes(file.read_bytes() + more)
    with pytest.raises(StageError) as told:
        read_snapshot(file)
    assert str(file) in str(told.value)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_an_unknown_format_is_told(tmp_path: Path, write_snapshot: Write, version: object) -> None:
    file = write_snapshot(tmp_path / "a.snapshot", ROWS, CLASSES, format=version)
    with pytest.raises(StageError, match=f"format {version}.*format 1 is what this version reads") as told:
        read_snapshot(file)
    assert str(file) in str(told.value)


@pytest.mark.parametrize("row", [("00" * 32, 3, 0), ("00" * 32, 0, 3)])
def test_a_row_of_a_class_or_role_that_is_not_named_is_told(
    tmp_path: Path, write_snapshot: Write, row: tuple[str, int, int]
) -> None:
    file = write_snapshot(tmp_path / "a.snapshot", [row])
    with pytest.raises(StageError, match="class or role that it does not name") as told:
        read_snapshot(file)
    assert str(file) in str(told.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"none\.snapshot cannot be read: .*No such file"):
        read_snapshot(tmp_path / "none.snapshot")


def test_a_header_may_say_more_than_is_read(file: Path) -> None:
    head, _, body = file.read_bytes().partition(b"\n")
    file.write_bytes(json.dumps({**json.loads(head), "note": "of a later version"}).encode() + b"\n" + body)
    assert len(read_snapshot(file).shas) == 3
