"""The audit of labels on a model's embeddings: swapped labels are found, odd data has a defined answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import audit, kept_audit
from pipeline.audit import ask_in_folds, find_auditable
from pipeline.embedding_cache import Cache
from pipeline.flags import calibrate, find_flags
from pipeline.snapshot import ROW
from policies.labels import DropAudit, hold, is_sure
from policies.settings import LabelSettings


def clouds(classes: int, each: int, width: int = 16) -> tuple[Any, Any]:
    """Embeddings of classes that lie apart, and their labels."""
    draw = np.random.default_rng(5)
    labels = np.repeat(np.arange(classes), each)
    centres = draw.normal(size=(classes, width)) * 3
    return (centres[labels] + draw.normal(size=(len(labels), width))).astype(np.float32), labels


def out_of_sample(embeddings: Any, labels: Any, judge: Any, seed: int) -> Any:
    return ask_in_folds(embeddings, labels, judge, seed).probabilities


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


def write_rows(file: Path, rows: Sequence[tuple[bytes, int, int]]) -> None:
    file.write_bytes(np.array([(list(sha), label, role) for sha, label, role in rows], ROW).tobytes())


def test_swapped_labels_are_found(trained: Any, colours: Any, tmp_path: Path, said: Any) -> None:
    """On the embedding of a trained model, with a tenth of the labels swapped."""
    rows = [row for row in colours.rows if row[2] != 1]  # of tune some labels are wrong already
    labels = [label for _, label, _ in rows]
    swapped = list(range(0, len(rows), 10))
    for index in swapped:
        labels[index] = (labels[index] + 1) % 3
    lost = "f" * 64  # one whose content is gone ends nothing
    table = [(bytes.fromhex(sha), label, role) for (sha, _, role), label in zip(rows, labels, strict=True)]
    write_rows(tmp_path / "rows", [*table, (bytes.fromhex(lost), 0, 0)])
    inputs = {
        "model": str(trained.model),
        "store": str(colours.store),
        "embeddings": str(tmp_path / "embeddings"),
        "rows": str(tmp_path / "rows"),
        "classes": ["red", "green", "blue"],
        "whole": True,
        "changed": 0,
        "found": str(tmp_path / "found.json"),
        "seed": 0,
        "threads": 1,
    }
    outputs = audit.run(inputs, {}, said)
    assert lost in outputs["left_out"][0]
    found = json.loads((tmp_path / "found.json").read_text())
    assert (outputs["n"], found["audited"], found["unaudited"]) == (len(rows), len(rows), [lost])
    flagged = {flag["sample"] for flag in found["flags"]}
    wrong = {rows[index][0] for index in swapped}
    assert len(flagged & wrong) >= 0.8 * len(wrong)
    assert len(flagged - wrong) <= 3
    assert all(flag["suggested_score"] > flag["score"] for flag in found["flags"])


class Kept:
    """Audits of embeddings that are there already; a sample is named by its number."""

    def __init__(self, folder: Path, embeddings: Any, labels: Any) -> None:
        self.folder = folder
        self.labels = labels.copy()
        self.shas = [number.to_bytes(2) + bytes(30) for number in range(len(labels))]
        Cache(folder / "e").add(self.shas, embeddings)

    def outputs(self, rows: Sequence[int], whole: bool) -> dict[str, Any]:
        """Every fifth is of judge. The classes are those of the rows, as the daemon names them."""
        names = sorted({f"class {self.labels[number]}" for number in rows}, reverse=not whole)
        table = [
            (self.shas[number], names.index(f"class {self.labels[number]}"), 2 if number % 5 == 4 else 0)
            for number in rows
        ]
        write_rows(self.folder / "rows", table)
        paths = {"rows": str(self.folder / "rows"), "embeddings": str(self.folder / "e"), "model": "", "store": ""}
        about = {"classes": names, "whole": whole, "changed": 7, "seed": 0, "threads": 1}
        return audit.run({**paths, **about, "found": str(self.folder / "found.json")}, {}, lambda *_a, **_k: None)

    def __call__(self, rows: Sequence[int], *, whole: bool = False) -> dict[str, Any]:
        assert "folds" not in self.outputs(rows, whole)
        found: dict[str, Any] = json.loads((self.folder / "found.json").read_text())
        return found

    def flagged(self, rows: Sequence[int], *, whole: bool = False) -> dict[int, tuple[str, str]]:
        flags = self(rows, whole=whole)["flags"]
        return {int(flag["sample"][:4], 16): (flag["given"], flag["suggested"]) for flag in flags}

    def about(self, name: str = "about") -> Any:
        return json.loads((self.folder / "e" / audit.KEPT / f"{name}.json").read_text())


@pytest.fixture
def kept(tmp_path: Path) -> Callable[..., Kept]:
    """Five hundred and more samples in three clouds, in any order, of which a tenth is labelled wrongly."""

    def make(number: int = 560, apart: float = 1.0) -> Kept:
        embeddings, truth = clouds(3, number // 3 + 1)
        order = np.random.default_rng(0).permutation(len(truth))[:number]
        draw = np.random.default_rng(1)
        labels = np.where(draw.random(number) < 0.1, (truth[order] + 1) % 3, truth[order])
        noise = draw.normal(size=(number, 16)) * (1 / apart - 1) * 3
        return Kept(tmp_path, (embeddings[order] + noise).astype(np.float32), labels)

    return make


@pytest.mark.parametrize("apart", [1.0, 0.6])
def test_a_small_drop_alone_is_flagged_as_with_all_others(kept: Any, apart: float) -> None:
    """By clear and by blurred embeddings; the folds of all differ, so that what is at the edge may."""
    audits = kept(apart=apart)
    audits(range(500), whole=True)
    alone = audits(range(500, 560))
    assert (alone["unaudited"], alone["audited"]) == ([], 560)
    together = audits(range(560), whole=True)
    of_drop = [flag for flag in together["flags"] if int(flag["sample"][:4], 16) >= 500]
    by_sample = {flag["sample"]: flag for flag in alone["flags"]}
    both = [flag for flag in of_drop if flag["sample"] in by_sample]
    assert len(both) >= 5
    assert len(of_drop) + len(by_sample) - 2 * len(both) <= 2
    for flag in both:
        other = by_sample[flag["sample"]]
        assert (flag["given"], flag["suggested"]) == (other["given"], other["suggested"])
        assert abs(flag["suggested_score"] - other["suggested_score"]) < 0.1


def test_asked_again_the_same_samples_get_the_same_answers(kept: Any) -> None:
    """Of a file that is renamed, or a drop that is audited once more after a kill."""
    audits = kept()
    some = {audits.shas[number].hex() for number in range(100, 180)}
    before = {flag["sample"]: flag for flag in audits(range(500), whole=True)["flags"] if flag["sample"] in some}
    after = {flag["sample"]: flag for flag in audits(range(100, 180))["flags"]}
    assert after.keys() == before.keys()
    for sample, flag in after.items():
        assert (flag["given"], flag["suggested"]) == (before[sample]["given"], before[sample]["suggested"])
        assert np.isclose(flag["score"], before[sample]["score"], rtol=1e-6, atol=0)
    assert audits.about("since")["audited"] == 0
    new = audits.flagged(range(500, 560))
    assert audits.flagged(range(500, 560)) == new


def test_a_corrected_label_is_asked_of_a_classifier_that_did_not_see_it(kept: Any) -> None:
    audits = kept(300)
    flagged = audits.flagged(range(300), whole=True)
    wrong = [number for number in flagged if number % 5 != 4][:6]
    for number in wrong:
        audits.labels[number] = int(flagged[number][1][-1])
    assert audits.flagged(wrong) == {}
    assert sum(audits.about("since")["left"].values()) == 6


def test_many_of_a_class_that_are_of_another_now_need_folds(kept: Any) -> None:
    audits = kept(300)
    audits(range(300), whole=True)
    first = [number for number in range(300) if audits.labels[number] == 0 and number % 5 != 4]
    judge = [number for number in range(300) if audits.labels[number] == 0 and number % 5 == 4]
    audits.labels[[*first, *judge]] = 1
    assert "folds" not in audits.outputs(judge, whole=False)  # nothing was fitted on them
    few = len(first) // 6
    assert "folds" not in audits.outputs(first[:few], whole=False)
    said = audits.outputs(first[few : 2 * few], whole=False)["folds"]
    assert said == f"{2 * few} of {len(first)} samples of class 0 are of another class now"


def test_what_the_daemon_is_told_of_folds_and_since(kept: Any) -> None:
    audits = kept()
    audits(range(500), whole=True)
    fitted = {f"class {label}": sum(audits.labels[i] == label for i in range(500) if i % 5 != 4) for label in range(3)}
    about = audits.about()
    assert (about["audited"], about["changed"], about["fitted"]) == (500, 7, fitted)
    audits(range(495, 530))
    audits(range(530, 540))
    assert audits.about("since")["audited"] == 40
    assert sum(audits.about("since")["fitted"].values()) == 32
    audits(range(540), whole=True)
    assert not (audits.folder / "e" / audit.KEPT / "since.json").exists()


def test_a_class_too_small_to_be_learnt_is_not_audited_but_counted(kept: Any) -> None:
    audits = kept(300)
    audits(range(290), whole=True)
    audits.labels[291] = 9
    found = audits(range(290, 300))
    assert found["unaudited"] == [audits.shas[291].hex()]
    assert audits.about("since")["fitted"]["class 9"] == 1


@pytest.mark.parametrize("name", ["about.json", "cutoff.npz", "keys.npy"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", b"{}", None])
def test_what_is_kept_and_damaged_needs_folds(kept: Any, name: str, content: bytes | None) -> None:
    audits = kept(100)
    before = audits(range(100), whole=True)
    file = audits.folder / "e" / audit.KEPT / name
    file.write_bytes(content) if content is not None else file.unlink()
    assert audits.outputs(range(10), whole=False)["folds"] == "what was kept cannot be read"
    assert audits(range(100), whole=True) == before


def test_a_kill_while_it_is_kept_leaves_what_was_there(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    audits = kept()
    audits(range(500), whole=True)
    alone = audits.flagged(range(500, 560))

    def die(*_paths: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kept_audit, "settle", die)
    with pytest.raises(KeyboardInterrupt):
        audits(range(560), whole=True)
    assert audits.flagged(range(500, 560)) == alone
    monkeypatch.undo()
    audits(range(560), whole=True)
    assert audits.about()["audited"] == 560


def test_without_rows_nothing_is_flagged(kept: Any) -> None:
    nothing = {"unaudited": [], "audited": 0, "flags": []}
    audits = kept(100)
    assert audits([], whole=True) == nothing
    audits(range(100), whole=True)
    assert audits([]) == {**nothing, "audited": 100}
    assert audits([], whole=True) == nothing
    assert "folds" in audits.outputs([], whole=False)


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
