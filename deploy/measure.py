"""Stage `measure`: latency, throughput and memory of an artifact, in a fresh process of its own.

The method, version 1:
- the process loads the artifact with the threads told and answers batches of fresh random pixels; as many
  threads as `concurrency` call the one session, each as soon as it has its last answer;
- warm-up lasts until the medians of two blocks of runs differ by less than 5%, or a quarter of the time is
  spent;
- then it is timed until 1,000 repetitions and one second, or until `seconds_max` is spent (at least three
  repetitions a thread); the percentiles are over all repetitions, throughput is images over the wall time of
  them;
- memory is the peak of the process's proportional set size (/proc/self/smaps_rollup), looked at twenty times
  a second while it loads and warms up, and after the timing: all of it, Python and numpy included.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deploy import artifact
from deploy.device import fingerprint
from deploy.engines import Runner, find_engine
from deploy.lifeline import die_with_parent
from deploy.opened import find_hindrance
from policies.facts import METHOD, Measurement, to_dict
from policies.job import Outputs, Report, StageError

SECONDS_MAX = 3.0
ENOUGH_REPETITIONS, ENOUGH_SECONDS = 1000, 1.0
LEAST_REPETITIONS = 3  # a thread
INPUT_BYTES = 16_000_000  # of fresh random pixels at most


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """Measures the artifact in a child process and returns a `Measurement` as JSON, with the artifact's id.

    One that this machine cannot run: {"artifact", "skipped": why}.
    """
    folder = Path(inputs["artifact"] or earlier["build"]["path"])
    manifest = artifact.verify(folder)
    if (reason := find_hindrance(manifest)) is not None:
        report(1, 1, "measurement")
        return {"artifact": manifest["id"], "skipped": f"not measured: {reason}"}
    order = {**inputs, "artifact": str(folder)}
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


def measure(folder: Path, batch_size: int, concurrency: int, threads: int, seconds_max: float) -> Measurement:
    """Measures the artifact in this process.

    `seconds_max` bounds warm-up and timing together, not loading.
    """
    manifest = artifact.read_manifest(folder)
    inputs = random_batches(manifest["input"], batch_size)
    with watch_memory() as peak:
        runner = find_engine(manifest["engine"]).load(folder, threads)
        deadline = time.monotonic() + seconds_max
        warm_up(runner, inputs, concurrency, time.monotonic() + seconds_max / 4)
    times, wall = time_runs(runner, inputs, concurrency, deadline)
    p50, p95, p99 = np.percentile(np.array(times) * 1e3, [50, 95, 99])
    return Measurement(
        device=fingerprint(manifest["engine"], threads),
        batch_size=batch_size,
        concurrency=concurrency,
        threads=threads,
        method=METHOD,
        latency_p50_ms=float(p50),
        latency_p95_ms=float(p95),
        latency_p99_ms=float(p99),
        throughput=len(times) * batch_size / wall,
        memory_mb=max(peak[0], proportional_mb()),
        artifact_mb=manifest["bytes"] / 1e6,
        repetitions=len(times),
    )


def random_batches(size: Mapping[str, int], batch_size: int) -> list[artifact.Images]:
    """Up to sixteen batches uint8 (batch, H, W, C), all different, so that no cache answers."""
    shape = (batch_size, size["height"], size["width"], size["channels"])
    count = max(2, min(16, INPUT_BYTES // int(np.prod(shape))))
    generator = np.random.default_rng()
    return [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]


def warm_up(runner: Runner, inputs: list[artifact.Images], concurrency: int, deadline: float) -> None:
    """Runs blocks of ten until two medians agree within 5%; the first run of all counts for nothing."""
    runner(inputs[0])
    before = 0.0
    while time.monotonic() < deadline:
        times, _ = time_runs(runner, inputs, concurrency, deadline, most=10 * concurrency)
        now = statistics.median(times)
        if abs(now - before) < 0.05 * now:
            return
        before = now


def time_runs(
    runner: Runner, inputs: list[artifact.Images], concurrency: int, deadline: float, most: int | None = None
) -> tuple[list[float], float]:
    """(seconds of each run, wall seconds of all of them) until the deadline, `most` runs, or enough of them."""
    start = threading.Barrier(concurrency + 1)
    ending = threading.Event()

    def ask(first: int) -> list[float]:
        times: list[float] = []
        start.wait()
        began = time.perf_counter()
        for images in itertools.islice(itertools.cycle(inputs), first, None):
            before = time.perf_counter()
            runner(images)
            after = time.perf_counter()
            times.append(after - before)
            if enough(len(times) * concurrency, after - began, most) or ending.is_set():
                break
            if time.monotonic() >= deadline and (most or len(times) >= LEAST_REPETITIONS):
                break
        ending.set()
        return times

    with ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(ask, number) for number in range(concurrency)]
        start.wait()
        began = time.perf_counter()
        rows = [future.result() for future in futures]
        wall = time.perf_counter() - began
    return list(itertools.chain.from_iterable(rows)), wall


def enough(repetitions: int, seconds: float, most: int | None) -> bool:
    if most is not None:
        return repetitions >= most
    return repetitions >= ENOUGH_REPETITIONS and seconds >= ENOUGH_SECONDS


def proportional_mb() -> float:
    """This process's proportional set size now, in 10^6 bytes; the resident set where the kernel does not tell it."""
    try:
        for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


@contextmanager
def watch_memory() -> Iterator[list[float]]:
    """A list of one figure, the peak so far of `proportional_mb`, kept up to date by a thread."""
    peak = [proportional_mb()]
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], proportional_mb())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
        peak[0] = max(peak[0], proportional_mb())


def main() -> int:
    die_with_parent()
    order = json.loads(sys.argv[1])
    folder = Path(order["artifact"])
    seconds = float(order.get("seconds_max") or SECONDS_MAX)
    try:
        found = measure(folder, order["batch_size"], order["concurrency"], order["threads"], seconds)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({**to_dict(found), "artifact": artifact.read_manifest(folder)["id"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
