"""The demonstration's images: scikit-learn's handwritten digits (UCI, 1,797 of 8 x 8), cut into waves.

What the clients ask about is held back: none of it is in any wave, also not as an equal image of another number.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

SIZE = 32  # pixels that the target asks for; the digits are enlarged to it
FIRST = tuple("01234567")
LATER = tuple("89")
HELD_BACK = 30  # images of each class, for the clients
IN_FIRST_WAVE = 105  # images of each class
LATER_IMAGES = 12  # of each class: half for the third wave, a quarter each for the two without labels


@dataclass(frozen=True, slots=True)
class Digit:
    name: str  # the class, "0" to "9"
    number: int  # in the data set
    pixels: NDArray[np.uint8]  # (8, 8), grayscale
    truth: str = ""  # the class that it shows, where `name` is another

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.as_sent().tobytes()).hexdigest()

    @property
    def true_name(self) -> str:
        """The class that it shows, whatever it is called."""
        return self.truth or self.name

    def as_sent(self) -> NDArray[np.uint8]:
        """What a client sends: uint8 (SIZE, SIZE, 3), enlarged as training enlarges (Pillow, bilinear)."""
        image = Image.fromarray(self.pixels).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        return np.asarray(image, dtype=np.uint8)

    def save(self, images: Path) -> Path:
        """Writes the digit as a user would: a PNG in the folder of its class."""
        return self._write(images / self.name)

    def save_unlabelled(self, images: Path) -> Path:
        """Beside the folders of the classes."""
        return self._write(images)

    def _write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.number}.png"
        Image.fromarray(self.pixels).save(file)
        return file


def drop(digits: Iterable[Digit], images: Path, save: Callable[[Digit, Path], Path] = Digit.save) -> None:
    """All of them at once: written beside the folder and moved in, so that a disk that halts makes no two drops."""
    with tempfile.TemporaryDirectory(prefix=".wave-", dir=images.parent) as aside:
        for file in [save(digit, Path(aside)) for digit in digits]:
            place = images / file.relative_to(aside)
            place.parent.mkdir(exist_ok=True)
            file.rename(place)


@dataclass(frozen=True, slots=True)
class Waves:
    first: tuple[Digit, ...]
    second: tuple[Digit, ...]
    third: tuple[Digit, ...]
    unlabelled: tuple[tuple[Digit, ...], tuple[Digit, ...]]
    held_back: tuple[Digit, ...]


def cut() -> Waves:
    """The waves: eight digits; then more of them with two new ones; a third for people to look at; two without labels.

    What is held back is for the clients.
    """
    by_class: dict[str, list[Digit]] = defaultdict(list)
    for digit in _different(_load()):
        by_class[digit.name].append(digit)
    first: list[Digit] = []
    second: list[Digit] = []
    later: list[list[Digit]] = [[], [], []]
    held: list[Digit] = []
    for name in (*FIRST, *LATER):
        digits = by_class[name]
        # The data set stands in the order of its writers: each must be on both sides.
        apart = {len(digits) * n // HELD_BACK for n in range(HELD_BACK)}
        held += [digit for n, digit in enumerate(digits) if n in apart]
        dropped = [digit for n, digit in enumerate(digits) if n not in apart]
        early = IN_FIRST_WAVE if name in FIRST else 0
        first += dropped[:early]
        second += dropped[early:-LATER_IMAGES]
        for place, digit in enumerate(dropped[-LATER_IMAGES:]):
            later[place % 4 and place % 4 - 1].append(digit)  # half of them for the third wave
    third, clean, changed = map(tuple, later)
    return Waves(tuple(first), tuple(second), third, (clean, changed), tuple(held))


def swap_labels(digits: Sequence[Digit]) -> tuple[Digit, ...]:
    """The digits, each third of them under the name of the next class."""
    return tuple(
        replace(digit, name=str((int(digit.name) + 1) % 10), truth=digit.name) if place % 3 == 0 else digit
        for place, digit in enumerate(digits)
    )


def darken(digit: Digit) -> Digit:
    """As a lamp that fails and a lens out of focus would show it."""
    blurred = Image.fromarray(digit.pixels).filter(ImageFilter.GaussianBlur(1.0))
    return replace(digit, pixels=(np.asarray(blurred) * 0.4).astype(np.uint8))


def drop_broken(images: Path, good: Digit) -> list[Path]:
    """Three files that cannot be used: a truncated PNG, text with the name of one, an empty file."""
    folder = images / good.name
    truncated, text, empty = (folder / name for name in ("truncated.png", "text.png", "empty.png"))
    whole = (folder / f"{good.number}.png").read_bytes()
    truncated.write_bytes(whole[: len(whole) // 2])
    text.write_text("this is no picture\n", encoding="utf-8")
    empty.touch()
    return [truncated, text, empty]


def known(digits: Iterable[Digit], classes: Sequence[str]) -> list[Digit]:
    """Those of the digits whose class is one of these."""
    return [digit for digit in digits if digit.name in classes]


def _load() -> Iterable[Digit]:
    from sklearn.datasets import load_digits

    data = load_digits()
    for number, (image, label) in enumerate(zip(data.images, data.target, strict=True)):
        yield Digit(str(label), number, (image * (255 / 16)).astype(np.uint8))


def _different(digits: Iterable[Digit]) -> Iterable[Digit]:
    """Each image once, however often the data set has it."""
    seen = set()
    for digit in digits:
        if digit.sha256 not in seen:
            seen.add(digit.sha256)
            yield digit
