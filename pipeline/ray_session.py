"""Ray, started on this machine for this process alone, or joined where a cluster runs.

Ray reads much of its configuration from the environment when it is first imported: what needs Ray is imported within
the session.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from policies.job import StageError

CHECKOUT = Path(__file__).resolve().parent.parent
LONGEST = 40  # characters of a folder in which Ray's sockets still have names that are short enough (unix(7))
OBJECTS = 80 << 20  # bytes of shared memory, about the least that Ray takes: nothing large passes through it
ANSWERS = 5.0  # seconds within which a cluster does
MARK = "RELEARN_RAY_SESSION"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has no score
}


def session(address: str, slots: int) -> Any:
    """A context within which Ray is there: the cluster at the address, or where that is empty one of this process."""
    os.environ.update(QUIET)  # Ray takes these from the environment alone
    return _joined(address) if address else _own(slots)


@contextmanager
def _own(slots: int) -> Iterator[None]:
    """Ray on this machine, with so many processors to give away; on the loopback address, gone with this process."""
    mark = secrets.token_hex(16)
    place = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="relearn-ray-", dir=place if len(place) < LONGEST else "/tmp")
    with _guard(folder, mark):
        os.environ.update(
            {
                MARK: mark,
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's word for: listen on the loopback address alone
                "RAY_worker_niceness": "0",  # as nice as this process is
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),  # other users of this machine are kept out
            }
        )
        import ray

        try:
            _init(
                address="local",
                num_cpus=slots,
                object_store_memory=OBJECTS,
                include_dashboard=False,
                _temp_dir=folder,
            )
            yield
        finally:
            ray.shutdown()


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """The cluster at HOST:PORT, of which this machine is a node. Raises StageError where there is none."""
    import ray

    try:
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), ANSWERS).close()  # Ray itself would try for minutes
        _init(address=address, runtime_env={"env_vars": _environment()})
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        first = str(error).strip().partition("\n")[0]
        raise StageError(
            f"no Ray cluster can be joined at {address}: {first} (is it up, and this machine one of its nodes? "
            f"`ray start --address={address}` makes it one; an empty cluster.address does without)"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _guard(folder: str, mark: str) -> Iterator[None]:
    """A process that ends all that carries the mark, and the folder, when the context or this process ends."""
    program = str(Path(__file__).with_name("ray_guard.py"))
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", program, folder, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # whoever ends this process with its group does not end the guard
    )
    try:
        yield
    finally:
        guard.communicate()


def nodes() -> list[Mapping[str, float]]:
    """What each node of the Ray that is there has to give: "CPU", "GPU" (missing: none)."""
    import ray

    ask: Any = ray.nodes
    return [node["Resources"] for node in ask() if node["Alive"]]


def _init(**options: Any) -> None:
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    signal.signal(signal.SIGTERM, handler)  # Ray has put its own there, which ends this process later and otherwise


def _environment() -> dict[str, str]:
    """What workers on other nodes need to know; they see the same files under the same paths."""
    known = {name: os.environ[name] for name in os.environ if name.startswith(("OMP_", "MKL_", "OPENBLAS_", "MALLOC_"))}
    return {**known, **QUIET, "PYTHONPATH": os.environ.get("PYTHONPATH", str(CHECKOUT))}
