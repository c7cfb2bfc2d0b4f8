"""The reader's children, got ready while a drop settles: what they import takes as long as some hundred images.

Each is a process of one module (daemon.decode, daemon.manifest, daemon.match) that listens. Once it has imported what
it needs it waits for one line, the path of its JOB.json (daemon/children.py), until it is given one or dismissed.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from daemon.children import Child
from daemon.events import Event

Kind = Literal["decode", "manifest", "match"]
CALM = {"OPENBLAS_NUM_THREADS": "1"}  # its threads wait for one another by spinning, eight times the work on busy cores


class Crew:
    """Those that are ready, and how they are started and given their jobs."""

    def __init__(self, put: Callable[[Event], None], index: Path) -> None:
        self._put = put
        self._arguments: dict[Kind, Sequence[str]] = {"match": [str(index)]}
        self._ready: defaultdict[Kind, list[Child]] = defaultdict(list)
        self._starts = itertools.count()

    @property
    def ready(self) -> list[Child]:
        """They are not at work: nothing is to be heard of them."""
        return [child for children in self._ready.values() for child in children]

    def get_ready(self, kind: Kind, number: int = 1) -> None:
        """Starts as many of a kind as are missing."""
        here = self._ready[kind] = self._alive(kind)
        while len(here) < number:
            here.append(self._start(kind))

    def give(self, kind: Kind, job: dict[str, Any], stem: Path) -> Child:
        """Gives a job to one that is ready or to a new one, in a file whose name begins so. Raises OSError."""
        child, *self._ready[kind] = self._alive(kind) or [self._start(kind)]
        file = stem.with_name(f"{stem.name}.{child.token}.json")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"token": child.token, **job}), encoding="utf-8")
        except OSError:
            child.kill()
            raise
        child.tell(json.dumps(str(file)))
        return child

    def dismiss(self) -> None:
        """Those that are ready are not needed."""
        for child in self.ready:
            child.kill()
        self._ready.clear()

    def _alive(self, kind: Kind) -> list[Child]:
        return [child for child in self._ready[kind] if not child.wait(0)]

    def _start(self, kind: Kind) -> Child:
        token = f"{kind}.{next(self._starts)}"  # of no other child, however soon it follows
        arguments = self._arguments.get(kind, [])
        return Child(token, f"daemon.{kind}", arguments, self._put, environment=CALM, listens=True)
