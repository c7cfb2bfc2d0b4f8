"""TLS and headers, by both protocols, through a real terminator in front of the packaged Triton."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import grpc
import numpy as np
import pytest

from deploy.server import Server
from deploy.triton import Triton, TritonUnavailable
from deploy.wire import Endpoint, Refusal, Tls, Wire, open_wire

Protocol = Literal["grpc", "http"]
OPENSSL = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate of its own authority for 127.0.0.1, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    about = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    command = [*OPENSSL, *about, "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


class Terminator:
    """Takes TLS from clients that have this certificate, and passes what they say on to a port; keeps what it was."""

    def __init__(self, port: int, server: tuple[Path, Path], client: Path) -> None:
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(client))
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.context.load_cert_chain(*map(str, server))
        self.context.set_alpn_protocols(["h2", "http/1.1"])
        self.port, self.heard = port, bytearray()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self.listening.accept()
                threading.Thread(target=self._serve, args=[plain], daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError):
            caller = self.context.wrap_socket(plain, server_side=True)
            behind = socket.create_connection(("127.0.0.1", self.port))
            threading.Thread(target=self._pass_on, args=[behind, caller], daemon=True).start()
            self._pass_on(caller, behind, keep=True)

    def _pass_on(self, source: socket.socket, sink: socket.socket, keep: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if keep:
                    self.heard += data
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("keys")
    return {name: make_certificate(folder, name) for name in ("server", "client", "stranger")}


@pytest.fixture(params=["grpc", "http"])
def secured(
    request: pytest.FixtureRequest, server: Server, keys: dict[str, tuple[Path, Path]]
) -> Iterator[tuple[Terminator, Protocol]]:
    port = server.grpc_port if request.param == "grpc" else server.http_port
    terminator = Terminator(port, keys["server"], keys["client"][0])
    yield terminator, request.param
    terminator.listening.close()


def test_a_triton_behind_tls_is_asked_with_the_headers_given(
    secured: tuple[Terminator, Protocol], keys: dict[str, tuple[Path, Path]]
) -> None:
    terminator, protocol = secured
    tls = Tls(keys["server"][0], *keys["client"])
    with Triton(Endpoint(terminator.address, protocol, tls, {"Authorization": "Bearer xyzzy"})) as triton:
        assert triton.is_live()
        assert triton.describe()["version"].startswith("2.")
        triton.index()
        with triton.twin() as other:
            assert other.is_live()
    assert b"xyzzy" in terminator.heard or protocol == "grpc"  # HTTP/2 packs its headers: see the next test
    assert "xyzzy" not in repr(triton.endpoint)


ASKED: dict[str, Callable[[Wire], object]] = {
    "is_live": lambda wire: wire.is_live(5.0),
    "describe": lambda wire: wire.describe(5.0),
    "is_ready": lambda wire: wire.is_ready("edge", "1", 5.0),
    "load": lambda wire: wire.load("edge", 5.0),
    "unload": lambda wire: wire.unload("edge", 5.0),
    "index": lambda wire: wire.index(5.0),
    "statistics": lambda wire: wire.statistics("", "", 5.0),
    "infer": lambda wire: wire.infer("edge", np.zeros((1, 8, 8, 3), np.uint8), "", 0, 5.0),
}


class Listener(grpc.GenericRpcHandler):
    """A gRPC service that knows no method, and keeps the headers it was asked with."""

    def __init__(self) -> None:
        self.heard: list[str | bytes | None] = []

    def service(self, details: grpc.HandlerCallDetails) -> None:
        self.heard.append(dict(details.invocation_metadata).get("authorization"))


@pytest.fixture(params=["grpc", "http"])
def listening(request: pytest.FixtureRequest) -> Iterator[tuple[str, Protocol, list[Any]]]:
    """The address of a service of this protocol that refuses all, and the headers of what it was asked."""
    if request.param == "grpc":
        listener, server = Listener(), grpc.server(ThreadPoolExecutor(1))
        server.add_generic_rpc_handlers([listener])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}", "grpc", listener.heard
        server.stop(None).wait()
        return
    heard: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers["authorization"])
            self.rfile.read(int(self.headers["content-length"] or 0))
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{web.server_port}", "http", heard
        web.shutdown()


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_every_question_is_asked_with_the_headers_given(
    listening: tuple[str, Protocol, list[Any]], ask: Callable[[Wire], object]
) -> None:
    address, protocol, heard = listening
    wire = open_wire(Endpoint(address, protocol, headers={"Authorization": "Bearer xyzzy"}))
    with contextlib.suppress(Refusal):
        ask(wire)
    wire.close()
    assert heard == ["Bearer xyzzy"]


@pytest.mark.parametrize("whom", ["another authority", "no certificate", "a stranger's", "no TLS"])
def test_who_cannot_be_trusted_is_as_nobody(
    secured: tuple[Terminator, Protocol], keys: dict[str, tuple[Path, Path]], whom: str
) -> None:
    terminator, protocol = secured
    authority = keys["server"][0]
    tls = {
        "another authority": Tls(keys["stranger"][0], *keys["client"]),
        "no certificate": Tls(authority),
        "a stranger's": Tls(authority, *keys["stranger"]),
        "no TLS": None,
    }[whom]
    with (
        Triton(Endpoint(terminator.address, protocol, tls), timeout=1.0) as triton,
        pytest.raises(TritonUnavailable, match=f"^no Triton answers at {terminator.address}"),
    ):
        triton.index()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_file_that_is_missing_is_named(tmp_path: Path, protocol: Protocol) -> None:
    with pytest.raises(OSError, match=r"none\.pem|No such file"):
        Triton(Endpoint("127.0.0.1:9", protocol, Tls(tmp_path / "none.pem")))
