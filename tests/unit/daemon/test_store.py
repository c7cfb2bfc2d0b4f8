"""The store: a copy named by its hash, kept once, that no edit of the original reaches."""

from __future__ import annotations

import errno
import fcntl
import hashlib
from pathlib import Path

import pytest

from daemon import store
from daemon.store import SourceUnreadable, StoreUnwritable, place, settle


@pytest.fixture
def keep(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    (folder / "incoming").mkdir(parents=True)
    return folder


@pytest.fixture(autouse=True, params=["small", "large"])
def _many_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are held in memory, and those that are too large for it."""
    if request.param == "large":
        monkeypatch.setattr(store, "FEW_BYTES", 0)


def bring(keep: Path, *sources: Path) -> str:
    """As the reading child takes files in, in one batch; the hash of the last."""
    large, sha256 = {}, ""
    for number, source in enumerate(sources):
        with source.open("rb") as original:
            content = store.read_few(original.fileno(), source.stat().st_size)
            if content is None:
                temporary = store.incoming(keep, number)
                sha256, size = store.copy_large(original.fileno(), temporary)
                large[temporary] = sha256
            else:
                sha256, size = hashlib.sha256(content).hexdigest(), len(content)
                store.keep(keep, content, sha256)
        assert size == source.stat().st_size
    settle(keep, large)
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
        shas.add(bring(keep, source))
    (sha256,) = shas
    place(keep, sha256).write_bytes(b"damaged")
    bring(keep, tmp_path / "0.png")
    assert place(keep, sha256).read_bytes() == b"the same"
    assert len([path for path in keep.rglob("*") if path.is_file()]) == 1


def test_twins_in_one_batch_are_kept_once(keep: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"the same")
    bring(keep, tmp_path / "a.png", tmp_path / "a.png")
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


def test_a_store_of_references_holds_links_to_what_is_there(keep: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    one.write_bytes(b"content")
    other.write_bytes(b"content")
    sha256 = hashlib.sha256(b"content").hexdigest()
    store.refer(keep, {one: sha256})
    assert place(keep, sha256).readlink() == one
    store.refer(keep, {other: sha256})
    assert place(keep, sha256).readlink() == one  # it still holds what it should
    one.write_bytes(b"CONTENT")
    store.refer(keep, {other: sha256})
    assert place(keep, sha256).readlink() == other


def test_nothing_to_settle_is_no_error(keep: Path) -> None:
    settle(keep, {})
    assert list((keep / "incoming").iterdir()) == []


def test_a_source_that_cannot_be_read_is_told_apart_from_a_full_store(keep: Path) -> None:
    with (
        Path("/proc/self/mem").open("rb") as original,  # its first page is mapped nowhere
        pytest.raises(SourceUnreadable, match="cannot be read: Input/output error"),
    ):
        if store.read_few(original.fileno(), 1) is None:
            store.copy_large(original.fileno(), store.incoming(keep, 0))


def test_a_store_that_takes_nothing_is_no_fault_of_the_file(keep: Path, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"content")
    (tmp_path / "away").touch()
    with (tmp_path / "image.png").open("rb") as original, pytest.raises(StoreUnwritable, match="away"):
        store.copy_large(original.fileno(), keep / "away" / "0")
    with pytest.raises(StoreUnwritable, match="away"):
        store.keep(tmp_path / "away", b"content", "00" * 32)
    with pytest.raises(StoreUnwritable, match="away"):
        settle(keep, {keep / "away" / "0": "00" * 32})
