"""Runs of a network timed in blocks, each marked by whether the kernel took the processor away meanwhile."""

from __future__ import annotations

import itertools
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deploy import intervals
from deploy.artifact import Images
from deploy.engines import Runner

LEAST_BLOCKS = 3
LOWEST = 1 / 8  # of the blocks' medians: what is looked for is how fast it is where nothing disturbs it
NEAR = 0.05  # of that, and a block counts
LEAST_CLEAR = 10  # runs that nothing interrupted, to go by them alone
SHARES = {"latency_p50_ms": 0.5, "latency_p95_ms": 0.95, "latency_p99_ms": 0.99}


@dataclass(frozen=True, slots=True)
class Block:
    """Runs that were timed one after another."""

    runs: list[tuple[float, bool]]  # seconds of each, and whether nothing interrupted it
    wall: float  # seconds of all


@dataclass(slots=True)
class Series:
    """What was timed, block by block; `crowded`: under a load of more threads than there are cores."""

    crowded: bool
    times: list[NDArray[np.float64]] = field(default_factory=list)  # seconds of each run
    clear: list[NDArray[np.float64]] = field(default_factory=list)  # of those that nothing interrupted
    walls: list[float] = field(default_factory=list)  # seconds of all runs of a block

    def add(self, block: Block) -> None:
        self.times.append(np.array([seconds for seconds, _ in block.runs]))
        self.clear.append(np.array([seconds for seconds, clear in block.runs if clear]))
        self.walls.append(block.wall)

    def divided(self, length: int) -> Series:
        """The same, where each run was so many."""
        times, clear = ([block / length for block in blocks] for blocks in (self.times, self.clear))
        return Series(self.crowded, times, clear, [wall / length for wall in self.walls])

    @property
    def repetitions(self) -> int:
        return sum(map(len, self.times))

    @property
    def tells_clear(self) -> bool:
        """Whether what nothing interrupted is enough to go by."""
        sizes = [len(block) for block in self.clear if len(block)]
        return not self.crowded and sum(sizes) >= LEAST_CLEAR and len(sizes) >= LEAST_BLOCKS

    def undisturbed(self, *, clear: bool) -> Series:
        """The blocks that nothing disturbed: those whose median is near the lowest ones, three at least.

        All of them where the load disturbs itself.
        """
        if self.crowded:
            return self
        medians = self._medians(clear=clear)
        limit = float(np.quantile(list(medians.values()), LOWEST)) * (1 + NEAR)
        lowest = sorted(medians, key=medians.__getitem__)
        chosen = [number for rank, number in enumerate(lowest) if rank < LEAST_BLOCKS or medians[number] <= limit]
        times, runs = ([of[number] for number in chosen] for of in (self.times, self.clear))
        return Series(self.crowded, times, runs, [self.walls[number] for number in chosen])

    def undisturbed_share(self, *, clear: bool) -> float:
        return len(self.undisturbed(clear=clear).walls) / len(self._medians(clear=clear))

    def reach(self, *, clear: bool) -> float:
        """Half the 95% interval of the median of what nothing disturbed, as a share of it."""
        _, among = self.undisturbed(clear=clear).quantile(0.5, clear=clear)
        if self.crowded:
            return among
        return max(among, intervals.of_series(np.array(list(self._medians(clear=clear).values())), LOWEST))

    def _medians(self, *, clear: bool) -> dict[int, float]:
        """Seconds, by the number of the block; none where it has no clear run, and these are what counts."""
        blocks = self.clear if clear else self.times
        return {number: float(np.median(block)) for number, block in enumerate(blocks) if len(block)}

    def quantile(self, share: float, *, clear: bool) -> tuple[float, float]:
        """Seconds, and half the 95% interval as a share of them."""
        return intervals.quantile([block for block in self.clear if len(block)] if clear else self.times, share)

    def figures(self, images: int = 1, *, clear: bool) -> tuple[dict[str, float], dict[str, float]]:
        """The SPEEDS, a run being so many images, and half the 95% interval of each as a share of it."""
        found = {name: self.quantile(share, clear=clear) for name, share in SHARES.items()}
        values = {name: seconds * 1e3 for name, (seconds, _) in found.items()}
        reaches = {name: reach for name, (_, reach) in found.items()}
        done = [len(block) * images for block in self.times]
        values["throughput"], reaches["throughput"] = intervals.rate(done, self.walls)
        return values, reaches


def time_runs(
    runner: Runner, inputs: list[Images], concurrency: int, deadline: float, most: int | None = None
) -> Block:
    """A block of runs until the deadline or `most` runs a thread, one at least."""
    start = threading.Barrier(concurrency + 1)
    ending = threading.Event()

    def ask(first: int) -> list[tuple[float, bool]]:
        runs: list[tuple[float, bool]] = []
        start.wait()
        for images in itertools.islice(itertools.cycle(inputs), first, None):
            interrupted = interruptions()
            before = time.perf_counter()
            runner(images)
            seconds = time.perf_counter() - before
            runs.append((seconds, interruptions() == interrupted))
            if len(runs) == most or time.monotonic() >= deadline or ending.is_set():
                break
        ending.set()  # what is timed is timed under the whole load
        return runs

    with ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(ask, number) for number in range(concurrency)]
        start.wait()
        began = time.perf_counter()
        rows = [future.result() for future in futures]
        wall = time.perf_counter() - began
    return Block(list(itertools.chain.from_iterable(rows)), wall)


def interruptions() -> int:
    """How often the kernel has taken the processor from a thread of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
