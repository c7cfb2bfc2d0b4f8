"""Files that are whole after a power cut: written aside, synced, renamed; and named by their SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from policies.job import StageError


def hash_file(path: Path) -> str:
    """SHA-256 of the file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until the file's bytes, or the folder's list of names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside this one to write to; what was written there takes this one's place in one step.

    The name is always the same, so that what a killed process left behind is written over by the next.
    """
    aside = path.with_name(f".{path.name}.tmp")
    yield aside
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replaces the JSON file in one step."""
    with replacing(path) as aside:
        aside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The file's value. Raises StageError, naming the file, where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(f"{path} cannot be read: {error}") from error


def fresh_folder(path: Path) -> Path:
    """An empty folder beside this path, to be filled and settled under its name."""
    aside = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)  # of a killed process
    aside.mkdir(parents=True)
    return aside


def settle(folder: Path, path: Path) -> None:
    """Renames a filled folder to its name once all that it holds is on the disk; takes the place of what is there."""
    for file in folder.iterdir():
        sync(file)
    sync(folder)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)  # so that a kill leaves the one or the other under the name, or none, but no half of one
    folder.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)
