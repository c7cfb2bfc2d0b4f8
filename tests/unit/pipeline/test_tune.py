"""Tuning on a Ray of its own: what it finds, that a kill costs nothing, and that nothing outlives it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline import train, tune
from pipeline.ray_guard import find_marked
from pipeline.ray_session import MARK
from policies.job import StageError

Start = Callable[..., Any]
EpochsOf = Callable[[Path], list[dict[str, Any]]]
EPOCHS, TRIALS = 8, 4
DEFAULT = {"learning_rate": 0.002, "batch_size": 16}


def inputs(folder: Path, **more: Any) -> dict[str, Any]:
    """A tuning of few epochs; in half of its space no training learns anything."""
    return {
        "folder": str(folder),
        "architecture": "test_vit",
        "weights": "none",
        "height": 32,
        "width": 32,
        "settings": {"epochs": EPOCHS, "accelerator": "cpu", **DEFAULT},
        "space": {
            "learning_rate": {"min": 1e-7, "max": 1e-1, "log": True},
            "batch_size": {"choices": [16, 32]},
        },
        "trials": TRIALS,
        "concurrent": 1,
        "grace_epochs": 2,
        "reduction": 2.0,
        "seed": 1,
        "address": "",
        "threads": 1,
        "track": {"mode": "offline", "project": "of a test", "folder": f"{folder}-tracked", "group": "cycle 1"},
        **more,
    }


def trials_of(folder: Path) -> dict[int, dict[str, Any]]:
    found = [json.loads(file.read_text()) for file in (folder / "trials").glob("*.json")]
    return {trial["number"]: trial for trial in found}


def mark_of(process: int) -> str:
    """What all carries that this child's Ray consists of."""
    for child in psutil.Process(process).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ends meanwhile
            if mark := child.environ().get(MARK):
                return mark
    raise AssertionError("the child has started no Ray")


@pytest.fixture(scope="module")
def killed(colours: Any, start: Start, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tuning whose child is killed in the middle of its second trial, then run again to its end."""
    folder = tmp_path_factory.mktemp("tuning")
    seen = SimpleNamespace(folder=folder)
    child = start({"tune": inputs(folder)}, {"pixels": colours.pixels["good"]})

    def second_trial_runs() -> bool:
        history = folder / "trials" / "2" / "history.json"
        return history.exists() and len(json.loads(history.read_text())["epochs"]) >= 1

    child.until(second_trial_runs)
    seen.mark = mark_of(child.process.pid)
    seen.processes = find_marked(seen.mark)
    seen.listening = [
        connection.laddr.ip
        for process in seen.processes
        for connection in psutil.Process(process).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    seen.sessions = [
        word.partition("=")[2]
        for process in seen.processes
        for word in psutil.Process(process).cmdline()
        if word.startswith("--session-dir=")
    ]
    seen.first = child.stop(signal.SIGKILL)
    seen.before = trials_of(folder)
    seen.epochs = {number: (folder / f"trials/{number}/history.json").read_bytes() for number in (1, 2)}
    seen.second = start({"tune": inputs(folder)}, {"pixels": colours.pixels["good"]}).end()
    return seen


def outputs(ended: Any) -> dict[str, Any]:
    assert ended.lines and ended.lines[-1]["event"] == "finished", ended.words
    return dict(ended.lines[-1]["outputs"])


def test_nothing_that_ray_started_survives_its_child(killed: Any, eventually: Callable[..., None]) -> None:
    assert killed.first.status == -signal.SIGKILL
    assert len(killed.processes) >= 3  # its servers and a worker
    assert killed.sessions
    eventually(lambda: not find_marked(killed.mark))
    eventually(lambda: not any(Path(session).parent.exists() for session in killed.sessions))


def test_it_listens_on_the_loopback_address_alone(killed: Any) -> None:
    assert killed.listening
    assert {ip.removeprefix("::ffff:") for ip in killed.listening} == {"127.0.0.1"}


def test_what_had_ended_is_not_run_again(killed: Any) -> None:
    assert killed.before[1]["state"] == "finished" and killed.before[2]["state"] == "running"
    assert trials_of(killed.folder)[1] == killed.before[1]
    assert (killed.folder / "trials/1/history.json").read_bytes() == killed.epochs[1]


def test_what_had_not_ended_goes_on_from_its_last_epoch(killed: Any, epochs_of: EpochsOf) -> None:
    assert trials_of(killed.folder)[2]["settings"] == killed.before[2]["settings"]
    before, after = json.loads(killed.epochs[2])["epochs"], epochs_of(killed.folder / "trials" / "2")
    assert after[: len(before)] == before
    assert [epoch["epoch"] for epoch in after] == list(range(1, len(after) + 1))


def test_it_tells_all_trials_and_the_best_of_those_that_finished(killed: Any) -> None:
    found = outputs(killed.second)
    assert [trial["number"] for trial in found["trials"]] == list(range(1, TRIALS + 1))
    assert {trial["state"] for trial in found["trials"]} <= {"finished", "stopped"}
    finished = [trial for trial in found["trials"] if trial["state"] == "finished"]
    best = min(finished, key=lambda trial: trial["tune_loss"])
    assert found["trials"][0]["settings"] == DEFAULT
    assert (found["best"], found["score"], found["accuracy"]) == (
        best["settings"],
        best["tune_loss"],
        best["tune_accuracy"],
    )
    assert len({str(trial["settings"]) for trial in found["trials"]}) == TRIALS


def test_each_trial_is_a_run_of_weights_and_biases(killed: Any) -> None:
    runs = sorted(Path(f"{killed.folder}-tracked/wandb").glob("offline-run-*"))
    assert len(runs) == len(trials_of(killed.folder))
    assert all((run / "finished").exists() and list(run.glob("*.wandb")) for run in runs)


def test_what_falls_behind_is_stopped(killed: Any) -> None:
    stopped = [trial for trial in outputs(killed.second)["trials"] if trial["state"] == "stopped"]
    assert stopped
    assert all(2 <= trial["epochs"] < EPOCHS for trial in stopped)


def test_its_progress_counts_trials(killed: Any) -> None:
    told = [line for line in killed.second.lines if line["event"] == "progress"]
    assert {(line["unit"], line["total"]) for line in told} == {("trial", TRIALS)}
    assert told[0]["done"] >= 1  # the first had ended before the kill
    assert told[-1]["done"] == TRIALS
    assert told[-1]["best_loss"] == outputs(killed.second)["score"]


def test_ray_says_nothing(killed: Any) -> None:
    assert killed.second.words == ""


def test_the_best_trial_is_the_training_that_its_settings_give(
    killed: Any, colours: Any, tmp_path: Path, said: Any
) -> None:
    found = outputs(killed.second)
    order = {**inputs(tmp_path), "run": str(tmp_path / "run"), "threads": 1}
    order["settings"] = {**order["settings"], **found["best"]}
    alone = train.run(order, {"pixels": colours.pixels["good"]}, said)
    assert (alone["tune_loss"], alone["tune_accuracy"]) == (found["score"], found["accuracy"])
    assert (tmp_path / "run/best.safetensors").read_bytes() == Path(found["run"], "best.safetensors").read_bytes()


def test_ray_leaves_nothing_in_the_folder(killed: Any) -> None:
    assert {place.name for place in killed.folder.iterdir()} == {"tuning.json", "trials"}


def test_a_tuning_that_is_done_starts_no_ray(killed: Any, colours: Any, said: Any) -> None:
    before = dict(os.environ)
    again = tune.run(inputs(killed.folder), {"pixels": colours.pixels["good"]}, said)
    found = outputs(killed.second)
    assert {**again, "seconds": 0} == {**found, "seconds": 0}
    assert dict(os.environ) == before and said == []


@pytest.fixture
def all_failed(tmp_path: Path, colours: Any) -> Mapping[str, Any]:
    """The inputs of a tuning that was killed when all its trials had failed."""
    order = inputs(tmp_path / "tuning", trials=2)
    trials = tune.Trials(tmp_path / "tuning")
    pixels = tune.read_pixels(Path(colours.pixels["good"]["pixels"]))
    trials.open(tune._recipe(order, tune.parse_settings(order["settings"]), pixels.snapshot))
    for rate in (0.01, 0.1):
        trials.end(trials.begin({"learning_rate": rate, "batch_size": 16}), "failed", f"no epoch at {rate}")
    return order


def test_where_all_trials_failed_their_reasons_are_told(all_failed: Mapping[str, Any], colours: Any, said: Any) -> None:
    with pytest.raises(StageError, match=r"none of 2 trials finished: no epoch at 0\.01; no epoch at 0\.1"):
        tune.run(all_failed, {"pixels": colours.pixels["good"]}, said)


def test_without_tune_samples_there_is_nothing_to_tune_by(tmp_path: Path, colours: Any, said: Any) -> None:
    with pytest.raises(StageError, match="tuning needs tune samples"):
        tune.run(inputs(tmp_path), {"pixels": colours.pixels["untuned"]}, said)


def test_a_space_that_names_no_setting_is_told(tmp_path: Path, colours: Any, said: Any) -> None:
    space = {"learning_rat": {"min": 1e-4, "max": 1e-2}}
    with pytest.raises(StageError, match="learning_rate"):
        tune.run(inputs(tmp_path, space=space), {"pixels": colours.pixels["good"]}, said)
