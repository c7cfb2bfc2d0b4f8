"""The figures of a trained network's answers, against numpy's own on the same answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.evaluate import run as evaluate
from pipeline.evaluate import score
from policies.job import StageError

CLASSES = ["a", "b", "ü", "d"]


def answers(number: int) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.float32]]:
    """Random hashes, labels and probabilities; no sample of the last class, which is answered nevertheless."""
    draw = np.random.default_rng(number)
    shas = draw.integers(0, 256, (number, 32), dtype=np.uint8)
    labels = draw.integers(0, 3, number).astype(np.int32)
    return shas, labels, draw.dirichlet(np.ones(4), number).astype(np.float32).reshape(number, 4)


@pytest.mark.parametrize("number", [1, 2, 50])
def test_accuracy_and_loss_are_those_of_the_answers(number: int) -> None:
    shas, labels, probabilities = answers(number)
    found = score(CLASSES, shas, labels, probabilities)
    right = [row.tolist().index(max(row.tolist())) == label for row, label in zip(probabilities, labels, strict=True)]
    losses = [-np.log(float(row[label])) for row, label in zip(probabilities, labels, strict=True)]
    assert found["samples"] == number
    assert found["accuracy"] == pytest.approx(sum(right) / number)
    assert found["loss"] == pytest.approx(sum(losses) / number)


def test_confusion_has_the_true_classes_down_and_the_predicted_across() -> None:
    shas, labels, probabilities = answers(50)
    found = score(CLASSES, shas, labels, probabilities)
    predicted = np.argsort(probabilities, 1)[:, -1]
    wanted = [[int(np.sum((labels == true) & (predicted == said))) for said in range(4)] for true in range(4)]
    assert found["confusion"] == wanted
    assert sum(map(sum, wanted)) == 50 and wanted[3] == [0] * 4 and any(row[3] for row in wanted)


def test_every_class_has_its_share() -> None:
    shas, labels, probabilities = answers(50)
    found = score(CLASSES, shas, labels, probabilities)
    predicted = probabilities.argmax(1)
    assert found["by_class"] == [
        {
            "name": name,
            "samples": int(np.sum(labels == at)),
            "correct": int(np.sum((labels == at) & (predicted == at))),
        }
        for at, name in enumerate(CLASSES)
    ]


def test_failed_predictions_name_the_sample_and_both_classes() -> None:
    shas, labels, probabilities = answers(50)
    found = score(CLASSES, shas, labels, probabilities)["failed"]
    wanted = []
    for sha, label, row in zip(shas, labels, probabilities, strict=True):
        said = int(np.argsort(row)[-1])
        if said != label:
            wanted.append((bytes(sha).hex(), CLASSES[label], CLASSES[said], float(row[said])))
    assert [tuple(entry[key] for key in ("sha", "true", "predicted", "probability")) for entry in found] == wanted
    assert 0 < len(wanted) < 50


def test_no_samples_have_no_accuracy() -> None:
    found = score(CLASSES, *answers(0))
    assert (found["samples"], found["accuracy"], found["loss"], found["failed"]) == (0, None, None, [])
    assert found["confusion"] == [[0] * 4] * 4
    json.dumps(found)


def test_a_certain_wrong_answer_has_a_finite_loss() -> None:
    shas, _, _ = answers(1)
    found = score(CLASSES, shas, np.array([0], np.int32), np.array([[0, 1, 0, 0]], np.float32))
    assert 20 < found["loss"] < 100


def test_the_stages_figures_are_those_of_its_answers(trained: Any, colours: Any) -> None:
    tune = sorted(row for row in colours.rows if row[2] == 1)
    with np.load(trained.run / "tune.npz", allow_pickle=False) as stored:
        shas, probabilities = stored["sha"], stored["probabilities"]
    assert [sha.tobytes().hex() for sha in shas] == [row[0] for row in tune]
    assert (probabilities.shape, probabilities.dtype) == ((48, 3), np.float32)
    assert np.abs(probabilities.sum(1) - 1).max() < 1e-5
    labels = np.array([row[1] for row in tune])
    predicted = probabilities.argmax(1)
    written = json.loads((trained.run / "evaluation.json").read_text())
    wrong = [row[0] for row, said in zip(tune, predicted, strict=True) if said != row[1]]
    outputs = trained.outputs["evaluate"]
    assert outputs["tune_samples"] == written["samples"] == 48
    assert outputs["tune_accuracy"] == written["accuracy"] == pytest.approx(np.mean(predicted == labels))
    assert outputs["tune_loss"] == written["loss"]
    assert [entry["sha"] for entry in written["failed"]] == wrong
    assert outputs["failed"] == len(wrong)


def test_what_is_under_a_wrong_label_is_found(trained: Any, colours: Any) -> None:
    misplaced = [row[0] for row in colours.rows if row[2] == 1][:3]
    failed = json.loads((trained.run / "evaluation.json").read_text())["failed"]
    assert {entry["sha"] for entry in failed} >= set(misplaced)
    names = ["red", "green", "blue"]
    for entry in failed:
        if entry["sha"] in misplaced:
            assert names.index(entry["true"]) == (names.index(entry["predicted"]) + 1) % 3


def test_it_is_the_training_figure_for_the_same_weights(trained: Any) -> None:
    training, evaluation = trained.outputs["train"], trained.outputs["evaluate"]
    assert evaluation["tune_accuracy"] == training["tune_accuracy"]
    assert evaluation["tune_loss"] == pytest.approx(training["tune_loss"], rel=1e-4)


def test_without_a_training_it_says_so(colours: Any, said: Any) -> None:
    with pytest.raises(StageError, match="needs the outputs of the stage train"):
        evaluate({"threads": 1}, {"pixels": colours.pixels["good"]}, said)


def test_weights_that_are_gone_are_told(trained: Any, colours: Any, said: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.json").write_bytes((trained.run / "recipe.json").read_bytes())
    with pytest.raises(StageError, match=re.escape(str(run / "best.safetensors"))):
        evaluate({"threads": 1}, {"pixels": colours.pixels["good"], "train": {"run": str(run)}}, said)
