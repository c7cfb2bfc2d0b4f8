"""What a policy answers: an action and the sentence that explains it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# What begins a cycle, and the trigger that the cycle knows.
TRIGGERS = {"train": "data", "rejudge": "constraints", "rebuild": "stock", "judge": "asked", "prove": "proof"}

Action = Literal["nothing", "wait", "train", "rejudge", "rebuild", "hold", "tune", "search", "judge", "adopt", "prove"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One policy's view of the evidence: whether it asks for a training, and why (with its numbers)."""

    policy: str
    fired: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done, and why. Stored with the evidence and the settings, so that it can be replayed."""

    action: Action
    reason: str
    findings: tuple[Finding, ...] = ()
    until: float | None = None  # with "wait": when to look again, seconds since the epoch
    version: int = 2  # of the policies
