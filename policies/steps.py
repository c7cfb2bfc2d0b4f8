"""The steps of a cycle, by which the policies name what is to be done next. Each has a key that tells it apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["promoted", "kept", "ask", "violated", "failed"]


@dataclass(frozen=True, slots=True)
class Tune:
    """Search for the best settings of this architecture's training."""

    architecture: str
    reason: str

    @property
    def key(self) -> str:
        return f"tune {self.architecture}"


@dataclass(frozen=True, slots=True)
class Train:
    """Train this architecture on the cycle's snapshot, evaluate it on tune and export it."""

    architecture: str

    @property
    def key(self) -> str:
        return f"train {self.architecture}"


@dataclass(frozen=True, slots=True)
class Shortlist:
    """Ask timm which architectures the patterns of the search name."""

    reason: str

    @property
    def key(self) -> str:
        return "shortlist"


@dataclass(frozen=True, slots=True)
class Sketch:
    """Draw this architecture untrained, build it and measure it at what the target requires."""

    architecture: str
    variant: str

    @property
    def key(self) -> str:
        return f"sketch {self.architecture} {self.variant}"


@dataclass(frozen=True, slots=True)
class Race:
    """Train this architecture to so many epochs of its training, to be compared with others."""

    architecture: str
    epochs: int
    reason: str

    @property
    def key(self) -> str:
        return f"race {self.architecture} {self.epochs}"


@dataclass(frozen=True, slots=True)
class Build:
    """Build this model for an engine in a precision ("onnxruntime:int8"), prove it on the judge and measure it."""

    model: str
    variant: str

    @property
    def key(self) -> str:
        return f"build {self.model} {self.variant}"


@dataclass(frozen=True, slots=True)
class Prove:
    """Ask this stored artifact about the judge set as it is now (libraries may have changed since it was built)."""

    artifact: str
    measure: bool  # and time it at what the target requires: it has not been, here

    @property
    def key(self) -> str:
        return f"prove {self.artifact}"


@dataclass(frozen=True, slots=True)
class Measure:
    """Time this artifact once more, for longer: its figures cannot tell whether a constraint holds."""

    artifact: str

    @property
    def key(self) -> str:
        return f"measure {self.artifact}"


@dataclass(frozen=True, slots=True)
class Judge:
    """Ask the promotion policy about this candidate."""

    artifact: str

    @property
    def key(self) -> str:
        return f"judge {self.artifact}"


@dataclass(frozen=True, slots=True)
class Promote:
    """Put this candidate in front of the clients."""

    artifact: str

    @property
    def key(self) -> str:
        return f"promote {self.artifact}"


@dataclass(frozen=True, slots=True)
class Finish:
    """The cycle has its verdict."""

    outcome: Outcome
    reason: str


Work = Tune | Train | Shortlist | Sketch | Race | Build | Prove | Measure  # done by child processes
Step = Work | Judge | Promote | Finish
