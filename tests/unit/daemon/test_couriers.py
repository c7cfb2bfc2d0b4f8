"""The threads that tell what happens: real children, real endpoints that answer, refuse, hang and come back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from daemon import couriers, outbox, post, schema
from daemon.config import load
from daemon.couriers import Courier, Couriers
from daemon.journal import add, now
from policies.settings import RetrySettings
from tests.endpoints import MailServer, Webhook

World = Any  # tests/unit/daemon/conftest.py
Eventually = Callable[..., None]
deliveries = schema.deliveries


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(couriers, "GATHER_SECONDS", 0.05)
    monkeypatch.setattr(outbox, "_RETRY", RetrySettings(attempts=10**6, first_seconds=0.1, max_seconds=0.1))


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with Webhook() as hook:
        yield hook


class Told:
    """A journal in which something happens, and the threads that tell of it."""

    def __init__(self, world: World, entries: str) -> None:
        self.world = world
        config = load(world.config.workspace, [f"notify=[{entries}]"])
        self.couriers = Couriers(config, world.journal)

    def happen(self, about: str) -> None:
        said = {"what": "keep", "reason": "worse", "see": f"explain {about}", "kind": "verdict", "target": "edge"}
        with self.world.journal.begin() as connection:
            add(connection, schema.notices, about=about, at=now(), **said)
        self.couriers.wake()

    def states(self) -> list[tuple[str, str]]:
        return [(row.listener, row.state) for row in self.world.rows(deliveries)]


@pytest.fixture
def tell(world: World) -> Iterator[Callable[..., Told]]:
    """Starts the threads for these entries, as TOML: `tell('{url = "json://…"}')`."""
    with ExitStack() as ends:

        def start(*entries: str) -> Told:
            told = Told(world, ", ".join(entries))
            told.couriers.register(told.couriers.config)
            ends.enter_context(told.couriers.running())
            return told

        yield start


def test_what_happens_is_told_in_its_order(tell: Callable[..., Told], hook: Webhook, eventually: Eventually) -> None:
    told = tell(f'{{url = "{hook.url}"}}')
    told.happen("v1")
    told.happen("v2")
    eventually(lambda: told.states() == [("json", "sent")] * 2, seconds=60)
    assert hook.about == ["v1", "v2"]


def test_a_mail_too(tell: Callable[..., Told], eventually: Eventually) -> None:
    with MailServer() as server:
        told = tell(f'{{url = "{server.url}"}}')
        told.happen("v1")
        eventually(lambda: told.states() == [("mailto", "sent")], seconds=60)
        (mail,) = server.mails
    assert "relearn explain v1" in mail.replace("=\n", "")


def test_one_that_refuses_is_asked_again_until_it_takes_it(
    tell: Callable[..., Told], hook: Webhook, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="relearn")
    hook.does = "refuse"
    told = tell(f'{{url = "{hook.url}"}}')
    told.happen("v1")
    eventually(lambda: hook.asked >= 2, seconds=60)
    hook.does = "answer"
    eventually(lambda: told.states() == [("json", "sent")], seconds=60)
    assert hook.about == ["v1"]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["notify json"] * 2
    assert "error=500" in caplog.text and "messages are sent again" in caplog.text
    assert "geheim99" not in caplog.text and "tok3n" not in caplog.text


def test_one_that_is_away_is_asked_again_when_it_is_back(tell: Callable[..., Told], eventually: Eventually) -> None:
    with Webhook() as gone:
        port, url = gone.server_port, gone.url
    told = tell(f'{{url = "{url}"}}')
    told.happen("v1")
    eventually(lambda: [row.error for row in told.world.rows(deliveries)] != [None], seconds=60)
    with Webhook(port) as back:
        eventually(lambda: back.about == ["v1"], seconds=60)


def test_one_that_hangs_holds_up_neither_the_others_nor_the_stop(
    tell: Callable[..., Told], hook: Webhook, eventually: Eventually
) -> None:
    with Webhook() as hanging:
        hanging.does = "hang"
        told = tell(f'{{url = "{hanging.url}", name = "slow"}}', f'{{url = "{hook.url}", name = "quick"}}')
        told.happen("v1")
        eventually(lambda: hanging.asked == 1 and hook.about == ["v1"], seconds=60)
        told.happen("v2")
        eventually(lambda: hook.about == ["v1", "v2"], seconds=60)
        before = time.monotonic()
        told.couriers.stop()
        assert time.monotonic() - before < 5
    eventually(lambda: ("slow", "sending") not in told.states())
    (slow,) = told.world.rows(deliveries, listener="slow")  # v2 has not been handed on to it
    assert (slow.state, slow.attempts) == ("waiting", 0)


def test_what_was_waiting_or_being_sent_is_sent_after_a_start(
    world: World, tell: Callable[..., Told], hook: Webhook, eventually: Eventually
) -> None:
    entry = f'{{url = "{hook.url}"}}'
    before = Told(world, entry)  # whose daemon was killed
    with world.journal.begin() as connection:
        outbox.register(connection, ["json"])
    for about in ("v1", "v2"):
        before.happen(about)
    with world.journal.begin() as connection:
        outbox.hand_on(connection, before.couriers.config.settings.notify[0])
        connection.execute(update(deliveries).where(deliveries.c.notice_id == 1).values(state="sending", attempts=1))
    told = tell(entry)
    eventually(lambda: told.states() == [("json", "sent")] * 2, seconds=60)
    assert hook.about == ["v1", "v2"]


def test_a_journal_that_cannot_be_written_is_tried_again(
    tell: Callable[..., Told], hook: Webhook, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the message went, and only what came of it could not be written: it is sent once more."""
    monkeypatch.setattr(couriers, "TROUBLE_SECONDS", 0.1)
    write, refused = outbox.sent, []

    def fail_once(*arguments: Any) -> None:
        if not refused:
            refused.append(1)
            raise OperationalError("UPDATE", {}, OSError("disk is full"))
        write(*arguments)

    monkeypatch.setattr(outbox, "sent", fail_once)
    told = tell(f'{{url = "{hook.url}"}}')
    told.happen("v1")
    eventually(lambda: told.states() == [("json", "sent")], seconds=60)
    assert [(message["about"], message["id"]) for message in hook.taken] == [("v1", "1")] * 2


def test_a_process_that_cannot_be_started_is_a_failure_like_others(
    tell: Callable[..., Told], hook: Webhook, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:

        def refuse() -> None:
            raise OSError(11, "Resource temporarily unavailable")

        broken.setattr(post, "spawn", refuse)
        told = tell(f'{{url = "{hook.url}"}}')
        told.happen("v1")
        eventually(lambda: [row.attempts for row in told.world.rows(deliveries)] not in ([], [0], [1]), seconds=60)
    eventually(lambda: hook.about == ["v1"], seconds=60)


def test_without_an_entry_no_thread_runs(tell: Callable[..., Told]) -> None:
    told = tell()
    told.happen("v1")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("courier")]
    assert told.states() == []


def test_entries_that_are_read_again_are_told_from_then_on(
    tell: Callable[..., Told], hook: Webhook, eventually: Eventually
) -> None:
    told = tell()
    told.happen("v1")
    told.couriers.reconfigure(load(told.world.config.workspace, [f'notify=[{{url = "{hook.url}"}}]']))
    told.happen("v2")
    eventually(lambda: hook.about == ["v2"], seconds=60)


def test_the_daemons_own_trouble_is_told(tell: Callable[..., Told], hook: Webhook, eventually: Eventually) -> None:
    told = tell(f'{{url = "{hook.url}", kinds = ["trouble"], targets = ["line"]}}')
    told.couriers.note("the daemon is in trouble", "the disk is full")
    told.couriers.wake()
    eventually(lambda: hook.about == ["the daemon"], seconds=60)
    (taken,) = hook.taken
    assert taken["title"] == "relearnd: the daemon is in trouble"
    assert (taken["reason"], taken["type"]) == ("the disk is full", "failure")


def test_a_variable_that_is_not_set_is_said_at_the_start(
    tell: Callable[..., Told], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOOK", raising=False)
    tell('{url = "env:HOOK"}')
    assert "notify HOOK: env:HOOK is not set" in caplog.text


def test_a_child_is_let_go_only_while_nobody_ends_it(
    tell: Callable[..., Told], hook: Webhook, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []

    class Watched(Courier):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "_child":
                held.append(self._lock.locked())
            super().__setattr__(name, value)

    monkeypatch.setattr(couriers, "Courier", Watched)
    told = tell(f'{{url = "{hook.url}"}}')
    told.happen("v1")
    eventually(lambda: told.states() == [("json", "sent")], seconds=60)
    assert held == [False, True, True]  # made, begun, over
