"""`relearn triton`: the packaged Triton, on the workspace's repository, in the foreground."""

from __future__ import annotations

import logging
import signal
import threading

from daemon.config import Config
from daemon.errors import RelearnError, UsageError
from deploy.server import Server, ServerError, free_ports

log = logging.getLogger("relearn")


def serve(config: Config, name: str = "") -> None:
    """Serves at the port of a server's url until SIGTERM or Ctrl-C; a server that dies is started again.

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
                while server.process.poll() is None and not stop.wait(0.5):
                    pass
        except ServerError as error:
            raise RelearnError(str(error)) from None
        if not stop.is_set():
            log.error("Triton ended with status %s; it is started again", server.process.returncode)
            stop.wait(2.0)
