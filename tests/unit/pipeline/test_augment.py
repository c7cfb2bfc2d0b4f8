"""Random changes to images: what they may do, what they must not, and that a seed repeats them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.augment import ASPECT, augment, draw_affine
from pipeline.settings import AugmentSettings

OFF: dict[str, Any] = {"crop_min": 1.0, "flip": False}
EVERYTHING = AugmentSettings(crop_min=0.5, flip=True, rotate_degrees=30, brightness=0.3, contrast=0.3)
KINDS = [
    {"crop_min": 0.5},
    {"rotate_degrees": 30.0},
    {"flip": True},
    {"brightness": 0.4},
    {"contrast": 0.4},
]


def some(number: int = 64, height: int = 12, width: int = 20) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, height, width), generator=draw).float()


def changed(images: Tensor, seed: int = 0, **settings: Any) -> Tensor:
    torch.manual_seed(seed)
    return augment(images, AugmentSettings(**{**OFF, **settings}))


def test_off_is_the_same_image() -> None:
    images = some()
    assert torch.equal(changed(images), images)


@pytest.mark.parametrize("kind", [*KINDS, {}])
def test_the_batch_given_stays_as_it_is(kind: dict[str, Any]) -> None:
    images = some()
    changed(images, **kind)
    assert torch.equal(images, some())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: next(iter(kind)))
def test_each_kind_changes_something_and_keeps_shape_type_and_range(kind: dict[str, Any]) -> None:
    images = some()
    found = changed(images, **kind)
    assert not torch.equal(found, images)
    assert (found.shape, found.dtype) == (images.shape, torch.float32)
    assert found.min() >= 0 and found.max() <= 255


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: next(iter(kind)))
def test_the_seed_repeats_them(kind: dict[str, Any]) -> None:
    images = some()
    assert torch.equal(changed(images, 3, **kind), changed(images, 3, **kind))
    assert not torch.equal(changed(images, 3, **kind), changed(images, 4, **kind))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: next(iter(kind)))
def test_each_image_is_changed_in_its_own_way(kind: dict[str, Any]) -> None:
    images = some(1).repeat(32, 1, 1, 1)
    assert len({image.numpy().tobytes() for image in changed(images, **kind)}) > 1


@pytest.mark.parametrize("more", [{}, {"rotate_degrees": 1e-9}])  # alone, and together with a turn
def test_a_flip_mirrors_about_half_of_them(more: dict[str, Any]) -> None:
    images = some(200)
    found = changed(images, flip=True, **more)
    same = [torch.allclose(a, b, atol=0.05) for a, b in zip(found, images, strict=True)]
    mirrored = [torch.allclose(a, b.flip(-1), atol=0.05) for a, b in zip(found, images, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 60 < sum(mirrored) < 140


def test_a_crop_or_turn_brings_in_nothing_from_beyond_the_edge() -> None:
    images = torch.full((32, 3, 12, 20), 200.0)
    found = changed(images, crop_min=0.3, rotate_degrees=45, flip=True)
    assert torch.allclose(found, images, atol=0.01)


@pytest.mark.parametrize("least", [0.3, 0.6, 0.95])
def test_a_crop_keeps_its_share_of_the_area_inside_the_image(least: float) -> None:
    torch.manual_seed(0)
    affine = draw_affine(500, (12, 20), AugmentSettings(crop_min=least, flip=False))
    wide, high = affine[:, 0, 0], affine[:, 1, 1]
    area = wide * high
    assert area.min() >= least - 1e-5 and area.max() <= 1 + 1e-5
    assert area.max() - area.min() > 0.8 * (1 - least)  # all of the range is drawn
    assert (wide / high).max() <= ASPECT + 1e-4 and (high / wide).max() <= ASPECT + 1e-4
    for scale, shift in ((wide, affine[:, 0, 2]), (high, affine[:, 1, 2])):
        assert (scale + shift.abs()).max() <= 1 + 1e-5
    assert affine[:, 0, 1].abs().max() == affine[:, 1, 0].abs().max() == 0


@pytest.mark.parametrize("degrees", [5.0, 30.0, 180.0])
def test_a_turn_is_rigid_and_at_most_as_far_as_said(degrees: float) -> None:
    torch.manual_seed(0)
    height, width = 12, 20
    settings = AugmentSettings(crop_min=1, flip=False, rotate_degrees=degrees)
    matrix = draw_affine(500, (height, width), settings)[:, :, :2]
    in_pixels = matrix * torch.tensor([[1, width / height], [height / width, 1]])
    assert torch.allclose(in_pixels @ in_pixels.transpose(1, 2), torch.eye(2).expand(500, 2, 2), atol=1e-5)
    angle = torch.atan2(in_pixels[:, 1, 0], in_pixels[:, 0, 0])
    assert angle.abs().max() <= math.radians(degrees) + 1e-6
    assert angle.max() > 0.9 * math.radians(degrees) and angle.min() < -0.9 * math.radians(degrees)


def test_brightness_is_one_factor_an_image() -> None:
    images = some().clamp(max=150)
    factors = (changed(images, brightness=0.3) / images.clamp(min=1)).flatten(1)
    strongest = factors.max(1).values
    assert torch.allclose(changed(images, brightness=0.3), images * strongest[:, None, None, None], atol=1e-2)
    assert strongest.min() >= 0.7 - 1e-4 and strongest.max() <= 1.3 + 1e-4
    assert strongest.max() - strongest.min() > 0.4


def test_contrast_keeps_the_mean_and_changes_the_spread() -> None:
    images = some() / 4 + 96  # nothing is cut off at the ends
    found = changed(images, contrast=0.3)
    assert torch.allclose(found.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-2)
    spread = found.std((1, 2, 3)) / images.std((1, 2, 3))
    assert spread.min() >= 0.7 - 1e-4 and spread.max() <= 1.3 + 1e-4
    assert spread.max() - spread.min() > 0.4


def test_what_is_drawn_does_not_depend_on_the_pixels() -> None:
    def after(images: Tensor) -> list[float]:
        torch.manual_seed(0)
        augment(images, EVERYTHING)
        return torch.rand(4).tolist()

    assert after(some()) == after(torch.zeros(64, 3, 12, 20))
