"""A measurement is taken in a process of its own, and its figures hang together. How fast is never asked here."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy import lease, measure
from deploy.device import fingerprint
from deploy.timing import Block, Series
from policies.facts import METHOD, SPEEDS, Measurement, from_dict
from policies.job import StageError
from tests.unit.deploy.models import class_names, make_artifact, rewrite, silent

PAST = 0.0  # long before time.monotonic()
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """What starts the stage puts the checkout on the path of all that it starts."""
    monkeypatch.setenv("PYTHONPATH", str(Path(measure.__file__).parents[1]))


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease of this test's own: it waits for no measurement but its own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


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
    assert said[-1] == (1, 1, "measurement")
    assert outputs.pop("artifact") == made.name
    assert outputs == json.loads(json.dumps(outputs))
    found = from_dict(Measurement, outputs)
    assert outputs.keys() == set(Measurement.__dataclass_fields__)
    assert {name: outputs[name] for name in asked} == asked
    assert (found.device, found.method, found.gpu_memory_mb) == (fingerprint(threads=threads), METHOD, None)
    assert found.artifact_mb == (made / "model.onnx").stat().st_size / 1e6
    assert found.repetitions >= 3
    for speeds in (found.raw, found.clear, found.reference):
        assert speeds.keys() == set(SPEEDS)
        assert 0 < speeds["latency_p50_ms"] <= speeds["latency_p95_ms"] <= speeds["latency_p99_ms"]
        assert all(math.isfinite(value) and value > 0 for value in speeds.values())
    assert {name: getattr(found, name) for name in SPEEDS} == found.clear  # corrected where the journal is known
    assert (found.quiet, found.reference_device) == ({}, fingerprint(threads=threads))
    assert found.uncertainty.keys() == {*SPEEDS, "memory_mb"}
    assert all(0 < share < math.inf for share in found.uncertainty.values())
    assert found.steady is (
        found.uncertainty["latency_p50_ms"] <= math.hypot(measure.WITHIN, measure.BETWEEN_PROCESSES)
    )


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


def test_warm_up_runs_at_least_once_and_ends_at_its_deadline() -> None:
    seen: list[np.ndarray] = []
    assert measure.warm_up(seen.append, INPUTS, 1, deadline=PAST) > 0
    assert len(seen) == 2


class Counted:
    """Stands for a network; it answers in no time."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.runs += 1
        return images


def never(*_: Series) -> bool:
    return False


def test_blocks_of_both_alternate_until_the_deadline() -> None:
    """Three blocks are timed at least; before each a run is not."""
    mine, theirs = Counted(), Counted()
    one, other = measure.time_both(mine, INPUTS, theirs, 1, 0.0, PAST, crowded=False, settled=never)
    assert len(one.walls) == len(other.walls) == 3
    assert (mine.runs, theirs.runs) == (one.repetitions + 3, other.repetitions + 3)


def test_of_long_runs_none_goes_untimed() -> None:
    mine, theirs = Counted(), Counted()
    one, other = measure.time_both(mine, INPUTS, theirs, 1, 60.0, PAST, crowded=False, settled=never)
    assert (mine.runs, theirs.runs) == (one.repetitions, other.repetitions)


def series(*blocks: list[float]) -> Series:
    found = Series(crowded=False)
    for block in blocks:
        found.add(Block([(seconds, True) for seconds in block], sum(block)))
    return found


ABOUT = Measurement("here", 1, 1, 1, METHOD, 0.0, 0.0, 0.0, 0.0, 300.0, 9.0, 0, uncertainty={"memory_mb": 0.02})
STEADY = series(*[[1.0] * 100] * 3)


@pytest.mark.parametrize(
    ("mine", "theirs", "seconds", "so"),
    [
        (STEADY, STEADY, 1.0, True),
        (STEADY, STEADY, 0.9, False),
        (series(*[[1.0] * 60] * 3), STEADY, 60.0, False),
        (series(*[[1.0, 2.0] * 50] * 3), STEADY, 60.0, False),
        (STEADY, series(*[[1.0, 2.0] * 50] * 3), 60.0, False),
        (series([1.0] * 100, [1.0] * 100, [1.1] * 100), STEADY, 60.0, False),
    ],
    ids=["so", "too soon", "too few", "spread", "the reference's spread", "blocks apart"],
)
def test_when_the_median_is_known(mine: Series, theirs: Series, seconds: float, so: bool) -> None:
    assert measure.is_known(mine, theirs, seconds) is so


def test_however_long_a_call_of_the_reference_is_a_quiet_moment_leaves_figures_as_timed() -> None:
    """Readings of one quiet moment: single runs of the reference, and means of twenty, whose p95 is much lower."""
    singles = 1e-4 * np.random.default_rng(3).lognormal(0, 0.15, (3, 2_000))
    runs = series(*(singles * 6).tolist())
    one = measure.with_speeds(ABOUT, runs, series(*singles.tolist()), 1)
    twenty = measure.with_speeds(ABOUT, runs, series(*singles.reshape(3, -1, 20).sum(axis=2).tolist()), 20)
    assert twenty.reference["latency_p95_ms"] < one.reference["latency_p95_ms"] * 0.85
    for found, other in ((one, twenty), (twenty, one)):
        corrected = found.corrected(other.reference)
        assert {name: getattr(corrected, name) for name in SPEEDS} == pytest.approx(found.clear, rel=0.02)


def test_what_is_slow_while_the_reference_is_not_may_be_slow_by_itself() -> None:
    """No neighbour shows: the artifact's own slow blocks are not taken for somebody else's work."""
    slow = [[8e-3] * 20] * 4 + [[4e-3] * 20]
    found = measure.with_speeds(ABOUT, series(*slow * 4), series(*[[1e-4] * 400] * 20), 1)
    assert not found.steady
    assert found.interval("latency_p95_ms")[1] >= 8.0
    beside = series(*[[1.3e-4] * 400] * 16, *[[1e-4] * 400] * 4)
    assert not measure.is_slow_by_itself(series(*slow * 4), beside)


# --- longer, where a limit is in doubt --------------------------------------------------------------------------------


class Clock:
    """Stands for the module `time`: it goes as far as what is called says."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


class Timed:
    """Stands for a network whose runs take what is told, one after another and from the start again."""

    def __init__(self, clock: Clock, seconds: np.ndarray) -> None:
        self.clock = clock
        self.seconds = itertools.cycle(seconds.tolist())

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.clock.now += next(self.seconds)
        return images


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The one clock of what is timed; and nothing is interrupted."""
    clock = Clock()
    monkeypatch.setattr("deploy.measure.time", clock)
    monkeypatch.setattr("deploy.timing.time", clock)
    monkeypatch.setattr("deploy.timing.interruptions", lambda: 0)
    return clock


# About a millisecond, a run in ten half as long again, at random: p50 is soon known, p95 is not.
RUNS = np.random.default_rng(7).permutation(np.concatenate([np.linspace(0.97, 1.03, 9_000), np.linspace(1, 2, 1_000)]))
P95 = float(np.quantile(RUNS, 0.95))  # ms


def timed(clock: Clock, doubts: dict[str, float], *, slower: float = 1.0, seconds: float = 12.0) -> Measurement:
    """What is measured beside other work by which all is so many times slower."""
    runs, beside = Timed(clock, RUNS * 1e-3 * slower), Timed(clock, np.array([1e-4, 1.01e-4]) * slower)
    quiet = {"latency_p50_ms": 0.1, "throughput": 9_950.0} if doubts else {}

    def sum_up(mine: Series, theirs: Series) -> Measurement:
        return measure.with_speeds(ABOUT, mine, theirs, 1)

    def settled(mine: Series, theirs: Series) -> bool:
        return measure.is_settled(sum_up(mine, theirs), doubts, quiet)

    deadline = clock.now + seconds
    both = measure.time_both(runs, INPUTS, beside, 1, 1e-3, deadline, crowded=False, settled=settled)  # type: ignore
    return sum_up(*both).corrected(quiet)


def excludes(found: Measurement, limit: float) -> bool:
    low, high = found.interval("latency_p95_ms")
    return not low < limit < high


@pytest.mark.parametrize("limit", [P95 * 0.94, P95 * 1.06])
def test_where_a_limit_is_in_doubt_it_goes_on_until_it_is_not(clock: Clock, limit: float) -> None:
    began = clock.now
    first = timed(clock, {})
    short = clock.now - began
    assert first.steady
    assert not excludes(first, limit)  # the median is known by then
    began = clock.now
    longer = timed(clock, {"latency_p95_ms": limit})
    assert excludes(longer, limit)
    assert short * 1.5 < clock.now - began < 11.9
    assert longer.repetitions > first.repetitions * 1.5


def test_what_lies_on_its_limit_takes_the_whole_time(clock: Clock) -> None:
    began = clock.now
    found = timed(clock, {"latency_p95_ms": P95})
    assert 12 <= clock.now - began < 12.2
    assert not excludes(found, P95)


@pytest.mark.parametrize("doubts", [{"latency_p95_ms": 3.0}, {"memory_mb": 300.0}], ids=["told at once", "memory"])
def test_what_more_timing_tells_no_better_takes_no_longer(clock: Clock, doubts: dict[str, float]) -> None:
    began = clock.now
    timed(clock, doubts)
    assert clock.now - began < 2


def test_the_limit_is_held_against_the_figure_as_corrected() -> None:
    """As timed beside other work it is above its limit for certain; corrected, it is not."""
    figures = {"latency_p50_ms": 1.2, "latency_p95_ms": 1.3, "latency_p99_ms": 1.4, "throughput": 800.0}
    ran = {"latency_p50_ms": 0.13, "latency_p95_ms": 0.2, "latency_p99_ms": 0.2, "throughput": 7_500.0}
    shares = {"latency_p95_ms": 0.05}
    found = dataclasses.replace(ABOUT, raw=figures, clear=figures, uncertainty=shares, reference=ran, **figures)
    assert measure.is_settled(found, {"latency_p95_ms": 1.0}, {})
    assert not measure.is_settled(found, {"latency_p95_ms": 1.0}, {"latency_p50_ms": 0.1})
    assert measure.is_settled(found, {"latency_p95_ms": 0.9}, {"latency_p50_ms": 0.1})


def test_a_correction_that_is_not_believed_settles_nothing(clock: Clock) -> None:
    began = clock.now
    timed(clock, {"latency_p95_ms": 9.0}, slower=1.6)
    assert clock.now - began >= 12


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, (None, None)),
        ({"doubts": {"latency_p95_ms": 5.0}, "quiet": {"throughput": 1.0}},) * 2,
    ],
)
def test_what_is_in_doubt_reaches_the_measurement(
    made: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], told: Any
) -> None:
    called: list[tuple[Any, ...]] = []
    monkeypatch.setattr(measure, "die_with_parent", lambda: None)
    monkeypatch.setattr(measure, "measure", lambda *these: called.append(these) or ABOUT)
    monkeypatch.setattr(sys, "argv", ["measure", json.dumps(order(made, **given))])
    assert measure.main() == 0
    assert called == [(made, 1, 1, 1, 0.3, *(told.values() if given else told))]


def test_memory_is_the_peak_and_not_what_is_left() -> None:
    before = measure.peak_mb()
    assert before > 1
    filled = np.ones(int(before * 1e6) + 50_000_000, np.uint8)
    del filled
    assert measure.peak_mb() > before + 50


def test_the_reference_counts_for_no_memory(start: Start) -> None:
    """What it needs is not even imported when the memory of the artifact is looked at."""
    code = "import sys, deploy.measure; print('onnx' in sys.modules, 'deploy.reference' in sys.modules)"
    assert start("-c", code).communicate(timeout=60)[0].split() == ["False", "False"]


def test_a_measurement_waits_for_another_and_says_so(made: Path) -> None:
    said: list[str] = []
    asked = threading.Event()

    def report(*_: Any, waiting: str = "") -> None:
        said.append(waiting)
        asked.set()

    outputs: list[Any] = []
    with lease.hold(said.append):
        thread = threading.Thread(target=lambda: outputs.append(measure.run(order(made), {}, report)))
        thread.start()
        assert asked.wait(60)
        assert outputs == []
    thread.join(120)
    assert outputs[0]["artifact"] == made.name
    assert said == [f"waits for the measurement of process {os.getpid()}", "", ""]  # it has its turn, and its end
