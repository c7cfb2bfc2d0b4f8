"""What can go wrong in a way that a person can mend. The docstring is the default message."""

from __future__ import annotations

import inspect


class RelearnError(Exception):
    """Something failed; the log says what."""

    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.getdoc(type(self)))


class ConfigError(RelearnError):
    """A configuration or constraint file cannot be used; `relearn check-config` names the file, line and key."""

    exit_code = 2  # systemd does not restart on it: RestartPreventExitStatus=2


class UsageError(RelearnError):
    """The command cannot be carried out as written; see `relearn COMMAND --help`."""

    exit_code = 2


class WorkspaceBusy(RelearnError):
    """Another daemon already runs on this workspace; stop it first, or choose another with --workspace."""


class DaemonRuns(RelearnError):
    """A daemon runs on this workspace, and what measures needs the machine to itself: stop it first."""


class DaemonNotRunning(RelearnError):
    """No daemon runs on this workspace; start it with `relearn run`."""


class WrongJournal(RelearnError):
    """The journal is of another version of relearnd; start that one, or `relearn run` of a newer one."""

    exit_code = 2


class NotFound(RelearnError):
    """Nothing stored has this name; `relearn cycles` and `relearn models` list what there is."""

    exit_code = 2
