"""The store: a copy named by its hash, kept once, that no edit of the original reaches."""

from __future__ import annotations

import errno
import fcntl
import hashlib
from pathlib import Path

import pytest

from daemon import store
from daemon.store import SourceUnreadable, StoreUnwritable, copy_in, place, settle


@pytest.fixture
def keep(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    (folder / "incoming").mkdir(parents=True)
    return folder


def bring(keep: Path, source: Path, name: str = "0") -> str:
    temporary = keep / "incoming" / name
    with source.open("rb") as original:
        sha256, size, _ = copy_in(original, temporary)
    assert size == source.stat().st_size
    settle(keep, {temporary: sha256})
    return sha256


@pytest.mark.parametrize("content", [b"x", b"many bytes " * 300_000])
def test_a_copy_is_named_by_its_hash(keep: Path, tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "image.png"
    source.write_bytes(content)
    sha256 = bring(keep, source)
    assert sha256 == hashlib.sha256(content).hexdigest()
    copy = place(keep, sha256)
    assert copy == keep / sha256[:2] / sha256
    assert copy.read_bytes() == content


def test_the_same_content_is_kept_once(keep: Path, tmp_path: Path) -> None:
    shas = set()
    for index in range(3):
        source = tmp_path / f"{index}.png"
        source.write_bytes(b"the same")
        shas.add(bring(keep, source, str(index)))
    (sha256,) = shas
    place(keep, sha256).write_bytes(b"damaged")
    bring(keep, tmp_path / "0.png", "again")
    assert place(keep, sha256).read_bytes() == b"the same"
    assert len([path for path in keep.rglob("*") if path.is_file()]) == 1


def test_twins_in_one_batch_are_kept_once(keep: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"the same")
    copies = {}
    for name in ("0", "1"):
        temporary = keep / "incoming" / name
        with (tmp_path / "a.png").open("rb") as original:
            copies[temporary], _, _ = copy_in(original, temporary)
    settle(keep, copies)
    assert len([path for path in keep.rglob("*") if path.is_file()]) == 1


@pytest.mark.parametrize("reflink", [True, False])
def test_an_edit_in_place_leaves_the_copy(
    keep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reflink: bool
) -> None:
    """With a reflink where this file system has it, and with plain bytes, as on most."""
    if not reflink:
        monkeypatch.setattr(store, "_FICLONE", 0)  # an ioctl that no file system knows
    source = tmp_path / "image.png"
    source.write_bytes(b"before")
    copy = place(keep, bring(keep, source))
    assert copy.stat().st_nlink == source.stat().st_nlink == 1
    assert copy.stat().st_ino != source.stat().st_ino
    with source.open("r+b") as stream:
        stream.write(b"AFTER!")
    assert copy.read_bytes() == b"before"


def test_a_read_only_original_is_copied_and_not_touched(keep: Path, tmp_path: Path) -> None:
    source = tmp_path / "image.png"
    source.write_bytes(b"content")
    source.chmod(0o444)
    before = source.stat()
    bring(keep, source)
    after = source.stat()
    assert (before.st_mtime_ns, before.st_ctime_ns, before.st_mode) == (
        after.st_mtime_ns,
        after.st_ctime_ns,
        after.st_mode,
    )


def test_a_reflink_is_used_where_the_file_system_has_it(keep: Path, tmp_path: Path) -> None:
    source = tmp_path / "image.png"
    source.write_bytes(b"content" * 10_000)
    with source.open("rb") as original, (tmp_path / "clone").open("wb") as clone:
        try:
            fcntl.ioctl(clone.fileno(), 0x40049409, original.fileno())
        except OSError as error:
            assert error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV)
            pytest.skip("this file system has no reflinks")
    assert place(keep, bring(keep, source)).read_bytes() == source.read_bytes()


def test_nothing_to_settle_is_no_error(keep: Path) -> None:
    settle(keep, {})
    assert list((keep / "incoming").iterdir()) == []


def test_a_source_that_cannot_be_read_is_told_apart_from_a_full_store(keep: Path) -> None:
    with (
        Path("/proc/self/mem").open("rb") as original,  # its first page is mapped nowhere
        pytest.raises(SourceUnreadable, match="cannot be read: Input/output error"),
    ):
        copy_in(original, keep / "incoming" / "0")


def test_a_store_that_takes_nothing_is_no_fault_of_the_file(keep: Path, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"content")
    with (tmp_path / "image.png").open("rb") as original, pytest.raises(StoreUnwritable, match="away"):
        copy_in(original, keep / "away" / "0")
    with pytest.raises(StoreUnwritable, match="away"):
        settle(keep, {keep / "away" / "0": "00" * 32})
