"""Decoded images are found by the index: each sample its own, whatever shard it lies in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.pixels import read_pixels
from policies.facts import Role
from policies.job import StageError
from tests.unit.deploy.models import class_names, noise, write_pixels

CLASSES = class_names(3)
ROWS = [(role, CLASSES[number % 3]) for number, role in enumerate(("train", "judge", "tune", "judge", "train") * 3)]
IMAGES = noise(len(ROWS))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return write_pixels(tmp_path / "pixels", CLASSES, ROWS, IMAGES, shards=3)


@pytest.mark.parametrize("role", ["train", "tune", "judge"])
def test_the_samples_of_a_role_are_selected_in_order(index: Path, role: Role) -> None:
    found = read_pixels(index).select(role)
    assert found.tolist() == [number for number, row in enumerate(ROWS) if row[0] == role]


def test_every_sample_has_its_own_image_name_and_class(index: Path) -> None:
    pixels = read_pixels(index)
    samples = np.array([14, 0, 7, 7])
    np.testing.assert_array_equal(pixels.take(samples), IMAGES[samples])
    assert pixels.hexes(samples) == [hashlib.sha256(IMAGES[i].tobytes()).hexdigest() for i in samples]
    assert [pixels.classes[pixels.labels[i]] for i in samples] == [ROWS[i][1] for i in samples]


@pytest.mark.parametrize("size", [1, 4, 15, 100])
def test_batches_are_all_the_images_in_order(index: Path, size: int) -> None:
    pixels = read_pixels(index)
    samples = np.arange(len(ROWS))
    batches = list(pixels.batches(samples, size))
    assert {len(batch) for batch in batches[:-1]} <= {size}
    np.testing.assert_array_equal(np.concatenate(batches), IMAGES)
    assert list(pixels.batches(samples[:0], size)) == []


def test_what_is_taken_is_a_copy_and_the_shards_are_mapped(index: Path) -> None:
    pixels = read_pixels(index)
    assert all(isinstance(images, np.memmap) and not images.flags.writeable for images in pixels.images)
    pixels.take(np.array([0]))[:] = 0
    np.testing.assert_array_equal(pixels.take(np.array([0])), IMAGES[:1])


@pytest.mark.parametrize("name", ["index.npz", "1.npy"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b"junk"),
        lambda file: file.write_bytes(file.read_bytes()[:300]),
        lambda file: file.write_bytes(b""),
    ],
    ids=["missing", "junk", "cut", "empty"],
)
def test_what_cannot_be_read_is_named_with_what_to_do(index: Path, name: str, spoil: Callable[[Path], object]) -> None:
    spoil(index.with_name(name))
    with pytest.raises(StageError) as refused:
        read_pixels(index)
    assert str(refused.value).startswith(f"the decoded images of {index} cannot be read (")
    assert str(refused.value).endswith("; run the pixels stage again")


@pytest.mark.parametrize("missing", ["sha", "label", "role", "classes", "shard", "row", "shards"])
def test_an_index_that_lacks_an_array_is_refused(index: Path, missing: str) -> None:
    with np.load(index) as stored:
        rest = {name: stored[name] for name in stored.files if name != missing}
    np.savez(index, **rest)
    with pytest.raises(StageError, match=missing):
        read_pixels(index)
