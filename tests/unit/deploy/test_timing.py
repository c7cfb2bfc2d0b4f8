"""Runs are timed by as many threads as asked, and marked where the kernel took the processor away."""

from __future__ import annotations

import math
import os
import threading
import time

import numpy as np
import pytest

from deploy.timing import LEAST_CLEAR, Block, Series, interruptions, time_runs

PAST = 0.0  # long before time.monotonic()
INPUTS = [np.full((1, 1, 1, 3), number, np.uint8) for number in range(4)]


def test_as_many_threads_as_asked_call_at_once() -> None:
    """A run that goes on only when another is under way beside it."""
    together = threading.Barrier(2, timeout=60)
    callers: set[int] = set()

    def run(images: np.ndarray) -> np.ndarray:
        callers.add(threading.get_ident())
        together.wait()
        return images

    block = time_runs(run, INPUTS, 2, deadline=math.inf, most=1)
    assert len(block.runs) == len(callers) == 2
    assert block.wall > 0


def test_runs_end_at_the_number_that_is_asked_for() -> None:
    seen: list[int] = []
    block = time_runs(lambda images: seen.append(int(images.max())), INPUTS, 1, math.inf, most=6)
    assert len(block.runs) == 6
    assert seen == [0, 1, 2, 3, 0, 1]


def test_a_deadline_that_is_past_leaves_one_run() -> None:
    assert len(time_runs(lambda images: images, INPUTS, 1, deadline=PAST).runs) == 1


def test_a_failing_run_ends_all_threads() -> None:
    def run(images: np.ndarray) -> np.ndarray:
        raise ValueError("the seventh layer")

    with pytest.raises(ValueError, match="the seventh layer"):
        time_runs(run, INPUTS, 2, deadline=PAST)


def test_a_run_that_is_interrupted_is_not_clear() -> None:
    """Beside another process on the one core that both may use, the kernel takes turns."""
    before, given = interruptions(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(given)})
    other = os.fork()
    if other == 0:
        while os.getppid() != 1:
            pass
        os._exit(0)
    try:

        def run(images: np.ndarray) -> np.ndarray:
            count = interruptions()
            while interruptions() == count:
                pass
            return images

        block = time_runs(run, INPUTS, 1, math.inf, most=3)
    finally:
        os.kill(other, 9)
        os.waitpid(other, 0)
        os.sched_setaffinity(0, given)
    assert [clear for _, clear in block.runs] == [False] * 3
    assert interruptions() >= before + 3


def test_a_run_that_waits_by_itself_is_clear() -> None:
    runs = [time_runs(lambda images: time.sleep(0), INPUTS, 1, math.inf, most=1).runs[0] for _ in range(200)]
    assert any(clear for _, clear in runs)


def block(seconds: float, clear: int, interrupted: int = 0) -> Block:
    runs = [(seconds, True)] * clear + [(9 * seconds, False)] * interrupted
    return Block(runs, sum(length for length, _ in runs))


def series(*blocks: Block, crowded: bool = False) -> Series:
    found = Series(crowded)
    for each in blocks:
        found.add(each)
    return found


MIXED = (block(1.0, 10, 10), block(1.0, 10, 10), block(1.0, 10, 10))


@pytest.mark.parametrize(
    ("found", "tells"),
    [
        (series(*MIXED), True),
        (series(*MIXED, crowded=True), False),
        (series(*MIXED[:2], block(1.0, 0, 10)), False),
        (series(block(1.0, LEAST_CLEAR), block(1.0, 9)), False),
    ],
    ids=["so", "interrupted by its own load", "too few", "in too few blocks"],
)
def test_when_the_runs_that_nothing_interrupted_are_gone_by(found: Series, tells: bool) -> None:
    assert found.tells_clear is tells


def test_figures_of_all_runs_and_of_those_that_nothing_interrupted() -> None:
    clear, _ = series(*MIXED).figures(images=2, clear=True)
    raw, _ = series(*MIXED).figures(images=2, clear=False)
    assert (clear["latency_p50_ms"], clear["latency_p95_ms"]) == (1_000.0, 1_000.0)
    assert (raw["latency_p50_ms"], raw["latency_p95_ms"]) == (5_000.0, 9_000.0)
    assert clear["throughput"] == raw["throughput"] == pytest.approx(2 * 60 / 300)


def test_a_run_of_several_is_divided() -> None:
    figures, _ = series(*MIXED).divided(10).figures(clear=True)
    assert figures["latency_p50_ms"] == pytest.approx(100.0)
    assert figures["throughput"] == pytest.approx(60 / 30)


def test_the_blocks_count_that_nothing_disturbed() -> None:
    neighbours = [1.4] * 12
    found = series(*(block(seconds, 20) for seconds in [1.0, 1.04, *neighbours, 1.01, 1.02]))
    left = found.undisturbed(clear=True)
    assert sorted(float(np.median(times)) for times in left.times) == [1.0, 1.01, 1.02, 1.04]
    assert sorted(left.walls) == pytest.approx([20.0, 20.2, 20.4, 20.8])
    assert found.figures(clear=True)[0]["latency_p50_ms"] == 1_400.0


def test_of_steady_blocks_all_count_and_of_few_three() -> None:
    steady = series(*(block(seconds, 20) for seconds in np.linspace(1.0, 1.02, 9)))
    assert len(steady.undisturbed(clear=True).walls) == 9
    assert len(series(block(1.0, 20), block(2.0, 20), block(3.0, 20)).undisturbed(clear=True).walls) == 3


def test_under_a_load_that_disturbs_itself_all_blocks_count() -> None:
    found = series(*(block(seconds, 20) for seconds in (1.0, 1.0, 1.0, 1.0, 3.0)), crowded=True)
    assert len(found.undisturbed(clear=False).walls) == 5
    assert found.reach(clear=False) > 0


def test_a_block_in_which_all_was_interrupted_is_none_of_what_is_clear() -> None:
    found = series(block(1.0, 0, 9), *(block(1.0, 10, 1) for _ in range(4)))
    assert len(found.undisturbed(clear=True).walls) == 4
    assert found.reach(clear=True) == 0.0


def test_what_is_disturbed_all_the_time_but_a_moment_is_not_known() -> None:
    often = series(*(block(1.4 if number % 12 else 1.0, 20) for number in range(24)))
    seldom = series(*(block(1.0 if number % 4 else 1.4, 20) for number in range(24)))
    assert often.reach(clear=True) > 0.1
    assert seldom.reach(clear=True) == 0.0
