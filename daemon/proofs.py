"""What artifacts have answered on judge: stored once for each sample, asked again only where it may be another now.

An answer depends on the artifact, on the image's pixels (the artifact has its input size; `input.resize` is a setting)
and on what answers, chip and version of the engine. All that is stored of one artifact is of one resize and one
answerer: whoever proves it under another removes what was answered before, so that the two are never counted together.
What a sample shows is no part of its answer: that comes from the snapshot, so that no relabel asks for anything.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects.sqlite import insert

from daemon import schema, snapshot, targets
from daemon.ground import Ground
from daemon.journal import AnyRow, add, now
from deploy.device import answerer

proofs, answers = schema.proofs, schema.answers


def find_valid(connection: Connection, ground: Ground) -> dict[str, set[str]]:
    """The artifacts whose stored answers are as they would be given now, with the snapshots they were proven on."""
    artifacts = schema.artifacts
    rows = connection.execute(
        select(proofs.c.artifact_id, proofs.c.snapshot_id, proofs.c.answered_by, artifacts.c.engine)
        .join(artifacts, artifacts.c.id == proofs.c.artifact_id)
        .where(proofs.c.resize == _resize(ground), proofs.c.answered_by.is_not(None), artifacts.c.unverified.is_(None))
    ).all()
    by = {engine: answerer(engine) for engine in {row.engine for row in rows}}
    found = defaultdict[str, set[str]](set)
    for row in rows:
        if row.answered_by == by[row.engine]:
            found[row.artifact_id].add(row.snapshot_id)
    return found


def find_known(connection: Connection, artifact: AnyRow, ground: Ground) -> dict[str, Any] | None:
    """What the stage `prove` need not ask of a stored artifact; None: it asks for all.

    The hashes of those judge samples that it is to ask for go to a file beside the job.
    """
    valid = find_valid(connection, ground)
    if artifact.id not in valid:
        return None
    _, rows = snapshot.read(ground.state / "snapshots" / f"{ground.snapshot}.snapshot")
    judge = targets.judge_set(connection, rows)
    answered = judge.answers(connection, artifact.id)
    ask = ground.work("answers") / f"{artifact.id}.ask"
    ask.write_bytes(b"".join(sha for sha in judge.truth if sha not in answered))
    tune = _said_of_tune(connection, artifact.id, ground.snapshot)
    return {"answered_by": answerer(artifact.engine), "ask": str(ask), "tune": tune}


def _said_of_tune(connection: Connection, artifact: str, snapshot_id: str) -> dict[str, Any] | None:
    """What the artifact's last proof on the same images came to."""
    same = (proofs.c.artifact_id == artifact, proofs.c.snapshot_id == snapshot_id, proofs.c.answered_by.is_not(None))
    query = select(proofs.c.tune_accuracy, proofs.c.parity).where(*same).order_by(proofs.c.id.desc())
    row = connection.execute(query).mappings().first()
    return dict(row) if row else None


def record(connection: Connection, ground: Ground, outputs: Mapping[str, Any]) -> None:
    """Writes down a proof, and the answers that are new."""
    artifact, how = outputs["artifact"], (outputs["answered_by"], _resize(ground))
    last = select(proofs.c.answered_by, proofs.c.resize).where(proofs.c.artifact_id == artifact)
    before = connection.execute(last.order_by(proofs.c.id.desc())).first()
    if before is not None and (how[0] is None or tuple(before) != how):
        drop_answers(connection, artifact)
    said = json.loads(Path(outputs["answers"]).read_text(encoding="utf-8"))
    record_answers(connection, "answers", artifact, said)
    add(
        connection,
        proofs,
        artifact_id=artifact,
        snapshot_id=ground.snapshot,
        cycle_id=ground.cycle,
        tune_accuracy=outputs["tune_accuracy"],
        parity=outputs["parity"],
        at=now(),
        answered_by=how[0],
        resize=how[1],
    )


def drop_answers(connection: Connection, artifact: str) -> None:
    """Removes what an artifact has answered on judge: it is asked anew when it is proven next."""
    connection.execute(delete(answers).where(answers.c.artifact_id == artifact))
    connection.execute(update(proofs).where(proofs.c.artifact_id == artifact).values(answered_by=None))


def _resize(ground: Ground) -> str:
    return str(ground.settings["input"]["resize"])


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
