"""What is told outward: the kinds of what happens, and a message on it in words and in fields."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Message = dict[str, Any]
KINDS = (
    "decision",  # what was decided, to wait or do nothing too
    "verdict",  # whether a candidate replaces the champion
    "approval",  # a cycle ended by asking a person
    "promotion",  # clients have another version
    "rollback",  # clients have an earlier model again
    "hold",  # a drop waits for a person's look
    "violated",  # nothing meets a target's constraints
    "trouble",  # something failed, or what did is over
)
_TYPES = {  # of Apprise's, which colours by them
    "promotion": "success",
    "approval": "warning",
    "rollback": "warning",
    "hold": "warning",
    "violated": "warning",
    "trouble": "failure",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that happened."""

    id: int  # the same when it is sent again
    kind: str
    target: str | None
    about: str  # d3, v12, c4, edge/7, drop 5
    what: str
    reason: str
    see: str  # the command of `relearn` that says more
    at: float  # seconds since the epoch


def message(notice: Notice, workspace: Path) -> Message:
    """What `daemon.post` sends: title, body, Apprise's type, and fields (text each) for those who read by program."""
    command = f"relearn {notice.see} --workspace {workspace}"
    when = datetime.fromtimestamp(notice.at, UTC)
    return {
        "title": " ".join(f"{notice.target or 'relearnd'}: {_headline(notice)}".split()),
        "body": f"{notice.reason}\n\n{when:%Y-%m-%d %H:%M:%S} UTC on {socket.gethostname()}; more: {command}",
        "type": _TYPES.get(notice.kind, "info"),
        "fields": _fields(notice, command, when),
    }


def _headline(notice: Notice) -> str:
    return f"{notice.kind}: {notice.what}" if notice.kind in ("decision", "verdict", "rollback") else notice.what


def _fields(notice: Notice, command: str, when: datetime) -> Mapping[str, str]:
    return {
        "id": str(notice.id),
        "kind": notice.kind,
        "target": notice.target or "",
        "about": notice.about,
        "what": notice.what,
        "reason": notice.reason,
        "at": when.isoformat(timespec="seconds"),
        "explain": command,
    }
