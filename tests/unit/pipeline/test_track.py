"""Trainings as runs of Weights & Biases: real offline files, read back; whatever breaks costs the training nothing."""

from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import track, tracker
from pipeline import train as training
from pipeline.run_folder import Recipe
from pipeline.settings import TrainSettings
from policies.job import StageError

Train = Callable[..., dict[str, Any]]
BLOCK = 32768


def records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format after a header of seven bytes; wandb has no reader for it."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # no header fits into what is left of the block
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def items(entries: Any) -> dict[str, Any]:
    """Keys and values of a record's items; nested keys are joined by a dot."""
    return {entry.key or ".".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


def only(folder: Path) -> Path:
    (run,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return run


def epochs(file: Path) -> list[dict[str, Any]]:
    return [items(record.history.item) for record in records(file) if record.HasField("history")]


def order_in(folder: Path) -> dict[str, str]:
    return {"mode": "offline", "project": "relearnd", "folder": str(folder), "group": "cycle 12"}


@pytest.fixture(scope="module")
def tracked(colours: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A training that was stopped after two of three epochs and gone on with: state folder, run folder, outputs."""
    state = tmp_path_factory.mktemp("state")
    inputs = {
        "architecture": "test_vit",
        "weights": "none",
        "height": 32,
        "width": 32,
        "settings": {"epochs": 3, "batch_size": 16, "learning_rate": 2e-3, "accelerator": "cpu"},
        "run": str(state / "runs" / "one"),
        "threads": 1,
        "track": order_in(state),
    }
    for until in (2, 3):
        outputs = training.run({**inputs, "until": until}, {"pixels": colours.pixels["good"]}, lambda *_, **__: None)
    return state, state / "runs" / "one", outputs


def test_a_training_is_one_run_however_often_it_was_stopped(tracked: Any) -> None:
    state, run, _ = tracked
    history = json.loads((run / "history.json").read_text())["epochs"]
    told = epochs(only(state))
    assert [entry["_step"] for entry in told] == [1, 2, 3]
    for key in ("epoch", "attempt", "loss", "tune_loss", "tune_accuracy", "learning_rate"):
        assert [entry[key] for entry in told] == [entry[key] for entry in history], key


def test_a_run_has_its_recipe_its_group_and_what_came_of_it(tracked: Any) -> None:
    state, run, outputs = tracked
    found = list(records(only(state)))
    (begun,) = [record.run for record in found if record.HasField("run")]
    assert (begun.project, begun.run_group, begun.display_name) == ("relearnd", "cycle 12", "test_vit good")
    recipe = json.loads((run / "recipe.json").read_text())
    config = items(begun.config.update)
    assert {key: config[key] for key in recipe} == recipe
    summary = {
        key: value
        for record in found
        if record.HasField("summary")
        for key, value in items(record.summary.update).items()
    }
    assert (summary["best_epoch"], summary["tune_accuracy"]) == (outputs["best_epoch"], outputs["tune_accuracy"])
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [0]


def test_a_run_that_has_ended_is_marked_for_its_upload(tracked: Any) -> None:
    assert (only(tracked[0]).parent / tracker.FINISHED).exists()
    assert tracker.FINISHED == importlib.import_module("daemon.uploads").FINISHED  # which may not import it


def test_a_child_leaves_nothing_in_the_temporary_folder(
    colours: Any, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    inputs = {
        "architecture": "test_vit", "weights": "none", "height": 32, "width": 32, "settings": {"epochs": 1},
        "run": tmp_path / "run", "track": order_in(tmp_path),
    }  # fmt: skip
    ended = start({"train": inputs}, {"pixels": colours.pixels["good"]}).end()
    assert ended.lines[-1]["event"] == "finished", ended.words
    assert only(tmp_path).exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_it_changes_nothing_of_the_training(tracked: Any, train: Train, tmp_path: Path) -> None:
    train()
    assert (tmp_path / "run/best.safetensors").read_bytes() == (tracked[1] / "best.safetensors").read_bytes()


def test_the_race_for_the_optimizer_is_in_its_run(train: Train, tmp_path: Path) -> None:
    settings = {"optimizer": "auto", "optimizers": {"adamw": 1.0, "sgd": 10.0}, "epochs": 2}
    chosen = train(inputs={"track": order_in(tmp_path)}, **settings)["optimizer"]
    found = only(tmp_path)  # contenders have none of their own
    assert [entry["epoch"] for entry in epochs(found)] == [1, 2]
    summary = [items(record.summary.update) for record in records(found) if record.HasField("summary")]
    assert any(chosen["name"] in json.dumps(update) and "race" in json.dumps(update) for update in summary)


@pytest.mark.parametrize("order", [None, {"mode": "disabled", "project": "relearnd", "folder": "", "group": ""}])
def test_without_an_order_nobody_is_told(order: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(track.subprocess, "Popen")
    recipe = Recipe("test_vit", "none", 32, 32, "stretch", (), "good", TrainSettings())
    with track.tracking(order) as nobody, nobody.run(recipe, tmp_path) as run:
        run.log({"epoch": 1})
    assert not list(tmp_path.iterdir())


def broken_folder(folder: Path, _: pytest.MonkeyPatch) -> None:
    folder.write_text("no folder")


def broken_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(folder, "raise ImportError('it was built for another Python')", monkeypatch)


def instead(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another wandb for the processes that are started from now on."""
    folder.mkdir()
    (folder / "wandb.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.parametrize("how", [broken_folder, broken_install])
def test_what_breaks_is_said_once_and_the_training_is_done(
    train: Train,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    how(tmp_path / "state", monkeypatch)
    outputs = train(inputs={"track": order_in(tmp_path / "state")})
    assert outputs["epochs"] == 3 and (tmp_path / "run" / "result.json").exists()
    said = capfd.readouterr()
    assert said.err.count("Weights & Biases: ") == 1 and "the training goes on without it" in said.err
    assert said.out == ""


def test_a_process_that_cannot_be_started_costs_nothing(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track.sys, "executable", str(tmp_path / "none"))
    assert train(inputs={"track": order_in(tmp_path / "state")})["epochs"] == 3
    assert "its process could not be started" in capfd.readouterr().err


def test_offline_the_service_is_not_asked_for_anything(
    train: Train, tmp_path: Path, wandb_service: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    train(inputs={"track": order_in(tmp_path)})
    assert only(tmp_path).exists() and wandb_service.asked == []
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")  # standard output is the protocol's


def test_online_it_has_every_epoch_once(
    train: Train, tmp_path: Path, wandb_service: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(inputs={"track": {**order_in(tmp_path), "mode": "online"}})["epochs"] == 3
    assert wandb_service.steps == [1, 2, 3], capfd.readouterr().err


def test_no_account_costs_nothing(
    train: Train, tmp_path: Path, wandb_service: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY")
    order = {**order_in(tmp_path / "state"), "mode": "online"}
    assert train(inputs={"track": order})["epochs"] == 3
    assert "API key" in capfd.readouterr().err


def test_what_hangs_is_waited_for_no_longer_than_it_may(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(tmp_path / "state", "import time; time.sleep(600)", monkeypatch)
    monkeypatch.setattr(track, "WAIT_SECONDS", 0.1)
    assert train(inputs={"track": order_in(tmp_path / "state")})["epochs"] == 3
    assert "it has not finished within 0.1 seconds" in capfd.readouterr().err
    assert not [child for child in psutil.Process().children() if "pipeline.tracker" in child.cmdline()]


def test_a_training_that_fails_is_a_failed_run(train: Train, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="the loss is"):
        train(optimizer="sgd", learning_rate=1e30, scheduler="constant", inputs={"track": order_in(tmp_path)})
    found = list(records(only(tmp_path)))
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [1]


def test_what_a_kill_cut_off_is_written_anew(train: Train, tmp_path: Path) -> None:
    train(inputs={"track": order_in(tmp_path), "until": 1})
    cut = only(tmp_path)
    cut.write_bytes(cut.read_bytes()[:7])  # as wandb leaves it behind, seen after a SIGKILL: a header
    (cut.parent / tracker.FINISHED).unlink()
    train(inputs={"track": order_in(tmp_path)})
    assert [entry["epoch"] for entry in epochs(only(tmp_path))] == [1, 2, 3]
