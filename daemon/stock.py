"""What the state folder holds of models and artifacts, compared with what the journal knows of them.

The journal knows ids; where their folders lie is said here, so that a workspace may be moved. A row stays when its
folder goes: what was decided on it stays true. It is no candidate until the folder is back, or was made again.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, select

from daemon import schema
from daemon.journal import change, now
from deploy.artifact import MANIFEST, ArtifactError, check_file, read_manifest, verify


def model_folder(state: Path, model: str) -> Path:
    return state / "models" / model


def artifact_folder(state: Path, artifact: str) -> Path:
    return state / "artifacts" / artifact


def take_stock(connection: Connection, state: Path) -> list[str]:
    """Marks what has gone from the disk and what is back, whole; a sentence for each."""
    said = []
    for table, folder_of, check in (
        (schema.models, model_folder, _check_model),
        (schema.artifacts, artifact_folder, verify),
    ):
        for row in connection.execute(select(table.c.id, table.c.gone)).all():
            folder = folder_of(state, row.id)
            there = (folder / MANIFEST).is_file() and (row.gone is None or _fault(check, folder) is None)
            if there != (row.gone is None):
                change(connection, table, row.id, gone=None if there else now())
                said.append(f"{folder} {'is back' if there else 'is gone: it is made again where it is needed'}")
    return said


def find_damage(connection: Connection, state: Path, artifact: str) -> str | None:
    """What is wrong with a stored artifact, which then counts as gone until it was built again; None: nothing."""
    fault = _fault(verify, artifact_folder(state, artifact))
    if fault:
        change(connection, schema.artifacts, artifact, gone=now())
    return fault


def find_model_damage(connection: Connection, state: Path, model: str) -> str | None:
    """As `find_damage`, of a model: it is trained again where it is needed."""
    fault = _fault(_check_model, model_folder(state, model))
    if fault:
        change(connection, schema.models, model, gone=now())
    return fault


def _check_model(folder: Path) -> None:
    manifest = read_manifest(folder)
    for part in ("weights", "graph"):
        if part in manifest:
            check_file(folder / manifest[part]["file"], manifest[part]["sha256"])


def _fault(check: Callable[[Path], object], folder: Path) -> str | None:
    try:
        check(folder)
    except ArtifactError as error:
        return str(error)
    return None


def has_pixels(index: Path) -> bool:
    """Whether an index of decoded images is there, with all arrays that it names."""
    try:
        with np.load(index, allow_pickle=False) as stored:
            return all((index.parent / str(name)).is_file() for name in stored["shards"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return False
