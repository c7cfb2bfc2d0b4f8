"""The packaged Triton: NVIDIA's own server out of the wheel nvidia-pytriton, run on this machine without a container.

Its environment is a folder of its own (made of deploy/triton_server/requirements.lock), since its Python
backend needs numpy below 2. The server listens on 127.0.0.1 only and dies with the process that started it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

from deploy import durable
from deploy.lifeline import tether
from deploy.triton import Triton

ENVIRONMENT = "RELEARN_TRITON_ENV"
CHECKOUT = Path(__file__).resolve().parent.parent
SHARED_MEMORY = Path("/dev/shm")
SERVER, STUB = "tritonserver", "triton_python_backend_stub"
START_SECONDS, STOP_SECONDS = 60.0, 10.0

_ASK_PYTHON = (
    "import json, sys, sysconfig, importlib.util as u\n"
    "spec = u.find_spec('pytriton')\n"
    "print(json.dumps({'minor': '%d.%d' % sys.version_info[:2],"
    " 'libdir': sysconfig.get_config_var('LIBDIR'), 'multiarch': sysconfig.get_config_var('MULTIARCH'),"
    " 'wheel': spec and list(spec.submodule_search_locations)[0]}))\n"
)


class ServerError(Exception):
    """The packaged Triton cannot be started. Its message says what is missing; `make` sets it up."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Where the parts of the packaged server lie."""

    environment: Path  # folder of the virtual environment
    minor: str  # "3.11"
    wheel: Path  # folder of the package pytriton
    libraries: Path  # what the wheel brings: nvidia_pytriton.libs
    libpython: Path  # folder of libpython3.11.so.1.0


def find_installation(environment: Path | None = None) -> Installation:
    """Looks at `environment`, or $RELEARN_TRITON_ENV, or .venv-triton of the checkout. Raises ServerError."""
    folder = environment or Path(os.environ.get(ENVIRONMENT) or CHECKOUT / ".venv-triton")
    python = folder / "bin" / "python"
    if not python.exists():
        raise ServerError(f"{folder} holds no Python environment; `make setup` installs the packaged Triton there")
    asked = subprocess.run([python, "-I", "-c", _ASK_PYTHON], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        raise ServerError(f"{python} does not run: {asked.stderr.strip()[-300:]}; make the environment again")
    facts = json.loads(asked.stdout)
    if facts["wheel"] is None:
        raise ServerError(f"{folder} lacks nvidia-pytriton; install deploy/triton_server/requirements.lock there")
    wheel = Path(facts["wheel"])
    libraries = wheel.parent / "nvidia_pytriton.libs"
    libpython = find_libpython(facts["minor"], facts["libdir"], facts["multiarch"], libraries)
    return Installation(folder, facts["minor"], wheel, libraries, libpython)


def find_libpython(minor: str, libdir: str | None, multiarch: str | None, libraries: Path) -> Path:
    """The folder with the shared library of that Python, which Triton's backend process is linked against."""
    name = f"libpython{minor}.so.1.0"
    if any(libraries.glob(f"libpython3-*.{minor.removeprefix('3.')}.so.1.0")):  # the wheel brings it, renamed
        return libraries
    folders = [
        libdir,
        f"/usr/lib/{multiarch}" if multiarch else None,
        "/usr/lib64",
        "/usr/lib",
        "/usr/local/lib",
    ]
    for folder in folders:
        if folder and Path(folder, name).exists():
            return Path(folder)
    raise ServerError(
        f"{name} was not found; Triton's Python backend needs it. Install the package libpython{minor} (Debian, "
        f"Ubuntu) or python{minor}-libs (Fedora), or make Triton's environment with a Python that was built with "
        "--enable-shared"
    )


def assemble_backend(installation: Installation, cache: Path) -> Path:
    """A backends folder with the Python backend and the stub of the right Python; returns it."""
    packaged = installation.wheel / "tritonserver"
    stub = packaged / "python_backend_stubs" / installation.minor / STUB
    if not stub.exists():
        raise ServerError(f"nvidia-pytriton has no backend for Python {installation.minor}: take 3.11 to 3.13")
    backends = cache / f"triton-backends-{installation.minor}-{stub.stat().st_mtime_ns}"
    if backends.exists():
        return backends
    work = cache / f".{backends.name}.{os.getpid()}"
    durable.remove_tree(work)
    shutil.copytree(packaged / "backends" / "python", work / "python")
    shutil.copy2(stub, work / "python" / stub.name)
    try:
        work.rename(backends)
    except OSError:  # another process was first
        durable.remove_tree(work)
    return backends


def refuse_taken(*ports: int) -> None:
    """Raises ServerError where a port is taken: whoever has it would answer for the server that is to start."""
    for port in ports:
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            raise ServerError(
                f"127.0.0.1:{port} is taken ({os.strerror(error.errno or 0)}): is a Triton running already?"
            ) from error


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [opened.getsockname()[1] for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()


class Server:
    """A running packaged Triton. A context manager: leaving it stops the server.

    `address` is that of gRPC; `http_port` and `metrics_port` are on 127.0.0.1 too.
    """

    def __init__(
        self,
        repository: Path,
        cache: Path,
        *,
        load: Sequence[str] = (),
        ports: tuple[int, int, int] | None = None,
        log: Path | None = None,
        environment: Path | None = None,
    ) -> None:
        """Starts the server on `repository` and waits until it is live at each port, with the models of `load` loaded.

        cache: a folder for what is put together from the wheel; ports: (gRPC, HTTP, metrics), free ones where
        not given; log: where the server's own words go, `cache`/tritonserver.log where not given. Start it
        from a thread that lives as long as the server should. Raises ServerError.
        """
        installation = find_installation(environment)
        if not repository.is_dir():
            raise ServerError(f"{repository}: is no folder; a Triton without its repository would serve nothing")
        cache.mkdir(parents=True, exist_ok=True)
        backends = assemble_backend(installation, cache)
        self.grpc_port, self.http_port, self.metrics_port = ports or tuple(free_ports(3))
        self.address = f"127.0.0.1:{self.grpc_port}"
        self.log = log or cache / "tritonserver.log"
        refuse_taken(self.grpc_port, self.http_port, self.metrics_port)
        self._log_file: IO[bytes] = self.log.open("ab")
        self._regions = name_regions(repository)
        end_orphans(self._regions)  # of a server that was killed
        clean_regions(self._regions)
        self.process = subprocess.Popen(
            tether(self._command(installation, backends, repository, load)),
            env=child_environment(installation),
            stdin=subprocess.DEVNULL,
            stdout=self._log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._wait_until_live()

    def _command(self, installation: Installation, backends: Path, repository: Path, load: Sequence[str]) -> list[str]:
        return [
            str(installation.wheel / "tritonserver" / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self._regions}",
            "--model-control-mode=explicit",
            "--disable-auto-complete-config",
            "--exit-on-error=false",  # a model that does not load must not keep the others from serving
            "--http-address=127.0.0.1",
            f"--http-port={self.http_port}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self.grpc_port}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={self.metrics_port}",
            *[f"--load-model={name}" for name in load],
        ]

    def _wait_until_live(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        with Triton(self.address) as triton:
            while not (triton.is_live(timeout=1.0) and self._listens()):  # gRPC is the first to answer
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise ServerError(f"tritonserver did not start; {self.log} ends: {self.last_words()}")
                time.sleep(0.05)

    def _listens(self) -> bool:
        """Whether HTTP and metrics take connections too."""
        for port in (self.http_port, self.metrics_port):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            except OSError:
                return False
        return True

    def last_words(self) -> str:
        """The end of the server's log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-1000:].strip()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Ends it by SIGTERM, after `seconds` by SIGKILL; removes its backend processes and shared memory too."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        kill_group(self.process.pid)
        clean_regions(self._regions)
        self._log_file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def child_environment(installation: Installation) -> dict[str, str]:
    """The backend process finds its packages by PATH; its libraries by LD_LIBRARY_PATH, since it was copied."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    libraries = [str(installation.libpython), str(installation.libraries), kept.get("LD_LIBRARY_PATH", "")]
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        **kept,
        "PATH": f"{installation.environment / 'bin'}:{kept.get('PATH', '')}",
        "LD_LIBRARY_PATH": ":".join(path for path in libraries if path),
    }


def kill_group(group: int) -> None:
    """Kills what is left of the server's own process group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def name_regions(repository: Path) -> str:
    """The prefix of the server's files in shared memory: its own, so that those of others are left alone."""
    return f"relearn_triton_{hashlib.sha256(str(repository.resolve()).encode()).hexdigest()[:12]}_"


def end_orphans(prefix: str) -> None:
    """Kills backend processes with shared memory of this prefix that no server owns any more.

    They watch their server and end with it; one that is caught while it starts may miss that.
    """
    for process in psutil.process_iter(["name", "cmdline"]):
        ours = any(argument.startswith(prefix) for argument in process.info["cmdline"] or ())
        with contextlib.suppress(psutil.Error):
            parent = process.parent()
            if ours and (process.info["name"] or "").startswith(STUB[:15]) and not (parent and parent.name() == SERVER):
                process.kill()


def clean_regions(prefix: str) -> None:
    """Removes what a server of this prefix left in shared memory."""
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
