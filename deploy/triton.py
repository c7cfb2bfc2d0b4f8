"""What is asked of a Triton inference server, over gRPC; every call has a time limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

CHANNEL = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # A server that comes back is found again at once, not after gRPC's usual two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]


MODEL_CONTROL = "explicit model load / unload is not allowed"  # Triton's words, of a server in another mode


class TritonError(Exception):
    """Triton did not do what it was asked."""


class TritonUnavailable(TritonError):
    """No Triton answers at this address, or it takes no orders. Start it as it should be, or correct the address;
    what was asked is tried again.
    """


class TritonRefused(TritonError):
    """Triton answered with an error. Its words say why; its log says more."""


@dataclass(frozen=True, slots=True)
class VersionState:
    """What Triton's index says of one version of a model."""

    version: int
    state: str  # "READY", "UNAVAILABLE", "LOADING", "UNLOADING"
    reason: str


class Triton:
    """A connection to the server at `address` ("host:port" of its gRPC endpoint).

    Every method raises TritonUnavailable where nobody answers in time and TritonRefused where Triton answers
    with an error. `timeout`, in seconds, is of one call; loading has its own.
    """

    def __init__(self, address: str, timeout: float = 10.0, load_timeout: float = 120.0) -> None:
        from tritonclient import grpc

        self.address = address
        self._grpc = grpc
        self._timeout, self._load_timeout = timeout, load_timeout
        self._client: Any = grpc.InferenceServerClient(address, channel_args=CHANNEL)

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def is_live(self, timeout: float = 2.0) -> bool:
        """Whether a server answers at all."""
        try:
            return bool(self._client.is_server_live(client_timeout=timeout))
        except self._grpc.InferenceServerException:
            return False

    def is_ready(self, model: str, version: int | None = None) -> bool:
        """What Triton says of itself.

        It says so of a model whose process was killed too: ask for an answer.
        """
        return self._ask(lambda: bool(self._client.is_model_ready(model, _text(version), client_timeout=self._timeout)))

    def load(self, model: str) -> None:
        """Loads, or loads again, what lies in the repository under this name; waits until it is done."""
        self._ask(lambda: self._client.load_model(model, client_timeout=self._load_timeout))

    def unload(self, model: str) -> None:
        """Unloads the model; one that is not loaded is no error."""
        self._ask(lambda: self._client.unload_model(model, client_timeout=self._load_timeout))

    def index(self) -> dict[str, list[VersionState]]:
        """What the repository holds and what of it is loaded: model -> its versions, by number.

        A model that was never loaded has an empty list.
        """
        found = self._ask(lambda: self._client.get_model_repository_index(client_timeout=self._timeout))
        models: dict[str, list[VersionState]] = {}
        for entry in found.models:
            versions = models.setdefault(entry.name, [])
            if entry.version:
                versions.append(VersionState(int(entry.version), entry.state, entry.reason))
        return {name: sorted(versions, key=lambda v: v.version) for name, versions in models.items()}

    def count_failures(self, model: str, version: int) -> int:
        """How many requests Triton has failed that were for this version, since it was loaded."""
        found = self._ask(
            lambda: self._client.get_inference_statistics(model, _text(version), client_timeout=self._timeout)
        )
        return sum(int(row.inference_stats.fail.count) for row in found.model_stats)

    def infer(
        self, model: str, images: NDArray[np.uint8], version: int | None = None
    ) -> tuple[NDArray[np.float32], int]:
        """(probabilities float32 (n, classes), version that answered) for images uint8 (n, H, W, 3).

        n may not exceed the model's max_batch_size; `infer_all` cuts larger ones.
        """
        answer = self._infer(model, images, version, class_count=0)
        return answer.as_numpy("probabilities"), int(answer.get_response().model_version)

    def classify(
        self, model: str, images: NDArray[np.uint8], version: int | None = None, count: int = 1
    ) -> tuple[list[list[tuple[float, int, str]]], int]:
        """For each image its `count` likeliest classes, (probability, index, name), and the version that answered."""
        answer = self._infer(model, images, version, class_count=count)
        rows = answer.as_numpy("probabilities").reshape(len(images), -1)
        parsed = [[parse_class(cell) for cell in row] for row in rows]
        return parsed, int(answer.get_response().model_version)

    def infer_all(
        self, model: str, images: NDArray[np.uint8], version: int | None = None
    ) -> tuple[NDArray[np.float32], set[int]]:
        """As `infer`, one image a request, so that any max_batch_size will do; all versions that answered."""
        answers = [self.infer(model, images[i : i + 1], version) for i in range(len(images))]
        return np.concatenate([found for found, _ in answers]), {number for _, number in answers}

    def _infer(self, model: str, images: NDArray[np.uint8], version: int | None, class_count: int) -> Any:
        tensor = self._grpc.InferInput("images", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images)
        output = self._grpc.InferRequestedOutput("probabilities", class_count=class_count)
        return self._ask(
            lambda: self._client.infer(model, [tensor], _text(version), outputs=[output], client_timeout=self._timeout)
        )

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except self._grpc.InferenceServerException as error:
            status, words = str(error.status()), error.message()
            # Triton answers UNAVAILABLE of a model too, and one model may hang: only silence means that it is away.
            if ("UNAVAILABLE" in status or "DEADLINE_EXCEEDED" in status) and not self.is_live():
                raise TritonUnavailable(f"no Triton answers at {self.address}: {words}") from error
            if MODEL_CONTROL in words:
                raise TritonUnavailable(
                    f"Triton at {self.address} takes no loads ({words}): start it with --model-control-mode=explicit"
                ) from error
            raise TritonRefused(words) from error


def parse_class(cell: bytes) -> tuple[float, int, str]:
    """(probability, index, name) of one answer of the classification extension, "0.98:3:cat"."""
    probability, index, name = [*cell.decode("utf-8").split(":", 2), ""][:3]
    return float(probability), int(index), name


def _text(version: int | None) -> str:
    return "" if version is None else str(version)
