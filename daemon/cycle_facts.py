"""What the policy of a cycle's steps looks at, read from the journal anew at each step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from sqlalchemy import Connection, select

from daemon import adoption, evidence, proofs, schema, sketches, targets, tunings, verdicts
from daemon.declined import declined
from daemon.ground import Ground
from daemon.journal import AnyRow
from daemon.snapshot import Rows
from daemon.variants import Devices, gpu_of, is_outdated, join
from policies.cycle_facts import CycleFacts
from policies.facts import Verdict, from_dict
from policies.search import Heat, SearchFacts
from policies.settings import TuningSettings
from policies.tuning import TuningFacts


def gather(
    connection: Connection,
    cycle: AnyRow,
    ground: Ground,
    rows: Rows,
    *,
    repository_of: Callable[[str], Path],
    devices: Devices,
    confidence: float,
) -> CycleFacts:
    """All that `next_step` decides on, for the cycle of this row."""
    requirement = ground.requirement
    champion = targets.champion(connection, cycle.target)
    judge = targets.judge_set(connection, rows)
    classes = set(rows.classes)
    if cycle.trigger == "asked":  # a person may ask about one that lacks a class: the verdict says what that means
        classes = set()
    elif champion and cycle.trigger != "data":
        classes &= set(champion.classes)
    adopted = adoption.models_of(connection, cycle.id)
    if adopted:  # it is asked about whatever it knows; what the champion serves must not be lost all the same
        classes = set()
    valid = proofs.find_valid(connection, ground)
    proven = _proven(connection, cycle.id) | {name for name, on in valid.items() if ground.snapshot in on}
    search = _search(connection, cycle, ground, devices)
    first = _architectures(connection, ground, champion)
    recipes = {name: ground.recipe(name) for name in (*first, *(search.names or ()))}
    refused = _refused(connection, cycle.id)
    return CycleFacts(
        trigger=cycle.trigger,
        requirement=requirement,
        snapshot=ground.snapshot,
        architectures=first,
        candidates=tuple(
            dataclasses.replace(c, proof=judge.counts(connection, c.artifact, c.classes)) if c.artifact in proven else c
            for c in targets.candidates(connection, requirement, classes, devices)
        ),
        variants=ground.variants,
        unbuilt=_unbuilt(connection, cycle, ground, recipes, champion, devices),
        refused=refused,
        unbuildable=_unbuildable(connection, refused, recipes),
        unanswered=_unanswered(connection, cycle.id),
        built=_built_in(connection, cycle.id),
        stored=_stored(connection),
        fresh=frozenset(adopted or _models(connection, recipes)),
        trained=_trained(connection, recipes),
        too_large=_too_large(connection, ground),
        champion=champion.artifact if champion else None,
        champion_feasible=champion is not None
        and not targets.is_beyond_repair(connection, champion, repository_of(champion.server), cycle.target)
        and targets.feasible(
            connection,
            requirement,
            champion,
            judge.counts(connection, champion.artifact, champion.classes),
            devices=devices,
            confidence=confidence,
        ),
        measured=_measured(connection, cycle.id),
        measured_longer=_measured_longer(connection, cycle.id),
        rivals=verdicts.unproven(connection, requirement, judge, devices, proven | valid.keys()),
        verdicts=_verdicts(connection, cycle.id),
        about=cycle.about,
        unapproved=_unapproved(connection, cycle.id),
        declined=declined(connection, cycle.target),
        promoted=_promoted(connection, cycle.id),
        failed=_failed(connection, cycle.id),
        tuning=_tuning(connection, cycle.id, ground),
        search=search,
    )


def words_of(connection: Connection, stage: int) -> str:
    """The last words of a stage's last attempt."""
    table = schema.attempts
    words = connection.execute(
        select(table.c.last_words).where(table.c.stage_id == stage).order_by(table.c.id.desc())
    ).scalar()
    return words or ""


def _proven(connection: Connection, cycle: int) -> set[str]:
    table = schema.proofs
    return set(connection.execute(select(table.c.artifact_id).where(table.c.cycle_id == cycle)).scalars())


def _measured(connection: Connection, cycle: int) -> frozenset[str]:
    table = schema.stages
    done = (table.c.cycle_id == cycle, table.c.name == "measure", table.c.state == "done")
    outputs = connection.execute(select(table.c.outputs).where(*done)).scalars()
    return frozenset(said["artifact"] for said in outputs if said)


def _measured_longer(connection: Connection, cycle: int) -> frozenset[str]:
    """Where that came to nothing the measurement before stands."""
    table = schema.stages
    over = (table.c.cycle_id == cycle, table.c.step.startswith("measure "), table.c.state.in_(("done", "failed")))
    return frozenset(step.split()[1] for step in connection.execute(select(table.c.step).where(*over)).scalars())


def _verdicts(connection: Connection, cycle: int) -> dict[str, Verdict]:
    table = schema.verdicts
    found = connection.execute(select(table).where(table.c.cycle_id == cycle).order_by(table.c.id))
    return {row.artifact_id: from_dict(Verdict, row.verdict) for row in found}


def _unapproved(connection: Connection, cycle: int) -> frozenset[str]:
    """The artifacts whose verdict of this cycle was left to a person, whatever came of it."""
    table = schema.verdicts
    left = select(table.c.artifact_id).where(table.c.cycle_id == cycle, table.c.approval.is_not(None))
    return frozenset(connection.execute(left).scalars())


def _promoted(connection: Connection, cycle: int) -> str | None:
    table = schema.promotions
    served = (table.c.cycle_id == cycle, table.c.served.is_not(None))
    return connection.execute(select(table.c.artifact_id).where(*served)).scalar()


def _stored(connection: Connection) -> frozenset[str]:
    models = schema.models
    return frozenset(connection.execute(select(models.c.id).where(models.c.gone.is_(None))).scalars())


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
    cycle: AnyRow,
    ground: Ground,
    recipes: Mapping[str, str],
    champion: targets.Champion | None,
    devices: Devices,
) -> tuple[tuple[str, str], ...]:
    """Models and variants to be built: begun and interrupted in this cycle, of its recipes, and what the champion lost.

    After an edit of the constraints the champion's model is worth every variant that the target could take, too.
    """
    models, stages = schema.models, schema.stages
    steps = connection.execute(
        select(stages.c.step).where(
            stages.c.cycle_id == cycle.id,
            stages.c.step.startswith("build "),
            stages.c.state.in_(("waiting", "running")),
        )
    ).scalars()
    # What was begun is built perhaps, but its proof or its measurement is missing.
    found = dict.fromkeys((step.split()[1], step.split()[2]) for step in steps)
    own = select(models.c.id).where(models.c.recipe.in_(list(recipes.values()))).order_by(models.c.created)
    made = [*adoption.models_of(connection, cycle.id), *connection.execute(own).scalars()]
    pairs = [(model, variant) for model in made for variant in ground.variants]
    pairs += _of_champion(connection, cycle.trigger, ground, champion) if champion else []
    there = _stored(connection)
    built = _built(connection, cycle, ground, devices)
    found |= dict.fromkeys(pair for pair in pairs if pair not in built)
    return tuple(pair for pair in found if pair[0] in there)


def _of_champion(
    connection: Connection, trigger: str, ground: Ground, champion: targets.Champion
) -> list[tuple[str, str]]:
    artifacts, models = schema.artifacts, schema.models
    size = (models.c.height == ground.requirement.height, models.c.width == ground.requirement.width)
    row = connection.execute(
        select(artifacts.c.model_id, artifacts.c.engine, artifacts.c.precision)
        .join(models, models.c.id == artifacts.c.model_id)
        .where(artifacts.c.id == champion.artifact, *size)
    ).first()
    if row is None:
        return []
    others = ground.variants if trigger == "constraints" else ()
    return [(row.model_id, variant) for variant in (join(row.engine, row.precision), *others)]


def _built(connection: Connection, cycle: AnyRow, ground: Ground, devices: Devices) -> set[tuple[str, str]]:
    """Models and variants that there is an artifact of, as it would be built now.

    What was unverified when it was built is built again, once a cycle: this machine may be able to run it by now.
    """
    artifacts, fresh = schema.artifacts, _built_in(connection, cycle.id)
    gpu = gpu_of(ground.settings)
    rows = connection.execute(select(artifacts).where(artifacts.c.gone.is_(None)))
    return {
        (row.model_id, join(row.engine, row.precision))
        for row in rows
        if (row.unverified is None or row.id in fresh)
        and (row.device is None or gpu in (None, row.device))
        and not is_outdated(row, devices)
    }


def _built_in(connection: Connection, cycle: int) -> frozenset[str]:
    table = schema.stages
    mine = (table.c.cycle_id == cycle, table.c.step.startswith("build "), table.c.name == "build")
    outputs = connection.execute(select(table.c.outputs).where(*mine, table.c.state == "done")).scalars()
    return frozenset(said["artifact"] for said in outputs if said)


def _too_large(connection: Connection, ground: Ground) -> dict[str, str]:
    limit, most = ground.requirement.artifact_max_mb, ground.max_weights_mb
    if limit is None or most is None:
        return {}
    table = schema.measurements
    rows = connection.execute(select(table.c.architecture, table.c.figures).where(table.c.artifact_id.is_(None)))
    sizes = {name: figures["weights_mb"] for name, figures in rows if "weights_mb" in figures}
    share = limit / most
    least = "its weights alone are" if share == 1 else "its weights alone are, in the smallest precision,"
    return {
        name: f"{least} {size * share:.2f} MB, above artifact_max_mb {limit:g} by {size * share - limit:.2f}"
        for name, size in sizes.items()
        if size * share > limit
    }


def _refused(connection: Connection, cycle: int) -> dict[str, str]:
    """Builds that came to nothing: another engine or precision may still give an artifact."""
    return {step: f"stage {name}: {words}" for step, name, words in _failures(connection, cycle, ("build",))}


def _unbuildable(connection: Connection, refused: Mapping[str, str], recipes: Mapping[str, str]) -> dict[str, str]:
    """The architectures whose models of this cycle no builder took."""
    models, artifacts = schema.models, schema.artifacts
    there = select(artifacts.c.model_id).where(artifacts.c.gone.is_(None))
    rows = connection.execute(
        select(models.c.id, models.c.architecture).where(
            models.c.recipe.in_(list(recipes.values())), models.c.id.not_in(there)
        )
    )
    said = {
        row.architecture: [f"{s}, {words}" for s, words in refused.items() if s.split()[1] == row.id] for row in rows
    }
    return {name: "; ".join(words) for name, words in said.items() if words}


def _unanswered(connection: Connection, cycle: int) -> dict[str, str]:
    """The artifacts that could not be proven or measured in this cycle: opened by their engine, for instance."""
    found = {}
    for step, name, words in _failures(connection, cycle, ("prove", "build")):
        artifact: str | None = step.split()[1]
        if step.startswith("build "):
            table = schema.stages
            mine = (table.c.cycle_id == cycle, table.c.step == step, table.c.name == "build", table.c.state == "done")
            outputs = connection.execute(select(table.c.outputs).where(*mine)).scalar()
            artifact = outputs["artifact"] if outputs else None
        if artifact is not None and name != "pixels":
            found[artifact] = f"{step}, stage {name}: {words}"
    return found


def _failed(connection: Connection, cycle: int) -> dict[str, str]:
    """What ends a cycle. A search goes on without what failed in it, a training without its tuning."""
    failures = _failures(connection, cycle, ("train", "prove", "build", "shortlist"))
    return {f"{step}, stage {name}": words for step, name, words in failures if _ends_all(step, name)}


def _ends_all(step: str, stage: str) -> bool:
    """Images that cannot be decoded are a failure of all; an artifact that cannot be asked is one of its own."""
    return stage == "pixels" or not step.startswith(("prove ", "build "))


def _failures(connection: Connection, cycle: int, kinds: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Step, stage and last words of what failed after all attempts."""
    table = schema.stages
    rows = connection.execute(
        select(table.c.id, table.c.step, table.c.name).where(table.c.cycle_id == cycle, table.c.state == "failed")
    )
    return [(row.step, row.name, words_of(connection, row.id)) for row in rows if row.step.split()[0] in kinds]


def _architectures(connection: Connection, ground: Ground, champion: targets.Champion | None) -> tuple[str, ...]:
    """Those of config.toml, in their order, and what is served where a search found it: not what was adopted."""
    configured = tuple(ground.settings["model"]["architectures"])
    if champion is None:
        return configured
    artifacts, models = schema.artifacts, schema.models
    served = connection.execute(
        select(models.c.architecture)
        .join(artifacts, artifacts.c.model_id == models.c.id)
        .where(artifacts.c.id == champion.artifact, models.c.adopted.is_(None))
    ).scalar()
    return configured if served is None or served in configured else (*configured, served)


def _tuning(connection: Connection, cycle: int, ground: Ground) -> TuningFacts:
    policies = ground.settings["policies"]
    return TuningFacts(
        trials=ground.settings["tune"]["trials"],
        ages=tunings.ages(connection, ground.requirement.target),
        given_up=frozenset(step.split()[1] for step, _, _ in _failures(connection, cycle, ("tune",))),
        spent_minutes=evidence.trained_seconds(connection) / 60,
        budget_minutes=policies["budget"]["minutes_per_day"],
        settings=TuningSettings(**policies["tuning"]),
    )


def _search(connection: Connection, cycle: AnyRow, ground: Ground, devices: Devices) -> SearchFacts:
    settings = ground.settings["search"]
    if not settings["architectures"]:
        return SearchFacts()
    table = schema.stages
    listed = (table.c.cycle_id == cycle.id, table.c.step == "shortlist", table.c.state == "done")
    outputs = connection.execute(select(table.c.outputs).where(*listed)).scalar()
    return SearchFacts(
        patterns=tuple(settings["architectures"]),
        names=tuple(outputs["architectures"]) if outputs else None,
        sketches=sketches.known(connection, ground, cycle.started, devices),
        heats=_heats(connection, cycle.id),
        first_epochs=settings["first_epochs"],
        reduction=settings["reduction"],
        epochs=ground.settings["train"]["epochs"],
    )


def _heats(connection: Connection, cycle: int) -> dict[str, tuple[Heat, ...]]:
    found: dict[str, tuple[Heat, ...]] = {}
    table = schema.stages
    mine = (table.c.cycle_id == cycle, table.c.step.startswith("race "), table.c.name == "train")
    for row in connection.execute(select(table.c.step, table.c.outputs).where(*mine, table.c.state == "done")):
        _, name, epochs = row.step.split()
        said = row.outputs
        heat = Heat(int(epochs), said.get("tune_accuracy"), said.get("tune_loss"), said.get("reason", ""))
        found[name] = (*found.get(name, ()), heat)
    for step, _, words in _failures(connection, cycle, ("race",)):
        _, name, epochs = step.split()
        found[name] = (*found.get(name, ()), Heat(int(epochs), None, error=words))
    return found
