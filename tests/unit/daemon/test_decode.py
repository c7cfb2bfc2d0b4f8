"""The reading child on good and on odd files."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from daemon.decode import read_files
from daemon.store import UNWRITABLE, SourceUnreadable, StoreUnwritable

CHECKOUT = Path(__file__).resolve().parents[3]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises an image of this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.fixture(autouse=True)
def _as_in_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as `main` does: the job's limit counts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    (made / "a").mkdir(parents=True)
    return made


@pytest.fixture
def job(tmp_path: Path, folder: Path) -> Callable[..., dict[str, Any]]:
    def of(*paths: str, batch: int = 128, megapixels: float = 100.0) -> dict[str, Any]:
        return {
            "token": "t1",
            "store": str(tmp_path / "store"),
            "keep": "copy",
            "part": 0,
            "at": str(tmp_path / "at"),
            "pictures": str(tmp_path / "pictures"),
            "folder": str(folder),
            "files": list(paths),
            "max_pixels": megapixels * 1e6,
            "batch": batch,
        }

    return of


def told(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {file["path"]: file for files in read_files(job) for file in files}


def stored(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "store").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", "png"), ("L", "png"), ("RGBA", "png"), ("P", "png"), ("1", "png"), ("I;16", "png"), ("RGB", "jpg"),
     ("CMYK", "jpg"), ("RGB", "webp"), ("RGB", "bmp"), ("RGB", "tif"), ("P", "gif")],
)  # fmt: skip
def test_an_image_is_hashed_stored_and_described(
    job: Callable[..., Any], folder: Path, tmp_path: Path, mode: str, suffix: str
) -> None:
    file = folder / "a" / f"x.{suffix}"
    Image.new(mode, (7, 5)).save(file)
    said = told(job(f"a/x.{suffix}"))[f"a/x.{suffix}"]
    content = file.read_bytes()
    found = file.stat()
    assert said == {
        "path": f"a/x.{suffix}",
        "size": len(content),
        "mtime_ns": found.st_mtime_ns,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "width": 7,
        "height": 5,
        "mode": said["mode"],
        "frames": 1,
    }
    assert stored(tmp_path) == {said["sha256"]}


ODD: dict[str, tuple[Callable[[Path, bytes], object], str]] = {
    "truncated.png": (lambda file, image: file.write_bytes(image[: len(image) // 2]), "cannot be decoded: "),
    "cut-header.png": (lambda file, image: file.write_bytes(image[:20]), "cannot be decoded|no image that can be"),
    "text.png": (lambda file, image: file.write_text("this is text"), "is no image that can be recognised"),
    "zeros.jpg": (lambda file, image: file.write_bytes(bytes(5000)), "is no image that can be recognised"),
    "empty.png": (lambda file, image: file.touch(), "is empty"),
    "pipe.png": (lambda file, image: os.mkfifo(file), "is no regular file"),
    "folder": (
        lambda file, image: file.symlink_to(file.parent),
        "is a link to a folder that holds it, or behind another link",
    ),
    "out.png": (lambda file, image: file.symlink_to("/etc/hostname"), "is a link out of the watched folder, to /etc"),
    "huge.png": (
        lambda file, image: file.write_bytes(png_that_claims(60_000, 60_000)),
        r"has 3600 megapixels, more than watch\.max_megapixels = 100",
    ),
    "bad-crc.png": (
        lambda file, image: file.write_bytes(image[:45] + bytes([image[45] ^ 255]) + image[46:]),
        "cannot be decoded: ",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_cannot_be_used_is_said_with_its_reason(
    job: Callable[..., Any], folder: Path, tmp_path: Path, png: Callable[..., Path], name: str
) -> None:
    image = png(tmp_path / "image.png", 3, (64, 64)).read_bytes()
    make, reason = ODD[name]
    make(folder / "a" / name, image)
    said = told(job(f"a/{name}"))[f"a/{name}"]
    assert "sha256" not in said
    assert any(part in said["reason"].replace("\\", "") for part in reason.replace("\\", "").split("|"))
    found = (folder / "a" / name).stat()
    assert (said["size"], said["mtime_ns"]) == (found.st_size, found.st_mtime_ns)
    assert stored(tmp_path) == set()


def test_what_training_could_not_convert_is_refused(
    job: Callable[..., Any], folder: Path, png: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Pillow says of its mode La."""

    def refuse(image: Image.Image, mode: str) -> None:
        raise ValueError(f"conversion from La to {mode} not supported")

    png(folder / "a" / "x.png")
    monkeypatch.setattr("daemon.decode.USUAL", ())
    monkeypatch.setattr(Image.Image, "convert", refuse)
    assert told(job("a/x.png"))["a/x.png"]["reason"] == "cannot be decoded: conversion from La to RGB not supported"


def test_what_takes_more_memory_than_a_reader_may_have_is_refused(
    job: Callable[..., Any], folder: Path, png: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def starve(image: Image.Image, mode: str) -> None:
        raise MemoryError

    png(folder / "a" / "x.png")
    monkeypatch.setattr(Image.Image, "convert", starve)
    assert told(job("a/x.png"))["a/x.png"]["reason"] == "takes more memory to decode than a reader may have"


def test_what_may_pass_is_tried_again_by_the_next_scan(
    job: Callable[..., Any], folder: Path, png: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a network file system that was away for a moment."""

    def fail(original: int, size: int) -> None:
        raise SourceUnreadable("cannot be read: Stale file handle")

    png(folder / "a" / "x.png")
    monkeypatch.setattr("daemon.store.read_few", fail)
    said = told(job("a/x.png"))["a/x.png"]
    assert said == {"path": "a/x.png", "size": -1, "mtime_ns": -1, "reason": "cannot be read: Stale file handle"}


def test_a_copy_that_cannot_be_read_back_is_no_fault_of_the_file(
    job: Callable[..., Any], folder: Path, tmp_path: Path, png: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a disk that fails: a large copy whose first bytes are an error (EIO), which the kernel says of this one."""

    def lose(original: int, temporary: Path) -> tuple[str, int]:
        temporary.symlink_to("/proc/self/mem")
        return 64 * "0", 9

    png(folder / "a" / "x.png")
    monkeypatch.setattr("daemon.store.FEW_BYTES", 10)
    monkeypatch.setattr("daemon.store.copy_large", lose)
    with pytest.raises(StoreUnwritable, match="Input/output error"):
        told(job("a/x.png"))
    assert list((tmp_path / "store" / "incoming").iterdir()) == []


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # as the child does
@pytest.mark.parametrize("few", [10, 16 << 20])
def test_a_place_that_no_file_has_is_the_files_own_fault(
    job: Callable[..., Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """In memory and beyond what is kept there: the kernel refuses to go there with an error of its own (EINVAL)."""
    (folder / "a" / "x.tif").write_bytes(b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**63 - 1))
    monkeypatch.setattr("daemon.store.FEW_BYTES", few)
    assert "sha256" not in told(job("a/x.tif"))["a/x.tif"]
    assert stored(tmp_path) == set()


def test_one_larger_than_the_free_disk_waits_and_the_others_do_not(
    job: Callable[..., Any], folder: Path, png: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    png(folder / "1.png", 1)
    (folder / "large.png").write_bytes(bytes(2_000_000))
    monkeypatch.setattr("daemon.store.FEW_BYTES", 1_000_000)
    monkeypatch.setattr("daemon.decode.shutil.disk_usage", lambda _: SimpleNamespace(free=1_400_000))
    found = told(job("large.png", "1.png"))
    assert found["large.png"]["reason"] == "takes 2 MB, and 1 MB are free where the store lies"
    assert (found["large.png"]["size"], found["large.png"]["mtime_ns"]) == (-1, -1)  # the next scan tries it
    assert "sha256" in found["1.png"]


def test_a_file_that_is_gone_is_said_to_be_gone(job: Callable[..., Any], folder: Path) -> None:
    (folder / "a" / "file").touch()
    said = told(job("a/never.png", "b/never.png", "a/file/never.png"))
    assert all(one == {"path": path, "gone": True} for path, one in said.items())


def test_a_link_inside_the_folder_is_read(
    job: Callable[..., Any], folder: Path, png: Callable[..., Path], tmp_path: Path
) -> None:
    png(folder / "a" / "x.png")
    (folder / "a" / "y.png").symlink_to("x.png")
    said = told(job("a/x.png", "a/y.png"))
    assert said["a/x.png"]["sha256"] == said["a/y.png"]["sha256"]
    assert len(stored(tmp_path)) == 1


def test_what_lies_behind_a_link_out_of_the_folder_is_not_read(
    job: Callable[..., Any], folder: Path, png: Callable[..., Path], tmp_path: Path
) -> None:
    png(tmp_path / "elsewhere" / "x.png")
    (folder / "a").mkdir(exist_ok=True)
    (folder / "a" / "out").symlink_to(tmp_path / "elsewhere")
    (said,) = told(job("a/out/x.png")).values()
    assert "is a link out of the watched folder" in said["reason"]
    assert not stored(tmp_path)


def test_a_folder_that_becomes_a_link_out_is_not_read_on(
    job: Callable[..., Any], folder: Path, png: Callable[..., Path], tmp_path: Path
) -> None:
    """It is held while one batch is read, and never longer: its files would lie elsewhere by then."""
    for index in range(4):
        png(folder / "a" / f"{index}.png", index)
    reading = read_files(job(*(f"a/{index}.png" for index in range(4)), batch=1))
    next(reading)
    (folder / "a").rename(tmp_path / "elsewhere")
    (folder / "a").symlink_to(tmp_path / "elsewhere")
    rest = [file for files in reading for file in files]
    assert "is a link out of the watched folder" in rest[-1]["reason"]


def test_what_is_still_being_written_is_looked_at_again(
    job: Callable[..., Any],
    folder: Path,
    tmp_path: Path,
    png: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from daemon import store

    file = png(folder / "a" / "x.png")
    read_few = store.read_few

    def read_while_written(original: int, size: int) -> bytes | None:
        content = read_few(original, size)
        with file.open("ab") as stream:  # the writer goes on meanwhile
            stream.write(b"more")
        return content

    monkeypatch.setattr(store, "read_few", read_while_written)
    assert told(job("a/x.png")) == {"a/x.png": {"path": "a/x.png", "again": True}}


def test_the_limit_of_megapixels_is_the_settings(
    job: Callable[..., Any], folder: Path, png: Callable[..., Path]
) -> None:
    png(folder / "a" / "x.png", size=(200, 100))
    assert "more than watch.max_megapixels = 0.01" in told(job("a/x.png", megapixels=0.01))["a/x.png"]["reason"]
    assert "sha256" in told(job("a/x.png", megapixels=0.02))["a/x.png"]


def as_a_child(job: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "daemon.decode"],
        input=json.dumps(str(job)),
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_child_says_a_batch_at_a_time_what_it_read(
    job: Callable[..., Any], folder: Path, tmp_path: Path, png: Callable[..., Path]
) -> None:
    for index in range(5):
        png(folder / "a" / f"{index}.png", index)
    (folder / "a" / "5.png").write_text("text")
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job(*(f"a/{index}.png" for index in range(6)), batch=2)))
    done = as_a_child(file)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["token"], line["stage"], line["event"], len(line["files"])) for line in lines] == [
        ("t1", "intake", "read", 2)
    ] * 3
    assert len(stored(tmp_path)) == 5


def test_a_store_that_cannot_be_written_ends_the_child(
    job: Callable[..., Any], folder: Path, tmp_path: Path, png: Callable[..., Path]
) -> None:
    png(folder / "a" / "x.png")
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(StoreUnwritable, match="store"):
        told(job("a/x.png"))


def test_it_says_by_its_status_that_the_store_takes_nothing(
    job: Callable[..., Any], folder: Path, tmp_path: Path, png: Callable[..., Path]
) -> None:
    """Not by words: a file may have any name."""
    png(folder / "a" / "x.png")
    (tmp_path / "store").write_text("a file where the folder should be")
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job("a/x.png")))
    done = as_a_child(file)
    assert done.returncode == UNWRITABLE
    assert "store" in done.stderr


def test_the_last_batches_are_small(job: Callable[..., Any]) -> None:
    """For the first of them nobody waits."""
    files = [f"a/{index}.png" for index in range(600)]
    assert [len(told) for told in read_files(job(*files, batch=1024))] == [300, 150, 128, 22]
