"""The audit of labels on a model's embeddings: swapped labels are found, odd data has a defined answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import audit
from pipeline.audit import find_auditable, out_of_sample
from pipeline.embedding import Cache
from pipeline.flags import calibrate, find_flags
from policies.labels import DropAudit, hold, is_sure
from policies.settings import LabelSettings


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
    file = colours.store / "ff" / ("f" * 64)  # one whose content is gone ends nothing
    asked["samples"].append(file.name)
    asked["labels"].append(0)
    asked["judge"].append(False)
    (tmp_path / "rows.json").write_text(json.dumps(asked))
    outputs = audit.run(inputs, {}, said)
    assert file.name in outputs["left_out"][0]
    found = json.loads((tmp_path / "found.json").read_text())
    assert outputs["n"] == len(found["audited"]) == len(rows)
    flagged = {flag["sample"] for flag in found["flags"]}
    wrong = {asked["samples"][index] for index in swapped}
    assert len(flagged & wrong) >= 0.8 * len(wrong)
    assert len(flagged - wrong) <= 3
    assert all(flag["suggested_score"] > flag["score"] for flag in found["flags"])


@pytest.fixture
def kept(tmp_path: Path) -> Any:
    """An audit of embeddings that are there already, and how often a classifier was fitted for it."""

    def run(embeddings: Any, labels: Any) -> dict[str, Any]:
        samples = [bytes([*divmod(number, 256), *[0] * 30]) for number in range(len(labels))]
        new = [number for number, sample in enumerate(samples) if sample not in Cache(tmp_path / "e").known()]
        if new:
            Cache(tmp_path / "e").add([samples[number] for number in new], embeddings[new])
        names = sorted({f"class {label}" for label in labels})
        rows = {
            "classes": names,
            "samples": [sample.hex() for sample in samples],
            "labels": [names.index(f"class {label}") for label in labels],
            "judge": [number % 5 == 4 for number in range(len(labels))],
        }
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        paths = {"rows": str(tmp_path / "rows.json"), "embeddings": str(tmp_path / "e"), "model": "", "store": ""}
        inputs = {**paths, "found": str(tmp_path / "found.json"), "seed": 0, "threads": 1}
        audit.run(inputs, {}, lambda *_a, **_k: None)
        found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
        return found

    return run


def test_a_small_drop_is_looked_at_by_one_classifier_of_the_rest(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[tuple[int, int]] = []
    answer = audit._answer

    def count(embeddings: Any, labels: Any, known: Any, unseen: Any, into: Any) -> None:
        fits.append((len(known), len(unseen)))
        answer(embeddings, labels, known, unseen, into)

    monkeypatch.setattr(audit, "_answer", count)
    embeddings, truth = clouds(3, 70)
    order = np.random.default_rng(0).permutation(210)
    embeddings, labels = embeddings[order], truth[order].copy()
    labels[150:153] = (labels[150:153] + 1) % 3
    kept(embeddings[:150], labels[:150])
    assert len(fits) == audit.FOLDS + 1  # and once for judge
    found = kept(embeddings[:160], labels[:160])
    assert fits[audit.FOLDS + 1 :] == [(120, 10)]
    assert len(found["audited"]) == 160
    assert sorted(flag["sample"][:4] for flag in found["flags"]) == ["0096", "0097", "0098"]  # 150, 151, 152
    kept(embeddings[:160], labels[:160])
    assert len(fits) == audit.FOLDS + 2  # nothing is new
    corrected = np.r_[truth[order][:152], labels[152:170]]
    found = kept(embeddings[:170], corrected)
    assert fits[-1][1] == 12  # two labels were answered since, and ten are new
    assert [flag["sample"][:4] for flag in found["flags"]] == ["0098"]
    kept(embeddings, labels)
    assert len(fits) == 2 * (audit.FOLDS + 1) + 2  # it has grown by more than a fifth


def test_a_new_class_is_audited_in_folds(kept: Any) -> None:
    embeddings, labels = clouds(3, 60)
    kept(embeddings[:120], labels[:120])
    found = kept(embeddings[:128], labels[:128])
    assert len(found["audited"]) == 128


def test_what_is_kept_and_damaged_is_found_again(kept: Any, tmp_path: Path) -> None:
    embeddings, labels = clouds(2, 40)
    labels[:3] = 1
    found = kept(embeddings, labels)
    for content in (b"", b"PK\x03\x04broken"):
        (tmp_path / "e" / audit.KEPT).write_bytes(content)
        assert kept(embeddings, labels) == found


def test_without_rows_nothing_is_flagged(kept: Any) -> None:
    assert kept(np.zeros((0, 4), np.float32), np.zeros(0, int)) == {"audited": [], "flags": []}


@pytest.mark.parametrize(("apart", "wrong", "held"), [(0.2, 0.0, 0), (0.4, 0.0, 0), (0.8, 0.0, 0), (0.8, 1 / 3, 3)])
def test_the_first_audit_holds_no_drop_because_its_network_is_weak(apart: float, wrong: float, held: int) -> None:
    """A hopeless, a weak and a good network on clean labels, and the good one where a third of them is wrong."""
    found = []
    for seed in range(3):
        draw = np.random.default_rng(seed)
        truth = np.repeat(np.arange(10), 60)
        embeddings = (draw.normal(size=(10, 32))[truth] * apart + draw.normal(size=(600, 32))).astype(np.float32)
        odd = draw.random(600) < wrong
        labels = np.where(odd, (truth + draw.integers(1, 10, 600)) % 10, truth)
        cooled = calibrate(labels, out_of_sample(embeddings, labels, draw.random(600) < 0.1, 0))
        sure = sum(is_sure(flag.score, cooled[flag.index].max()) for flag in find_flags(labels, cooled))
        found.append(hold(DropAudit(1, 600, sure), LabelSettings()).fired)
    assert sum(found) == held
