"""A reader driven without the daemon's loop: its children are real, and each has to end well."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any

from daemon.events import ChildEnded, ChildSpoke
from daemon.reader import Reader


def drive(reader: Reader, queue: SimpleQueue[Any], patience: float = 120.0) -> None:
    """Until it has read all that waits. patience: seconds for one word of a child."""
    while reader.step() or reader.busy:
        if not reader.children:
            continue
        event = queue.get(timeout=patience)
        at_work = {child.token for child in reader.children}  # one that only got ready may be killed
        if isinstance(event, ChildSpoke):
            reader.hear(event.line)
        elif isinstance(event, ChildEnded) and event.token in at_work:
            assert event.status == 0, event.last_words
            reader.bury(event.token, event.status, event.last_words)
