"""Flags of labels on arrays: what is found, what is not, and which arrays are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.flags import calibrate, check, estimate_noise, find_flags, load
from policies.job import StageError
from policies.labels import is_sure


def made(number: int, classes: int, noise: float, sharpness: float = 4.0) -> tuple[Any, Any, Any]:
    """Labels of which a share is wrong, a classifier's probabilities, and which of the labels are wrong."""
    draw = np.random.default_rng(3)
    truth = draw.integers(0, classes, number)
    scores = draw.normal(size=(number, classes))
    scores[np.arange(number), truth] += sharpness
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    wrong = draw.random(number) < noise
    labels = np.where(wrong, (truth + draw.integers(1, classes, number)) % classes, truth)
    return labels, probabilities, wrong


@pytest.mark.parametrize(("number", "classes", "noise"), [(3_000, 10, 0.1), (600, 3, 1 / 3), (2_000, 2, 0.05)])
def test_wrong_labels_are_found_and_few_right_ones(number: int, classes: int, noise: float) -> None:
    labels, probabilities, wrong = made(number, classes, noise)
    flags = find_flags(labels, probabilities)
    found = np.zeros(number, bool)
    found[[flag.index for flag in flags]] = True
    assert (found & wrong).sum() / wrong.sum() > 0.85
    assert (found & wrong).sum() / found.sum() > 0.8
    assert all(flag.given == labels[flag.index] != flag.suggested for flag in flags)
    assert all(flag.score == probabilities[flag.index, flag.given] for flag in flags)
    assert sorted(flags, key=lambda flag: flag.score) == flags
    rate = estimate_noise(labels, probabilities)
    assert rate.low < rate.estimate < rate.high
    assert abs(rate.estimate - wrong.mean()) < 0.05


def sure(labels: Any, probabilities: Any) -> Any:
    """Of which labels the cooled probabilities say beyond doubt that they are wrong."""
    cooled = calibrate(labels, probabilities)
    assert np.allclose(cooled.sum(1), 1)
    assert np.array_equal(cooled.argmax(1), probabilities.argmax(1))
    return np.array([is_sure(row[label], row.max()) for row, label in zip(cooled, labels, strict=True)])


@pytest.mark.parametrize("noise", [0.0, 0.1, 1 / 3])
@pytest.mark.parametrize("boast", [1.0, 8.0])
@pytest.mark.parametrize("sharpness", [6.0, 1.0])
def test_no_classifier_is_sure_of_what_it_does_not_know(sharpness: float, boast: float, noise: float) -> None:
    """A weak one, and one that boasts, say of few right labels beyond doubt that they are wrong."""
    labels, probabilities, wrong = made(1_500, 10, noise, sharpness)
    boasting = probabilities**boast
    found = sure(labels, boasting / boasting.sum(1, keepdims=True))
    assert found[~wrong].mean() < 0.02
    if noise and sharpness > 1:
        assert found[wrong].mean() > 0.5


def test_one_class_is_as_it_was() -> None:
    labels, probabilities, _ = made(20, 2, 0.0)
    assert calibrate(np.zeros_like(labels), probabilities) is probabilities


def test_clean_labels_give_few_flags() -> None:
    labels, probabilities, _ = made(2_000, 5, 0.0)
    assert len(find_flags(labels, probabilities)) < 20
    assert estimate_noise(labels, probabilities).estimate < 0.01


@pytest.mark.parametrize(
    ("labels", "probabilities"),
    [
        ([0], [[0.1, 0.9]]),
        ([1, 1, 1], [[0.9, 0.1]] * 3),
        ([0, 1, 1], [[0.5, 0.5]] * 3),
        ([0, 2, 2], [[0.2, 0.5, 0.3]] * 3),
    ],
    ids=["one label", "one class", "no class is likelier", "a class without labels"],
)
def test_what_can_tell_nothing_flags_nothing(labels: list[int], probabilities: list[list[float]]) -> None:
    given, found = check(np.array(labels), np.array(probabilities))
    assert find_flags(given, found) == []
    rate = estimate_noise(given, found)
    assert 0.0 <= rate.low <= rate.estimate <= rate.high <= 1.0


def test_a_class_of_two_labels_is_audited_too() -> None:
    labels = np.array([0] * 50 + [1] * 50 + [2, 2])
    probabilities = np.full((102, 3), 0.02)
    probabilities[np.arange(102), labels] = 0.96
    probabilities[101] = [0.97, 0.02, 0.01]
    (flag,) = find_flags(labels, probabilities)
    assert (flag.index, flag.given, flag.suggested) == (101, 2, 0)


HALVES = np.full((3, 2), 0.5)


@pytest.mark.parametrize(
    ("labels", "probabilities", "said"),
    [
        (np.array([0, 1]), HALVES, r"the shape \(2,\), probabilities \(3, 2\)"),
        (np.array([[0], [1], [1]]), HALVES, r"labels have the shape \(3, 1\)"),
        (np.array([], int), HALVES[:0], "there are no labels"),
        (np.array([0.0, 1.0, 1.0]), HALVES, "labels are float64"),
        (np.array([0, 1, 2]), HALVES, "label 2 is 2: probabilities have 2 columns"),
        (np.array([0, -1, 1]), HALVES, "label 1 is -1"),
        (np.array([0, 1, 1]), HALVES * [[1], [1], [np.nan]], "row 2 of the probabilities holds a value that is no"),
        (np.array([0, 1, 1]), HALVES * [[1], [1.1], [1]], r"row 1 .* does not sum to 1: \[0.55, 0.55\] \(1 such rows"),
        (np.array([0, 1, 1]), HALVES + [[0], [0], [0.6]] * np.array([1, -1]), "row 2 .* not between 0 and 1"),
        (np.array([0, 0, 0]), HALVES[:, :1] * 2, "1 column: two classes at least"),
        (np.array([0, 1, 1]), HALVES.astype(complex), "probabilities are complex128"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(labels: Any, probabilities: Any, said: str) -> None:
    with pytest.raises(StageError, match=said):
        check(labels, probabilities)


def test_half_precision_is_taken() -> None:
    _, probabilities, _ = made(100, 7, 0.0)
    check(np.zeros(100, np.uint8), probabilities.astype(np.float16))


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\x01\x00", b"PK\x03\x04broken"])
def test_a_file_that_holds_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.npy").write_bytes(content)
    with pytest.raises(StageError, match=r"labels\.npy: is no array of numbers"):
        load(tmp_path / "labels.npy")


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(StageError, match=r"is no array of numbers as numpy\.save writes it$"):  # no advice to trust it
        load(tmp_path / "labels.npy")


def test_a_header_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.zeros((1, 3)))
    content = (tmp_path / "p.npy").read_bytes().replace(b"(1, 3), }".ljust(21), b"(999999999999, 3), }".ljust(21))
    (tmp_path / "p.npy").write_bytes(content)
    assert b"999999999999" in content
    with pytest.raises(StageError, match="is no array of numbers"):
        load(tmp_path / "p.npy")


def test_it_is_a_program(tmp_path: Path) -> None:
    labels, probabilities, _ = made(300, 3, 0.2)
    np.save(tmp_path / "l.npy", labels)
    np.save(tmp_path / "p.npy", probabilities)
    command = [sys.executable, "-P", "-m", "pipeline.flags", str(tmp_path / "l.npy")]
    done = subprocess.run([*command, str(tmp_path / "p.npy")], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert set(said["noise_rate"]) == {"estimate", "low", "high"}
    assert [set(flag) for flag in said["flagged"][:1]] == [{"index", "given", "suggested", "score"}]
    refused = subprocess.run([*command, str(tmp_path / "none.npy")], capture_output=True, text=True, check=False)
    assert (refused.returncode, "none.npy: there is no such file" in refused.stderr) == (2, True)
