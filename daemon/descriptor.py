"""A small gray picture of an image, by which altered copies of it are recognised. Pillow alone: no numpy.

It is made where an image has just been decoded, in the reading child, and is compared in daemon/likeness.py.
"""

from __future__ import annotations

import math

from PIL import Image

SIDE = 32  # of the thumbnail, in pixels, whatever the image's proportions
SIZE = SIDE * SIDE + 2
SIXTEEN_BITS = 257.0  # 65535 / 255
# What is much larger is first averaged in whole pixels, or made smaller by its decoder, down to four times the size: as
# exact, and faster. Three times is not: of pages of text resized to 75% a quarter is lost.
REDUCING_GAP = 4.0
DRAFT = int(SIDE * REDUCING_GAP)  # pixels a side


def describe(image: Image.Image, size: tuple[int, int] | None = None) -> bytes:
    """SIZE bytes: 32 x 32 gray values, row by row, then the image's size √(width · height) as two bytes, low one first.

    The thumbnail is stretched to the square by an antialiased cubic filter: the comparison shifts it by parts of a
    pixel, which a sharper filter would falsify. The size tells how much noise to expect: a JPEG artifact is averaged
    away in the thumbnail of a photo, and not in that of an icon. The image is taken as it lies: upright is the
    caller's matter. Any mode that training takes; raises what Pillow raises of others (ValueError, OSError).
    size: width and height, where the image was decoded smaller than it is.
    """
    gray = _gray(image)
    if gray.size != (SIDE, SIDE):
        gray = gray.resize((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)
    side = min(round(math.sqrt(math.prod(size or image.size))), 0xFFFF)
    return gray.tobytes() + side.to_bytes(2, "little")


def _gray(image: Image.Image) -> Image.Image:
    """8 bits of gray; what is transparent lies on white, as in training."""
    mode = image.mode
    if mode == "L" and "transparency" not in image.info:
        return image
    if mode.startswith("I") or mode == "F":
        return _from_wide(image)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("L")
    return image.convert("L") if mode in ("RGB", "1", "P") else image.convert("RGB").convert("L")


def _from_wide(image: Image.Image) -> Image.Image:
    """More than 8 bits, scaled as training scales them: by 257, or as the largest value tells (Pillow would clip)."""
    values = image if image.mode == "F" else image.convert("I").convert("F")
    highest = values.getextrema()[1]
    assert isinstance(highest, float)
    scale = 1.0
    if image.mode.startswith("I;16") or highest > 255:
        scale = 1 / SIXTEEN_BITS
    elif image.mode == "F" and highest <= 1:
        scale = 255.0
    return values.point(lambda value: value * scale + 0.5).convert("L")
