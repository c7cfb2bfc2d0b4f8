"""What the policy of a cycle's steps looks at, read from the journal anew at each step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, select

from daemon import schema, targets, verdicts
from daemon.jobs import Ground
from daemon.journal import AnyRow
from policies.facts import Requirement, Role, Verdict, from_dict
from policies.next_step import CycleFacts

Rows = Mapping[bytes, tuple[str, Role]]  # of a snapshot: class and role by the sample's hash


def gather(
    connection: Connection,
    cycle: AnyRow,
    ground: Ground,
    rows: Rows,
    *,
    repository: Path,
    device: str,
    confidence: float,
) -> CycleFacts:
    """All that `next_step` decides on, for the cycle of this row."""
    requirement = ground.requirement
    champion = targets.champion(connection, cycle.target)
    judge = targets.judge_set(connection, rows)
    classes = {name for name, _ in rows.values()}
    if champion and cycle.trigger != "data":
        classes &= set(champion.classes)
    proven = _proven(connection, cycle.id)
    recipes = {name: ground.recipe(name) for name in ground.settings["model"]["architectures"]}
    return CycleFacts(
        trigger=cycle.trigger,
        requirement=requirement,
        snapshot=ground.snapshot,
        architectures=tuple(recipes),
        candidates=tuple(
            dataclasses.replace(c, proof=judge.counts(connection, c.artifact, c.classes)) if c.artifact in proven else c
            for c in targets.candidates(connection, requirement, classes, device)
        ),
        unbuilt=_unbuilt(connection, cycle.id, requirement, recipes, champion),
        fresh=frozenset(_models(connection, recipes)),
        trained=_trained(connection, recipes),
        too_large=_too_large(connection, requirement),
        champion=champion.artifact if champion else None,
        champion_feasible=champion is not None
        and not targets.is_beyond_repair(connection, champion, repository, cycle.target)
        and targets.feasible(
            connection,
            requirement,
            champion,
            judge.counts(connection, champion.artifact, champion.classes),
            device=device,
            confidence=confidence,
        ),
        measured=_measured(connection, cycle.id),
        rivals=verdicts.unproven(connection, requirement, judge, device),
        verdicts=_verdicts(connection, cycle.id),
        promoted=_promoted(connection, cycle.id),
        failed=_failed(connection, cycle.id),
    )


def words_of(connection: Connection, stage: int) -> str:
    """The last words of a stage's last attempt."""
    table = schema.attempts
    words = connection.execute(
        select(table.c.last_words).where(table.c.stage_id == stage).order_by(table.c.id.desc())
    ).scalar()
    return words or ""


def _proven(connection: Connection, cycle: int) -> set[str]:
    proofs = schema.proofs
    return set(connection.execute(select(proofs.c.artifact_id).where(proofs.c.cycle_id == cycle)).scalars())


def _measured(connection: Connection, cycle: int) -> frozenset[str]:
    table = schema.stages
    done = (table.c.cycle_id == cycle, table.c.name == "measure", table.c.state == "done")
    outputs = connection.execute(select(table.c.outputs).where(*done)).scalars()
    return frozenset(said["artifact"] for said in outputs if said)


def _verdicts(connection: Connection, cycle: int) -> dict[str, Verdict]:
    table = schema.verdicts
    found = connection.execute(select(table).where(table.c.cycle_id == cycle).order_by(table.c.id))
    return {row.artifact_id: from_dict(Verdict, row.verdict) for row in found}


def _promoted(connection: Connection, cycle: int) -> str | None:
    table = schema.promotions
    served = (table.c.cycle_id == cycle, table.c.served.is_not(None))
    return connection.execute(select(table.c.artifact_id).where(*served)).scalar()


def _trained(connection: Connection, recipes: Mapping[str, str]) -> tuple[str, ...]:
    found = set(_models(connection, recipes).values())
    return tuple(name for name, recipe in recipes.items() if recipe in found)


def _models(connection: Connection, recipes: Mapping[str, str]) -> dict[str, str]:
    """The recipe of each stored model that is of one of these."""
    table = schema.models
    there = (table.c.recipe.in_(list(recipes.values())), table.c.gone.is_(None))
    return {row.id: row.recipe for row in connection.execute(select(table.c.id, table.c.recipe).where(*there))}


def _unbuilt(
    connection: Connection,
    cycle: int,
    requirement: Requirement,
    recipes: Mapping[str, str],
    champion: targets.Champion | None,
) -> tuple[str, ...]:
    """Models to be built: begun and interrupted in this cycle, of its recipes, and the champion's if it was lost."""
    models, artifacts, stages = schema.models, schema.artifacts, schema.stages
    steps = connection.execute(
        select(stages.c.step).where(
            stages.c.cycle_id == cycle,
            stages.c.step.startswith("build "),
            stages.c.state.in_(("waiting", "running")),
        )
    ).scalars()
    begun = [step.removeprefix("build ") for step in steps]
    built = select(artifacts.c.model_id).where(artifacts.c.gone.is_(None))
    wanted: ColumnElement[bool] = models.c.recipe.in_(list(recipes.values()))
    if champion is not None:
        served = select(artifacts.c.model_id).where(artifacts.c.id == champion.artifact)
        size = (models.c.height == requirement.height) & (models.c.width == requirement.width)
        wanted = wanted | (models.c.id.in_(served) & size)
    # What was begun is built perhaps, but its proof or its measurement is missing.
    open_ = models.c.id.in_(begun) | (wanted & models.c.id.not_in(built))
    found = connection.execute(select(models.c.id).where(open_, models.c.gone.is_(None))).scalars()
    return tuple(sorted(found, key=lambda model: model not in begun))


def _too_large(connection: Connection, requirement: Requirement) -> dict[str, str]:
    limit = requirement.artifact_max_mb
    if limit is None:
        return {}
    table = schema.measurements
    rows = connection.execute(select(table.c.architecture, table.c.figures).where(table.c.artifact_id.is_(None)))
    sizes = {name: figures["weights_mb"] for name, figures in rows if "weights_mb" in figures}
    return {
        name: f"its weights alone are {size:.2f} MB, above artifact_max_mb {limit:g} by {size - limit:.2f}"
        for name, size in sizes.items()
        if size > limit
    }


def _failed(connection: Connection, cycle: int) -> dict[str, str]:
    table = schema.stages
    rows = connection.execute(
        select(table.c.id, table.c.step, table.c.name).where(table.c.cycle_id == cycle, table.c.state == "failed")
    )
    return {f"{row.step}, stage {row.name}": words_of(connection, row.id) for row in rows}
