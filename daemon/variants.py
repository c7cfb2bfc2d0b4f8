"""Variants: an engine and a precision, as "onnxruntime:int8". Each that a target could take is built of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploy.device import fingerprint
from deploy.engines import ENGINES
from policies.facts import Requirement

SHRINKS = {"fp32": 1, "fp16": 2, "int8": 4}  # by how much, at most, weights become smaller
Devices = Mapping[str, str]  # what an engine's artifacts are measured on here, by the engine's name


def split(variant: str) -> tuple[str, str]:
    """Engine and precision; fp32 where none is named."""
    engine, _, precision = variant.partition(":")
    return engine, precision or "fp32"


def join(engine: str, precision: str) -> str:
    return f"{engine}:{precision}"


def wanted(configured: Sequence[str], requirement: Requirement, gpu: str | None) -> tuple[str, ...]:
    """The configured variants that run on the target's accelerator; `gpu`: what plans are bound to, None: not known."""
    return tuple(join(*split(name)) for name in configured if runs_on(split(name)[0], gpu, requirement.accelerator))


def gpu_of(settings: Mapping[str, Any]) -> str | None:
    """What plans are bound to, as "sm89", where the configuration says it."""
    capability = settings["build"]["compute_capability"]
    return f"sm{capability.replace('.', '')}" if capability else None


def runs_on(engine: str, device: str | None, accelerator: str) -> bool:
    """Whether what an engine builds is for this accelerator; `device`: what an artifact is bound to, None for none.

    Engines for GPUs serve "cuda", and one kind of GPU where their artifact is bound to it, or was not built yet.
    """
    kind = ENGINES[engine].accelerator if engine in ENGINES else None
    one_kind = accelerator not in ("cpu", "cuda")
    return kind == accelerator or (kind == "cuda" and one_kind and device in (None, accelerator))


def shrink(variants: Sequence[str]) -> int:
    """By how much an artifact may be smaller than the weights that were trained."""
    return max((SHRINKS[split(variant)[1]] for variant in variants), default=1)


def devices(threads: int, gpu: str | None) -> dict[str, str]:
    """What each engine's artifacts are measured on here; of those bound to a GPU the text opens with it."""
    return {
        engine: f"{gpu}, {fingerprint(engine, threads)}"
        if gpu and line.accelerator == "cuda"
        else fingerprint(engine, threads)
        for engine, line in ENGINES.items()
    }


def is_bound_elsewhere(artifact: Any, devices: Devices) -> bool:
    """Whether the artifact, a row of the journal, is bound to another GPU or version of its engine than are here now.

    It is never offered to another.
    """
    here = devices.get(artifact.engine, "")
    other_gpu = here.startswith("sm") and not here.startswith(f"{artifact.device}, ")
    return artifact.device is not None and (other_gpu or is_outdated(artifact, devices))


def is_outdated(artifact: Any, devices: Devices) -> bool:
    """Whether it can be read by another version of its engine alone than the one that is installed."""
    here = devices.get(artifact.engine, "")
    return bool(artifact.device and here and f", {artifact.engine} {artifact.engine_version}" not in here)
