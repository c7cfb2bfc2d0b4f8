"""Reads the decoded images of a snapshot: an index (.npz) over memory-mapped uint8 arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.facts import ROLES, Role
from policies.job import StageError


@dataclass(frozen=True)
class Pixels:
    """N samples of a snapshot; `images` holds one array uint8 (rows, H, W, 3) a shard."""

    shas: NDArray[np.uint8]  # (N, 32)
    labels: NDArray[np.int32]  # (N,) index into classes
    roles: NDArray[np.uint8]  # (N,) index into policies.facts.ROLES
    classes: list[str]
    shard: NDArray[np.int32]  # (N,)
    row: NDArray[np.int64]  # (N,)
    images: list[NDArray[np.uint8]]

    def select(self, role: Role) -> NDArray[np.int64]:
        """The numbers of the samples of this role."""
        return np.flatnonzero(self.roles == ROLES.index(role))

    def hexes(self, samples: NDArray[np.int64]) -> list[str]:
        return [self.shas[i].tobytes().hex() for i in samples]

    def take(self, samples: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Their images, uint8 (n, H, W, 3), copied into memory."""
        return np.stack([self.images[self.shard[i]][self.row[i]] for i in samples])

    def batches(self, samples: NDArray[np.int64], size: int) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(samples), size):
            yield self.take(samples[start : start + size])


def check_size(pixels: Pixels, size: Mapping[str, int], index: str, whose: str) -> None:
    """Raises StageError where the images are not of this size, which is that of `whose` input."""
    wanted = (size["height"], size["width"], size["channels"])
    for images in pixels.images:
        if images.shape[1:] != wanted:
            raise StageError(
                f"{index} holds images of shape {images.shape[1:]}, {whose} takes {wanted}; "
                "run the pixels stage at its input size"
            )


def read_pixels(index: Path) -> Pixels:
    """Reads the index and maps its arrays. Raises StageError, naming the file, where one cannot be read."""
    arrays: dict[str, Any]
    try:
        with np.load(index, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        shards = [index.parent / str(name) for name in arrays["shards"]]
        images = [np.load(path, mmap_mode="r", allow_pickle=False) for path in shards]
        return Pixels(
            shas=arrays["sha"],
            labels=arrays["label"],
            roles=arrays["role"],
            classes=[str(name) for name in arrays["classes"]],
            shard=arrays["shard"],
            row=arrays["row"],
            images=images,
        )
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StageError(
            f"the decoded images of {index} cannot be read ({error}); run the pixels stage again"
        ) from error
