"""Stage `measure`: latency, throughput and memory of an artifact, in a fresh process of its own.

The method, version 3. Figures are to mean the same tomorrow, and beside other work:
- Of all that measure on a machine one does at a time (deploy/lease.py), from its first import to its end.
- The process loads the artifact with the threads told and answers batches of fresh random pixels, so that no cache
  answers; as many threads as `concurrency` call the one session, each as soon as it has its last answer.
- Warm-up lasts until the medians of two blocks of runs differ by less than 5%, or a quarter of the time is spent:
  engines choose kernels and grow their memory in the first runs (Georges, Buytaert and Eeckhout 2007,
  «Statistically rigorous Java performance evaluation»: steady state first, then confidence intervals).
- Memory is the peak of the process's resident set by the kernel's own account (VmHWM), once it is warm: all of it,
  Python and numpy included, libraries that others use too counted whole. The reference network is loaded later.
- Then blocks of a twentieth of a second alternate: the artifact's, and those of a reference network that always does
  the same (deploy/reference.py), with the same threads and concurrency. What slows the one slows the other; figures
  are corrected by its speed now against that known of it undisturbed (`Measurement.corrected`): latencies by its
  median, throughput by its throughput. Not p95 by p95: a call of the reference is as long as a run of the artifact,
  and of the means of twenty runs p95 is a fifth below that of single ones, so that one slow network would make every
  fast one look better than it is. p95 by p95 at equal lengths was tried beside other work (load 16, two networks,
  eleven times each): 2.8% median deviation against 3.7% by the median, but ten per cent too much for one of the two
  with a core burning, and it would need a reading of that very length from a quiet moment; the median needs none.
- Of both the blocks count whose own median is within 5% of the lowest eighth's. Neighbours on the same hardware come
  and go within a second and make a run up to half as long again, of a network that needs the cache more than of the
  reference: the median of all jumps with the share of time that they were there, and no correction by a ratio mends
  that. What others do only ever adds (Chen and Revels 2016, «Robust benchmarking in noisy environments», who take the
  minimum). Where nobody else is there, these are nearly all. Not where the load itself is more than the cores: there
  blocks differ by themselves, and all count. Nor need it be others where most blocks of the artifact are slow and
  hardly any of the reference's: then it is not steady, and may also be as it was timed, over all blocks.
- Percentiles are, of both, over the runs in which the kernel did not take the processor away (no involuntary context
  switch by getrusage): beside other work these are as fast as ever, where the others wait a scheduler's turn of
  milliseconds. Where there are fewer than ten, and where the load itself is more than the cores (then it is the load
  that interrupts itself), they are over all runs. As timed they are over all runs always.
- It ends once the 95% interval of the corrected median is within 3% of it, after a second and 200 repetitions at
  least; or when `seconds_max` is spent (three blocks at least), and then says that it is not steady. How intervals
  are made of blocks, deploy/intervals.py tells. What differs from process to process (where its memory lies, above
  all) no repetition within one shows: by that much every figure is less certain. A run before each block is not timed:
  it finds the caches full of the other network.
- One that is taken because an earlier one left a limit in doubt is told the figure and its limit (`doubts`), and how
  fast the reference is known to be (`quiet`). It goes on until the corrected figure's own interval excludes the limit,
  or until `seconds_max` is spent. It looks after each block, so that of figures right at their limit more than 5 in
  100 are told apart falsely; of these the estimate decides anyway.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy import artifact, lease
from deploy.device import cores, fingerprint
from deploy.engines import Runner, find_engine
from deploy.lifeline import die_with_parent
from deploy.opened import find_hindrance
from deploy.timing import LEAST_BLOCKS, Series, time_runs
from policies.facts import METHOD, SPEEDS, Measurement, to_dict
from policies.job import Outputs, Report, StageError

if TYPE_CHECKING:
    from deploy.reference import Reference

SECONDS_MAX = 4.0
WITHIN = 0.03  # of the median, half its 95% interval
BLOCK_SECONDS = 0.05
LEAST_REPETITIONS, LEAST_SECONDS = 200, 1.0
INPUT_BYTES = 16_000_000  # of fresh random pixels at most
BETWEEN_PROCESSES = 0.025  # half of 95%: by which the medians of two processes that do the same were seen to differ
MEMORY_UNCERTAINTY = 0.02  # by which two processes that do the same were seen to differ


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """Measures the artifact in a child process and returns a `Measurement` as JSON, with the artifact's id.

    inputs: artifact (None: that of the stage build), batch_size, concurrency, threads, seconds_max (None: SECONDS_MAX),
    and of one that is to settle a doubt: doubts (figure -> limit) and quiet (of the reference, figure -> value). One
    that this machine cannot run: {"artifact", "skipped": why}. Raises StageError where others measure for too long.
    """
    folder = Path(inputs["artifact"] or earlier["build"]["path"])
    manifest = artifact.verify(folder)
    if (reason := find_hindrance(manifest)) is not None:
        report(1, 1, "measurement")
        return {"artifact": manifest["id"], "skipped": f"not measured: {reason}"}
    order = {**inputs, "artifact": str(folder)}
    with lease.hold(lambda why: report(0, 1, "measurement", waiting=why)):
        report(0, 1, "measurement")  # it waits no longer
        child = subprocess.run(
            [sys.executable, "-P", "-m", "deploy.measure", json.dumps(order)],
            capture_output=True,
            text=True,
            check=False,
        )
    if child.returncode != 0:
        words = child.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise StageError(f"measuring {folder.name} ended with {child.returncode}: {words[0]}")
    report(1, 1, "measurement")
    outputs: Outputs = json.loads(child.stdout)
    return outputs


def measure(
    folder: Path,
    batch_size: int,
    concurrency: int,
    threads: int,
    seconds_max: float,
    doubts: Mapping[str, float] | None = None,
    quiet: Mapping[str, float] | None = None,
) -> Measurement:
    """Measures the artifact in this process; nothing is corrected yet.

    `seconds_max` bounds warm-up and timing together, not loading. `doubts`, `quiet`: as `is_settled` takes them.
    """
    manifest = artifact.read_manifest(folder)
    inputs = random_batches(manifest["input"], batch_size)
    runner = find_engine(manifest["engine"]).load(folder, threads)
    began = time.monotonic()
    seconds = warm_up(runner, inputs, concurrency, began + seconds_max / 4)
    memory = peak_mb()
    from deploy.reference import Reference  # onnx counts for no memory of the artifact's

    reference = Reference(threads, seconds)
    about = Measurement(
        device=fingerprint(manifest["engine"], threads),
        batch_size=batch_size,
        concurrency=concurrency,
        threads=threads,
        method=METHOD,
        latency_p50_ms=0.0,  # until something is timed
        latency_p95_ms=0.0,
        latency_p99_ms=0.0,
        throughput=0.0,
        memory_mb=memory,
        artifact_mb=manifest["bytes"] / 1e6,
        repetitions=0,
        uncertainty={"memory_mb": MEMORY_UNCERTAINTY},
        reference_device=fingerprint(threads=threads),
    )

    def sum_up(mine: Series, theirs: Series) -> Measurement:
        return with_speeds(about, mine, theirs, reference.length)

    mine, theirs = time_both(
        runner,
        inputs,
        reference,
        concurrency,
        seconds,
        began + seconds_max,
        crowded=concurrency * threads > cores(),
        settled=lambda mine, theirs: is_settled(sum_up(mine, theirs), doubts or {}, quiet or {}),
    )
    return sum_up(mine, theirs)


def with_speeds(about: Measurement, mine: Series, theirs: Series, length: int) -> Measurement:
    """The measurement with what was timed so far of the artifact and of the reference, `length` runs of it a call."""
    clear = mine.tells_clear and theirs.tells_clear
    raw, _ = mine.figures(about.batch_size, clear=False)
    found, reaches = mine.undisturbed(clear=clear).figures(about.batch_size, clear=clear)
    meanwhile, reach = theirs.undisturbed(clear=clear).divided(length).figures(clear=clear)
    known = find_reach(mine, theirs)  # of those that were chosen the rest tells little of what they might be
    shares = {
        name: math.hypot(max(known, math.hypot(reaches[name], reach[of])), BETWEEN_PROCESSES)
        for name, of in SPEEDS.items()
    }
    return replace(
        about,
        latency_p50_ms=found["latency_p50_ms"],
        latency_p95_ms=found["latency_p95_ms"],
        latency_p99_ms=found["latency_p99_ms"],
        throughput=found["throughput"],
        repetitions=mine.repetitions,
        steady=known <= WITHIN and not is_slow_by_itself(mine, theirs),
        raw=raw,
        clear=found,
        uncertainty={**shares, **about.uncertainty},
        reference=meanwhile,
    )


def is_slow_by_itself(mine: Series, theirs: Series) -> bool:
    """Whether most blocks of the artifact are slower than its fastest while hardly any of the reference's is.

    Then what slows it may be its own (its memory, the processor's heat), and no neighbour's.
    """
    clear = mine.tells_clear and theirs.tells_clear
    return mine.undisturbed_share(clear=clear) < 1 / 2 and theirs.undisturbed_share(clear=clear) >= 3 / 4


def is_settled(found: Measurement, doubts: Mapping[str, float], quiet: Mapping[str, float]) -> bool:
    """Whether no limit of `doubts` (figure -> limit) is within what the corrected figure may be.

    `quiet`: how fast the reference is known to be where nothing disturbs it. A correction that is not believed settles
    nothing, whichever figure it is of. Of memory more timing tells no more.
    """
    corrected = found.corrected(quiet)
    intervals = {name: corrected.interval(name) for name in doubts if name in SPEEDS}
    return all(map(corrected.is_believed, SPEEDS)) and all(
        not low < doubts[name] < high for name, (low, high) in intervals.items()
    )


def random_batches(size: Mapping[str, int], batch_size: int) -> list[artifact.Images]:
    """Up to sixteen batches uint8 (batch, H, W, C), all different, so that no cache answers."""
    shape = (batch_size, size["height"], size["width"], size["channels"])
    count = max(2, min(16, INPUT_BYTES // int(np.prod(shape))))
    generator = np.random.default_rng()
    return [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]


def warm_up(runner: Runner, inputs: list[artifact.Images], concurrency: int, deadline: float) -> float:
    """Runs blocks of ten a thread until two medians agree within 5%; the first run of all counts for nothing.

    Returns the seconds of the fastest run.
    """
    runner(inputs[0])
    before = 0.0
    while True:
        block = time_runs(runner, inputs, concurrency, deadline, most=10)
        now = statistics.median(seconds for seconds, _ in block.runs)
        if abs(now - before) < 0.05 * now or time.monotonic() >= deadline:
            return min(seconds for seconds, _ in block.runs)
        before = now


def time_both(
    runner: Runner,
    inputs: list[artifact.Images],
    reference: Reference,
    concurrency: int,
    seconds: float,
    deadline: float,
    *,
    crowded: bool,
    settled: Callable[[Series, Series], bool],
) -> tuple[Series, Series]:
    """Blocks of the artifact and of the reference in turn, until the median is known and all is `settled`.

    Or until the deadline. `seconds`: about what a run takes. Of long ones a block has one, and nothing that was in the
    caches is left of it.
    """
    mine, theirs = Series(crowded), Series(crowded)
    began = time.monotonic()
    while True:
        for runs, series in ((runner, mine), (reference, theirs)):
            if seconds < BLOCK_SECONDS:
                runs(inputs[0])
            series.add(time_runs(runs, inputs, concurrency, time.monotonic() + BLOCK_SECONDS))
        now = time.monotonic()
        if len(mine.walls) < LEAST_BLOCKS:
            continue
        if now >= deadline or (is_known(mine, theirs, now - began) and settled(mine, theirs)):
            return mine, theirs


def is_known(mine: Series, theirs: Series, seconds: float) -> bool:
    """Whether the corrected median is known well enough after so many seconds of timing."""
    if mine.repetitions < LEAST_REPETITIONS or seconds < LEAST_SECONDS:
        return False
    return find_reach(mine, theirs) <= WITHIN


def find_reach(mine: Series, theirs: Series) -> float:
    """Half the 95% interval of the corrected median, as a share of it."""
    clear = mine.tells_clear and theirs.tells_clear
    return math.hypot(mine.reach(clear=clear), theirs.reach(clear=clear))


def peak_mb() -> float:
    """The most that this process ever had resident, in 10^6 bytes; what it has now where the kernel keeps no peak."""
    said = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    if peak := re.search(r"^VmHWM:\s+(\d+) kB", said, re.MULTILINE):
        return int(peak[1]) * 1024 / 1e6
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> int:
    die_with_parent()
    order = json.loads(sys.argv[1])
    folder = Path(order["artifact"])
    load = (order["batch_size"], order["concurrency"], order["threads"])
    seconds = float(order.get("seconds_max") or SECONDS_MAX)
    try:
        found = measure(folder, *load, seconds, order.get("doubts"), order.get("quiet"))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({**to_dict(found), "artifact": artifact.read_manifest(folder)["id"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
