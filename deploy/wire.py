"""The two protocols that Triton speaks, made alike: what is sent and how it is answered, no more.

Both classes have the same methods. They raise Silence where nobody answers in time and Refusal where Triton answers
with an error. An object is for one thread: the HTTP client is bound to the one that made it.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

CHANNEL = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # A server that comes back is found again at once, not after gRPC's usual two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]
Row = Mapping[str, Any]


class Silence(Exception):
    """No answer came in time, or one that is none of Triton's."""


class Refusal(Exception):
    """Triton answered with an error, in these words."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM. None: the system's authorities; no certificate of one's own."""

    authorities: Path | None = None
    certificate: Path | None = None  # of this client, where the server asks for one
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how a Triton is spoken to."""

    address: str  # host:port
    protocol: Literal["grpc", "http"] = "grpc"
    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # they may hold secrets


class Wire(Protocol):
    """What both have; seconds are how long an answer may take."""

    def close(self) -> None: ...
    def is_live(self, seconds: float) -> bool: ...
    def describe(self, seconds: float) -> Row: ...
    def is_ready(self, model: str, version: str, seconds: float) -> bool: ...
    def load(self, model: str, seconds: float) -> None: ...
    def unload(self, model: str, seconds: float) -> None: ...
    def index(self, seconds: float) -> list[Row]: ...
    def statistics(self, model: str, version: str, seconds: float) -> list[Row]: ...
    def infer(
        self, model: str, images: NDArray[np.uint8], version: str, classes: int, seconds: float
    ) -> tuple[NDArray[Any], int]: ...


def open_wire(endpoint: Endpoint) -> Wire:
    """A connection of the endpoint's protocol, made at the first question. Raises OSError where a TLS file is bad."""
    return HttpWire(endpoint) if endpoint.protocol == "http" else GrpcWire(endpoint)


class GrpcWire:
    """Triton's gRPC service."""

    def __init__(self, endpoint: Endpoint) -> None:
        from tritonclient import grpc

        self._grpc = grpc
        self._headers = {key.lower(): value for key, value in endpoint.headers.items()} or None
        tls = endpoint.tls
        files = (tls.authorities, tls.key, tls.certificate) if tls else (None, None, None)
        for file in filter(None, files):
            file.read_bytes()  # the client says nothing of one that is missing
        authorities, key, certificate = (str(file) if file else None for file in files)
        self._client: Any = grpc.InferenceServerClient(
            endpoint.address,
            ssl=tls is not None,
            root_certificates=authorities,
            private_key=key,
            certificate_chain=certificate,
            channel_args=CHANNEL,
        )

    def close(self) -> None:
        self._client.close()

    def is_live(self, seconds: float) -> bool:
        return bool(self._ask(lambda: self._client.is_server_live(self._headers, client_timeout=seconds)))

    def describe(self, seconds: float) -> Row:
        found = self._ask(lambda: self._client.get_server_metadata(self._headers, client_timeout=seconds))
        return {"name": found.name, "version": found.version, "extensions": list(found.extensions)}

    def is_ready(self, model: str, version: str, seconds: float) -> bool:
        return bool(self._ask(lambda: self._client.is_model_ready(model, version, self._headers, seconds)))

    def load(self, model: str, seconds: float) -> None:
        self._ask(lambda: self._client.load_model(model, self._headers, client_timeout=seconds))

    def unload(self, model: str, seconds: float) -> None:
        self._ask(lambda: self._client.unload_model(model, self._headers, client_timeout=seconds))

    def index(self, seconds: float) -> list[Row]:
        found = self._ask(lambda: self._client.get_model_repository_index(self._headers, client_timeout=seconds))
        return [{"name": m.name, "version": m.version, "state": m.state, "reason": m.reason} for m in found.models]

    def statistics(self, model: str, version: str, seconds: float) -> list[Row]:
        found = self._ask(
            lambda: self._client.get_inference_statistics(model, version, self._headers, client_timeout=seconds)
        )
        return [
            {"name": m.name, "version": m.version, "failed": m.inference_stats.fail.count} for m in found.model_stats
        ]

    def infer(
        self, model: str, images: NDArray[np.uint8], version: str, classes: int, seconds: float
    ) -> tuple[NDArray[Any], int]:
        tensor = self._grpc.InferInput("images", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images)
        output = self._grpc.InferRequestedOutput("probabilities", class_count=classes)
        order = {"outputs": [output], "headers": self._headers, "client_timeout": seconds}
        answer = self._ask(lambda: self._client.infer(model, [tensor], version, **order))
        return answer.as_numpy("probabilities"), int(answer.get_response().model_version)

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._grpc.InferenceServerException as error:
            status, words = str(error.status()), error.message()
            # Triton answers UNAVAILABLE of a model too, and one model may hang: the caller looks whether it is live.
            silent = "UNAVAILABLE" in status or "DEADLINE_EXCEEDED" in status
            raise (Silence(words) if silent else Refusal(words)) from error


class HttpWire:
    """Triton's HTTP service; a connection for each time limit, which it keeps for all its calls."""

    def __init__(self, endpoint: Endpoint) -> None:
        import gevent  # type: ignore[import-untyped]
        from tritonclient import http, utils

        self._http, self._error, self._timeout = http, utils.InferenceServerException, gevent.Timeout
        self._endpoint = endpoint
        self._headers = dict(endpoint.headers) or None
        self._clients: dict[float, Any] = {}
        if endpoint.tls:
            make_context(endpoint.tls)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def is_live(self, seconds: float) -> bool:
        return bool(self._ask(seconds, lambda client: client.is_server_live(self._headers)))

    def describe(self, seconds: float) -> Row:
        found: Row = self._ask(seconds, lambda client: client.get_server_metadata(self._headers))
        return found

    def is_ready(self, model: str, version: str, seconds: float) -> bool:
        return bool(self._ask(seconds, lambda client: client.is_model_ready(model, version, self._headers)))

    def load(self, model: str, seconds: float) -> None:
        self._ask(seconds, lambda client: client.load_model(model, self._headers))

    def unload(self, model: str, seconds: float) -> None:
        self._ask(seconds, lambda client: client.unload_model(model, self._headers))

    def index(self, seconds: float) -> list[Row]:
        found = self._ask(seconds, lambda client: client.get_model_repository_index(self._headers))
        blank = {"version": "", "state": "", "reason": ""}
        return [{**blank, **row} for row in found]

    def statistics(self, model: str, version: str, seconds: float) -> list[Row]:
        found = self._ask(seconds, lambda client: client.get_inference_statistics(model, version, self._headers))
        return [
            {"name": row["name"], "version": row["version"], "failed": row["inference_stats"]["fail"]["count"]}
            for row in found["model_stats"]
        ]

    def infer(
        self, model: str, images: NDArray[np.uint8], version: str, classes: int, seconds: float
    ) -> tuple[NDArray[Any], int]:
        tensor = self._http.InferInput("images", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images)
        output = self._http.InferRequestedOutput("probabilities", class_count=classes)
        order = {"outputs": [output], "headers": self._headers}
        answer = self._ask(seconds, lambda client: client.infer(model, [tensor], version, **order))
        return answer.as_numpy("probabilities"), int(answer.get_response()["model_version"])

    def _ask(self, seconds: float, call: Callable[[Any], Any]) -> Any:
        with self._translated():
            return call(self._client(seconds))

    def _client(self, seconds: float) -> Any:
        if seconds not in self._clients:
            tls = self._endpoint.tls
            self._clients[seconds] = self._http.InferenceServerClient(
                self._endpoint.address,
                connection_timeout=seconds,
                network_timeout=seconds,
                ssl=tls is not None,
                ssl_context_factory=(lambda: make_context(tls)) if tls else None,
            )
        return self._clients[seconds]

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise Refusal(error.message()) from error
        except self._timeout as error:
            raise Silence("Deadline Exceeded") from error
        except (OSError, ValueError, HTTPException) as error:  # refused, out of time, or nothing that Triton says
            raise Silence(str(error) or type(error).__name__) from error


def make_context(tls: Tls) -> Any:
    """What gevent's sockets take for a TLS context. Raises OSError where a file is missing or not what it should be."""
    from gevent import ssl as cooperative

    context = cooperative.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=tls.authorities)
    if tls.certificate:
        context.load_cert_chain(tls.certificate, tls.key)
    return context
