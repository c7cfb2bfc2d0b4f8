"""How a child process runs the stages of a job and speaks of them: the one protocol of both packages.

A child prints one JSON object a line:

    {"token": …, "stage": "train", "event": "started"}
    {"token": …, "stage": "train", "event": "progress", "done": 3, "total": 8, "unit": "epoch", …}
    {"token": …, "stage": "train", "event": "finished", "outputs": {…}}
    {"token": …, "stage": "train", "event": "failed", "error": "…", "sample": "…" where it is about one}

Pure: what writes the lines, and where to, is handed in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from policies.facts import Job


class Report(Protocol):
    """Says how far a stage has come; further figures (loss, accuracy, seconds_left) as keywords."""

    def __call__(self, done: float, total: float, unit: str, **figures: Any) -> None: ...


Outputs = dict[str, Any]
Stage = Callable[[Mapping[str, Any], Mapping[str, Mapping[str, Any]], Report], Outputs]
"""A stage: (inputs, outputs of the earlier stages by name, report) -> outputs."""


class StageError(Exception):
    """A stage cannot do what it was asked, for a reason that its message tells a person.

    sample: the SHA-256 (hex) of the one that it is about, if any, whose file may be read again.
    """

    def __init__(self, message: str, *, sample: str | None = None) -> None:
        super().__init__(message)
        self.sample = sample


def run_stages(job: Job, stages: Mapping[str, Stage], say: Callable[[str], None]) -> bool:
    """Runs the job's stages in order; each gets the outputs of those before it. True: all went well.

    A stage whose outputs hold the key "stop" ends the job early without an error (for instance a network that
    turned out too large for its target before it was trained). A `StageError` is said and ends the job; any
    other exception is a bug and is left to the caller, with its traceback.
    """

    def speak(stage: str, event: str, **more: Any) -> None:
        say(json.dumps({"token": job.token, "stage": stage, "event": event, **more}))

    earlier = {name: dict(outputs) for name, outputs in job.earlier.items()}
    for order in job.stages:
        name = order.name
        speak(name, "started")

        def report(done: float, total: float, unit: str, *, _name: str = name, **figures: Any) -> None:
            speak(_name, "progress", done=done, total=total, unit=unit, **figures)

        try:
            outputs = stages[name](order.inputs, earlier, report)
        except StageError as error:
            speak(name, "failed", error=str(error), **({"sample": error.sample} if error.sample else {}))
            return False
        speak(name, "finished", outputs=outputs)
        earlier[name] = outputs
        if "stop" in outputs:
            return True
    return True
