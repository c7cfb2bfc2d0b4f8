"""Jobs on a real Ray cluster of two nodes: what comes back, what ends with what, and what is lost with a worker."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.ray_guard import find_marked
from pipeline.ray_session import MARK
from pipeline.remote import needs
from policies.facts import Job, StageOrder
from policies.job import StageError

CHECKOUT = Path(__file__).resolve().parents[3]
SECONDS = 240.0  # a deadline, for a machine that is busy with other things
EPOCHS, TRIALS = 10, 3
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
small = {"num_cpus": 1, "object_store_memory": 80 << 20}
head = {**small, "node_ip_address": "127.0.0.1", "include_dashboard": False, "temp_dir": sys.argv[1]}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(**small)
print(cluster.address, flush=True)
sys.stdin.read()
"""
EventuallyFunction = Callable[..., None]


class Cluster:
    """Two nodes with a processor each, on the loopback address; the environment that its drivers need."""

    def __init__(self, folder: str) -> None:
        self.mark = secrets.token_hex(16)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(CHECKOUT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**self.environment, MARK: self.mark},
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, "the cluster did not start"

    def workers(self, title: str) -> list[psutil.Process]:
        """Its workers that run what has this title."""
        found = []
        for number in find_marked(self.mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(number)
                if process.cmdline() and process.cmdline()[0].startswith(f"ray::{title}"):
                    found.append(process)
        return found

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        while found := find_marked(self.mark):
            for number in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = tempfile.mkdtemp(prefix="relearn-test-", dir="/tmp")  # short: sockets lie in it
    cluster = Cluster(folder)
    yield cluster
    cluster.end()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def send(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Sends a job to the cluster, as the daemon would: `send({"stage": inputs}, earlier={…})`."""
    started: list[subprocess.Popen[str]] = []

    def run(stages: dict[str, Any], earlier: Any = None, address: str = cluster.address) -> subprocess.Popen[str]:
        orders = [{"name": name, "inputs": inputs} for name, inputs in stages.items()]
        job = {"token": "t1", "package": "pipeline", "stages": orders, "earlier": earlier or {}, "threads": 1}
        (tmp_path / "job.json").write_text(json.dumps(job, default=str))
        started.append(
            subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.remote", address, "pipeline", str(tmp_path / "job.json"), "5"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=cluster.environment,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def waiting(keep: Any, write_snapshot: Any, tmp_path: Path) -> dict[str, Any]:
    """A job whose child waits for ever, for an image that is a pipe."""
    sha = keep(tmp_path / "store", b"")
    place = tmp_path / "store" / sha[:2] / sha
    place.unlink()
    os.mkfifo(place)
    snapshot = write_snapshot(tmp_path / "own.snapshot", [(sha, 0, 0)])
    place_of = {"store": tmp_path / "store", "cache": tmp_path / "cache", "snapshot": snapshot}
    return {"pixels": {**place_of, "height": 16, "width": 16, "resize": "stretch"}}


def children(job: Path) -> list[psutil.Process]:
    """The processes that run the job's child, on whichever node."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(job) in words and "pipeline" in words:
            found.append(process)
    return found


def test_a_worker_that_is_killed_in_the_middle_of_a_tuning_loses_nothing(
    cluster: Cluster,
    send: Callable[..., subprocess.Popen[str]],
    colours: Any,
    epochs_of: Callable[[Path], list[dict[str, Any]]],
    eventually: EventuallyFunction,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "tuning"
    order = {
        "folder": str(folder),
        "architecture": "test_vit",
        "weights": "none",
        "height": 32,
        "width": 32,
        "settings": {"epochs": EPOCHS, "batch_size": 16, "learning_rate": 2e-3, "accelerator": "cpu"},
        "space": {"learning_rate": {"min": 1e-3, "max": 1e-2, "log": True}},
        "trials": TRIALS,
        "concurrent": 1,
        "grace_epochs": EPOCHS,
        "reduction": 2.0,
        "seed": 1,
        "address": cluster.address,
    }
    process = send({"tune": order}, {"pixels": colours.pixels["good"]})
    run = folder / "trials" / "1"
    eventually(lambda: len(epochs_of(run)) >= 2 or process.poll() is not None, SECONDS)
    assert process.poll() is None, process.communicate()
    victims = cluster.workers("TrialRun")
    for victim in victims:
        victim.kill()
    before = epochs_of(run)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    outputs = json.loads(out.splitlines()[-1])["outputs"]
    assert victims and len(before) < EPOCHS
    assert [(trial["number"], trial["state"], trial["epochs"]) for trial in outputs["trials"]] == [
        (number, "finished", EPOCHS) for number in range(1, TRIALS + 1)
    ]
    after = epochs_of(run)
    assert after[: len(before)] == before  # with their times: none was run again
    assert [epoch["epoch"] for epoch in after] == list(range(1, EPOCHS + 1))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_runs_on_the_cluster_ends_with_who_sent_it(
    number: signal.Signals,
    send: Callable[..., subprocess.Popen[str]],
    waiting: dict[str, Any],
    eventually: EventuallyFunction,
    tmp_path: Path,
) -> None:
    process = send(waiting)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()).items() >= {"token": "t1", "event": "started"}.items()
    running = [child for child in children(tmp_path / "job.json") if child.pid != process.pid]
    assert running
    process.send_signal(number)
    assert process.wait(SECONDS) == (-signal.SIGKILL if number == signal.SIGKILL else 143)
    eventually(lambda: not any(child.is_running() for child in running), SECONDS)


def test_a_worker_that_is_lost_is_a_failed_attempt(
    cluster: Cluster, send: Callable[..., subprocess.Popen[str]], waiting: dict[str, Any]
) -> None:
    process = send(waiting)
    assert process.stdout is not None and process.stdout.readline()
    for worker in cluster.workers("run_child"):
        worker.kill()
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith(f"the job was lost on the cluster at {cluster.address}: WorkerCrashedError")
    assert "Traceback" not in err


def test_a_child_that_fails_does_so_from_afar(
    send: Callable[..., subprocess.Popen[str]], waiting: dict[str, Any]
) -> None:
    out, err = send({"pixels": {**waiting["pixels"], "height": "tall"}}).communicate(timeout=SECONDS)
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["started"]
    assert "Traceback" in err and "ValueError" in err


def test_where_no_cluster_is_it_says_so(send: Callable[..., subprocess.Popen[str]], waiting: dict[str, Any]) -> None:
    process = send(waiting, address="127.0.0.1:9")
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("no Ray cluster can be joined at 127.0.0.1:9: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("stages", "threads", "nodes", "wanted"),
    [
        (["train"], 3, [{"CPU": 4.0}], {"num_cpus": 3.0, "num_gpus": 0.0}),
        (["train"], 30, [{"CPU": 4.0}, {"CPU": 8.0}, {}], {"num_cpus": 8.0, "num_gpus": 0.0}),
        (["pixels", "train"], 2, [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}], {"num_cpus": 2.0, "num_gpus": 1.0}),
        (["pixels"], 2, [{"CPU": 4.0, "GPU": 1.0}], {"num_cpus": 2.0, "num_gpus": 0.0}),
        (["tune"], 2, [{"CPU": 2.0}], {"num_cpus": 0.0, "num_gpus": 0.0}),  # its trials take them
    ],
)
def test_a_job_asks_for_no_more_than_a_node_has(
    stages: list[str], threads: int, nodes: list[dict[str, float]], wanted: dict[str, float]
) -> None:
    job = Job("t1", "pipeline", tuple(StageOrder(name, {}) for name in stages), threads=threads)
    assert needs(job, nodes) == wanted


def test_a_cluster_without_processors_is_told() -> None:
    with pytest.raises(StageError, match="no node with a processor"):
        needs(Job("t1", "pipeline", ()), [{"memory": 1.0}])
