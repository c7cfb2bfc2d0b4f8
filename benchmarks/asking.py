"""Clients that ask Triton all the time, each thread for itself in a process of their own, and note every answer.

Nothing is judged while they ask: which version could serve at a moment is known afterwards, and looking takes time that
belongs to the server. A process of their own, since what switches would wait for their interpreter, and they for its.
Each request asks for all classes of one image through the classification extension, so that one answer carries the
version, the probability of every class and its label. All moments are seconds since the epoch.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.triton import Triton, TritonError

ALL_CLASSES = 1000  # more than any model here has: Triton answers with those that there are
ROUNDING = 5e-5  # of a probability: the answer's text has six digits, and a batch is summed otherwise than one image
REQUEST_SECONDS = 10.0
RETRY_SECONDS = 0.02  # of a client without a rate, after a failure

Images = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request."""

    client: int
    due: float  # when it should have been sent
    sent: float
    ended: float
    image: int
    version: int = 0
    names: tuple[str, ...] = ()  # by index
    probabilities: bytes = b""  # float32, by index
    error: str | None = None


@dataclass(frozen=True)
class Known:
    """What an artifact answers to each image, asked of its own graph without Triton, and its labels."""

    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]  # (images, classes)

    def has_values(self, answer: Answer) -> bool:
        found, expected = np.frombuffer(answer.probabilities, np.float32), self.probabilities[answer.image]
        return found.shape == expected.shape and bool(np.abs(found - expected).max() <= ROUNDING)

    def has_labels(self, answer: Answer) -> bool:
        return answer.names == self.classes


@dataclass(frozen=True, slots=True)
class Stall:
    """Time in which one client waited for an answer: failed requests and what was sent too late count too."""

    client: int
    since: float
    until: float

    @property
    def ms(self) -> float:
        return 1000 * (self.until - self.since)


class Crowd:
    """The clients' process. per_second: requests of each client; None: as fast as they are answered."""

    def __init__(self, url: str, target: str, images: Images, clients: int, per_second: float | None) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would take along gRPC's threads, and hang
        self._pipe, theirs = context.Pipe()
        arguments = (url, target, images, clients, per_second, theirs)
        self._process = context.Process(target=_ask_until_told, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()  # they ask now

    def take(self) -> list[Answer]:
        """What was answered since the last time. Raises EOFError where their process has ended."""
        self._pipe.send(False)
        answers: list[Answer] = self._pipe.recv()
        return answers

    def stop(self) -> list[Answer]:
        """Ends them; what was answered since the last `take`."""
        self._pipe.send(True)
        answers: list[Answer] = self._pipe.recv()
        self._process.join()
        return answers

    def kill(self) -> None:
        """Ends them where nobody wants to know any more."""
        self._process.kill()


@contextmanager
def asking(url: str, target: str, images: Images, *, clients: int, per_second: float | None) -> Iterator[list[Answer]]:
    """Clients ask for as long as the block lasts; the list holds every answer when it has ended."""
    crowd = Crowd(url, target, images, clients, per_second)
    answers: list[Answer] = []
    try:
        yield answers
        answers += crowd.stop()
    finally:
        crowd.kill()


def _ask_until_told(
    url: str, target: str, images: Images, clients: int, per_second: float | None, pipe: Connection
) -> None:
    stop, rows = threading.Event(), list[Answer]()
    names: dict[tuple[str, ...], tuple[str, ...]] = {}  # one tuple for all answers that carry the same labels
    began = time.time()
    threads = []
    for client in range(clients):
        started = began + client / clients / per_second if per_second else began  # in turn, not all at once
        work = (url, target, images, client, per_second, started, stop, rows, names)
        threads.append(threading.Thread(target=_ask, args=work))
        threads[-1].start()
    pipe.send(None)
    over = False
    while not over:
        try:
            over = pipe.recv()
        except EOFError:  # the benchmark is gone
            over = True
        if over:
            stop.set()
            for thread in threads:
                thread.join()
        number = len(rows)
        pipe.send(rows[:number])
        del rows[:number]


def _ask(
    url: str,
    target: str,
    images: Images,
    client: int,
    per_second: float | None,
    due: float,
    stop: threading.Event,
    rows: list[Answer],
    names: dict[tuple[str, ...], tuple[str, ...]],
) -> None:
    number = client
    with Triton(url, timeout=REQUEST_SECONDS) as triton:
        while not stop.wait(max(0.0, due - time.time())):
            image, sent = number % len(images), time.time()
            number += 1
            try:
                [cells], version = triton.classify(target, images[image : image + 1], count=ALL_CLASSES)
            except TritonError as error:
                rows.append(Answer(client, due, sent, time.time(), image, error=str(error)))
                due = due + 1 / per_second if per_second else time.time() + RETRY_SECONDS
                continue
            ended = time.time()
            ordered = sorted(cells, key=lambda cell: cell[1])
            labels = tuple(name for _, _, name in ordered)
            found = np.array([probability for probability, _, _ in ordered], np.float32).tobytes()
            rows.append(Answer(client, due, sent, ended, image, version, names.setdefault(labels, labels), found))
            due = due + 1 / per_second if per_second else ended


def ask_graph(graph: Any, images: Images, classes: Sequence[str]) -> Known:
    """What the ONNX file `graph` answers, one image at a time, as the clients ask."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    found = [session.run(None, {"images": images[i : i + 1]})[0] for i in range(len(images))]
    return Known(tuple(classes), np.concatenate(found))


def find_stalls(answers: Iterable[Answer]) -> list[Stall]:
    """Every wait of every client, from when it was to ask, or from its answer before, to an answer."""
    by_client = sorted(answers, key=lambda answer: (answer.client, answer.sent))
    return [stall for _, mine in groupby(by_client, key=lambda answer: answer.client) for stall in _waits(mine)]


def _waits(answers: Iterable[Answer]) -> Iterator[Stall]:
    """Of one client."""
    before, since = 0.0, None
    for answer in answers:
        since = since if since is not None else max(answer.due, before)
        if answer.error is None:
            yield Stall(answer.client, since, answer.ended)
            before, since = answer.ended, None
    if since is not None:  # it was never answered again
        yield Stall(answer.client, since, answer.ended)


def longest_ms(stalls: Iterable[Stall], begins: float, ends: float) -> float:
    """The longest of the waits that lie in this time in part."""
    return max((stall.ms for stall in stalls if stall.since < ends and stall.until > begins), default=0.0)
