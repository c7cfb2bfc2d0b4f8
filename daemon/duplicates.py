"""The index of near-duplicates: finds altered copies of one image among all that were ever taken in. In a child only.

Two files in a folder, both appended to: `pictures` (the descriptors) and `codes` (what is searched, 64 bytes an image).
It is derived data: what is lost, damaged or half written is simply not there, `missing` says so, and it is added again.
One process at a time writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from daemon.copies import Descriptors, Search
from daemon.descriptor import SIZE
from daemon.likeness import CODE, Floats
from daemon.neighbours import Ints

PICTURE = np.dtype([("id", "<i8"), ("descriptor", "u1", SIZE)])
RECORD = np.dtype([("id", "<i8"), ("code", "<i2", CODE), ("spare", "<u4"), ("check", "<u4")])
UNIT = 4096.0  # steps of a stored code per 1
SEAL = 0x52454C31  # what all words of a whole record come to: neither zeros nor a torn one do
BATCH = 1 << 16  # records read at once
FEW = 1 << 12  # descriptors written at once
REMOVED = -1

Pairs = list[tuple[int, int]]


class Index:
    """The index in a folder, which is made if need be. Raises OSError where the folder cannot be read or written."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._pictures = _open(folder / "pictures", PICTURE.itemsize)
        self._codes = _open(folder / "codes", RECORD.itemsize)
        rows = min(_rows(self._pictures, PICTURE.itemsize), _rows(self._codes, RECORD.itemsize))
        os.ftruncate(self._pictures, rows * PICTURE.itemsize)  # what a kill left behind
        os.ftruncate(self._codes, rows * RECORD.itemsize)
        self._ids = np.concatenate([np.empty(0, np.int64), *(records["id"] for records in self._read(rows))])

    @classmethod
    def open(cls, folder: Path) -> Index:
        return cls(folder)

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._pictures)
        os.close(self._codes)

    def __len__(self) -> int:
        return int((self._ids != REMOVED).sum())

    @property
    def last(self) -> int:
        """The largest id that it holds; -1: none."""
        return int(self._ids.max(initial=REMOVED))

    def missing(self, ids: Sequence[int]) -> list[int]:
        """Those of the ids that the index does not hold, in their order."""
        asked = np.asarray(ids, np.int64)
        return [int(number) for number in asked[~np.isin(asked, self._ids[self._places(asked)])]]

    def add(self, ids: Sequence[int], descriptors: Sequence[bytes] | Descriptors) -> Pairs:
        """Takes images in; returns the pairs (smaller id, larger id) of near-duplicates that have a new one in them.

        Ids are not negative; descriptors are those of daemon/descriptor.py. What is there already is passed over, and
        is durable when this returns. Raises ValueError for other ids or descriptors, OSError when the disk refuses.
        """
        given = np.asarray(ids, np.int64)
        wrong = isinstance(descriptors, Sequence) and any(len(one) != SIZE for one in descriptors)
        if wrong or len(given) != len(descriptors) or given.min(initial=0) < 0:
            raise ValueError(f"as many ids from 0 on are needed as descriptors of {SIZE} bytes")
        fresh: Descriptors = descriptors
        if isinstance(descriptors, Sequence):
            fresh = np.frombuffer(b"".join(descriptors), np.uint8).reshape(-1, SIZE)
        named, rows = np.unique(given, return_index=True)
        rows = np.sort(rows[~np.isin(named, self._ids[self._places(named)])])
        if not len(rows):
            return []
        if len(rows) < len(given):
            given, fresh = given[rows], fresh[rows]
        search = Search(self, fresh)
        known = np.concatenate([self._ids, given])
        one, other = (known[found].tolist() for found in search.pairs())
        self._append(given, fresh, search.codes)
        return sorted({(min(pair), max(pair)) for pair in zip(one, other, strict=True)})

    def remove(self, ids: Sequence[int]) -> None:
        """Overwrites on disk what is known of these images; durable when it returns. Unknown ids are passed over."""
        rows = self._places(np.asarray(ids, np.int64))
        for row in rows.tolist():
            os.pwrite(self._pictures, bytes(PICTURE.itemsize), row * PICTURE.itemsize)
            os.pwrite(self._codes, bytes(RECORD.itemsize), row * RECORD.itemsize)
        os.fdatasync(self._pictures)
        os.fdatasync(self._codes)
        self._ids[rows] = REMOVED

    def known(self) -> Iterator[tuple[int, Floats]]:
        """(first row, codes), a batch at a time; NaN for what is removed or damaged."""
        for number, records in enumerate(self._read(len(self._ids))):
            codes = records["code"].astype(np.float32) / np.float32(UNIT)
            codes[records["id"] == REMOVED] = np.nan
            yield number * BATCH, codes

    def pictures(self, rows: Ints) -> NDArray[np.uint8]:
        """(rows, SIZE): the descriptors of stored rows."""
        if not len(rows):
            return np.empty((0, SIZE), np.uint8)
        size = PICTURE.itemsize
        read = [os.pread(self._pictures, size, row * size) for row in rows.tolist()]
        return np.frombuffer(b"".join(read), PICTURE)["descriptor"]

    @property
    def rows(self) -> int:
        return len(self._ids)

    def _places(self, ids: Ints) -> Ints:
        """The rows of these ids, as far as there are any."""
        wanted = np.sort(ids[ids >= 0])
        if not len(wanted):
            return np.empty(0, np.int64)
        at = np.minimum(np.searchsorted(wanted, self._ids), len(wanted) - 1)
        return np.flatnonzero(wanted[at] == self._ids)

    def _read(self, rows: int) -> Iterator[NDArray[np.void]]:
        """The records, a batch at a time; what is not whole has REMOVED for an id."""
        for start in range(0, rows, BATCH):
            count = min(BATCH, rows - start)
            data = bytearray(os.pread(self._codes, count * RECORD.itemsize, start * RECORD.itemsize))
            records = np.frombuffer(data, RECORD)
            records["id"][_fold(records) != SEAL] = REMOVED
            yield records

    def _append(self, ids: Ints, descriptors: Descriptors, codes: Floats) -> None:
        """The descriptors first: a record of a code that is whole says that its descriptor is, too."""
        for start in range(0, len(ids), FEW):
            part = slice(start, start + FEW)
            pictures = np.empty(len(ids[part]), PICTURE)
            pictures["id"], pictures["descriptor"] = ids[part], descriptors[part]
            _write(self._pictures, pictures.view(np.uint8).data, (len(self._ids) + start) * PICTURE.itemsize)
        os.fdatasync(self._pictures)
        records = np.zeros(len(ids), RECORD)
        records["id"] = ids
        records["code"] = np.clip(np.rint(np.nan_to_num(codes, nan=7.9) * UNIT), -32768, 32767)
        records["check"] = _fold(records) ^ np.uint32(SEAL)
        _write(self._codes, records.view(np.uint8).data, len(self._ids) * RECORD.itemsize)
        os.fdatasync(self._codes)
        self._ids = np.concatenate([self._ids, ids])


def _open(path: Path, size: int) -> int:
    """The open file, without what a kill left of a last record."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.ftruncate(file, os.fstat(file).st_size // size * size)
    return file


def _rows(file: int, size: int) -> int:
    return os.fstat(file).st_size // size


def _fold(records: NDArray[np.void]) -> NDArray[np.uint32]:
    words = records.view(np.uint32).reshape(len(records), -1)
    return np.asarray(np.bitwise_xor.reduce(words, axis=1), np.uint32)


def _write(file: int, view: memoryview, at: int) -> None:
    while view:
        done = os.pwrite(file, view, at)
        view, at = view[done:], at + done
