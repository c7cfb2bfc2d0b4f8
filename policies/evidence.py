"""What the triggers look at, for one target. The daemon gathers it; it is stored with the decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from policies.facts import ClassCount, DriftCheck


@dataclass(frozen=True, slots=True)
class Evidence:
    """The state of one target and its data at one moment. Times are seconds since the epoch.

    «Since the last training» means: compared with the snapshot of the last cycle that came to a verdict,
    whatever the verdict was. A promotion therefore adds nothing to `new_by_class` and triggers nothing.
    """

    now: float
    target: str
    champion: bool = False
    champion_classes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)  # class -> usable labelled samples, all roles
    new_by_class: Mapping[str, int] = field(default_factory=dict)  # came or changed label since the last training
    gone: int = 0  # samples that left since the last training
    trained_on: int = 0  # samples in the snapshot of the last training; 0: never trained
    new_answers: tuple[ClassCount, ...] = ()  # champion's, on new labelled samples of train and tune, never judge
    judge: tuple[ClassCount, ...] = ()  # champion's proof
    drift: tuple[DriftCheck, ...] = ()  # checks since the last training, the newest last
    trained_at: float | None = None  # when the last training began
    refused_drift: tuple[DriftCheck, ...] = ()  # newest checks before the last training, where its model was refused
    refused_new: int = 0  # new labelled samples that this training had
    trained_seconds: float = 0.0  # of all trainings and tunings in the last 24 hours
    last_cycle_ended: float | None = None
    failures: int = 0  # cycles failed in a row since the last that did not
    last_failure: float | None = None
    failure_reason: str = ""
    constraints_changed: bool = False  # and not yet judged by
    constraints_changed_at: float | None = None
    feasible: bool | None = None  # whether the champion meets its constraints; None: no champion
    lost: bool = False  # the artifact that is served is gone or damaged, and no cycle came to its end since
    beyond_repair: bool = False  # nothing is left that it could be served from
    rebuildable: bool = True  # its model is in stock
    unmeasured: bool = False  # a feasible champion without figures as it is served now: device, versions, threads
    unproven: bool = False  # the champion was adopted before there were judge samples, and there are some now
    requested: str | None = None  # who asked for a training, and why
    asked_about: str | None = None  # the artifact that a person wants judged
    asked_by: str = ""
    paused: str | None = None  # by whom, since when and why nothing is begun for this target; None: it is not

    @property
    def is_first(self) -> bool:
        """Whether nothing was ever trained for this target."""
        return not self.champion and self.trained_on == 0
