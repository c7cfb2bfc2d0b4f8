"""How fast which parameters learn: learning rates over the steps, groups, optimizers by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.model import classifier_parameters, create_network, freeze
from pipeline.optimizer import create_optimizer, create_schedule, group_parameters, learning_rate_factor
from pipeline.settings import SCHEDULERS, TrainSettings
from policies.job import StageError


@pytest.fixture(params=["test_resnet", "test_vit"])
def net(request: pytest.FixtureRequest) -> nn.Module:
    return create_network(request.param, 3, (32, 32))


def curve(scheduler: str, steps: int, warmup: float) -> list[float]:
    return [learning_rate_factor(step, steps, scheduler, warmup) for step in range(steps)]


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.1), (100, 0.3), (37, 0.25), (1000, 0.0), (50, 0.9)])
def test_onecycle_is_torchs(steps: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, pct_start=warmup, cycle_momentum=False
    )
    wanted = []
    for _ in range(steps):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(wanted) < steps:
            theirs.step()
    assert curve("onecycle", steps, warmup) == pytest.approx(wanted, abs=1e-9)


def test_onecycle_rises_from_a_twenty_fifth_to_all_and_falls_to_nothing() -> None:
    found = curve("onecycle", 200, 0.1)
    assert found[0] == pytest.approx(0.04)
    assert found[19] == pytest.approx(1.0)
    assert found[-1] == pytest.approx(4e-6, rel=1e-3)
    assert found[:20] == sorted(found[:20]) and found[19:] == sorted(found[19:], reverse=True)


def test_cosine_rises_in_a_line_and_falls_by_half_a_cosine() -> None:
    found = curve("cosine", 100, 0.2)
    assert found[:20] == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert found[20] == 1.0
    assert found[60] == pytest.approx(0.5)
    assert found[40] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert 0 < found[-1] < 0.001


def test_constant_rises_in_a_line_and_stays() -> None:
    found = curve("constant", 100, 0.2)
    assert found[:20] == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert found[20:] == [1.0] * 80


@pytest.mark.parametrize("scheduler", ["cosine", "constant"])
def test_without_warm_up_the_first_step_has_all(scheduler: str) -> None:
    assert curve(scheduler, 100, 0.0)[0] == 1.0


# A scheduler is asked once more after the last step.
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_every_step_of_any_training_has_a_rate(scheduler: str, steps: int, share: float) -> None:
    for step in range(steps + 1):
        assert 0 <= learning_rate_factor(step, steps, scheduler, share) <= 1


def test_a_training_of_one_step_learns() -> None:
    assert learning_rate_factor(0, 1, "onecycle", 0.1) > 0.01


def test_the_schedule_moves_every_group_by_the_same_share(net: nn.Module) -> None:
    settings = TrainSettings(learning_rate=0.01, head_learning_rate_factor=5, scheduler="cosine", warmup_share=0.25)
    optimizer = create_optimizer(net, settings)
    schedule = create_schedule(optimizer, 8, settings)
    head = {id(parameter) for parameter in classifier_parameters(net)}
    for step in range(8):
        for group in optimizer.param_groups:
            factor = 5 if id(group["params"][0]) in head else 1
            assert group["lr"] == pytest.approx(0.01 * factor * learning_rate_factor(step, 8, "cosine", 0.25))
        optimizer.step()
        schedule.step()


def test_every_trainable_parameter_is_in_one_group(net: nn.Module) -> None:
    freeze(net, 1)
    grouped = [id(parameter) for group in group_parameters(net, TrainSettings()) for parameter in group["params"]]
    wanted = {id(parameter) for parameter in net.parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped)) and set(grouped) == wanted
    assert len(wanted) < len(list(net.parameters()))


def test_the_head_learns_faster_by_its_factor(net: nn.Module) -> None:
    head = {id(parameter) for parameter in classifier_parameters(net)}
    groups = create_optimizer(net, TrainSettings(learning_rate=0.01, head_learning_rate_factor=3)).param_groups
    rates = {(id(parameter) in head, round(group["lr"], 9)) for group in groups for parameter in group["params"]}
    assert rates == {(True, 0.03), (False, 0.01)}


def test_vectors_and_what_the_network_names_are_not_decayed(net: nn.Module) -> None:
    named: set[str] = getattr(net, "no_weight_decay", set)()
    groups = create_optimizer(net, TrainSettings(weight_decay=0.07)).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in net.named_parameters():
        assert decay[id(parameter)] == (0.0 if parameter.ndim < 2 or name in named else 0.07), name


def test_a_position_embedding_is_not_decayed() -> None:
    net: Any = create_network("test_vit", 3, (32, 32))
    groups = group_parameters(net, TrainSettings(weight_decay=0.07))
    (group,) = [group for group in groups if any(parameter is net.pos_embed for parameter in group["params"])]
    assert net.pos_embed.ndim == 3 and group["weight_decay"] == 0.0


@pytest.mark.parametrize(
    "name", ["adamw", "AdamW", "sgd", "nesterov", "momentum", "lion", "rmsprop", "adafactor", "lamb"]
)
def test_an_optimizer_by_its_name_lowers_the_loss(name: str) -> None:
    torch.manual_seed(0)
    net = create_network("test_vit", 3, (32, 32))
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % 3
    optimizer = create_optimizer(net, TrainSettings(optimizer=name, learning_rate=1e-3))
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_the_momentum_is_the_settings(name: str) -> None:
    net = create_network("test_vit", 3, (32, 32))
    groups = create_optimizer(net, TrainSettings(optimizer=name, momentum=0.77)).param_groups
    assert {group["momentum"] for group in groups} == {0.77}


def test_an_unknown_optimizer_is_told_with_the_nearest() -> None:
    with pytest.raises(StageError, match=r"train\.optimizer = 'adamww' is not known; nearest: .*adamw"):
        create_optimizer(create_network("test_vit", 3, (32, 32)), TrainSettings(optimizer="adamww"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it can be built")
def test_an_optimizer_that_cannot_be_built_here_is_told() -> None:
    with pytest.raises(StageError, match="cannot build the optimizer 'fusedadam' here"):
        create_optimizer(create_network("test_vit", 3, (32, 32)), TrainSettings(optimizer="fusedadam"))
