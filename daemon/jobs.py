"""What the children of a cycle's step are asked to do, and how what they answer becomes rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from daemon import schema
from daemon.journal import AnyRow, add, get, now
from daemon.stock import artifact_folder, model_folder
from daemon.variants import shrink, split, wanted
from policies.facts import Requirement
from policies.next_step import Build, Prove, Train

Package = Literal["pipeline", "deploy"]


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage of a step: who runs it, and on what."""

    name: str
    package: Package
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ground:
    """What all stages of one cycle stand on: its frozen settings, requirement and snapshot, and the state folder."""

    cycle: int
    state: Path
    settings: Mapping[str, Any]
    requirement: Requirement
    snapshot: str

    @property
    def pixels(self) -> dict[str, Any]:
        """The inputs of the stage that decodes the snapshot's images at the target's input size."""
        return {
            "snapshot": str(self.state / "snapshots" / f"{self.snapshot}.snapshot"),
            "store": str(self.state / "store"),
            "cache": str(self.state / "pixels"),
            "height": self.requirement.height,
            "width": self.requirement.width,
            "resize": self.settings["input"]["resize"],
        }

    @property
    def pixels_index(self) -> Path:
        """Where that stage leaves its result."""
        size = f"{self.requirement.height}x{self.requirement.width}-{self.settings['input']['resize']}"
        return self.state / "pixels" / size / f"{self.snapshot}.npz"

    def recipe(self, architecture: str) -> str:
        """A hash of all that a training depends on: the same recipe is never trained twice."""
        depends = [
            self.snapshot,
            architecture,
            self.requirement.height,
            self.requirement.width,
            self.settings["input"],
            self.settings["model"]["weights"],
            hash_weights(self.settings["model"]["weights"]),
            self.settings["train"],
        ]
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def variants(self) -> tuple[str, ...]:
        """The engines and precisions that the target could take."""
        return wanted(self.settings["build"]["engines"], self.requirement)

    @property
    def max_weights_mb(self) -> float | None:
        """Above this size of its weights, no artifact of a network is small enough."""
        limit = self.requirement.artifact_max_mb
        return None if limit is None else limit * shrink(self.variants)

    @property
    def folder(self) -> Path:
        """What passes between this cycle's stages."""
        return self.state / "cycles" / str(self.cycle)

    def work(self, name: str) -> Path:
        """One folder of it, made where it is not there."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def hash_weights(weights: str) -> str:
    """Of a local file of weights, so that another one under its name is another recipe; "" for none."""
    try:
        found = Path(weights).stat()
    except OSError:
        return ""
    return _hash(weights, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _hash(file: str, size: int, mtime_ns: int) -> str:
    """Asked at each step of a cycle, read once as long as the file stays as it is."""
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def plan(step: Train | Build | Prove, ground: Ground, connection: Connection) -> list[StagePlan]:
    """The stages of a step, in order."""
    if isinstance(step, Train):
        return _training(step, ground)
    pixels = StagePlan("pixels", "pipeline", ground.pixels)
    if isinstance(step, Build):
        model = get(connection, schema.models, step.model)
        return [pixels, *_building(model.id, step.variant, ground)]
    artifact = get(connection, schema.artifacts, step.artifact)
    folder = artifact_folder(ground.state, artifact.id)
    stages = [pixels, _proving(folder, model_folder(ground.state, artifact.model_id), ground, artifact.id)]
    return [*stages, _measuring(folder, ground)] if step.measure else stages


def _training(step: Train, ground: Ground) -> list[StagePlan]:
    weights = ground.settings["model"]["weights"]
    inputs = {
        "run": str(ground.state / "runs" / ground.recipe(step.architecture)),
        "architecture": step.architecture,
        "weights": weights,
        "height": ground.requirement.height,
        "width": ground.requirement.width,
        "settings": ground.settings["train"],
        "max_artifact_mb": ground.max_weights_mb,
    }
    return [
        StagePlan("pixels", "pipeline", ground.pixels),
        StagePlan("train", "pipeline", inputs),
        StagePlan("evaluate", "pipeline", {}),
        StagePlan("export", "pipeline", {"models": str(ground.state / "models")}),
    ]


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
    options = {"compute_capability": settings["build"]["compute_capability"]}
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


def record(connection: Connection, ground: Ground, stage: AnyRow, outputs: Mapping[str, Any]) -> None:
    """Writes down what a finished stage made."""
    match stage.name:
        case "train" if "stop" in outputs:
            _record_size(connection, stage.step.removeprefix("train "), float(outputs["weights_mb"]))
        case "export":
            _record_model(connection, ground, stage.step.removeprefix("train "), outputs)
        case "build":
            _record_artifact(connection, stage.step.split()[1], outputs)
        case "prove":
            _record_proof(connection, ground, outputs)
        case "measure" if "skipped" not in outputs:
            _record_measurement(connection, outputs)


def _record_size(connection: Connection, architecture: str, weights_mb: float) -> None:
    figures = {"weights_mb": weights_mb}
    add(connection, schema.measurements, architecture=architecture, figures=figures, at=now())


def _record_model(connection: Connection, ground: Ground, architecture: str, outputs: Mapping[str, Any]) -> None:
    seconds = connection.execute(
        select(schema.attempts.c.ended - schema.attempts.c.started)
        .join(schema.stages, schema.stages.c.id == schema.attempts.c.stage_id)
        .where(
            schema.stages.c.cycle_id == ground.cycle,
            schema.stages.c.step == f"train {architecture}",
            schema.stages.c.name == "train",
        )
    ).scalars()
    connection.execute(
        insert(schema.models)
        .values(
            id=outputs["model"],
            architecture=architecture,
            snapshot_id=ground.snapshot,
            cycle_id=ground.cycle,
            recipe=ground.recipe(architecture),
            classes=outputs["classes"],
            height=ground.requirement.height,
            width=ground.requirement.width,
            tune_accuracy=outputs["tune_accuracy"],
            train_seconds=sum(second or 0.0 for second in seconds),
            created=now(),
        )
        # Another recipe (say, another device) may have given the very same model.
        .on_conflict_do_update(index_elements=["id"], set_={"recipe": ground.recipe(architecture), "gone": None})
    )


def _record_artifact(connection: Connection, model: str, outputs: Mapping[str, Any]) -> None:
    connection.execute(
        insert(schema.artifacts)
        .values(
            id=outputs["artifact"],
            model_id=model,
            engine=outputs["engine"],
            precision=outputs["precision"],
            device=outputs["device"],
            unverified=outputs["unverified"],
            artifact_mb=outputs["artifact_mb"],
            created=now(),
        )
        .on_conflict_do_update(index_elements=["id"], set_={"gone": None})  # it was lost, and is built again
    )


def _record_proof(connection: Connection, ground: Ground, outputs: Mapping[str, Any]) -> None:
    said = json.loads(Path(outputs["answers"]).read_text(encoding="utf-8"))
    record_answers(connection, "answers", outputs["artifact"], said)
    add(
        connection,
        schema.proofs,
        artifact_id=outputs["artifact"],
        snapshot_id=ground.snapshot,
        cycle_id=ground.cycle,
        tune_accuracy=outputs["tune_accuracy"],
        parity=outputs["parity"],
        at=now(),
    )


def record_answers(connection: Connection, table: str, artifact: str, said: Mapping[str, Any]) -> None:
    """Writes an artifact's answers: `said` has "samples" (hex), "predicted" (class names) and "confidence"."""
    target = schema.metadata.tables[table]
    ids: dict[bytes, int] = {}
    shas = [bytes.fromhex(sha) for sha in said["samples"]]
    for start in range(0, len(shas), 500):
        found = connection.execute(
            select(schema.samples.c.sha256, schema.samples.c.id).where(
                schema.samples.c.sha256.in_(shas[start : start + 500])
            )
        )
        ids |= {row.sha256: row.id for row in found}
    moment = now()
    rows = [
        {"artifact_id": artifact, "sample_id": ids[sha], "predicted": name, "confidence": sure, "at": moment}
        for sha, name, sure in zip(shas, said["predicted"], said["confidence"], strict=True)
        if sha in ids
    ]
    if rows:
        statement = insert(target)
        newest = {name: statement.excluded[name] for name in ("predicted", "confidence", "at")}
        connection.execute(
            statement.on_conflict_do_update(index_elements=["artifact_id", "sample_id"], set_=newest), rows
        )


def _record_measurement(connection: Connection, outputs: Mapping[str, Any]) -> None:
    artifact = get(connection, schema.artifacts, outputs["artifact"])
    model = get(connection, schema.models, artifact.model_id)
    figures = {key: value for key, value in outputs.items() if key != "artifact"}
    add(
        connection,
        schema.measurements,
        artifact_id=artifact.id,
        architecture=model.architecture,
        figures=figures,
        at=now(),
    )


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
