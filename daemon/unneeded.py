"""What of the state folder no root needs: each thing with the reason why it may go, in the order in which it goes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from daemon import roots, schema, snapshot, targets
from daemon.backbone import find_backbone
from daemon.config import Config
from daemon.disk import ASIDE, Found, Kind
from daemon.journal import chunks

LEFTOVER_SECONDS = 3600.0  # that what a killed process left lies untouched, before it is taken for that
# Removed in this order where store.max_gb asks: first what is made again, last what is not.
ORDER: dict[Kind, int] = {
    "leftover": 0, "observation": 0,
    "index": 1, "pixels": 1, "embeddings": 1, "backbone": 1,
    "run": 2, "tuning": 2, "cycle": 2, "wandb": 2,
    "artifact": 3, "model": 3,
    "snapshot": 4,
    "sample": 5,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Item:
    """A thing that nothing needs."""

    found: Found
    since: float  # when it was last of use
    reason: str
    at_once: bool = False  # it waits for no age
    useful: bool = False  # the next training would make it again: it goes for the bound alone

    @property
    def order(self) -> tuple[int, float, str]:
        return ORDER[self.found.kind], self.since, str(self.found.path)


Judge = Callable[[Found], Item | None]


def find(connection: Connection, config: Config, things: Iterable[Found]) -> list[Item]:
    """Those of the things that no root needs, in the order in which they go."""
    listed = list(things)
    judging = _Judging(connection, config, [thing for thing in listed if thing.kind == "sample"])
    items = [item for thing in listed if (item := judging.judge(thing)) is not None]
    return sorted(items, key=lambda item: item.order)


def _is_reading(connection: Connection) -> bool:
    """Whether a drop is: what it brings lies in the store before it is written down."""
    drops = schema.drops
    reading = select(drops.c.id).where(drops.c.state.in_(("reading", "matching")))
    return connection.execute(reading).first() is not None


class _Judging:
    """What is needed now, asked about one thing after another."""

    def __init__(self, connection: Connection, config: Config, copies: list[Found]) -> None:
        self.connection = connection
        self.now = time.time()
        self.roots = roots.gather(connection, config.settings.store.keep_versions)
        self.began = min(self.roots.running.values(), default=None)
        self.reading = _is_reading(connection)
        required = targets.requirements(connection).values()
        resize = config.settings.input.resize
        self.sizes = {f"{asked.height}x{asked.width}-{resize}" for asked in required}
        backbone = find_backbone(config)
        self.backbones = {backbone.name} if backbone else set()
        self.embedding = targets.embedding_model(connection)
        self.copies = _Copies(connection, config, self.roots, copies)

    def judge(self, found: Found) -> Item | None:
        """The thing with the reason why it may go; None: it is needed, or nobody can tell."""
        judges: Mapping[Kind, Judge] = {
            "leftover": self._leftover, "observation": self._observation,
            "index": self._pixels, "pixels": self._pixels, "embeddings": self._embeddings, "backbone": self._backbone,
            "run": self._run, "tuning": self._run, "cycle": self._cycle, "wandb": self._uploaded,
            "artifact": self._made, "model": self._made,
            "snapshot": self._snapshot,
            "sample": self.copies.judge,
        }  # fmt: skip
        return judges[found.kind](found)

    def _leftover(self, found: Found) -> Item | None:
        if found.path.name.endswith(ASIDE):
            return Item(found, found.written, "its removal was begun", at_once=True)
        busy = self.reading or (self.began is not None and found.written >= self.began)
        if busy or found.written > self.now - LEFTOVER_SECONDS:
            return None
        return Item(found, found.written, "left by a process that was killed", at_once=True)

    def _observation(self, found: Found) -> Item | None:
        if found.name in self.roots.artifacts:
            return None
        return Item(found, found.written, "answers that are written down in the journal")

    def _pixels(self, found: Found) -> Item | None:
        size = found.path.parent.name
        if self.roots.running:
            return None  # its stages read them, or are writing them now
        words = "decoded images, which are made again where they are needed"
        return Item(found, found.written, words, useful=size in self.sizes)

    def _embeddings(self, found: Found) -> Item | None:
        if found.name == self.embedding or found.name in self.backbones:
            return None
        return Item(found, found.written, "embeddings by a model that judges no drop any more")

    def _backbone(self, found: Found) -> Item | None:
        if found.name in self.backbones:
            return None
        return Item(found, found.written, "audit.backbone is another, or none")

    def _run(self, found: Found) -> Item | None:
        """A training tells of which snapshot it is; before it does, it belongs to what runs."""
        of = _read_recipe(found.path).get("snapshot")
        if of in self.roots.cycle_snapshots or (of is None and self.began is not None):
            return None
        what = "tuning" if found.kind == "tuning" else "training"
        return Item(found, found.written, f"checkpoints and history of a {what} whose cycle has ended")

    def _cycle(self, found: Found) -> Item | None:
        if found.name in self.roots.cycles:
            return None
        return Item(found, found.written, "what passed between the stages of a cycle that has ended")

    def _uploaded(self, found: Found) -> Item | None:
        return Item(found, found.written, "a run that was uploaded to Weights & Biases")

    def _made(self, found: Found) -> Item | None:
        """A model or an artifact. One that the journal has no row of may be written down in a moment."""
        is_model = found.kind == "model"
        table = schema.models if is_model else schema.artifacts
        if found.name in (self.roots.models if is_model else self.roots.artifacts):
            return None
        row = self.connection.execute(select(table).where(table.c.id == found.name)).first()
        if row is None:
            return None if self.roots.running else Item(found, found.written, "the journal does not know it")
        since = self._last_used(found.name, is_model=is_model)
        return Item(found, max(since, row.created), "not served, none of the last versions, not pinned, in no cycle")

    def _last_used(self, name: str, *, is_model: bool) -> float:
        artifacts = schema.artifacts
        mine = artifacts.c.model_id == name if is_model else artifacts.c.id == name
        ids = list(self.connection.execute(select(artifacts.c.id).where(mine)).scalars())
        uses = (
            (schema.measurements, schema.measurements.c.at),
            (schema.proofs, schema.proofs.c.at),
            (schema.promotions, func.coalesce(schema.promotions.c.ended, schema.promotions.c.started)),
        )
        newest = [
            self.connection.execute(select(func.max(moment)).where(table.c.artifact_id.in_(ids))).scalar()
            for table, moment in uses
        ]
        return max((float(moment) for moment in newest if moment is not None), default=0.0)

    def _snapshot(self, found: Found) -> Item | None:
        if found.name in self.roots.snapshots or found.name in self.roots.snapshot_files:
            return None
        return Item(found, found.written, "a list of images that no stored model was trained on")


class _Copies:
    """Which copies of images are needed: those that lie in a watched folder, and those of needed snapshots."""

    def __init__(self, connection: Connection, config: Config, roots_: roots.Roots, copies: list[Found]) -> None:
        shas = {bytes.fromhex(found.name) for found in copies if _is_sha(found.name)}
        self.rows = _samples(connection, shas)
        self.needed = roots.live(connection, shas)
        self.unreadable, self.reading = False, _is_reading(connection)
        asked = {sha for sha in shas - self.needed if sha in self.rows}
        for id_ in roots_.snapshots if asked else ():
            try:
                _, rows = snapshot.read(config.state / "snapshots" / f"{id_}.snapshot")
            except OSError:
                self.unreadable = True  # which images it needs nobody can tell: all of them stay
                return
            self.needed |= asked & rows.keys()

    def judge(self, found: Found) -> Item | None:
        if self.unreadable or not _is_sha(found.name):
            return None
        sha = bytes.fromhex(found.name)
        row = self.rows.get(sha)
        if row is None:  # a drop that is being read stores first and says it then
            words = "a copy that the journal does not know"
            return None if self.reading else Item(found, found.written, words, at_once=True)
        gone, forgotten = row
        if forgotten:
            return Item(found, found.written, "a copy of an image that was forgotten", at_once=True)
        if sha in self.needed:
            return None
        return Item(found, gone or 0.0, "its file left the watched folders, and no stored model that is needed had it")


def _samples(connection: Connection, shas: Iterable[bytes]) -> dict[bytes, tuple[float | None, bool]]:
    """When the last file of each image was gone, and whether it was forgotten."""
    samples, occurrences = schema.samples, schema.occurrences
    found: dict[bytes, tuple[float | None, bool]] = {}
    for some in chunks(shas):
        rows = connection.execute(
            select(samples.c.sha256, samples.c.forgotten, func.max(occurrences.c.gone))
            .outerjoin(occurrences, occurrences.c.sample_id == samples.c.id)
            .where(samples.c.sha256.in_(some))
            .group_by(samples.c.id)
        )
        found |= {sha: (gone, forgotten is not None) for sha, forgotten, gone in rows}
    return found


def _is_sha(name: str) -> bool:
    try:
        return len(bytes.fromhex(name)) == 32
    except ValueError:
        return False


def _read_recipe(folder: Path) -> Mapping[str, Any]:
    """What a training or a tuning says of itself; nothing where it has not said it yet."""
    for name in ("recipe.json", "tuning.json"):
        try:
            plain = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return plain if isinstance(plain, dict) else {}
    return {}
