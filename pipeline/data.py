"""Batches of decoded images, taken whole from the memory-mapped arrays, in an order that a resumed training repeats."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.pixels import Pixels
from pipeline.settings import TrainSettings

Indices = NDArray[np.int64]
Batch = tuple[Tensor, Tensor]  # images uint8 (n, H, W, 3), labels int64 (n,)


class Images(Dataset[Batch]):
    """Samples of a snapshot; indexed by an array of sample numbers, it gives their batch."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels

    def __getitem__(self, samples: Indices) -> Batch:
        labels = self.pixels.labels[samples].astype(np.int64)
        return torch.from_numpy(self.pixels.take(samples)), torch.from_numpy(labels)


class Batches(Sampler[Indices]):
    """Sample numbers, a batch at a time; the order depends on seed and epoch alone, on nothing drawn before.

    The batches of an epoch differ in size by one at most: no sample is left out, and none is alone in a batch,
    which batch normalisation could not take (unless batches of one are asked for).
    """

    def __init__(self, samples: Indices, labels: Indices, settings: TrainSettings) -> None:
        self.samples, self.labels = samples, labels
        self.seed, self.balanced = settings.seed, settings.sampling == "balanced"
        full = -(-len(samples) // settings.batch_size)
        self.count = max(1, min(full, len(samples) // 2)) if settings.batch_size > 1 else full
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Indices]:
        draw = np.random.default_rng((self.seed, self.epoch))
        order = balance(self.labels, draw) if self.balanced else draw.permutation(len(self.samples))
        # Sorted: the order within a batch is of no matter, and memory-mapped rows are read forwards.
        yield from (np.sort(self.samples[part]) for part in np.array_split(order, self.count))


def balance(labels: Indices, draw: np.random.Generator) -> Indices:
    """As many numbers as there are labels, each class as often as the others (within one), in random order.

    A class gives each of its samples equally often (within one): repeated where it is small, a random part of
    it where it is large.
    """
    classes = draw.permutation(np.unique(labels))
    shares = np.array_split(np.arange(len(labels)), len(classes))
    parts = []
    for number, share in zip(classes, shares, strict=True):
        members = np.flatnonzero(labels == number)
        rounds = -(-len(share) // len(members))
        parts.append(np.concatenate([draw.permutation(members) for _ in range(rounds)])[: len(share)])
    return draw.permutation(np.concatenate(parts))


def train_loader(pixels: Pixels, settings: TrainSettings) -> DataLoader[Batch]:
    samples = pixels.select("train")
    return _loader(pixels, Batches(samples, pixels.labels[samples].astype(np.int64), settings))


def tune_loader(pixels: Pixels, batch_size: int) -> DataLoader[Batch]:
    """The tune samples in the snapshot's order. Only where there are any."""
    samples = pixels.select("tune")
    parts = np.array_split(samples, -(-len(samples) // batch_size))
    return _loader(pixels, parts)


def _loader(pixels: Pixels, batches: Sampler[Indices] | list[Indices]) -> DataLoader[Batch]:
    # A generator of its own: a loader draws a seed each time it starts, which would shift torch's common one.
    return DataLoader(
        Images(pixels),
        batch_size=None,
        sampler=batches,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )
