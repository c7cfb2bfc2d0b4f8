"""Random changes to a batch of training images, drawn for each image and done for all at once, on any device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.settings import AugmentSettings

ASPECT = 4 / 3  # a crop is at most so much wider or higher than the image's own proportions


def augment(images: Tensor, settings: AugmentSettings) -> Tensor:
    """float (n, 3, H, W) of values 0..255 to the same. Draws from torch's generator of the CPU, whatever the device."""
    if settings.crop_min < 1 or settings.rotate_degrees > 0:
        images = _warp(images, draw_affine(len(images), images.shape[-2:], settings))
    elif settings.flip:
        flipped = (torch.rand(len(images)) < 0.5).to(images.device)
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    if settings.contrast > 0:
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (images - mean) * _factors(images, settings.contrast) + mean
    if settings.brightness > 0:
        images = images * _factors(images, settings.brightness)
    return images.clamp_(0, 255) if settings.contrast > 0 or settings.brightness > 0 else images


def _warp(images: Tensor, affine: Tensor) -> Tensor:
    grid = F.affine_grid(affine.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="reflection", align_corners=False)


def draw_affine(n: int, size: torch.Size | tuple[int, int], settings: AugmentSettings) -> Tensor:
    """(n, 2, 3): where each output pixel is taken from, in coordinates from -1 to 1 over the image.

    A random resized crop (Szegedy et al. 2015), turned about its own centre, mirrored in every second image.
    What a turned crop needs from beyond the edge is reflected.
    """
    height, width = size
    area = torch.empty(n).uniform_(settings.crop_min, 1)
    # No share of the area leaves room for more than this ratio of the sides.
    ratio = torch.exp(torch.empty(n).uniform_(-1, 1) * torch.log(1 / area).clamp(max=math.log(ASPECT)))
    wide, high = (area * ratio).sqrt(), (area / ratio).sqrt()
    x, y = (1 - wide) * torch.empty(n).uniform_(-1, 1), (1 - high) * torch.empty(n).uniform_(-1, 1)
    turn = torch.empty(n).uniform_(-1, 1) * math.radians(settings.rotate_degrees)
    mirror = 1 - 2 * (torch.rand(n) < 0.5).float() if settings.flip else torch.ones(n)
    cos, sin = turn.cos(), turn.sin()
    across = torch.stack([wide * cos * mirror, -high * sin * height / width, x], 1)
    down = torch.stack([wide * sin * mirror * width / height, high * cos, y], 1)
    return torch.stack([across, down], 1)


def _factors(images: Tensor, share: float) -> Tensor:
    return torch.empty(len(images), 1, 1, 1).uniform_(1 - share, 1 + share).to(images.device)
