"""The folder of a tuning: which trials there are, how they ended, and what of them is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.trials import FAILED, FINISHED, STOPPED, Trials

RECIPE = {"architecture": "test_vit"}


def train(trials: Trials, number: int, *losses: float) -> None:
    """What a training leaves in its run folder."""
    run = trials.run(number)
    run.path.mkdir(exist_ok=True)
    run.checkpoint.write_bytes(b"all state")
    run.weights.write_bytes(b"weights")
    epochs: list[dict[str, Any]] = [
        {"epoch": index + 1, "tune_loss": loss, "tune_accuracy": 1 - loss, "seconds": 2.0}
        for index, loss in enumerate(losses)
    ]
    run.history.write_text(json.dumps({"format": 1, "attempts": 1, "epochs": epochs}))


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    trials = Trials(tmp_path / "tuning")
    assert trials.open(RECIPE) is None
    return trials


def test_a_trial_is_on_disk_before_it_starts_and_when_it_has_ended(trials: Trials) -> None:
    assert trials.begin({"epochs": 3}) == 1
    again = Trials(trials.folder)
    assert again.open(RECIPE) is None
    assert [(trial.number, trial.settings, trial.state) for trial in again.running] == [(1, {"epochs": 3}, "running")]
    train(trials, 1, 0.5, 0.25, 0.3)
    ended = again.end(1, FINISHED)
    assert (ended.epochs, ended.tune_loss, ended.tune_accuracy, ended.seconds) == (3, 0.25, 0.75, 6.0)
    third = Trials(trials.folder)
    third.open(RECIPE)
    assert third.ended == [ended] and third.running == []


def test_a_point_that_was_begun_keeps_its_number(trials: Trials) -> None:
    assert [trials.begin({"epochs": 3}), trials.begin({"epochs": 4}), trials.begin({"epochs": 3})] == [1, 2, 1]


def test_the_best_is_the_best_of_those_that_finished(trials: Trials) -> None:
    for number, (state, loss) in enumerate([(FINISHED, 0.5), (STOPPED, 0.1), (FINISHED, 0.4), (FAILED, 0.2)], start=1):
        trials.begin({"epochs": number})
        train(trials, number, loss)
        trials.end(number, state, "it broke" if state == FAILED else None)
    assert trials.best is not None and trials.best.number == 3
    assert ["error" in trial.plain() for trial in trials.ended] == [False, False, False, True]


def test_of_the_ended_ones_the_best_alone_keeps_its_weights(trials: Trials) -> None:
    for number, loss in enumerate([0.5, 0.4, 0.6], start=1):
        trials.begin({"epochs": number})
        train(trials, number, loss)
    trials.begin({"epochs": 9})
    train(trials, 4, 0.9)  # it runs on
    for number in (1, 2, 3):
        trials.end(number, FINISHED)
    assert [trials.run(number).weights.exists() for number in (1, 2, 3, 4)] == [False, True, False, True]
    assert [trials.run(number).checkpoint.exists() for number in (1, 2, 3, 4)] == [False, True, False, True]
    assert all(trials.run(number).history.exists() for number in (1, 2, 3, 4))


def test_a_trial_that_failed_before_its_first_epoch_has_no_loss(trials: Trials) -> None:
    trials.begin({"epochs": 3})
    ended = trials.end(1, FAILED, "no such optimizer")
    assert (ended.epochs, ended.tune_loss, ended.error) == (0, None, "no such optimizer")
    assert trials.best is None


def test_another_recipe_starts_anew_and_says_so(trials: Trials) -> None:
    trials.begin({"epochs": 3})
    other = Trials(trials.folder)
    said = other.open({"architecture": "test_resnet"})
    assert said is not None and str(trials.folder) in said and "starting anew" in said
    assert other.all == {}
