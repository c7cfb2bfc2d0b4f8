"""What the sources tell the loop: frozen events in one queue."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class DropSettled:
    """Nothing has changed in a watched folder for the settle time; `paths` did before. None: look at all."""

    folder: Path
    paths: frozenset[Path] | None


FEW = 256  # files that are not worth a second reader


@dataclass(frozen=True, slots=True)
class ImagesComing:
    """Files have begun to come into a watched folder, and have not settled; `many`: more than a few."""

    many: bool


@dataclass(frozen=True, slots=True)
class ConstraintsTouched:
    """A file in the constraints folder was written, moved or removed."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer went off; `Daemon.time_out` says what each name calls for."""

    name: str


@dataclass(frozen=True, slots=True)
class PersonAsked:
    """The command line has written a request and touched the wake file."""


@dataclass(frozen=True, slots=True)
class ChildSpoke:
    """A child printed a line of the protocol."""

    token: str
    line: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChildEnded:
    """A child is gone: its exit status (negative: the signal) and the end of what it wrote to stderr."""

    token: str
    status: int
    last_words: str


@dataclass(frozen=True, slots=True)
class SwitchEnded:
    """A promotion is served, or has failed for good (then `error` says why, and the old version serves on)."""

    promotion: int
    error: str | None


@dataclass(frozen=True, slots=True)
class ArtifactLost:
    """What a target serves is gone or damaged on the disk, and Triton cannot be given it again as it is."""

    target: str


@dataclass(frozen=True, slots=True)
class SettingsEdited:
    """What a target serves was switched to with other settings than those in force."""

    promotion: int
    reason: str


@dataclass(frozen=True, slots=True)
class SourceFailed:
    """A source cannot watch what it should; polling or the next scan goes on in its place."""

    what: str


@dataclass(frozen=True, slots=True)
class ChoreEnded:
    """The thread that tidies the state folder has done what it was sent for, or could not (`error`)."""

    chore: str
    result: Any
    error: str | None


@dataclass(frozen=True, slots=True)
class ConfigTouched:
    """SIGHUP came: config.toml is to be read again."""


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGTERM or SIGINT came."""


Event = (
    DropSettled
    | ImagesComing
    | ConstraintsTouched
    | TimerFired
    | PersonAsked
    | ChildSpoke
    | ChildEnded
    | SwitchEnded
    | ArtifactLost
    | SettingsEdited
    | SourceFailed
    | ChoreEnded
    | ConfigTouched
    | Stop
)
