"""Decoding once, for ever: what the cache holds, what a later snapshot adds, what a kill leaves."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline import pixels
from pipeline.pixels import CHUNK, Pixels, read_pixels
from policies.job import StageError

Row = tuple[str, int, int]
Run = Callable[..., dict[str, Any]]
CLASSES = ["cat", "dog"]
SIZE = (8, 6)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def rows(store: Path, keep: Any, encode: Any) -> Callable[..., list[Row]]:
    """Stores so many images of noise, from this seed on, and gives their rows of a snapshot."""

    def make(number: int, seed: int = 0) -> list[Row]:
        made = []
        for index in range(seed, seed + number):
            image = np.random.default_rng(index).integers(0, 256, (9, 12, 3), dtype=np.uint8)
            made.append((keep(store, encode(image)), index % 2, index % 3))
        return made

    return make


@pytest.fixture
def inputs(tmp_path: Path, store: Path, write_snapshot: Any) -> Callable[..., dict[str, Any]]:
    """The stage's inputs for a snapshot of these rows."""

    def order(content: list[Row], name: str = "one", **more: Any) -> dict[str, Any]:
        file = write_snapshot(tmp_path / f"{name}.snapshot", content, CLASSES)
        place = {"snapshot": str(file), "store": str(store), "cache": str(tmp_path / "cache")}
        return {**place, "height": SIZE[0], "width": SIZE[1], "resize": "stretch", "threads": 2, **more}

    return order


@pytest.fixture
def run(inputs: Callable[..., dict[str, Any]], said: Any) -> Run:
    return lambda content, name="one", **more: pixels.run(inputs(content, name, **more), {}, said)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The cache of this size."""
    return tmp_path / "cache" / "8x6-stretch"


def by_pillow(store: Path, sha: str, resize: str = "stretch") -> NDArray[np.uint8]:
    with Image.open(store / sha[:2] / sha) as image:
        if resize == "crop":
            return np.asarray(ImageOps.fit(image, (SIZE[1], SIZE[0]), Image.Resampling.BILINEAR))
        return np.asarray(image.resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR))


def assert_right(outputs: dict[str, Any], store: Path, content: list[Row], resize: str = "stretch") -> Pixels:
    """Every sample of the snapshot is there with its pixels, class and role."""
    found = read_pixels(Path(outputs["pixels"]))
    wanted = sorted(content)
    assert [sha.tobytes().hex() for sha in found.shas] == [row[0] for row in wanted]
    assert found.labels.tolist() == [row[1] for row in wanted]
    assert found.roles.tolist() == [row[2] for row in wanted]
    images = found.take(np.arange(len(wanted)))
    for image, row in zip(images, wanted, strict=True):
        assert np.array_equal(image, by_pillow(store, row[0], resize))
    return found


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_every_sample_has_its_pixels(run: Run, rows: Any, store: Path, said: Any, resize: str) -> None:
    content = rows(20)
    outputs = run(content, resize=resize)
    assert (outputs["samples"], outputs["decoded"]) == (20, 20)
    found = assert_right(outputs, store, content, resize)
    assert (found.snapshot, found.resize, found.classes) == ("one", resize, ("cat", "dog"))
    assert said[-1][:3] == (20, 20, "image")


def test_the_arrays_are_mapped_not_read(run: Run, rows: Any) -> None:
    found = read_pixels(Path(run(rows(4))["pixels"]))
    (array,) = found.images
    assert isinstance(array, np.memmap)
    assert (array.dtype, array.shape) == (np.uint8, (4, *SIZE, 3))


def test_samples_are_selected_by_role(run: Run, rows: Any) -> None:
    found = read_pixels(Path(run(rows(9))["pixels"]))
    for number, role in enumerate(("train", "tune", "judge")):
        assert found.select(role).tolist() == [at for at in range(9) if found.roles[at] == number]
        assert len(found.select(role)) == 3


def test_a_later_snapshot_decodes_only_what_is_new(run: Run, rows: Any, store: Path, folder: Path) -> None:
    first, later = rows(7), rows(5, seed=100)
    run(first)
    before = (folder / "0.npy").stat()
    for sha, _, _ in first:  # they could not be decoded again
        (store / sha[:2] / sha).rename(store / sha)
    outputs = run([*first[2:], *later], "two")
    assert (outputs["samples"], outputs["decoded"]) == (10, 5)
    after = (folder / "0.npy").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    for sha, _, _ in first:
        (store / sha).rename(store / sha[:2] / sha)
    assert_right(outputs, store, [*first[2:], *later])
    assert_right({"pixels": folder / "one.npz"}, store, first)  # the earlier index still holds


def test_a_snapshot_of_known_samples_decodes_nothing(run: Run, rows: Any, store: Path, folder: Path) -> None:
    content = rows(6)
    run(content)
    relabelled = [(sha, 1 - label, role) for sha, label, role in content[:4]]
    outputs = run(relabelled, "two")
    assert outputs["decoded"] == 0
    assert_right(outputs, store, relabelled)
    assert len(list(folder.glob("*.npy"))) == 1


def test_what_a_reference_leads_to_is_hashed_again(run: Run, rows: Any, store: Path, tmp_path: Path) -> None:
    content = rows(3)
    originals = []
    for sha, _, _ in content:  # as a store that keeps references has them
        original = (store / sha[:2] / sha).rename(tmp_path / f"{sha}.png")
        (store / sha[:2] / sha).symlink_to(original)
        originals.append(original)
    assert run(content)["decoded"] == 3
    other = rows(1, seed=50)[0][0]
    originals[1].write_bytes((store / other[:2] / other).read_bytes())
    with pytest.raises(StageError, match="has other content now"):
        run(content, "two", resize="crop")


def test_another_size_or_method_is_decoded_apart(run: Run, rows: Any, tmp_path: Path) -> None:
    content = rows(3)
    run(content)
    for more in ({"height": 10}, {"resize": "crop"}):
        assert run(content, **more)["decoded"] == 3
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"8x6-stretch", "10x6-stretch", "8x6-crop"}


def test_images_are_taken_in_any_order_from_any_shard(run: Run, rows: Any, store: Path) -> None:
    first, later = rows(5), rows(5, seed=50)
    run(first)
    content = sorted([*first, *later])
    found = read_pixels(Path(run(content, "two")["pixels"]))
    assert len(found.images) == 2
    asked = np.array([9, 0, 3, 3, 7, 1])
    for image, at in zip(found.take(asked), asked, strict=True):
        assert np.array_equal(image, by_pillow(store, content[at][0]))


def test_what_is_taken_is_a_copy(run: Run, rows: Any, store: Path) -> None:
    content = sorted(rows(3))
    found = read_pixels(Path(run(content)["pixels"]))
    found.take(np.array([0, 1]))[:] = 0
    assert np.array_equal(found.take(np.array([0]))[0], by_pillow(store, content[0][0]))


def test_more_than_a_chunk_keeps_its_order(run: Run, rows: Any, store: Path) -> None:
    content = rows(CHUNK + 3)
    assert_right(run(content), store, content)


def test_a_snapshot_without_samples_is_no_error(run: Run) -> None:
    outputs = run([])
    assert (outputs["samples"], outputs["decoded"]) == (0, 0)
    assert len(read_pixels(Path(outputs["pixels"])).select("train")) == 0


@pytest.fixture
def held(store: Path) -> Iterator[Callable[[str], Callable[[], bool]]]:
    """Makes reading a sample wait; the function that it gives says whether someone has come to read it."""
    opened: list[int] = []

    def hold(sha: str) -> Callable[[], bool]:
        place = store / sha[:2] / sha
        place.rename(store / "aside")
        os.mkfifo(place)

        def read() -> bool:
            try:
                opened.append(os.open(place, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:  # nobody reads yet
                return False
            return True

        return read

    yield hold
    for descriptor in opened:
        os.close(descriptor)


@pytest.mark.parametrize("earlier", [0, 5])
def test_a_kill_while_decoding_leaves_what_the_next_run_completes(
    run: Run, rows: Any, inputs: Any, start: Any, held: Any, store: Path, folder: Path, earlier: int
) -> None:
    before = rows(earlier, seed=1000)
    if before:
        run(before, "before")
    content = [*before, *rows(CHUNK + 20)]
    last = max(set(content) - set(before))  # in the second part: the first is in the array by then
    reading = held(last[0])
    child = start({"pixels": inputs(content)})
    child.until(reading)
    ended = child.stop(signal.SIGKILL)
    assert (ended.status, ended.lines[-1]["event"]) == (-signal.SIGKILL, "started")
    assert len(list(folder.glob(".*.npy.tmp"))) == 1
    (store / "aside").replace(store / last[0][:2] / last[0])
    outputs = run(content)
    assert outputs["decoded"] == CHUNK + 20
    assert_right(outputs, store, content)
    assert not list(folder.glob(".*.tmp"))


def test_an_array_whose_samples_were_not_yet_named_is_written_anew(
    run: Run, rows: Any, store: Path, folder: Path
) -> None:
    content = rows(6)
    run(content)
    (folder / "0.json").unlink()
    (folder / "0.npy").write_bytes(b"\0" * 10)
    outputs = run(content)
    assert outputs["decoded"] == 6
    assert_right(outputs, store, content)


def test_a_damaged_array_is_mended_by_running_again(run: Run, rows: Any, store: Path, folder: Path) -> None:
    content = rows(6)
    run(content)
    data = (folder / "0.npy").read_bytes()
    (folder / "0.npy").write_bytes(data[: len(data) // 2])
    with pytest.raises(StageError, match="run the pixels stage again"):
        read_pixels(folder / "one.npz")
    assert_right(run(content), store, content)


def test_an_array_that_was_lost_leaves_its_number_to_older_indexes(
    inputs: Callable[..., dict[str, Any]], run: Run, rows: Any, store: Path, folder: Path
) -> None:
    """Else an index of before would find other images under its labels."""
    run(rows(6))
    for file in (*folder.glob("*.npy"), *folder.glob("*.json")):
        file.unlink()
    run(rows(9))
    assert [file.name for file in folder.glob("*.npy")] == ["1.npy"]


@pytest.mark.parametrize("content", [None, b"text"])
def test_a_sample_that_cannot_be_used_is_named_and_nothing_counts_as_whole(
    run: Run, rows: Any, store: Path, folder: Path, content: bytes | None
) -> None:
    all_rows = rows(5)
    place = store / all_rows[2][0][:2] / all_rows[2][0]
    data = place.read_bytes()
    if content is None:
        place.unlink()
    else:
        place.write_bytes(content)
    with pytest.raises(StageError, match=all_rows[2][0]):
        run(all_rows)
    assert not list(folder.glob("*.json")) and not list(folder.glob("*.npz"))
    place.write_bytes(data)
    assert_right(run(all_rows), store, all_rows)


@pytest.mark.parametrize("damage", ["missing", "text", "cut", "shard missing", "shard cut"])
def test_an_index_that_cannot_be_read_is_told_with_its_name(run: Run, rows: Any, folder: Path, damage: str) -> None:
    index = Path(run(rows(5))["pixels"])
    file = folder / "0.npy" if damage.startswith("shard") else index
    data = file.read_bytes()
    file.unlink()
    if damage == "text":
        file.write_bytes(b"text")
    elif damage.endswith("cut"):
        file.write_bytes(data[: len(data) // 2])
    with pytest.raises(StageError) as told:
        read_pixels(index)
    assert str(index) in str(told.value)


def test_one_run_at_a_time_writes_a_cache(
    run: Run, rows: Any, store: Path, folder: Path, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    content = rows(5)
    run(content, cache=str(tmp_path / "other"))
    folder.mkdir(parents=True)
    outputs: dict[str, Any] = {}
    locks = Path("/proc/locks")
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        inode = f":{os.fstat(lock.fileno()).st_ino} "
        second = threading.Thread(target=lambda: outputs.update(run(content)))
        second.start()
        eventually(lambda: any("->" in line and inode in line for line in locks.read_text().splitlines()))
        for name in ("0.npy", "0.json"):  # what the first one made meanwhile
            shutil.copy(tmp_path / "other" / folder.name / name, folder / name)
    second.join(60)
    assert outputs["decoded"] == 0
    assert_right(outputs, store, content)


def test_the_names_of_the_rows_are_plain_json(run: Run, rows: Any, folder: Path) -> None:
    content = rows(5)
    run(content)
    assert json.loads((folder / "0.json").read_text())["shas"] == sorted(row[0] for row in content)
