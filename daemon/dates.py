"""When something was, as people read it here."""

from __future__ import annotations

from datetime import datetime


def moment(seconds: float) -> str:
    """«2026-05-01 10:00:00», in the machine's time zone."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def day(seconds: float) -> str:
    """«2026-05-01», in the machine's time zone."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d")
