"""Whether a measurement means the same an hour later, and beside other work: twenty networks, three times each.

Untrained networks of timm whose latencies lie within three times of each other are exported and measured as the
daemon does it (the stage `measure`). Then the machine has an hour's other work: a network is trained and files are
written, read and deleted, in niced processes. Then all are measured again, and once more while another process keeps
one core busy without end.

    pair_order               of the pairs whose first figures differ by less than a fifth: share in the same order in
                             the second round; none where there is no such pair
    median_deviation         median over the networks of how far the second figure is from the first
    median_deviation_loaded  the same of the third, with a core burning

of the median latency, and `…_p95` and `…_throughput` of these; each after correction, as it counts in the daemon, and
`…_raw` as timed. Goals, of the median latency: .9, .05, .05.

It ends after the first round where that shows medians further than three times apart: the goals are about such as lie
closer.

GAP_MINUTES (60) and NETWORKS (20) in the environment make it shorter, to try it.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.results import publish
from daemon.children import CHECKOUT
from daemon.measurements import undisturbed
from deploy import build, measure
from pipeline import sketch
from policies.facts import Measurement, from_dict

GAP_MINUTES = float(os.environ.get("GAP_MINUTES", "60"))
NETWORKS = int(os.environ.get("NETWORKS", "20"))
SECONDS_MAX = 4.0
CLOSE = 0.2  # pairs that differ by less are counted
MOST_SPREAD = 3.0  # times that the slowest may take as long as the fastest
COMPARED = {"": "latency_p50_ms", "_p95": "latency_p95_ms", "_throughput": "throughput"}  # by the suffix of the result
# architecture@pixels: .57 to 1.53 ms on one core of an AMD EPYC (2.7 times), in steps as even as such networks allow.
CHOSEN = (
    "ghostnet_050@64",
    "mobilenetv3_small_050@168",
    "semnasnet_075@64",
    "mobilenetv3_small_100@128",
    "mobilenetv3_small_050@192",
    "mnasnet_small@128",
    "mobilenetv3_small_075@160",
    "test_byobnet@144",
    "mobilenetv3_small_075@176",
    "efficientnet_lite0@64",
    "test_byobnet@160",
    "mobilenetv3_small_075@192",
    "lcnet_035@224",
    "mobilenetv3_small_075@208",
    "test_efficientnet@144",
    "test_convnext@160",
    "test_efficientnet@152",
    "lcnet_050@224",
    "test_vit@176",
    "test_efficientnet@160",
)

TRAINING = """
import timm, torch
torch.set_num_threads(1)
net = timm.create_model("resnet10t", num_classes=10)
optimizer = torch.optim.AdamW(net.parameters())
while True:
    loss = torch.nn.functional.cross_entropy(net(torch.rand(32, 3, 96, 96)), torch.randint(10, (32,)))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""
FILES = """
import hashlib, os, pathlib, shutil, tempfile, time
folder = pathlib.Path(tempfile.mkdtemp(prefix="relearn-other-work-"))
try:
    while os.getppid() == PARENT:
        for number in range(500):
            (folder / str(number)).write_bytes(os.urandom(100_000))
        for file in folder.iterdir():
            hashlib.sha256(file.read_bytes()).digest()
            file.unlink()
        time.sleep(1)
finally:
    shutil.rmtree(folder, ignore_errors=True)
"""
BURNING = "while True: pass"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="relearn-measure-repeat-") as folder:
        artifacts = dict(draw(Path(folder), CHOSEN[:NETWORKS]))
        rounds = [measure_all(artifacts)]
        spread = find_spread(*correct(rounds))
        with other_work(TRAINING, FILES.replace("PARENT", str(os.getpid()))):
            time.sleep(GAP_MINUTES * 60)
        rounds.append(measure_all(artifacts))
        with other_work(BURNING):
            rounds.append(measure_all(artifacts))
    first, second, loaded = correct(rounds)
    rows = [
        {"round": number, "network": name, **cells(found[name])}
        for number, found in enumerate((first, second, loaded), 1)
        for name in found
    ]
    figures = {
        "networks": len(artifacts),
        "gap_minutes": GAP_MINUTES,
        "spread": round(spread, 2),
        **compare_all(first, second, loaded),
        "unsteady": sum(not found.steady for each in (first, second, loaded) for found in each.values()),
    }
    publish("measure_repeat", rows, figures)


def draw(folder: Path, chosen: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The artifact of each network, by its name with its pixels."""
    for name in chosen:
        architecture, side = name.split("@")
        model = folder / "models" / name
        drawn = {
            "architecture": architecture,
            "classes": 10,
            "height": int(side),
            "width": int(side),
            "model": str(model),
        }
        sketch.run({**drawn, "threads": 1}, {}, silent)
        built = {
            "engine": "onnxruntime",
            "precision": "fp32",
            "options": {"compute_capability": "", "max_batch_size": 1},
        }
        found = build.run({"model": str(model), "artifacts": str(folder / name), "pixels": None, **built}, {}, silent)
        yield name, Path(found["path"])


def silent(done: float, total: float, unit: str, **figures: Any) -> None:
    pass


def measure_all(artifacts: Mapping[str, Path]) -> dict[str, Measurement]:
    load = {"batch_size": 1, "concurrency": 1, "threads": 1, "seconds_max": SECONDS_MAX}
    return {
        name: from_dict(Measurement, measure.run({"artifact": str(path), **load}, {}, silent))
        for name, path in artifacts.items()
    }


@contextmanager
def other_work(*codes: str) -> Iterator[None]:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    nice = ["nice", "-n", "5"] if BURNING not in codes else []  # what burns is as dear to the scheduler as the measured
    children = [subprocess.Popen([*nice, sys.executable, "-P", "-c", code], env=environment) for code in codes]
    try:
        yield
    finally:
        for child in children:
            child.terminate()
            child.wait()


def correct(rounds: Sequence[Mapping[str, Measurement]]) -> list[dict[str, Measurement]]:
    """All rounds by how fast the reference runs undisturbed, as the daemon would have it."""
    quiet = undisturbed([found.reference for each in rounds for found in each.values()])
    return [{name: found.corrected(quiet) for name, found in each.items()} for each in rounds]


def find_spread(found: Mapping[str, Measurement]) -> float:
    """How many times as long the slowest takes as the fastest. Raises SystemExit where that is too much."""
    ranked = sorted(found, key=lambda name: found[name].latency_p50_ms)
    fastest, slowest = ranked[0], ranked[-1]
    spread = found[slowest].latency_p50_ms / found[fastest].latency_p50_ms
    if spread > MOST_SPREAD:
        raise SystemExit(
            f"{slowest} takes {spread:.2f} times as long as {fastest} on this machine, at most {MOST_SPREAD:g} is what "
            "the goals are about: put another in the place of one of them in CHOSEN"
        )
    return spread


def compare_all(
    first: Mapping[str, Measurement], second: Mapping[str, Measurement], loaded: Mapping[str, Measurement]
) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for (suffix, figure), raw in itertools.product(COMPARED.items(), (False, True)):
        read = partial(take, figure, raw=raw)
        told = compare(*({name: read(each[name]) for name in each} for each in (first, second, loaded)))
        found |= {f"{name}{suffix}{'_raw' if raw else ''}": value for name, value in told.items()}
    return found


def compare(one: Mapping[str, float], two: Mapping[str, float], three: Mapping[str, float]) -> dict[str, float | None]:
    """Of one figure of each network, in the three rounds."""
    close = [(a, b) for a, b in itertools.combinations(one, 2) if abs(one[a] - one[b]) < CLOSE * min(one[a], one[b])]
    same = sum((one[a] < one[b]) == (two[a] < two[b]) for a, b in close)
    return {
        "pairs": len(close),
        "pair_order": round(same / len(close), 3) if close else None,
        "median_deviation": round(statistics.median(abs(two[name] / one[name] - 1) for name in one), 4),
        "median_deviation_loaded": round(statistics.median(abs(three[name] / one[name] - 1) for name in one), 4),
    }


def take(figure: str, found: Measurement, *, raw: bool) -> float:
    value: float = found.raw[figure] if raw else getattr(found, figure)
    return value


def cells(found: Measurement) -> dict[str, Any]:
    return {
        "p50_ms": found.latency_p50_ms,
        "p50_ms_raw": found.raw["latency_p50_ms"],
        "half_interval": found.uncertainty["latency_p50_ms"],
        "p95_ms": found.latency_p95_ms,
        "p95_ms_raw": found.raw["latency_p95_ms"],
        "throughput": found.throughput,
        "throughput_raw": found.raw["throughput"],
        "slowdown": found.slowdown("latency_p50_ms"),
        "slowdown_throughput": found.slowdown("throughput"),
        "steady": found.steady,
        "repetitions": found.repetitions,
        "memory_mb": found.memory_mb,
    }


if __name__ == "__main__":
    main()
