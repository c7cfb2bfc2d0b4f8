"""`relearn triton`: the packaged Triton, on the workspace's repository, in the foreground."""

from __future__ import annotations

import logging
import signal
import threading

from daemon.config import Config
from daemon.errors import RelearnError, UsageError
from deploy.server import Server, ServerError, free_ports

log = logging.getLogger("relearn")


def serve(config: Config) -> None:
    """Serves at the port of `triton.url` until SIGTERM or Ctrl-C; a server that dies is started again.

    Raises RelearnError where it cannot be started, UsageError where `triton.url` is another machine's.
    """
    host, _, port = config.settings.triton.url.rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdigit():
        raise UsageError(
            f"triton.url = {config.settings.triton.url!r}: the packaged Triton serves 127.0.0.1:PORT alone"
        )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    config.repository.mkdir(parents=True, exist_ok=True)
    http, metrics = free_ports(2)
    ports = (int(port), http, metrics)
    while not stop.is_set():
        try:
            with Server(config.repository, config.state / "tritonserver", ports=ports) as server:
                log.info(
                    "Triton serves gRPC at %s, HTTP at 127.0.0.1:%d; its log is %s",
                    server.address,
                    http,
                    server.log,
                )
                while server.process.poll() is None and not stop.wait(0.5):
                    pass
        except ServerError as error:
            raise RelearnError(str(error)) from None
        if not stop.is_set():
            log.error("Triton ended with status %s; it is started again", server.process.returncode)
            stop.wait(2.0)
