"""A job on a Ray cluster, not in a child of the daemon: `python -P -m pipeline.remote ADDRESS PACKAGE JOB [NICE]`.

To who starts it, it is the child: it runs `python -P -m PACKAGE JOB` on one of the cluster's nodes, passes on what that
says as it says it, and ends as that ends. When it is gone, however it went, so is what it ran. A process or node that
is lost on the way is a failed attempt. The cluster's nodes, of which this machine is one, have the same environment and
see the same files under the same paths.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.__main__ import read_job
from pipeline.lifeline import die_with_parent
from pipeline.ray_session import nodes, session
from policies.facts import Job
from policies.job import StageError

LAST_WORDS = 40  # lines of stderr that are kept


def run_child(command: Sequence[str], nice: int) -> Iterator[tuple[str, Any]]:
    """On the node: each line that the child says, ("said", line), then ("ended", (exit status, last words))."""
    more = max(0, nice - os.nice(0))  # Ray's workers are nicer than others already, unless the cluster says otherwise
    process = subprocess.Popen(
        ["nice", "-n", str(more), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None and process.stderr is not None
    words: deque[str] = deque(maxlen=LAST_WORDS)
    gather = threading.Thread(target=words.extend, args=[process.stderr], daemon=True)
    gather.start()
    for line in process.stdout:
        yield "said", line
    status = process.wait()
    gather.join(1)
    yield "ended", (status, "".join(words))


def needs(job: Job, resources: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The processors and GPUs that the job takes of one of the nodes. Raises StageError where none could ever run it.

    No more than the largest node has; and none where its trials will ask for themselves: it would wait for its own.
    """
    most = max((found.get("CPU", 0.0) for found in resources), default=0.0)
    if not most:
        raise StageError("the cluster has no node with a processor to give away")
    stages = {order.name for order in job.stages}
    trains = "train" in stages and any(found.get("GPU", 0) for found in resources)
    return {"num_cpus": 0.0 if "tune" in stages else min(float(job.threads), most), "num_gpus": 1.0 if trains else 0.0}


def run(address: str, command: Sequence[str], nice: int, job: Job, protocol: Any) -> int:
    """Runs the job; its exit status, 128 and the number where a signal ended it."""
    with session(address, slots=0):
        import ray

        task: Any = ray.remote(run_child).options(num_returns="streaming", max_retries=0, **needs(job, nodes()))
        status = 1
        for reference in task.remote(list(command), nice):
            event, said = ray.get(reference)
            if event == "said":
                protocol.write(said)
                protocol.flush()
            else:
                status, words = said
                sys.stderr.write(words)
        return int(status) if status >= 0 else 128 - int(status)


def main() -> int:
    die_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))  # the cluster ends what a driver that is gone has started
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what Ray prints is no line of the protocol
    address, package, file, *nice = sys.argv[1:]
    job = read_job(Path(file))
    command = [sys.executable, "-P", "-m", package, file]
    try:
        return run(address, command, int(nice[0]) if nice else 0, job, protocol)
    except StageError as error:
        print(error, file=sys.stderr)
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "ray":
            raise
        first = str(error).strip().partition("\n")[0]
        print(f"the job was lost on the cluster at {address}: {type(error).__name__}: {first}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
