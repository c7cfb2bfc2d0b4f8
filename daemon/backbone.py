"""The pretrained network whose features labels are audited by, where `audit.backbone` names one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon import jobs
from daemon.config import Config
from daemon.ground import hash_weights
from deploy.artifact import MANIFEST
from policies.facts import StageOrder

CLASSES = 2  # of a head that nobody asks


@dataclass(frozen=True, slots=True)
class Backbone:
    """Its name, which says all that it depends on, and the folder of its graph."""

    name: str
    folder: Path
    inputs: dict[str, Any]

    @property
    def orders(self) -> tuple[StageOrder, ...]:
        """What makes the folder, where it is not there yet."""
        return () if (self.folder / MANIFEST).exists() else (StageOrder("sketch", self.inputs),)


def find_backbone(config: Config) -> Backbone | None:
    """The configured backbone; None: labels are audited by the champion."""
    audit = config.settings.audit
    if not audit.backbone:
        return None
    weights = audit.weights if audit.weights == "timm" else str(config.path(Path(audit.weights)))
    about = [audit.backbone, weights, hash_weights(weights), audit.size, config.settings.input.resize]
    name = f"{audit.backbone}-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]}"
    folder = config.state / "backbones" / name
    inputs = {
        "architecture": audit.backbone,
        "classes": CLASSES,
        "height": audit.size,
        "width": audit.size,
        "resize": config.settings.input.resize,
        "weights": weights,
        "model": str(folder),
        "threads": jobs.training_threads(config.settings.compute.threads),
    }
    return Backbone(name, folder, inputs)
