"""One image file becomes pixels: uint8 RGB of the size that the network takes. Pillow alone, no torch."""

from __future__ import annotations

import io
import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from policies.facts import FORMATS
from policies.job import StageError

Resize = Literal["stretch", "crop"]
Size = tuple[int, int]  # (height, width) in pixels

Image.MAX_IMAGE_PIXELS = None  # intake has checked the size before the image came into the store
SIXTEEN_BITS = 257.0  # 65535 / 255
QUARTER_TURNED = (5, 6, 7, 8)  # values of EXIF's orientation that swap height and width
TURN = Image.Transpose
TURNS = {  # what makes an image upright, by EXIF's orientation
    2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE, 6: TURN.ROTATE_270,
    7: TURN.TRANSVERSE, 8: TURN.ROTATE_90,
}  # fmt: skip


def decode(data: bytes, size: Size, resize: Resize) -> NDArray[np.uint8]:
    """The image as uint8 (height, width, 3), upright as its EXIF orientation says.

    "stretch" resizes to the size whatever the proportions; "crop" fits the shorter side and cuts the centre out.
    Both are bilinear with antialiasing. Transparency is laid on white; 16 bits a channel become 8.
    Raises StageError where the bytes are no image of the formats that are read (policies/facts.py).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _prepare(image, size, resize)
    except Exception as error:  # whatever odd bytes make Pillow raise
        raise StageError(f"cannot be decoded: {error}") from error


def _prepare(image: Image.Image, size: Size, resize: Resize) -> NDArray[np.uint8]:
    orientation = _orientation(image)
    if image.format == "JPEG":
        _draft(image, size, resize, orientation)
    turn = TURNS.get(orientation)
    upright = to_rgb(image) if turn is None else to_rgb(image).transpose(turn)
    height, width = size
    box = _centre(upright.size, size) if resize == "crop" else None
    if upright.size != (width, height):
        upright = upright.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(upright)


def _orientation(image: Image.Image) -> int:
    """As EXIF says; of a broken one nothing is believed, and only it is read: other tags may be odd."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever odd bytes make Pillow raise
        return 1


def _draft(image: Image.Image, size: Size, resize: Resize, orientation: int) -> None:
    """Lets libjpeg decode a large photo at a half, a quarter or an eighth of its size.

    Never below twice the size asked for: the resize that follows then still sees what it would have averaged.
    """
    height, width = size
    if orientation in QUARTER_TURNED:
        height, width = width, height
    if resize == "crop":
        scale = max(width / image.width, height / image.height)
        width, height = round(image.width * scale), round(image.height * scale)
    image.draft(None, (2 * width, 2 * height))


def _centre(size: tuple[int, int], wanted: Size) -> tuple[float, float, float, float]:
    """The largest box of the wanted proportions in the middle of an image of this (width, height)."""
    width, height = size
    scale = min(width / wanted[1], height / wanted[0])
    left, top = (width - scale * wanted[1]) / 2, (height - scale * wanted[0]) / 2
    return left, top, width - left, height - top


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode that Pillow knows as RGB, not turned yet."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_wide(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _from_wide(image: Image.Image) -> Image.Image:
    """Gray values of more than 8 bits, scaled down (Pillow's own conversion would clip them at 255).

    16 bits count to 65535; of 32 bits (integers or floats) the largest value tells which scale they use.
    """
    values = np.asarray(image).astype(np.float32)
    highest = float(values.max(initial=0.0))
    if image.mode.startswith("I;16") or highest > 255:
        values = values / SIXTEEN_BITS
    elif image.mode == "F" and highest <= 1:
        values = values * 255
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
