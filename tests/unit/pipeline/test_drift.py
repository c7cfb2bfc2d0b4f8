"""The comparison of a window with a reference: calibrated on clean windows, blind to another mix of classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import drift
from pipeline.drift import compare, tell_apart


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer clean windows: the least chance that can be told is 0.5%."""
    monkeypatch.setattr(drift, "DRAWS", 200)


def cloud(labels: Any, seed: int, shift: float = 0.0, width: int = 24) -> Any:
    """Embeddings of three classes that lie apart; `shift` moves all of them."""
    centres = np.random.default_rng(0).normal(size=(3, width)) * 3
    draw = np.random.default_rng(seed)
    return (centres[labels] + draw.normal(size=(len(labels), width)) + shift).astype(np.float32)


def mixed(number: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 3, number)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.usefixtures("quick")
def test_a_shift_is_an_alarm_and_clean_windows_seldom_are(labelled: bool) -> None:
    reference = mixed(120, 1)
    known = cloud(reference, 2)
    chances = []
    for seed in range(12):
        window = mixed(40, 10 + seed)
        given = window if labelled else None
        draw = np.random.default_rng(seed)
        chances.append(compare(known, reference, cloud(window, 30 + seed), given, draw).chance)
        assert compare(known, reference, cloud(window, 30 + seed, shift=1.0), given, draw).chance < 0.01
    assert sum(chance <= 0.05 for chance in chances) <= 3
    assert np.mean(chances) > 0.25


def test_another_mix_of_classes_is_no_drift_where_labels_tell_it() -> None:
    reference = mixed(120, 1)
    known = cloud(reference, 2)
    window = np.zeros(40, np.int64)  # one class alone
    draw = np.random.default_rng(0)
    assert compare(known, reference, cloud(window, 3), window, draw).chance > 0.05
    assert compare(known, reference, cloud(window, 3), None, draw).chance < 0.01


def of_few(classes: int, each: int, seed: int, width: int = 32) -> tuple[Any, Any, Any]:
    """A reference with few images of each class, its labels, and what draws more of them."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(classes, width)) * 2
    spread = np.abs(draw.normal(1, 0.3, size=width))

    def more(labels: Any, shift: float = 0.0) -> Any:
        return (centres[labels] + draw.normal(size=(len(labels), width)) * spread + shift).astype(np.float32)

    labels = np.repeat(np.arange(classes), each)
    return more(labels), labels, more


@pytest.mark.parametrize("among", [1, 2])
@pytest.mark.usefixtures("quick")
def test_a_clean_drop_of_one_or_two_classes_is_no_alarm(among: int) -> None:
    """Of each class `tune` has ten images, whose mean is off by a third of their spread."""
    chances, shifted = [], []
    for seed in range(24):
        reference, labels, more = of_few(10, 10, seed)
        window = np.arange(30) % among
        draw = np.random.default_rng(seed)
        chances.append(compare(reference, labels, more(window), window, draw).chance)
        if seed < 8:
            shifted.append(compare(reference, labels, more(window, shift=1.0), window, draw).chance)
    assert sum(chance <= 0.01 for chance in chances) <= 1
    assert sum(chance <= 0.1 for chance in chances) <= 6
    assert sum(chance <= 0.01 for chance in shifted) >= 6


def test_what_cannot_be_compared_is_left_out() -> None:
    reference, labels, more = of_few(4, 6, 0)
    labels[labels == 3] = 2
    reference, labels = reference[:-5], labels[:-5]  # 6, 6 and 7 images
    window = np.array([0, 0, 0, 0, 0, 1, 2, 2])
    assert compare(reference, labels, more(window), window, np.random.default_rng(0)).samples == 3 + 1 + 2
    alone = np.array([0] * 12 + [1])
    found = compare(more(alone), alone, more(alone[-1:]), alone[-1:], np.random.default_rng(0))
    assert (found.samples, found.statistic, found.chance) == (0, 0.5, 1.0)
    nothing = np.zeros(0, np.int64)
    assert compare(reference, labels, more(nothing), nothing, np.random.default_rng(0)).chance == 1.0


def test_a_window_larger_than_half_of_the_reference_is_drawn_from() -> None:
    labels = mixed(60, 1)
    found = compare(cloud(labels, 2), labels, cloud(mixed(500, 3), 4), None, np.random.default_rng(0))
    assert (found.samples, found.reference) == (30, 60)


def test_the_same_seed_gives_the_same() -> None:
    labels = mixed(60, 1)
    window = cloud(mixed(20, 3), 4)
    found = [compare(cloud(labels, 2), labels, window, None, np.random.default_rng(7)) for _ in range(2)]
    assert found[0] == found[1]


def test_what_is_all_alike_is_not_told_apart() -> None:
    same = np.ones((30, 4), np.float32)
    assert tell_apart(same, same[:10], np.random.default_rng(0)) == 0.5
    assert compare(same, np.zeros(30, np.int64), same[:10], None, np.random.default_rng(0)).chance == 1.0


def test_darker_images_are_told_apart(
    trained: Any, colours: Any, tmp_path: Path, said: Any, keep: Any, encode: Any
) -> None:
    """On the embedding of a trained model: the tune samples are the reference, new ones the windows."""
    tune = [(sha, label) for sha, label, role in colours.rows if role == 1]
    draw = np.random.default_rng(9)
    windows = []
    for factor in (1.0, 0.5):
        names = []
        for index in range(20):
            image = draw.integers(0, 120, (36, 40, 3))
            image[..., index % 3] += 100
            names.append(keep(colours.store, encode((image * factor).astype(np.uint8))))
        windows.append({"kind": "unlabelled", "samples": names, "labels": None})
    reference = {"samples": [sha for sha, _ in tune], "labels": [label for _, label in tune]}
    (tmp_path / "windows.json").write_text(json.dumps({"reference": reference, "windows": windows}))
    inputs = {
        "model": str(trained.model),
        "store": str(colours.store),
        "embeddings": str(tmp_path / "embeddings"),
        "windows": str(tmp_path / "windows.json"),
        "compared": str(tmp_path / "compared.json"),
        "seed": 0,
        "threads": 1,
    }
    drift.run(inputs, {}, said)
    same, darker = json.loads((tmp_path / "compared.json").read_text())
    assert same["chance"] > 0.01
    assert darker["chance"] < 0.01
    assert darker["statistic"] > 0.9
