"""Which codes lie near one another: exact, in blocks of matrix products, with a bound on how many are kept of each.

A code is a float32 row; NaN rows are near nothing. Sorted along the direction in which codes vary most, whole blocks
are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

ROWS, COLUMNS = 512, 512  # of a block: it stays in the processor's cache
THREADS = 2
ROUNDING = 1e-4

Found = TypeVar("Found")


class Near(NamedTuple):
    """Pairs (one, other) as row numbers, and by row how many were near in all, kept or not."""

    one: Ints
    other: Ints
    counts: Ints


def among(codes: Floats, radius: float, keep: int) -> Near:
    """Pairs of rows nearer than the radius, each once; of each row at most `keep` to those after it in the order."""
    usable = np.flatnonzero(~np.isnan(codes[:, 0]))
    if len(usable) < 2:
        return _nothing(len(codes))
    along = codes[usable] @ _widest(codes[usable])
    sorting = np.argsort(along, kind="stable")
    order, along = usable[sorting], along[sorting]
    ordered = codes[order]
    ends = np.searchsorted(along, along + np.float32(radius + ROUNDING), side="right")
    counts, adding = np.zeros(len(codes), np.int64), Lock()
    left, right = _sides(ordered)

    def look(start: int) -> tuple[Ints, Ints]:
        stop = min(start + ROWS, len(order))
        blocks = _blocks(left[start:stop], right, start, int(ends[stop - 1]), radius, start)
        one, other, seen, seen_by = _gather(blocks, stop - start, len(order), keep)
        with adding:
            counts[order[start:stop]] += seen
            counts[order] += seen_by
        return order[one + start], order[other]

    return Near(*joined(at_once(look, range(0, len(order), ROWS))), counts)


def between(codes: Floats, known: Floats, radius: float, keep: int) -> Near:
    """Pairs (row of the codes, row of the known) nearer than the radius; at most `keep` of each of the codes."""
    left, right = _sides(codes)[0], _sides(known)[1]
    counts = np.zeros(len(codes), np.int64)

    def look(start: int) -> tuple[Ints, Ints]:
        part = left[start : start + ROWS]
        one, other, seen, _ = _gather(_blocks(part, right, 0, len(known), radius, None), len(part), len(known), keep)
        counts[start : start + ROWS] += seen
        return one + start, other

    return Near(*joined(at_once(look, range(0, len(codes), ROWS))), counts)


def at_once(work: Callable[[int], Found], starts: Iterable[int]) -> list[Found]:
    """The work from each start on, in their order; numpy lets threads compute beside one another."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, starts))


def _widest(codes: Floats) -> Floats:
    """The direction, of length 1, in which they vary most: what is further apart along it is further apart."""
    return np.asarray(np.linalg.eigh(np.cov(codes.T))[1][:, -1], np.float32)


def _sides(codes: Floats) -> tuple[Floats, Floats]:
    """Two matrices whose product is the squared distance less nothing: |a|² - 2ab + |b|², in one multiplication."""
    square, one = (codes**2).sum(1, keepdims=True), np.ones((len(codes), 1), np.float32)
    return np.hstack([-2 * codes, square, one]), np.hstack([codes, one, square])


def _blocks(
    left: Floats, right: Floats, first: int, last: int, radius: float, diagonal: int | None
) -> Iterator[tuple[int, Floats, NDArray[np.bool_]]]:
    """(first column, squared distances, which are near); with a diagonal, only what lies above it."""
    for start in range(first, last, COLUMNS):
        square = left @ right[start : min(start + COLUMNS, last)].T
        near = square < np.float32(radius**2)
        if diagonal is not None and start < diagonal + len(left):
            rows, columns = np.ogrid[: near.shape[0], : near.shape[1]]
            near &= columns + start > rows + diagonal
        yield start, square, near


def _gather(
    blocks: Iterator[tuple[int, Floats, NDArray[np.bool_]]], rows: int, columns: int, keep: int
) -> tuple[Ints, Ints, Ints, Ints]:
    """The pairs of some rows, the nearest `keep` of each, and how many were near by row and by column."""
    seen, seen_by = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    parts: list[tuple[Ints, Ints, Floats]] = []
    for start, square, near in blocks:
        total = np.count_nonzero(near)
        if not total:
            continue
        width = near.shape[1]
        if total > 4 * keep * rows:  # there may be as many as there are pairs: too many to list
            seen += near.sum(1)
            seen_by[start : start + width] += near.sum(0)
            flat = np.flatnonzero(_only_nearest(square, near, keep))
            one, other = flat // width, flat % width
        else:
            flat = np.flatnonzero(near)
            one, other = flat // width, flat % width
            seen += np.bincount(one, minlength=rows)
            seen_by[start : start + width] += np.bincount(other, minlength=width)
        parts.append(_nearest(one, other + start, square.ravel()[flat], keep))
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), seen, seen_by
    ones, others, squares = zip(*parts, strict=True)
    one, other, _ = _nearest(np.concatenate(ones), np.concatenate(others), np.concatenate(squares), keep)
    return one, other, seen, seen_by


def _only_nearest(square: Floats, near: NDArray[np.bool_], keep: int) -> NDArray[np.bool_]:
    if keep >= square.shape[1]:
        return near
    chosen = np.zeros_like(near)
    kept = np.argpartition(np.where(near, square, np.float32(np.inf)), keep, axis=1)[:, :keep]
    np.put_along_axis(chosen, kept, True, axis=1)
    return chosen & near


def _nearest(one: Ints, other: Ints, square: Floats, keep: int) -> tuple[Ints, Ints, Floats]:
    if not len(one) or np.bincount(one).max() <= keep:
        return one, other, square
    order = np.lexsort((square, one))
    rank = np.arange(len(one)) - np.searchsorted(one[order], one[order])
    chosen = order[rank < keep]
    return one[chosen], other[chosen], square[chosen]


def joined(found: Iterable[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    """All pairs of rows, one after another."""
    ones, others = zip((np.empty(0, np.int64),) * 2, *found, strict=True)
    return np.concatenate(ones), np.concatenate(others)


def _nothing(rows: int) -> Near:
    return Near(np.empty(0, np.int64), np.empty(0, np.int64), np.zeros(rows, np.int64))
