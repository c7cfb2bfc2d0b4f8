"""What lies in the state folder, by kind: each thing that can be removed by itself, with its bytes and its age.

What stands elsewhere in that folder (the journal, its backups, Triton's log, runs that wait for `relearn sync`) is
counted, and never removed. Nothing that lies in a watched folder is looked at.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal[
    "leftover", "pixels", "index", "embeddings", "backbone", "run", "tuning", "cycle", "observation", "wandb",
    "artifact", "model", "snapshot", "sample", "kept",
]  # fmt: skip
BLOCK = 4096  # bytes: what a file takes is a whole number of them
ASIDE = ".removed"  # how the name of what is being removed ends: it is taken for nothing else


@dataclass(frozen=True, slots=True)
class Found:
    """One thing in the state folder. `name` is what the journal or its folder calls it."""

    kind: Kind
    path: Path
    name: str
    bytes: int
    written: float  # when the newest of its files was


@dataclass(frozen=True, slots=True)
class Listing:
    """All that was found, and what the whole folder takes."""

    things: list[Found]
    bytes: int


def look(state: Path, watched: Collection[Path] = ()) -> Listing:
    """Walks the state folder. What vanishes meanwhile was removed by another, and is left out."""
    things: list[Found] = []
    total = 0
    for entry in _list(state):
        lister = _LISTERS.get(entry.name)
        if lister is None or not entry.is_dir() or _holds_any(entry, watched):
            total += _measure(entry)[0]
            continue
        for found in lister(entry):
            things.append(found)
            total += found.bytes
    return Listing([thing for thing in things if thing.kind != "kept"], total)


def _holds_any(folder: Path, watched: Collection[Path]) -> bool:
    here = folder.resolve()
    return any(one.is_relative_to(here) or here.is_relative_to(one) for one in map(Path.resolve, watched))


def _list(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _measure(path: Path) -> tuple[int, float]:
    """Bytes on the disk and when it was last written; of a folder, of all that it holds."""
    try:
        found = path.lstat()
    except OSError:
        return 0, 0.0
    size, written = -(-found.st_size // BLOCK) * BLOCK, found.st_mtime
    if stat.S_ISDIR(found.st_mode):
        size = 0
        for parent, _, names in os.walk(path):
            inner = [_measure(Path(parent, name)) for name in names]
            size += sum(one[0] for one in inner)
            written = max([written, *(one[1] for one in inner)])
    return size, written


def _thing(kind: Kind, path: Path, name: str = "") -> Found:
    return Found("leftover" if path.name.endswith(ASIDE) else kind, path, name or path.name, *_measure(path))


def _is_temporary(path: Path) -> bool:
    """How the packages call what they write aside, and what is on its way out."""
    return path.name.startswith(".") or path.name.endswith(".writing")


def _each(kind: Kind) -> Callable[[Path], Iterator[Found]]:
    """Each entry of the folder is one thing of this kind."""

    def walk(folder: Path) -> Iterator[Found]:
        for path in _list(folder):
            yield _thing("leftover" if _is_temporary(path) else kind, path)

    return walk


def _snapshots(folder: Path) -> Iterator[Found]:
    for path in _list(folder):
        if path.suffix == ".snapshot":
            yield _thing("snapshot", path, path.stem)
        else:
            yield _thing("leftover", path)


def _observations(folder: Path) -> Iterator[Found]:
    for path in _list(folder):
        yield _thing("observation", path, path.name.partition(".")[0])


def _wandb(folder: Path) -> Iterator[Found]:
    """Runs that were uploaded; the others wait for `relearn sync`."""
    for path in _list(folder):
        uploaded = path.name.startswith("offline-run-") and any(path.glob("run-*.wandb.synced"))
        yield _thing("wandb" if uploaded else "kept", path)


def _pixels(folder: Path) -> Iterator[Found]:
    """Shards (named SIZE/NUMBER, two files), and the indices of snapshots."""
    for size in _list(folder):
        shards = {path.stem for path in size.glob("*.json")}
        for path in _list(size):
            name = f"{size.name}/{path.stem}"
            if path.suffix == ".npz" and not _is_temporary(path):
                yield _thing("index", path, name)
            elif path.suffix == ".npy" and path.stem in shards:
                array, about = _measure(path), _measure(path.with_suffix(".json"))
                yield Found("pixels", path, name, array[0] + about[0], max(array[1], about[1]))
            elif path.name != ".lock" and not (path.suffix == ".json" and path.with_suffix(".npy").exists()):
                yield _thing("leftover", path)


def _store(folder: Path) -> Iterator[Found]:
    """Copies of images, and what a reader that was killed left on their way in."""
    for inner in _list(folder):
        for path in _list(inner):
            yield _thing("leftover" if inner.name == "incoming" else "sample", path)


_LISTERS: dict[str, Callable[[Path], Iterator[Found]]] = {
    "artifacts": _each("artifact"),
    "backbones": _each("backbone"),
    "benchmark": _each("leftover"),
    "cycles": _each("cycle"),
    "drops": _each("leftover"),
    "embeddings": _each("embeddings"),
    "models": _each("model"),
    "observations": _observations,
    "pixels": _pixels,
    "runs": _each("run"),
    "snapshots": _snapshots,
    "store": _store,
    "tunings": _each("tuning"),
    "wandb": _wandb,
}
