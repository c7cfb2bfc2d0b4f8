"""How alike two thumbnails are once position, scale, light and sharpness are made equal: numpy alone, in a child.

Two measures. The coarse one is a code of 24 numbers, the low frequencies of the thumbnail, with the directions in which
a crop moves it (a tangent distance: Simard, LeCun and Denker, "Efficient pattern recognition using a new transformation
distance", 1993). The fine one aligns the thumbnails by Gauss-Newton steps (inverse compositional: Baker and Matthews,
"Lucas-Kanade 20 years on", 2004) and says which share of the variance is left unexplained.

Thumbnails are float32 arrays (images, 32, 32), not normalised.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from daemon.descriptor import SIDE

Floats = NDArray[np.float32]

CODE = 24  # numbers in a code
MOVES = 4  # scale and shift along x, then along y
STEPS = 5
SMOOTHING = 1.0  # pixels: what is finer is aliasing, and does not survive a crop
# The filter that made the thumbnail saw nothing beyond the image's edge: two pixels along it are not comparable.
BORDER = 2
MAX_SCALE, MAX_SHIFT = 0.08, 1.4  # of the side, in pixels: a crop of 6% with some room
RIDGE = np.float32(1e-3)
HOPELESS = 0.06  # left of the variance: the other way round it will not be a copy either
CHUNK = 128  # pairs at once: what they need stays in the processor's cache
CLIPPED = 215.0  # gray; from here on a brightened copy may have lost light
VISIBLE = 0.4  # of the area must be left where what may be clipped is left aside
FLAT = 2.0  # gray values of standard deviation: what shows less than that is like everything and like nothing

_at = np.arange(SIDE, dtype=np.float32)
_centred = _at - (SIDE - 1) / 2
_inner = np.zeros((SIDE, SIDE), np.float32)
_inner[BORDER:-BORDER, BORDER:-BORDER] = 1


@cache
def _smoother() -> Floats:
    """(32, 32): a Gaussian along one axis, the image mirrored at its edge."""
    far = _at[:, None] - _at
    mirrored = _at[:, None] + _at + 1
    weights = sum(np.exp(-(d**2) / (2 * SMOOTHING**2)) for d in (far, mirrored, 2 * SIDE - mirrored))
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


@cache
def _window() -> Floats:
    """(1024,): what lies at the edge counts less, since a crop exchanges it."""
    profile = np.sqrt(np.sin(np.pi * (_at + 0.5) / SIDE))
    return np.outer(profile, profile).ravel().astype(np.float32)


@cache
def _projection() -> tuple[Floats, Floats]:
    """From pixels to codes (1024, 24), and to what each of four moves adds to a code (1024, 4 * 24)."""
    waves = np.cos(np.pi * (_at[:, None] + 0.5) * np.arange(8) / SIDE) * np.sqrt(2 / SIDE)
    waves[:, 0] /= np.sqrt(2)  # the orthonormal cosine transform
    chosen = sorted(((u, v) for u in range(8) for v in range(8) if u + v), key=lambda w: (w[0] ** 2 + w[1] ** 2, w))
    basis = np.stack([np.outer(waves[:, u], waves[:, v]).ravel() for u, v in chosen[:CODE]], 1)
    window = _window()
    codes = window[:, None] * basis
    codes -= np.outer(window, codes.sum(0)) / window.sum()  # of the mean nothing is seen
    slope = np.gradient(np.eye(SIDE), axis=0) @ _smoother()
    across, along = np.kron(_smoother(), slope), np.kron(slope, _smoother())
    x, y = np.tile(_centred, SIDE)[:, None], np.repeat(_centred, SIDE)[:, None]
    moves = [(0.05 * x * across).T @ codes, across.T @ codes, (0.05 * y * along).T @ codes, along.T @ codes]
    return codes.astype(np.float32), np.concatenate(moves, 1).astype(np.float32)


def prepare() -> None:
    """Makes what every comparison needs, which takes a tenth of a second."""
    _projection()


def codes(thumbnails: Floats) -> Floats:
    """(images, 24): low frequencies, of a thumbnail brought to a contrast of 1; NaN where it shows nothing."""
    return (thumbnails.reshape(-1, SIDE * SIDE) @ _projection()[0]) / _contrast(thumbnails)[:, None]


def tangents(thumbnails: Floats) -> Floats:
    """(images, 4, 24): how the code moves where the image is scaled by 5% or shifted by a pixel, along x and y."""
    moved = (thumbnails.reshape(-1, SIDE * SIDE) @ _projection()[1]) / _contrast(thumbnails)[:, None]
    return np.asarray(moved.reshape(-1, MOVES, CODE), np.float32)


def _contrast(thumbnails: Floats) -> Floats:
    flat, window = thumbnails.reshape(-1, SIDE * SIDE) - np.float32(128), _window()
    mean = (flat @ window) / window.sum()
    square = (flat**2) @ window**2 - 2 * mean * (flat @ window**2) + mean**2 * (window**2).sum()
    contrast = np.sqrt(np.maximum(square, 0))
    contrast[contrast < FLAT * np.linalg.norm(window)] = np.nan
    return np.asarray(contrast, np.float32)


def apart(one: Floats, other: Floats, moves: Floats) -> Floats:
    """(pairs,): how far codes (pairs, 24) are apart when moved by what brings them closest; moves (pairs, 4, 24)."""
    between = other - one
    normal = moves @ moves.transpose(0, 2, 1) + np.float32(0.02) * np.eye(MOVES, dtype=np.float32)
    steps = np.linalg.solve(normal, moves @ between[:, :, None])
    return np.asarray(np.linalg.norm(between - (moves.transpose(0, 2, 1) @ steps)[:, :, 0], axis=1), np.float32)


def unexplained(one: Floats, other: Floats) -> Floats:
    """(pairs,): which share of the variance no alignment explains, 0 (copies) to 1 (nothing in common); symmetric.

    Each is laid on the other, and the better one counts: what was cropped is found within the whole, not the other way
    round. Where the first way leaves more than HOPELESS the second is not tried. NaN for images that show nothing.
    """
    shares = np.empty(len(one), np.float32)
    for start in range(0, len(one), CHUNK):
        a, b = smooth(one[start : start + CHUNK]), smooth(other[start : start + CHUNK])
        swap = (_rank(a) > _rank(b))[:, None, None]  # so that it does not matter which is named first
        a, b = np.where(swap, b, a), np.where(swap, a, b)
        share = _left(a, b)
        again = share < HOPELESS
        if again.any():
            share[again] = np.fmin(share[again], _left(b[again], a[again]))
        shares[start : start + CHUNK] = share
    return shares


def _rank(smoothed: Floats) -> Floats:
    return np.asarray(smoothed[:, ::5, ::7].sum((1, 2)), np.float32)


def smooth(thumbnails: Floats) -> Floats:
    return np.asarray(_smoother() @ thumbnails @ _smoother().T, np.float32)


def _left(still: Floats, moving: Floats) -> Floats:
    """As unexplained, with the second moved onto the first; both smoothed."""
    frames = align(still, moving)
    moved, seen = warp(moving, frames), inside(frames)
    share = _residual(still, moved, seen)
    clear = seen * (np.maximum(still, moved) < CLIPPED)
    enough = clear.sum((1, 2)) >= VISIBLE * seen.sum((1, 2))
    if enough.any():
        share[enough] = np.fmin(share[enough], _residual(still[enough], moved[enough], clear[enough]))
    return share


def align(still: Floats, moving: Floats) -> Floats:
    """(pairs, 4): scale and shift along x and y that lay the second on the first (moving read at scale * x + shift)."""
    jacobian = _jacobian(still)
    normal = jacobian @ jacobian.transpose(0, 2, 1) + RIDGE * np.eye(jacobian.shape[1], dtype=np.float32)
    frames = np.tile(np.array([1, 0, 1, 0], np.float32), (len(still), 1))
    for _ in range(STEPS):
        error = ((warp(moving, frames) - still) * inside(frames)).reshape(len(still), -1, 1)
        step = np.linalg.solve(normal, jacobian @ error)[:, :, 0]
        for axis in (0, 2):
            scale = 1 / (1 + np.clip(step[:, axis], -MAX_SCALE, MAX_SCALE))
            shift = -np.clip(step[:, axis + 1], -1, 1) * scale
            frames[:, axis + 1] = np.clip(frames[:, axis + 1] + frames[:, axis] * shift, -MAX_SHIFT, MAX_SHIFT)
            frames[:, axis] = np.clip(frames[:, axis] * scale, 1 - MAX_SCALE, 1 + MAX_SCALE)
    return frames


def _jacobian(still: Floats) -> Floats:
    """(pairs, 8, 1024): what each of the four moves, and each change of light or sharpness, would add."""
    across, along = np.gradient(still, axis=2), np.gradient(still, axis=1)
    moves = [across * _centred, across, along * _centred[:, None], along]
    return (np.stack([*moves, *_light(still)], 1) * _inner).reshape(len(still), -1, SIDE * SIDE)


def _light(still: Floats) -> list[Floats]:
    """What explains a copy's light: the image, a constant, its square (a bent tone curve, as clipping leaves one), and
    its second derivative, which blurs or sharpens."""
    rough = -4 * still
    for axis in (1, 2):
        rough += np.roll(still, 1, axis) + np.roll(still, -1, axis)
    return [still, np.ones_like(still), (still - 128) ** 2 / np.float32(128), rough]


def warp(moving: Floats, frames: Floats) -> Floats:
    """(pairs, 32, 32): the images read at scale * x + shift from the centre, by cubic convolution (Keys, 1981)."""
    rows = _weights(frames[:, 2], frames[:, 3])
    columns = _weights(frames[:, 0], frames[:, 1])
    return np.asarray(rows @ moving @ columns.transpose(0, 2, 1), np.float32)


def _read_at(scale: Floats, shift: Floats) -> Floats:
    return scale[:, None] * _centred + np.float32((SIDE - 1) / 2) + shift[:, None]


def _weights(scale: Floats, shift: Floats) -> Floats:
    """(pairs, 32, 32): which pixels, along one axis, each read place is made of; four of them."""
    places = np.clip(_read_at(scale, shift), 0, SIDE - 1)
    first = places.astype(np.int64)
    f = places - first
    taps = (
        ((-0.5 * f + 1) * f - 0.5) * f,
        (1.5 * f - 2.5) * f * f + 1,
        ((-1.5 * f + 2) * f + 0.5) * f,
        (0.5 * f - 0.5) * f * f,
    )
    padded = np.zeros((len(scale) * SIDE, SIDE + 4), np.float32)  # what lies beyond the edge falls into the padding
    rows = np.arange(len(padded))
    for tap, weight in enumerate(taps):
        padded[rows, first.ravel() + tap + 1] = weight.ravel()
    return np.ascontiguousarray(padded.reshape(len(scale), SIDE, SIDE + 4)[:, :, 2:-2])


def inside(frames: Floats) -> Floats:
    """(pairs, 32, 32): 1 where both images are seen away from their edges, 0 elsewhere."""
    x, y = _read_at(frames[:, 0], frames[:, 1]), _read_at(frames[:, 2], frames[:, 3])
    low, high = BORDER - 0.75, SIDE - BORDER - 0.25
    seen = ((y > low) & (y < high))[:, :, None] & ((x > low) & (x < high))[:, None, :]
    return np.asarray(seen * _inner, np.float32)


def _residual(still: Floats, moved: Floats, seen: Floats) -> Floats:
    """What is left of the moved image's variance when contrast, light and sharpness are fitted where `seen` is 1."""
    pairs = len(still)
    explain = (np.stack(_light(still), 1) * seen[:, None]).reshape(pairs, -1, SIDE * SIDE)
    target = (moved * seen).reshape(pairs, -1, 1)
    normal = explain @ explain.transpose(0, 2, 1) + RIDGE * np.eye(explain.shape[1], dtype=np.float32)
    left = target - explain.transpose(0, 2, 1) @ np.linalg.solve(normal, explain @ target)
    area = seen.sum((1, 2))
    mean = target.sum((1, 2)) / area
    variance = ((moved - mean[:, None, None]) ** 2 * seen).sum((1, 2)) / area
    share = (left**2).sum((1, 2)) / area / variance
    return np.asarray(np.where(variance < FLAT**2, np.nan, share), np.float32)
