"""Training: what it reaches, that it repeats itself, and that nothing that ends it costs more than an epoch."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.evaluate import run as evaluate
from pipeline.model import create_network, state_of
from policies.job import StageError

Train = Callable[..., dict[str, Any]]
EpochsOf = Callable[[Path], list[dict[str, Any]]]


def last_state(run: Path) -> dict[str, Any]:
    """All state after the last epoch."""
    return torch.load(run / "last.ckpt", weights_only=True)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def flat(value: Any, at: str = "") -> dict[str, Tensor]:
    """The tensors of a nested state, by where they stand."""
    if isinstance(value, Tensor):
        return {at: value}
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {name: tensor for key, item in inner for name, tensor in flat(item, f"{at}/{key}").items()}


def test_what_is_easily_told_apart_is_learnt(trained: Any) -> None:
    assert trained.outputs["train"]["tune_accuracy"] > 0.9


def test_its_outputs_tell_how_it_went(trained: Any, epochs_of: EpochsOf) -> None:
    outputs, epochs = trained.outputs["train"], epochs_of(trained.run)
    assert outputs["run"] == str(trained.run)
    assert (outputs["epochs"], outputs["epochs_this_attempt"], outputs["resumed_from"]) == (30, 30, None)
    best = min(epochs, key=lambda epoch: epoch["tune_loss"])
    assert outputs["best_epoch"] == best["epoch"]
    assert (outputs["tune_loss"], outputs["tune_accuracy"]) == (best["tune_loss"], best["tune_accuracy"])
    assert outputs["weights_mb"] == pytest.approx((trained.run / "best.safetensors").stat().st_size / 1e6, rel=0.02)


def test_its_history_has_every_epoch(trained: Any, epochs_of: EpochsOf) -> None:
    epochs = epochs_of(trained.run)
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 31))
    assert {epoch["attempt"] for epoch in epochs} == {1}
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    rates = [epoch["learning_rate"] for epoch in epochs]
    assert max(rates) <= 3e-3 and rates[-1] < rates[10] < max(rates[1:5])
    assert all(epoch["images_per_second"] > 0 for epoch in epochs)


def test_its_progress_is_told_to_the_end(trained: Any) -> None:
    assert [total for _, total, _, _ in trained.said] == [30] * len(trained.said)
    done = [number for number, _, _, _ in trained.said]
    assert done == sorted(done) and done[-1] == 30
    _, _, unit, figures = trained.said[-1]
    assert (unit, figures["seconds_left"]) == ("epoch", 0.0)
    assert figures["tune_accuracy"] > 0.9


def test_the_same_seed_gives_the_same_weights(train: Train, tmp_path: Path) -> None:
    states = []
    for run, seed in (("one", 1), ("two", 1), ("three", 2)):
        train(run=run, seed=seed, epochs=2)
        torch.manual_seed(99)  # whatever was drawn before is of no matter
        states.append(load_file(tmp_path / run / "best.safetensors"))
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


def test_a_finished_training_is_not_run_again(train: Train, tmp_path: Path) -> None:
    first = train(epochs=2)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    again = train(epochs=2)
    assert {**first, "epochs_this_attempt": 0, "resumed_from": 2, "seconds": 0.0} == again
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


def test_a_training_gone_on_with_from_an_epoch_is_as_one_that_never_stopped(train: Train, tmp_path: Path) -> None:
    whole = train(run="whole", epochs=4)
    first = train(run="parts", epochs=4, inputs={"until": 1})
    assert first["epochs"] == 1 and not (tmp_path / "parts/result.json").exists()
    last = train(run="parts", epochs=4)
    assert (last["epochs"], last["epochs_this_attempt"], last["tune_loss"]) == (4, 3, whole["tune_loss"])
    states = [load_file(tmp_path / run / "best.safetensors") for run in ("whole", "parts")]
    assert equal(*states)
    again = train(run="parts", epochs=4, inputs={"until": 1})  # it is over, and told as it stood
    assert (again["epochs"], again["tune_loss"]) == (1, first["tune_loss"])


# Interrupted: the shared training, killed once, ended once, and left to finish, each in a process of its own.


def test_a_killed_training_says_no_more(interrupted: Any) -> None:
    _, (killed, _, _) = interrupted
    assert killed.status == -signal.SIGKILL
    assert {line["event"] for line in killed.lines} <= {"started", "progress"}


def test_a_training_that_is_asked_to_end_ends_at_once(interrupted: Any) -> None:
    _, (_, ended, _) = interrupted
    assert ended.status == 143
    assert {line["event"] for line in ended.lines} <= {"started", "progress"}
    assert "Traceback" not in ended.words


def test_every_epoch_is_run_once_over_all_attempts(interrupted: Any, epochs_of: EpochsOf) -> None:
    epochs = epochs_of(interrupted[0].run)
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 31))
    attempts = [epoch["attempt"] for epoch in epochs]
    assert attempts == sorted(attempts) and set(attempts) == {1, 2, 3}
    outputs = interrupted[0].outputs["train"]
    assert outputs["resumed_from"] == 30 - attempts.count(3)
    assert (outputs["epochs"], outputs["epochs_this_attempt"]) == (30, attempts.count(3))


def test_what_is_resumed_goes_on_as_if_nothing_had_been(interrupted: Any, trained: Any, epochs_of: EpochsOf) -> None:
    figures = ("epoch", "loss", "tune_loss", "tune_accuracy", "learning_rate")
    there, here = epochs_of(interrupted[0].run), epochs_of(trained.run)
    assert [[epoch[key] for key in figures] for epoch in there] == [[epoch[key] for key in figures] for epoch in here]


def test_final_weights_are_those_of_an_uninterrupted_training_bit_for_bit(interrupted: Any, trained: Any) -> None:
    there, here = last_state(interrupted[0].run), last_state(trained.run)
    assert len(there["state_dict"]) > 20 and equal(there["state_dict"], here["state_dict"])
    moments = flat(there["optimizer_states"])
    assert len(moments) > 20 and equal(moments, flat(here["optimizer_states"]))
    assert (interrupted[0].run / "best.safetensors").read_bytes() == (trained.run / "best.safetensors").read_bytes()


def test_progress_after_an_interruption_counts_all_epochs(interrupted: Any) -> None:
    _, (_, _, finished) = interrupted
    told = [line for line in finished.lines if (line["stage"], line["event"]) == ("train", "progress")]
    assert (told[-1]["done"], told[-1]["total"]) == (30, 30)
    assert told[0]["done"] > 4


@pytest.fixture
def unfinished(train: Train, tmp_path: Path) -> Path:
    """A training that was killed after its last epoch, before it said so."""
    train()
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run"


def test_a_training_killed_after_its_last_epoch_trains_no_more(
    train: Train, unfinished: Path, epochs_of: EpochsOf
) -> None:
    before, epochs = (unfinished / "last.ckpt").read_bytes(), epochs_of(unfinished)
    outputs = train()
    assert (outputs["epochs"], outputs["epochs_this_attempt"], outputs["resumed_from"]) == (3, 0, 3)
    assert (unfinished / "last.ckpt").read_bytes() == before
    assert epochs_of(unfinished) == epochs
    assert (unfinished / "result.json").exists()


def test_an_epoch_that_the_kill_kept_out_of_the_history_is_put_in(
    train: Train, unfinished: Path, epochs_of: EpochsOf
) -> None:
    epochs = epochs_of(unfinished)
    history = {"format": 1, "attempts": 1, "epochs": epochs[:-1]}  # killed between the checkpoint and the history
    (unfinished / "history.json").write_text(json.dumps(history))
    train()
    assert epochs_of(unfinished) == epochs


def test_a_damaged_checkpoint_starts_anew_and_says_so(
    train: Train, unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], epochs_of: EpochsOf
) -> None:
    data = (unfinished / "last.ckpt").read_bytes()
    (unfinished / "last.ckpt").write_bytes(data[: len(data) // 2])
    outputs = train()
    said = capsys.readouterr().err
    assert str(unfinished / "last.ckpt") in said and "starting anew" in said
    assert (outputs["epochs"], outputs["epochs_this_attempt"], outputs["resumed_from"]) == (3, 3, None)
    assert [(epoch["epoch"], epoch["attempt"]) for epoch in epochs_of(unfinished)] == [(1, 2), (2, 2), (3, 2)]
    train(run="other")
    assert (unfinished / "best.safetensors").read_bytes() == (tmp_path / "other" / "best.safetensors").read_bytes()


@pytest.mark.parametrize("change", [{"learning_rate": 1e-4}, {"epochs": 4}, {"snapshot": "untuned"}])
def test_a_changed_recipe_starts_anew_and_says_so(
    train: Train,
    unfinished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    epochs_of: EpochsOf,
    change: dict[str, Any],
) -> None:
    outputs = train(**change)
    assert "another recipe: starting anew" in capsys.readouterr().err
    assert (outputs["epochs_this_attempt"], outputs["resumed_from"]) == (outputs["epochs"], None)
    assert {epoch["attempt"] for epoch in epochs_of(unfinished)} == {1}
    train(run="other", **change)
    assert (unfinished / "best.safetensors").read_bytes() == (tmp_path / "other" / "best.safetensors").read_bytes()


def test_without_better_epochs_it_stops_early(train: Train, tmp_path: Path, epochs_of: EpochsOf) -> None:
    settings = {"epochs": 20, "early_stopping_patience": 2, "scheduler": "constant", "warmup_share": 0.0}
    outputs = train("contrary", **settings)
    assert outputs["epochs"] == outputs["best_epoch"] + 2 < 20
    losses = [epoch["tune_loss"] for epoch in epochs_of(tmp_path / "run")]
    assert len(losses) == outputs["epochs"] and min(losses) == losses[-3]
    (tmp_path / "run" / "result.json").unlink()
    again = train("contrary", **settings)  # neither does it go on after a kill
    assert (again["epochs"], again["epochs_this_attempt"]) == (outputs["epochs"], 0)


def test_without_patience_it_runs_to_its_end_and_the_best_weights_are_kept(train: Train, tmp_path: Path) -> None:
    outputs = train("contrary", epochs=4, scheduler="constant", warmup_share=0.0)
    assert (outputs["epochs"], outputs["best_epoch"]) == (4, 1)
    run = tmp_path / "run"
    best = {f"served.net.{name}": value for name, value in load_file(run / "best.safetensors").items()}
    last = last_state(run)["state_dict"]
    assert best.keys() == last.keys() and not equal(best, last)
    history = json.loads((run / "history.json").read_text())["epochs"]
    assert outputs["tune_loss"] == history[0]["tune_loss"] < history[-1]["tune_loss"]


def test_the_best_weights_are_those_that_are_asked_and_exported(train: Train, colours: Any, said: Any) -> None:
    outputs = train("contrary", epochs=4, scheduler="constant", warmup_share=0.0)
    found = evaluate({"threads": 1}, {"pixels": colours.pixels["contrary"], "train": outputs}, said)
    assert found["tune_loss"] == pytest.approx(outputs["tune_loss"], rel=1e-4)
    assert found["tune_accuracy"] == outputs["tune_accuracy"]


def test_without_tune_samples_the_last_epoch_is_the_best(
    train: Train, tmp_path: Path, colours: Any, said: Any, epochs_of: EpochsOf
) -> None:
    outputs = train("untuned", early_stopping_patience=1)
    assert (outputs["epochs"], outputs["best_epoch"]) == (3, 3)
    assert outputs["tune_accuracy"] is None and outputs["tune_loss"] is None
    best = {f"served.net.{name}": value for name, value in load_file(tmp_path / "run" / "best.safetensors").items()}
    assert equal(best, last_state(tmp_path / "run")["state_dict"])
    found = evaluate({"threads": 1}, {"pixels": colours.pixels["untuned"], "train": outputs}, said)
    assert found == {"tune_samples": 0, "tune_accuracy": None, "tune_loss": None, "failed": 0}


def test_weights_above_the_largest_artifact_stop_it_before_it_begins(train: Train, tmp_path: Path) -> None:
    outputs = train(inputs={"max_artifact_mb": 1.0})
    assert outputs["stop"] == "unfit"
    assert outputs["weights_mb"] == pytest.approx(1.2, abs=0.05)
    assert "test_vit" in outputs["reason"] and "1.2 MB" in outputs["reason"] and "1 MB" in outputs["reason"]
    assert not (tmp_path / "run" / "history.json").exists()


@pytest.mark.parametrize("limit", [None, 1.5])
def test_weights_within_the_largest_artifact_are_trained(train: Train, limit: float | None) -> None:
    assert train(epochs=1, inputs={"max_artifact_mb": limit})["epochs"] == 1


def test_a_loss_that_is_not_a_number_is_told(train: Train, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"the loss is (nan|inf) after epoch 1: lower train\.learning_rate"):
        train(optimizer="sgd", learning_rate=1e30, scheduler="constant", warmup_share=0.0)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_training_starts_from_the_weights_of_a_file(train: Train, tmp_path: Path) -> None:
    torch.manual_seed(7)
    net = create_network("test_resnet", 5, (32, 32))  # other classes: all but the classifier is taken
    file = tmp_path / "backbone.safetensors"
    save_file(state_of(net), file)
    train(
        inputs={"architecture": "test_resnet", "weights": str(file)},
        trainable_stages=0,
        epochs=2,
        learning_rate=0.01,
    )
    found, source = load_file(tmp_path / "run" / "best.safetensors"), load_file(file)
    body = {name for name in source if not name.startswith("fc.")}
    assert len(body) > 40  # with the statistics of its normalisations
    assert all(torch.equal(found[name], source[name]) for name in body)
    assert found["fc.weight"].shape[0] == 3


def test_a_frozen_body_lets_the_head_learn(train: Train, tmp_path: Path) -> None:
    for run, epochs in (("one", 1), ("three", 3)):
        train("untuned", run=run, trainable_stages=0, epochs=epochs, scheduler="constant")
    one, three = (load_file(tmp_path / run / "best.safetensors") for run in ("one", "three"))
    assert {name for name in one if not torch.equal(one[name], three[name])} == {"head.weight", "head.bias"}


def test_a_resumed_training_needs_the_first_weights_no_more(train: Train, tmp_path: Path) -> None:
    file = tmp_path / "backbone.safetensors"
    save_file(state_of(create_network("test_vit", 3, (32, 32))), file)
    first = train(inputs={"weights": str(file)})
    (tmp_path / "run" / "result.json").unlink()
    file.unlink()
    again = train(inputs={"weights": str(file)})
    assert (again["epochs_this_attempt"], again["tune_loss"]) == (0, first["tune_loss"])


def test_weights_that_are_not_there_are_told(train: Train, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"the weights .*none\.safetensors cannot be read"):
        train(inputs={"weights": str(tmp_path / "none.safetensors")})


def test_other_weights_under_the_same_name_are_another_recipe(train: Train, tmp_path: Path) -> None:
    file = tmp_path / "backbone.safetensors"
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_file(state_of(create_network("test_vit", 3, (32, 32))), file)
        train(inputs={"weights": str(file)}, epochs=1)
        states.append(load_file(tmp_path / "run" / "best.safetensors"))
    assert not equal(*states)


def test_what_the_weights_expect_of_their_input_is_kept(train: Train, tmp_path: Path) -> None:
    file = tmp_path / "backbone.safetensors"
    save_file(state_of(create_network("mobilenetv3_small_050", 3, (32, 32))), file)
    for run, weights, mean in (("a", "none", [0.5] * 3), ("b", str(file), [0.485, 0.456, 0.406])):
        train(run=run, epochs=1, inputs={"architecture": "mobilenetv3_small_050", "weights": weights})
        assert json.loads((tmp_path / run / "result.json").read_text())["mean"] == mean


def test_one_class_is_not_enough(train: Train, decode_new: Any, colours: Any) -> None:
    rows = [row for row in colours.rows if row[1] == 0]
    with pytest.raises(StageError, match="two classes and two train samples; the snapshot own has 1 and 20"):
        train(decode_new(rows, ["red"]))


@pytest.mark.parametrize("number", [0, 1])
def test_one_sample_is_not_enough(train: Train, decode_new: Any, colours: Any, number: int) -> None:
    rows = [row for row in colours.rows if row[2] == 0][:number] + [row for row in colours.rows if row[2] == 1]
    with pytest.raises(StageError, match=f"the snapshot own has 3 and {number}"):
        train(decode_new(rows))


def test_two_samples_are_enough(train: Train, decode_new: Any, colours: Any) -> None:
    assert train(decode_new([row for row in colours.rows if row[2] == 0][:2]), epochs=1)["epochs"] == 1


def test_pixels_of_another_size_are_told(train: Train, decode_new: Any, colours: Any) -> None:
    with pytest.raises(StageError, match="the pixels are 16 x 16, the network's input 32 x 32"):
        train(decode_new(colours.rows, size=16))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("setting", [{"accelerator": "cuda"}, {"precision": "16-mixed"}])
def test_what_needs_a_gpu_says_so(train: Train, setting: dict[str, str]) -> None:
    (key,) = setting
    with pytest.raises(StageError, match=rf"train\.{key} = .* GPU"):
        train(**setting)


def test_mixed_precision_on_a_cpu_learns_and_keeps_full_weights(train: Train, tmp_path: Path) -> None:
    assert train(precision="bf16-mixed", epochs=4)["tune_accuracy"] > 0.9
    assert {value.dtype for value in load_file(tmp_path / "run" / "best.safetensors").values()} == {torch.float32}


def test_balanced_sampling_is_repeated_and_differs(train: Train, tmp_path: Path, decode_new: Any, colours: Any) -> None:
    rows = [row for row in colours.rows if row[2] == 0][:45]
    few = [row for row in rows if row[1] == 0][:2] + [row for row in rows if row[1]]
    pixels = decode_new(few)
    states = []
    for run, sampling in (("a", "balanced"), ("b", "balanced"), ("c", "uniform")):
        train(pixels, run=run, sampling=sampling, epochs=1)
        states.append(load_file(tmp_path / run / "best.safetensors"))
    assert equal(states[0], states[1]) and not equal(states[0], states[2])


def test_settings_are_checked_before_anything_is_written(train: Train, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"train\.epoch.*epochs"):
        train(epoch=3)
    assert not (tmp_path / "run").exists()


def test_an_unknown_architecture_is_told(train: Train) -> None:
    with pytest.raises(StageError, match=r"nearest: .*test_vit"):
        train(inputs={"architecture": "test_vitt"})
