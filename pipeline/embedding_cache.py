"""Embeddings by one model, kept so that each image is embedded once: in chunks that are written once and never changed.

`000001.samples.npy` (uint8, (rows, 32)) names the rows of `000001.embeddings.npy` (float32, (rows, width)). Where a
sample lies is looked up in `places.000123.npy`, which knows the chunks up to that number: uint64 (2, rows), the first
eight bytes of the samples in order, and chunk and row of each. What it says is held against the names, so that it may
be old; where it is missing or too old it is made anew from them.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.durable import replacing

Embeddings = NDArray[np.float32]  # (n, width)
Keys = NDArray[np.uint64]  # (n,) first eight bytes of a SHA-256, the first one the most significant
Places = NDArray[np.int64]  # (n, 2) chunk and row; -1: there is none
SAMPLES, EMBEDDINGS = ".samples.npy", ".embeddings.npy"
CHUNKS = 32  # that are looked through one by one …
ROWS = 16_384  # … and rows in them, before they are put in order


def keys_of(samples: NDArray[np.uint8]) -> Keys:
    """Of names (n, at least 8)."""
    keys: Keys = np.ascontiguousarray(samples[:, :8]).view(">u8")[:, 0].astype(np.uint64)
    return keys


class Cache:
    """The chunks of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, samples: Sequence[bytes]) -> Places:
        """Where the embedding of each of these samples lies."""
        wanted = _table(samples)
        keys = keys_of(wanted)
        found = np.full((len(samples), 2), -1)
        covered, index = self._index()
        self._look_up(index, wanted, keys, found)
        later = [number for number in self._numbers() if number > covered]
        parts = []
        for number in later:
            part = _order(number, self._names(number))
            parts.append(part)
            self._look_up(part, wanted, keys, found)
        if len(later) > CHUNKS or sum(part.shape[1] for part in parts) > ROWS:
            self._put_in_order([*reversed(parts), index], later[-1])
        return found

    def take(self, places: Places) -> Embeddings:
        """The embeddings that lie there, (n, width), in this order; zeros where there is none."""
        taken: Embeddings | None = None
        for number in np.unique(places[places[:, 0] >= 0, 0]).tolist():
            chunk = np.load(self._file(number, EMBEDDINGS), mmap_mode="r", allow_pickle=False)
            if taken is None:
                taken = np.zeros((len(places), chunk.shape[1]), np.float32)
            here = np.flatnonzero(places[:, 0] == number)
            taken[here] = chunk[places[here, 1]]
        return np.zeros((len(places), 0), np.float32) if taken is None else taken

    def add(self, samples: Sequence[bytes], embeddings: Embeddings) -> None:
        """One more chunk; the file of its samples is written last, and says that it is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            number = max(self._numbers(), default=0) + 1
            for ending, array in ((EMBEDDINGS, embeddings), (SAMPLES, _table(samples))):
                self._write(self._file(number, ending), array)

    def _look_up(self, index: Keys, wanted: NDArray[np.uint8], keys: Keys, found: Places) -> None:
        """Writes where those lie that this index knows, once their names were read there."""
        if not index.shape[1]:
            return
        at = np.minimum(np.searchsorted(index[0], keys), index.shape[1] - 1)
        hits = np.flatnonzero(index[0][at] == keys)
        places = index[1][at[hits]]
        chunks, rows = (places >> np.uint64(32)).astype(np.int64), (places & np.uint64(2**32 - 1)).astype(np.int64)
        for number in np.unique(chunks).tolist():
            names = self._names(number)
            here = np.flatnonzero((chunks == number) & (rows < len(names)))
            here = here[(names[rows[here]] == wanted[hits[here]]).all(1)]
            found[hits[here], 0], found[hits[here], 1] = number, rows[here]

    def _names(self, number: int) -> NDArray[np.uint8]:
        try:
            names: NDArray[np.uint8] = np.load(self._file(number, SAMPLES), mmap_mode="r", allow_pickle=False)
        except (OSError, EOFError, ValueError):
            return np.zeros((0, 32), np.uint8)
        return names

    def _numbers(self) -> list[int]:
        return sorted(int(file.name.removesuffix(SAMPLES)) for file in self.folder.glob(f"[0-9]*{SAMPLES}"))

    def _file(self, number: int, ending: str) -> Path:
        return self.folder / f"{number:06}{ending}"

    def _index(self) -> tuple[int, Keys]:
        """Up to which chunk it knows them, and where each sample of those lies; nothing where it cannot be read."""
        for file in sorted(self.folder.glob("places.*.npy"), reverse=True):
            try:
                index = np.load(file, mmap_mode="r", allow_pickle=False)
            except (OSError, EOFError, ValueError):
                continue
            return int(file.name.split(".")[1]), index
        return 0, np.zeros((2, 0), np.uint64)

    def _put_in_order(self, parts: Sequence[Keys], last: int) -> None:
        """One index of all, the newest first where a sample was embedded twice."""
        joined = np.concatenate(list(parts), axis=1)
        file = self.folder / f"places.{last:06}.npy"
        with self._locked():
            self._write(file, joined[:, np.argsort(joined[0], kind="stable")])
            for older in self.folder.glob("places.*.npy"):
                if older.name < file.name:
                    older.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer a folder: two that chose the same number would mix the rows of one with the samples of another."""
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, file: Path, array: NDArray[np.generic]) -> None:
        with replacing(file) as aside, aside.open("wb") as stream:
            np.save(stream, array)


def _table(samples: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(samples), np.uint8).reshape(-1, 32)


def _order(number: int, names: NDArray[np.uint8]) -> Keys:
    """The index of one chunk."""
    keys = keys_of(names)
    order = np.argsort(keys, kind="stable")
    places = np.uint64(number << 32) | order.astype(np.uint64)
    return np.stack([keys[order], places])
