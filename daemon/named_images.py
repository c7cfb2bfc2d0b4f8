"""Which images a person means by a path, by the signs of a hash, or by a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, func, select, true

from daemon import schema, standings
from daemon.errors import NotFound, UsageError
from policies.suggest import nearest

SHORTEST = 6  # signs of a hash that name an image
CLASS = "class:"
_HEX = set("0123456789abcdef")


def find(connection: Connection, what: str, folders: Sequence[Path]) -> list[int]:
    """The ids of the samples that this names, never forgotten ones. Raises NotFound, or UsageError with what to write.

    A class that is also a path of other images is ambiguous, and so is a hash that is also a class.
    """
    if what.startswith(CLASS):
        return _nonempty(of_class(connection, what.removeprefix(CLASS)), connection, what)
    if "/" in what:
        return _nonempty(at_path(connection, what, folders), connection, what)
    meant = {
        f"{CLASS}{what} (the class": of_class(connection, what),
        f"{what}/ (the path": at_path(connection, what, folders),
        f"more of its signs, as {what}… (the hash": of_hash(connection, what),
    }
    found = {how: samples for how, samples in meant.items() if samples}
    if len({frozenset(samples) for samples in found.values()}) > 1:
        choices = " or ".join(f"{how}, {len(samples):,} images)" for how, samples in found.items())
        raise UsageError(f"{what} names several things: write {choices}")
    return _nonempty(next(iter(found.values()), []), connection, what)


def _nonempty(found: list[int], connection: Connection, what: str) -> list[int]:
    if found:
        return found
    name = what.removeprefix(CLASS)
    near = nearest(name, standings.classes(connection))
    meant = f"; did you mean {CLASS}{near}?" if near and near != name else ""
    raise NotFound(f"no image has {what!r} for its path, its class, or the first signs of its hash{meant}")


def of_hash(connection: Connection, signs: str) -> list[int]:
    """The image whose SHA-256 begins like this. Raises UsageError where several do."""
    signs, samples = signs.lower(), schema.samples
    if len(signs) < SHORTEST or len(signs) > 64 or set(signs) - _HEX:
        return []
    begins = func.lower(func.hex(samples.c.sha256)).startswith(signs, autoescape=True)
    rows = connection.execute(select(samples.c.id, samples.c.sha256, samples.c.forgotten).where(begins)).all()
    if len(rows) > 1:
        raise UsageError(f"{signs} is the beginning of {len(rows)} hashes: write more of its signs")
    if rows and rows[0].forgotten is not None:
        raise UsageError(f"{signs} was forgotten already")
    return [row.id for row in rows]


def of_class(connection: Connection, name: str) -> list[int]:
    """Images of this class alone: as people last said, held ones too; without a file, as their last label said."""
    standings.refresh(connection)
    table, standing = schema.labels, schema.standings
    of_class = select(standing.c.sample_id).where(standing.c.state != "forgotten", standing.c.class_name == name)
    newest = (
        select(func.max(table.c.id))
        .join(standing, standing.c.sample_id == table.c.sample_id)
        .where(standing.c.state == "gone")
        .group_by(table.c.sample_id)
    )
    lost = select(table.c.sample_id).where(table.c.id.in_(newest), table.c.class_name == name)
    return sorted({*connection.execute(of_class).scalars(), *connection.execute(lost).scalars()})


def at_path(connection: Connection, path: str, folders: Sequence[Path]) -> list[int]:
    """The images at a path, or below it: those that lie there; where none does, what was last seen there.

    Absolute, or below one of the watched folders, whose own name it may begin with.
    """
    occurrences = schema.occurrences
    found: dict[tuple[str, str], tuple[bool, int, int]] = {}
    for folder, name in _places(path, folders):
        here = occurrences.c.path == name
        below = (occurrences.c.path >= f"{name}/") & (occurrences.c.path < f"{name}0")  # "0" follows "/"
        inside = here | below if name else true()
        rows = connection.execute(select(occurrences).where(occurrences.c.folder == folder, inside))
        for row in rows:
            seen = (row.gone is None, row.id, row.sample_id)
            found[folder, row.path] = max(found.get((folder, row.path), seen), seen)
    alive = any(live for live, _, _ in found.values())
    ids = {sample for live, _, sample in found.values() if live or not alive}
    return sorted(ids - _forgotten(connection))


def _places(path: str, folders: Sequence[Path]) -> list[tuple[str, str]]:
    """Watched folder and path below it, of each place that is meant."""
    asked = Path(path)
    if not asked.is_absolute():
        within = [(str(folder), str(Path(*asked.parts[1:]))) for folder in folders if asked.parts[:1] == (folder.name,)]
        return [*((str(folder), str(asked)) for folder in folders), *((f, "" if p == "." else p) for f, p in within)]
    inside = [folder for folder in folders if asked.is_relative_to(folder)]
    return [(str(folder), "" if asked == folder else str(asked.relative_to(folder))) for folder in inside]


def _forgotten(connection: Connection) -> set[int]:
    samples = schema.samples
    return set(connection.execute(select(samples.c.id).where(samples.c.forgotten.is_not(None))).scalars())
