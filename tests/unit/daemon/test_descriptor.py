"""Descriptors of every kind of image, and what they must agree on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daemon.descriptor import SIDE, SIZE, describe

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture
def gray() -> Image.Image:
    return Image.fromarray((np.add.outer(np.arange(40), np.arange(50)) * 2).astype(np.uint8))


def thumbnail(image: Image.Image) -> np.ndarray:
    return np.frombuffer(describe(image), np.uint8)[: SIDE * SIDE].astype(int)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I", "F", "RGBX", "HSV"])
def test_a_gray_image_is_described_alike_in_every_mode(gray: Image.Image, mode: str) -> None:
    converted = gray.convert("RGB").convert(mode)
    assert len(describe(converted)) == SIZE
    assert abs(thumbnail(converted) - thumbnail(gray)).max() <= 2


def test_palettes_and_bilevel_images_are_described(gray: Image.Image) -> None:
    palette = gray.convert("RGB").quantize(64)
    assert abs(thumbnail(palette) - thumbnail(gray)).max() <= 8
    assert len(describe(gray.convert("1"))) == SIZE


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bits_become_eight(gray: Image.Image, dtype: type) -> None:
    wide = Image.fromarray(np.asarray(gray).astype(dtype) * dtype(257))
    assert abs(thumbnail(wide) - thumbnail(gray)).max() <= 1


def test_floats_up_to_one_are_scaled(gray: Image.Image) -> None:
    floats = Image.fromarray(np.asarray(gray, np.float32) / 255)
    assert abs(thumbnail(floats) - thumbnail(gray)).max() <= 1


def test_what_is_transparent_lies_on_white() -> None:
    assert (thumbnail(Image.new("RGBA", (8, 8), (0, 0, 0, 0))) == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3000, 2), (32, 32), (641, 479)])
def test_any_size_is_described_and_told(size: tuple[int, int]) -> None:
    described = describe(Image.new("RGB", size, (10, 200, 30)))
    assert len(described) == SIZE
    assert int.from_bytes(described[-2:], "little") == round((size[0] * size[1]) ** 0.5)


def test_no_numpy_is_loaded() -> None:
    code = "import sys, daemon.descriptor; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], env={"PYTHONPATH": str(CHECKOUT)}, check=True, timeout=60)
