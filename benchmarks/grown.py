"""A journal given samples that never were: rows, descriptors, embeddings and answers as images would have left them.

They have no pixels; their files are said to lie in the watched folder `away`, which is empty, as a disk that is not
mounted. The champion counts as trained on them and judged by them.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select, update

from daemon import schema, snapshot, targets
from daemon.demo.processes import TARGET, Workspace
from daemon.descriptor import SIZE
from daemon.duplicates import Index
from daemon.journal import add, change, get, now, open_journal
from pipeline.embedding_cache import Cache
from policies.facts import ROLES, Role

AT_ONCE = 50_000
SHARES = (0.8, 0.1, 0.1)  # train, tune, judge
RIGHT = 0.97  # of the champion's answers


@dataclass(frozen=True, slots=True)
class Fake:
    """One sample that never was."""

    id: int
    sha256: bytes
    name: str
    role: Role


def grow(workspace: Workspace, to: int) -> None:
    """Gives the journal of a workspace, whose daemon is stopped, samples until there are so many."""
    state = workspace.config.state
    engine = open_journal(state)
    with engine.begin() as connection:
        samples, groups = (
            connection.execute(select(func.max(t.c.id))).scalar_one() for t in (schema.samples, schema.groups)
        )
        champion = targets.champion(connection, TARGET)
        assert champion is not None
        model = get(connection, schema.artifacts, champion.artifact).model_id
        drop = add(
            connection, schema.drops, folder=str(workspace.folder / "away"), state="reading", started=now(),
            files=to - samples, added=to - samples, audited=now(), ended=now(),
        )  # fmt: skip
        fakes = list(_fakes(samples + 1, to, champion.classes))
        raw = connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        _insert(raw, fakes, groups + 1 - fakes[0].id, drop, str(workspace.folder / "away"), champion.artifact)
        change(connection, schema.drops, drop, state="ready")
        taken = snapshot.take(connection, state / "snapshots", known=champion.classes, at_least=1)
        connection.execute(update(schema.cycles).values(snapshot_id=taken.id))
        change(connection, schema.models, model, snapshot_id=taken.id)
        of = schema.proofs.c.artifact_id == champion.artifact
        connection.execute(update(schema.proofs).where(of).values(snapshot_id=taken.id))
        real = _classes_of_real(connection, fakes[0].id)
    engine.dispose()
    _embed(state / "embeddings" / model, fakes, champion.classes, real)
    _describe(state / "duplicates", fakes)


def _fakes(first: int, to: int, classes: tuple[str, ...]) -> Iterator[Fake]:
    rng = np.random.default_rng(first)
    roles = rng.choice(len(ROLES), to - first + 1, p=SHARES)
    for id_, role in zip(range(first, to + 1), roles.tolist(), strict=True):
        yield Fake(id_, hashlib.sha256(b"never %d" % id_).digest(), classes[id_ % len(classes)], ROLES[role])


def _insert(raw: sqlite3.Connection, fakes: list[Fake], offset: int, drop: int, folder: str, artifact: str) -> None:
    moment, rng = now(), np.random.default_rng(0)
    raw.executemany(
        "INSERT INTO groups (id, key, role, given) VALUES (?, ?, ?, ?)",
        ((fake.id + offset, fake.sha256.hex(), fake.role, moment) for fake in fakes),
    )
    raw.executemany(
        "INSERT INTO samples (id, sha256, bytes, width, height, mode, frames, group_id, first_seen)"
        " VALUES (?, ?, 700, 24, 24, 'L', 1, ?, ?)",
        ((fake.id, fake.sha256, fake.id + offset, moment) for fake in fakes),
    )
    raw.executemany(
        "INSERT INTO occurrences (folder, path, sample_id, class, size, mtime_ns, drop_id, first_seen)"
        " VALUES (?, ?, ?, ?, 700, 1, ?, ?)",
        ((folder, f"{fake.name}/{fake.id}.png", fake.id, fake.name, drop, moment) for fake in fakes),
    )
    raw.executemany(
        "INSERT INTO labels (sample_id, class, source, by, at, drop_id) VALUES (?, ?, 'folder', 'folder', ?, ?)",
        ((fake.id, fake.name, moment, drop) for fake in fakes),
    )
    names = sorted({fake.name for fake in fakes})
    raw.executemany(
        "INSERT INTO answers (artifact_id, sample_id, predicted, confidence, at) VALUES (?, ?, ?, 0.9, ?)",
        (
            (artifact, fake.id, fake.name if rng.random() < RIGHT else names[0], moment)
            for fake in fakes
            if fake.role == "judge"
        ),
    )


def _classes_of_real(connection: Connection, below: int) -> dict[bytes, str]:
    table, samples = schema.standings, schema.samples
    rows = connection.execute(
        select(samples.c.sha256, table.c.class_name)
        .join(table, table.c.sample_id == samples.c.id)
        .where(table.c.state == "usable", samples.c.id < below)
    )
    return {row.sha256: row.class_name for row in rows}


def _embed(folder: Path, fakes: list[Fake], classes: tuple[str, ...], real: dict[bytes, str]) -> None:
    """About the mean of their class, as far as the real ones are."""
    cache, rng = Cache(folder), np.random.default_rng(1)
    centres: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    for name in classes:
        places = cache.find([sha for sha, its in real.items() if its == name])
        values = cache.take(places[places[:, 0] >= 0])
        centres[name] = values.mean(0), values.std(0)
    for start in range(0, len(fakes), AT_ONCE):
        some = fakes[start : start + AT_ONCE]
        means = np.stack([centres[fake.name][0] for fake in some])
        spreads = np.stack([centres[fake.name][1] for fake in some])
        noise = rng.standard_normal(means.shape, np.float32)
        cache.add([fake.sha256 for fake in some], (means + spreads * noise).astype(np.float32))


def _describe(folder: Path, fakes: list[Fake]) -> None:
    """Descriptors and codes of real images, each code moved so far that it is near to none."""
    rng = np.random.default_rng(2)
    with Index.open(folder) as index:
        codes = np.concatenate([part for _, part in index.known()])
        codes = codes[np.isfinite(codes).all(1)]
        spread = codes.std(0)
        for start in range(0, len(fakes), AT_ONCE):
            some = fakes[start : start + AT_ONCE]
            drawn = rng.integers(0, len(codes), len(some))
            descriptors = rng.integers(0, 256, (len(some), SIZE), np.uint8)
            moved = codes[drawn] + rng.standard_normal((len(some), codes.shape[1]), np.float32) * spread
            index._append(np.array([fake.id for fake in some]), descriptors, moved.astype(np.float32))
