"""Models that were trained elsewhere, from a person's request to the cycle that builds, proves and judges them.

`relearn adopt` has made the model folder by then (daemon/cli_adopt.py). The request stays owed until a cycle of its
own, begun for the trigger "adopt", has come to its end, so that a daemon that is killed in between takes it up again.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from daemon import pauses, schema, snapshot, standings, targets
from daemon.config import Config, dump
from daemon.errors import NotFound, UsageError
from daemon.journal import AnyRow, add, claim, now
from daemon.serving import Serving
from daemon.stock import model_folder
from daemon.targets import Champion
from deploy.artifact import ArtifactError, read_manifest
from policies.facts import ClassCount, Requirement, to_dict

RECIPE = "adopted"  # of no training


def take(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    """Answers the request. Raises NotFound, UsageError where the model cannot be what the target serves."""
    target, model = request.arguments["target"], request.arguments["model"]
    requirement = targets.requirements(connection).get(target)
    if requirement is None:
        raise NotFound(f"there is no target {target!r} with a valid constraint file")
    about = _read(serving.config, model)
    _check_size(about, requirement)
    said = f"{about['architecture'].partition(':')[2]} is model {model}: it is built, proven and measured next"
    if targets.champion(connection, target):
        said += f"; {target} has a champion, so it is a challenger like any other, and the policy is asked about it"
    if paused := pauses.tell(connection, target):
        said += f"; {paused}: it waits for `relearn resume`"
    if not about["embeds"]:
        said += (
            "; its graph shows no classifier layer: labels and drift are looked at once a model that was trained here "
            "is served (labels at once where audit.backbone names a network)"
        )
    return "owed", said


def _check_size(about: dict[str, Any], requirement: Requirement) -> None:
    size = (about["input"]["height"], about["input"]["width"])
    if size != (requirement.height, requirement.width):
        raise UsageError(
            f"{about['id']} takes images of {size[0]} x {size[1]}, the clients of {requirement.target} send "
            f"{requirement.height} x {requirement.width}; adopt it again"
        )


def _read(config: Config, model: str) -> dict[str, Any]:
    try:
        return read_manifest(model_folder(config.state, model))
    except ArtifactError as error:
        raise UsageError(f"{error}: `relearn adopt` makes it") from error


def owed(connection: Connection, target: str) -> AnyRow | None:
    """The oldest adoption that was asked for and has not come to its end."""
    requests = schema.requests
    asked = (requests.c.kind == "adopt", requests.c.state == "owed")
    rows = connection.execute(select(requests).where(*asked).order_by(requests.c.id))
    return next((row for row in rows if row.arguments["target"] == target), None)


def begin(connection: Connection, config: Config, decision: int, requirement: Requirement, request: AnyRow) -> int:
    """The cycle of an adoption, and its model, which learnt from nothing that is known here."""
    folder, target = config.state / "snapshots", requirement.target
    about = _read(config, request.arguments["model"])
    _check_size(about, requirement)
    champion, policies = targets.champion(connection, target), config.settings.policies
    known = dict.fromkeys((*(champion.classes if champion else ()), *about["classes"]))
    data = snapshot.take(connection, folder, known=list(known), at_least=policies.new_class.samples)
    cycle = add(
        connection,
        schema.cycles,
        decision_id=decision,
        target=target,
        trigger="adopt",
        state="running",
        snapshot_id=data.id,
        requirement=to_dict(requirement),
        settings=dump(config),
        started=now(),
    )
    of_this = {"cycle_id": cycle, "adopted": request.by, "gone": None}
    row = insert(schema.models).values(
        id=about["id"],
        architecture=about["architecture"],
        snapshot_id=snapshot.take_nothing(connection, folder),
        recipe=RECIPE,
        classes=about["classes"],
        height=about["input"]["height"],
        width=about["input"]["width"],
        embeds=about["embeds"],
        train_seconds=0.0,
        created=now(),
        **of_this,
    )
    connection.execute(row.on_conflict_do_update(index_elements=["id"], set_=of_this))  # it was adopted before
    return cycle


def refuse(connection: Connection, request: AnyRow, why: str) -> None:
    """The adoption cannot be begun any more: the folder was removed meanwhile, for instance."""
    claim(connection, schema.requests, request.id, "owed", "refused", answer=why)


def settle(connection: Connection, target: str, cycle: int, answer: str) -> None:
    """The cycle has come to its end, and with it what it was begun for."""
    request = owed(connection, target)
    if request is not None and request.arguments["model"] in models_of(connection, cycle):
        claim(connection, schema.requests, request.id, "owed", "done", answer=answer)


def drop(connection: Connection, target: str, why: str) -> None:
    """What was asked for and has not begun, or was interrupted, is not adopted any more."""
    while request := owed(connection, target):
        refuse(connection, request, why)


def models_of(connection: Connection, cycle: int) -> list[str]:
    """The models that the cycle adopted."""
    models = schema.models
    mine = (models.c.cycle_id == cycle, models.c.adopted.is_not(None))
    return list(connection.execute(select(models.c.id).where(*mine)).scalars())


def snapshot_of(connection: Connection, champion: Champion) -> str | None:
    """What the champion was built and proven on when it was adopted; None: it was trained here."""
    cycles, models, artifacts = schema.cycles, schema.models, schema.artifacts
    return connection.execute(
        select(cycles.c.snapshot_id)
        .join(models, models.c.cycle_id == cycles.c.id)
        .join(artifacts, artifacts.c.model_id == models.c.id)
        .where(artifacts.c.id == champion.artifact, models.c.adopted.is_not(None))
    ).scalar()


def is_unproven(connection: Connection, champion: Champion, judge: tuple[ClassCount, ...]) -> bool:
    """Whether the champion was adopted before there was anything to prove it on, and there is now.

    judge: its answers in its newest proof.
    """
    if any(count.samples for count in judge) or snapshot_of(connection, champion) is None:
        return False
    counts = standings.count(connection)
    return any(counts.get((standings.USABLE, name, "judge")) for name in champion.classes)
