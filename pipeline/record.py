"""Keeps what a training must not lose: its history, its best weights, and all its state after every epoch."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import save_file

from pipeline.classifier import Classifier
from pipeline.durable import replacing
from pipeline.model import state_of
from pipeline.run_folder import RunFolder
from policies.job import Report, StageError

REPORT_SECONDS = 0.5  # between two words of progress


class Record(pl.Callback):
    """Writes the run folder's files after each epoch: best weights, then checkpoint, then history.

    In this order, so that a kill between two of them costs an epoch and never mixes two: the epoch is run again,
    draws the same, and writes the same.
    """

    def __init__(
        self, run: RunFolder, attempt: int, patience: int, report: Report, track: Callable[[dict[str, Any]], None]
    ) -> None:
        self.run, self.attempt, self.patience, self.report, self.track = run, attempt, patience, report, track
        self.epochs: list[dict[str, Any]] = []
        self.best_epoch, self.best_loss = 0, math.inf
        self.first = 0  # epochs done before this attempt
        self.started = self.epoch_started = self.told = time.monotonic()
        self.train_seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "best_epoch": self.best_epoch, "best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = list(state_dict["epochs"])
        self.best_epoch, self.best_loss = state_dict["best_epoch"], state_dict["best_loss"]
        self.first = len(self.epochs)

    @property
    def stopped_early(self) -> bool:
        return 0 < self.patience <= len(self.epochs) - self.best_epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epoch_started = time.monotonic()
        self.train_seconds = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if batch_idx + 1 == trainer.num_training_batches:
            self.train_seconds = now - self.epoch_started
        elif now - self.told >= REPORT_SECONDS:
            self._tell(trainer, pl_module, trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        entry = self._describe(trainer, pl_module)
        self.epochs.append(entry)
        if not math.isfinite(entry["loss"]):
            raise StageError(
                f"the loss is {entry['loss']} after epoch {entry['epoch']}: lower train.learning_rate "
                f"(it is {pl_module.settings.learning_rate:g}) or lengthen train.warmup_share"
            )
        loss = entry["tune_loss"]
        if loss is None or loss < self.best_loss:
            self.best_epoch, self.best_loss = entry["epoch"], math.inf if loss is None else loss
            with replacing(self.run.weights) as aside:
                save_file(state_of(pl_module.net), aside)
        with replacing(self.run.checkpoint) as aside:
            trainer.save_checkpoint(aside)
        self.run.write_history(self.attempt, self.epochs)
        self.track(entry)
        trainer.should_stop = trainer.should_stop or self.stopped_early
        last = trainer.should_stop or len(self.epochs) == trainer.max_epochs
        if last or time.monotonic() - self.told >= REPORT_SECONDS:
            self._tell(trainer, pl_module, len(self.epochs))

    def _describe(self, trainer: pl.Trainer, module: Classifier) -> dict[str, Any]:
        tuned = module.tune_seen > 0
        return {
            "epoch": len(self.epochs) + 1,
            "attempt": self.attempt,
            "loss": float(module.loss_sum) / max(module.seen, 1),
            "tune_loss": float(module.tune_loss_sum) / module.tune_seen if tuned else None,
            "tune_accuracy": float(module.tune_correct) / module.tune_seen if tuned else None,
            "learning_rate": float(trainer.optimizers[0].param_groups[-1]["lr"]),
            "images_per_second": module.seen / max(self.train_seconds, 1e-9),
            "seconds": time.monotonic() - self.epoch_started,
        }

    def _tell(self, trainer: pl.Trainer, module: pl.LightningModule, done: float) -> None:
        assert isinstance(module, Classifier)
        now, total = time.monotonic(), trainer.max_epochs or 0
        left = (now - self.started) / max(done - self.first, 1e-9) * (total - done)
        seconds = self.train_seconds or now - self.epoch_started
        self.report(
            round(done, 3),
            total,
            "epoch",
            loss=round(float(module.loss_sum) / max(module.seen, 1), 5),
            tune_accuracy=self.epochs[-1]["tune_accuracy"] if self.epochs else None,
            seconds_left=0.0 if trainer.should_stop else round(left, 1),
            images_per_second=round(module.seen / max(seconds, 1e-9), 1),
        )
        self.told = now


def read_checkpoint(file: Path) -> dict[str, Any] | None:
    """The record's state in a checkpoint; None where there is none, or none that can be read (which is said)."""
    if not file.exists():
        return None
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        state: dict[str, Any] = checkpoint["callbacks"][Record.__qualname__]
        return state
    except Exception as error:  # whatever a damaged file makes torch raise
        print(f"{file} cannot be read ({type(error).__name__}: {error}): starting anew", file=sys.stderr)
        return None
