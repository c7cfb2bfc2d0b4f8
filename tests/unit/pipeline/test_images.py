"""One file becomes pixels: every kind of image, against Pillow and against what the pixels must be."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.images import decode
from policies.job import StageError

Encode = Callable[..., bytes]
Resize = Literal["stretch", "crop"]
Array = NDArray[Any]
ORIENTATION = 0x0112
# What the stored pixels look like upright, by EXIF orientation.
UPRIGHT: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def noise(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def turned(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = number
    return exif


def gray(image: Array) -> Array:
    return np.repeat(image[..., None], 3, 2)


@pytest.mark.parametrize("found", [(40, 30), (30, 40), (7, 9), (16, 24), (100, 10)])
@pytest.mark.parametrize("size", [(16, 24), (24, 24), (32, 8)])
def test_stretch_is_pillows_bilinear_resize(encode: Encode, found: tuple[int, int], size: tuple[int, int]) -> None:
    image = noise(*found)
    wanted = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    assert np.array_equal(decode(encode(image), size, "stretch"), np.asarray(wanted))


def odd_exif() -> bytes:
    """Little-endian TIFF: orientation 6 and a resolution that is text, of a tag that counts as a fraction."""
    entries = [(ORIENTATION, 3, 1, struct.pack("<HH", 6, 0)), (0x011A, 2, 4, b"odd\0")]
    body = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0)


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_odd_tags_beside_the_orientation_do_no_harm(encode: Encode, resize: Resize) -> None:
    found = decode(encode(noise(6, 10), "JPEG", exif=odd_exif()), (10, 6), resize)
    plain = decode(encode(noise(6, 10), "JPEG"), (6, 10), resize)
    assert np.array_equal(found, np.rot90(plain, -1))


@pytest.mark.parametrize("found", [(40, 30), (30, 40), (7, 9), (16, 24), (100, 10)])
@pytest.mark.parametrize("size", [(16, 24), (24, 24), (32, 8)])
def test_crop_is_pillows_fit_of_the_centre(encode: Encode, found: tuple[int, int], size: tuple[int, int]) -> None:
    image = noise(*found)
    wanted = ImageOps.fit(Image.fromarray(image), (size[1], size[0]), Image.Resampling.BILINEAR)
    difference = decode(encode(image), size, "crop").astype(int) - np.asarray(wanted)
    assert np.abs(difference).max() <= 1


def test_crop_cuts_off_what_stretch_keeps(encode: Encode) -> None:
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 8:16] = 255  # the square in the middle
    assert (decode(encode(image), (8, 8), "crop") == 255).all()
    assert decode(encode(image), (8, 8), "stretch").min() == 0


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_an_image_of_the_size_is_left_as_it_is(encode: Encode, resize: Resize) -> None:
    image = noise(12, 20)
    found = decode(encode(image), (12, 20), resize)
    assert np.array_equal(found, image)
    assert (found.dtype, found.shape) == (np.uint8, (12, 20, 3))


@pytest.mark.parametrize("number", UPRIGHT)
def test_it_stands_upright_as_exif_says(encode: Encode, number: int) -> None:
    image = noise(6, 10)
    upright = UPRIGHT[number](image)
    assert np.array_equal(decode(encode(image, exif=turned(number)), upright.shape[:2], "stretch"), upright)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "1"])
def test_it_stands_upright_whatever_its_mode(encode: Encode, mode: str) -> None:
    values = (np.arange(60, dtype=np.uint8).reshape(6, 10) % 2) * 255
    image = Image.fromarray(values.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(values).convert(mode)
    assert np.array_equal(decode(encode(image, exif=turned(6)), (10, 6), "stretch"), gray(np.rot90(values, -1)))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_any_format_without_loss_gives_the_same_pixels(encode: Encode, kind: str) -> None:
    image = noise(8, 8) // 64 * 64  # few colours, for the palette of GIF
    more = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode(encode(image, kind, **more), (8, 8), "stretch"), image)


def test_gray_becomes_three_equal_channels(encode: Encode) -> None:
    values = noise(8, 8)[..., 0]
    assert np.array_equal(decode(encode(values), (8, 8), "stretch"), gray(values))


def test_two_colours_become_black_and_white(encode: Encode) -> None:
    values = noise(8, 8)[..., 0] > 127
    assert np.array_equal(decode(encode(values), (8, 8), "stretch"), gray(values.astype(np.uint8) * 255))


def test_a_palette_is_looked_up(encode: Encode) -> None:
    image = Image.fromarray((np.arange(64, dtype=np.uint8) % 2).reshape(8, 8), mode="P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    found = decode(encode(image), (8, 8), "stretch")
    assert found[0, :2].tolist() == [[10, 20, 30], [200, 100, 50]]


@pytest.mark.parametrize(("alpha", "wanted"), [(255, [200, 100, 0]), (0, [255, 255, 255]), (51, [244, 224, 204])])
def test_transparency_is_laid_on_white(encode: Encode, alpha: int, wanted: list[int]) -> None:
    image = np.full((8, 8, 4), [200, 100, 0, alpha], np.uint8)
    found = decode(encode(image), (8, 8), "stretch").astype(int)
    assert np.abs(found - wanted).max() <= 1


def test_transparency_of_gray_is_laid_on_white(encode: Encode) -> None:
    image = np.full((8, 8, 2), [100, 0], np.uint8)
    assert (decode(encode(image), (8, 8), "stretch") == 255).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_colour_that_counts_as_transparent_is_white(encode: Encode, mode: str) -> None:
    image = Image.new(mode, (8, 8))
    if mode == "P":
        image.putpalette([10, 20, 30, 200, 100, 50])
    data = encode(image, transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert (decode(data, (8, 8), "stretch") == 255).all()


def test_sixteen_bits_are_scaled_not_clipped(encode: Encode) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    found = decode(encode(values), (1, 4), "stretch")
    assert found[0, :, 0].tolist() == [0, 1, 128, 255]
    assert np.array_equal(found, gray(found[..., 0]))


def test_dark_sixteen_bits_stay_dark(encode: Encode) -> None:
    assert (decode(encode(np.full((4, 4), 200, np.uint16)), (4, 4), "stretch") == 1).all()


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 257 * 100, 65535]], np.int32), [0, 100, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 99.6, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-5.0, 0.0, 255.0]], np.float32), [0, 0, 255]),
    ],
)
def test_the_scale_of_thirty_two_bits_is_told_by_the_largest(encode: Encode, values: Array, wanted: list[int]) -> None:
    assert decode(encode(values, "TIFF"), (1, 3), "stretch")[0, :, 0].tolist() == wanted


def test_ink_becomes_light(encode: Encode) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow: red
    found = decode(encode(image, "JPEG", quality=100), (16, 16), "stretch")
    assert found[8, 8, 0] > 200 and found[8, 8, 1:].max() < 60


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("number", [1, 6])
@pytest.mark.parametrize("size", [(16, 64), (64, 16), (32, 32)])
def test_a_large_photo_decoded_at_a_part_of_its_size_looks_the_same(
    encode: Encode, resize: Resize, number: int, size: tuple[int, int]
) -> None:
    small = Image.fromarray(noise(128, 64))
    data = encode(small.resize((1024, 256), Image.Resampling.BICUBIC), "JPEG", quality=95, exif=turned(number))
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # at its full size
        upright = ImageOps.exif_transpose(image)
    wanted = (
        upright.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        if resize == "stretch"
        else ImageOps.fit(upright, (size[1], size[0]), Image.Resampling.BILINEAR)
    )
    difference = np.abs(decode(data, size, resize).astype(int) - np.asarray(wanted))
    assert difference.mean() < 4.4  # decoded too small, for any of the reasons there are, it is 5.2 to 18


@pytest.mark.parametrize("data", [b"", b"text", b"\x89PNG\r\n\x1a\n" + b"\0" * 100])
def test_what_is_no_image_is_told(data: bytes) -> None:
    with pytest.raises(StageError, match="cannot be decoded"):
        decode(data, (8, 8), "stretch")


@pytest.mark.parametrize("kind", ["PPM", "TGA", "ICO"])
def test_a_format_that_is_not_promised_is_not_tried(encode: Encode, kind: str) -> None:
    with pytest.raises(StageError, match="cannot be decoded: cannot identify"):
        decode(encode(noise(8, 8), kind), (8, 8), "stretch")


def test_what_phones_write_with_several_pictures_is_a_jpeg(encode: Encode) -> None:
    image, second = noise(8, 8), Image.fromarray(noise(8, 8, 1))
    found = decode(encode(image, "MPO", save_all=True, append_images=[second]), (8, 8), "stretch")
    assert np.array_equal(found, decode(encode(image, "JPEG"), (8, 8), "stretch"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_an_image_that_breaks_off_is_told(encode: Encode, kind: str) -> None:
    data = encode(noise(64, 64), kind)
    with pytest.raises(StageError, match="cannot be decoded"):
        decode(data[: len(data) // 2], (8, 8), "stretch")
