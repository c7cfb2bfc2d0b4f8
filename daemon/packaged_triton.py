"""`relearn triton`: the packaged Triton, on the workspace's repository, in the foreground."""

from __future__ import annotations

import logging
import signal
import threading
import time

from daemon.config import Config
from daemon.errors import RelearnError, UsageError
from deploy.server import Server, ServerError, free_ports
from deploy.triton import Triton

log = logging.getLogger("relearn")
HANG_SECONDS = 30.0  # a server that has answered nobody for so long does not come back by itself


def serve(config: Config, name: str = "") -> None:
    """Serves at the port of a server's url until SIGTERM or Ctrl-C; a server that dies or hangs is started again.

    name: of the server, "" for the first. Raises RelearnError where it cannot be started, UsageError where there is
    none of that name, or it is another machine's.
    """
    wanted = config.server(name)
    if wanted is None:
        raise UsageError(f"there is no server {name!r}; config.toml names {', '.join(config.server_names)}")
    host, _, port = wanted.url.rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdigit() or wanted.tls:
        how = " over TLS" if wanted.tls else ""
        raise UsageError(
            f"triton.url = {wanted.url!r}{how}: the packaged Triton serves 127.0.0.1:PORT alone, without TLS"
        )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    repository = config.repository_of(wanted.name)
    repository.mkdir(parents=True, exist_ok=True)
    other, metrics = free_ports(2)
    grpc, http = (other, int(port)) if wanted.protocol == "http" else (int(port), other)
    cache = config.state / "tritonserver"
    log_file = cache / ("tritonserver.log" if len(config.server_names) == 1 else f"{wanted.name}.log")
    while not stop.is_set():
        try:
            with Server(repository, cache, ports=(grpc, http, metrics), log=log_file) as server:
                log.info(
                    "Triton serves gRPC at %s, HTTP at 127.0.0.1:%d; its log is %s", server.address, http, server.log
                )
                end = await_end(server, stop)
        except ServerError as error:
            raise RelearnError(str(error)) from None
        if end:
            log.error("Triton %s; it is started again", end)
            stop.wait(2.0)


def await_end(server: Server, stop: threading.Event) -> str:
    """Why the server serves no more; "": it was told to stop."""
    answered = time.monotonic()
    with Triton(server.address) as triton:
        while not stop.wait(0.5):
            if (status := server.process.poll()) is not None:
                return f"ended with status {status}"
            if triton.is_live(timeout=2.0):
                answered = time.monotonic()
            elif time.monotonic() - answered > HANG_SECONDS:
                return f"has answered nobody for {HANG_SECONDS:.0f} s"
    return ""
