"""The audit of labels on a model's embeddings: swapped labels are found, odd data has a defined answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import audit
from pipeline.audit import find_auditable, out_of_sample


def clouds(classes: int, each: int, width: int = 16) -> tuple[Any, Any]:
    """Embeddings of classes that lie apart, and their labels."""
    draw = np.random.default_rng(5)
    labels = np.repeat(np.arange(classes), each)
    centres = draw.normal(size=(classes, width)) * 3
    return (centres[labels] + draw.normal(size=(len(labels), width))).astype(np.float32), labels


def test_each_answer_is_of_a_classifier_that_never_saw_the_sample() -> None:
    """A label that stands alone among another class's is not repeated by one that was fitted without it."""
    embeddings, labels = clouds(3, 40)
    wrong = labels.copy()
    wrong[:8] = 1
    found = out_of_sample(embeddings, wrong, np.zeros(len(labels), bool), seed=0)
    assert found.shape == (120, 3)
    assert np.allclose(found.sum(1), 1)
    assert (found[:8].argmax(1) == 0).all()


def test_judge_is_never_fitted_on() -> None:
    embeddings, labels = clouds(2, 40)
    judge = np.arange(80) % 4 == 0
    clean = out_of_sample(embeddings, labels, judge, seed=0)
    swapped = np.where(judge, 1 - labels, labels)
    assert np.array_equal(out_of_sample(embeddings, swapped, judge, seed=0), clean)


def test_the_same_seed_gives_the_same() -> None:
    embeddings, labels = clouds(3, 20)
    judge = np.zeros(60, bool)
    assert np.array_equal(out_of_sample(embeddings, labels, judge, 3), out_of_sample(embeddings, labels, judge, 3))


@pytest.mark.parametrize(
    ("labels", "judge", "audited"),
    [
        ([0, 0, 1, 1, 2], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]),  # a class of one sample
        ([0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]),
        ([0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]),  # one class alone could be learnt
        ([0, 0, 0], [0, 0, 0], [0, 0, 0]),
        ([0], [0], [0]),
        ([], [], []),
    ],
)
def test_of_what_cannot_be_learnt_nothing_is_said(labels: list[int], judge: list[int], audited: list[int]) -> None:
    found = find_auditable(np.array(labels, int), np.array(judge, bool))
    assert found.tolist() == [bool(value) for value in audited]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_images_that_are_all_alike_flag_nothing(value: float) -> None:
    labels = np.array([0, 1] * 10)
    found = out_of_sample(np.full((20, 8), value, np.float32), labels, np.zeros(20, bool), 0)
    assert np.allclose(found, 0.5)


def test_a_class_of_two_samples_is_audited() -> None:
    embeddings, labels = clouds(3, 30)
    kept = np.r_[0:62]
    found = out_of_sample(embeddings[kept], labels[kept], np.zeros(62, bool), 0)
    assert np.allclose(found.sum(1), 1)


def test_swapped_labels_are_found(trained: Any, colours: Any, tmp_path: Path, said: Any) -> None:
    """On the embedding of a trained model, with a tenth of the labels swapped."""
    rows = [row for row in colours.rows if row[2] != 1]  # of tune some labels are wrong already
    labels = [label for _, label, _ in rows]
    swapped = list(range(0, len(rows), 10))
    for index in swapped:
        labels[index] = (labels[index] + 1) % 3
    asked = {
        "classes": ["red", "green", "blue"],
        "samples": [sha for sha, _, _ in rows],
        "labels": labels,
        "judge": [role == 2 for _, _, role in rows],
    }
    (tmp_path / "rows.json").write_text(json.dumps(asked))
    inputs = {
        "model": str(trained.model),
        "store": str(colours.store),
        "embeddings": str(tmp_path / "embeddings"),
        "rows": str(tmp_path / "rows.json"),
        "found": str(tmp_path / "found.json"),
        "seed": 0,
        "threads": 1,
    }
    outputs = audit.run(inputs, {}, said)
    found = json.loads((tmp_path / "found.json").read_text())
    assert outputs["n"] == len(found["audited"]) == len(rows)
    flagged = {flag["sample"] for flag in found["flags"]}
    wrong = {asked["samples"][index] for index in swapped}
    assert len(flagged & wrong) >= 0.8 * len(wrong)
    assert len(flagged - wrong) <= 3
    assert all(flag["suggested_score"] > flag["score"] for flag in found["flags"])
