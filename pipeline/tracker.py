"""The process that tells Weights & Biases of trainings: `python -P -m pipeline.tracker`, with lines on standard input.

    {"begin": {"mode", "project", "folder", "group", "id", "name", "config"}}   a run
    {"log": {"epoch", …}}      an epoch of it
    {"summary": {…}}           what came of it
    {"end": 0}                 the run's exit status

Standard input that ends within a run is a training that was killed: nobody finishes its run. The next attempt tells all
of it from the first epoch, so that what is left of it offline, which may have been cut off anywhere, is removed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pipeline.lifeline import die_with_parent
from pipeline.track import say

FINISHED = "finished"  # a file in an offline run's folder: the attempt has ended, the run can be uploaded
SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "disable_job_creation": True,
    "init_timeout": 30.0,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


def main() -> int:
    die_with_parent()
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # read when it is loaded; it would call home, offline too
    lines: SimpleQueue[str | None] = SimpleQueue()
    threading.Thread(target=_listen, args=[lines], daemon=True).start()
    try:
        _tell(json.loads(line) for line in iter(lines.get, None))
    except Exception as error:  # whatever it is, it is not the training's
        say(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
        return 1
    return 0


def _listen(lines: SimpleQueue[str | None]) -> None:
    """Takes what is said at once: who says it never waits."""
    for line in sys.stdin:
        lines.put(line)
    lines.put(None)


def _tell(lines: Iterator[Mapping[str, Any]]) -> None:
    import wandb

    run: Any = None
    for line in lines:
        if "begin" in line:
            run = _begin(line["begin"])
        elif "log" in line:
            # What an online run has had of an earlier attempt it gets no more.
            if line["log"]["epoch"] >= run.step:
                run.log(line["log"], step=line["log"]["epoch"])
        elif "summary" in line:
            run.summary.update(line["summary"])
        elif "end" in line:
            run.finish(exit_code=line["end"])
            if run.offline:
                Path(run.settings.sync_dir, FINISHED).touch()
    wandb.teardown()  # its service is a process of its own


def _begin(order: Mapping[str, Any]) -> Any:
    import wandb

    place = Path(order["folder"])
    place.mkdir(parents=True, exist_ok=True)
    for earlier in place.glob(f"wandb/offline-run-*-{order['id']}"):
        shutil.rmtree(earlier, ignore_errors=True)
    return wandb.init(
        id=order["id"],
        mode=order["mode"],
        resume="allow" if order["mode"] == "online" else None,
        project=order["project"],
        group=order["group"],
        name=order["name"],
        config=order["config"],
        dir=place,
        reinit="create_new",
        settings=wandb.Settings(**SETTINGS),
    )


if __name__ == "__main__":
    sys.exit(main())
