"""The frozen facts that cross a border between packages, each defined once.

Everything here is plain data: no function reads a disk, a clock or a source of randomness. `to_dict` and
`from_dict` carry the facts through JSON (jobs, the journal, `relearn explain`).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Role = Literal["train", "tune", "judge"]
ROLES: tuple[Role, ...] = ("train", "tune", "judge")

# The formats of images that are read, by Pillow's names, and none of its other forty: the fewer parsers see odd bytes
# the better, and one of them runs programs. What phones write with several pictures (MPO) is a JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

Preference = Literal["accuracy", "throughput", "latency_p95_ms", "memory_mb", "artifact_mb"]
MAXIMIZED: frozenset[str] = frozenset({"accuracy", "throughput"})


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a target's constraint file asks of the model that serves it. None: not asked."""

    target: str
    accelerator: str  # "cpu", "cuda", or the compute capability of one kind of GPU, as "sm89"
    height: int  # pixels
    width: int  # pixels
    batch_size: int = 1
    concurrency: int = 1
    latency_p95_ms: float | None = None
    throughput_min: float | None = None  # images/s
    memory_max_mb: float | None = None
    gpu_memory_max_mb: float | None = None
    artifact_max_mb: float | None = None
    accuracy_min: float | None = None  # 0..1, on the judge set
    recall_min: Mapping[str, float] = dataclasses.field(default_factory=dict)  # class -> 0..1
    prefer: Preference = "accuracy"
    allow_unverified: bool = False  # take what this machine can build and not run
    # The name of the Triton that serves it, "" for the only one. It says nothing of the model: an edit of it alone
    # moves what is served, and asks for no other.
    server: str = dataclasses.field(default="", compare=False)


METHOD = 3  # version of how deploy/measure.py measures; figures of two versions are never compared
MOST_CORRECTION = 1.5  # of a slower moment the figures are not believed
# The figures that a slow moment changes, each with that of the reference network that shows by how much. The high
# percentiles go by the median: the reference's own depend on how long a call of it is (deploy/reference.py).
SPEEDS = {
    "latency_p50_ms": "latency_p50_ms",
    "latency_p95_ms": "latency_p50_ms",
    "latency_p99_ms": "latency_p50_ms",
    "throughput": "throughput",
}


@dataclass(frozen=True, slots=True)
class Measurement:
    """Speed and size of one artifact on one device, by one version of the method (deploy/measure.py).

    Latencies and throughput are those of a quiet machine: `clear`, corrected by how much slower than then the
    reference network (deploy/reference.py) ran meanwhile. All that is by name of the figure is empty where there is
    no correction.
    """

    device: str  # fingerprint: processor, cores and memory given, version and threads of the engine
    batch_size: int
    concurrency: int
    threads: int  # per session
    method: int  # version of the method
    latency_p50_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    throughput: float  # images/s
    memory_mb: float  # resident set of the measuring process, peak; 10^6 bytes
    artifact_mb: float  # 10^6 bytes
    repetitions: int
    gpu_memory_mb: float | None = None
    steady: bool = True  # the median is known to within 3%, in that process, and the correction is to be believed
    raw: Mapping[str, float] = dataclasses.field(default_factory=dict)  # the SPEEDS as timed
    clear: Mapping[str, float] = dataclasses.field(default_factory=dict)  # over the runs that nothing interrupted
    uncertainty: Mapping[str, float] = dataclasses.field(default_factory=dict)  # half the 95% interval, as a share
    reference: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of a run, meanwhile; throughput: runs/s
    quiet: Mapping[str, float] = dataclasses.field(default_factory=dict)  # the same, where nothing disturbed it
    reference_device: str = ""  # fingerprint

    def slowdown(self, name: str) -> float:
        """How many times slower than on a quiet machine the reference was, by what corrects the figure of this name."""
        of = SPEEDS.get(name)
        if of is None or not self.quiet:
            return 1.0
        ratio = self.reference[of] / self.quiet[of]
        return 1 / ratio if of in MAXIMIZED else ratio

    def is_believed(self, name: str) -> bool:
        """Whether the figure of this name is corrected by as much as can be believed at most."""
        return self.slowdown(name) <= MOST_CORRECTION

    def corrected(self, quiet: Mapping[str, float]) -> Measurement:
        """These figures as on a quiet machine, where the reference network is as fast as `quiet`."""
        if not self.reference:
            return self
        best = dict(self.reference)
        for name, value in quiet.items():
            best[name] = (max if name in MAXIMIZED else min)(best[name], value)
        speed = {name: self.clear[name] * best[of] / self.reference[of] for name, of in SPEEDS.items()}
        found = dataclasses.replace(
            self,
            quiet=best,
            latency_p50_ms=speed["latency_p50_ms"],
            latency_p95_ms=speed["latency_p95_ms"],
            latency_p99_ms=speed["latency_p99_ms"],
            throughput=speed["throughput"],
        )
        return dataclasses.replace(found, steady=self.steady and found.is_believed("latency_p50_ms"))

    def interval(self, name: str) -> tuple[float, float]:
        """The lowest and the highest that the figure may be, by the measurement's own uncertainty.

        Where it is not steady, or the correction not believed, the figure may also be as it was timed.
        """
        found, share = getattr(self, name), self.uncertainty.get(name, 0.0)
        told = self.steady and self.is_believed(name)
        values = (found,) if told or name not in self.raw else (found, self.raw[name])
        return min(values) * max(0.0, 1 - share), max(values) * (1 + share)


@dataclass(frozen=True, slots=True)
class DriftCheck:
    """A window of images compared with those that a model was tuned on (pipeline/drift.py)."""

    kind: str  # "labelled", "unlabelled"
    samples: int  # of the window that were compared
    reference: int
    statistic: float  # area under the ROC curve; 0.5: not told apart
    chance: float  # share of clean windows of that size that look at least as different


@dataclass(frozen=True, slots=True)
class ClassCount:
    """How many judge samples of one class there are, and how many were answered rightly."""

    name: str
    samples: int
    correct: int


@dataclass(frozen=True, slots=True)
class ClassTally:
    """Paired answers of champion and challenger on the judge samples of one class: counts of samples."""

    name: str
    both: int  # both right
    champion_only: int  # champion right, challenger wrong: what would be lost
    challenger_only: int  # challenger right, champion wrong: what would be won
    neither: int

    @property
    def samples(self) -> int:
        return self.both + self.champion_only + self.challenger_only + self.neither


@dataclass(frozen=True, slots=True)
class Candidate:
    """An artifact considered for a target, with what is known of it so far."""

    artifact: str  # id
    model: str  # id
    architecture: str
    snapshot: str
    classes: tuple[str, ...]
    artifact_mb: float
    tune_accuracy: float | None  # of the built engine, 0..1
    measurement: Measurement | None  # at the requirement's batch size and concurrency, on this device
    proof: tuple[ClassCount, ...] | None = None  # on the current judge set; None: not proven on it
    variant: str = "onnxruntime:fp32"  # engine and precision
    unverified: str | None = None  # why this machine cannot run it; None: it can
    adopted: str | None = None  # who answers for it, where it was not trained here


@dataclass(frozen=True, slots=True)
class Shortfall:
    """One line of a constraint file that does not hold: what was asked, what was found."""

    constraint: str
    required: float
    found: float
    sentence: str  # "artifact 44.8 MB is above artifact_max_mb 20.0 by 24.8"


@dataclass(frozen=True, slots=True)
class Asking:
    """One comparison of a challenger with a champion on the judge samples, as the error budget remembers it."""

    at: float  # seconds since the epoch
    began: float  # its period, with its first asking
    samples: int  # that were compared
    passed: bool  # no test spoke against the challenger


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the promotion policy says of a candidate, and why."""

    answer: Literal["promote", "keep", "ask"]
    reason: str
    better: bool = False  # promoted as better beyond chance: the anchor that later ones must not fall below
    feasible: bool = True
    shortfalls: tuple[Shortfall, ...] = ()
    table: tuple[Mapping[str, Any], ...] = ()  # class by class, for `relearn explain`
    asking: Asking | None = None  # None: nothing was compared
    policy: int = 1  # version of the policy that answered


@dataclass(frozen=True, slots=True)
class StageOrder:
    """One stage that a child is asked to run: its name and its inputs (plain JSON; paths absolute)."""

    name: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """Neighbouring stages of one package, run in one child process."""

    token: str  # of this attempt; every line that the child says carries it
    package: Literal["pipeline", "deploy"]
    stages: tuple[StageOrder, ...]
    earlier: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    threads: int = 1


T = TypeVar("T")


def to_dict(fact: Any) -> Any:
    """A fact as plain JSON values: dataclasses become objects, tuples become arrays."""
    if dataclasses.is_dataclass(fact) and not isinstance(fact, type):
        return {f.name: to_dict(getattr(fact, f.name)) for f in dataclasses.fields(fact)}
    if isinstance(fact, Mapping):
        return {str(key): to_dict(value) for key, value in fact.items()}
    if isinstance(fact, tuple | list):
        return [to_dict(value) for value in fact]
    return fact


def from_dict(kind: type[T], plain: Mapping[str, Any]) -> T:
    """The fact of this kind that `to_dict` made `plain` of.

    Fields that the kind does not know are ignored (an older version reads a newer row); a missing field takes
    its default, or raises TypeError where it has none.
    """
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: _revive(hints[key], value) for key, value in plain.items() if key in known})


def _revive(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        return None if value is None else _revive(inner[0], value) if len(inner) == 1 else value
    if origin is tuple:
        return tuple(_revive(arguments[0], item) for item in value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value)
    return value
