"""What waits to be told to the entries of [[notify]], as rows.

Each entry has heard of all notices up to a number. What comes after it is handed on in one transaction with the new
number, so that whenever the daemon is killed nothing is lost and nothing is waiting twice. The sending itself can
promise no more than *at least once*: killed between a service's answer and the row that says so, the daemon sends it
again. The notice's `id` is then the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, exists, func, or_, select, update
from sqlalchemy.dialects.sqlite import insert

from daemon.journal import add, begin_writing, claim, now
from daemon.notices import Notice
from daemon.schema import deliveries, listeners, notices
from daemon.settings import Notify
from policies.retry import wait_before
from policies.settings import RetrySettings

View = dict[str, Any]
Delivery = Row[Any]  # one to be tried, with its notice
DAY = 86_400.0  # after which nobody is told any more
_RETRY = RetrySettings(attempts=10**6, first_seconds=10.0, max_seconds=3600.0)


def note(connection: Connection, what: str, reason: str) -> None:
    """A notice of the daemon's own, on what no row tells of."""
    add(
        connection,
        notices,
        kind="trouble",
        about="the daemon",
        what=what,
        reason=reason,
        see="status",
        at=now(),
    )


def register(connection: Connection, names: Collection[str]) -> None:
    """The entries there are now: a new one hears of what happens from here on, one that is gone of nothing more."""
    begin_writing(connection)
    last = connection.execute(select(func.max(notices.c.id))).scalar() or 0
    rows = [{"name": name, "heard": last, "since": now()} for name in names]
    if rows:
        connection.execute(insert(listeners).on_conflict_do_nothing(), rows)
    connection.execute(delete(listeners).where(listeners.c.name.not_in(names)))
    gone = (deliveries.c.state.in_(("waiting", "sending")), deliveries.c.listener.not_in(names))
    connection.execute(update(deliveries).where(*gone).values(state="given up", error="its entry is gone"))


def recover(connection: Connection, name: str) -> None:
    """What was being sent when the daemon was killed, or could not write down what came of it, waits again."""
    cut_off = (deliveries.c.listener == name, deliveries.c.state == "sending")
    connection.execute(update(deliveries).where(*cut_off).values(state="waiting"))


def hand_on(connection: Connection, entry: Notify) -> None:
    """New notices that the entry asks for wait for it."""
    heard = select(listeners.c.heard).where(listeners.c.name == entry.called).scalar_subquery()
    if not connection.execute(select(exists().where(notices.c.id > heard))).scalar():
        return
    begin_writing(connection)
    last = connection.execute(select(func.max(notices.c.id))).scalar()
    wanted = and_(notices.c.id > heard, notices.c.kind.in_(entry.kinds))
    if entry.targets:
        wanted &= or_(notices.c.target.is_(None), notices.c.target.in_(entry.targets))
    found = connection.execute(select(notices.c.id, notices.c.at).where(wanted).order_by(notices.c.id)).all()
    for id_, at in found:
        add(connection, deliveries, listener=entry.called, notice_id=id_, state="waiting", next_try=at)
    connection.execute(update(listeners).where(listeners.c.name == entry.called).values(heard=last))


def due(connection: Connection, name: str) -> Delivery | None:
    """The first delivery that may be tried now: its row, and the notice's."""
    mine = (*_waiting(name), deliveries.c.next_try <= now())
    query = select(deliveries.c.id.label("delivery"), deliveries.c.listener, deliveries.c.attempts, notices)
    joined = query.join(notices, notices.c.id == deliveries.c.notice_id)
    return connection.execute(joined.where(*mine).order_by(deliveries.c.id)).first()


def notice_of(row: Delivery) -> Notice:
    return Notice(row.id, row.kind, row.target, row.about, row.what, row.reason, row.see, row.at)


def next_try(connection: Connection, name: str) -> float | None:
    """When the next delivery may be tried, in seconds since the epoch; None: nothing waits."""
    return connection.execute(select(func.min(deliveries.c.next_try)).where(*_waiting(name))).scalar()


def begin(connection: Connection, row: Delivery) -> bool:
    """Claims a delivery for one attempt. False: another has it."""
    return claim(connection, deliveries, row.delivery, "waiting", "sending", attempts=row.attempts + 1)


def sent(connection: Connection, row: Delivery) -> None:
    claim(connection, deliveries, row.delivery, "sending", "sent", sent=now(), error=None)


def put_back(connection: Connection, row: Delivery) -> None:
    """The daemon stops in the midst of it: that attempt counts for nothing."""
    claim(connection, deliveries, row.delivery, "sending", "waiting", attempts=row.attempts)


def failed(connection: Connection, row: Delivery, error: str, *, again: bool) -> int:
    """Puts a delivery off, twice as long as after the attempt before; returns how many are given up for their age.

    again: the one before failed too. Then it is the endpoint that takes nothing, and all that waits for it is put off
    as well.
    """
    moment = now()
    until = moment + (wait_before(row.attempts + 2, _RETRY) or 0.0)
    claim(connection, deliveries, row.delivery, "sending", "waiting", next_try=until, error=error)
    those = _waiting(row.listener) if again else (*_waiting(row.listener), deliveries.c.id == row.delivery)
    connection.execute(update(deliveries).where(*those, deliveries.c.next_try < until).values(next_try=until))
    old = select(notices.c.id).where(notices.c.at < moment - DAY)
    given_up = update(deliveries).where(*those, deliveries.c.notice_id.in_(old))
    return connection.execute(given_up.values(state="given up", error=error)).rowcount


def view(connection: Connection, entries: Sequence[Notify]) -> list[View]:
    """Each entry, with what it was told last, what waits, and what was given up."""
    return [_view(connection, entry) for entry in entries]


def _view(connection: Connection, entry: Notify) -> View:
    mine = deliveries.c.listener == entry.called
    joined = select(deliveries, notices.c.what, notices.c.target, notices.c.at).join(notices)
    last = connection.execute(
        joined.where(mine, deliveries.c.state == "sent").order_by(deliveries.c.sent.desc())
    ).first()
    failing = connection.execute(
        joined.where(mine, deliveries.c.error.is_not(None)).order_by(deliveries.c.id.desc())
    ).first()
    count = select(deliveries.c.state, func.count()).where(mine).group_by(deliveries.c.state)
    counts: dict[str, int] = {row[0]: row[1] for row in connection.execute(count)}
    return {
        "name": entry.called,
        "kinds": list(entry.kinds),
        "targets": list(entry.targets),
        "since": connection.execute(select(listeners.c.since).where(listeners.c.name == entry.called)).scalar(),
        "sent": counts.get("sent", 0),
        "last": last and {"at": last.sent, "target": last.target, "what": last.what},
        "waiting": counts.get("waiting", 0) + counts.get("sending", 0),
        "next_try": next_try(connection, entry.called),
        "given_up": counts.get("given up", 0),
        "error": failing.error if failing else None,
    }


def _waiting(name: str) -> tuple[Any, ...]:
    return (deliveries.c.listener == name, deliveries.c.state == "waiting")
