"""Images that were forgotten: used nowhere from that moment on, their bytes removed for good, their files untouched.

The rows stay: what was decided on these images stays true. What was answered about them counts no more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, insert, select, update

from daemon import consequences, enough, named_images, schema, snapshot, standings
from daemon.config import Config
from daemon.errors import NotFound, UsageError
from daemon.journal import add, change, chunks, now

SIGNS = 12  # of a hash, as it is shown
# Of a file whose content was forgotten; it is not read again until its content changes, or --undo.
REFUSED = "was forgotten on {date} by {by}: `relearn forget --undo {sha}` lets it be read again"


def is_forgotten(connection: Connection, shas: Iterable[bytes]) -> set[bytes]:
    """Which of these images were forgotten: they are refused, and no copy of them is kept."""
    samples = schema.samples
    found: set[bytes] = set()
    for some in chunks(shas):
        which = (samples.c.sha256.in_(some), samples.c.forgotten.is_not(None))
        found |= set(connection.execute(select(samples.c.sha256).where(*which)).scalars())
    return found


def forgotten_of(connection: Connection, rows: Collection[bytes]) -> set[bytes]:
    """The same for whole snapshots: of what was ever forgotten there is less than of what is in them."""
    return {sha for sha in standings.forgotten(connection) if sha in rows}


def why_refused(connection: Connection, sha: bytes) -> str:
    """The sentence for a file with this content. Raises NotFound where it was not forgotten."""
    samples, erasures = schema.samples, schema.erasures
    row = connection.execute(
        select(erasures.c.by, erasures.c.at)
        .join(samples, samples.c.id == erasures.c.sample_id)
        .where(samples.c.sha256 == sha, samples.c.forgotten.is_not(None), erasures.c.undone.is_(None))
        .order_by(erasures.c.id.desc())
    ).first()
    if row is None:
        raise NotFound(f"the image {sha.hex()[:SIGNS]} was not forgotten")
    return _refusal(sha, row.at, row.by)


def _refusal(sha: bytes, at: float, by: str) -> str:
    date = datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d")
    return REFUSED.format(date=date, by=by, sha=sha.hex()[:SIGNS])


def forget(connection: Connection, config: Config, what: str, by: str, request: int, images: int | None = None) -> str:
    """Has what this names forgotten; the bytes go later (daemon/sweeper.py). Returns what it means, in sentences.

    images: how many a person has agreed to. Raises NotFound, UsageError; nothing is written then.
    """
    ids = named_images.find(connection, what, config.folders)
    if images is not None and len(ids) != images:
        raise UsageError(f"{what} names {len(ids):,} images by now, and not {images:,}: look at it again")
    view = consequences.foresee(connection, config, ids)
    for some in chunks(ids):
        _forget(connection, some, by, request)
    for target in view["targets"]:
        if target["retrained"]:
            why = f"{by} had images forgotten that {target['model']} learnt from"
            about = {"kind": "retrain", "by": by, "at": now(), "state": "owed", "answer": None}
            add(connection, schema.requests, arguments={"target": target["target"], "because": why}, **about)
    _release(connection, config)
    return "forgotten: " + "\n".join(consequences.tell(view))


def _release(connection: Connection, config: Config) -> None:
    """A training that is still owed, and for which too little is left now, is owed no more."""
    requests = schema.requests
    owed = (requests.c.kind == "retrain", requests.c.state == "owed")
    for row in connection.execute(select(requests).where(*owed)).all():
        try:
            enough.check(connection, config, row.arguments["target"])
        except UsageError as error:
            change(connection, requests, row.id, state="refused", answer=str(error))


def _forget(connection: Connection, ids: list[int], by: str, request: int) -> None:
    samples, occurrences, flags, moment = schema.samples, schema.occurrences, schema.flags, now()
    live = (occurrences.c.sample_id.in_(ids), occurrences.c.gone.is_(None))
    files = connection.execute(
        select(occurrences, samples.c.sha256).join(samples, samples.c.id == occurrences.c.sample_id).where(*live)
    ).all()
    refused = [
        {key: getattr(row, key) for key in ("folder", "path", "size", "mtime_ns", "drop_id")}
        | {"reason": _refusal(row.sha256, moment, by), "at": moment}
        for row in files
    ]
    if refused:
        connection.execute(insert(schema.rejections), refused)
    connection.execute(update(occurrences).where(*live).values(gone=moment))
    open_ = (flags.c.sample_id.in_(ids), flags.c.state == "open")
    connection.execute(update(flags).where(*open_).values(state="withdrawn", by=by, answered=moment))
    connection.execute(update(samples).where(samples.c.id.in_(ids)).values(forgotten=moment))
    about = {"request_id": request, "by": by, "at": moment}
    connection.execute(insert(schema.erasures), [{"sample_id": id_, **about} for id_ in ids])


def compare(connection: Connection, folder: Path, one: str, other: str) -> tuple[int, int]:
    """Forgotten images from which a model of the one snapshot alone learnt, and a model of the other alone.

    None where either cannot be read.
    """
    if one == other:
        return 0, 0
    forgotten, learnt = standings.forgotten(connection), []
    for id_ in (one, other):
        if (rows := snapshot.known(folder / f"{id_}.snapshot")) is None:
            return 0, 0
        learnt.append({sha for sha in forgotten if sha in rows and rows[sha][1] != "judge"})
    mine, others = learnt
    return len(mine - others), len(others - mine)


def undo(connection: Connection, signs: str, by: str) -> str:
    """Lets an image that was forgotten be read again where its file still lies. Raises NotFound, UsageError."""
    samples, erasures, rejections, moment = schema.samples, schema.erasures, schema.rejections, now()
    forgotten = connection.execute(select(samples.c.id, samples.c.sha256).where(samples.c.forgotten.is_not(None)))
    found = [row for row in forgotten if row.sha256.hex().startswith(signs.lower())]
    if len(found) != 1 or len(signs) < named_images.SHORTEST:
        several = f"{len(found)} forgotten images have hashes that begin with {signs}: write more signs"
        raise UsageError(several) if found else NotFound(f"no forgotten image has a hash that begins with {signs}")
    id_, sha = found[0]
    mine = (erasures.c.sample_id == id_, erasures.c.undone.is_(None))
    if connection.execute(select(erasures.c.id).where(*mine, erasures.c.erased.is_(None))).first() is not None:
        raise UsageError(f"the bytes of {signs} are being removed: ask again in a moment")
    connection.execute(update(erasures).where(*mine).values(undone=moment, undone_by=by))
    connection.execute(update(samples).where(samples.c.id == id_).values(forgotten=None))
    of_it = rejections.c.reason.contains(f"--undo {sha.hex()[:SIGNS]}`", autoescape=True)
    refused = connection.execute(update(rejections).where(of_it, rejections.c.gone.is_(None)).values(gone=moment))
    files = f"{refused.rowcount} file{'' if refused.rowcount == 1 else 's'}"
    there = f"{files} of it will be read again" if refused.rowcount else "no file of it was seen since"
    return f"{sha.hex()[:SIGNS]} may be used again: {there}"


def unerased(connection: Connection) -> list[bytes]:
    """The images whose bytes are still to be removed."""
    samples, erasures = schema.samples, schema.erasures
    rows = connection.execute(
        select(samples.c.sha256).join(erasures, erasures.c.sample_id == samples.c.id).where(erasures.c.erased.is_(None))
    )
    return list(rows.scalars())


def settle(connection: Connection, shas: Collection[bytes]) -> None:
    """Their bytes are gone; requests all of whose images are done are answered."""
    samples, erasures, requests = schema.samples, schema.erasures, schema.requests
    for some in chunks(shas):
        ids = select(samples.c.id).where(samples.c.sha256.in_(some))
        of = (erasures.c.sample_id.in_(ids), erasures.c.erased.is_(None))
        connection.execute(update(erasures).where(*of).values(erased=now()))
    left = select(erasures.c.request_id).where(erasures.c.erased.is_(None), erasures.c.request_id.is_not(None))
    done = (requests.c.kind == "forget", requests.c.state == "working", requests.c.id.not_in(left))
    connection.execute(update(requests).where(*done).values(state="done"))
