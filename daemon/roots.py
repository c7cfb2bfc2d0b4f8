"""What must stay in the state folder, and why: read from the journal alone, a sentence for each.

Roots are what is served, the last few versions of each target, what runs, and what a person pinned. From an artifact
follows its model, from a model its snapshot, from a snapshot the bytes of its images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import Connection, select

from daemon import evidence, schema, targets
from daemon.journal import chunks

Kind = Literal["model", "artifact", "snapshot", "cycle"]
Why = dict[str, str]


@dataclass(frozen=True)
class Roots:
    """Name -> why it stays."""

    models: Why = field(default_factory=dict)
    artifacts: Why = field(default_factory=dict)
    snapshots: Why = field(default_factory=dict)  # whose images keep their bytes
    snapshot_files: Why = field(default_factory=dict)  # which stay by themselves: a list of hashes
    cycles: Why = field(default_factory=dict)  # by number, what passes between their stages
    cycle_snapshots: Why = field(default_factory=dict)  # of those cycles: trainings on them stay
    running: Mapping[int, float] = field(default_factory=dict)  # cycle -> when it began


def gather(connection: Connection, keep_versions: int) -> Roots:
    """All roots as of now. keep_versions: of each target, counted from the newest that was served."""
    roots = Roots(running=_running(connection))
    for artifact, why in _promoted(connection, keep_versions):
        roots.artifacts.setdefault(artifact, why)
    for cycle in roots.running:
        _add_cycle(connection, roots, cycle, f"cycle {cycle} is running")
        _add_compared(connection, roots, cycle)
    for kind, name, by in _pinned(connection):
        _add_pinned(connection, roots, kind, name, f"pinned by {by}")
    _follow(connection, roots)
    return roots


def _running(connection: Connection) -> dict[int, float]:
    cycles = schema.cycles
    rows = connection.execute(select(cycles.c.id, cycles.c.started).where(cycles.c.state == "running"))
    return {row.id: row.started for row in rows}


def _promoted(connection: Connection, keep_versions: int) -> list[tuple[str, str]]:
    """What is served or being switched to, the versions before it, and the anchor of each target."""
    table = schema.promotions
    alive = table.c.served.is_not(None) | table.c.state.in_(("switching", "undoing"))
    rows = connection.execute(select(table).where(alive).order_by(table.c.target, table.c.version.desc())).all()
    found, served = [], dict[str, list[str]]()
    for row in rows:
        if row.state == "serving":
            found.append((row.artifact_id, f"served by {row.target}"))
        elif row.state != "retired" and row.served is None:
            found.append((row.artifact_id, f"{row.target} is being switched to it"))
        versions = served.setdefault(row.target, [])
        if row.served is not None and row.artifact_id not in versions:
            versions.append(row.artifact_id)
    waits = select(schema.verdicts).where(schema.verdicts.c.approval == "waiting")
    found += [(row.artifact_id, f"it waits for `relearn approve {row.target}`") for row in connection.execute(waits)]
    for target, versions in served.items():
        last = f"one of the last {keep_versions} versions of {target} (`relearn rollback`)"
        found += [(artifact, last) for artifact in versions[:keep_versions]]
        if anchor := targets.anchor(connection, target):
            found.append((anchor, f"later models of {target} may not be worse than it"))
    return found


def _add_cycle(connection: Connection, roots: Roots, cycle: int, why: str) -> None:
    """The snapshot of a cycle, and what was made in it."""
    cycles, models, artifacts = schema.cycles, schema.models, schema.artifacts
    snapshot = connection.execute(select(cycles.c.snapshot_id).where(cycles.c.id == cycle)).scalar()
    roots.cycles.setdefault(str(cycle), why)
    if snapshot is not None:
        roots.snapshots.setdefault(snapshot, why)
        roots.cycle_snapshots.setdefault(snapshot, why)
    made = (models.c.cycle_id == cycle) | (models.c.snapshot_id == snapshot)
    for model in connection.execute(select(models.c.id).where(made)).scalars():
        roots.models.setdefault(model, why)
    of = select(artifacts.c.id).join(models, models.c.id == artifacts.c.model_id).where(made)
    for artifact in connection.execute(of).scalars():
        roots.artifacts.setdefault(artifact, why)


def _add_compared(connection: Connection, roots: Roots, cycle: int) -> None:
    """What a running cycle builds or proves that earlier ones made."""
    stages, proofs, why = schema.stages, schema.proofs, f"cycle {cycle} is running"
    steps = connection.execute(select(stages.c.step, stages.c.outputs).where(stages.c.cycle_id == cycle))
    for step, outputs in steps:
        kind, *named = step.split()
        if kind == "build":
            roots.models.setdefault(named[0], why)
        for artifact in [*(named if kind in ("prove", "measure") else ()), (outputs or {}).get("artifact")]:
            if isinstance(artifact, str):
                roots.artifacts.setdefault(artifact, why)
    proven = connection.execute(select(proofs.c.artifact_id).where(proofs.c.cycle_id == cycle)).scalars()
    for artifact in proven:
        roots.artifacts.setdefault(artifact, why)


def _pinned(connection: Connection) -> list[tuple[Kind, str, str]]:
    pins = schema.pins
    rows = connection.execute(select(pins.c.kind, pins.c.name, pins.c.by).where(pins.c.ended.is_(None)))
    return [(row.kind, row.name, row.by) for row in rows]


def _add_pinned(connection: Connection, roots: Roots, kind: Kind, name: str, why: str) -> None:
    if kind == "cycle":
        _add_cycle(connection, roots, int(name), why)
    else:
        known = {"model": roots.models, "artifact": roots.artifacts, "snapshot": roots.snapshots}[kind]
        known[name] = why


def _follow(connection: Connection, roots: Roots) -> None:
    """From artifacts to models, from models to snapshots; and the files of snapshots that are read again."""
    artifacts, models, proofs = schema.artifacts, schema.models, schema.proofs
    for artifact, model in connection.execute(select(artifacts.c.id, artifacts.c.model_id)):
        if artifact in roots.artifacts:
            roots.models.setdefault(model, f"artifact {artifact} is built of it: {roots.artifacts[artifact]}")
    for model, snapshot, gone in connection.execute(select(models.c.id, models.c.snapshot_id, models.c.gone)):
        if model in roots.models:
            why = f"to train, prove or build model {model} again: {roots.models[model]}"
            roots.snapshots.setdefault(snapshot, why)
        if gone is None:
            roots.snapshot_files.setdefault(snapshot, f"model {model}, which is stored, was trained on it")
    for artifact, snapshot in connection.execute(select(proofs.c.artifact_id, proofs.c.snapshot_id)):
        if artifact in roots.artifacts:
            roots.snapshot_files.setdefault(snapshot, f"artifact {artifact} was proven on it")
    for target in connection.execute(select(schema.cycles.c.target).distinct()).scalars():
        trained = evidence.last_trained(connection, target)
        if trained is not None:
            roots.snapshot_files.setdefault(trained.snapshot_id, f"what is new for {target} is new against it")


def live(connection: Connection, shas: Iterable[bytes]) -> set[bytes]:
    """Which of these images lie in a watched folder, labelled or not, held or not; none that was forgotten."""
    samples, occurrences = schema.samples, schema.occurrences
    found: set[bytes] = set()
    for some in chunks(shas):
        found |= set(
            connection.execute(
                select(samples.c.sha256)
                .join(occurrences, occurrences.c.sample_id == samples.c.id)
                .where(samples.c.sha256.in_(some), occurrences.c.gone.is_(None), samples.c.forgotten.is_(None))
            ).scalars()
        )
    return found
