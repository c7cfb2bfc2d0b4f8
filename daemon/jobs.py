"""What the children of a cycle's step are asked to do."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection

from daemon import measurements, proofs, schema, tunings
from daemon.ground import Ground
from daemon.journal import get
from daemon.stock import artifact_folder, model_folder
from daemon.variants import Devices, split
from deploy.artifact import MANIFEST
from policies.constraints import open_limits
from policies.steps import Build, Measure, Prove, Race, Shortlist, Sketch, Train, Tune, Work

Package = Literal["pipeline", "deploy"]
LONGER = 4.0  # times as long a measurement may take where the first one left a constraint in doubt


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage of a step: who runs it, and on what."""

    name: str
    package: Package
    inputs: Mapping[str, Any]


def plan(step: Work, ground: Ground, connection: Connection, devices: Devices) -> list[StagePlan]:
    """The stages of a step, in order; `devices` as this machine's engines run on them now."""
    if isinstance(step, Shortlist):
        return [StagePlan("names", "pipeline", {"patterns": ground.settings["search"]["architectures"]})]
    if isinstance(step, Measure):
        return [_measuring_longer(step.artifact, ground, connection, devices)]
    return [StagePlan("pixels", "pipeline", ground.pixels), *_on_pixels(step, ground, connection)]


def _on_pixels(
    step: Tune | Train | Race | Sketch | Build | Prove, ground: Ground, connection: Connection
) -> list[StagePlan]:
    match step:
        case Tune():
            return [StagePlan("tune", "pipeline", _tuning(step.architecture, ground, connection))]
        case Race():
            racing = _train_inputs(step.architecture, ground.racing(step.architecture), ground)
            return [StagePlan("train", "pipeline", {**racing, "until": step.epochs})]
        case Train():
            return _training(step.architecture, ground)
        case Sketch():
            return _sketching(step, ground)
        case Build():
            return _building(get(connection, schema.models, step.model).id, step.variant, ground)
        case Prove():
            return _asking(step, ground, connection)


def _asking(step: Prove, ground: Ground, connection: Connection) -> list[StagePlan]:
    artifact = get(connection, schema.artifacts, step.artifact)
    folder = artifact_folder(ground.state, artifact.id)
    proving = _proving(folder, model_folder(ground.state, artifact.model_id), ground, artifact.id)
    known = proofs.find_known(connection, artifact, ground)
    stages = [replace(proving, inputs={**proving.inputs, "known": known})]
    return [*stages, _measuring(folder, ground)] if step.measure else stages


def _train_inputs(architecture: str, settings: Mapping[str, Any], ground: Ground) -> dict[str, Any]:
    return {
        "run": str(ground.run_folder(architecture, settings)),
        "architecture": architecture,
        "weights": ground.settings["model"]["weights"],
        "height": ground.requirement.height,
        "width": ground.requirement.width,
        "settings": settings,
        "max_artifact_mb": ground.max_weights_mb,
        "track": ground.track,
    }


def _training(architecture: str, ground: Ground) -> list[StagePlan]:
    return [
        StagePlan("train", "pipeline", _train_inputs(architecture, ground.training(architecture), ground)),
        StagePlan("evaluate", "pipeline", {}),
        StagePlan("export", "pipeline", {"models": str(ground.state / "models")}),
    ]


def _tuning(architecture: str, ground: Ground, connection: Connection) -> dict[str, Any]:
    """A tuning lies by what it depends on: one that was cut off goes on where it was, and the next is another."""
    tune = ground.settings["tune"]
    earlier = tunings.count(connection, ground.requirement.target, architecture)
    recipe = ground.run_folder(architecture, ground.racing(architecture)).name
    about = [ground.requirement.target, recipe, tune["space"], earlier]
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    training = _train_inputs(architecture, ground.racing(architecture), ground)
    return {
        **{name: training[name] for name in ("architecture", "weights", "height", "width", "settings", "track")},
        "folder": str(ground.state / "tunings" / key),
        **{name: tune[name] for name in ("space", "trials", "concurrent", "grace_epochs", "reduction")},
        "seed": ground.settings["train"]["seed"] + earlier,
        "address": ground.settings["cluster"]["address"],
    }


def _sketching(step: Sketch, ground: Ground) -> list[StagePlan]:
    """The network is drawn, once for all variants, built and measured in a folder of which nothing is left."""
    folder = ground.sketches / step.architecture
    drawn = (folder / "model" / MANIFEST).exists()
    sketch = {
        "architecture": step.architecture,
        "classes": ground.classes,
        "height": ground.requirement.height,
        "width": ground.requirement.width,
        "model": str(folder / "model"),
    }
    build = {
        "model": str(folder / "model"),
        **engine_inputs(ground.settings, step.variant),
        "artifacts": str(folder / "artifacts"),
        "pixels": str(ground.pixels_index),
    }
    drawing = [] if drawn else [StagePlan("sketch", "pipeline", sketch)]
    return [*drawing, StagePlan("build", "deploy", build), _measuring(None, ground)]


def _building(model: str, variant: str, ground: Ground) -> list[StagePlan]:
    folder = model_folder(ground.state, model)
    build = {"model": str(folder), **engine_inputs(ground.settings, variant), **_kept(ground)}
    return [
        StagePlan("build", "deploy", build),
        _proving(None, folder, ground, f"{model}-{variant.replace(':', '-')}"),
        _measuring(None, ground),
    ]


def _kept(ground: Ground) -> dict[str, str]:
    return {"artifacts": str(ground.state / "artifacts"), "pixels": str(ground.pixels_index)}


def engine_inputs(settings: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """What the stage `build` is told of the variant."""
    engine, precision = split(variant)
    build, servers = settings["build"], settings["triton"]
    if isinstance(servers, Mapping):  # frozen by a version that knew one
        servers = [servers]
    largest = max(64, *(server["max_batch_size"] for server in servers))
    options = {"compute_capability": build["compute_capability"], "max_batch_size": largest}
    return {"engine": engine, "precision": precision, "options": options}


def _proving(artifact: Path | None, model: Path, ground: Ground, name: str) -> StagePlan:
    tune = model / "tune.npz"
    return StagePlan(
        "prove",
        "deploy",
        {
            "artifact": str(artifact) if artifact else None,
            "pixels": str(ground.pixels_index),
            "tune": str(tune) if tune.exists() else None,
            "threads": ground.settings["compute"]["serve_threads"],
            "answers": str(ground.work("answers") / f"{name}.json"),
        },
    )


def _measuring(artifact: Path | None, ground: Ground) -> StagePlan:
    return StagePlan(
        "measure",
        "deploy",
        {
            "artifact": str(artifact) if artifact else None,
            "batch_size": ground.requirement.batch_size,
            "concurrency": ground.requirement.concurrency,
            "threads": ground.settings["compute"]["serve_threads"],
            "seconds_max": ground.settings["measure"]["seconds_max"],
        },
    )


def _measuring_longer(id_: str, ground: Ground, connection: Connection, devices: Devices) -> StagePlan:
    """The measurement goes on until it tells what the one before left in doubt, in `LONGER` times the time at most."""
    measuring = _measuring(artifact_folder(ground.state, id_), ground)
    engine = get(connection, schema.artifacts, id_).engine
    best = measurements.quiet(connection, devices.get("onnxruntime", ""), ground.requirement.concurrency)
    before = measurements.newest(connection, id_, ground.requirement, devices.get(engine, ""), best)
    longer = {
        "seconds_max": measuring.inputs["seconds_max"] * LONGER,
        "doubts": open_limits(ground.requirement, before) if before else {},
        "quiet": best,
    }
    return replace(measuring, inputs={**measuring.inputs, **longer})


def command(package: str, file: str, nice: int, cluster: str) -> tuple[str, list[str]]:
    """The module and its arguments that run a job: here, or on the cluster, where one does what needs no engine."""
    if cluster and package == "pipeline":
        return "pipeline.remote", [cluster, package, file, str(nice)]
    return package, [file]


def environment(threads: int) -> dict[str, str]:
    """The environment of a child that computes.

    Waiting threads sleep rather than spin: processes share the cores. The malloc settings keep freed pages, whose
    faults dominate CPU training at 224 pixels otherwise.
    """
    count = str(threads)
    return {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
    }


def training_threads(configured: int) -> int:
    """Threads of a training child: as configured, otherwise all cores but one."""
    return configured or max(1, len(os.sched_getaffinity(0)) - 1)
