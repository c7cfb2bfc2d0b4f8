"""One search for copies: new images against one another and against all known. Rows count the known, then the new.

Candidates are those whose codes lie near; each is then aligned and judged by what of its variance is left unexplained.
Images of a fixed camera are searched in the common frame of their scene, and judged by how alike its images are anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from daemon import likeness, neighbours, scenes
from daemon.descriptor import SIDE, SIZE
from daemon.likeness import Floats
from daemon.neighbours import Ints
from daemon.scenes import Scene

RADIUS = 0.33  # in which the code of a copy lies, a crop of 5% included
KEPT = 48  # nearest neighbours of an image that are looked at more closely
APART = 0.185  # what is left of that distance when the moves of a crop are taken away
FRAME_RADIUS, FRAME_KEPT = 0.1, 8  # in a scene, where crops are undone before the search
# A copy leaves at most FLOOR of the variance unexplained, and more where the image is small: there JPEG's artifacts and
# lost sharpness are not averaged away in the thumbnail. NOISE is at the thumbnail's own size.
FLOOR, NOISE = 0.0008, 0.006
# Below this many pixels a side an image holds too little to tell strangers (two handwritten threes of 8 x 8) from
# copies by more than near equality.
SMALL, STRICT = 20.0, 0.002
CHUNK = 256  # images at once: what they need stays in the cache
HALF = np.float32(0.5)


class Known(Protocol):
    """What was taken in before."""

    @property
    def rows(self) -> int: ...

    def known(self) -> Iterator[tuple[int, Floats]]:
        """(first row, codes), a batch at a time; NaN where there is no image any more."""

    def pictures(self, rows: Ints) -> NDArray[np.uint8]:
        """(rows, SIZE): the descriptors of these rows."""


class Descriptors(Protocol):
    """(images, SIZE) uint8, in memory or where they lie."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class Search:
    """`codes` of the new images are to be kept beside their descriptors once `pairs` has been called."""

    def __init__(self, known: Known, fresh: Descriptors) -> None:
        self.known, self.fresh = known, fresh
        starts = range(0, len(fresh), CHUNK)
        self.codes = np.concatenate([likeness.codes(_thumbnails(fresh[at : at + CHUNK])) for at in starts])

    def pairs(self) -> tuple[Ints, Ints]:
        """The rows of near-duplicates; at least one of each pair is new."""
        near = self._near(self.codes, np.arange(len(self.codes)), RADIUS, KEPT)
        found = self._scenes(near)
        limits = np.full(self.known.rows + len(self.fresh), np.inf, np.float32)
        limits[[self.known.rows + row for row in found]] = [scene.limit for scene in found.values()]
        free = np.isinf(limits[near.one]) & np.isinf(limits[near.other])
        parts = [self._close(near.one[free], near.other[free])]
        for scene in {id(scene): scene for scene in found.values()}.values():
            parts.append(self._in_frame(scene, np.array([row for row, its in found.items() if its is scene])))
        one, other = (np.concatenate(column) for column in zip(*parts, strict=True))
        alike = self._alike(one, other, np.minimum(limits[one], limits[other]))
        return one[alike], other[alike]

    def _near(self, codes: Floats, rows: Ints, radius: float, keep: int) -> neighbours.Near:
        """Neighbours of the new `rows`, whose codes these are, among themselves and among the known."""
        own = neighbours.among(codes, radius, keep)
        base = self.known.rows
        one, other, counts = [rows[own.one] + base], [rows[own.other] + base], own.counts
        for start, known in self.known.known():
            near = neighbours.between(codes, known, radius, keep)
            one.append(rows[near.one] + base)
            other.append(near.other + start)
            counts = counts + near.counts
        return neighbours.Near(np.concatenate(one), np.concatenate(other), counts)

    def _scenes(self, near: neighbours.Near) -> dict[int, Scene]:
        """The scene of each new row (counted from 0) that belongs to one."""
        found, told, tried = dict[int, Scene](), dict[int, bool](), 0
        left = np.flatnonzero(near.counts >= scenes.CROWD)
        left = left[np.argsort(-near.counts[left], kind="stable")]
        while len(left) and tried < scenes.ATTEMPTS:
            seed, tried = int(left[0]), tried + 1
            if seed not in told:  # those that may come next are asked about at once: a question costs more than a seed
                told |= self._plausible(left[: scenes.ATTEMPTS - tried + 1], near)
            members = np.array([seed])
            if told[seed]:
                members = left[np.linalg.norm(self.codes[left] - self.codes[seed], axis=1) < RADIUS]
                scene = scenes.of(self._around(seed), self._read)
                found.update(dict.fromkeys(members.tolist(), scene) if scene else {})
            left = left[~np.isin(left, members)]
        return found

    def _plausible(self, seeds: Ints, near: neighbours.Near) -> dict[int, bool]:
        rows = seeds + self.known.rows
        beside = [np.concatenate([near.other[near.one == row], near.one[near.other == row]]) for row in rows]
        return dict(zip(seeds.tolist(), scenes.plausible(rows, beside, self._read), strict=True))

    def _around(self, seed: int) -> Ints:
        """Rows near a new one: known ones if these are enough, since what came first set the scene's frame."""
        code, near = self.codes[seed], [np.empty(0, np.int64)]
        for start, known in self.known.known():
            near.append(
                scenes.some(np.flatnonzero(np.linalg.norm(known - code, axis=1) < RADIUS) + start, scenes.SAMPLE)
            )
        if sum(map(len, near)) < scenes.CROWD:
            near.append(np.flatnonzero(np.linalg.norm(self.codes - code, axis=1) < RADIUS) + self.known.rows)
        return np.concatenate(near)

    def _in_frame(self, scene: Scene, rows: Ints) -> tuple[Ints, Ints]:
        """Candidates of one scene's new rows; their codes are from now on those in its frame."""
        for at in range(0, len(rows), CHUNK):
            part = rows[at : at + CHUNK]
            self.codes[part] = scenes.framed(scene, self._read(part + self.known.rows))
        near = self._near(self.codes[rows], rows, FRAME_RADIUS, FRAME_KEPT)
        return near.one, near.other

    def _close(self, one: Ints, other: Ints) -> tuple[Ints, Ints]:
        """The pairs whose codes come close when a crop's moves are undone."""

        new = np.unique(np.concatenate([one, other]))
        new = new[new >= self.known.rows]  # what moves these is worked out once: most come in several pairs
        starts = range(0, len(new), CHUNK)
        parts = neighbours.at_once(lambda at: likeness.tangents(self._read(new[at : at + CHUNK])), starts)
        tangents = np.concatenate([np.empty((0, likeness.MOVES, likeness.CODE), np.float32), *parts])

        def look_up(rows: Ints) -> tuple[Floats, Floats]:
            codes = np.empty((len(rows), likeness.CODE), np.float32)
            moves = np.empty((len(rows), likeness.MOVES, likeness.CODE), np.float32)
            fresh = rows >= self.known.rows
            codes[fresh] = self.codes[rows[fresh] - self.known.rows]
            moves[fresh] = tangents[np.searchsorted(new, rows[fresh])]
            if not fresh.all():
                thumbnails = self._read(rows[~fresh])
                codes[~fresh], moves[~fresh] = likeness.codes(thumbnails), likeness.tangents(thumbnails)
            return codes, moves

        def keep(at: int) -> tuple[Ints, Ints]:
            ones, others = one[at : at + CHUNK], other[at : at + CHUNK]
            (code, moves), (other_code, other_moves) = look_up(ones), look_up(others)
            near = likeness.apart(code, other_code, (moves + other_moves) * HALF) < APART
            return ones[near], others[near]

        return neighbours.joined(neighbours.at_once(keep, range(0, len(one), CHUNK)))

    def _alike(self, one: Ints, other: Ints, limits: Floats) -> NDArray[np.bool_]:
        def tell(at: int) -> NDArray[np.bool_]:
            part = slice(at, at + CHUNK)
            a, b = self._descriptors(one[part]), self._descriptors(other[part])
            left = likeness.unexplained(_thumbnails(a), _thumbnails(b))
            return left < np.minimum(limits[part], allowed(_sizes(a), _sizes(b)))

        return np.concatenate([np.empty(0, bool), *neighbours.at_once(tell, range(0, len(one), CHUNK))])

    def _read(self, rows: Ints) -> Floats:
        return _thumbnails(self._descriptors(rows))

    def _descriptors(self, rows: Ints) -> NDArray[np.uint8]:
        new = rows >= self.known.rows
        found = np.empty((len(rows), SIZE), np.uint8)
        found[new] = self.fresh[rows[new] - self.known.rows]
        found[~new] = self.known.pictures(rows[~new])
        return found


def allowed(one: Floats, other: Floats) -> Floats:
    """What copies of images of these sizes √(width · height) in pixels may leave unexplained."""
    area = np.maximum(one * other, 1)
    return np.where(area < SMALL**2, np.float32(STRICT), np.float32(FLOOR) + np.float32(NOISE * SIDE**2) / area)


def _thumbnails(descriptors: NDArray[np.uint8]) -> Floats:
    return descriptors[:, : SIDE * SIDE].reshape(-1, SIDE, SIDE).astype(np.float32)


def _sizes(descriptors: NDArray[np.uint8]) -> Floats:
    size = descriptors[:, SIDE * SIDE :].astype(np.float32)
    return np.asarray(size[:, 0] + 256 * size[:, 1], np.float32)
