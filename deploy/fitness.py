"""Whether a Triton can be given models: looked at when it is first reached, and when it comes back."""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path

from deploy.repository import check_repository
from deploy.triton import Triton, TritonRefused, TritonUnfit

# From 24.09 on a load leaves versions alone that are loaded and unchanged (triton-inference-server/core#388): that the
# version before goes on serving while the next one is loaded rests on it. The last version measured is 2.51.
LEAST = (2, 50)
EXTENSIONS = ("classification", "model_repository", "statistics", "binary_tensor_data")
MARKER = "relearn-check-"
MARKER_SECONDS = 1.0  # in which an empty folder in the repository shows in Triton's index
SHARE_SECONDS = 60.0  # in which it does at the latest, on a network file system that caches what a folder holds
LEFT_SECONDS = 3600.0  # after which another daemon's is one that was left behind


def inspect(triton: Triton, repository: Path, seen: str = "", owner: str = "") -> str:
    """The server's version, once it was found new enough, explicitly controlled, and on this repository.

    seen: the repository's path as Triton sees it. owner: who asks, where several share a repository. Raises
    TritonUnfit, TritonUnavailable where nobody answers, OSError, and repository.RepositoryError where the repository
    is not there.
    """
    try:
        return _inspect(triton, repository, seen, owner)
    except TritonRefused as error:  # a proxy that wants a header, or another service at that port
        raise TritonUnfit(f"what answers at {triton.address} refuses what a Triton is asked: {error}") from error


def _inspect(triton: Triton, repository: Path, seen: str, owner: str) -> str:
    facts = triton.describe()
    version = str(facts["version"])
    where = f"Triton at {triton.address}"
    if find_number(version) < LEAST:
        least = ".".join(map(str, LEAST))
        raise TritonUnfit(f"{where} is version {version}, which would fail requests at a switch: take {least} or newer")
    if missing := [name for name in EXTENSIONS if name not in facts["extensions"]]:
        raise TritonUnfit(f"{where} lacks the extensions {', '.join(missing)}: take one that was built with them")
    triton.unload(MARKER + "control")  # of nothing; what is not in explicit mode says so
    if not shares(triton, repository, owner):
        raise TritonUnfit(
            f"{where} has another model repository: start it with --model-repository={seen or repository}, or correct "
            "triton.repository and triton.repository_seen"
        )
    return version


def find_number(version: str) -> tuple[int, ...]:
    """(2, 51) of "2.51.0"; () of what is no number."""
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()


def shares(triton: Triton, repository: Path, owner: str = "") -> bool:
    """Whether this folder is what Triton reads: an empty folder that is put there shows in its index, and goes again.

    One that does not show yet stays for the next look, for a while, in case it lies on a share that shows it late.
    Where none can be put, since the folder or its disk takes nothing, the names that lie there are compared.
    """
    marker = find_marker(repository, owner)
    for rest in repository.glob(f"{MARKER}*"):
        if rest != marker and is_older(rest, LEFT_SECONDS):  # of a daemon that was killed
            remove(rest)
    try:
        marker.mkdir(exist_ok=True)
    except OSError:
        if not repository.is_dir():
            check_repository(repository)
        return {path.name for path in repository.iterdir() if path.is_dir()} <= set(triton.index())
    deadline = time.monotonic() + MARKER_SECONDS
    while not (found := marker.name in triton.index()) and time.monotonic() < deadline:
        time.sleep(0.1)
    if found or is_older(marker, SHARE_SECONDS):
        remove(marker)
    return found


def forget(repository: Path, owner: str = "") -> None:
    """Takes a marker away that did not show: nobody looks for it any more."""
    remove(find_marker(repository, owner))


def find_marker(repository: Path, owner: str) -> Path:
    return repository / f"{MARKER}{hashlib.sha256(owner.encode()).hexdigest()[:8]}"


def is_older(path: Path, seconds: float) -> bool:
    """Whether it was made longer ago; what is gone was not."""
    try:
        return time.time() > path.stat().st_mtime + seconds
    except OSError:
        return False


def remove(marker: Path) -> None:
    """It may be gone already; where the disk takes nothing now, a later look takes it."""
    with contextlib.suppress(OSError):
        marker.rmdir()
