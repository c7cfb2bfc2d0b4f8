"""The stage that trains: a network of timm on a snapshot's pixels, by Lightning, resumable at any kill."""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from pipeline import track
from pipeline.classifier import Classifier
from pipeline.data import train_loader, tune_loader
from pipeline.durable import hash_file, read_json, write_json
from pipeline.model import Served, create_network, freeze, load_weights, mean_and_std, weights_mb
from pipeline.optimizers import Race, choose
from pipeline.pixels import Pixels, read_pixels
from pipeline.record import Record, read_checkpoint
from pipeline.run_folder import Recipe, RunFolder
from pipeline.settings import AUTO, TrainSettings, parse_settings
from policies.job import Outputs, Report, StageError

PRECISION: dict[str, Any] = {"32": "32-true", "bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"}


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """The stage: trains, or goes on with what the run folder holds; see the run folder for what it leaves."""
    torch.set_num_threads(int(inputs["threads"]))
    _quieten()
    pixels = read_pixels(Path(earlier["pixels"]["pixels"]))
    folder = RunFolder(Path(inputs["run"]))
    recipe = _recipe(inputs, pixels, folder)
    _check(recipe, pixels)
    if said := folder.begin(recipe):
        print(said, file=sys.stderr)
    return train(
        recipe,
        pixels,
        folder,
        report,
        until=inputs.get("until"),
        max_mb=inputs.get("max_artifact_mb"),
        order=inputs.get("track"),
    )


def train(
    recipe: Recipe,
    pixels: Pixels,
    folder: RunFolder,
    report: Report,
    *,
    until: int | None = None,
    max_mb: float | None = None,
    order: track.Order | None = None,
) -> Outputs:
    """Trains what the folder was begun with, on from what it holds, to its end or to so many epochs (`until`).

    A training that was stopped at an epoch is the same, gone on with, as one that never was: its schedule is over
    all of its epochs. `max_mb`: a network whose weights are larger is not trained, the outputs say so under "stop".
    Where the optimizer is raced for, that comes first; the outputs have the choice under "optimizer". `order`: where
    others can watch it.
    """
    if folder.result.exists():
        done: Outputs = read_json(folder.result)["outputs"]
        if until is not None:  # as it stood then: races compare equal numbers of epochs
            done |= _standing(read_json(folder.history)["epochs"][:until])
        here = {"run": str(folder.path), "epochs_this_attempt": 0, "resumed_from": done["epochs"], "seconds": 0.0}
        return {**done, **here}  # a tuning's best trial was trained elsewhere
    torch.manual_seed(recipe.settings.seed)
    net = create_network(recipe.architecture, len(recipe.classes), recipe.size)
    size = weights_mb(net)
    if max_mb is not None and size > max_mb:
        return _unfit(recipe, size, max_mb)
    with track.tracking(order) as tracker, tracker.run(recipe, folder.path) as tracked:
        settings, chosen = recipe.settings, {}
        if settings.optimizer == AUTO:
            race = _race(recipe, pixels, folder, report)
            settings, report, chosen = race.settings, race.after(report), {"optimizer": race.told()}
        past = read_checkpoint(folder.checkpoint)
        if past is None:
            net = _start_from(recipe, net)
        freeze(net, settings.trainable_stages)
        mean, std = mean_and_std(net, recipe.weights)
        served = Served(net.to(memory_format=torch.channels_last), mean, std)
        last = min(until or settings.epochs, settings.epochs)
        outputs = {**fit(served, pixels, settings, folder, past, report, last, tracked), "weights_mb": size, **chosen}
        tracked.conclude(outputs)
    if last == settings.epochs or outputs["stopped_early"]:
        write_json(folder.result, {"outputs": outputs, "mean": mean, "std": std})
    return outputs


def _race(recipe: Recipe, pixels: Pixels, folder: RunFolder, report: Report) -> Race:
    def train_to(recipe: Recipe, folder: RunFolder, epochs: int, report: Report) -> None:
        train(recipe, pixels, folder, report, until=epochs)

    return choose(recipe, folder, len(pixels.select("tune")) > 0, train_to, report)


def fit(
    served: Served,
    pixels: Pixels,
    settings: TrainSettings,
    folder: RunFolder,
    past: dict[str, Any] | None,
    report: Report,
    last: int,
    tracked: track.Run,
) -> Outputs:
    """Trains the network from its last checkpoint, or from the start, to the epoch `last` or an early stop."""
    started = time.monotonic()
    attempt = folder.begin_attempt()
    loader = train_loader(pixels, settings)
    record = Record(folder, attempt, settings.early_stopping_patience, report, tracked.log)
    if past is not None:
        record.load_state_dict(past)
        for entry in record.epochs:
            tracked.log(entry)
        folder.write_history(attempt, record.epochs)  # a kill may have come between checkpoint and history
    if len(record.epochs) < last and not record.stopped_early:
        tunes = len(pixels.select("tune")) > 0
        trainer = _trainer(settings, record, folder, last, tunes)
        trainer.fit(
            Classifier(served, settings, steps=settings.epochs * len(loader), size=pixels.images[0].shape[1:3]),
            loader,
            tune_loader(pixels, settings.batch_size) if tunes else None,
            ckpt_path=None if past is None else folder.checkpoint,
            weights_only=True,
        )
    return _outputs(
        record, folder, last, resumed_from=None if past is None else record.first, seconds=time.monotonic() - started
    )


def _outputs(record: Record, folder: RunFolder, last: int, resumed_from: int | None, seconds: float) -> Outputs:
    if not record.best_epoch:
        raise StageError("no epoch had a finite loss on the tune samples: lower train.learning_rate")
    return {
        "run": str(folder.path),
        **_standing(record.epochs[:last]),
        "epochs_this_attempt": len(record.epochs) - record.first,
        "resumed_from": resumed_from,
        "stopped_early": record.stopped_early,
        "seconds": seconds,
    }


def _standing(epochs: list[dict[str, Any]]) -> Outputs:
    """The best of these epochs, by loss on tune; without tune samples the last."""
    known = [epoch for epoch in epochs if epoch["tune_loss"] is not None and math.isfinite(epoch["tune_loss"])]
    best = min(known, key=lambda epoch: epoch["tune_loss"]) if known else epochs[-1]
    return {
        "epochs": len(epochs),
        "best_epoch": best["epoch"],
        "tune_accuracy": best["tune_accuracy"],
        "tune_loss": best["tune_loss"],
    }


def _trainer(settings: TrainSettings, record: Record, folder: RunFolder, last: int, tunes: bool) -> pl.Trainer:
    cuda = torch.cuda.is_available()
    if settings.accelerator == "cuda" and not cuda:
        raise StageError('train.accelerator = "cuda", but torch finds no GPU here: set "auto" or "cpu"')
    device = "cuda" if cuda and settings.accelerator != "cpu" else "cpu"
    if device == "cpu" and settings.precision == "16-mixed":
        raise StageError('train.precision = "16-mixed" needs a GPU: on a CPU set "32" or "bf16-mixed"')
    return pl.Trainer(
        accelerator=device,
        devices=1,
        precision=PRECISION[settings.precision],
        max_epochs=last,
        callbacks=[record],
        limit_val_batches=None if tunes else 0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        benchmark=True,
        default_root_dir=folder.path,
    )


def _recipe(inputs: Mapping[str, Any], pixels: Pixels, folder: RunFolder) -> Recipe:
    return Recipe(
        architecture=inputs["architecture"],
        weights=inputs["weights"],
        height=int(inputs["height"]),
        width=int(inputs["width"]),
        resize=pixels.resize,
        classes=pixels.classes,
        snapshot=pixels.snapshot,
        settings=parse_settings(inputs["settings"]),
        weights_sha256=_hash_weights(inputs["weights"], folder),
    )


def _hash_weights(weights: str, folder: RunFolder) -> str:
    """Of a local file, so that another one under its name is another recipe; one that has gone is as it was."""
    if weights in ("none", "timm"):
        return ""
    if Path(weights).is_file():
        return hash_file(Path(weights))
    return str(read_json(folder.recipe).get("weights_sha256", "")) if folder.recipe.exists() else ""


def _check(recipe: Recipe, pixels: Pixels) -> None:
    """Raises StageError where nothing can be learnt from the data, before anything heavy is made."""
    samples = pixels.select("train")
    if len(samples) < 2 or len(recipe.classes) < 2:
        raise StageError(
            f"training needs two classes and two train samples; the snapshot {recipe.snapshot} has "
            f"{len(recipe.classes)} and {len(samples)}"
        )
    found = tuple(pixels.images[0].shape[1:3])
    if found != recipe.size:
        raise StageError(
            f"the pixels are {found[0]} x {found[1]}, the network's input {recipe.height} x {recipe.width}"
        )


def _start_from(recipe: Recipe, net: nn.Module) -> nn.Module:
    """The network with the weights that its training starts from."""
    if recipe.weights == "timm":
        return create_network(recipe.architecture, len(recipe.classes), recipe.size, pretrained=True)
    if recipe.weights != "none":
        load_weights(net, Path(recipe.weights))
    return net


def _unfit(recipe: Recipe, size: float, limit: float) -> Outputs:
    reason = f"the weights of {recipe.architecture} alone are {size:.1f} MB, above the {limit:g} MB of artifact_max_mb"
    return {"stop": "unfit", "weights_mb": size, "reason": reason}


def _quieten() -> None:
    """Lightning's advice (more workers, a logger, a summary) would bury the last words of a failed child."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric")
