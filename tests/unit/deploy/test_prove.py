"""The built engine is asked for every sample of judge and tune, and what it answers is written down as it is."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy import prove
from deploy.device import answerer
from policies.job import StageError
from tests.unit.deploy.models import (
    ROUNDING,
    answer,
    class_names,
    make_artifact,
    noise,
    read_json,
    rewrite,
    silent,
    write_pixels,
)

CLASSES = class_names(4)
COUNTS = {"judge": 70, "tune": 33, "train": 5}  # more than two batches, and none that is full at the end
ROLES = [role for role, count in COUNTS.items() for _ in range(count)]
IMAGES = noise(len(ROLES), seed=3)
SHAS = [hashlib.sha256(image.tobytes()).hexdigest() for image in IMAGES]
JUDGE, TUNE = np.arange(70), np.arange(70, 103)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("artifact"), CLASSES)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """An artifact to spoil."""
    return make_artifact(tmp_path / "own", CLASSES)


@pytest.fixture(scope="module")
def truth(made: Path) -> np.ndarray:
    """What the graph answers of every image."""
    return answer(made / "model.onnx", IMAGES)


def label(truth: np.ndarray) -> list[str]:
    """A class for each image: two of three as the graph says, the third is the next one."""
    return [CLASSES[(int(found.argmax()) + (number % 3 == 0)) % 4] for number, found in enumerate(truth)]


@pytest.fixture
def index(tmp_path: Path, truth: np.ndarray) -> Path:
    return write_pixels(tmp_path / "pixels", CLASSES, list(zip(ROLES, label(truth), strict=True)), IMAGES)


@pytest.fixture
def inputs(made: Path, index: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "artifact": str(made),
        "pixels": str(index),
        "tune": None,
        "threads": 1,
        "answers": str(tmp_path / "new" / "answers.json"),
    }


def recorded(file: Path, samples: np.ndarray, probabilities: np.ndarray) -> str:
    shas = np.array([list(bytes.fromhex(SHAS[i])) for i in samples], np.uint8).reshape(-1, 32)
    np.savez(file, sha=shas, probabilities=probabilities)
    return str(file)


def test_judge_is_answered_sample_by_sample(inputs: dict[str, Any], made: Path, truth: np.ndarray) -> None:
    outputs = prove.run(inputs, {}, silent)
    answers = read_json(Path(inputs["answers"]))
    labels = label(truth)
    assert answers["samples"] == [SHAS[i] for i in JUDGE]
    assert answers["labels"] == [labels[i] for i in JUDGE]
    assert answers["predicted"] == [CLASSES[truth[i].argmax()] for i in JUDGE]
    np.testing.assert_allclose(answers["confidence"], truth[JUDGE].max(axis=1), atol=ROUNDING)
    assert answers.keys() == {"samples", "labels", "predicted", "confidence"}
    assert len(Counter(answers["predicted"])) > 2  # or else the graph would be no test
    assert outputs["artifact"] == made.name
    assert outputs["answers"] == inputs["answers"]
    assert outputs["judge_samples"] == 70


def test_the_accuracy_is_of_tune(inputs: dict[str, Any], truth: np.ndarray) -> None:
    labels = label(truth)
    right = sum(CLASSES[truth[i].argmax()] == labels[i] for i in TUNE)
    outputs = prove.run(inputs, {}, silent)
    assert outputs["tune_accuracy"] == pytest.approx(right / 33)
    assert 0.5 < outputs["tune_accuracy"] < 0.9
    assert outputs["parity"] is None


def known(file: Path, left: np.ndarray, **said: Any) -> dict[str, Any]:
    """The artifact has answered all of judge but these, and what is `said`."""
    file.write_bytes(b"".join(bytes.fromhex(SHAS[i]) for i in left))
    return {"ask": str(file), "tune": None, "answered_by": answerer("onnxruntime"), **said}


@pytest.mark.parametrize("left", [[], [3], [69, 0, 40]], ids=["none", "one", "some"])
def test_what_judge_was_answered_is_not_asked_again(
    inputs: dict[str, Any], tmp_path: Path, truth: np.ndarray, left: list[int]
) -> None:
    said: list[float] = []
    asked = inputs | {"known": known(tmp_path / "ask", np.array(left, int))}
    outputs = prove.run(asked, {}, lambda _done, total, *_, **__: said.append(total))
    answers = read_json(Path(inputs["answers"]))
    assert answers["samples"] == [SHAS[i] for i in sorted(left)]
    assert answers["predicted"] == [CLASSES[truth[i].argmax()] for i in sorted(left)]
    assert (outputs["judge_samples"], outputs["asked"]) == (70, len(left))
    assert set(said) == {33 + len(left)}  # tune is asked about as before


def test_what_is_known_of_tune_is_not_asked_again(inputs: dict[str, Any], tmp_path: Path) -> None:
    of_tune = {"tune_accuracy": 0.625, "parity": {"agreement": 0.5}}
    said: list[float] = []
    asked = inputs | {"known": known(tmp_path / "ask", JUDGE[:4], tune=of_tune)}
    outputs = prove.run(asked, {}, lambda _done, total, *_, **__: said.append(total))
    assert {name: outputs[name] for name in of_tune} == of_tune
    assert set(said) == {4}


def test_what_another_version_answered_is_asked_again(inputs: dict[str, Any], tmp_path: Path) -> None:
    of_tune = {"tune_accuracy": 0.625, "parity": None}
    before = known(tmp_path / "ask", JUDGE[:0], tune=of_tune, answered_by="this processor, onnxruntime 0.1")
    outputs = prove.run(inputs | {"known": before}, {}, silent)
    assert outputs["asked"] == len(read_json(Path(inputs["answers"]))["samples"]) == 70
    assert outputs["tune_accuracy"] != 0.625
    assert outputs["answered_by"] == answerer("onnxruntime")


def test_a_damaged_artifact_is_found_out_where_nothing_is_left_to_ask(
    inputs: dict[str, Any], artifact: Path, tmp_path: Path
) -> None:
    tampered_graph(artifact)
    of_tune = {"tune_accuracy": 0.625, "parity": None}
    asked = inputs | {"artifact": str(artifact), "known": known(tmp_path / "ask", JUDGE[:0], tune=of_tune)}
    with pytest.raises(StageError, match="is damaged"):
        prove.run(asked, {}, silent)


def test_the_stage_before_names_the_artifact(inputs: dict[str, Any], made: Path) -> None:
    outputs = prove.run(inputs | {"artifact": None}, {"build": {"path": str(made)}}, silent)
    assert outputs["artifact"] == made.name


def test_the_progress_ends_with_all_images(inputs: dict[str, Any]) -> None:
    said: list[tuple[float, float, str]] = []
    prove.run(inputs, {}, lambda done, total, unit, **_: said.append((done, total, unit)))
    assert said[-1] == (103, 103, "image")
    assert [done for done, _, _ in said] == sorted({done for done, _, _ in said})


def test_classes_are_compared_by_name(inputs: dict[str, Any], tmp_path: Path, truth: np.ndarray) -> None:
    """The snapshot has them in another order, and one that the artifact does not know."""
    classes = ["unknown", *CLASSES[::-1]]
    labels = label(truth)
    rows = [(role, "unknown" if i in (0, 70) else labels[i]) for i, role in enumerate(ROLES)]
    index = write_pixels(tmp_path / "others", classes, rows, IMAGES)
    outputs = prove.run(inputs | {"pixels": str(index)}, {}, silent)
    right = sum(CLASSES[truth[i].argmax()] == rows[i][1] for i in TUNE)
    assert outputs["tune_accuracy"] == pytest.approx(right / 33)
    answers = read_json(Path(inputs["answers"]))
    assert answers["labels"] == [name for role, name in rows if role == "judge"]
    assert answers["predicted"] == [CLASSES[truth[i].argmax()] for i in JUDGE]


@pytest.mark.parametrize(
    ("roles", "judged", "tuned"),
    [(["judge"] * 3, 3, False), (["tune"] * 3, 0, True), (["train"] * 3, 0, False)],
    ids=["no tune", "no judge", "neither"],
)
def test_a_role_without_samples_is_no_error(
    inputs: dict[str, Any], tmp_path: Path, roles: list[str], judged: int, tuned: bool
) -> None:
    rows = [(role, "class1") for role in roles]
    index = write_pixels(tmp_path / "few", CLASSES, rows, IMAGES[:3])
    tune = recorded(tmp_path / "tune.npz", np.arange(3), np.full((3, 4), 0.25, np.float32))
    outputs = prove.run(inputs | {"pixels": str(index), "tune": tune}, {}, silent)
    assert outputs["judge_samples"] == len(read_json(Path(inputs["answers"]))["predicted"]) == judged
    assert (outputs["tune_accuracy"] is not None) is (outputs["parity"] is not None) is tuned


def test_parity_with_equal_probabilities(inputs: dict[str, Any], tmp_path: Path, truth: np.ndarray) -> None:
    order = TUNE[::-1]  # in whatever order they were recorded
    outputs = prove.run(inputs | {"tune": recorded(tmp_path / "tune.npz", order, truth[order])}, {}, silent)
    assert outputs["parity"]["samples"] == 33
    assert outputs["parity"]["agreement"] == 1.0
    assert outputs["parity"]["max_abs_difference"] < ROUNDING


def test_parity_says_the_largest_difference_and_how_often_both_agree(
    inputs: dict[str, Any], tmp_path: Path, truth: np.ndarray
) -> None:
    theirs = truth[TUNE].copy()
    theirs[4] += 0.125  # the largest difference: the same class
    for number in (0, 10, 20):  # three others are answered otherwise, by a hair
        best, second = np.argsort(theirs[number])[[-1, -2]]
        theirs[number] = 0
        theirs[number, best], theirs[number, second] = truth[TUNE[number], best], truth[TUNE[number], best] + 0.01
    largest = float(np.abs(theirs - truth[TUNE]).max())
    outputs = prove.run(inputs | {"tune": recorded(tmp_path / "tune.npz", TUNE, theirs)}, {}, silent)
    assert outputs["parity"]["max_abs_difference"] == pytest.approx(largest, abs=ROUNDING)
    assert outputs["parity"]["agreement"] == pytest.approx(30 / 33)


def test_parity_is_over_the_samples_that_both_have(inputs: dict[str, Any], tmp_path: Path, truth: np.ndarray) -> None:
    theirs = truth.copy()
    theirs[JUDGE] = 9.0  # of these tune knows nothing
    samples = np.concatenate([JUDGE[:20], TUNE[5:8]])
    outputs = prove.run(inputs | {"tune": recorded(tmp_path / "tune.npz", samples, theirs[samples])}, {}, silent)
    assert outputs["parity"]["samples"] == 3
    assert outputs["parity"]["max_abs_difference"] < ROUNDING


@pytest.mark.parametrize("case", ["no shared samples", "other classes"])
def test_where_nothing_can_be_compared_there_is_no_parity(
    inputs: dict[str, Any], tmp_path: Path, truth: np.ndarray, case: str
) -> None:
    samples, theirs = (JUDGE, truth[JUDGE]) if case == "no shared samples" else (TUNE, truth[TUNE][:, :3])
    outputs = prove.run(inputs | {"tune": recorded(tmp_path / "tune.npz", samples, theirs)}, {}, silent)
    assert outputs["parity"] is None


@pytest.mark.parametrize("kept", [0, 0.5], ids=["empty", "cut"])
def test_a_record_that_is_cut_off_is_named(
    inputs: dict[str, Any], tmp_path: Path, truth: np.ndarray, kept: float
) -> None:
    file = Path(recorded(tmp_path / "tune.npz", TUNE, truth[TUNE]))
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(StageError, match="export the model again"):
        prove.run(inputs | {"tune": str(file)}, {}, silent)


@pytest.mark.parametrize("content", [b"junk", None])
def test_a_record_that_cannot_be_read_is_named(inputs: dict[str, Any], tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "tune.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StageError, match="export the model again") as refused:
        prove.run(inputs | {"tune": str(file)}, {}, silent)
    assert str(refused.value).startswith(f"{file} cannot be read (")


def tampered_graph(artifact: Path) -> str:
    (artifact / "model.onnx").write_bytes(b"junk")
    return f"{artifact / 'model.onnx'} is damaged"


def junk_graph(artifact: Path) -> str:
    rewrite(artifact, "model.onnx", b"junk")
    return f"artifact {artifact.name} cannot be loaded: {artifact / 'model.onnx'} is no graph"


def other_answers(artifact: Path) -> str:
    with np.load(artifact / "golden.npz") as golden:
        images, probabilities = golden["images"], golden["probabilities"]
    np.savez(artifact / "golden.npz", images=images, probabilities=probabilities[::-1])
    rewrite(artifact, "golden.npz", (artifact / "golden.npz").read_bytes())
    return "the golden batch gave other answers than recorded"


@pytest.mark.parametrize("spoil", [tampered_graph, junk_graph, other_answers])
def test_an_artifact_that_is_not_what_was_built_is_refused(
    inputs: dict[str, Any], artifact: Path, spoil: Callable[[Path], str]
) -> None:
    words = spoil(artifact)
    with pytest.raises(StageError) as refused:
        prove.run(inputs | {"artifact": str(artifact)}, {}, silent)
    assert str(refused.value).startswith(words)
    assert not Path(inputs["answers"]).exists()


def test_images_of_another_size_are_refused(inputs: dict[str, Any], made: Path, tmp_path: Path) -> None:
    index = write_pixels(tmp_path / "large", CLASSES, [("judge", "class0")] * 2, noise(2, size=16))
    with pytest.raises(StageError) as refused:
        prove.run(inputs | {"pixels": str(index)}, {}, silent)
    assert str(refused.value) == (
        f"{index} holds images of shape (16, 16, 3), artifact {made.name} takes (8, 8, 3); "
        "run the pixels stage at its input size"
    )
