"""The rounds of a tuning: what Ray gives up is gone on with. Ray's own loop is replaced: it loses nothing on cue."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import search
from pipeline.settings import TrainSettings
from pipeline.space import parse_space
from pipeline.trials import FAILED, FINISHED, Trials

SETTINGS = TrainSettings(epochs=2)


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    trials = Trials(tmp_path / "tuning")
    trials.open({})
    return trials


def run(trials: Trials, losses: dict[int, int], said: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Two trials; the trial of each number is given up so often. The trials of each round."""
    rounds: list[list[int]] = []

    def pretend(*_: Any, search_alg: Any, num_samples: int, callbacks: list[Any], **__: Any) -> None:
        (journal,) = callbacks
        rounds.append([])
        for index in range(num_samples):
            trial = SimpleNamespace(config=search_alg.suggest(f"t{len(rounds)}.{index}"), get_error=lambda: None)
            number = trial.config["number"]
            rounds[-1].append(number)
            if losses.get(number, 0) > 0:
                losses[number] -= 1
                journal.on_trial_error(0, [], trial)
            else:
                trial.last_result = {FINISHED: True}
                journal.on_trial_complete(0, [], trial)

    monkeypatch.setattr(search.tune, "run", pretend)
    space = parse_space({"learning_rate": {"min": 1e-4, "max": 1e-2, "log": True}}, SETTINGS)
    asked = search.Search(SETTINGS, space, 2, 1, 1, 1, 0.0, 1, 2.0, 0, {})
    search.search(asked, trials, said)
    return rounds


def test_a_trial_that_ray_gives_up_is_gone_on_with(
    trials: Trials, said: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(trials, {1: 2}, said, monkeypatch) == [[1, 2], [1], [1]]
    assert [trial.state for trial in trials.ended] == [FINISHED, FINISHED]
    assert capsys.readouterr().err.count("trial 1 was given up (its workers were lost): it is gone on with") == 2


def test_one_that_is_given_up_again_and_again_fails(trials: Trials, said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(trials, {2: 9}, said, monkeypatch) == [[1, 2], [2], [2]]
    assert [trial.state for trial in trials.all.values()] == [FINISHED, FAILED]
    assert trials.all[2].error == "its workers were lost"
