"""What a server serves as it should, and the cheap questions by which that is seen to be so still.

A look costs the index, the statistics, and of each instance one recorded answer: some milliseconds of a processor, and
no query of the journal. What it cannot see (the rest of the recorded batch, the labels) the rounds compare.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from daemon.journal import now
from deploy.repository import fingerprint
from deploy.switch import Question, Switch, ask_each_instance, read_question
from deploy.triton import Triton

SUSPECT_SECONDS = 30.0  # between two searches for a dead instance: clients' own mistakes count as failures too


@dataclass(frozen=True, slots=True)
class Rest:
    """What was found to be as it should."""

    switch: Switch
    question: Question | None  # None: its artifact, with the record, is gone
    files: object  # their fingerprint


class Looks:
    """By promotion: what it is looked at again by."""

    def __init__(self) -> None:
        self.rests: dict[int, Rest] = {}
        self.suspects: set[int] = set()  # promotions that an instance may be dead of
        self._failures: dict[tuple[str, int], int] = {}  # requests that failed, by target and version
        self._searched: dict[int, float] = {}  # when a dead instance was last looked for

    def keep(self, ids: Collection[int]) -> None:
        """Forgets what is not served any more."""
        self.rests = {id_: rest for id_, rest in self.rests.items() if id_ in ids}

    def begin(self, id_: int, switch: Switch) -> tuple[bool, bool]:
        """It is compared wholly now. Returns whether an instance may be dead, and whether its files were touched."""
        rest = self.rests.pop(id_, None)
        touched = rest is None or rest.files != fingerprint(switch.repository, switch.target)
        if suspected := id_ in self.suspects:
            self._searched[id_] = now()
        return suspected, touched

    def settle(self, id_: int, switch: Switch) -> None:
        """It is as it should be, from now on."""
        self.suspects.discard(id_)
        self._failures.pop(
            (switch.target, switch.version), None
        )  # our own questions to a dead instance are no clients'
        self.rests[id_] = Rest(switch, read_question(switch), fingerprint(switch.repository, switch.target))

    def find_missing(self, triton: Triton) -> bool:
        """Whether something is not loaded any more: the server may have been restarted. Raises TritonUnavailable."""
        index = triton.index()
        for rest in self.rests.values():
            states = {each.version: each.state for each in index.get(rest.switch.target, [])}
            if states.get(rest.switch.version) != "READY":
                return True
        return False

    def find_changes(self, triton: Triton) -> bool:
        """Whether something fails, answers otherwise, or lies otherwise on the disk. Raises TritonUnavailable."""
        failures = triton.count_all_failures()
        changes = [
            self._fails(id_, rest, failures)
            or fingerprint(rest.switch.repository, rest.switch.target) != rest.files
            or (rest.question is not None and ask_each_instance(rest.switch, triton, rest.question) is not None)
            for id_, rest in self.rests.items()
        ]
        return any(changes)

    def _fails(self, id_: int, rest: Rest, failures: Mapping[tuple[str, int], int]) -> bool:
        """Whether requests have failed since the last look: one of its instances may be dead."""
        key = (rest.switch.target, rest.switch.version)
        count = failures.get(key, 0)
        before = self._failures.get(key, count)
        self._failures[key] = count
        if count <= before or now() < self._searched.get(id_, 0.0) + SUSPECT_SECONDS:
            return False
        self.suspects.add(id_)
        return True
