"""What all stages of one cycle stand on, and where they lay what they make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from daemon.variants import gpu_of, shrink, wanted
from policies.facts import Requirement


@dataclass(frozen=True, slots=True)
class Ground:
    """What all stages of one cycle stand on: its frozen settings, requirement and snapshot, and the state folder."""

    cycle: int
    state: Path
    settings: Mapping[str, Any]
    requirement: Requirement
    snapshot: str
    classes: int
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # best settings by architecture, dotted

    @property
    def pixels(self) -> dict[str, Any]:
        """The inputs of the stage that decodes the snapshot's images at the target's input size."""
        return {
            "snapshot": str(self.state / "snapshots" / f"{self.snapshot}.snapshot"),
            "store": str(self.state / "store"),
            "cache": str(self.state / "pixels"),
            "height": self.requirement.height,
            "width": self.requirement.width,
            "resize": self.settings["input"]["resize"],
        }

    @property
    def pixels_index(self) -> Path:
        """Where that stage leaves its result."""
        size = f"{self.requirement.height}x{self.requirement.width}-{self.settings['input']['resize']}"
        return self.state / "pixels" / size / f"{self.snapshot}.npz"

    def training(self, architecture: str) -> dict[str, Any]:
        """`[train]`, with the best settings that a tuning of the architecture found."""
        settings = {**self.settings["train"], "augment": dict(self.settings["train"]["augment"])}
        for key, value in self.tuned.get(architecture, {}).items():
            section, _, name = key.rpartition(".")
            (settings[section] if section else settings)[name] = value
        return settings

    def recipe(self, architecture: str) -> str:
        """A hash of all that a training depends on: the same recipe is never trained twice."""
        return self._hash(architecture, self.training(architecture))

    def racing(self, architecture: str) -> dict[str, Any]:
        """The settings by which architectures race, and are tuned: `[train]`, but no optimizer is searched for each."""
        settings = dict(self.settings["train"])
        return {**settings, "optimizer": "adamw"} if settings["optimizer"] == "auto" else settings

    def run_folder(self, architecture: str, settings: Mapping[str, Any]) -> Path:
        """Where a training with these settings lies, whoever began it."""
        return self.state / "runs" / self._hash(architecture, settings)

    def _hash(self, architecture: str, settings: Mapping[str, Any]) -> str:
        raced = settings["optimizer"] == "auto"
        settings = {key: value for key, value in settings.items() if raced or key != "optimizers"}
        depends = [
            self.snapshot,
            architecture,
            self.requirement.height,
            self.requirement.width,
            self.settings["input"],
            self.settings["model"]["weights"],
            hash_weights(self.settings["model"]["weights"]),
            settings,
        ]
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def variants(self) -> tuple[str, ...]:
        """The engines and precisions that the target could take."""
        return wanted(self.settings["build"]["engines"], self.requirement, gpu_of(self.settings))

    @property
    def max_weights_mb(self) -> float | None:
        """Above this size of its weights, no artifact of a network is small enough."""
        limit = self.requirement.artifact_max_mb
        return None if limit is None else limit * shrink(self.variants)

    @property
    def track(self) -> dict[str, Any]:
        """Where a training is told to Weights & Biases."""
        return {**self.settings["wandb"], "folder": str(self.state), "group": f"cycle {self.cycle}"}

    @property
    def sketches(self) -> Path:
        """What is drawn untrained, to be measured and removed."""
        return self.folder / "sketches"

    @property
    def folder(self) -> Path:
        """What passes between this cycle's stages."""
        return self.state / "cycles" / str(self.cycle)

    def work(self, name: str) -> Path:
        """One folder of it, made where it is not there."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def hash_weights(weights: str) -> str:
    """Of a local file of weights, so that another one under its name is another recipe; "" for none."""
    try:
        found = Path(weights).stat()
    except OSError:
        return ""
    return _hash(weights, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _hash(file: str, size: int, mtime_ns: int) -> str:
    """Asked at each step of a cycle, read once as long as the file stays as it is."""
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
