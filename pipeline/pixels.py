"""Decodes each image once, ever, per input size: memory-mapped uint8 arrays that all later stages read.

`<cache>/<H>x<W>-<resize>/` holds append-only shards: `<n>.npy` (uint8, (rows, H, W, 3)) and `<n>.json`, written last,
with the samples of its rows. A snapshot adds one shard with the samples that no older shard holds, and gets an index
`<snapshot id>.npz` of where each of its samples lies.
"""

from __future__ import annotations

import fcntl
import hashlib
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.durable import read_json, replacing, write_json
from pipeline.images import Resize, Size, decode
from pipeline.snapshot import Snapshot, read_snapshot
from policies.facts import ROLES, Role
from policies.job import Outputs, Report, StageError

CHUNK = 128  # images decoded between two looks at the clock
Place = tuple[int, int]  # (shard, row)


@dataclass(frozen=True)
class Pixels:
    """N decoded samples of a snapshot; `images` holds one array uint8 (rows, H, W, 3) a shard."""

    snapshot: str
    resize: str
    classes: tuple[str, ...]
    shas: NDArray[np.uint8]  # (N, 32)
    labels: NDArray[np.int32]  # (N,) index into classes
    roles: NDArray[np.uint8]  # (N,) index into policies.facts.ROLES
    shard: NDArray[np.int32]  # (N,)
    row: NDArray[np.int64]  # (N,)
    images: list[NDArray[np.uint8]]

    def select(self, role: Role) -> NDArray[np.int64]:
        """The numbers of the samples of this role."""
        return np.flatnonzero(self.roles == ROLES.index(role))

    def take(self, samples: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Their images, uint8 (n, H, W, 3), copied into memory."""
        shards, rows = self.shard[samples], self.row[samples]
        if len(self.images) == 1:
            return np.take(self.images[0], rows, axis=0)
        taken = np.empty((len(samples), *self.images[0].shape[1:]), np.uint8)
        for number in np.unique(shards):
            here = shards == number
            taken[here] = self.images[number][rows[here]]
        return taken


def read_pixels(index: Path) -> Pixels:
    """Reads the index and maps its arrays. Raises StageError, naming the file, where one cannot be read."""
    arrays: dict[str, Any]
    try:
        with np.load(index, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return Pixels(
            snapshot=str(arrays["snapshot"]),
            resize=str(arrays["resize"]),
            classes=tuple(str(name) for name in arrays["classes"]),
            shas=arrays["sha"],
            labels=arrays["label"],
            roles=arrays["role"],
            shard=arrays["shard"],
            row=arrays["row"],
            images=[np.load(index.parent / str(name), mmap_mode="r", allow_pickle=False) for name in arrays["shards"]],
        )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StageError(
            f"the decoded images of {index} cannot be read ({error}); run the pixels stage again"
        ) from error


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """The stage: decodes what is new in the snapshot and writes its index."""
    started = time.monotonic()
    if inputs.get("preload"):
        preload_training()
    snapshot = read_snapshot(Path(inputs["snapshot"]))
    size, resize = (int(inputs["height"]), int(inputs["width"])), inputs["resize"]
    folder = Path(inputs["cache"]) / f"{size[0]}x{size[1]}-{resize}"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        shards = _read_shards(folder, size)
        new = _missing(snapshot, shards)
        if new:
            number = _next_number(folder)
            shards[number] = new
            _write_shard(folder, number, new, Path(inputs["store"]), size, resize, inputs["threads"], report)
        index = folder / f"{snapshot.id}.npz"
        _write_index(index, snapshot, shards, resize)
    seconds = time.monotonic() - started
    return {"pixels": str(index), "samples": len(snapshot.shas), "decoded": len(new), "seconds": seconds}


def preload_training() -> None:
    """Starts importing torch and what else training needs: seconds, in which this stage decodes.

    Nothing here may import any of it meanwhile. The import of pipeline.train that comes next waits for this one.
    """

    def load() -> None:
        import pipeline.train  # noqa: F401

    threading.Thread(target=load, daemon=True).start()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer a folder: a child that was given up may still be ending while the next one starts."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_shards(folder: Path, size: Size) -> dict[int, list[str]]:
    """The samples (hex) of each whole shard, in the order of its rows; a damaged one is decoded anew."""
    found = {int(file.stem): read_json(file)["shas"] for file in folder.glob("*.json")}
    return {number: shas for number, shas in sorted(found.items()) if _is_whole(folder, number, len(shas), size)}


def _next_number(folder: Path) -> int:
    """Past all that ever were: an older index may still name one that was lost."""
    numbers = [int(file.stem) for file in folder.glob("*.json")]
    for index in folder.glob("*.npz"):
        with (
            suppress(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile),
            np.load(index, allow_pickle=False) as stored,
        ):
            numbers += [int(Path(str(name)).stem) for name in stored["shards"]]
    return max(numbers, default=-1) + 1


def _is_whole(folder: Path, number: int, rows: int, size: Size) -> bool:
    try:
        images = np.load(folder / f"{number}.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return False
    return bool(images.shape == (rows, *size, 3) and images.dtype == np.uint8)


def _missing(snapshot: Snapshot, shards: Mapping[int, Sequence[str]]) -> list[str]:
    known = {sha for shas in shards.values() for sha in shas}
    return [name for sha in snapshot.shas if (name := sha.tobytes().hex()) not in known]


def _write_shard(
    folder: Path,
    number: int,
    shas: Sequence[str],
    store: Path,
    size: Size,
    resize: Resize,
    threads: int,
    report: Report,
) -> None:
    with replacing(folder / f"{number}.npy") as aside:
        array = np.lib.format.open_memmap(aside, "w+", np.uint8, (len(shas), *size, 3))
        row, told = 0, time.monotonic()
        for images in decode_all(store, shas, size, resize, threads):
            array[row : row + len(images)] = images
            row += len(images)
            if time.monotonic() - told > 0.5 or row == len(shas):
                report(row, len(shas), "image")
                told = time.monotonic()
        array.flush()
        del array
    write_json(folder / f"{number}.json", {"shas": list(shas)})


def decode_all(
    store: Path, shas: Sequence[str], size: Size, resize: Resize, threads: int
) -> Iterator[NDArray[np.uint8]]:
    """The stored samples as uint8 (n, H, W, 3), some at a time, in their order.

    Raises StageError, naming the sample, where one is not in the store or cannot be decoded.
    """

    def read(sha: str) -> NDArray[np.uint8]:
        file = store / sha[:2] / sha
        try:
            data = file.read_bytes()
            if file.is_symlink() and hashlib.sha256(data).hexdigest() != sha:  # the store keeps references
                raise StageError(f"{file.readlink()} has other content now")
            return decode(data, size, resize)
        except (OSError, StageError) as error:
            what = f"the sample {sha} in the store {store} cannot be used: {error}"
            raise StageError(f"{what}; if its file is in its folder still, that is read again", sample=sha) from error

    names = iter(shas)
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        while chunk := list(islice(names, CHUNK)):
            yield np.stack(list(pool.map(read, chunk)))


def _write_index(index: Path, snapshot: Snapshot, shards: Mapping[int, Sequence[str]], resize: str) -> None:
    numbers = list(shards)
    place: dict[str, Place] = {
        sha: (at, row) for at, number in enumerate(numbers) for row, sha in enumerate(shards[number])
    }
    found = [place[sha.tobytes().hex()] for sha in snapshot.shas]
    places = np.array(found, np.int64).reshape(-1, 2)
    with replacing(index) as aside, aside.open("wb") as file:
        np.savez(
            file,
            snapshot=np.array(snapshot.id),
            resize=np.array(resize),
            classes=np.array(snapshot.classes, dtype=np.str_),
            sha=snapshot.shas,
            label=snapshot.labels,
            role=snapshot.roles,
            shard=places[:, 0].astype(np.int32),
            row=places[:, 1],
            shards=np.array([f"{number}.npy" for number in numbers], dtype=np.str_),
        )
