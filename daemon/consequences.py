"""What forgetting images would mean: for models that were trained on them or judged by them, and for what is served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, select

from daemon import enough, schema, snapshot, targets
from daemon.config import Config
from daemon.errors import UsageError
from daemon.journal import chunks
from policies.facts import Role

View = dict[str, Any]
Rows = dict[bytes, tuple[str, Role]]


def foresee(connection: Connection, config: Config, ids: Collection[int]) -> View:
    """What comes of forgetting these samples, as plain values."""
    images = _images(connection, ids)
    snapshots, unreadable = _snapshots(connection, config, {bytes.fromhex(sha) for sha in images["shas"]})
    cycles = schema.cycles
    running = connection.execute(select(cycles).where(cycles.c.state == "running"))
    models = _models(connection, snapshots)
    return {
        "images": len(images["shas"]),
        "sha256": images["shas"],
        "files": images["files"],
        "bytes": images["bytes"],
        "snapshots": sorted(snapshots),
        "unreadable": unreadable,
        "models": models,
        "targets": _replaced(connection, config, models, set(ids)),
        "cycles": [{"cycle": row.id, "target": row.target} for row in running if row.snapshot_id in snapshots],
    }


def _images(connection: Connection, ids: Collection[int]) -> View:
    samples, occurrences = schema.samples, schema.occurrences
    shas, size, files = [], 0, 0
    listed = sorted(ids)
    for some in chunks(listed):
        for sha, number in connection.execute(
            select(samples.c.sha256, samples.c.bytes).where(samples.c.id.in_(some)).order_by(samples.c.id)
        ):
            shas.append(sha.hex())
            size += number
        live = (occurrences.c.sample_id.in_(some), occurrences.c.gone.is_(None))
        files += len(connection.execute(select(occurrences.c.id).where(*live)).all())
    return {"shas": shas, "bytes": size, "files": files}


def _snapshots(
    connection: Connection, config: Config, shas: Collection[bytes]
) -> tuple[dict[str, Counter[Role]], list[str]]:
    """How many of the images each snapshot holds, by role, of those that hold any; and those that cannot be read."""
    table, found, unreadable = schema.snapshots, dict[str, Counter[Role]](), []
    for id_ in connection.execute(select(table.c.id)).scalars():
        file = config.state / "snapshots" / f"{id_}.snapshot"
        try:
            _, rows = snapshot.read(file)
        except FileNotFoundError:  # no stored model needs it
            continue
        except OSError:
            unreadable.append(id_)
            continue
        if roles := Counter(rows[sha][1] for sha in shas if sha in rows):
            found[id_] = roles
    return found, unreadable


def _models(connection: Connection, snapshots: dict[str, Counter[Role]]) -> list[View]:
    """The stored models that were trained, tuned or judged on any of the images; what serves which target."""
    models, artifacts, promotions = schema.models, schema.artifacts, schema.promotions
    rows = connection.execute(
        select(promotions.c.target, artifacts.c.model_id)
        .join(artifacts, artifacts.c.id == promotions.c.artifact_id)
        .where(promotions.c.state == "serving")
    )
    serves: dict[str, list[str]] = {}
    for target, model in rows:
        serves.setdefault(model, []).append(target)
    stored = connection.execute(select(models).where(models.c.gone.is_(None)).order_by(models.c.created)).all()
    stored = [row for row in stored if row.snapshot_id in snapshots]
    return [
        {
            "model": row.id,
            "architecture": row.architecture,
            **{role: snapshots[row.snapshot_id][role] for role in ("train", "tune", "judge")},
            "serves": sorted(serves.get(row.id, [])),
        }
        for row in stored
    ]


def _replaced(connection: Connection, config: Config, models: list[View], ids: set[int]) -> list[View]:
    """What becomes of each target whose served model learnt from one of the images."""
    found = []
    valid = targets.requirements(connection)
    for model in models:
        for target in model["serves"] if model["train"] or model["tune"] else ():
            why_not = None if target in valid else "its constraint file is gone or was never valid"
            if why_not is None:
                try:
                    enough.check(connection, config, target, without=ids)
                except UsageError as error:
                    why_not = str(error)
            found.append({"target": target, "model": model["model"], "retrained": why_not is None, "why_not": why_not})
    return found


def tell(view: View) -> list[str]:
    """The same in sentences."""
    lines = [
        f"{_count(view['images'], 'image')}: each copy, and all that was decoded of it, is removed for good; your own "
        f"files ({view['files']:,} in watched folders) stay where they are, and are read no more"
    ]
    for model in view["models"]:
        parts = [f"{model[role]:,} {role}" for role in ("train", "tune", "judge") if model[role]]
        serves = f"; it serves {', '.join(model['serves'])}" if model["serves"] else ""
        lines.append(
            f"model {model['model']} ({model['architecture']}) was trained, tuned or judged on some of them "
            f"({', '.join(parts)}){serves}"
        )
    if not view["models"]:
        lines.append("no stored model was trained on or judged by any of them")
    lines += [_tell_target(target) for target in view["targets"]]
    lines += [f"cycle {c['cycle']} for {c['target']} is interrupted: it stands on some of them" for c in view["cycles"]]
    if number := len(view["snapshots"]):
        lines.append(
            f"what was trained on {_count(number, 'snapshot')} with some of them cannot be reproduced any more"
        )
    if view["unreadable"]:
        lines.append(f"these snapshots cannot be read, and may hold some: {', '.join(view['unreadable'])}")
    return lines


def _tell_target(view: View) -> str:
    stays = f"{view['target']} serves a model that learnt from them: it is served on"
    if view["retrained"]:
        return (
            f"{stays} until one that was trained without them is shown to be no worse, and takes its place; "
            "that training is asked for now"
        )
    return f"{stays}, and none can be trained in its place yet ({view['why_not']}); ask for it with `relearn retrain`"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
