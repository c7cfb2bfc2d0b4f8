"""What waits to be told, as rows: nothing lost, nothing twice, put off longer each time, given up after a day."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from daemon import outbox, schema
from daemon.journal import add, change, now
from daemon.settings import Notify

World = Any  # tests/unit/daemon/conftest.py
Happen = Callable[..., int]
HOOK = Notify(url="json://127.0.0.1", name="hook")
deliveries = schema.deliveries


@pytest.fixture
def happen(journal: Engine) -> Happen:
    """Something happens: `happen("verdict", target="edge", age=0.0)`."""

    def note(kind: str = "verdict", target: str | None = "edge", age: float = 0.0) -> int:
        said = {"about": "v1", "what": "keep", "reason": "worse", "see": "explain v1"}
        with journal.begin() as connection:
            return add(connection, schema.notices, kind=kind, target=target, at=now() - age, **said)

    return note


@pytest.fixture
def hook(journal: Engine) -> Notify:
    """An entry that the daemon knows."""
    register(journal, HOOK)
    return HOOK


def register(journal: Engine, *entries: Notify) -> None:
    with journal.begin() as connection:
        outbox.register(connection, [entry.called for entry in entries])


def hand_on(journal: Engine, entry: Notify) -> None:
    with journal.begin() as connection:
        outbox.hand_on(connection, entry)


def take(journal: Engine, name: str = "hook") -> outbox.Delivery:
    with journal.begin() as connection:
        row = outbox.due(connection, name)
        assert row is not None
        assert outbox.begin(connection, row)
        return row


def fail(journal: Engine, row: outbox.Delivery, *, again: bool = False) -> int:
    with journal.begin() as connection:
        return outbox.failed(connection, row, "refused", again=again)


def states(world: World) -> list[tuple[int, str]]:
    return [(row.notice_id, row.state) for row in world.rows(deliveries)]


def test_a_new_entry_hears_nothing_of_before(world: World, happen: Happen) -> None:
    happen()
    register(world.journal, HOOK)
    new = happen()
    hand_on(world.journal, HOOK)
    assert states(world) == [(new, "waiting")]


def test_an_entry_hears_after_a_restart_what_it_had_not_heard(world: World, happen: Happen, hook: Notify) -> None:
    meanwhile = happen()
    register(world.journal, hook)
    hand_on(world.journal, hook)
    assert states(world) == [(meanwhile, "waiting")]


def test_what_was_handed_on_is_not_again(world: World, happen: Happen, hook: Notify) -> None:
    first = happen()
    hand_on(world.journal, hook)
    hand_on(world.journal, hook)
    second = happen()
    hand_on(world.journal, hook)
    assert states(world) == [(first, "waiting"), (second, "waiting")]


def test_killed_while_handing_on_all_is_handed_on_by_the_next(
    world: World, happen: Happen, hook: Notify, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = happen(), happen()
    written: list[object] = []

    def cut_off(*arguments: Any, **values: Any) -> int:
        if written:
            raise InterruptedError
        written.append(values)
        return add(*arguments, **values)

    with monkeypatch.context() as broken, pytest.raises(InterruptedError):
        broken.setattr(outbox, "add", cut_off)
        hand_on(world.journal, hook)
    assert states(world) == []
    hand_on(world.journal, hook)
    assert states(world) == [(first, "waiting"), (second, "waiting")]


def test_an_entry_hears_of_its_kinds_and_targets_and_of_what_concerns_all(world: World, happen: Happen) -> None:
    picky = Notify(url="json://127.0.0.1", name="hook", kinds=("verdict", "hold"), targets=("edge",))
    register(world.journal, picky)
    wanted = [happen(), happen("hold", None)]
    happen("decision")
    happen("verdict", "line")
    hand_on(world.journal, picky)
    assert [notice for notice, _ in states(world)] == wanted


def test_two_entries_hear_each_for_itself(world: World, happen: Happen) -> None:
    mail = Notify(url="mailto://127.0.0.1", kinds=("hold",))
    register(world.journal, HOOK, mail)
    verdict, hold = happen(), happen("hold")
    for entry in (HOOK, mail):
        hand_on(world.journal, entry)
    found = [(row.listener, row.notice_id) for row in world.rows(deliveries)]
    assert found == [("hook", verdict), ("hook", hold), ("mailto", hold)]


def test_a_delivery_is_claimed_by_one(world: World, happen: Happen, hook: Notify) -> None:
    happen()
    hand_on(world.journal, hook)
    row = take(world.journal)
    with world.journal.begin() as connection:
        assert not outbox.begin(connection, row)
        assert outbox.due(connection, "hook") is None
        outbox.sent(connection, row)
    assert [state for _, state in states(world)] == ["sent"]


def test_what_a_killed_daemon_was_sending_is_sent_again(world: World, happen: Happen, hook: Notify) -> None:
    happen()
    hand_on(world.journal, hook)
    take(world.journal)
    with world.journal.begin() as connection:
        outbox.recover(connection, "hook")
    assert take(world.journal).attempts == 1


def test_a_stop_in_the_midst_counts_as_no_attempt(world: World, happen: Happen, hook: Notify) -> None:
    happen()
    hand_on(world.journal, hook)
    row = take(world.journal)
    with world.journal.begin() as connection:
        outbox.put_back(connection, row)
    assert take(world.journal).attempts == 0


def test_each_wait_is_twice_as_long_up_to_an_hour(world: World, happen: Happen, hook: Notify) -> None:
    happen()
    hand_on(world.journal, hook)
    waits = []
    for _ in range(12):
        row = take(world.journal)
        before = now()
        assert fail(world.journal, row) == 0
        (tried,) = world.rows(deliveries)
        waits.append(round((tried.next_try - before) / 10) * 10)
        with world.journal.begin() as connection:
            change(connection, deliveries, tried.id, next_try=now())
    assert waits == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600]


def test_one_that_is_refused_does_not_hold_up_the_next(world: World, happen: Happen, hook: Notify) -> None:
    _, second = happen(), happen()
    hand_on(world.journal, hook)
    fail(world.journal, take(world.journal))
    assert take(world.journal).id == second


def test_an_endpoint_that_takes_nothing_is_left_alone_for_a_while(world: World, happen: Happen, hook: Notify) -> None:
    first, *_ = happen(), happen(), happen()
    hand_on(world.journal, hook)
    fail(world.journal, take(world.journal))
    fail(world.journal, take(world.journal), again=True)
    with world.journal.begin() as connection:
        assert outbox.due(connection, "hook") is None
        moment = outbox.next_try(connection, "hook")
        assert moment is not None
        for row in world.rows(deliveries):
            change(connection, deliveries, row.id, next_try=now())
    assert take(world.journal).id == first  # then in the order in which it happened


def test_after_a_day_it_is_given_up_with_all_of_that_age(world: World, happen: Happen, hook: Notify) -> None:
    old = [happen(age=90_000.0), happen(age=90_000.0)]
    new = happen()
    hand_on(world.journal, hook)
    assert fail(world.journal, take(world.journal), again=True) == 2
    assert states(world) == [(old[0], "given up"), (old[1], "given up"), (new, "waiting")]
    with world.journal.connect() as connection:
        (view,) = outbox.view(connection, [hook])
    assert (view["given_up"], view["waiting"], view["error"]) == (2, 1, "refused")


def test_of_an_entry_that_is_gone_nothing_waits(world: World, happen: Happen, hook: Notify) -> None:
    happen()
    hand_on(world.journal, hook)
    register(world.journal)
    assert [state for _, state in states(world)] == ["given up"]
    register(world.journal, hook)  # there again: it is a new one
    new = happen()
    hand_on(world.journal, hook)
    assert states(world)[1:] == [(new, "waiting")]


def test_the_view_says_what_was_sent_last(world: World, happen: Happen, hook: Notify) -> None:
    happen()
    hand_on(world.journal, hook)
    row = take(world.journal)
    with world.journal.begin() as connection:
        outbox.sent(connection, row)
        (view,) = outbox.view(connection, [hook])
    assert view["last"].items() >= {"target": "edge", "what": "keep"}.items()
    assert (view["sent"], view["waiting"], view["next_try"], view["error"]) == (1, 0, None, None)
