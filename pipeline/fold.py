"""Folds the normalisations of frozen layers into the convolutions before them, for as long as a training lasts.

A frozen batch normalisation multiplies and shifts each channel by constants, which the convolution can do with other
weights: one pass over memory fewer for each, a tenth of a fine-tuning step on a CPU. The arithmetic is the same but for
rounding (Jacob et al. 2018, "Quantization and Training of Neural Networks", section 3.2, folds so for inference). The
network's parameters and buffers stay as they are, so that state dicts and checkpoints know nothing of it.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

TOLERANCE = 1e-3  # of the largest output: rounding alone stays far below it
Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


@torch.no_grad()
def fold_frozen(net: nn.Module, images: Tensor) -> int:
    """Folds what is frozen and still, and returns how many layers that were; the network is in eval mode then.

    `images`: float (n, 3, H, W) on the network's device, tried before and after: where the answers are others (a
    convolution whose output is used elsewhere too), all stays as it was, and 0 is returned.
    """
    net.eval()
    if all(parameter.requires_grad for parameter in net.parameters()):
        return 0
    pairs: list[Pair] = []
    before = _watch(net, images, pairs)
    for conv, norm in pairs:
        _fold(conv, norm)
    after = net(images)
    if (after - before).abs().max() <= TOLERANCE * before.abs().max():
        return len(pairs)
    for layer in (layer for pair in pairs for layer in pair):
        layer.__dict__.pop("forward", None)
    return 0


def _watch(net: nn.Module, images: Tensor, pairs: list[Pair]) -> Tensor:
    """The network's answer; `pairs` is filled with each frozen normalisation and the convolution that feeds it."""
    made: list[tuple[nn.Conv2d, Tensor]] = []
    runs: Counter[nn.Module] = Counter()

    def note(conv: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        runs[conv] += 1
        made.append((conv, output))  # kept, so that no later tensor takes its identity

    def look(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        runs[norm] += 1
        pairs.extend((conv, norm) for conv, output in made if output is inputs[0])

    hooks = [layer.register_forward_hook(note) for layer in net.modules() if _is_plain(layer)]
    hooks += [layer.register_forward_pre_hook(look) for layer in net.modules() if _is_constant(layer)]
    try:
        answer: Tensor = net(images)
    finally:
        for hook in hooks:
            hook.remove()
    pairs[:] = [pair for pair in pairs if runs[pair[0]] == runs[pair[1]] == 1]
    return answer


def _is_plain(layer: nn.Module) -> bool:
    """A subclass of a convolution may do something else with its weights."""
    return type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and _is_frozen(layer)


def _is_constant(layer: nn.Module) -> bool:
    known = type(layer) is nn.BatchNorm2d or type(layer) is BatchNormAct2d
    return known and bool(layer.affine) and _is_frozen(layer)


def _is_frozen(layer: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in layer.parameters(recurse=False))


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    convolve = partial(
        F.conv2d,
        weight=(conv.weight * scale.view(-1, 1, 1, 1)).detach(),
        bias=(norm.bias - mean * scale).detach(),
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
    )
    # As attributes of the instances they come before the classes' own, and are in no state dict.
    conv.__dict__["forward"] = convolve
    norm.__dict__["forward"] = partial(_rest, norm)


def _rest(norm: nn.BatchNorm2d, images: Tensor) -> Tensor:
    """What timm's normalisations do beside normalising."""
    for name in ("drop", "act"):
        images = getattr(norm, name)(images) if hasattr(norm, name) else images
    return images
