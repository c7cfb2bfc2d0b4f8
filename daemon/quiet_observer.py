"""watchdog's observer of the kernel's notifications, without what it makes up itself.

Of a folder that is moved in it tells each file in it, since the kernel tells of the folder alone: of 50,000 that takes
half a second of Python, for what the scan of the folder finds anyway.
"""

from __future__ import annotations

import warnings

from watchdog.events import FileSystemEvent
from watchdog.observers.inotify import InotifyEmitter, InotifyObserver

# Of a folder that comes back under the number of one that went: its own bookkeeping, of no consequence.
warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)


class _Emitter(InotifyEmitter):
    def queue_event(self, event: FileSystemEvent) -> None:
        if not event.is_synthetic:
            super().queue_event(event)


class QuietObserver(InotifyObserver):
    """As watchdog's own, without synthetic events."""

    def __init__(self) -> None:
        super().__init__()
        self._emitter_class = _Emitter  # watchdog 7 has no public way; a test tells where it is another one's
