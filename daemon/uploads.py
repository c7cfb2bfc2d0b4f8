"""`relearn sync`: what trainings wrote for Weights & Biases while offline is uploaded, by wandb's own command line.

In a child, since the daemon's package loads no ML library. wandb leaves a mark beside each run that it has uploaded, by
which it is not uploaded again; a training leaves one in the folder of a run whose attempt has ended. A run without the
second is still being written, or was cut off and is written anew once its training goes on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from daemon.config import Config
from daemon.errors import RelearnError, UsageError

FINISHED = "finished"  # as pipeline/tracker.py writes it


def upload(config: Config) -> dict[str, Any]:
    """Names of the runs that were uploaded now, that had been before, and that are unfinished.

    Raises UsageError where there is no account, RelearnError where a run could not be uploaded.
    """
    runs = sorted(config.state.glob("wandb/offline-run-*/run-*.wandb"))
    finished = [run for run in runs if (run.parent / FINISHED).exists()]
    due = [run for run in finished if not is_uploaded(run)]
    words = _sync(due, config.state) if due else ""
    left = [run for run in due if not is_uploaded(run)]
    if left and "No API key" in words:
        raise UsageError(
            f"{_runs(len(left))} to upload, but there is no account of Weights & Biases: run `.venv/bin/wandb login`, "
            "or set WANDB_API_KEY (and WANDB_BASE_URL, for a server of your own)"
        )
    if left:
        raise RelearnError(f"{len(left)} of {_runs(len(due))} could not be uploaded: {words.strip()[-1000:]}")
    return {
        "uploaded": [name_of(run) for run in due],
        "uploaded_before": [name_of(run) for run in finished if run not in due],
        "unfinished": [name_of(run) for run in runs if run not in finished],
    }


def is_uploaded(run: Path) -> bool:
    return run.with_suffix(".wandb.synced").exists()


def name_of(run: Path) -> str:
    return run.stem.removeprefix("run-")


def describe(view: dict[str, Any]) -> str:
    """The answer for people."""
    said = f"{_runs(len(view['uploaded']))} uploaded"
    if before := view["uploaded_before"]:
        said += f", {len(before)} had been before"
    if unfinished := view["unfinished"]:
        said += f"; {len(unfinished)} unfinished: uploaded once the training has ended"
    return said


def _sync(runs: list[Path], state: Path) -> str:
    """What wandb said, whose own logs go below the state folder.

    Its exit status does not tell whether all are uploaded; the marks do.
    """
    command = [sys.executable, "-P", "-m", "wandb", "sync", *(str(run.parent) for run in runs)]
    environment = {**os.environ, "WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run(
        command,
        cwd=state,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        check=False,
    )
    return done.stdout


def _runs(number: int) -> str:
    return f"{number} run{'' if number == 1 else 's'}"
