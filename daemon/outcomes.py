"""What the stages of a cycle answer, as rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from daemon import proofs, schema, sketches, tunings
from daemon.ground import Ground
from daemon.journal import AnyRow, add, get, now


def record(connection: Connection, ground: Ground, stage: AnyRow, outputs: Mapping[str, Any]) -> None:
    """Writes down what a finished stage made."""
    kind, *named = stage.step.split()
    match kind, stage.name:
        case (("train" | "race"), "train") if "stop" in outputs:
            _record_size(connection, named[0], float(outputs["weights_mb"]))
        case "train", "export":
            _record_model(connection, ground, named[0], outputs)
        case "tune", "tune":
            tunings.record(connection, ground, named[0], outputs)
        case "sketch", "measure":
            sketches.record(connection, ground, named[0], named[1], outputs, _size_of(connection, stage))
        case "build", "build":
            _record_artifact(connection, named[0], outputs)
        case _, "prove":
            proofs.record(connection, ground, outputs)
        case _, "measure" if "skipped" not in outputs:
            _record_measurement(connection, outputs)


def _size_of(connection: Connection, stage: AnyRow) -> float | None:
    """MB of the artifact that the stage's step built."""
    table = schema.stages
    mine = (table.c.cycle_id == stage.cycle_id, table.c.step == stage.step, table.c.name == "build")
    outputs = connection.execute(select(table.c.outputs).where(*mine)).scalar()
    return float(outputs["artifact_mb"]) if outputs else None


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
            engine_version=outputs["engine_version"] if outputs["device"] else None,
            unverified=outputs["unverified"],
            artifact_mb=outputs["artifact_mb"],
            created=now(),
        )
        # It was lost, or could not be run here then, and is built again.
        .on_conflict_do_update(index_elements=["id"], set_={"gone": None, "unverified": outputs["unverified"]})
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
