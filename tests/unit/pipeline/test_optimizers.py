"""The race for the optimizer: who wins, that the winner goes on from where it is, and that a kill costs an epoch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import optimizers
from pipeline import train as training
from pipeline.durable import write_json
from pipeline.optimizers import Contender, planned, rank, rungs, smooth
from pipeline.run_folder import RunFolder
from policies.job import StageError

Train = Callable[..., dict[str, Any]]
THREE = {"adamw": 1.0, "nesterov": 20.0, "lion": 0.1}
RACE = {"optimizer": "auto", "optimizers": THREE, "epochs": 4}
ABSURD = {"adamw": 1.0, "nesterov": 1e30, "lamb": 2.0}  # no warm-up saves the second


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The epochs that are trained from now on: (optimizer, epoch)."""
    epochs: list[tuple[str, int]] = []
    describe = training.Record._describe

    def told(self: Any, trainer: Any, module: Any) -> dict[str, Any]:
        entry = describe(self, trainer, module)
        epochs.append((module.settings.optimizer, entry["epoch"]))
        return entry

    monkeypatch.setattr(training.Record, "_describe", told)
    return epochs


def read(run: Path) -> Any:
    return json.loads((run / "optimizers.json").read_text())


def weights(run: Path) -> bytes:
    return (run / "best.safetensors").read_bytes()


def named(winner: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training that uses this optimizer from the start."""
    return {
        "optimizer": winner["name"],
        "learning_rate": winner["learning_rate"],
        "weight_decay": winner["weight_decay"],
        "optimizers": THREE,
    }


@pytest.mark.parametrize(
    ("contenders", "epochs", "wanted"),
    [
        (7, 20, [(7, 1), (4, 2), (2, 4)]),
        (8, 20, [(8, 1), (4, 2), (2, 4)]),
        (3, 20, [(3, 1), (2, 2)]),
        (2, 20, [(2, 1)]),
        (8, 3, [(8, 1), (4, 2), (2, 3)]),
        (8, 2, [(8, 1), (4, 2)]),
        (8, 1, [(8, 1)]),
    ],
)
def test_the_race_halves_its_field_and_doubles_its_epochs(
    contenders: int, epochs: int, wanted: list[tuple[int, int]]
) -> None:
    assert list(rungs(contenders, epochs)) == wanted


def test_the_epochs_of_race_and_training_are_known_beforehand() -> None:
    assert planned(7, 20) == (7 + 4 + 2 * 2) + (20 - 4)
    assert planned(8, 1) == 8


def test_losses_are_smoothed_without_a_bias_to_the_start() -> None:
    assert smooth([2.0]) == 2.0
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx(3.0)
    assert smooth([2.0, 1.0]) == pytest.approx((0.5 * 1.0 + 0.25 * 2.0) / 0.75)


def test_contenders_are_ranked_by_what_they_were_at_that_epoch() -> None:
    early, late = Contender("early", 1, 0, [1.0, 5.0]), Contender("late", 1, 0, [2.0, 0.1])
    twin, out = Contender("twin", 1, 0, [1.0]), Contender("out", 1, 0, [])
    assert rank([out, late, early, twin], 1) == [early, twin, late]
    assert rank([out, late, early, twin], 2) == [late, early]


@pytest.fixture(scope="module")
def auto(colours: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, list[Any]]:
    """A training whose optimizer is raced for, once: outputs, run folder, progress."""
    run, said = tmp_path_factory.mktemp("auto") / "run", []

    def report(done: float, total: float, unit: str, **figures: Any) -> None:
        said.append((done, total, figures))

    order = {"architecture": "test_vit", "weights": "none", "height": 32, "width": 32, "threads": 1, "run": str(run)}
    settings = {"batch_size": 16, "learning_rate": 2e-3, "accelerator": "cpu", **RACE}
    return training.run({**order, "settings": settings}, {"pixels": colours.pixels["good"]}, report), run, said


def test_the_choice_is_told_with_what_it_rests_on(auto: Any) -> None:
    outputs, run, _ = auto
    chosen = outputs["optimizer"]
    assert read(run) == {"format": 1, **chosen}
    assert [entry["name"] for entry in chosen["race"]] == list(THREE)
    (winner,) = [entry for entry in chosen["race"] if entry["left"] is None]
    assert chosen["name"] == winner["name"]
    assert chosen["learning_rate"] == pytest.approx(2e-3 * THREE[chosen["name"]])
    assert chosen["weight_decay"] == pytest.approx(0.05 / THREE[chosen["name"]])
    assert sorted(len(entry["losses"]) for entry in chosen["race"]) == [1, 2, 2]
    assert sorted(entry["left"] for entry in chosen["race"] if entry is not winner) == [1, 2]
    assert all(entry["score"] == pytest.approx(smooth(entry["losses"])) for entry in chosen["race"])
    assert winner["score"] == min(entry["score"] for entry in chosen["race"] if len(entry["losses"]) == 2)
    assert all(entry["error"] is None for entry in chosen["race"])


def test_the_winner_goes_on_as_if_it_had_been_alone_bit_for_bit(auto: Any, train: Train, tmp_path: Path) -> None:
    outputs, run, _ = auto
    alone = train(run="alone", **{**RACE, **named(outputs["optimizer"])})
    assert (outputs["tune_loss"], outputs["epochs"], outputs["resumed_from"]) == (alone["tune_loss"], 4, 2)
    there, here = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (run, tmp_path / "alone"))
    assert len(there["state_dict"]) > 20
    assert all(torch.equal(value, here["state_dict"][name]) for name, value in there["state_dict"].items())
    assert weights(run) == weights(tmp_path / "alone")


def test_its_history_is_that_of_the_winner(auto: Any) -> None:
    outputs, run, _ = auto
    epochs = json.loads((run / "history.json").read_text())["epochs"]
    (winner,) = [entry for entry in outputs["optimizer"]["race"] if entry["left"] is None]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3, 4]
    assert [epoch["tune_loss"] for epoch in epochs][:2] == winner["losses"]


def test_nothing_is_left_of_the_contenders(auto: Any) -> None:
    assert not (auto[1] / "optimizers").exists()


def test_the_progress_counts_the_epochs_of_all(auto: Any) -> None:
    _, _, said = auto
    done = [number for number, _, _ in said]
    assert done == sorted(done) and done[-1] == 7  # 3 + 2 in the race, and 2
    assert {total for _, total, _ in said} == {7}
    assert {figures.get("optimizer") for _, _, figures in said} == {*THREE, None}


def test_the_choice_is_told_beside_the_model(auto: Any) -> None:
    assert auto[1] / "optimizers.json" in RunFolder(auto[1]).told


def test_a_finished_training_tells_its_choice_again(train: Train, watched: list[Any]) -> None:
    first = train(**{**RACE, "epochs": 1})
    count = len(watched)
    assert train(**{**RACE, "epochs": 1})["optimizer"] == first["optimizer"]
    assert len(watched) == count == 3  # where all epochs are over after the first, it decides


def test_what_is_not_a_number_never_wins(train: Train, watched: list[Any], tmp_path: Path) -> None:
    outputs = train(optimizer="auto", optimizers=ABSURD, epochs=3, scheduler="constant", warmup_share=0.0)
    (failed,) = [entry for entry in outputs["optimizer"]["race"] if entry["name"] == "nesterov"]
    assert (failed["losses"], failed["score"], failed["left"]) == ([], None, 0)
    assert failed["error"].startswith("the loss is ")
    assert outputs["optimizer"]["name"] != "nesterov" and outputs["epochs"] == 3
    assert json.loads(json.dumps(read(tmp_path / "run"), allow_nan=False))


@pytest.mark.parametrize("at", [1, 2])
def test_a_loss_on_tune_that_is_not_a_number_ends_its_contender(
    train: Train, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    describe = training.Record._describe

    def spoilt(self: Any, trainer: Any, module: Any) -> dict[str, Any]:
        entry = describe(self, trainer, module)
        if module.settings.optimizer == "adamw":
            entry["tune_loss"] = 0.0 if entry["epoch"] < at else float("nan")  # the best by far, until then
        return entry

    monkeypatch.setattr(training.Record, "_describe", spoilt)
    chosen = train(**RACE)["optimizer"]
    (adamw,) = [entry for entry in chosen["race"] if entry["name"] == "adamw"]
    assert (adamw["losses"], adamw["left"]) == ([0.0] * (at - 1), at - 1)
    assert adamw["error"] and chosen["name"] != "adamw"


def test_an_optimizer_that_cannot_be_built_ends_alone(train: Train) -> None:
    if torch.cuda.is_available():
        pytest.skip("there it can be built")
    chosen = train(**{**RACE, "epochs": 1, "optimizers": {"fusedadam": 1.0, "adamw": 1.0}})["optimizer"]
    assert chosen["name"] == "adamw"
    assert "cannot build the optimizer 'fusedadam' here" in chosen["race"][0]["error"]


def test_where_all_fail_each_is_named(train: Train, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"none of train\.optimizers could train: adamw: the loss is .*; sgd: the lo"):
        train(
            optimizer="auto",
            optimizers={"adamw": 1e30, "sgd": 1e31},
            scheduler="constant",
            warmup_share=0.0,
        )
    assert not (tmp_path / "run" / "result.json").exists()


def test_where_all_fail_for_one_reason_it_is_said_once(train: Train, tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        train(**RACE, inputs={"weights": str(tmp_path / "none.safetensors")})
    assert str(caught.value).count("cannot be read") == 1


def test_without_tune_samples_there_is_nothing_to_choose_by(train: Train, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"compares optimizers on tune samples, .* has none: set roles\.tune"):
        train("untuned", **RACE)
    assert not (tmp_path / "run" / "optimizers").exists()


@pytest.mark.parametrize(
    ("contenders", "said"),
    [
        ({"adamw": 1.0}, "at least two optimizers, not 1"),
        ({}, "at least two optimizers, not 0"),
        ({"adamw": 1.0, "sgd": 0}, r"train\.optimizers\.sgd must be a number above 0, not 0"),
        ({"adamw": 1.0, "sgd": float("nan")}, r"train\.optimizers\.sgd must be a number above 0"),
        ({"adamw": 1.0, "sgd": True}, r"train\.optimizers\.sgd must be a number above 0"),
        ({"adamw": 1.0, "sgd": "fast"}, r"train\.optimizers\.sgd must be a number above 0"),
        ({"adamw": 1.0, "nesterof": 1.0}, r"'nesterof' is not known; nearest: .*nesterov"),
    ],
)
def test_contenders_that_cannot_race_are_told(train: Train, contenders: dict[str, Any], said: str) -> None:
    with pytest.raises(StageError, match=said):
        train(**{**RACE, "optimizers": contenders})


class Killed(BaseException):
    """What stands for SIGKILL: nothing of the stage runs after it."""


@pytest.mark.parametrize("epoch", [2, 5])
def test_a_race_that_is_killed_trains_nothing_twice(
    train: Train, watched: list[Any], auto: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    write = optimizers.Race.write

    def die(self: Any) -> None:
        write(self)
        if len(watched) == epoch:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(optimizers.Race, "write", die)
        train(**RACE)
    outputs = train(**RACE)
    assert outputs["optimizer"] == auto[0]["optimizer"]
    assert len(watched) == len(set(watched)) == 7
    assert weights(tmp_path / "run") == weights(auto[1])


@pytest.mark.parametrize("files", [0, 2])
def test_a_kill_while_the_winner_takes_over_is_harmless(
    train: Train, auto: Any, watched: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    replace, moved = Path.replace, []

    def die(self: Path, target: Path) -> Path:
        if self.parent.parent.name == "optimizers" and not self.name.startswith("."):
            if len(moved) == files:
                raise Killed
            moved.append(self)
        return replace(self, target)

    def keep(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", die)
        patch.setattr(shutil, "rmtree", keep)
        train(**RACE)
    assert len(moved) == files and read(tmp_path / "run")["name"] is not None
    train(**RACE)
    assert len(watched) == len(set(watched)) == 7
    assert weights(tmp_path / "run") == weights(auto[1])
    assert not (tmp_path / "run" / "optimizers").exists()


def test_a_decided_race_is_not_run_again(train: Train, auto: Any, watched: list[Any], tmp_path: Path) -> None:
    shutil.copytree(auto[1], tmp_path / "run")
    for name in ("result.json", "last.ckpt", "history.json", "best.safetensors"):
        (tmp_path / "run" / name).unlink()
    held = read(tmp_path / "run")
    other = next(entry for entry in held["race"] if entry["name"] != held["name"])
    write_json(tmp_path / "run" / "optimizers.json", {**held, "name": other["name"]})
    train(**RACE)
    assert watched == [(other["name"], epoch) for epoch in (1, 2, 3, 4)]


def test_patience_counts_in_the_training_not_in_the_race(
    train: Train, watched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = training.Record._describe

    def worse(self: Any, trainer: Any, module: Any) -> dict[str, Any]:
        return {**describe(self, trainer, module), "tune_loss": float(len(self.epochs) + 1)}

    monkeypatch.setattr(training.Record, "_describe", worse)
    outputs = train(**{**RACE, "epochs": 6}, early_stopping_patience=1)
    assert [len(entry["losses"]) for entry in outputs["optimizer"]["race"]] == [2, 2, 1]
    assert (outputs["stopped_early"], outputs["epochs"], outputs["best_epoch"]) == (True, 2, 1)


def test_a_training_stops_at_an_epoch_after_the_race(train: Train, auto: Any, tmp_path: Path) -> None:
    first = train(**RACE, inputs={"until": 1})
    assert (first["epochs"], first["optimizer"]) == (1, auto[0]["optimizer"])  # as it stood, though the race went to 2
    assert train(**RACE, inputs={"until": 3})["epochs"] == 3
    assert not RunFolder(tmp_path / "run").result.exists()
    assert train(**RACE)["epochs"] == 4
    assert weights(tmp_path / "run") == weights(auto[1])


def test_weights_above_the_largest_artifact_are_not_raced(train: Train, watched: list[Any]) -> None:
    assert train(**RACE, inputs={"max_artifact_mb": 1.0})["stop"] == "unfit"
    assert watched == []


def test_all_contenders_start_from_the_same_weights(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    train(weight_decay=0.0, **{**RACE, "epochs": 1, "optimizers": {"sgd": 1e-9, "adamw": 1e-9, "lion": 1e-9}})
    folders = sorted((tmp_path / "run" / "optimizers").iterdir())
    states = [load_file(file) for folder in folders for file in folder.glob("best.safetensors")]
    assert len(states) == 2  # the winner's was taken over
    assert all(torch.allclose(value, states[1][name], atol=1e-6) for name, value in states[0].items())
