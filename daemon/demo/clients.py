"""A client that asks Triton all the time, and checks every answer against the manifest of the version that gave it."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from daemon.demo.digits import Digit
from deploy.triton import Triton, TritonError


@dataclass(slots=True)
class Record:
    """What the client saw."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)  # version, index and label that do not belong together
    versions: Counter[int] = field(default_factory=Counter)
    sent: set[str] = field(default_factory=set)  # SHA-256 of the pixels
    longest_ms: float = 0.0
    seconds: float = 0.0  # that it asked for


class Client:
    """Asks `per_second` times a second, through the classification extension, until it is stopped."""

    def __init__(self, url: str, target: str, repository: Path, digits: Sequence[Digit], per_second: float) -> None:
        self.url, self.target, self.repository = url, target, repository
        self.digits = digits
        self.pause = 1 / per_second
        self.record = Record()
        self._manifests: dict[int, dict[str, Any]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="client", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> Record:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        return self.record

    def _ask(self) -> None:
        began = due = time.monotonic()
        with Triton(self.url, timeout=10.0) as triton:
            for digit in itertools.cycle(self.digits):
                due += self.pause
                self.record.seconds = time.monotonic() - began
                if self._stopped.wait(max(0.0, due - time.monotonic())):
                    return
                self._ask_once(triton, digit)

    def _ask_once(self, triton: Triton, digit: Digit) -> None:
        record = self.record
        began = time.monotonic()
        record.requests += 1
        record.sent.add(digit.sha256)
        try:
            rows, version = triton.classify(self.target, digit.as_sent()[None])
        except TritonError as error:
            record.failures.append(str(error))
            return
        record.longest_ms = max(record.longest_ms, 1000 * (time.monotonic() - began))
        record.versions[version] += 1
        _, index, label = rows[0][0]
        try:
            classes = self._manifest(version)["classes"]
        except (OSError, ValueError) as error:
            record.mismatches.append(f"version {version} answered, and its manifest cannot be read: {error}")
            return
        if index >= len(classes) or classes[index] != label:
            record.mismatches.append(f"version {version} said {index} is {label!r}; its manifest says {classes}")

    def _manifest(self, version: int) -> dict[str, Any]:
        if version not in self._manifests:
            file = self.repository / self.target / str(version) / "manifest.json"
            self._manifests[version] = json.loads(file.read_text(encoding="utf-8"))
        return self._manifests[version]


def accuracy(url: str, target: str, digits: Sequence[Digit]) -> tuple[float, int, list[tuple[str, str]]]:
    """Share of right answers of the served model, the version, and (true, predicted) of each digit, in order.

    Raises TritonError where Triton does not answer.
    """
    pairs: list[tuple[str, str]] = []
    with Triton(url) as triton:
        for digit in digits:
            rows, version = triton.classify(target, digit.as_sent()[None])
            pairs.append((digit.name, rows[0][0][2]))
    return float(np.mean([true == said for true, said in pairs])), version, pairs
