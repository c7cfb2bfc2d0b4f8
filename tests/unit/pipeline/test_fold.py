"""Frozen normalisations folded into the convolutions before them: the same answers and gradients, by less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.classifier import Classifier
from pipeline.fold import fold_frozen
from pipeline.model import Served, create_network, freeze, still_layers
from pipeline.settings import TrainSettings

SIZE = (64, 64)
ROUNDING = 1e-9  # of the largest value, in float64


def images(number: int = 3, seed: int = 0) -> Tensor:
    return torch.randn((number, 3, *SIZE), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(architecture: str, stages: int = 1) -> nn.Module:
    """As it is when a training of it has gone on for a while: its normalisations are none by chance."""
    torch.manual_seed(0)
    net = create_network(architecture, 5, SIZE).double()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values, low, high in (
                (layer.weight, 0.5, 1.5), (layer.bias, -0.5, 0.5), (layer.running_mean, -0.5, 0.5),
                (layer.running_var, 0.5, 2.0),
            ):  # fmt: skip
                assert values is not None
                nn.init.uniform_(values, low, high)
    freeze(net, stages)
    return net


def gradients(net: nn.Module) -> list[Tensor]:
    """As in a step of training: what is frozen stands still, all else is in training mode."""
    net.train()
    for layer in still_layers(net, freeze_batch_norm=False):
        layer.eval()
    net.zero_grad()
    F.cross_entropy(net(images(8, seed=1)), torch.arange(8) % 5).backward()
    return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]


def near(found: list[Tensor], wanted: list[Tensor]) -> bool:
    largest = max(float(values.abs().max()) for values in wanted)
    return all(torch.allclose(a, b, rtol=0, atol=ROUNDING * largest) for a, b in zip(found, wanted, strict=True))


def frozen_norms(net: nn.Module) -> int:
    norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    return sum(not layer.weight.requires_grad for layer in norms)


@pytest.mark.parametrize(
    "architecture", ["resnet18", "test_resnet", "efficientnet_lite0", "mobilenetv3_small_100", "regnetx_002"]
)
def test_answers_and_gradients_stay_and_state_dicts_know_nothing(architecture: str) -> None:
    net = network(architecture)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    wanted = gradients(net)
    with torch.no_grad():
        before = net.eval()(images())
    assert fold_frozen(net, images(2)) == frozen_norms(net) > 10
    with torch.no_grad():
        assert near([net(images())], [before])
    assert near(gradients(net), wanted)
    assert net.state_dict().keys() == state.keys()


@pytest.mark.parametrize(("architecture", "stages"), [("resnet18", -1), ("test_convnext", 1), ("test_vit", 1)])
def test_where_nothing_is_frozen_or_normalised_by_batches_nothing_is_folded(architecture: str, stages: int) -> None:
    assert fold_frozen(network(architecture, stages), images()) == 0


class Twice(nn.Module):
    """The convolution's own output is used beside the normalised one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, batch: Tensor) -> Tensor:
        made = self.conv(batch)
        found: Tensor = self.head((self.norm(made) + 3 * made).mean((2, 3)))
        return found


def test_where_it_would_change_the_answers_all_stays_as_it_was() -> None:
    net = Twice().double()
    nn.init.uniform_(net.norm.running_mean)  # type: ignore[arg-type]
    for layer in (net.conv, net.norm):
        layer.requires_grad_(False)
    with torch.no_grad():
        before = net.eval()(images())
        assert fold_frozen(net, images()) == 0
        assert torch.equal(net(images()), before)


def test_a_layer_that_runs_more_than_once_is_left_alone() -> None:
    conv, norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    net = nn.Sequential(conv, norm, conv, norm, nn.Flatten(), nn.LazyLinear(2)).double()
    net(images())
    for layer in (conv, norm):
        layer.requires_grad_(False)
    assert fold_frozen(net, images()) == 0


def test_a_training_folds_once_its_network_is_where_it_will_be(monkeypatch: pytest.MonkeyPatch) -> None:
    folded: list[Any] = []

    def fold(net: nn.Module, noise: Tensor) -> int:
        folded.append((net, noise.shape))
        return 0

    monkeypatch.setattr("pipeline.classifier.fold_frozen", fold)
    served = Served(network("test_resnet"), (0.5,) * 3, (0.5,) * 3)
    state = torch.get_rng_state()
    Classifier(served, TrainSettings(), steps=1, size=SIZE).on_train_start()
    assert folded == [(served.net, (2, 3, *SIZE))]
    assert torch.equal(torch.get_rng_state(), state)
