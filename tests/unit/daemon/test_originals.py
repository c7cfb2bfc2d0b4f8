"""The user's files are opened within the watched folder or not at all, wherever that lies and whatever is moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.originals import Originals, Unusable
from daemon.walk import Walk


def content(opened: int) -> bytes:
    with open(opened, "rb") as stream:
        return stream.read()


def test_a_folder_that_is_moved_out_while_it_is_held_is_not_read_on(tmp_path: Path) -> None:
    cat = tmp_path / "watched" / "cat"
    cat.mkdir(parents=True)
    for number in (1, 2):
        (cat / f"{number}.png").write_bytes(b"watched")
    originals = Originals(str(tmp_path / "watched"))
    assert content(originals.open("cat/1.png")[0]) == b"watched"
    cat.rename(tmp_path / "private")
    (tmp_path / "private" / "2.png").write_bytes(b"private")
    with pytest.raises(FileNotFoundError):
        originals.open("cat/2.png")
    cat.mkdir()
    (cat / "2.png").write_bytes(b"of another folder")
    assert content(originals.open("cat/2.png")[0]) == b"of another folder"


def test_all_of_the_file_system_may_be_watched(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"image")
    (tmp_path / "link").symlink_to("a")
    below_root = str(tmp_path)[1:]
    for path in (f"{below_root}/a/1.png", f"{below_root}/link/1.png"):
        assert content(Originals("/").open(path)[0]) == b"image"
    with pytest.raises(Unusable, match="is no regular file"):
        Originals("/").open("dev/null")
    found = Walk(Path("/")).files(tmp_path / "link")
    assert [file.path for file in found] == [f"{below_root}/link/1.png"]
