"""JPEG files by whose answers a person tells that a client of theirs prepares images otherwise than training did.

An artifact carries them, with what it answers to them prepared rightly, and in each of the usual wrong ways, so that
the answers of a client say which it is. They are drawn here, from fixed seeds, and hold nobody's data: fine stripes
(for the resize), other colours on each side (for crop and order of channels), two that lie on their side (for EXIF).

    specimen-1.jpg …    the files
    specimens.json      {"resize", "classes", "files", "answers": {way: [[probability, …] of each file]}}
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploy import artifact
from deploy.client import TURNS, centre, prepare, read_orientation
from deploy.engines import Runner

RIGHT = "as training"
TURNED = (1, 6, 1, 8)  # EXIF's orientation of each file
TALL, WIDE = 1.5, 2.4  # times the input: below 2 libjpeg decodes at full size, whoever asks
ROWS = 64  # of a picture that are drawn at once: one of a large input has a hundred megapixels
SEEN = 5.0  # times the tolerance that an answer must move by for a way to be told from the right one

Probabilities = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Size = tuple[int, int]
Way = Callable[[bytes, Size, str], Pixels]


def other_proportions(data: bytes, size: Size, resize: str) -> Pixels:
    return prepare(data, size, "crop" if resize == "stretch" else "stretch")


def resampled(method: Image.Resampling, *, antialias: bool = True, upright: bool = True) -> Way:
    """Prepared rightly, but for how it is resized, or turned."""

    def way(data: bytes, size: Size, resize: str) -> Pixels:
        with Image.open(io.BytesIO(data)) as image:
            orientation = read_orientation(image) if upright else 1
            rgb = image.convert("RGB")
        rgb = rgb.transpose(TURNS[orientation]) if orientation in TURNS else rgb
        box = centre(rgb.size, size) if resize == "crop" else (0, 0, *rgb.size)
        to = (size[1], size[0])
        if antialias:
            return np.asarray(rgb.resize(to, method, box=box))
        return np.asarray(rgb.transform(to, Image.Transform.EXTENT, box, method))

    return way


def reversed_channels(way: Way) -> Way:
    return lambda data, size, resize: np.ascontiguousarray(way(data, size, resize)[..., ::-1])


_PLAIN = resampled(Image.Resampling.BILINEAR, antialias=False)
WAYS: Mapping[str, tuple[Way, str]] = {  # name -> how it is done, and what to say of it
    RIGHT: (prepare, "as training prepares it"),
    "bgr": (reversed_channels(prepare), "blue and red are swapped: OpenCV reads BGR, the model takes RGB"),
    "proportions": (other_proportions, "it crops where training stretches, or the other way round (`input.resize`)"),
    "no antialias": (_PLAIN, "it resizes without antialiasing, as cv2.INTER_LINEAR and torch's interpolate do"),
    "bgr, no antialias": (
        reversed_channels(_PLAIN),
        "blue and red are swapped, and it resizes without antialiasing: both are OpenCV's way",
    ),
    "bicubic": (resampled(Image.Resampling.BICUBIC), "it resizes bicubic, which is Pillow's default, not bilinear"),
    "nearest": (resampled(Image.Resampling.NEAREST), "it resizes by the nearest pixel"),
    "not upright": (
        resampled(Image.Resampling.BILINEAR, upright=False),
        "it does not turn images upright as their EXIF orientation says",
    ),
}


def draw(size: Size) -> dict[str, bytes]:
    """The files for an input of (height, width): name -> bytes of a JPEG."""
    found = {}
    for number, orientation in enumerate(TURNED):
        lies = orientation > 4
        factors = (WIDE, TALL) if number % 2 else (TALL, WIDE)
        upright = (round(size[0] * factors[0]), round(size[1] * factors[1]))
        pixels = picture(upright, seed=number)
        exif, stream = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        stored = np.rot90(pixels, 1 if orientation == 6 else -1) if lies else pixels
        Image.fromarray(stored).save(stream, "JPEG", quality=92, subsampling=0, exif=exif)
        found[artifact.SPECIMENS[number + 1]] = stream.getvalue()
    return found


def picture(size: Size, seed: int) -> Pixels:
    """A picture (height, width, 3): a course of colours from side to side, large blots, fine stripes."""
    random = np.random.default_rng(seed)
    ends = random.uniform(0, 255, (2, 3))
    ends[0, 0], ends[0, 2], ends[1, 0], ends[1, 2] = 240, 20, 30, 230  # from red to blue
    blots = [
        (random.uniform(0, 1, 2) * size, random.uniform(0.08, 0.25) * min(size), random.uniform(0, 255, 3))
        for _ in range(6)
    ]
    stripes = [(period, random.uniform(0, np.pi), random.uniform(-1, 1, 3)) for period in (2.0, 3.3)]
    pixels: Pixels = np.empty((*size, 3), np.uint8)
    for top in range(0, size[0], ROWS):
        y, x = np.mgrid[top : min(top + ROWS, size[0]), 0 : size[1]].astype(np.float64)
        across = x / size[1] if seed % 2 == 0 else y / size[0]
        image = ends[0] + across[..., None] * (ends[1] - ends[0])
        for at, radius, colour in blots:
            image[(y - at[0]) ** 2 + (x - at[1]) ** 2 < radius**2] = colour
        for period, turn, strength in stripes:
            wave = np.sin(2 * np.pi * (x * np.cos(turn) + y * np.sin(turn)) / period)
            image += 60 * wave[..., None] * strength
        pixels[top : top + ROWS] = np.clip(image, 0, 255)
    return pixels


def write(work: Path, model: Mapping[str, Any], ask: Runner) -> None:
    """Lays the files and the answers of the artifact to them into its folder. model: the manifest of its model."""
    size = (model["input"]["height"], model["input"]["width"])
    resize = model.get("resize", "stretch")
    files = draw(size)
    answers = {}
    for name, (way, _) in WAYS.items():
        found = ask(np.stack([way(data, size, resize) for data in files.values()]))
        answers[name] = [[round(float(value), 6) for value in row] for row in found]
    for name, data in files.items():
        (work / name).write_bytes(data)
    said = {"resize": resize, "classes": list(model["classes"]), "files": list(files), "answers": answers}
    (work / artifact.SPECIMENS[0]).write_text(json.dumps(said), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Record:
    """What is recorded of an artifact: its classes, the files, and its answers float32 (files, classes) by way."""

    resize: str
    classes: list[str]
    files: list[str]
    answers: Mapping[str, Probabilities]
    tolerance: float  # by which an answer may differ for no reason but the machine

    @property
    def hidden(self) -> list[str]:
        """The ways that move no answer by enough to be seen: what is wrong in them, this model does not mind."""
        right = self.answers[RIGHT]
        apart = {way: float(np.abs(found - right).max()) for way, found in self.answers.items() if way != RIGHT}
        return [way for way, moved in apart.items() if moved <= SEEN * self.tolerance]


def read(folder: Path) -> Record:
    """The record of an artifact's folder. Raises ArtifactError where there is none to read."""
    about, file = artifact.read_manifest(folder), folder / artifact.SPECIMENS[0]
    if file.name not in about["files"]:
        raise artifact.ArtifactError(f"{folder} was built before there were such files; the next training has them")
    for name in artifact.SPECIMENS:
        artifact.check_file(folder / name, about["files"][name]["sha256"])
    said = json.loads(file.read_text(encoding="utf-8"))
    answers = {way: np.array(rows, np.float32) for way, rows in said["answers"].items() if way in WAYS}
    return Record(said["resize"], said["classes"], said["files"], answers, artifact.find_tolerance(about))


def read_answers(file: Path, record: Record) -> Probabilities | list[str]:
    """What a client answered, of JSON {file: [probability, …] or {class: probability} or class}.

    float32 (files, classes), or the class of each file. Raises ValueError, naming the entry, where it is another thing.
    """
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    by_name = {Path(name).name: answer for name, answer in said.items()} if isinstance(said, dict) else {}
    if missing := [name for name in record.files if name not in by_name]:
        raise ValueError(f'{file} has no answer to {", ".join(missing)}; write {{"{record.files[0]}": […], …}}')
    rows = [by_name[name] for name in record.files]
    if all(isinstance(row, str) for row in rows):
        if unknown := set(rows) - set(record.classes):
            raise ValueError(f"{file}: the model has no class {', '.join(sorted(unknown))}")
        return rows
    return np.stack([_row(file, name, row, record.classes) for name, row in zip(record.files, rows, strict=True)])


def _row(file: Path, name: str, row: Any, classes: Sequence[str]) -> Probabilities:
    values = [row.get(c) for c in classes] if isinstance(row, dict) else row
    if (
        not isinstance(values, list)
        or len(values) != len(classes)
        or not all(isinstance(value, int | float) for value in values)
    ):
        raise ValueError(f"{file}: {name}: give a probability for each of the {len(classes)} classes, or a class")
    return np.array(values, np.float32)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether a client prepares images as training did, and what says so."""

    agrees: bool
    likeliest: str  # way
    said: str
    distances: Mapping[str, float]  # way -> how far the answers are from what it gives
    hidden: list[str]  # ways that this model does not show


def compare(record: Record, found: Probabilities | list[str]) -> Comparison:
    """Holds a client's answers against those of each way.

    The distance is the mean difference of a probability's row, in all its classes; of classes alone, the share of the
    files that are answered otherwise.
    """
    if isinstance(found, list):
        named = {way: [record.classes[i] for i in rows.argmax(1)] for way, rows in record.answers.items()}
        far = {way: float(np.mean([a != b for a, b in zip(found, names, strict=True)])) for way, names in named.items()}
        agrees = far[RIGHT] == 0
        hidden = [way for way, names in named.items() if way != RIGHT and names == named[RIGHT]]
    else:
        far = {way: float(np.abs(found - rows).sum(1).mean()) for way, rows in record.answers.items()}
        agrees = bool(np.abs(found - record.answers[RIGHT]).max() <= record.tolerance)
        hidden = record.hidden
    likeliest = RIGHT if agrees else min(far, key=lambda way: (far[way], way != RIGHT))
    return Comparison(agrees, likeliest, _say(record, found, agrees, likeliest), far, hidden)


def _say(record: Record, found: Probabilities | list[str], agrees: bool, likeliest: str) -> str:
    if agrees:
        return "the answers are those of images that are prepared as training prepares them"
    if likeliest != RIGHT:
        return f"images are prepared otherwise than in training; likeliest: {WAYS[likeliest][1]}"
    by = "" if isinstance(found, list) else f" (by up to {np.abs(found - record.answers[RIGHT]).max():.3g})"
    return (
        f"the answers are nearest to those of images that are prepared rightly, and not the same{by}: another decoder "
        "or another version of the resize, perhaps; deploy/client.py has the very pixels of training"
    )
