"""The child that runs this package's stages: `python -P -m pipeline JOB.json`. Exit 0: all went well; 1: not."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import track
from pipeline.lifeline import die_with_parent
from policies.facts import Job, from_dict
from policies.job import Outputs, Report, Stage, run_stages

STAGES = ("adopt", "observe", "audit", "drift", "names", "sketch", "pixels", "tune", "train", "evaluate", "export")


def find_stage(name: str, threads: int, preload: bool) -> Stage:
    """The stage's function; its module, and what that needs, is imported when it runs."""

    def stage(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
        module = importlib.import_module(f"pipeline.{name}")
        more = {"preload": preload} if name == "pixels" else {}
        outputs: Outputs = module.run({"threads": threads, **inputs, **more}, earlier, report)
        return outputs

    return stage


def read_job(file: Path) -> Job:
    """Exits with a word on what is wrong with the file where it holds no job."""
    try:
        return from_dict(Job, json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        sys.exit(f"{file} holds no job: {type(error).__name__}: {error}")


def main() -> int:
    die_with_parent()
    # Whatever is written is written aside and renamed, so leaving at once loses no more than the running epoch.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print is no line of the protocol
    track.put_off()
    job = read_job(Path(sys.argv[1]))
    preload = any(order.name == "train" for order in job.stages)
    stages = {name: find_stage(name, job.threads, preload) for name in STAGES}
    return 0 if run_stages(job, stages, lambda line: print(line, file=protocol)) else 1


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # all is written; taking torch apart again takes a while, and may meet a thread that still loads it
