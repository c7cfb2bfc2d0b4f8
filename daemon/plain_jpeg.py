"""The usual JPEG, decoded without Pillow's reader of headers, which takes as long as a small image's pixels.

Plain is one that holds what decoding needs and nothing that says more of it: no EXIF, no colour profile, no further
pictures, and colours at a whole part of the size. Its pixels come from the same decoder, as `draft` would have them:
gray, which a JPEG holds apart from its colours, and no larger than asked. All of the file is read and decoded for it,
but that its pixels' colours are not worked out, which cannot fail then. Any other, and whatever is odd about one, is
left to Pillow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

SOI, APP0, DQT, SOF, DHT, SOS = b"\xff\xd8", 0xE0, 0xDB, (0xC0, 0xC2), 0xC4, 0xDA
MODES = {1: "L", 3: "RGB"}  # by the number of components
TABLE = 65  # bytes of a quantization table of 8 bits, with its number
JFIF = 16
SCALES = (8, 4, 2)  # by which the decoder makes an image smaller


class Plain(NamedTuple):
    """What a plain JPEG is."""

    mode: str
    width: int  # pixels
    height: int

    def scale(self, enough: int) -> int:
        """How many times smaller it may be decoded, to have so many pixels a side still."""
        side = min(self.width, self.height)
        return next((scale for scale in SCALES if side // enough >= scale), 1)


def decode(content: bytes, max_pixels: float, enough: int) -> tuple[Plain, Image.Image] | None:
    """What it is, and the image in gray, of at least `enough` pixels a side if it has them.

    None where it is not plain, not whole, or larger than that. Raises MemoryError.
    """
    if (plain := _look(content)) is None or plain.width * plain.height > max_pixels:
        return None
    scale = plain.scale(enough)
    size = (-(-plain.width // scale), -(-plain.height // scale))
    try:
        return plain, Image.frombytes("L", size, content, "jpeg", "L", "", scale, 0)
    except ValueError:
        return None


def _look(content: bytes) -> Plain | None:
    """What it is, if all that stands before the pixels is plain."""
    at, found = 2, None
    if content[:2] != SOI:
        return None
    while content[at : at + 1] == b"\xff" and at + 4 <= len(content):
        marker, length = content[at + 1], content[at + 2] << 8 | content[at + 3]
        if marker in SOF:
            mode = MODES.get(content[at + 9]) if at + 10 <= len(content) else None
            if found or mode is None or content[at + 4] != 8 or length != 8 + 3 * len(mode):
                return None
            sampling = content[at + 11 : at + 2 + length : 3]
            if not is_whole([(pair >> 4, pair & 15) for pair in sampling]):
                return None
            height, width = content[at + 5] << 8 | content[at + 6], content[at + 7] << 8 | content[at + 8]
            found = Plain(mode, width, height) if width and height else None
        elif marker == SOS:
            return found
        elif not _is_plain(marker, length, content[at + 4 : at + 9]):
            return None
        at += 2 + length
    return None


def is_whole(sampling: Sequence[tuple[int, int]]) -> bool:
    """Whether each component has a whole part of the most samples, across and down: libjpeg works out no others."""
    return all(number and max(axis) % number == 0 for axis in zip(*sampling, strict=True) for number in axis)


def _is_plain(marker: int, length: int, start: bytes) -> bool:
    if marker == DQT:
        return length % TABLE == 2 and start[0] < 16
    return marker == DHT or (marker == APP0 and length == JFIF and start == b"JFIF\0")
