"""`relearn data`: what there is, by class and role, by watched folder and by drop, and what of it is used nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from daemon import data_views, schema
from daemon.config import Config
from policies.falls import FALSE_ALARM
from policies.statistics import smallest_fall

View = dict[str, Any]
DROPS = 10  # that are shown
POWER = 0.8  # with which a fall is to be seen, where a class counts as large enough to be judged
EXCHANGE = 0.05  # of its samples that a good challenger wins back, while it loses others


def report(connection: Connection, config: Config) -> View:
    """Everything that `relearn data` shows, as plain values."""
    data = data_views.data(connection)
    chance = FALSE_ALARM / max(len(data["classes"]), 1)  # of each class, where all are looked at (Holm's first step)
    return {
        **data,
        "classes": [
            {"class": name, **{role: counts.get(role, 0) for role in ("train", "tune", "judge")},
             "smallest_fall": smallest_fall(counts.get("judge", 0), EXCHANGE, chance, POWER)}
            for name, counts in data["classes"].items()
        ],
        "folders": [_folder(connection, config, folder) for folder in config.folders],
        "drops": _drops(connection),
        "near_two_roles": _near_two_roles(connection),
        "first_frame_alone": _several_frames(connection),
    }  # fmt: skip


def _folder(connection: Connection, config: Config, folder: Path) -> View:
    table, watched = schema.occurrences, config.watched(folder)
    live = (table.c.folder == str(folder), table.c.gone.is_(None))
    labelled, files = connection.execute(select(func.count(table.c.class_name), func.count()).where(*live)).one()
    bad = schema.rejections
    rejected = select(func.count()).where(bad.c.folder == str(folder), bad.c.gone.is_(None))
    said: View = {"folder": str(folder), "labels": watched.labels, "files": files, "unlabelled": files - labelled}
    said["rejected"] = connection.execute(rejected).scalar_one()
    if watched.manifest:
        known = schema.manifests
        row = connection.execute(
            select(known.c.rows, known.c.waiting, known.c.refused, known.c.at).where(
                known.c.folder == str(folder), known.c.path == watched.manifest
            )
        ).first()
        said["manifest"] = {"file": watched.manifest, **(row._asdict() if row else {"rows": None})}
    return said


def _drops(connection: Connection) -> list[View]:
    """The last ones, the newest first."""
    rows = connection.execute(select(schema.drops).order_by(schema.drops.c.id.desc()).limit(DROPS)).all()
    return [
        {
            "drop": row.id, "folder": row.folder, "at": row.started, "state": row.state, "files": row.files,
            "new": row.added - (moved := _relabelled(connection, row.id)), "relabelled": moved, "gone": row.gone,
            "rejected": row.rejected,
        }
        for row in rows
    ]  # fmt: skip


def _relabelled(connection: Connection, drop: int) -> int:
    """Occurrences in a drop of samples that had another class before."""
    now, before = schema.occurrences.alias("now"), schema.occurrences.alias("before")
    other = (before.c.sample_id == now.c.sample_id) & (before.c.id < now.c.id)
    query = (
        select(func.count(func.distinct(now.c.id)))
        .join(before, other & before.c.gone.is_not(None) & before.c.class_name.is_distinct_from(now.c.class_name))
        .where(now.c.drop_id == drop)
    )
    return int(connection.execute(query).scalar_one())


def _near_two_roles(connection: Connection) -> list[View]:
    """Labelled samples that no group could take, since near-duplicates of theirs lie in two roles; with those."""
    samples, occurrences, pairs = schema.samples, schema.occurrences, schema.near_duplicates
    rows = connection.execute(
        select(samples.c.id, samples.c.sha256, occurrences.c.folder, occurrences.c.path)
        .join(schema.standings, schema.standings.c.sample_id == samples.c.id)
        .join(occurrences, occurrences.c.sample_id == samples.c.id)
        .join(schema.drops, schema.drops.c.id == occurrences.c.drop_id)
        .where(
            schema.standings.c.state.in_(("ungrouped", "conflict", "held")),  # of labelled ones without a group
            samples.c.group_id.is_(None),
            occurrences.c.gone.is_(None),
            occurrences.c.class_name.is_not(None),
            schema.drops.c.state.in_(("ready", "held")),
            samples.c.forgotten.is_(None),
        )
        .order_by(occurrences.c.path)
    ).all()
    twin = schema.samples.alias("twin")
    found = []
    for row in rows:
        joined = ((pairs.c.sample_id == row.id) & (pairs.c.twin_id == twin.c.id)) | (
            (pairs.c.twin_id == row.id) & (pairs.c.sample_id == twin.c.id)
        )
        near = connection.execute(
            select(twin.c.sha256, schema.groups.c.role)
            .select_from(twin)
            .join(pairs, joined)
            .outerjoin(schema.groups, schema.groups.c.id == twin.c.group_id)
        ).all()
        found.append(
            {
                "file": str(Path(row.folder) / row.path),
                "sha256": row.sha256.hex(),
                "near": [{"sha256": sha.hex(), "role": role} for sha, role in near],
            }
        )
    return found


def _several_frames(connection: Connection) -> int:
    samples, occurrences = schema.samples, schema.occurrences
    query = (
        select(func.count(func.distinct(samples.c.id)))
        .join(occurrences, occurrences.c.sample_id == samples.c.id)
        .where(samples.c.frames > 1, occurrences.c.gone.is_(None))
    )
    return int(connection.execute(query).scalar_one())
