"""Whether a Triton can be given models: looked at when it is first reached, and when it comes back."""

from __future__ import annotations

import contextlib
import secrets
import time
from pathlib import Path

from deploy.repository import check_repository
from deploy.triton import Triton, TritonUnfit

# From 24.09 on a load leaves versions alone that are loaded and unchanged (triton-inference-server/core#388): that the
# version before goes on serving while the next one is loaded rests on it. The last version measured is 2.51.
LEAST = (2, 50)
EXTENSIONS = ("classification", "model_repository", "statistics", "binary_tensor_data")
MARKER = "relearn-check-"
MARKER_SECONDS = 1.0  # in which an empty folder in the repository shows in Triton's index


def inspect(triton: Triton, repository: Path, seen: str = "") -> str:
    """The server's version, once it was found new enough, explicitly controlled, and on this repository.

    seen: the repository's path as Triton sees it. Raises TritonUnfit, TritonUnavailable where nobody answers, and
    repository.RepositoryError where the repository is not there.
    """
    facts = triton.describe()
    version = str(facts["version"])
    where = f"Triton at {triton.address}"
    if find_number(version) < LEAST:
        least = ".".join(map(str, LEAST))
        raise TritonUnfit(f"{where} is version {version}, which would fail requests at a switch: take {least} or newer")
    if missing := [name for name in EXTENSIONS if name not in facts["extensions"]]:
        raise TritonUnfit(f"{where} lacks the extensions {', '.join(missing)}: take one that was built with them")
    triton.unload(MARKER + "control")  # of nothing; what is not in explicit mode says so
    if not shares(triton, repository):
        raise TritonUnfit(
            f"{where} has another model repository: start it with --model-repository={seen or repository}, or correct "
            "triton.repository and triton.repository_seen"
        )
    return version


def find_number(version: str) -> tuple[int, ...]:
    """(2, 51) of "2.51.0"; () of what is no number."""
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()


def shares(triton: Triton, repository: Path) -> bool:
    """Whether this folder is what Triton reads: an empty folder that is put there shows in its index, and goes again.

    Where none can be put, since the folder or its disk takes nothing, the names that lie there are compared.
    """
    for rest in repository.glob(f"{MARKER}*"):  # of a daemon that was killed
        with contextlib.suppress(OSError):
            rest.rmdir()
    marker = repository / f"{MARKER}{secrets.token_hex(4)}"
    try:
        marker.mkdir()
    except OSError:
        if not repository.is_dir():
            check_repository(repository)
        return {path.name for path in repository.iterdir() if path.is_dir()} <= set(triton.index())
    try:
        deadline = time.monotonic() + MARKER_SECONDS
        while not (found := marker.name in triton.index()) and time.monotonic() < deadline:
            time.sleep(0.1)  # a network file system may be late
        return found
    finally:
        marker.rmdir()
