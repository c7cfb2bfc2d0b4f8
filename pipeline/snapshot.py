"""Reads a snapshot: the immutable list of samples, labels and roles that a training stands on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from policies.facts import ROLES
from policies.job import StageError

ROW = np.dtype([("sha", "u1", 32), ("label", "<u2"), ("role", "u1")])  # 35 bytes


@dataclass(frozen=True)
class Snapshot:
    """N samples, ordered by their SHA-256."""

    id: str
    classes: tuple[str, ...]
    shas: NDArray[np.uint8]  # (N, 32)
    labels: NDArray[np.int32]  # (N,) index into classes
    roles: NDArray[np.uint8]  # (N,) index into policies.facts.ROLES


def read_snapshot(path: Path) -> Snapshot:
    """Reads the file. Raises StageError where it is not whole or not of the format that this version knows."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        about = json.loads(head)
        rows = np.frombuffer(body, ROW)
        snapshot = Snapshot(
            str(about["id"]),
            tuple(about["classes"]),
            rows["sha"].copy(),
            rows["label"].astype(np.int32),
            rows["role"].copy(),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(f"the snapshot {path} cannot be read: {error}") from error
    if about.get("format") != 1 or about.get("rows") != len(rows):
        raise StageError(
            f"the snapshot {path} says format {about.get('format')} with {about.get('rows')} rows, and has "
            f"{len(rows)}; format 1 is what this version reads"
        )
    if len(rows) and (snapshot.labels.max() >= len(snapshot.classes) or snapshot.roles.max() >= len(ROLES)):
        raise StageError(f"the snapshot {path} has a row with a class or role that it does not name")
    return snapshot
