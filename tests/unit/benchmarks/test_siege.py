"""What clients were answered while something was killed, judged by the journal's promotions: a fault must be seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.asking import Answer, Known
from benchmarks.kill import Kill, summarize
from benchmarks.siege import Siege, cut_drops
from daemon.demo.digits import cut

CLASSES = ("0", "1")
VALUES = np.array([[0.25, 0.75]], np.float32)
GOOD = Answer(0, 20.0, 20.0, 20.1, 0, version=2, names=CLASSES, probabilities=VALUES[0].tobytes())
PROMOTED = {1: ("first", 1.0, 2.0), 2: ("second", 10.0, 12.0), 3: ("third", 30.0, None)}  # artifact, started, served


@pytest.fixture
def siege(tmp_path: Path) -> Siege:
    """Nothing is started in it; what the artifacts answer is known already."""
    siege = Siege(tmp_path / "workspace")
    siege._known = {"first": Known(CLASSES, VALUES[:, ::-1]), "second": Known(CLASSES, VALUES)}
    return siege


def test_a_good_answer_is_called_good(siege: Siege) -> None:
    assert siege._fault(GOOD, PROMOTED) is None
    old = replace(GOOD, version=1, sent=11.9, ended=13.0, probabilities=VALUES[0][::-1].tobytes())
    assert siege._fault(old, PROMOTED) is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"version": 4}, "which the journal does not know"),
        ({"version": 1, "sent": 12.1}, "when another served"),
        ({"version": 3}, "when another served"),
        ({"probabilities": VALUES[0][::-1].tobytes()}, "otherwise than its artifact"),
        ({"names": ("0", "2")}, "has other labels"),
    ],
)
def test_a_wrong_answer_is_called_wrong(siege: Siege, wrong: dict[str, Any], words: str) -> None:
    fault = siege._fault(replace(GOOD, **wrong), PROMOTED)
    assert fault is not None
    assert words in fault


def test_only_a_killed_tritonserver_explains_failed_requests() -> None:
    """Killed at 5: one failed before, two until the answer at 9, one afterwards."""
    answered = replace(GOOD, sent=8.9, ended=9.0)
    failed = [replace(GOOD, sent=at, ended=at + 0.1, error="refused") for at in (4.0, 6.0, 7.0, 9.5)]
    found = summarize([answered, *failed], Kill("triton", aimed=False, at=5.0))
    assert (found["requests"], found["failed"], found["failed_without_triton"]) == (5, 2, 2)
    assert found["triton_seconds"] == 4.0
    found = summarize([answered, *failed], Kill("daemon", aimed=False, at=5.0))
    assert (found["failed"], found["failed_without_triton"], found["triton_seconds"]) == (4, 0, None)


def test_each_drop_brings_a_class_and_no_image_comes_twice() -> None:
    waves = cut()
    drops = list(cut_drops((*waves.first, *waves.second)))
    assert [len({digit.name for digit in drop}) for drop in drops] == [3, 4, 5, 6, 7, 8, 9, 10]
    numbers = [digit.number for drop in drops for digit in drop]
    assert len(numbers) == len(set(numbers))
    assert all(len(drop) >= 20 * 3 for drop in drops)
