"""A file is replaced whole or not at all; names by hash; what is gone already is no error."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import durable
from tests.unit.deploy.models import names

Start = Callable[..., subprocess.Popen[str]]


def test_a_file_is_named_by_the_hash_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 5000)
    assert durable.hash_file(tmp_path / "file") == hashlib.sha256(bytes(range(256)) * 5000).hexdigest()


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    durable.write_text(file, "naïve\n")
    assert file.read_bytes() == "naïve\n".encode()
    durable.write_json(file, {"class": "ü", "n": [1, None]})
    assert json.loads(file.read_bytes()) == {"class": "ü", "n": [1, None]}
    assert "ü" in file.read_text(encoding="utf-8")
    assert names(tmp_path) == ["file.json"]


def test_who_reads_meanwhile_holds_the_old_file_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    durable.write_text(file, "old")
    with file.open() as reader:
        durable.write_text(file, "new")
        assert reader.read() == "old"
    assert file.read_text() == "new"


def spoil_aside(file: Path) -> Path | None:
    return file.parent / "missing"


def spoil_name(file: Path) -> Path | None:
    file.unlink()
    file.mkdir()  # nothing can be renamed onto it
    (file / "old").write_text("old")
    return None


@pytest.mark.parametrize("spoil", [spoil_aside, spoil_name])
def test_the_old_file_is_whole_when_writing_fails(tmp_path: Path, spoil: Callable[[Path], Path | None]) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    aside = spoil(file)
    with pytest.raises(OSError, match=r".+"):
        durable.write_text(file, "new", aside)
    assert (file / "old" if file.is_dir() else file).read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_the_old_file_is_whole_when_the_text_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        durable.write_text(file, "new \udce9")
    assert file.read_text() == "old"


def test_the_old_file_is_whole_when_the_disk_is_full(tmp_path: Path, start: Start) -> None:
    """A limit on the size of files stands for the full disk: the write ends in the middle."""
    file = tmp_path / "file"
    file.write_text("old")
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom deploy import durable\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (1000, {resource.RLIM_INFINITY}))\n"
        "try: durable.write_text(Path(sys.argv[1]), 'new' * 1000)\n"
        "except OSError as error: print(error.strerror)"
    )
    said, errors = start("-c", code, file).communicate(timeout=60)
    assert said == "File too large\n", errors
    assert file.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_the_temporary_file_lies_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, aside = tmp_path / "place", tmp_path / "aside"
    place.mkdir()
    aside.mkdir()
    seen = []
    monkeypatch.setattr(durable, "sync", lambda path: seen.append((names(place), len(names(aside)))))
    durable.write_text(place / "file", "text", aside)
    assert seen == [([], 1), (["file"], 0)]  # synced aside, then renamed, then the folder synced


def test_a_folder_moves_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "x").write_text("x")
    (tmp_path / "b").mkdir()
    durable.sync_tree(tmp_path / "a")
    durable.move(tmp_path / "a", tmp_path / "b" / "a")
    assert (tmp_path / "b" / "a" / "deep" / "x").read_text() == "x"
    assert not (tmp_path / "a").exists()
    durable.remove_tree(tmp_path / "b")
    durable.remove_tree(tmp_path / "b")  # gone already
    assert not (tmp_path / "b").exists()


def test_a_folder_never_moves_onto_another_that_holds_something(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    with pytest.raises(OSError, match="not empty"):
        durable.move(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "a").exists()
    assert (tmp_path / "b" / "b").exists()
