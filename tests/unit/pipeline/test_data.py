"""Batches: which samples, in which order, as what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data import Batches, balance, train_loader, tune_loader
from pipeline.pixels import Pixels, read_pixels
from pipeline.settings import TrainSettings


@pytest.fixture(scope="module")
def found(colours: Any) -> Pixels:
    return read_pixels(Path(colours.pixels["good"]["pixels"]))


def batches(number: int = 50, size: int = 16, epoch: int = 0, **settings: Any) -> list[np.ndarray]:
    made = Batches(np.arange(number) + 1000, np.arange(number) % 3, TrainSettings(batch_size=size, **settings))
    made.set_epoch(epoch)
    assert len(made) == len(list(made))
    return list(made)


@pytest.mark.parametrize(("number", "size", "count"), [(50, 16, 4), (48, 16, 3), (65, 64, 2), (5, 64, 1), (2, 1, 2)])
def test_an_epoch_has_every_sample_once_in_even_batches(number: int, size: int, count: int) -> None:
    found = batches(number, size)
    assert sorted(np.concatenate(found)) == list(range(1000, 1000 + number))
    sizes = [len(batch) for batch in found]
    assert len(sizes) == count
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1


def test_no_sample_is_alone_in_a_batch() -> None:
    assert min(len(batch) for batch in batches(5, 2)) > 1


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
def test_the_order_depends_on_seed_and_epoch_alone(sampling: str) -> None:
    def order(**more: Any) -> list[list[int]]:
        return [batch.tolist() for batch in batches(sampling=sampling, **more)]

    first = order(seed=1, epoch=4)
    np.random.seed(99)
    torch.manual_seed(99)
    assert order(seed=1, epoch=4) == first
    assert order(seed=1, epoch=5) != first
    assert order(seed=2, epoch=4) != first
    assert order(seed=5, epoch=4) != order(seed=4, epoch=5)


@pytest.mark.parametrize("sizes", [(40, 3, 7), (1, 100), (5, 5), (9,), (1, 1, 1, 60)])
def test_balanced_gives_every_class_as_often(sizes: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(sizes)) * 2, sizes)  # class numbers may have gaps
    drawn = balance(labels, np.random.default_rng(0))
    assert len(drawn) == len(labels)
    by_class = Counter(labels[drawn].tolist())
    assert len(by_class) == len(sizes)
    assert max(by_class.values()) - min(by_class.values()) <= 1
    for number in by_class:
        members = np.flatnonzero(labels == number)
        times = [int(np.sum(drawn == member)) for member in members]
        assert max(times) - min(times) <= 1  # none of a class is preferred


def test_balanced_mixes_the_classes() -> None:
    labels = np.repeat([0, 1], [10, 90])
    drawn = labels[balance(labels, np.random.default_rng(0))]
    assert 10 < np.count_nonzero(drawn[:50] == 0) < 40


def test_the_setting_decides_how_is_sampled() -> None:
    labels = np.repeat([0, 1], [4, 36])
    for sampling, rare in (("uniform", 4), ("balanced", 20)):
        made = Batches(np.arange(40), labels, TrainSettings(batch_size=8, sampling=sampling))
        assert np.count_nonzero(labels[np.concatenate(list(made))] == 0) == rare


def test_training_sees_the_train_samples_with_their_labels(found: Pixels) -> None:
    images, labels = zip(*train_loader(found, TrainSettings(batch_size=16)), strict=True)
    assert {(batch.dtype, batch.shape[1:]) for batch in images} == {(torch.uint8, (32, 32, 3))}
    assert {batch.dtype for batch in labels} == {torch.int64}
    together, told = torch.cat(images), torch.cat(labels)
    assert len(together) == len(found.select("train")) == 60
    # The colour of a train sample is its class.
    assert torch.equal(together.float().mean((1, 2)).argmax(1), told)


def test_tuning_sees_the_tune_samples_in_their_order(found: Pixels) -> None:
    images, labels = zip(*tune_loader(found, 20), strict=True)
    samples = found.select("tune")
    assert [len(batch) for batch in images] == [16, 16, 16]
    assert torch.equal(torch.cat(images), torch.from_numpy(found.take(samples)))
    assert torch.cat(labels).tolist() == found.labels[samples].tolist()


@pytest.mark.parametrize(
    "loader", [lambda p: train_loader(p, TrainSettings(batch_size=7)), lambda p: tune_loader(p, 7)]
)
def test_judge_samples_are_seen_by_nobody(found: Pixels, loader: Callable[[Pixels], Any]) -> None:
    judged = {image.tobytes() for image in found.take(found.select("judge"))}
    assert len(judged) == 12
    seen = {image.numpy().tobytes() for images, _ in loader(found) for image in images}
    assert seen and not seen & judged


def test_a_loader_draws_nothing_from_what_the_training_draws_from(found: Pixels) -> None:
    before = torch.get_rng_state()
    list(train_loader(found, TrainSettings(batch_size=16)))
    list(tune_loader(found, 16))
    assert torch.equal(torch.get_rng_state(), before)
