"""Files that are whole after a power cut: written aside, synced, renamed; and named by their SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any


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


def sync_tree(folder: Path) -> None:
    """Waits until all that the folder holds is on the disk, the inner first."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def write_text(path: Path, text: str, aside: Path | None = None) -> None:
    """Replaces the file in one step. `aside`: the folder (of the same file system) for the temporary one."""
    temporary = (aside or path.parent) / f".{path.name}.{os.getpid()}.tmp"
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replaces the JSON file in one step."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def move(source: Path, destination: Path) -> None:
    """Renames a file or folder within one file system and waits until both folders know of it."""
    source.rename(destination)
    sync(destination.parent)
    if source.parent != destination.parent:
        sync(source.parent)


def remove_tree(folder: Path) -> None:
    """Removes the folder and all that it holds; it may be gone already."""
    shutil.rmtree(folder, ignore_errors=True)
