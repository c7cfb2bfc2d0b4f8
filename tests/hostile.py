"""A corpus of hostile files: each is made in a folder, with what must be said of it, or None where it is a fine image.

And one of manifests that lie beside fine images, 1.png, 2.png and 3.png.

python tests/hostile.py FOLDER    # lays the corpus there, to be looked at or dropped into a watched folder
"""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

Make = Callable[[Path], object]  # is handed the path to make


class Hostile(NamedTuple):
    path: bytes  # below the class folder
    make: Make
    reason: str | None  # a regular expression; None: the file is to be accepted


def image(
    kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (40, 30), seed: int = 0, **how: object
) -> bytes:
    """A fine image of noise, that no other is like."""
    rng = random.Random(f"{kind} {mode} {size} {seed}")
    colours = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
    out = io.BytesIO()
    colours.convert(mode).save(out, kind, **how)
    return out.getvalue()


def sampled(content: bytes, *factors: int) -> bytes:
    """A JPEG whose components say these sampling factors (across in the upper four bits, down in the lower)."""
    at = content.index(b"\xff\xc0") + 11
    return b"".join(
        [
            content[:at],
            *(bytes([factor]) + content[at + 3 * k + 1 : at + 3 * k + 3] for k, factor in enumerate(factors)),
            content[at + 3 * len(factors) :],
        ]
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, body: bytes = b"", *, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG that says what it is of itself, whatever it holds."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = zlib.compress(body or bytes(64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bomb(side: int) -> bytes:
    """A whole PNG of one colour: small as a file, large as an image."""
    squeeze = zlib.compressobj(9)
    row = bytes(1 + side)
    body = b"".join(squeeze.compress(row) for _ in range(side)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def fits(width: int, height: int) -> bytes:
    """A gray picture as telescopes write it: a header of cards, then rows, each filled up to 2,880 bytes."""
    about = {"SIMPLE": "T", "BITPIX": 8, "NAXIS": 2, "NAXIS1": width, "NAXIS2": height}
    cards = [*(f"{name:8}= {value:>20}" for name, value in about.items()), "END"]
    header = "".join(f"{card:80}" for card in cards)
    return f"{header:2880}".encode() + bytes(range(240)) * (width * height // 240) + bytes(-width * height % 2880)


def write(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def cut(content: bytes, share: float) -> Make:
    return write(content[: int(len(content) * share)])


def link(target: str) -> Make:
    return lambda path: path.symlink_to(target)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def listen(path: Path) -> None:
    """A socket, by a short name: the address of one is short."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def with_exif(size: int) -> bytes:
    """A JPEG with as much EXIF as it may have, many times over."""
    plain = image("JPEG", seed=7)
    segment = b"\xff\xe1" + struct.pack(">H", 65535) + b"Exif\0\0" + bytes(65527)
    return plain[:2] + segment * (size // 65535) + plain[2:]


def endless_gif() -> bytes:
    """Frames without end: the trailer never comes."""
    frames = [Image.new("L", (16, 16), 80 * n) for n in range(3)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    body = out.getvalue()
    frame = body.index(b"!\xf9") if b"!\xf9" in body else body.index(b",")
    return body[:-1] + body[frame:-1] * 2000


def sparse(start: bytes, size: int = 17 << 20) -> Make:
    """More than is kept in memory while it is decoded (daemon/store.py), nearly all of it a hole."""

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.write(start)
            file.truncate(size)

    return make


def nested(levels: int) -> Make:
    def make(path: Path) -> None:
        at = path.parent
        for _ in range(levels):
            at = at / "d"
        at.mkdir(parents=True)
        (at / "deep.png").write_bytes(image(seed=200))

    return make


UNKNOWN = "is no image that can be recognised|cannot be decoded"
OTHER = "is no image that can be recognised, .*: JPEG, PNG, WEBP, BMP, TIFF and GIF are read"
BROKEN = "cannot be decoded"
NAMES = "its name is not UTF-8 text on one line"
JPEG, PNG, GIF, TIFF = image("JPEG"), image("PNG"), image("GIF", "P"), image("TIFF")
ZIP = b"PK\x03\x04" + bytes(26) + b"evil.txt"
SCRIPT = b"#!/bin/sh\nrm -rf /\n"

CORPUS: list[Hostile] = [
    # nothing, or next to nothing
    Hostile(b"zero.png", write(b""), "is empty"),
    Hostile(b"one-byte.jpg", write(b"\xff"), UNKNOWN),
    Hostile(b"zeros.png", write(bytes(100_000)), UNKNOWN),
    Hostile(b"noise.jpg", write(random.Random(1).randbytes(100_000)), UNKNOWN),
    Hostile(b"signature.png", write(PNG[:8]), UNKNOWN),
    Hostile(b"signature.jpg", write(JPEG[:3]), UNKNOWN),
    # cut off, and damaged
    Hostile(b"truncated.png", cut(PNG, 0.6), BROKEN),
    Hostile(b"truncated.jpg", cut(JPEG, 0.6), BROKEN),
    Hostile(b"truncated.gif", cut(GIF, 0.5), BROKEN),
    Hostile(b"truncated.tif", cut(TIFF, 0.5), UNKNOWN),
    Hostile(b"truncated.bmp", cut(image("BMP"), 0.5), BROKEN),
    Hostile(b"truncated.webp", cut(image("WEBP"), 0.5), UNKNOWN),
    Hostile(b"truncated-by-one.jpg", write(JPEG[:-3]), BROKEN),
    Hostile(b"bad-crc.png", write(flipped(PNG, 50)), BROKEN),
    Hostile(b"bad-header.png", write(flipped(PNG, 20)), UNKNOWN + "|megapixels"),
    Hostile(b"no-pixels.png", write(png(40, 30, b"x")), BROKEN),
    Hostile(b"zero-wide.png", write(png(0, 30)), UNKNOWN),
    Hostile(b"odd-bits.png", write(png(40, 30, bits=3)), UNKNOWN),
    Hostile(b"odd-colour.png", write(png(40, 30, colour=9)), UNKNOWN),
    # too large
    Hostile(b"claims-30000.png", write(png(30_000, 30_000)), "900 megapixels, more than watch.max_megapixels"),
    Hostile(b"bomb-30000.png", write(bomb(30_000)), "900 megapixels, more than watch.max_megapixels"),
    Hostile(b"claims-2-31.png", write(png(2**31 - 1, 2**31 - 1)), "megapixels|" + UNKNOWN),
    Hostile(b"long.png", write(png(1_000_000, 1, bytes(3_000_001))), None),
    Hostile(b"claims-60000.bmp", write(b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 60_000, 60_000, 1, 24,
                                                          0, 0, 0, 0, 0, 0)), "megapixels"),
    Hostile(b"claims-65535.gif", write(b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";"),
            "megapixels|" + UNKNOWN),
    # not what they are called
    Hostile(b"really-a-jpeg.png", write(image("JPEG", seed=2)), None),
    Hostile(b"really-a-png.jpg", write(image("PNG", seed=3)), None),
    Hostile(b"no-ending", write(image("PNG", seed=4)), None),
    Hostile(b"text.png", write(b"this is text\n" * 100), UNKNOWN),
    Hostile(b"script.jpg", write(SCRIPT), UNKNOWN),
    Hostile(b"page.png", write(b"<html><body><img src=x onerror=alert(1)></body></html>"), UNKNOWN),
    Hostile(b"drawing.svg", write(b'<svg><image href="/etc/passwd"/></svg>'), UNKNOWN),
    Hostile(b"document.pdf", write(b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n"), UNKNOWN),
    Hostile(b"archive.png", write(ZIP * 50), UNKNOWN),
    Hostile(b"program.png", write(b"\x7fELF" + bytes(2000)), UNKNOWN),
    Hostile(b"pickle.png", write(b"\x80\x04cos\nsystem\n(S'false'\ntR."), UNKNOWN),
    Hostile(b"postscript.eps", write(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), UNKNOWN),
    # images of formats that are not read, whole ones
    Hostile(b"drawing.eps", write(image("EPS", seed=40)), OTHER),
    Hostile(b"stars.fits", write(fits(40, 30)), OTHER),
    Hostile(b"pixels.ppm", write(image("PPM", seed=41)), OTHER),
    # two things at once
    Hostile(b"and-an-archive.png", write(image("PNG", seed=5) + ZIP), None),
    Hostile(b"colours-of-two-thirds.jpg", write(sampled(JPEG, 0x31, 0x21, 0x11)), BROKEN),  # its gray can be decoded
    Hostile(b"and-a-script.jpg", write(image("JPEG", seed=6) + SCRIPT), None),
    Hostile(b"and-a-page.gif", write(image("GIF", "P", seed=7) + b"<script>alert(1)</script>"), None),
    Hostile(b"two-images.jpg", write(image("JPEG", seed=8) + image("JPEG", seed=9)), None),
    Hostile(b"two-pictures.mpo", write(image("MPO", seed=42, save_all=True, append_images=[Image.new("RGB", (9, 9))])),
            None),
    # much beside the picture
    Hostile(b"huge-exif.jpg", write(with_exif(4 << 20)), None),
    Hostile(b"broken-exif.jpg", write(JPEG[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff\xff\xff" + JPEG[2:]), None),
    Hostile(b"huge-comment.png", write(PNG[:33] + chunk(b"tEXt", b"k\0" + bytes(5 << 20)) + PNG[33:]), None),
    Hostile(b"text-bomb.png", write(PNG[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(64 << 20))) + PNG[33:]),
            UNKNOWN),
    Hostile(b"endless.gif", write(endless_gif()), None),
    Hostile(b"loop.tif", write(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"), UNKNOWN),
    # large, and nowhere near what they say of themselves
    Hostile(b"beyond.tif", sparse(b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**63 - 1)), UNKNOWN),
    Hostile(b"far-beyond.tif", sparse(b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**64 - 1)), UNKNOWN),
    Hostile(b"endless-chunk.png", sparse(PNG[:33] + struct.pack(">I", 2**32 - 1) + b"IDAT"),
            f"{BROKEN}|takes more memory"),
    Hostile(b"endless.webp", sparse(b"RIFF\xff\xff\xff\xffWEBPVP8L\xff\xff\xff\xff"), UNKNOWN),
    Hostile(b"pixels-elsewhere.bmp", sparse(b"BM" + struct.pack("<IHHIIiiHHIIiiII", 2**32 - 1, 0, 0, 2**32 - 1, 40, 40,
                                                              30, 1, 24, 0, 0, 0, 0, 0, 0)), BROKEN),
    # modes
    Hostile(b"sixteen-bits.png", write(png(4, 4, (b"\0" + bytes(range(8))) * 4, bits=16, colour=0)), None),
    Hostile(b"one-bit.png", write(image("PNG", "1", seed=10)), None),
    Hostile(b"palette.png", write(image("PNG", "P", seed=11)), None),
    Hostile(b"printed.jpg", write(image("JPEG", "CMYK", seed=12)), None),
    Hostile(b"clear.png", write(image("PNG", "RGBA", seed=13)), None),
    Hostile(b"one-pixel.png", write(image("PNG", size=(1, 1), seed=14)), None),
    # names
    Hostile(b"caf\xe9.png", write(image(seed=20)), NAMES),
    Hostile(b"\xff\xfe\xfd.png", write(image(seed=21)), NAMES),
    Hostile(b"\x93\xfa\x96\x7b.png", write(image(seed=22)), NAMES),  # Shift-JIS
    Hostile(b"line\nbreak.png", write(image(seed=23)), NAMES),
    Hostile(b"bell\x07.png", write(image(seed=24)), NAMES),
    Hostile(b"n" * 251 + b".png", write(image(seed=25)), None),
    Hostile("日本語 и ελληνικά 🦊.png".encode(), write(image(seed=26)), None),
    Hostile(b"'; DROP TABLE samples; --.png", write(image(seed=27)), None),
    Hostile(b"[bold red]%s{0}$(false)`false`.png", write(image(seed=28)), None),
    Hostile(b" space .png", write(image(seed=29)), None),
    Hostile(b"-rf", write(image(seed=30)), None),
    Hostile(b"nested", nested(200), None),
    # no files at all
    Hostile(b"pipe.png", os.mkfifo, "is no regular file"),
    Hostile(b"socket.png", listen, "is no regular file"),
    Hostile(b"null.png", link("/dev/null"), "is a link out of the watched folder, to /dev/null"),
    Hostile(b"zero-device.png", link("/dev/zero"), "is a link out of the watched folder, to /dev/zero"),
    Hostile(b"passwd.png", link("/etc/passwd"), "is a link out of the watched folder, to /etc/passwd"),
    Hostile(b"root", link("/"), "is a link out of the watched folder"),
    Hostile(b"itself.png", link("itself.png"), "Too many levels of symbolic links"),
    Hostile(b"nothing.png", link("never-made.png"), "is a link to nothing"),
    Hostile(b"around", link(".."), "is a link out of the watched folder|is a link to a folder that holds it"),
]  # fmt: skip


class Manifest(NamedTuple):
    name: str  # of the folder that it is laid in, with the ending of the manifest
    make: Make
    reasons: tuple[str, ...]  # what must be said of it: regular expressions
    classes: dict[str, str]  # of the images: what else it says holds


NOTHING: dict[str, str] = {}
BOTH = {"1.png": "cat", "2.png": "dog"}
ODD_ROWS = {  # each between two rows that are fine
    b"../../etc/passwd,cat": "leads out of the watched folder, by ../../etc/passwd",
    b"3.png/../../outside.png,cat": "leads out of the watched folder",
    b"/etc/passwd,cat": "names an absolute path, /etc/passwd",
    b"//etc/passwd,cat": "names an absolute path",
    b"3.png": "has 1 columns, not 2",
    b"3.png,cat,dog,owl": "has 4 columns, not 2",
    b"3\0.png,cat": "holds control characters",
    b"3.png,c\0t": "holds control characters",
    b"3.png,\xe9\xff": "is not UTF-8 text",
    b'"3.png,cat': "is no row of CSV",
    b'3.png,"cat': "is no row of CSV",
    b"3.png," + b"x" * (50 << 20): "is longer than 65,536 bytes",
    b"3.png,../../cat": "has a label that is no name of a class",
    b",cat": "names no path",
}
ODD_LINES = {
    b'{"path": ["3.png"], "label": "cat"}': "must be text",
    b'{"path": {"path": "3.png"}, "label": "cat"}': "must be text",
    b'{"path": "3.png", "label": ["cat", "dog"]}': "must be text",
    b'{"path": "3.png", "label": {"name": "cat"}}': "must be text",
    b'{"path": "3.png", "label": 3}': "must be text",
    b'{"path": "3.png", "label": true}': "must be text",
    b'{"path": null, "label": "cat"}': "must be text",
    b'{"path": "3.png"}': 'must be an object with "path" and "label"',
    b'["3.png", "cat"]': 'must be an object with "path" and "label"',
    b'{"path": "3.png", "label": "cat"': "is no JSON",
    b'{"path": "3.png", "label": ' + b"9" * 5000 + b"}": "is no JSON",
    b"[" * 60_000: "is no JSON",
    b'{"path": "3.png", "path": "../3.png", "label": "cat"}': "leads out of the watched folder",
    b'{"path": "/3.png", "label": "cat"}': "names an absolute path",
    rb'{"path": "3\u0000.png", "label": "cat"}': "holds control characters",
    rb'{"path": "3\ud800.png", "label": "cat"}': "holds control characters",
    b'{"path": "3.png", "label": "c\xff"}': "is not UTF-8 text",
    b'{"path": "3.png", "label": "' + b"x" * (50 << 20) + b'"}': "is longer than 65,536 bytes",
}


def between(first: bytes, rows: Iterable[bytes], last: bytes) -> Make:
    return write(b"\n".join([first, *rows, last, b""]))


FIRST_ROW, LAST_ROW = b"path,label\n1.png,cat", b"2.png,dog"
FIRST_LINE, LAST_LINE = b'{"path": "1.png", "label": "cat"}', b'{"path": "2.png", "label": "dog"}'
HEADER = "line 1: must name the columns path and label"
ROW = b"path,label\n1.png,cat\n2.png,dog\n"

MANIFESTS: list[Manifest] = [
    Manifest("rows.csv", between(FIRST_ROW, ODD_ROWS, LAST_ROW), tuple(ODD_ROWS.values()), BOTH),
    Manifest("lines.jsonl", between(FIRST_LINE, ODD_LINES, LAST_LINE), tuple(ODD_LINES.values()), BOTH),
    Manifest("twice.csv", between(FIRST_ROW, [b"1.png,cat", b"./1.png,cat"], LAST_ROW), (), BOTH),
    Manifest("contradictory.csv", between(FIRST_ROW, [b"3.png,cat", b"./3.png,dog", b"3.png,cat"], LAST_ROW),
             ("line 4: says of 3.png dog, line 3 says cat: it has no class", "line 5: says of 3.png cat"), BOTH),
    Manifest("contradictory.jsonl", between(FIRST_LINE, [b'{"path": "3.png", "label": "cat"}',
                                                         b'{"path": "3.png", "label": null}'], LAST_LINE),
             ("says of 3.png no class, line 2 says cat: it has no class",), BOTH),
    Manifest("marked.csv", write(b"\xef\xbb\xbf" + ROW), (), BOTH),
    Manifest("marked.jsonl", between(b"\xef\xbb\xbf" + FIRST_LINE, [], LAST_LINE), (), BOTH),
    Manifest("wide.csv", write(ROW.decode().encode("utf-16")), ("line 1: is not UTF-8 text",), NOTHING),
    Manifest("empty.csv", write(b""), ("is empty",), NOTHING),
    Manifest("header-alone.csv", write(b"path,label\n"), (), NOTHING),
    Manifest("columns.csv", write(b"file,class\n1.png,cat\n"), (HEADER,), NOTHING),
    Manifest("no-header.csv", write(b"1.png,cat\n2.png,dog\n"), (HEADER,), NOTHING),
    Manifest("long-header.csv", write(b"x" * (50 << 20)), (HEADER,), NOTHING),
    Manifest("image.csv", write(PNG), ("line 1: ",), NOTHING),
    Manifest("folder.csv", os.mkdir, ("is a folder",), NOTHING),
    Manifest("pipe.csv", os.mkfifo, ("is no regular file",), NOTHING),
    Manifest("socket.csv", listen, ("is no regular file",), NOTHING),
    Manifest("device.csv", link("/dev/zero"), ("is a link out of the watched folder, to /dev/zero",), NOTHING),
    Manifest("outside.csv", link("../../outside.csv"), ("is a link out of the watched folder, to ",), NOTHING),
]  # fmt: skip


def lay(folder: Path) -> None:
    """Makes the whole corpus in a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for hostile in CORPUS:
        hostile.make(folder / os.fsdecode(hostile.path))


if __name__ == "__main__":
    lay(Path(sys.argv[1]))
