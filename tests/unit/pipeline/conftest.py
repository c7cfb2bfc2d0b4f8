"""Small images in a store, snapshots of them, and trainings: one that is shared, and the same one interrupted twice."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline import evaluate, export, pixels
from pipeline import train as training

CHECKOUT = Path(__file__).resolve().parents[3]
SECONDS = 120.0  # a deadline, for a machine that is busy with other things
CLASSES = ("red", "green", "blue")
TRAIN, TUNE, JUDGE = 0, 1, 2
MISLABELLED = 3  # of the tune samples
Row = tuple[str, int, int]  # SHA-256 (hex), class, role

# The training that tests share: batch normalisation, every random change, and epochs enough to be killed among them.
SHARED: dict[str, Any] = {
    "architecture": "test_resnet",
    "weights": "none",
    "height": 32,
    "width": 32,
    "settings": {
        "epochs": 30,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "seed": 5,
        "accelerator": "cpu",
        "augment": {"crop_min": 0.8, "rotate_degrees": 10.0, "brightness": 0.1, "contrast": 0.1},
    },
}
# What a test trains for itself: no batch normalisation, so that three epochs are enough.
SMALL: dict[str, Any] = {
    **SHARED,
    "architecture": "test_vit",
    "settings": {"epochs": 3, "batch_size": 16, "learning_rate": 2e-3, "accelerator": "cpu"},
}


class Said(list[tuple[float, float, str, dict[str, Any]]]):
    """A stage's report, which keeps what it is told."""

    def __call__(self, done: float, total: float, unit: str, **figures: Any) -> None:
        self.append((done, total, unit, figures))


@dataclass(frozen=True)
class Colours:
    """Three classes of coloured noise, easily told apart: 60 train, 48 tune and 12 judge samples.

    Snapshot "good" has three tune samples under a wrong class; "contrary" has all of them; "untuned" has none.
    """

    store: Path
    rows: list[Row]  # of "good"
    pixels: Mapping[str, dict[str, Any]]  # by snapshot: the outputs of the stage, at 32 x 32
    snapshots: Mapping[str, Path]


@dataclass(frozen=True)
class Trained:
    """A training that ran through, evaluated and exported."""

    run: Path
    model: Path
    outputs: dict[str, dict[str, Any]]  # by stage
    said: Said  # by the training
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """What a child left: its exit status, the lines of its protocol, and what it wrote to stderr."""

    status: int
    lines: list[dict[str, Any]]
    words: str


class Child:
    """`python -P -m pipeline JOB`, as the daemon starts it."""

    def __init__(self, job: Path, folder: Path, modules: str = "") -> None:
        self.out, self.err = folder / "stdout", folder / "stderr"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline", str(job)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": f"{CHECKOUT}:{modules}", "OMP_NUM_THREADS": "1"},
            )

    def end(self) -> Ended:
        """Waits for its end."""
        status = self.process.wait(SECONDS)
        lines = [json.loads(line) for line in self.out.read_text(encoding="utf-8").splitlines()]
        return Ended(status, lines, self.err.read_text(encoding="utf-8"))

    def stop(self, number: signal.Signals) -> Ended:
        self.process.send_signal(number)
        return self.end()

    def until(self, condition: Callable[[], object]) -> None:
        """Waits for the condition while the child runs; fails where the child ends first."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None, f"the child has ended: {self.err.read_text()}"
            assert time.monotonic() < deadline, "the condition did not come to hold in time"
            threading.Event().wait(0.01)


def _keep(store: Path, data: bytes) -> str:
    sha = hashlib.sha256(data).hexdigest()
    file = store / sha[:2] / sha
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return sha


def _encode(image: NDArray[Any] | Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **more)
    return file.getvalue()


def _write_snapshot(file: Path, rows: Sequence[Row], classes: Sequence[str] = CLASSES, **header: Any) -> Path:
    body = b"".join(struct.pack("<32sHB", bytes.fromhex(sha), label, role) for sha, label, role in sorted(rows))
    head = {"format": 1, "id": file.stem, "classes": list(classes), "rows": len(rows), **header}
    file.write_bytes(json.dumps(head).encode() + b"\n" + body)
    return file


def _epochs(run: Path) -> list[dict[str, Any]]:
    history = run / "history.json"
    return list(json.loads(history.read_text())["epochs"]) if history.exists() else []


@pytest.fixture(scope="session")
def keep() -> Callable[[Path, bytes], str]:
    """Puts bytes into a store: `keep(store, data)` gives their SHA-256."""
    return _keep


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """An image or an array as the bytes of a file: `encode(image, "PNG")`."""
    return _encode


@pytest.fixture(scope="session")
def write_snapshot() -> Callable[..., Path]:
    """Writes the file of a snapshot: `write_snapshot(file, rows, classes, **changes of the header)`."""
    return _write_snapshot


@pytest.fixture(scope="session")
def epochs_of() -> Callable[[Path], list[dict[str, Any]]]:
    """The epochs in a run folder's history."""
    return _epochs


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Colours:
    folder = tmp_path_factory.mktemp("colours")
    draw = np.random.default_rng(0)
    rows: list[Row] = []
    for role, number in ((TRAIN, 60), (TUNE, 48), (JUDGE, 12)):
        for index in range(number):
            image = draw.integers(0, 120, (36, 40, 3)).astype(np.uint8)
            image[..., index % 3] += 100
            wrong = role == TUNE and index < MISLABELLED
            rows.append((_keep(folder / "store", _encode(image)), (index + wrong) % 3, role))
    contrary = [(sha, (label + 1) % 3 if role == TUNE else label, role) for sha, label, role in rows]
    untuned = [row for row in rows if row[2] != TUNE]
    snapshots = {
        name: _write_snapshot(folder / f"{name}.snapshot", content)
        for name, content in {"good": rows, "contrary": contrary, "untuned": untuned}.items()
    }
    inputs = {"store": folder / "store", "cache": folder / "cache", "height": 32, "width": 32, "resize": "stretch"}
    outputs = {
        name: pixels.run({**inputs, "snapshot": file, "threads": 1}, {}, Said()) for name, file in snapshots.items()
    }
    return Colours(folder / "store", rows, outputs, snapshots)


@pytest.fixture(scope="session")
def trained(colours: Colours, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The shared training, in this process, without interruption."""
    folder, said = tmp_path_factory.mktemp("trained"), Said()
    outputs = {"pixels": colours.pixels["good"]}
    outputs["train"] = training.run({**SHARED, "threads": 1, "run": str(folder / "run")}, outputs, said)
    outputs["evaluate"] = evaluate.run({"threads": 1}, outputs, Said())
    outputs["export"] = export.run({"threads": 1, "models": str(folder / "models")}, outputs, Said())
    return Trained(folder / "run", Path(outputs["export"]["path"]), outputs, said, SHARED)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Child]]:
    """Starts a child on a job: `start({"stage": inputs, …}, earlier={…})`, or on the job file that is given."""
    children: list[Child] = []

    def run(
        stages: Mapping[str, Mapping[str, Any]] | Path,
        earlier: Mapping[str, Any] | None = None,
        token: str = "t1",
        modules: str = "",
    ) -> Child:
        folder = tmp_path_factory.mktemp("child")
        file = stages if isinstance(stages, Path) else folder / "job.json"
        if not isinstance(stages, Path):
            orders = [{"name": name, "inputs": inputs} for name, inputs in stages.items()]
            job = {"token": token, "package": "pipeline", "stages": orders, "earlier": earlier or {}, "threads": 1}
            file.write_text(json.dumps(job, default=str))
        children.append(Child(file, folder, modules))
        return children[-1]

    yield run
    for child in children:
        child.process.kill()
        child.process.wait()


@pytest.fixture(scope="session")
def interrupted(
    colours: Colours, start: Callable[..., Child], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trained, list[Ended]]:
    """The shared training again, in three children: one killed, one asked to end, one that finishes and exports."""
    folder = tmp_path_factory.mktemp("interrupted")
    run = folder / "run"
    train = {**SHARED, "run": run}
    ended = []
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = len(_epochs(run))
        child = start({"train": train}, {"pixels": colours.pixels["good"]})
        child.until(lambda before=before: len(_epochs(run)) >= before + 2)
        ended.append(child.stop(number))
        assert len(_epochs(run)) < SHARED["settings"]["epochs"], "the training was over before it was interrupted"
    place = {"store": colours.store, "cache": folder / "cache", "height": 32, "width": 32, "resize": "stretch"}
    stages = {
        "pixels": {**place, "snapshot": colours.snapshots["good"]},
        "train": train,
        "evaluate": {},
        "export": {"models": folder / "models"},
    }
    ended.append(start(stages).end())
    outputs = {line["stage"]: line["outputs"] for line in ended[-1].lines if line["event"] == "finished"}
    assert "export" in outputs, ended[-1].words
    return Trained(run, Path(outputs["export"]["path"]), outputs, Said(), SHARED), ended


@pytest.fixture
def train(colours: Colours, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Trains in this process: `train("good", run="a", epochs=2, inputs={…})`; what is not said is as in SMALL."""

    def run(
        snapshot: str | dict[str, Any] = "good",
        run: str = "run",
        said: Said | None = None,
        inputs: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        outputs = colours.pixels[snapshot] if isinstance(snapshot, str) else snapshot
        order = {**SMALL, **(inputs or {}), "threads": 1, "run": str(tmp_path / run)}
        order["settings"] = {**SMALL["settings"], **settings}
        return training.run(order, {"pixels": outputs}, Said() if said is None else said)

    return run


@pytest.fixture
def decode_new(colours: Colours, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A snapshot of these rows of the colours' store, decoded: what the stage answers."""

    def run(rows: Sequence[Row], classes: Sequence[str] = CLASSES, size: int = 32) -> dict[str, Any]:
        file = _write_snapshot(tmp_path / "own.snapshot", rows, classes)
        place = {"store": colours.store, "cache": tmp_path / "own", "height": size, "width": size, "resize": "stretch"}
        return pixels.run({**place, "snapshot": file, "threads": 1}, {}, Said())

    return run
