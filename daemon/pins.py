"""What people want kept, whatever else says: models, artifacts, snapshots and cycles, by name."""

from __future__ import annotations

import getpass
from typing import Any

from sqlalchemy import Connection, Table, select, update

from daemon import schema
from daemon.errors import NotFound, UsageError
from daemon.journal import add, now

View = dict[str, Any]
TABLES: dict[str, Table] = {"model": schema.models, "artifact": schema.artifacts, "snapshot": schema.snapshots}


def pin(connection: Connection, named: str) -> View:
    """Keeps it, with all that it stands on. Raises NotFound, UsageError."""
    kind, name = find(connection, named)
    table = TABLES.get(kind)
    if table is not None and "gone" in table.c:
        gone = connection.execute(select(table.c.gone).where(table.c.id == name)).scalar()
        if gone is not None:
            raise UsageError(f"{kind} {name} is gone from the disk already: it cannot be kept")
    if not _held(connection, kind, name):
        add(connection, schema.pins, kind=kind, name=name, by=getpass.getuser(), at=now())
    return {
        "kind": kind,
        "name": name,
        "pinned": True,
        "answer": f"{kind} {name} is kept until `relearn unpin {named}`",
    }


def unpin(connection: Connection, named: str) -> View:
    """It is kept no longer for that. Raises NotFound, UsageError."""
    kind, name = find(connection, named)
    if not (ids := _held(connection, kind, name)):
        raise UsageError(f"{kind} {name} is not pinned")
    ended = {"ended": now(), "ended_by": getpass.getuser()}
    connection.execute(update(schema.pins).where(schema.pins.c.id.in_(ids)).values(**ended))
    return {"kind": kind, "name": name, "pinned": False, "answer": f"{kind} {name} is pinned no longer"}


def _held(connection: Connection, kind: str, name: str) -> list[int]:
    pins = schema.pins
    mine = (pins.c.kind == kind, pins.c.name == name, pins.c.ended.is_(None))
    return list(connection.execute(select(pins.c.id).where(*mine)).scalars())


def find(connection: Connection, named: str) -> tuple[str, str]:
    """Kind and name of what this names: an id's first signs, KIND:ID, or c7. Raises NotFound, UsageError."""
    kind, colon, name = named.partition(":")
    if not colon:
        kind, name = "", named
    if kind and kind not in (*TABLES, "cycle"):
        raise UsageError(f"{named}: {kind!r} is none of model, artifact, snapshot, cycle")
    number = name.removeprefix("c") if kind in ("", "cycle") else ""
    if number.isascii() and number.isdigit() and len(number) < 18 and (kind or name.startswith("c")):
        cycles = schema.cycles
        if connection.execute(select(cycles.c.id).where(cycles.c.id == int(number))).first() is not None:
            return "cycle", number
    found = [
        (of, id_)
        for of, table in TABLES.items()
        if kind in ("", of)
        for id_ in connection.execute(select(table.c.id)).scalars()
        if id_.startswith(name)
    ]
    exact = [one for one in found if one[1] == name]
    found = exact or found
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{named} names several things: write {' or '.join(f'{of}:{id_}' for of, id_ in found[:6])}")
    raise NotFound(
        f"no model, artifact, snapshot or cycle is called {named!r}; `relearn models` and `cycles` list them"
    )
