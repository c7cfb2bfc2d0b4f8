"""What timm knows, asked in a process of its own: the daemon and the command line load no torch.

That takes seconds, so that names which were found right are remembered in the user's cache folder, by timm's version.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
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
    known = _remembered()
    asked = [f"{key}={name}" for key, name in _named(config)]
    new = [question for question in asked if question not in known]
    faults = ask_timm("--check", *new) if new else []
    wrong = {key for key, _ in faults}
    if right := [question for question in new if question.partition("=")[0] not in wrong]:
        _remember([*known, *right])
    return [f"{name(config.origin.get(key, config.file.name), key)}: {what}" for key, what in faults]


def _file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "relearn" / f"timm-{version('timm')}.json"


def _remembered() -> list[str]:
    """The settings, "KEY=NAME", that timm found right before."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # no home, nothing there, or not ours
        known = json.loads(_file().read_text(encoding="utf-8"))
        return known if isinstance(known, list) else []
    return []


def _remember(known: list[str]) -> None:
    with contextlib.suppress(OSError, RuntimeError):  # it is asked again, then
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(known), encoding="utf-8")
        aside.replace(file)


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
