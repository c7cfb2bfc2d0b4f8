"""What Lightning trains: the network, its loss, and the sums that its record is made of."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.augment import augment
from pipeline.data import Batch
from pipeline.fold import fold_frozen
from pipeline.images import Size
from pipeline.model import Served, still_layers
from pipeline.optimizer import create_optimizer, create_schedule
from pipeline.settings import TrainSettings


class Classifier(pl.LightningModule):
    """Nothing is logged and nothing waits for the device within an epoch: sums stay on it."""

    def __init__(self, served: Served, settings: TrainSettings, steps: int, size: Size) -> None:
        super().__init__()
        self.served, self.settings, self.steps, self.size = served, settings, steps, size
        self.still = list(still_layers(served.net, settings.freeze_batch_norm))
        self.second_order = False
        self.loss_sum = self.tune_loss_sum = self.tune_correct = torch.zeros(())
        self.seen = self.tune_seen = 0

    @property
    def net(self) -> nn.Module:
        return self.served.net

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        for layer in self.still:
            layer.eval()
        return self

    def on_train_start(self) -> None:
        # By now it is on its device, and restored from its checkpoint: what is frozen stays as it is.
        noise = torch.randn((2, 3, *self.size), generator=torch.Generator().manual_seed(0))
        fold_frozen(self.net, noise.to(self.device, memory_format=torch.channels_last))

    def on_train_epoch_start(self) -> None:
        # All that an epoch draws (augmentation, dropout) depends on seed and epoch: a resumed one draws the same.
        torch.manual_seed(self.settings.seed * 1_000_003 + self.current_epoch)
        self.train()
        self.loss_sum, self.seen = torch.zeros((), device=self.device), 0

    def training_step(self, batch: Batch, _: int) -> Tensor:
        images, labels = batch
        changed = augment(images.permute(0, 3, 1, 2).float(), self.settings.augment)
        ready = self.served.normalize(changed).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(self.net(ready), labels, label_smoothing=self.settings.label_smoothing)
        self.loss_sum += loss.detach() * len(labels)
        self.seen += len(labels)
        return loss

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss, create_graph=self.second_order)

    def on_validation_epoch_start(self) -> None:
        self.tune_loss_sum = self.tune_correct = torch.zeros((), device=self.device)
        self.tune_seen = 0

    def validation_step(self, batch: Batch, _: int) -> None:
        images, labels = batch
        ready = self.served.normalize(images.permute(0, 3, 1, 2).float())
        logits = self.net(ready.contiguous(memory_format=torch.channels_last)).float()
        self.tune_loss_sum = self.tune_loss_sum + F.cross_entropy(logits, labels, reduction="sum")
        self.tune_correct = self.tune_correct + (logits.argmax(1) == labels).sum()
        self.tune_seen += len(labels)

    def configure_optimizers(self) -> Any:
        optimizer = create_optimizer(self.net, self.settings)
        self.second_order = getattr(optimizer, "is_second_order", False)
        schedule = create_schedule(optimizer, self.steps, self.settings)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
