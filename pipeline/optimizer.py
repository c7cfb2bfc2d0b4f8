"""Which parameters learn how fast: optimizer by name, parameter groups, learning rate over the steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim._optim_factory import create_optimizer_v2, list_optimizers
from torch import nn

from pipeline.model import classifier_parameters
from pipeline.settings import TrainSettings, check_name
from policies.job import StageError

START = 1 / 25  # of one-cycle's learning rate, and its end, relative to the highest: torch's OneCycleLR's defaults
END = START / 1e4
FUSED = ("adam", "adamw", "sgd", "nesterov", "momentum")  # torch has one kernel over all parameters for these


def create_optimizer(net: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Any optimizer of timm. Raises StageError for a name that it does not know or cannot build here."""
    name = settings.optimizer.lower()
    known: list[Any] = list_optimizers()
    check_name("train.optimizer", name, known)
    more: dict[str, Any] = {"fused": True} if name in FUSED else {}
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            group_parameters(net, settings),
            opt=name,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            **more,
        )
    except Exception as error:
        raise StageError(f"timm cannot build the optimizer {name!r} here: {error}") from error
    return optimizer


def group_parameters(net: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """The trainable parameters in up to four groups: head or body, with weight decay or without.

    Vectors (biases, the parameters of norms) and what the network names itself are not decayed.
    """
    head = {id(p) for p in classifier_parameters(net)}
    named: set[str] = getattr(net, "no_weight_decay", set)()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and name not in named
            groups.setdefault((id(parameter) in head, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": settings.learning_rate * (settings.head_learning_rate_factor if is_head else 1),
            "weight_decay": settings.weight_decay if decayed else 0.0,
        }
        for (is_head, decayed), parameters in groups.items()
    ]


def learning_rate_factor(step: int, steps: int, scheduler: str, warmup_share: float) -> float:
    """The learning rate at this step (from 0), as a share of the highest.

    "onecycle": half a cosine up from 1/25, half a cosine down to nothing (Smith 2018, as in fastai and torch; the
    momentum is left alone). "cosine": linear up, half a cosine down. "constant": linear up, then level.
    """
    if steps == 1:
        return 1.0  # the only step is the highest
    if scheduler == "onecycle":
        top = steps * warmup_share - 1  # the step with the highest rate
        if top > 0 and step <= top:
            return START + (1 - START) * _half_cosine(step / top)
        return 1 + (END - 1) * _half_cosine((step - top) / (steps - 1 - top))
    warmup = round(steps * warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 1.0 if scheduler == "constant" else 1 - _half_cosine((step - warmup) / max(1, steps - warmup))


def create_schedule(
    optimizer: torch.optim.Optimizer, steps: int, settings: TrainSettings
) -> torch.optim.lr_scheduler.LambdaLR:
    def factor(step: int) -> float:
        return learning_rate_factor(step, steps, settings.scheduler, settings.warmup_share)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _half_cosine(share: float) -> float:
    """From 0 to 1, slowly at both ends."""
    return (1 - math.cos(math.pi * min(share, 1.0))) / 2
