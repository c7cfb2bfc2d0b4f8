"""How a network is trained: `[train]` of config.toml, with every default. No import but the standard library."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from policies.job import StageError

AUTO = "auto"  # the optimizer is raced for
# Name to factor on the learning rate, by which the weight decay is divided. Tried on CIFAR-10 (4,000 images, ten epochs
# of test_resnet; 3,000, six of test_vit): lion, lamb and mars end lower with these than with a third of them. Muon and
# nesterov end lower still at 20 and 100 with test_resnet, but are last after its first epoch, when the field is halved.
CONTENDERS = {
    "adamw": 1.0,
    "nadamw": 1.0,
    "lion": 0.3,
    "lamb": 10.0,
    "mars": 3.0,
    "muon": 5.0,
    "nesterov": 30.0,
}


@dataclass(frozen=True, slots=True)
class AugmentSettings:
    """Random changes to the training images, drawn for each image."""

    crop_min: float = 0.6  # least share of the area that a random crop keeps, 0..1; 1: off
    flip: bool = True  # left to right, every second image
    rotate_degrees: float = 0.0  # at most, to either side; 0: off
    brightness: float = 0.0  # share by which it varies at most, 0..1; 0: off
    contrast: float = 0.0  # share by which it varies at most, 0..1; 0: off


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The recipe of one training."""

    epochs: int = 20
    batch_size: int = 64  # images
    optimizer: str = "adamw"  # any name of timm.optim.list_optimizers(), or AUTO
    learning_rate: float = 1e-3  # the highest of the schedule
    weight_decay: float = 0.05  # none for biases, norms and other vectors
    momentum: float = 0.9  # for the optimizers that have one
    scheduler: str = "onecycle"  # one of SCHEDULERS
    warmup_share: float = 0.1  # of all steps, 0..1
    head_learning_rate_factor: float = 1.0  # of the classifier, relative to the rest
    trainable_stages: int = -1  # -1: all; 0: the head alone; N: the last N stages and the head
    freeze_batch_norm: bool = False  # keep all statistics; those of frozen stages are always kept
    label_smoothing: float = 0.1  # 0..1
    sampling: str = "uniform"  # or "balanced": every class as often as the others
    early_stopping_patience: int = 0  # epochs without a lower loss on `tune`; 0: off
    seed: int = 0
    precision: str = "32"  # one of PRECISIONS
    accelerator: str = "auto"  # "auto", "cpu", "cuda"
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    optimizers: dict[str, float] = field(default_factory=lambda: dict(CONTENDERS))  # that AUTO chooses from


SCHEDULERS = ("onecycle", "cosine", "constant")
SAMPLINGS = ("uniform", "balanced")
PRECISIONS = ("32", "bf16-mixed", "16-mixed")
ACCELERATORS = ("auto", "cpu", "cuda")


def parse_settings(plain: Mapping[str, Any]) -> TrainSettings:
    """The settings that a job carries as JSON; what is missing takes its default.

    Raises StageError for an unknown key or value, naming the nearest known one.
    """
    changes = plain.get("augment", {})
    if not isinstance(changes, Mapping):
        raise StageError(f"train.augment must be a table, not {changes!r}")
    augment = _build(AugmentSettings, changes, "train.augment")
    settings: TrainSettings = _build(TrainSettings, {**plain, "augment": augment}, "train")
    check_name("train.scheduler", settings.scheduler, SCHEDULERS)
    check_name("train.sampling", settings.sampling, SAMPLINGS)
    check_name("train.precision", settings.precision, PRECISIONS)
    check_name("train.accelerator", settings.accelerator, ACCELERATORS)
    if settings.epochs < 1 or settings.batch_size < 1:
        raise StageError("train.epochs and train.batch_size must be at least 1")
    if not 0 < settings.learning_rate < math.inf:
        raise StageError(f"train.learning_rate must be a number above 0, not {settings.learning_rate}")
    if not 0 < settings.augment.crop_min <= 1:
        raise StageError(f"train.augment.crop_min must be above 0 and at most 1, not {settings.augment.crop_min}")
    _check_contenders(settings.optimizers)
    return settings


def _check_contenders(contenders: Mapping[str, Any]) -> None:
    if len(contenders) < 2:
        raise StageError(f"train.optimizers must name at least two optimizers, not {len(contenders)}")
    for name, factor in contenders.items():
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
            raise StageError(f"train.optimizers.{name} must be a number above 0, not {factor!r}")


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raises StageError where the name is none of those known, naming the nearest."""
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or (names if len(names) <= 5 else [])
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise StageError(f"{what} = {name!r} is not known{hint}")


def _build(kind: type[Any], plain: Mapping[str, Any], where: str) -> Any:
    known = [f.name for f in dataclasses.fields(kind)]
    for key in plain:
        if key not in known:
            check_name(f"the setting {where}.{key}: its key", key, known)
    built = kind(**plain)
    default = kind()
    for key in plain:
        value, wanted = getattr(built, key), type(getattr(default, key))
        fits = isinstance(value, (int, float) if wanted is float else wanted) and (
            wanted is bool or not isinstance(value, bool)
        )
        if not fits:
            raise StageError(f"{where}.{key} must be of type {wanted.__name__}, not {value!r}")
    return built
