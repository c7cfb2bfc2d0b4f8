"""One trial of a tuning, as Ray runs it: the house's own training, an epoch a step, in a run folder of its own.

What a trial has learnt is in its run folder, not in Ray's checkpoints: one whose worker is killed starts in another
worker, tells again what it had told, and trains on from its last epoch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ray import tune

from pipeline import track
from pipeline.settings import parse_settings
from pipeline.space import apply
from pipeline.trials import FINISHED, METRIC, Trials
from policies.job import StageError

EPOCH = "epoch"  # in a result: which one it is of, from 1
ERROR = "error"  # in a result: why the trial cannot be


class TrialRun(tune.Trainable):
    """Its configuration: the searcher's `point` and `number`, and the `order` that all trials of a tuning share."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Ray gives a worker its next trial: starting one, and loading torch in it, takes far longer."""
        self.order: Mapping[str, Any] = new_config["order"]
        self.settings = apply(parse_settings(self.order["settings"]), new_config["point"])
        self.trials = Trials.at(self.order["folder"])
        self.number = int(new_config["number"])
        self.told = 0  # epochs
        return True

    def step(self) -> dict[str, Any]:
        """The next epoch: read, where an earlier worker has run it, otherwise run."""
        self.told += 1
        epochs = self.trials.epochs(self.number)
        over = False
        if self.told >= len(epochs):  # the last one is asked for again: whether the training is over is in its outputs
            try:
                outputs = self._train()
            except StageError as error:
                return {ERROR: str(error), tune.result.DONE: True}
            over = outputs["epochs"] == self.settings.epochs or outputs["stopped_early"]
            epochs = self.trials.epochs(self.number)
        losses = [epoch["tune_loss"] for epoch in epochs[: self.told]]
        best = min(loss for loss in losses if math.isfinite(loss))
        return {EPOCH: self.told, METRIC: best, FINISHED: over, tune.result.DONE: over}

    def _train(self) -> dict[str, Any]:
        track.put_off()
        from pipeline import train  # torch: for the workers alone, not for who runs the tuning

        run = str(self.trials.run(self.number).path)
        order = {**self.order, "run": run, "settings": dataclasses.asdict(self.settings), "until": self.told}
        return train.run(order, {"pixels": {"pixels": self.order["pixels"]}}, _keep_quiet)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: see the module."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see the module."""


def _keep_quiet(done: float, total: float, unit: str, **figures: Any) -> None:
    """Progress is told by who runs the tuning, of all trials together."""
