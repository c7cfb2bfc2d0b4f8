"""Altered copies are found, images of a fixed camera are told apart, and the index survives what happens to files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_digits

from daemon.decode import decode
from daemon.descriptor import SIZE, describe
from daemon.duplicates import PICTURE, RECORD, Index

Alter = Callable[[Image.Image], Image.Image]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    written = io.BytesIO()
    image.save(written, "JPEG", quality=quality)
    return Image.open(written)


def natural(number: int, width: int = 120, height: int = 96) -> Image.Image:
    """A picture of its own: soft blobs on one another, with a little grain."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width]
    pixels = np.full((height, width, 3), rng.uniform(40, 200, 3))
    for _ in range(14):
        far = np.hypot(x - rng.uniform(0, width), (y - rng.uniform(0, height)) * rng.uniform(0.5, 2))
        pixels[far < rng.uniform(6, 30)] = rng.uniform(20, 225, 3)
    image = Image.fromarray((pixels + rng.normal(0, 2, pixels.shape)).clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(0.7))


def line(number: int) -> Image.Image:
    """A shot of a fixed camera: one background, one part that lies a little elsewhere, with a texture of its own."""
    rng, fixed = np.random.default_rng(1000 + number), np.random.default_rng(0)
    background = np.asarray(Image.fromarray(fixed.uniform(60, 120, (12, 16)).astype(np.uint8)).resize((160, 120), 3))
    y, x = np.mgrid[:120, :160]
    right, down = rng.normal(0, 1.5, 2)
    part = 180 + np.asarray(Image.fromarray(rng.normal(0, 6, (12, 16)).astype(np.float32)).resize((160, 120), 3))
    on_it = np.hypot(x - 80 - right, y - 60 - down) < 38
    pixels = np.where(on_it, part, background) * rng.uniform(0.95, 1.05) + rng.normal(0, 2, (120, 160))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGB")


def crop(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((round(0.04 * width), round(0.01 * height), round(0.99 * width), round(0.96 * height)))


ALTERATIONS: dict[str, Alter] = {
    "jpeg 50": lambda image: jpeg(image, 50),
    "jpeg 95": lambda image: jpeg(image, 95),
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "double": lambda image: image.resize((image.width * 2, image.height * 2)),
    "crop": crop,
    "darker": lambda image: image.point(lambda value: round(value * 0.9)),
    "brighter": lambda image: image.point(lambda value: min(255, round(value * 1.1))),
}


def described(images: Iterable[Image.Image]) -> list[bytes]:
    return [describe(image) for image in images]


@pytest.fixture
def index(tmp_path: Path) -> Iterable[Index]:
    with Index(tmp_path / "index") as opened:
        yield opened


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [natural(number) for number in range(60)]


@pytest.fixture(scope="module")
def shots() -> list[Image.Image]:
    return [line(number) for number in range(80)]


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_copy_is_found(index: Index, pictures: list[Image.Image], name: str) -> None:
    assert index.add(range(60), described(pictures)) == []
    copies = described(ALTERATIONS[name](image) for image in pictures)
    assert index.add(range(100, 160), copies) == [(number, 100 + number) for number in range(60)]


@pytest.mark.parametrize("name", ALTERATIONS)
def test_a_fixed_camera_is_no_group_and_its_copies_are_found(index: Index, shots: list[Image.Image], name: str) -> None:
    assert index.add(range(80), described(shots)) == []
    copies = described(ALTERATIONS[name](image) for image in shots[:20])
    found = index.add(range(100, 120), copies)
    assert set(found) <= {(number, 100 + number) for number in range(20)}
    assert len(found) >= 19


def test_the_first_few_shots_of_a_camera_are_no_group_either(index: Index, shots: list[Image.Image]) -> None:
    assert [index.add([number], described([shots[number]])) for number in range(12)] == [[]] * 12


def test_handwritten_digits_are_not_taken_for_one_another(index: Index) -> None:
    digits = [Image.fromarray((image * 15).astype(np.uint8)) for image in load_digits().images]
    assert index.add(range(len(digits)), described(digits)) == []


def test_what_shows_nothing_is_like_nothing(index: Index) -> None:
    assert index.add([1, 2, 3], described(Image.new("L", (50, 50), level) for level in (0, 0, 255))) == []


def test_one_by_one_finds_what_all_at_once_finds(tmp_path: Path, pictures: list[Image.Image]) -> None:
    images = described([*pictures, *(crop(image) for image in pictures[:15])])
    with Index(tmp_path / "once") as once, Index(tmp_path / "forth") as forth, Index(tmp_path / "back") as back:
        together = once.add(range(75), images)
        ahead = sorted(pair for number in range(75) for pair in forth.add([number], [images[number]]))
        behind = sorted(pair for number in reversed(range(75)) for pair in back.add([number], [images[number]]))
    assert together == ahead == behind
    assert len(together) == 15


def test_what_is_there_already_is_passed_over(index: Index, pictures: list[Image.Image]) -> None:
    index.add([5, 6], described(pictures[:2]))
    assert index.add([5, 6, 7, 7], described([*pictures[:2], pictures[0], pictures[0]])) == [(5, 7)]
    assert len(index) == 3


def test_missing_tells_what_the_index_lacks(index: Index, pictures: list[Image.Image]) -> None:
    index.add([3, 9], described(pictures[:2]))
    assert index.missing([9, 4, 3, 1]) == [4, 1]
    assert index.missing([]) == []


def test_a_removed_image_is_gone_from_the_disk_and_found_no_more(tmp_path: Path, pictures: list[Image.Image]) -> None:
    image = describe(pictures[0])
    with Index(tmp_path) as index:
        index.add([1, 2], [image, describe(pictures[1])])
        index.remove([1, 77])
        assert (index.missing([1, 2]), len(index)) == ([1], 1)
        assert index.add([3], [image]) == []
    with Index(tmp_path) as index:
        index.remove([3])
        assert index.missing([1, 2, 3]) == [1, 3]
    assert image[:1024] not in (tmp_path / "pictures").read_bytes()


def test_it_is_there_after_the_next_opening(tmp_path: Path, pictures: list[Image.Image]) -> None:
    with Index(tmp_path) as index:
        index.add(range(30), described(pictures[:30]))
    with Index(tmp_path) as index:
        assert index.add([50], described([crop(pictures[7])])) == [(7, 50)]


@pytest.mark.parametrize("lost", [1, 5, 64, 100, 700, 1034, 2000])
@pytest.mark.parametrize("torn", ["codes", "pictures"])
def test_a_torn_tail_is_cut_off(tmp_path: Path, pictures: list[Image.Image], torn: str, lost: int) -> None:
    with Index(tmp_path) as index:
        index.add(range(40), described(pictures[:40]))
    file, size = tmp_path / torn, {"codes": RECORD, "pictures": PICTURE}[torn].itemsize
    file.write_bytes(file.read_bytes()[:-lost])
    with Index(tmp_path) as index:
        missing = index.missing(range(40))
        assert missing == list(range(40 - -(-lost // size), 40))
        index.add(missing, described(pictures[number] for number in missing))
        assert index.add([60], described([crop(pictures[39])])) == [(39, 60)]


def test_a_damaged_record_is_missing_and_harms_no_other(tmp_path: Path, pictures: list[Image.Image]) -> None:
    with Index(tmp_path) as index:
        index.add(range(10), described(pictures[:10]))
    with (tmp_path / "codes").open("r+b") as file:
        file.seek(4 * RECORD.itemsize)
        file.write(bytes(RECORD.itemsize))
    with Index(tmp_path) as index:
        assert index.missing(range(10)) == [4]
        assert index.add([4, 20], described([pictures[4], crop(pictures[4])])) == [(4, 20)]


def test_other_descriptors_and_ids_are_refused(index: Index) -> None:
    for ids, descriptors in (([1], [b"short"]), ([1, 2], [bytes(SIZE)]), ([-1], [bytes(SIZE)])):
        with pytest.raises(ValueError, match="descriptors of"):
            index.add(ids, descriptors)


def page(number: int, width: int = 500, height: int = 400) -> Image.Image:
    """A page of text: all that it shows is finer than the thumbnail."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", (width, height), "white")
    for y in range(0, height, 11):
        letters = rng.integers(97, 123, width // 6 - int(rng.integers(0, 30)))
        ImageDraw.Draw(image).text((2, y), bytes(letters.tolist()).decode(), fill="black")
    return image


def encoded(image: Image.Image, kind: str) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return written.getvalue()


@pytest.mark.parametrize("number", range(6))
def test_a_page_is_found_again_whatever_was_decoded_at_which_size(tmp_path: Path, number: int) -> None:
    """A JPEG's decoder makes it smaller itself, by its own filter; of a PNG all pixels are averaged."""
    image = page(number, 300 + 170 * number, 290 + 140 * number)
    smaller = image.resize((3 * image.width // 4, 3 * image.height // 4), Image.Resampling.LANCZOS)
    contents = [encoded(image, "JPEG"), encoded(smaller, "JPEG"), encoded(image, "PNG")]
    with Index(tmp_path) as index:
        found = index.add(range(3), [decode(content, 1e8)[1] for content in contents])
    assert {(0, 1), (0, 2)} <= set(found)
