"""What is asked of a Triton inference server, over gRPC or HTTP; every call has a time limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploy.wire import Endpoint, Refusal, Row, Silence, open_wire

T = TypeVar("T")

LIVE_SECONDS = 2.0  # in which a server says whether it is there
MODEL_CONTROL = "explicit model load / unload is not allowed"  # Triton's words, of a server in another mode


class TritonError(Exception):
    """Triton did not do what it was asked."""


class TritonUnavailable(TritonError):
    """No Triton answers at this address. Start it, or correct the address; what was asked is tried again."""


class TritonUnfit(TritonUnavailable):
    """This Triton answers, and cannot be given models as it is. Start it as the message says; it is looked at again."""


class TritonRefused(TritonError):
    """Triton answered with an error. Its words say why; its log says more."""


@dataclass(frozen=True, slots=True)
class VersionState:
    """What Triton's index says of one version of a model."""

    version: int
    state: str  # "READY", "UNAVAILABLE", "LOADING", "UNLOADING"
    reason: str


class Triton:
    """A connection to the server at `address` ("host:port" of its gRPC endpoint), or at an Endpoint that says more.

    Every method raises TritonUnavailable where nobody answers in time and TritonRefused where Triton answers
    with an error. `timeout`, in seconds, is of one call; loading has its own. It is for
    one thread: `twin` gives another its own.
    """

    def __init__(self, address: str | Endpoint, timeout: float = 10.0, load_timeout: float = 120.0) -> None:
        self.endpoint = Endpoint(address) if isinstance(address, str) else address
        self.address = self.endpoint.address
        self._timeout, self._load_timeout = timeout, load_timeout
        self._wire = open_wire(self.endpoint)

    def close(self) -> None:
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def twin(self) -> Triton:
        """Another connection to the same server."""
        return Triton(self.endpoint, self._timeout, self._load_timeout)

    def is_live(self, timeout: float = LIVE_SECONDS) -> bool:
        """Whether a server answers at all."""
        try:
            return self._wire.is_live(timeout)
        except (Silence, Refusal):
            return False

    def describe(self) -> Row:
        """What the server says of itself: "name", "version", "extensions"."""
        return self._ask(lambda: self._wire.describe(self._timeout))

    def is_ready(self, model: str, version: int | None = None) -> bool:
        """What Triton says of itself.

        It says so of a model whose process was killed too: ask for an answer.
        """
        return self._ask(lambda: self._wire.is_ready(model, _text(version), self._timeout))

    def load(self, model: str) -> None:
        """Loads, or loads again, what lies in the repository under this name; waits until it is done."""
        self._ask(lambda: self._wire.load(model, self._load_timeout))

    def unload(self, model: str) -> None:
        """Unloads the model; one that is not loaded is no error."""
        self._ask(lambda: self._wire.unload(model, self._load_timeout))

    def index(self) -> dict[str, list[VersionState]]:
        """What the repository holds and what of it is loaded: model -> its versions, by number.

        A model that was never loaded has an empty list.
        """
        models: dict[str, list[VersionState]] = {}
        for entry in self._ask(lambda: self._wire.index(self._timeout)):
            versions = models.setdefault(entry["name"], [])
            if entry["version"]:
                versions.append(VersionState(int(entry["version"]), entry["state"], entry["reason"]))
        return {name: sorted(versions, key=lambda v: v.version) for name, versions in models.items()}

    def count_failures(self, model: str, version: int) -> int:
        """How many requests Triton has failed that were for this version, since it was loaded."""
        return sum(int(row["failed"]) for row in self._ask(lambda: self._statistics(model, _text(version))))

    def count_all_failures(self) -> dict[tuple[str, int], int]:
        """As `count_failures`, of every version that is loaded, in one call."""
        rows = self._ask(lambda: self._statistics("", ""))
        return {(row["name"], int(row["version"])): int(row["failed"]) for row in rows}

    def _statistics(self, model: str, version: str) -> list[Row]:
        return self._wire.statistics(model, version, self._timeout)

    def infer(
        self, model: str, images: NDArray[np.uint8], version: int | None = None
    ) -> tuple[NDArray[np.float32], int]:
        """(probabilities float32 (n, classes), version that answered) for images uint8 (n, H, W, 3).

        n may not exceed the model's max_batch_size; `infer_all` cuts larger ones.
        """
        return self._ask(lambda: self._wire.infer(model, images, _text(version), 0, self._timeout))

    def classify(
        self, model: str, images: NDArray[np.uint8], version: int | None = None, count: int = 1
    ) -> tuple[list[list[tuple[float, int, str]]], int]:
        """For each image its `count` likeliest classes, (probability, index, name), and the version that answered."""
        cells, by = self._ask(lambda: self._wire.infer(model, images, _text(version), count, self._timeout))
        return [[parse_class(cell) for cell in row] for row in cells.reshape(len(images), -1)], by

    def infer_all(
        self, model: str, images: NDArray[np.uint8], version: int | None = None
    ) -> tuple[NDArray[np.float32], set[int]]:
        """As `infer`, one image a request, so that any max_batch_size will do; all versions that answered."""
        answers = [self.infer(model, images[i : i + 1], version) for i in range(len(images))]
        return np.concatenate([found for found, _ in answers]), {number for _, number in answers}

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (Silence, Refusal) as error:
            if isinstance(error, Silence) and not self.is_live(min(LIVE_SECONDS, self._timeout)):
                raise TritonUnavailable(f"no Triton answers at {self.address}: {error}") from error
            if MODEL_CONTROL in str(error):
                raise TritonUnfit(
                    f"Triton at {self.address} takes no loads ({error}): start it with --model-control-mode=explicit"
                ) from error
            raise TritonRefused(str(error)) from error


def parse_class(cell: bytes) -> tuple[float, int, str]:
    """(probability, index, name) of one answer of the classification extension, "0.98:3:cat"."""
    probability, index, name = [*cell.decode("utf-8").split(":", 2), ""][:3]
    return float(probability), int(index), name


def _text(version: int | None) -> str:
    return "" if version is None else str(version)
