"""Garbage collection: what no root needs goes by age, and sooner where the state folder is larger than its bound.

Written down first, then removed: a model or an artifact counts as gone before its folder goes, a folder is renamed
aside, where nothing takes it for whole, before it is deleted. Killed anywhere in between, the next look goes on.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, select, update

from daemon import disk, proofs, schema, unneeded
from daemon.config import Config
from daemon.journal import add, now
from daemon.settings import Store
from daemon.unneeded import Item

log = logging.getLogger("relearn")
DAY = 86_400.0
GB = 1e9
ANY = 1 << 62
View = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes, in order, and what the state folder takes before it."""

    items: tuple[Item, ...]
    bytes: int
    bound: float  # bytes; 0: none
    unneeded: int  # bytes of all that nothing needs, whether it goes or not
    more: bool = False  # it is not all: the loop is held up by so much at once and no more

    @property
    def freed(self) -> int:
        return sum(item.found.bytes for item in self.items)

    @property
    def over(self) -> float:
        """Bytes above the bound, once all of it is gone."""
        return max(self.bytes - self.freed - self.bound, 0.0) if self.bound else 0.0


def plan(connection: Connection, config: Config, most: int = ANY) -> Plan:
    """Looks through the state folder, and says what goes: the first so many things of it."""
    store = config.settings.store
    listing = disk.look(config.state, config.folders)
    items = unneeded.find(connection, config, listing.things)
    chosen = choose(items, listing.bytes, store, time.time())
    unneeded_bytes = sum(item.found.bytes for item in items)
    return Plan(tuple(chosen[:most]), listing.bytes, store.max_gb * GB, unneeded_bytes, len(chosen) > most)


def choose(items: Sequence[Item], total: int, store: Store, at: float) -> list[Item]:
    """What is old enough; then, in order, as much as the bound asks."""
    oldest = at - store.keep_days * DAY
    due = {item for item in items if item.at_once or (item.since < oldest and not item.useful)}
    left = total - sum(item.found.bytes for item in due)
    for item in items:
        if not store.max_gb or left <= store.max_gb * GB:
            break
        if item not in due:
            due.add(item)
            left -= item.found.bytes
    return [item for item in items if item in due]


def claim(connection: Connection, config: Config, planned: Plan, because: str) -> tuple[int, list[Item]]:
    """Writes down what goes, as it still may: what has become needed since it was planned stays.

    Returns the sweep's id and what is to be removed.
    """
    still = {item.found for item in unneeded.find(connection, config, (item.found for item in planned.items))}
    items = [item for item in planned.items if item.found in still]
    for item in items:
        table = {"model": schema.models, "artifact": schema.artifacts}.get(item.found.kind)
        if table is not None:
            gone = update(table).where(table.c.id == item.found.name, table.c.gone.is_(None))
            connection.execute(gone.values(gone=now()))
        if table is schema.artifacts:  # verdicts keep their counts; nothing is compared with it any more
            proofs.drop_answers(connection, item.found.name)
    freed = sum(item.found.bytes for item in items)
    about = {"because": because, "at": now(), "bytes": planned.bytes, "freed": freed, "removed": summarize(items)}
    return add(connection, schema.sweeps, **about), items


def set_aside(items: Iterable[Item]) -> list[Path]:
    """Takes everything away from where it is looked for, in moments; returns what is left to be deleted."""
    aside = []
    for item in items:
        try:
            left = _take_away(item)
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("%s cannot be removed: %s", item.found.path, error)
            continue
        aside += [left] if left else []
    return aside


def _take_away(item: Item) -> Path | None:
    path = item.found.path
    if item.found.kind == "pixels":  # without its list of images no array is taken for whole
        path.with_suffix(".json").unlink(missing_ok=True)
    if item.found.kind == "sample":
        path.unlink()
        return None
    if path.name.endswith(disk.ASIDE):
        return path
    return path.rename(path.with_name(f".{path.name}.{time.time_ns()}{disk.ASIDE}"))


def delete(paths: Iterable[Path]) -> None:
    """Deletes what was set aside; it may take long, and may be cut off."""
    for path in paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", path, error)


def finish(journal: Engine, sweep: int) -> None:
    with journal.begin() as connection:
        connection.execute(update(schema.sweeps).where(schema.sweeps.c.id == sweep).values(ended=now()))


def summarize(items: Iterable[Item]) -> list[View]:
    """A line for each thing; copies of images and pieces of caches are counted together, by reason."""
    lines: dict[tuple[str, str], View] = {}
    for item in items:
        found = item.found
        many = found.kind in ("sample", "pixels", "index", "leftover", "observation")
        path = found.path.parent if found.kind in ("pixels", "index") else found.path
        path = path.parent.parent if found.kind == "sample" else path
        key = (str(path), item.reason) if many else (str(found.path), "")
        about = {"kind": found.kind, "path": str(path), "number": 0, "bytes": 0, "reason": item.reason}
        line = lines.setdefault(key, about)
        line["number"] += 1
        line["bytes"] += found.bytes
    return list(lines.values())


def view(planned: Plan, config: Config) -> View:
    """What would go, as plain values."""
    return {
        "bytes": planned.bytes,
        "max_gb": config.settings.store.max_gb,
        "freed": planned.freed,
        "left": planned.bytes - planned.freed,
        "removed": summarize(planned.items),
        "over": explain_over(planned, config),
    }


def explain_over(planned: Plan, config: Config) -> str | None:
    """Where roots alone are larger than the bound: what would help. None: they are not."""
    if not planned.over:
        return None
    where = config.origin.get("store.max_gb", config.file.name)
    needed = planned.bytes - planned.unneeded
    if needed <= planned.bound:
        return None  # more goes in a moment
    return (
        f"{where}: store.max_gb: {config.state} takes {size(needed)} for what is needed alone, above the bound of "
        f"{size(planned.bound)} by {size(needed - planned.bound)}; nothing of that is removed. Raise store.max_gb, "
        "lower store.keep_versions, end pins (`relearn unpin`), or take images out of the watched folders"
    )


def last(connection: Connection) -> View | None:
    """The newest sweep."""
    row = connection.execute(select(schema.sweeps).order_by(schema.sweeps.c.id.desc())).first()
    return None if row is None else dict(row._mapping)


def tell(sweep: View) -> str:
    """What a sweep removed, in sentences."""
    if not sweep["removed"]:
        return f"nothing is removed: of {size(sweep['bytes'])} all is needed, or too young (store.keep_days)"
    lines = [f"  {_count(line)}: {size(line['bytes'])}: {line['reason']}" for line in sweep["removed"]]
    return "\n".join([f"{size(sweep['freed'])} of {size(sweep['bytes'])} removed:", *lines])


def _count(line: View) -> str:
    return line["path"] if line["number"] == 1 else f"{line['path']}, {line['number']:,} of kind {line['kind']}"


def size(number: float) -> str:
    """Bytes as a person says them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(number) >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.0f} bytes"
