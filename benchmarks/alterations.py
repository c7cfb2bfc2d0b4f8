"""What makes an altered copy of an image, and whether two images show the same, looked at in full."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmarks.camera import Floats

CROPPED = 0.95  # of width and height are left
MARGIN, REACH = 4, 2  # pixels at 32 x 32
SIDE = 32


def copies(image: Image.Image, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """(name, copy) for every alteration of an RGB image, each written as a JPEG.

    q50 to q95: that JPEG quality, 95 for all others; x0.5 to x2: resized; crop: 95% of width and height, from a random
    place; dark and light: brightness -10% and +10%; mirror: left to right.
    """
    for quality in (50, 75, 95):
        yield f"q{quality}", _jpeg(image, quality)
    for percent in (50, 75, 150, 200):
        size = round(image.width * percent / 100), round(image.height * percent / 100)
        yield f"x{percent / 100:g}", _jpeg(image.resize(size, Image.Resampling.BICUBIC))
    yield "crop", _jpeg(_crop(image, rng))
    for name, factor in (("dark", 0.9), ("light", 1.1)):
        yield name, _jpeg(image.point(partial(_brighter, factor)))
    yield "mirror", _jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def _brighter(factor: float, value: Any) -> int:
    return int(min(255, round(value * factor)))


def _jpeg(image: Image.Image, quality: int = 95) -> bytes:
    written = io.BytesIO()
    image.save(written, "JPEG", quality=quality)
    return written.getvalue()


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = round(image.width * CROPPED), round(image.height * CROPPED)
    left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
    return image.crop((int(left), int(top), int(left) + width, int(top) + height))


def shown_alike(one: Image.Image, other: Image.Image) -> float:
    """The best correlation, -1 to 1, of the fine detail of two images in colour at 32 x 32, over crops and shifts.

    Apart from the index's own way: three colours, what is coarser than three pixels taken away, every crop down to 91%
    of either image in steps of a pixel, every shift of up to two.
    """
    best = -1.0
    for still, moving in ((one, other), (other, one)):
        target = _detail(still, (0, 0, still.width, still.height))[MARGIN:-MARGIN, MARGIN:-MARGIN]
        for box in _boxes(moving):
            best = max(best, _correlation(_detail(moving, box), target - target.mean((0, 1))))
    return best


def _boxes(image: Image.Image) -> Iterator[tuple[float, float, float, float]]:
    for scale in (1.0, 0.97, 0.94, 0.91):
        for left in np.arange(0, SIDE * (1 - scale) + 0.01) / SIDE:
            for top in np.arange(0, SIDE * (1 - scale) + 0.01) / SIDE:
                width, height = image.size
                yield left * width, top * height, (left + scale) * width, (top + scale) * height


def _detail(image: Image.Image, box: tuple[float, float, float, float]) -> Floats:
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box), np.float32)
    return np.asarray(pixels - gaussian_filter(pixels, (3, 3, 0), mode="nearest"))


def _correlation(detail: Floats, target: Floats) -> float:
    shifts = [
        (MARGIN + right, MARGIN + down) for right in range(-REACH, REACH + 1) for down in range(-REACH, REACH + 1)
    ]
    side = SIDE - 2 * MARGIN
    parts: NDArray[np.float32] = np.stack([detail[y : y + side, x : x + side] for x, y in shifts])
    parts = parts - parts.mean((1, 2), keepdims=True)
    lengths = np.sqrt((parts**2).sum((1, 2, 3)) * (target**2).sum()) + 1e-6
    return float(((parts * target).sum((1, 2, 3)) / lengths).max())
