"""The client to copy from makes of an image file the very pixels that training made of it."""

from __future__ import annotations

import io
import struct
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from deploy.client import prepare
from pipeline.images import decode

SIZES = ((8, 8), (33, 17), (17, 48), (64, 64))
RANDOM = np.random.default_rng(1)


def encode(image: Image.Image, kind: str, **more: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **more)
    return stream.getvalue()


def noise(height: int, width: int, mode: str = "RGB") -> Image.Image:
    smooth = Image.fromarray(RANDOM.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8))
    return smooth.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def turned(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def palette_with_transparency() -> bytes:
    return encode(noise(41, 29).quantize(16), "PNG", transparency=3)


def odd_exif() -> bytes:
    """Of which nothing can be read."""
    body = b"Exif\0\0II*\0" + struct.pack("<IHHHI", 8, 1, 0x0112, 3, 9999) + b"\xff" * 4
    return encode(noise(40, 60), "JPEG", exif=body)


CASES = {
    "odd size": encode(noise(37, 53), "PNG"),
    "narrow": encode(noise(200, 3), "PNG"),
    "one pixel": encode(noise(1, 1), "PNG"),
    "the size itself": encode(noise(64, 64), "PNG"),
    "gray": encode(noise(50, 31, "L"), "PNG"),
    "gray JPEG": encode(noise(450, 310, "L"), "JPEG"),
    "one bit": encode(noise(50, 31, "1"), "PNG"),
    "palette": encode(noise(50, 31).quantize(9), "PNG"),
    "palette with transparency": palette_with_transparency(),
    "transparency": encode(noise(50, 31, "RGBA"), "PNG"),
    "gray with transparency": encode(noise(50, 31, "LA"), "PNG"),
    "CMYK": encode(noise(90, 77, "CMYK"), "JPEG"),
    "CMYK TIFF": encode(noise(90, 77, "CMYK"), "TIFF"),
    "16 bits": encode(Image.fromarray(RANDOM.integers(0, 65_536, (41, 67), dtype=np.uint16)), "PNG"),
    "32 bits": encode(Image.fromarray(RANDOM.integers(0, 255, (41, 67)).astype(np.int32)), "TIFF"),
    "floats": encode(Image.fromarray(RANDOM.random((41, 67), dtype=np.float32)), "TIFF"),
    "large JPEG": encode(noise(1203, 1801), "JPEG", quality=90),
    "progressive": encode(noise(643, 377), "JPEG", progressive=True, subsampling=0),
    "WEBP": encode(noise(143, 77), "WEBP", quality=70),
    "GIF": encode(noise(43, 77), "GIF"),
    "BMP": encode(noise(43, 77), "BMP"),
    "broken EXIF": odd_exif(),
    **{f"EXIF {n}": encode(noise(801, 1207), "JPEG", exif=turned(n)) for n in range(1, 10)},
    **{f"PNG with EXIF {n}": encode(noise(31, 77), "PNG", exif=turned(n)) for n in (5, 6)},
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of the broken EXIF
@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("name", CASES)
def test_the_pixels_are_those_of_training(name: str, resize: Literal["stretch", "crop"]) -> None:
    for size in SIZES:
        np.testing.assert_array_equal(prepare(CASES[name], size, resize), decode(CASES[name], size, resize))
