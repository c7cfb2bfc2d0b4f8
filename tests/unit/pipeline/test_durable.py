"""Files and folders that take their place in one step, and what is left when writing them fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.durable import fresh_folder, hash_file, read_json, replacing, settle, write_json
from policies.job import StageError


def test_what_was_written_takes_the_place(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with replacing(file) as aside:
        aside.write_text("new")
        assert file.read_text() == "old"
        assert aside.parent == file.parent  # a rename is one step within a folder alone
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_when_writing_raises_the_old_file_stays_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(file) as aside:
        aside.write_text("ne")
        raise ZeroDivisionError
    assert file.read_text() == "old"


def test_when_a_first_writing_raises_there_is_no_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with pytest.raises(ZeroDivisionError), replacing(file) as aside:
        aside.write_text("ne")
        raise ZeroDivisionError
    assert not file.exists()


def test_what_an_interrupted_writing_left_is_written_over(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    for text in ("left behind, and longer", "new"):
        try:
            with replacing(file) as aside:
                aside.write_text(text)
                if text != "new":
                    raise ZeroDivisionError
        except ZeroDivisionError:
            continue
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_json_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": "ü"})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert read_json(file) == {"a": "ü"}
    assert "ü" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"])
def test_json_that_cannot_be_read_is_told_with_the_name_of_the_file(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StageError) as told:
        read_json(file)
    assert str(file) in str(told.value)


def test_a_fresh_folder_is_empty_and_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")
    first = fresh_folder(folder)
    (first / "left behind").write_text("x")
    second = fresh_folder(folder)
    assert list(second.iterdir()) == []
    assert (folder / "old").read_text() == "old"
    assert second.parent == folder.parent


def test_a_fresh_folder_makes_those_above_it(tmp_path: Path) -> None:
    assert fresh_folder(tmp_path / "a" / "b").is_dir()


def test_a_settled_folder_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in ("old", "new"):
        aside = fresh_folder(folder)
        (aside / name).write_text(name)
        settle(aside, folder)
    assert [file.name for file in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


def test_the_hash_is_sha_256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
