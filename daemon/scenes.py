"""Images of a fixed camera: alike in all but the part that lies there, a little elsewhere each time.

Nearness says nothing among them, and a cropped copy is nearer to no image than to all others. So each is first laid on
the scene's mean, which undoes the crop, and is then compared with the others in that common frame; and a copy must be
much more like its original than two images of the scene are like each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from daemon import likeness
from daemon.likeness import Floats
from daemon.neighbours import Ints

Read = Callable[[Ints], Floats]  # row numbers to thumbnails (rows, 32, 32)

CROWD = 12  # near neighbours from which on an image may belong to a scene: groups of true copies are smaller
ATTEMPTS = 24  # scenes looked for at once; what is left over is compared as other images are
PROBES = 8
SAMPLE = 192  # images that a scene's mean is of
ALIKE = 0.05  # of the variance: two images of a scene leave less unexplained when aligned, at the median
SHARE = 0.1  # of what two images of the scene leave unexplained; a copy leaves less
LEAST = 1.2e-4  # what even a true copy may leave unexplained
CHUNK = 512


class Scene(NamedTuple):
    background: Floats  # (32, 32), smoothed
    typical: float  # what two of its images leave unexplained, at the median

    @property
    def limit(self) -> float:
        """What a copy may leave unexplained."""
        return max(SHARE * self.typical, LEAST)


def plausible(seeds: Ints, beside: Sequence[Ints], read: Read) -> list[bool]:
    """Of each image whether it is much like those nearest to it, so that a scene is worth looking for."""
    probes = [some(near[near != seed], PROBES) for seed, near in zip(seeds, beside, strict=True)]
    numbers = [len(its) for its in probes]
    left = likeness.unexplained(read(np.repeat(seeds, numbers)), read(np.concatenate(probes)))
    by_seed = np.split(left, np.cumsum(numbers)[:-1])
    return [len(its) > 0 and float(np.nanmedian(its)) < ALIKE for its in by_seed]


def of(rows: Ints, read: Read) -> Scene | None:
    """The scene that these images show, if they show one."""
    sample = some(rows, SAMPLE)
    typical = _typical(sample, np.roll(sample, len(sample) // 2), read)
    if not typical < ALIKE:
        return None
    thumbnails = likeness.smooth(_normal(read(sample)))
    background = np.median(thumbnails, 0)
    for _ in range(2):
        frames = likeness.align(np.broadcast_to(background, thumbnails.shape), thumbnails)
        background = np.median(likeness.warp(thumbnails, frames), 0)
    return Scene(np.asarray(background, np.float32), typical)


def some(rows: Ints, number: int) -> Ints:
    """Spread evenly, so that the same rows give the same sample."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, number).astype(np.int64))] if len(rows) else rows


def _typical(one: Ints, other: Ints, read: Read) -> float:
    count = min(len(one), len(other), 64)
    return float(np.nanmedian(likeness.unexplained(read(one[:count]), read(other[:count]))))


def _normal(thumbnails: Floats) -> Floats:
    """Brought to one light, so that the mean is not of the brightest."""
    mean = thumbnails.mean((1, 2), keepdims=True)
    spread = thumbnails.std((1, 2), keepdims=True) + np.float32(1e-3)
    return np.asarray((thumbnails - mean) / spread * 50 + 128, np.float32)


def framed(scene: Scene, thumbnails: Floats) -> Floats:
    """(images, 24): their codes once they are laid on the scene."""
    parts = []
    for start in range(0, len(thumbnails), CHUNK):
        part = _normal(thumbnails[start : start + CHUNK])
        still = np.broadcast_to(scene.background, part.shape)
        parts.append(likeness.codes(likeness.warp(part, likeness.align(still, likeness.smooth(part)))))
    return np.concatenate(parts)
