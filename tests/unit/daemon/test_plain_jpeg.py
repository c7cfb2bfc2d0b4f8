"""Plain JPEGs are what Pillow's own draft makes of them, byte for byte, and all others are left to it."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from daemon.decode import decode as take_in
from daemon.originals import Unusable
from daemon.plain_jpeg import decode
from pipeline.images import decode as decode_for_training
from tests import hostile

ENOUGH = 128


def jpeg(mode: str = "RGB", size: tuple[int, int] = (37, 21), **how: Any) -> bytes:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size[1], size[0], 4), np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").convert(mode).save(written, "JPEG", **how)
    return written.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "how", [{}, {"quality": 5}, {"quality": 100, "subsampling": 0}, {"progressive": True}, {"optimize": True}]
)
@pytest.mark.parametrize("size", [(1, 1), (37, 21), (400, 300), (603, 1201)])
def test_a_plain_one_is_decoded_as_pillow_does(mode: str, how: dict[str, Any], size: tuple[int, int]) -> None:
    content = jpeg(mode, size, **how)
    found = decode(content, 1e6, ENOUGH)
    assert found is not None
    plain, gray = found
    with Image.open(io.BytesIO(content)) as expected:
        assert plain == (expected.mode, *expected.size)
        expected.draft("L", (ENOUGH, ENOUGH))
        assert (gray.mode, gray.size, gray.tobytes()) == (expected.mode, expected.size, expected.tobytes())
        assert min(gray.size) >= min(ENOUGH, *size)


def exif() -> bytes:
    told = Image.Exif()
    told[0x0112] = 6
    return told.tobytes()


def of_no_width(content: bytes) -> bytes:
    at = content.index(b"\xff\xc0") + 7
    return content[:at] + bytes(2) + content[at + 2 :]


def test_what_is_taken_in_training_can_decode() -> None:
    """Its colours, too, which nobody works out here: at some samplings there are none for libjpeg."""
    content = hostile.image("JPEG", size=(64, 48))
    taken = refused = 0
    for factors in itertools.product((0x11, 0x21, 0x12, 0x31, 0x41, 0x22), repeat=3):
        odd = hostile.sampled(content, *factors)
        try:
            take_in(odd, 1e6)
        except Unusable:
            refused += 1
            continue
        decode_for_training(odd, (32, 32), "stretch")
        taken += 1
    assert taken > 20
    assert refused > 20


OTHERS: dict[str, Callable[[], bytes]] = {
    "of four colours": lambda: jpeg("CMYK"),
    "with EXIF": lambda: jpeg(exif=exif()),
    "with a colour profile": lambda: jpeg(icc_profile=b"profile"),
    "with a comment": lambda: jpeg(comment=b"words"),
    "larger than that": lambda: jpeg(size=(1001, 1000)),
    "cut in its pixels": lambda: jpeg()[:-40],
    "cut in its header": lambda: jpeg()[:170],
    "cut in a marker": lambda: jpeg()[:163],
    "no JPEG": lambda: b"\x89PNG\r\n\x1a\n" + bytes(60),
    "nothing": lambda: b"",
    "of no width": lambda: of_no_width(jpeg()),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_any_other_is_left_to_pillow(kind: str) -> None:
    assert decode(OTHERS[kind](), 1e6, ENOUGH) is None
    assert decode(jpeg(), 1e6, ENOUGH) is not None
