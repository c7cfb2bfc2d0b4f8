"""Tell what happens to the entries of [[notify]]: one thread each, so that none waits for another's endpoint.

A thread sleeps until the loop has done something, or the time of a retry has come. A message is sent by a child
(daemon/post.py), which is ended when it takes too long, or when the daemon stops.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from daemon import notices, outbox, post
from daemon.config import Config
from daemon.journal import now
from daemon.settings import Notify

log = logging.getLogger("relearn")
GATHER_SECONDS = 0.5  # between two looks: while much is going on the loop wakes the threads all the time
TROUBLE_SECONDS = 30.0  # after which the journal is asked again
STOP_SECONDS = 2.0  # in which all threads write down what they have sent


class Couriers:
    """All of one daemon's."""

    def __init__(self, config: Config, journal: Engine) -> None:
        self.config = config
        self.journal = journal
        self._couriers: list[Courier] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """At work for as long as the block lasts. What waits then is sent after the next start."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def register(self, config: Config) -> None:
        """Writes down its entries. One that is new hears of what happens from now on, and of nothing before."""
        with self.journal.begin() as connection:
            outbox.register(connection, [entry.called for entry in config.settings.notify])

    def start(self) -> None:
        """From now on each entry that is registered is told what it asks for."""
        entries = self.config.settings.notify
        for entry in entries:
            if post.resolve(url := entry.url.get_secret_value()) is None:
                log.warning("notify %s: %s is not set: nothing can be sent to it", entry.called, url)
        self._couriers = [Courier(entry, self.config, self.journal) for entry in entries]
        for courier in self._couriers:
            courier.thread.start()

    def stop(self) -> None:
        for courier in self._couriers:
            courier.stop()
        deadline = now() + STOP_SECONDS
        for courier in self._couriers:
            courier.thread.join(max(deadline - now(), 0.0))
        self._couriers = []

    def reconfigure(self, config: Config) -> None:
        """Goes on with the entries of this configuration; what waited for one of them goes on to wait.

        Where the journal cannot be written those of before go on.
        """
        self.register(config)
        self.stop()
        self.config = config
        self.start()

    def wake(self) -> None:
        """Something may have happened."""
        for courier in self._couriers:
            courier.woken.set()

    def note(self, what: str, reason: str) -> None:
        """A trouble that no row tells of, as far as the journal can be written at all."""
        with contextlib.suppress(OSError, OperationalError), self.journal.begin() as connection:
            outbox.note(connection, what, reason)


class Courier:
    """The thread of one entry."""

    def __init__(self, entry: Notify, config: Config, journal: Engine) -> None:
        self.entry = entry
        self.workspace = config.workspace
        self.journal = journal
        self.woken = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"courier {entry.called}", daemon=True)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._unsure = True  # whether something was being sent of which the journal does not say what came of it
        self._child: subprocess.Popen[str] | None = None
        self._failures = 0  # in a row

    def stop(self) -> None:
        """Ends what it is sending. Returns at once."""
        with self._lock:
            self._stopped.set()
            if self._child is not None:
                self._child.kill()
        self.woken.set()

    def _run(self) -> None:
        while not self._stopped.wait(GATHER_SECONDS):
            self.woken.clear()
            try:
                seconds = self._deliver()
                self._unsure = False
            except (OSError, OperationalError) as error:  # of the journal
                log.warning("notify %s: %s; it is tried again in %g s", self.entry.called, error, TROUBLE_SECONDS)
                self._unsure, seconds = True, TROUBLE_SECONDS
            except Exception:  # a bug here must not silence it
                log.exception("notify %s", self.entry.called)
                self._unsure, seconds = True, TROUBLE_SECONDS
            self.woken.wait(seconds)

    def _deliver(self) -> float | None:
        """Sends all that is due. Returns the seconds until more is; None: nothing waits."""
        with self.journal.begin() as connection:
            if self._unsure:
                outbox.recover(connection, self.entry.called)
            outbox.hand_on(connection, self.entry)
        while not self._stopped.is_set():
            with self.journal.connect() as connection:
                row = outbox.due(connection, self.entry.called)
                if row is None:
                    moment = outbox.next_try(connection, self.entry.called)
                    return None if moment is None else max(moment - now(), 0.0)
            self._try(row)
        return None

    def _try(self, row: outbox.Delivery) -> None:
        with self.journal.begin() as connection:
            if not outbox.begin(connection, row):
                return
        error = self._send(notices.message(outbox.notice_of(row), self.workspace))
        with self.journal.begin() as connection:
            if error is None:
                outbox.sent(connection, row)
            elif self._stopped.is_set():
                outbox.put_back(connection, row)
                return
            else:
                given_up = outbox.failed(connection, row, error, again=self._failures > 0)
        if error is None:
            self._say_sent()
        else:
            self._say_failed(error, given_up)

    def _send(self, message: notices.Message) -> str | None:
        """Why it was not sent; None: it was."""
        with self._lock:
            if self._stopped.is_set():
                return "the daemon stops"
            try:
                child = self._child = post.spawn()
            except OSError as error:
                return f"no process can be started: {error}"
        try:
            return post.send(child, self.entry.url.get_secret_value(), message)
        finally:
            with self._lock:  # `stop` may be about to kill it
                self._child = None

    def _say_sent(self) -> None:
        if self._failures:
            log.info("notify %s: messages are sent again", self.entry.called)
        self._failures = 0

    def _say_failed(self, error: str, given_up: int) -> None:
        self._failures += 1
        if self._failures == 1:
            log.warning("notify %s: not sent: %s; it is tried again for a day", self.entry.called, error)
        if given_up:
            log.error("notify %s: given up after a day: %d: %s", self.entry.called, given_up, error)
