"""A measurement is taken in a process of its own, and its figures hang together. How fast is never asked here."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy import measure
from deploy.device import fingerprint
from policies.facts import Measurement, from_dict
from policies.job import StageError
from tests.unit.deploy.models import class_names, make_artifact, rewrite, silent

PAST = 0.0  # long before time.monotonic()


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """What starts the stage puts the checkout on the path of all that it starts."""
    monkeypatch.setenv("PYTHONPATH", str(Path(measure.__file__).parents[1]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("artifact"), class_names(4))


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    """An artifact to spoil."""
    return Path(shutil.copytree(made, tmp_path / made.name))


def order(artifact: Path | None, **other: Any) -> dict[str, Any]:
    given = {"artifact": str(artifact) if artifact else None, "batch_size": 1, "concurrency": 1, "threads": 1}
    return {**given, "seconds_max": 0.3, **other}


@pytest.mark.parametrize(
    ("batch_size", "concurrency", "threads"), [(1, 1, 1), (4, 2, 1), (1, 1, 2)], ids=["one", "many", "threads"]
)
def test_the_figures_hang_together(made: Path, batch_size: int, concurrency: int, threads: int) -> None:
    asked = {"batch_size": batch_size, "concurrency": concurrency, "threads": threads}
    said: list[tuple[Any, ...]] = []
    outputs = measure.run(order(made, **asked), {}, lambda *done, **_: said.append(done))
    assert said == [(1, 1, "measurement")]
    assert outputs.pop("artifact") == made.name
    assert outputs == json.loads(json.dumps(outputs))
    found = from_dict(Measurement, outputs)
    assert outputs.keys() == set(Measurement.__dataclass_fields__)
    assert {name: outputs[name] for name in asked} == asked
    assert (found.device, found.method, found.gpu_memory_mb) == (fingerprint(threads=threads), 1, None)
    assert found.artifact_mb == (made / "model.onnx").stat().st_size / 1e6
    assert found.repetitions >= 3
    assert 0 < found.latency_p50_ms <= found.latency_p95_ms <= found.latency_p99_ms
    figures = [value for value in outputs.values() if isinstance(value, float)]
    assert len(figures) == 6
    assert all(math.isfinite(value) and value > 0 for value in figures)


def test_it_is_taken_in_a_process_of_its_own(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python is called by a script that writes down which process it became and what for."""
    python, said = tmp_path / "python", tmp_path / "said"
    python.write_text(f'#!/bin/sh\necho "$$ $PPID $1 $2 $3" >> {said}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    for _ in range(2):
        measure.run(order(made), {}, silent)
    rows = [line.split() for line in said.read_text().splitlines()]
    assert [row[1:] for row in rows] == [[str(os.getpid()), "-P", "-m", "deploy.measure"]] * 2
    assert len({row[0] for row in rows} - {str(os.getpid())}) == 2


def test_the_stage_before_names_the_artifact(made: Path) -> None:
    assert measure.run(order(None), {"build": {"path": str(made)}}, silent)["artifact"] == made.name


def tampered(artifact: Path) -> str:
    (artifact / "labels.txt").write_text("others\n")
    return f"{artifact / 'labels.txt'} is damaged"


def junk(artifact: Path) -> str:
    rewrite(artifact, "model.onnx", b"junk")
    return f"measuring {artifact.name} ended with 1: {artifact / 'model.onnx'} is no graph"


def missing(artifact: Path) -> str:
    shutil.rmtree(artifact)
    return f"{artifact / 'manifest.json'} is missing"


def other_size(artifact: Path) -> str:
    """What the engine says when it is asked, and no Python of ours."""
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["input"]["height"] = 9
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    return f"measuring {artifact.name} ended with 1: "


@pytest.mark.parametrize("spoil", [tampered, junk, missing, other_size])
def test_an_artifact_that_cannot_be_measured_is_refused_in_words(artifact: Path, spoil: Callable[[Path], str]) -> None:
    words = spoil(artifact)
    with pytest.raises(StageError) as refused:
        measure.run(order(artifact), {}, silent)
    assert str(refused.value).startswith(words)
    assert len(str(refused.value)) > len(words)


def test_the_inputs_are_all_different() -> None:
    batches = measure.random_batches({"height": 8, "width": 6, "channels": 3}, 4)
    assert {(batch.shape, batch.dtype.name) for batch in batches} == {((4, 8, 6, 3), "uint8")}
    assert len({batch.tobytes() for batch in batches}) == len(batches) == 16


def test_large_inputs_are_few_but_never_one() -> None:
    assert len(measure.random_batches({"height": 600, "width": 600, "channels": 3}, 4)) == 3
    assert len(measure.random_batches({"height": 1200, "width": 1200, "channels": 3}, 8)) == 2


INPUTS = [np.full((1, 1, 1, 3), number, np.uint8) for number in range(4)]


def test_as_many_threads_as_asked_call_at_once() -> None:
    """A run that goes on only when another is under way beside it."""
    together = threading.Barrier(2, timeout=60)
    callers: set[int] = set()

    def run(images: np.ndarray) -> np.ndarray:
        callers.add(threading.get_ident())
        together.wait()
        return images

    times, wall = measure.time_runs(run, INPUTS, 2, deadline=math.inf, most=2)
    assert len(times) == len(callers) == 2
    assert wall > 0


def test_runs_end_at_the_number_that_is_asked_for() -> None:
    seen: list[int] = []
    times, _ = measure.time_runs(lambda images: seen.append(int(images.max())), INPUTS, 1, math.inf, most=6)
    assert len(times) == 6
    assert seen == [0, 1, 2, 3, 0, 1]


def test_a_deadline_that_is_past_leaves_three_repetitions() -> None:
    times, _ = measure.time_runs(lambda images: images, INPUTS, 1, deadline=PAST)
    assert len(times) == 3


def test_a_failing_run_ends_all_threads() -> None:
    def run(images: np.ndarray) -> np.ndarray:
        raise ValueError("the seventh layer")

    with pytest.raises(ValueError, match="the seventh layer"):
        measure.time_runs(run, INPUTS, 2, deadline=PAST)


@pytest.mark.parametrize(
    ("repetitions", "seconds", "most", "so"),
    [
        (999, 60.0, None, False),
        (1000, 0.9, None, False),
        (1000, 1.0, None, True),
        (10, 0.0, 10, True),
        (9, 60.0, 10, False),
    ],
)
def test_when_it_is_enough(repetitions: int, seconds: float, most: int | None, so: bool) -> None:
    assert measure.enough(repetitions, seconds, most) is so


def test_warm_up_runs_at_least_once_and_ends_at_its_deadline() -> None:
    seen: list[np.ndarray] = []
    measure.warm_up(seen.append, INPUTS, 1, deadline=PAST)
    assert len(seen) == 1


def test_memory_is_the_peak_and_not_what_is_left(eventually: Callable[..., None]) -> None:
    with measure.watch_memory() as peak:
        before = peak[0]
        assert before > 1
        filled = np.ones(60_000_000, np.uint8)
        eventually(lambda: peak[0] > before + 50)
        del filled
    assert peak[0] > before + 50
