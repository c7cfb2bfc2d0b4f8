"""A simulated inspection line: one camera, one background, one kind of part, each part a little different.

What two images share is nearly everything; what tells them apart is the part's own texture, its position (a few
pixels) and angle, the light, the sensor's noise, and sometimes a scratch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating[Any]]

HEIGHT, WIDTH = 192, 256
JITTER = 2.0  # pixels of standard deviation, along each axis
TURN = 0.7  # degrees
GAIN = 0.05
NOISE = 2.5  # gray values
SCRATCHED = 0.15  # of the parts
_y, _x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)


def scene(seed: int, count: int, texture: float = 5.0) -> Iterator[Image.Image]:
    """`count` images (RGB, 256 x 192) of one of three kinds of part; `texture` in gray values, of each part's own."""
    rng = np.random.default_rng(seed)
    slope = rng.normal(0, 30) * (_x / WIDTH - 0.5) + rng.normal(0, 20) * (_y / HEIGHT - 0.5)
    background = 110 + slope + 12 * grain(rng, 1.2, 1)
    level, radius = rng.choice([55.0, 170.0, 200.0]), rng.uniform(50, 70)
    print_on_it = 6 * grain(rng, 1.5, 1) + 8 * np.sin(_x / rng.uniform(4, 12))
    for _ in range(count):
        u, v = _pose(rng)
        depth = _depth(seed % 3, u, v, radius)
        at = (
            np.clip(np.rint(v + HEIGHT / 2), 0, HEIGHT - 1).astype(int),
            np.clip(np.rint(u + WIDTH / 2), 0, WIDTH - 1).astype(int),
        )
        own = print_on_it + texture * grain(rng, 1.0, 3)
        part = level + own[at] + 10 * np.clip(1 - depth / 12, 0, 1) * np.sign(u + v) + _scratch(rng, u, v)
        cover = np.clip(depth + 0.5, 0, 1)
        light = (background * (1 - cover) + part * cover) * rng.uniform(1 - GAIN, 1 + GAIN)
        gray = np.clip(np.rint(light + rng.normal(0, NOISE, light.shape)), 0, 255).astype(np.uint8)
        yield Image.fromarray(np.stack([gray, gray, (gray * 0.95).astype(np.uint8)], -1))


def grain(rng: np.random.Generator, slope: float, lowest: float) -> Floats:
    """Noise whose amplitude falls with the frequency to this power, from `lowest` cycles an image on; deviation 1."""
    rows = np.fft.fftfreq(HEIGHT)[:, None] * HEIGHT
    frequency = np.hypot(rows, np.fft.rfftfreq(WIDTH)[None] * WIDTH)
    frequency[0, 0] = np.inf
    spectrum = np.maximum(frequency, lowest) ** -slope * np.exp(2j * np.pi * rng.random(frequency.shape))
    pixels = np.fft.irfft2(spectrum, (HEIGHT, WIDTH))
    return np.asarray(pixels / pixels.std())


def _pose(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Each pixel's place on the part, from its centre."""
    (right, down), angle = rng.normal(0, JITTER, 2), np.deg2rad(rng.normal(0, TURN))
    x, y = _x - WIDTH / 2 - right, _y - HEIGHT / 2 - down
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _depth(kind: int, u: Floats, v: Floats, radius: float) -> Floats:
    """How far inside the part a place lies, in pixels: of a ring, a plate with a hole, a cog."""
    if kind == 0:
        return np.asarray(np.minimum(radius - np.hypot(u, v), np.hypot(u, v) - radius * 0.35))
    if kind == 1:
        plate = np.minimum(radius * 1.3 - abs(u), radius * 0.8 - abs(v))
        return np.asarray(np.minimum(plate, np.hypot(u - radius * 0.8, v - radius * 0.4) - 7))
    return np.asarray((1 + 0.12 * np.cos(6 * np.arctan2(v, u))) * radius - np.hypot(u, v))


def _scratch(rng: np.random.Generator, u: Floats, v: Floats) -> Floats:
    if rng.random() >= SCRATCHED:
        return np.zeros_like(u)
    angle, centre, length = rng.uniform(0, np.pi), rng.uniform(-30, 30, 2), rng.uniform(8, 35)
    along = (u - centre[0]) * np.cos(angle) + (v - centre[1]) * np.sin(angle)
    across = (v - centre[1]) * np.cos(angle) - (u - centre[0]) * np.sin(angle)
    return np.asarray(35 * np.exp(-((across / 1.2) ** 2)) * (abs(along) < length / 2))
