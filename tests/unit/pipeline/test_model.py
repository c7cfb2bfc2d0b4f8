"""Networks of timm: made, given weights, frozen in part, and wrapped as they are served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.model import (
    Served,
    classifier_parameters,
    create_network,
    freeze,
    load_weights,
    mean_and_std,
    state_of,
    still_layers,
    weights_mb,
)
from policies.job import StageError

SIZE = (32, 32)
KINDS = ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_mambaout", "test_nfnet"]


def make(architecture: str = "test_resnet", classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create_network(architecture, classes, SIZE)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """The names under which both have the same values."""
    return {name for name in one if torch.equal(one[name], other[name])}


@pytest.mark.parametrize("architecture", [*KINDS, "test_maxvit", "mobilenetv3_small_050"])
def test_any_architecture_answers_its_classes(architecture: str) -> None:
    net = make(architecture, 5)
    assert net.training
    with torch.inference_mode():
        assert net.eval()(torch.zeros(2, 3, *SIZE)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "near"), [("test_resnt", "test_resnet"), ("mobilenet_v3_small_100", "mobilenetv3_small_100")]
)
def test_an_unknown_architecture_is_told_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(StageError) as told:
        make(name)
    assert repr(name) in str(told.value) and near in str(told.value)


def test_an_architecture_like_none_is_told() -> None:
    with pytest.raises(StageError, match="'qqqqqqqq' is not known"):
        make("qqqqqqqq")


@pytest.mark.parametrize(("architecture", "size"), [("test_vit", (30, 32)), ("inception_v3", (32, 32))])
def test_a_size_that_the_network_cannot_take_is_told(architecture: str, size: tuple[int, int]) -> None:
    with pytest.raises(StageError, match=f"{architecture} cannot take images of {size[0]} x {size[1]} pixels"):
        create_network(architecture, 3, size)


def test_a_size_that_the_network_refuses_when_it_is_made_is_told() -> None:
    with pytest.raises(StageError, match="cannot take images of 30 x 30 pixels"):
        create_network("xcit_nano_12_p16_224", 3, (30, 30))


@pytest.mark.parametrize("size", [(32, 32), (64, 48)])
def test_a_network_of_fixed_size_is_made_at_the_size_asked_for(size: tuple[int, int]) -> None:
    net: Any = create_network("test_vit", 3, size)
    assert net.patch_embed.img_size == size


def test_weights_of_timm_that_cannot_be_had_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StageError, match=r"weights of test_resnet cannot be had .*\.safetensors"):
        create_network("test_resnet", 3, SIZE, pretrained=True)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    """Writes the weights of a network, changed as told: a value of None takes the key out."""

    def write(net: nn.Module, **changes: Tensor | None) -> Path:
        state = {**state_of(net), **{name.replace("__", "."): value for name, value in changes.items()}}
        save_file({name: value for name, value in state.items() if value is not None}, tmp_path / "w.safetensors")
        return tmp_path / "w.safetensors"

    return write


@pytest.mark.parametrize("architecture", KINDS)
def test_weights_of_a_file_fill_the_network(stored: Callable[..., Path], architecture: str) -> None:
    source, net = make(architecture), make(architecture, seed=1)
    wanted = source.state_dict()
    assert equal(wanted, net.state_dict()) != set(wanted)
    load_weights(net, stored(source))
    assert equal(wanted, net.state_dict()) == set(wanted)


@pytest.mark.parametrize("architecture", KINDS)
def test_weights_for_other_classes_leave_the_classifier_as_it_is(
    stored: Callable[..., Path], architecture: str
) -> None:
    source, net = make(architecture, 7), make(architecture, 3, seed=1)
    before = state_of(net)
    load_weights(net, stored(source))
    head = {name for name, value in source.state_dict().items() if value.shape != before[name].shape}
    assert len(head) == 2
    assert equal(state_of(net), before) >= head
    body = {name: value for name, value in state_of(source).items() if name not in head}
    assert equal(body, state_of(net)) == set(body)


def test_weights_without_a_classifier_fill_the_rest(stored: Callable[..., Path]) -> None:
    source, net = make(), make(seed=1)
    before = state_of(net)
    load_weights(net, stored(source, fc__weight=None, fc__bias=None))
    assert equal(state_of(net), before) >= {"fc.weight", "fc.bias"}
    assert torch.equal(state_of(net)["conv1.0.weight"], state_of(source)["conv1.0.weight"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bn1__weight": None}, r"1 missing \(bn1\.weight\)"),
        ({"bn1__running_var": None}, r"1 missing \(bn1\.running_var\)"),
        ({"more": torch.zeros(2)}, r"1 unexpected \(more\)"),
        ({"bn1__weight": torch.zeros(3)}, r"1 of another shape \(bn1\.weight\)"),
    ],
)
def test_weights_that_do_not_fit_are_told_by_their_keys_and_change_nothing(
    stored: Callable[..., Path], changes: dict[str, Tensor | None], told: str
) -> None:
    net = make(seed=1)
    before = state_of(net)
    with pytest.raises(StageError, match=rf"w\.safetensors do not fit .*{told}"):
        load_weights(net, stored(make(), **changes))
    assert equal(state_of(net), before) == set(before)


def test_weights_of_another_architecture_do_not_fit(stored: Callable[..., Path]) -> None:
    with pytest.raises(StageError, match=r"missing.*unexpected"):
        load_weights(make("test_resnet"), stored(make("test_vit")))


@pytest.mark.parametrize("content", [None, b"", b"text", b"\xff" * 100])
def test_weights_that_cannot_be_read_are_told(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "w.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StageError, match=r"the weights .*w\.safetensors cannot be read"):
        load_weights(make(), file)


def test_weights_that_break_off_are_told(stored: Callable[..., Path]) -> None:
    file = stored(make())
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StageError, match=r"w\.safetensors cannot be read"):
        load_weights(make(), file)


def test_what_is_served_takes_bytes_and_gives_probabilities() -> None:
    net, mean, std = make().eval(), (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    images = np.random.default_rng(0).integers(0, 256, (4, *SIZE, 3), dtype=np.uint8)
    with torch.inference_mode():
        found = Served(net, mean, std)(torch.from_numpy(images)).numpy()
        ready = ((images / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
        scores = net(torch.from_numpy(ready)).double().numpy()
    wanted = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert (found.dtype, found.shape) == (np.float32, (4, 3))
    assert np.abs(found - wanted).max() < 1e-5
    assert np.abs(found.sum(1) - 1).max() < 1e-6


def test_what_is_served_holds_the_networks_weights_and_no_others() -> None:
    net = make()
    assert {f"net.{name}" for name in net.state_dict()} == set(Served(net, (0.5,) * 3, (0.5,) * 3).state_dict())


def test_preprocessing_is_what_the_weights_expect() -> None:
    net = make("mobilenetv3_small_050")
    about = timm.get_pretrained_cfg("mobilenetv3_small_050")
    assert mean_and_std(net, "/a/file.safetensors") == mean_and_std(net, "timm") == (about.mean, about.std)
    assert about.mean != (0.5, 0.5, 0.5)
    assert mean_and_std(net, "none") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_the_size_of_the_weights_counts_parameters_and_statistics(stored: Callable[..., Path]) -> None:
    net = make()
    numbers = sum(value.numel() for value in net.parameters()) * 4 + sum(
        value.numel() * (8 if value.dtype == torch.int64 else 4) for value in net.buffers()
    )
    assert weights_mb(net) == pytest.approx(numbers / 1e6)
    assert weights_mb(net) == pytest.approx(stored(net).stat().st_size / 1e6, rel=0.02)  # with its header


@pytest.mark.parametrize("architecture", KINDS)
def test_the_classifier_is_what_the_number_of_classes_changes(architecture: str) -> None:
    few, many = make(architecture, 3), make(architecture, 7)
    shapes = dict(many.named_parameters())
    changed = {name for name, value in few.named_parameters() if value.shape != shapes[name].shape}
    names = {id(value): name for name, value in few.named_parameters()}
    assert {names[id(value)] for value in classifier_parameters(few)} == changed


@pytest.mark.parametrize("architecture", KINDS)
def test_stages_are_frozen_from_below(architecture: str) -> None:
    net = make(architecture)
    names = [name for name, _ in net.named_parameters()]
    head = {name for name, value in net.named_parameters() if any(value is p for p in classifier_parameters(net))}
    trainable = []
    for stages in (0, 1, 2, 99):
        freeze(net, stages)
        trainable.append({name for name, value in net.named_parameters() if value.requires_grad})
    assert head <= trainable[0] < trainable[1] < trainable[2] < trainable[3] == set(names)
    assert len(trainable[0]) <= len(head) + 4  # the classifier, and its own norm or the layer before it


def test_nothing_is_frozen_by_default() -> None:
    net = make()
    freeze(net, -1)
    assert all(value.requires_grad for value in net.parameters())


def test_stages_that_timm_does_not_name_are_told() -> None:
    with pytest.raises(StageError, match=r"trainable_stages = -1"):
        freeze(create_network("pit_ti_224", 3, (224, 224)), 0)


def test_stages_that_timm_cannot_group_are_told() -> None:
    with torch.device("meta"):
        net = timm.create_model("rdnet_tiny", num_classes=3)
    with pytest.raises(StageError, match=r"trainable_stages = -1"):
        freeze(net, 0)


def test_the_statistics_of_frozen_stages_stay() -> None:
    net = make()
    norms = {name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    named = {id(module): name for name, module in net.named_modules()}
    assert [*still_layers(net, freeze_batch_norm=False)] == []
    assert {named[id(layer)] for layer in still_layers(net, freeze_batch_norm=True)} == norms
    freeze(net, 1)
    frozen = {name for name in norms if not net.get_submodule(name).weight.requires_grad}
    assert frozen and frozen != norms
    assert {named[id(layer)] for layer in still_layers(net, freeze_batch_norm=False)} == frozen


def test_the_state_is_a_copy() -> None:
    net = make().to(memory_format=torch.channels_last)
    state = state_of(net)
    before = {name: value.clone() for name, value in state.items()}
    for value in net.state_dict().values():
        value.zero_()
    assert equal(state, before) == set(before)
    assert all(value.is_contiguous() for value in state.values())
