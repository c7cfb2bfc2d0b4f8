"""Networks of timm: made, given weights, frozen in part, and wrapped as they are served."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.images import Size
from pipeline.settings import check_name
from policies.job import StageError

Values = tuple[float, float, float]  # of the three channels
HALF: Values = (0.5, 0.5, 0.5)


class Served(nn.Module):
    """The network as it is exported: uint8 (n, H, W, 3) in, probabilities float32 (n, classes) out."""

    shift: Tensor
    scale: Tensor

    def __init__(self, net: nn.Module, mean: Values, std: Values) -> None:
        super().__init__()
        self.net = net
        # Pixels count to 255, mean and std to 1.
        self.mean, self.std = mean, std
        self.register_buffer("shift", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)).view(1, 3, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """float (n, 3, H, W) of values 0..255."""
        return (images - self.shift) * self.scale

    def forward(self, images: Tensor) -> Tensor:
        # Cast first, then permute: TensorRT takes a uint8 input no other way.
        logits = self.net(self.normalize(images.float().permute(0, 3, 1, 2)))
        return torch.softmax(logits, 1)


def create_network(architecture: str, classes: int, size: Size, pretrained: bool = False) -> nn.Module:
    """A network of timm with so many classes, from nothing or with timm's pretrained weights.

    Raises StageError for an architecture that timm does not know, weights that cannot be had, and an input size
    that the network cannot take.
    """
    if not timm.is_model(architecture):
        check_name("the architecture", architecture, timm.list_models())
        raise StageError(f"the architecture {architecture!r} is not known")
    try:
        net = _create(architecture, classes, size, pretrained)
        with torch.inference_mode():
            answer = net.eval()(torch.zeros(1, 3, *size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise StageError(
            f"{architecture} cannot take images of {size[0]} x {size[1]} pixels: {_first_line(error)}"
        ) from error
    if not isinstance(answer, Tensor) or answer.shape != (1, classes):
        raise StageError(f"{architecture} is no classifier that answers one row of {classes} classes an image")
    return net.train()


def _create(architecture: str, classes: int, size: Size, pretrained: bool) -> nn.Module:
    about = timm.models.get_pretrained_cfg(architecture)
    fixed: dict[str, Any] = {"img_size": size} if about is not None and about.fixed_input_size else {}
    for more in (fixed, {}):
        try:
            net: nn.Module = timm.create_model(architecture, pretrained=pretrained, num_classes=classes, **more)
            return net
        except TypeError:
            if not more:
                raise
        except Exception as error:
            if not pretrained:
                raise
            raise StageError(
                f"timm's pretrained weights of {architecture} cannot be had ({_first_line(error)}): is there a "
                'network? Otherwise give model.weights a local .safetensors file, or "none"'
            ) from error
    raise AssertionError("unreachable")


def load_weights(net: nn.Module, file: Path) -> None:
    """Fills the network from a .safetensors file; a classifier of another shape stays as it is.

    Raises StageError, naming keys, where anything else is missing, left over or of another shape.
    """
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise StageError(f"the weights {file} cannot be read: {error}") from error
    wanted = net.state_dict()
    head = {name for name in wanted if name.startswith(tuple(f"{part}." for part in _classifier_names(net)))}
    fits = {name: value for name, value in found.items() if name in wanted and wanted[name].shape == value.shape}
    problems = {
        "missing": sorted(wanted.keys() - found.keys() - head),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": sorted((wanted.keys() & found.keys()) - fits.keys() - head),
    }
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in problems.items() if names)
        raise StageError(f"the weights {file} do not fit the network, keys: {told}")
    net.load_state_dict(fits, strict=False)


def _classifier_names(net: nn.Module) -> list[str]:
    """Names of the classifier's modules, as the architecture says."""
    about: Mapping[str, Any] = getattr(net, "pretrained_cfg", None) or {}
    names = about.get("classifier") or ()
    return [names] if isinstance(names, str) else list(names)


def classifier_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The parameters of the layer that a new set of classes replaces."""
    return [p for name in _classifier_names(net) for p in net.get_submodule(name).parameters()]


def mean_and_std(net: nn.Module, weights: str) -> tuple[Values, Values]:
    """What the pretrained weights expect of their input; 0.5 each where training starts from nothing."""
    about = getattr(net, "pretrained_cfg", None) or {}
    if weights == "none" or len(about.get("mean", ())) != 3:
        return HALF, HALF
    return tuple(about["mean"]), tuple(about["std"])


def weights_mb(net: nn.Module) -> float:
    """Size of parameters and buffers, 10^6 bytes."""
    values: Iterable[Tensor] = net.state_dict().values()
    return sum(value.numel() * value.element_size() for value in values) / 1e6


def freeze(net: nn.Module, trainable_stages: int) -> None:
    """Leaves only the head and the last so many stages trainable; -1: all.

    Stages are timm's own coarse groups (`group_matcher`): the stem first, then blocks, last the classifier with
    what belongs to it. Gradients end at the lowest trainable one, so frozen stages build no graph.
    """
    if trainable_stages < 0:
        return
    if not hasattr(net, "group_matcher"):
        raise StageError("timm names no stages of this network: set train.trainable_stages = -1")
    matcher: Any = net.group_matcher
    try:
        groups = group_parameters(net, matcher(coarse=True))
    except AssertionError as error:
        raise StageError(
            f"timm does not group the stages of this network ({error}): set train.trainable_stages = -1"
        ) from error
    kept = {name for key in sorted(groups)[-1 - trainable_stages :] for name in groups[key]}
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in kept)


def still_layers(net: nn.Module, freeze_batch_norm: bool) -> Iterator[_BatchNorm]:
    """The batch normalisations whose statistics stay: all, or those of the frozen stages."""
    for module in net.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) and (freeze_batch_norm or not any(p.requires_grad for p in own)):
            yield module


def state_of(net: nn.Module) -> dict[str, Tensor]:
    """The weights as safetensors takes them: on the CPU, contiguous, nothing shared."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in net.state_dict().items()
    }


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
