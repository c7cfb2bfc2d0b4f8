"""What timm knows, asked in a process of its own: the daemon and the command line load no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from daemon.config import Config, name
from daemon.errors import RelearnError, UsageError


def ask_timm(*arguments: str) -> Any:
    """What `python -m pipeline.names` answers. Raises UsageError with its words for a name that there is not."""
    command = [sys.executable, "-P", "-m", "pipeline.names", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise UsageError(done.stderr.strip())
    if done.returncode != 0:
        raise RelearnError(f"timm could not be asked: {done.stderr.strip()[-1000:]}")
    return json.loads(done.stdout)


def find_architectures(patterns: Sequence[str]) -> list[str]:
    """Those that the patterns name. Raises UsageError with the nearest where one names none."""
    found: list[str] = ask_timm(*patterns)
    return found


def find_faults(config: Config) -> list[str]:
    """A line on each setting that names an architecture or an optimizer that timm does not know."""
    faults = ask_timm("--check", *(f"{key}={known}" for key, known in _named(config)))
    return [f"{name(config.origin.get(key, config.file.name), key)}: {what}" for key, what in faults]


def _named(config: Config) -> Iterator[tuple[str, str]]:
    settings = config.settings
    for key, names in (
        ("model.architectures", settings.model.architectures),
        ("search.architectures", settings.search.architectures),
        ("audit.backbone", [settings.audit.backbone] if settings.audit.backbone else []),
    ):
        yield from ((key, name) for name in names)
    if settings.train.optimizer == "auto":
        yield from ((f"train.optimizers.{name}", name) for name in settings.train.optimizers)
    else:
        yield "train.optimizer", settings.train.optimizer
    if axis := settings.tune.space.get("optimizer"):
        yield from (("tune.space.optimizer", str(name)) for name in axis.choices or ())
