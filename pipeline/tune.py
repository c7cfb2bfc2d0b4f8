"""The stage that tunes: which settings of `[train]` give the lowest loss on the tune samples.

Ray Tune runs the trials, each a training of the house; asynchronous successive halving stops those that fall behind,
after so many epochs; Bayesian optimisation by scikit-optimize says what to try next. Resumable at any kill: see
trials.py for what is on disk.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import track
from pipeline.pixels import read_pixels
from pipeline.ray_session import nodes, session
from pipeline.settings import TrainSettings, parse_settings
from pipeline.space import Space, parse_space
from pipeline.trials import FAILED, Trials
from policies.job import Outputs, Report, StageError

THREADS = 2  # of one trial, where the number of concurrent ones is not set
ROUNDS = 4  # at least, one after another: of trials that all run at once none learns from another


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """The stage. Inputs beside those of a training: "folder" (of this tuning), "space", "trials" (in all),
    "concurrent" (0: as the processors allow), "grace_epochs" and "reduction" of successive halving, "seed",
    "address" (of a Ray cluster; empty: this machine).

    Outputs: "best" (dotted setting -> value), its "score" (`tune_loss`: lower is better), "accuracy" and "run" folder,
    all "trials", "seconds". Raises StageError where no trial finished.
    """
    started = time.monotonic()
    pixels = Path(earlier["pixels"]["pixels"])
    settings = parse_settings(inputs["settings"])
    snapshot = _check(pixels)
    trials = Trials(Path(inputs["folder"]))
    if said := trials.open(_recipe(inputs, settings, snapshot)):
        print(said, file=sys.stderr)
    space = parse_space(inputs["space"], settings)
    if len(trials.ended) < int(inputs["trials"]):
        _search(inputs, pixels, settings, space, trials, report)
    shutil.rmtree(trials.folder / "ray", ignore_errors=True)
    _track(inputs.get("track"), trials)
    return _outputs(trials, time.monotonic() - started)


def _search(
    inputs: Mapping[str, Any], pixels: Path, settings: TrainSettings, space: Space, trials: Trials, report: Report
) -> None:
    asked, address, threads = int(inputs["trials"]), str(inputs["address"]), int(inputs["threads"])
    here = int(inputs["concurrent"]) or _fitting(threads, asked)
    order = {
        **{key: inputs[key] for key in ("architecture", "weights", "height", "width")},
        "settings": dataclasses.asdict(settings),
        "folder": str(trials.folder),
        "pixels": str(pixels),
    }
    with session(address, slots=here):
        from pipeline.search import Search, search

        counts = [int(node["CPU"]) for node in nodes() if node.get("CPU")] if address else [threads]
        if not counts:
            raise StageError(f"the cluster at {address} has no node with a processor to give away")
        gpus = 0 if settings.accelerator == "cpu" else int(sum(node.get("GPU", 0) for node in nodes()))
        concurrent = int(inputs["concurrent"]) or gpus or _fitting(sum(counts), asked)
        each = max(1, min(sum(counts) // concurrent, *counts))
        _quieten()
        search(
            Search(
                settings=settings,
                space=space,
                trials=asked,
                concurrent=concurrent,
                threads=each,
                processors=each if address else 1,  # a Ray of our own has as many as there may be trials at once
                gpus=min(1.0, gpus / concurrent),
                grace_epochs=int(inputs["grace_epochs"]),
                reduction=float(inputs["reduction"]),
                seed=int(inputs["seed"]),
                order={
                    **order,
                    "settings": dataclasses.asdict(settings),
                    "folder": str(trials.folder),
                    "pixels": str(pixels),
                },
            ),
            trials,
            report,
        )


def _track(order: track.Order | None, trials: Trials) -> None:
    """Each trial is a run of its own, told when all have ended: none waits for that."""
    with track.tracking(order) as tracker:
        for trial in trials.ended:
            folder = trials.run(trial.number)
            if folder.recipe.exists():
                with tracker.run(folder.read_recipe(), folder.path) as tracked:
                    for entry in trials.epochs(trial.number):
                        tracked.log(entry)
                    tracked.conclude(trial.plain())


def _fitting(threads: int, trials: int) -> int:
    """How many trials run at once on so many threads."""
    return max(1, min(threads // THREADS, trials // ROUNDS))


def _recipe(inputs: Mapping[str, Any], settings: TrainSettings, snapshot: str) -> dict[str, Any]:
    """What a tuning depends on; its number of trials may grow."""
    kept = {key: inputs[key] for key in ("architecture", "weights", "height", "width", "space")}
    return {**kept, "settings": dataclasses.asdict(settings), "snapshot": snapshot}


def _check(file: Path) -> str:
    """The snapshot's id. Raises StageError where nothing can be tuned on it."""
    pixels = read_pixels(file)
    if not len(pixels.select("tune")):
        raise StageError(f"tuning needs tune samples; the snapshot {pixels.snapshot} has none: see [roles]")
    return pixels.snapshot


def _outputs(trials: Trials, seconds: float) -> Outputs:
    best = trials.best
    if best is None:
        reasons = {trial.error for trial in trials.ended if trial.state == FAILED and trial.error}
        raise StageError(f"none of {len(trials.ended)} trials finished: {'; '.join(sorted(reasons)) or 'all stopped'}")
    return {
        "best": best.settings,
        "score": best.tune_loss,
        "accuracy": best.tune_accuracy,
        "run": str(trials.run(best.number).path),
        "trials": [trial.plain() for trial in trials.ended],
        "seconds": seconds,
    }


def _quieten() -> None:
    for name in ("ray", "ray.tune", "ray.air"):
        logging.getLogger(name).setLevel(logging.ERROR)
