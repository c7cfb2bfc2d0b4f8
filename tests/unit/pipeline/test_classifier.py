"""What is trained: the loss, the sums of an epoch, and which layers stand still."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.classifier import Classifier
from pipeline.model import Served, create_network, freeze
from pipeline.settings import AugmentSettings, TrainSettings

OFF = AugmentSettings(crop_min=1.0, flip=False)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def make(architecture: str = "test_vit", stages: int = -1, **settings: Any) -> Classifier:
    torch.manual_seed(0)
    net = create_network(architecture, 3, (32, 32))
    freeze(net, stages)
    return Classifier(Served(net, MEAN, STD), TrainSettings(**{"augment": OFF, **settings}), steps=10, size=(32, 32))


def batch(number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    return torch.from_numpy(images), torch.from_numpy(draw.integers(0, 3, number))


def scores(module: Classifier, images: Tensor) -> np.ndarray:
    """Logits by hand."""
    ready = ((images.numpy() / 255 - MEAN) / STD).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.no_grad():
        return module.net(torch.from_numpy(ready)).double().numpy()


def log_softmax(values: np.ndarray) -> np.ndarray:
    return values - np.log(np.exp(values).sum(1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_cross_entropy_with_smoothed_labels(smoothing: float) -> None:
    module = make(label_smoothing=smoothing)
    module.on_train_epoch_start()
    images, labels = batch(5)
    wanted = np.full((5, 3), smoothing / 3)
    wanted[np.arange(5), labels.numpy()] += 1 - smoothing
    loss = -(wanted * log_softmax(scores(module, images))).sum(1)
    assert module.training_step((images, labels), 0).item() == pytest.approx(loss.mean(), abs=1e-5)


def test_an_epochs_loss_counts_every_image_alike() -> None:
    module = make(label_smoothing=0.0)
    module.on_train_epoch_start()
    losses = [(number, module.training_step(batch(number, number), 0).item()) for number in (5, 2)]
    assert module.seen == 7
    assert float(module.loss_sum) == pytest.approx(sum(number * loss for number, loss in losses), abs=1e-4)
    module.on_train_epoch_start()
    assert (module.seen, float(module.loss_sum)) == (0, 0.0)


def test_tuning_sums_loss_without_smoothing_and_right_answers() -> None:
    module = make(label_smoothing=0.3, augment=AugmentSettings(crop_min=0.2, brightness=0.5)).eval()
    module.on_validation_epoch_start()
    loss = correct = 0.0
    for number in (5, 3):
        images, labels = batch(number, number)
        with torch.inference_mode():
            module.validation_step((images, labels), 0)
        logits, told = scores(module, images), labels.numpy()
        loss -= log_softmax(logits)[np.arange(number), told].sum()
        correct += np.count_nonzero(logits.argmax(1) == told)
    assert module.tune_seen == 8
    assert float(module.tune_loss_sum) == pytest.approx(loss, abs=1e-4)
    assert float(module.tune_correct) == correct
    module.on_validation_epoch_start()
    assert (module.tune_seen, float(module.tune_loss_sum), float(module.tune_correct)) == (0, 0.0, 0.0)


def test_training_images_are_changed_as_the_settings_say() -> None:
    module = make(augment=AugmentSettings(crop_min=0.2))
    module.on_train_epoch_start()
    first, second = (module.training_step(batch(5), 0).item() for _ in range(2))
    assert first != second
    module.on_train_epoch_start()
    assert module.training_step(batch(5), 0).item() == first  # an epoch draws the same again


def test_what_an_epoch_draws_depends_on_the_seed() -> None:
    losses = []
    for seed in (0, 1):
        module = make(augment=AugmentSettings(crop_min=0.2), seed=seed)
        module.on_train_epoch_start()
        losses.append(module.training_step(batch(5), 0).item())
    assert losses[0] != losses[1]


@pytest.mark.parametrize(("stages", "frozen"), [(-1, False), (0, False), (-1, True)])
def test_statistics_move_in_training_unless_they_are_frozen(stages: int, frozen: bool) -> None:
    module = make("test_resnet", stages, freeze_batch_norm=frozen)
    before = {name: value.clone() for name, value in module.net.named_buffers() if "running" in name}
    module.eval()
    module.on_train_epoch_start()
    module.training_step(batch(8), 0)
    moved = {
        name for name, value in module.net.named_buffers() if name in before and not torch.equal(value, before[name])
    }
    assert moved == (set() if frozen or stages == 0 else set(before))


def test_the_optimizer_takes_the_settings() -> None:
    made = make(learning_rate=0.02, scheduler="constant", warmup_share=0.5).configure_optimizers()
    schedule = made["lr_scheduler"]
    assert schedule["interval"] == "step"
    rates = []
    for _ in range(10):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        schedule["scheduler"].step()
    assert rates[:5] == pytest.approx([0.02 * (step + 1) / 6 for step in range(5)])  # half of the ten steps
    assert rates[5:] == [0.02] * 5
