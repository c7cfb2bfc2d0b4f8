"""What changed from one snapshot to another, read from their two files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from daemon import schema, snapshot
from daemon.errors import NotFound, UsageError
from policies.facts import ROLES, Role

View = dict[str, Any]


def find(connection: Connection, state: Path, name: str) -> Path:
    """The file of the snapshot whose id begins like this. Raises NotFound, UsageError where several do."""
    ids = connection.execute(select(schema.snapshots.c.id)).scalars().all()
    found = [id_ for id_ in ids if id_.startswith(name)]
    if not found:
        raise NotFound(f"there is no snapshot {name!r}; `relearn cycles` names each cycle's")
    if len(found) > 1:
        raise UsageError(f"{name} is the beginning of several snapshots: {', '.join(sorted(found))}")
    file = state / "snapshots" / f"{found[0]}.snapshot"
    if not file.exists():
        raise NotFound(f"{file}: was removed; its counts stand in the journal alone")
    return file


def describe(file: Path) -> View:
    """Classes and samples by class and role of a snapshot."""
    classes, rows = snapshot.read(file)
    counts = Counter(given for _, given in rows.items())
    return {
        "snapshot": file.stem,
        "rows": len(rows),
        "classes": [{"class": name, **{role: counts[name, role] for role in ROLES}} for name in classes],
    }


def compare(before: Path, after: Path) -> View:
    """What `after` has more, less and otherwise than `before`: numbers by class, and each sample by its hash."""
    (old_classes, old_rows), (new_classes, new_rows) = snapshot.read(before), snapshot.read(after)
    old, new = dict(old_rows.items()), dict(new_rows.items())
    added = {sha: new[sha] for sha in new.keys() - old.keys()}
    removed = {sha: old[sha] for sha in old.keys() - new.keys()}
    both = old.keys() & new.keys()
    relabelled = {sha: (old[sha][0], new[sha][0]) for sha in both if old[sha][0] != new[sha][0]}
    moved = {sha: (old[sha][1], new[sha][1]) for sha in both if old[sha][1] != new[sha][1]}
    return {
        "before": before.stem,
        "after": after.stem,
        "classes_added": [name for name in new_classes if name not in old_classes],
        "classes_removed": [name for name in old_classes if name not in new_classes],
        "counts": {
            "before": len(old), "after": len(new), "added": len(added), "removed": len(removed),
            "relabelled": len(relabelled), "other_role": len(moved),
        },
        "by_class": _by_class(added, removed, relabelled),
        "added": [{"sha256": sha.hex(), "class": name, "role": role} for sha, (name, role) in sorted(added.items())],
        "removed": [{"sha256": sha.hex(), "class": n, "role": role} for sha, (n, role) in sorted(removed.items())],
        "relabelled": [{"sha256": sha.hex(), "from": a, "to": b} for sha, (a, b) in sorted(relabelled.items())],
        "other_role": [{"sha256": sha.hex(), "from": a, "to": b} for sha, (a, b) in sorted(moved.items())],
    }  # fmt: skip


def _by_class(
    added: Mapping[bytes, tuple[str, Role]],
    removed: Mapping[bytes, tuple[str, Role]],
    relabelled: Mapping[bytes, tuple[str, str]],
) -> list[View]:
    more, less = Counter(name for name, _ in added.values()), Counter(name for name, _ in removed.values())
    came, left = Counter(name for _, name in relabelled.values()), Counter(name for name, _ in relabelled.values())
    names = sorted({*more, *less, *came, *left})
    return [
        {"class": name, "added": more[name], "removed": less[name], "relabelled_to": came[name],
         "relabelled_from": left[name]}
        for name in names
    ]  # fmt: skip
