"""The trials of a tuning, run on a Ray that is there: scikit-optimize proposes, ASHA stops, the folder remembers."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from pipeline.settings import TrainSettings
from pipeline.skopt_searcher import SkoptSearcher
from pipeline.space import Space, apply
from pipeline.trial import EPOCH, ERROR, TrialRun
from pipeline.trials import FAILED, FINISHED, METRIC, STOPPED, Trials
from policies.job import Report

WORKERS_LOST = 3  # of one trial, before Ray gives it up
GIVEN_UP = 3  # times, before it fails: Ray gives a trial up at once whose worker dies between two trials


@dataclass(frozen=True)
class Search:
    """What a tuning is asked to do."""

    settings: TrainSettings
    space: Space
    trials: int  # in all
    concurrent: int
    threads: int  # of one trial
    processors: int  # of one trial, as Ray counts them
    gpus: float  # of one trial
    grace_epochs: int
    reduction: float
    seed: int
    order: Mapping[str, Any]  # what each trial is told besides its point


def search(asked: Search, trials: Trials, report: Report) -> None:
    """Runs what is left of the tuning's trials to their ends, which are then in `trials`."""
    given_up: Counter[int] = Counter()
    while (left := asked.trials - len(trials.ended)) > 0:
        before = given_up.total()
        _run(asked, trials, report, left, given_up)
        if len(trials.ended) == asked.trials - left and given_up.total() == before:
            return  # nothing is left to propose


def _run(asked: Search, trials: Trials, report: Report, left: int, given_up: Counter[int]) -> None:
    searcher = _searcher(asked, trials)
    resources = {"cpu": asked.processors, **({"gpu": asked.gpus} if asked.gpus else {})}
    tune.run(  # not tune.Tuner, which would pickle the callbacks, and what the report writes to with them
        TrialRun,
        name="ray",
        config={"order": {**asked.order, "threads": asked.threads}},
        num_samples=left,
        max_concurrent_trials=asked.concurrent,
        search_alg=searcher,
        scheduler=_scheduler(asked, trials),
        resources_per_trial=resources,
        reuse_actors=True,
        max_failures=WORKERS_LOST,
        raise_on_failed_trial=False,
        callbacks=[Journal(trials, asked, report, given_up)],
        storage_path=str(trials.folder),
        trial_dirname_creator=lambda trial: str(trial.trial_id),
        verbose=0,
    )


def _searcher(asked: Search, trials: Trials) -> SkoptSearcher:
    """Knows how the ended trials ended; hands out the unfinished ones first, or at the very start the defaults."""
    default = asked.space.find(asked.settings)
    waiting = [trial.settings for trial in trials.running]
    if default is not None and not trials.all:
        waiting.append(default)
    spread = max(3, min(2 * len(asked.space.axes), asked.trials // 3))
    searcher = SkoptSearcher(asked.space, trials.begin, waiting=waiting, seed=asked.seed, spread=spread)
    for trial in trials.ended:
        searcher.add_evaluated_point(trial.settings, trial.tune_loss, trial.state == FAILED, trial.state == STOPPED)
    return searcher


def _scheduler(asked: Search, trials: Trials) -> ASHAScheduler:
    """Asynchronous successive halving (Li et al. 2020), which has seen the epochs of the trials that have ended."""
    longest = max(apply(asked.settings, {"epochs": most}).epochs for most in _most_epochs(asked))
    scheduler = ASHAScheduler(
        time_attr=EPOCH,
        metric=METRIC,
        mode="min",
        max_t=longest,
        grace_period=min(asked.grace_epochs, longest),
        reduction_factor=asked.reduction,
    )
    nobody: Any = None  # a controller, of which it asks nothing
    for trial in trials.ended:
        known: Any = SimpleNamespace(trial_id=f"earlier {trial.number}")  # all that it asks of a trial
        scheduler.on_trial_add(nobody, known)
        best = float("inf")
        for epoch in trials.epochs(trial.number):
            best = min(best, epoch["tune_loss"])
            scheduler.on_trial_result(nobody, known, {EPOCH: epoch["epoch"], METRIC: best})
    return scheduler


def _most_epochs(asked: Search) -> list[int]:
    """The numbers of epochs among which the largest that a trial can have is."""
    for axis in asked.space.axes:
        if axis.name == "epochs":
            return list(axis.choices) or [int(axis.high)]
    return [asked.space.fixed.get("epochs", asked.settings.epochs)]


class Journal(tune.Callback):
    """Writes down how each trial ended, as it ends, and reports how far the tuning has come."""

    def __init__(self, trials: Trials, asked: Search, report: Report, given_up: Counter[int]) -> None:
        self.trials, self.asked, self.report, self.given_up = trials, asked, report, given_up
        self.shares: dict[int, float] = {}  # of the epochs of a running trial, by number

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any) -> None:
        if EPOCH in result:
            total = apply(self.asked.settings, trial.config["point"]).epochs
            self.shares[trial.config["number"]] = result[EPOCH] / total
        self._tell()

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        said = trial.last_result
        if ERROR in said:
            self._end(trial, FAILED, said[ERROR])
        else:
            self._end(trial, FINISHED if said.get(FINISHED) else STOPPED)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Ray calls this when it has given the trial up, not when it tries again. The next round goes on with it."""
        number = trial.config["number"]
        said = str(trial.get_error() or "its workers were lost").strip().splitlines()[-1]
        self.given_up[number] += 1
        if self.given_up[number] == GIVEN_UP:
            self._end(trial, FAILED, said)
        else:
            print(f"trial {number} was given up ({said}): it is gone on with", file=sys.stderr)

    def _end(self, trial: Any, state: str, error: str | None = None) -> None:
        self.trials.end(trial.config["number"], state, error)
        self.shares.pop(trial.config["number"], None)
        self._tell()

    def _tell(self) -> None:
        best = self.trials.best
        self.report(
            round(min(len(self.trials.ended) + sum(self.shares.values()), self.asked.trials), 3),
            self.asked.trials,
            "trial",
            best_loss=best and best.tune_loss,
            best_accuracy=best and best.tune_accuracy,
            best_settings=best and best.settings,
        )
