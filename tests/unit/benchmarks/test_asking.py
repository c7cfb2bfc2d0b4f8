"""What the clients of the benchmarks noted, and how it is judged: a fault must be seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.asking import Answer, Known, find_stalls, longest_ms
from benchmarks.swap import Version, find_fault
from benchmarks.tiny_models import ask_artifact, draw_images, make_artifact, name_classes, require_different

CLASSES = ("cat", "dog")
VALUES = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
GOOD = Answer(0, 10.0, 10.0, 10.1, 0, version=2, names=CLASSES, probabilities=VALUES[0].tobytes())


def asked(client: int, due: float, ended: float, error: str | None = None, sent: float | None = None) -> Answer:
    return Answer(client, due, due if sent is None else sent, ended, 0, error=error)


def test_a_wait_begins_when_the_client_was_to_ask_or_had_its_answer_before() -> None:
    """The second request was due while the first waited, and was sent after it."""
    stalls = find_stalls([asked(0, 1.0, 3.0), asked(0, 2.0, 3.5, sent=3.0), asked(0, 5.0, 5.25)])
    assert [(stall.since, stall.until) for stall in stalls] == [(1.0, 3.0), (3.0, 3.5), (5.0, 5.25)]


def test_failed_requests_are_part_of_the_wait_for_an_answer() -> None:
    stalls = find_stalls([asked(0, 1.0, 1.5, "refused"), asked(0, 2.0, 2.5, "refused"), asked(0, 3.0, 4.0)])
    assert [(stall.since, stall.until) for stall in stalls] == [(1.0, 4.0)]
    assert [stall.until for stall in find_stalls([asked(0, 1.0, 1.5, "refused")])] == [1.5]


def test_each_client_waits_for_itself() -> None:
    stalls = find_stalls([asked(0, 1.0, 1.25), asked(1, 1.0, 4.0), asked(0, 2.0, 2.25)])
    assert sorted(stall.ms for stall in stalls) == [250, 250, 3000]
    assert longest_ms(stalls, 3.0, 5.0) == 3000
    assert longest_ms(stalls, 4.5, 5.0) == 0


@pytest.fixture
def hall() -> Any:
    """Two versions of one switch: the load of the second was over at 9."""
    versions = [Version(1, "first", begins=1.0, ends=9.0), Version(2, "second", begins=8.5)]
    known = {"first": Known(("cat", "cow"), VALUES[:, ::-1]), "second": Known(CLASSES, VALUES)}
    return SimpleNamespace(versions=versions, known=known)


def test_a_good_answer_is_called_good(hall: Any) -> None:
    assert find_fault(GOOD, hall) is None
    assert find_fault(replace(GOOD, probabilities=(VALUES[0] + 1e-6).astype(np.float32).tobytes()), hall) is None


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"error": "refused"}, "failed"),
        ({"version": 3}, "wrong_version"),
        ({"sent": 8.0, "ended": 8.4}, "wrong_version"),  # nobody had begun to load it
        ({"probabilities": VALUES[1].tobytes()}, "wrong_version"),
        ({"probabilities": VALUES[0][:1].tobytes()}, "wrong_version"),
        ({"probabilities": np.array([0.25, np.nan], np.float32).tobytes()}, "wrong_version"),
        ({"names": ("cat", "cow")}, "wrong_label"),
        ({"names": ("dog", "cat")}, "wrong_label"),
    ],
)
def test_a_wrong_answer_is_called_wrong(hall: Any, wrong: dict[str, Any], fault: str) -> None:
    assert find_fault(replace(GOOD, **wrong), hall) == fault


def test_the_version_before_may_answer_what_was_sent_before_the_load_was_over(hall: Any) -> None:
    old = replace(GOOD, version=1, names=("cat", "cow"), probabilities=VALUES[0][::-1].tobytes())
    assert find_fault(replace(old, sent=8.9, ended=12.0), hall) is None
    assert find_fault(replace(old, sent=9.1), hall) == "wrong_version"


def test_tiny_models_tell_who_answers(tmp_path: Path) -> None:
    images = draw_images(8, 8)
    made = [make_artifact(tmp_path / "models", tmp_path / "artifacts", number, 8) for number in range(9)]
    known = [ask_artifact(Path(built["path"]), number, images) for number, built in enumerate(made)]
    require_different(known)
    assert len({name for number in range(9) for name in name_classes(number)}) == sum(len(k.classes) for k in known)
    assert len(known[0].classes) == len(known[8].classes)
    with pytest.raises(ValueError, match="answer alike"):
        require_different([*known, known[3]])
