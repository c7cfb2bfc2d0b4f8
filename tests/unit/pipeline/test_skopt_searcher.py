"""What a tuning tries next, without Ray running: Ray's questions are asked here as Ray asks them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ray.tune.search import Searcher

from pipeline.settings import TrainSettings
from pipeline.skopt_searcher import SkoptSearcher, propose
from pipeline.space import Point, Space, parse_space

SPACE = parse_space(
    {"learning_rate": {"min": 1e-5, "max": 1.0, "log": True}, "batch_size": {"choices": [32, 64]}}, TrainSettings()
)


def loss(point: Point) -> float:
    """Lowest at a rate of 0.003 and batches of 64."""
    return (math.log10(point["learning_rate"]) + 2.5) ** 2 + (0.5 if point["batch_size"] == 32 else 0.0)


def search(space: Space = SPACE, **more: Any) -> SkoptSearcher:
    numbers: list[Point] = []

    def begin(point: Point) -> int:
        numbers.append(point)
        return len(numbers)

    return SkoptSearcher(space, begin, **more)


def told(searcher: SkoptSearcher) -> list[float | None]:
    return [score for _, score in searcher.tried.values()]


def ended(score: float | None, finished: bool = True) -> dict[str, Any]:
    return {"tune_loss": score, "finished": finished}


def test_it_finds_the_lowest_loss() -> None:
    searcher = search(spread=4)
    for number in range(14):
        asked = searcher.suggest(str(number))
        searcher.on_trial_complete(str(number), ended(loss(asked["point"])))
    later = [loss(point) for point, _ in list(searcher.tried.values())[4:]]
    assert min(later) < 0.1
    assert sum(later) / len(later) < 1.5  # chance alone: 2.4


def test_the_defaults_are_asked_for_first_and_each_trial_has_a_number() -> None:
    default = SPACE.find(TrainSettings())
    assert default is not None
    searcher = search(waiting=[default])
    assert searcher.suggest("a") == {"point": default, "number": 1}
    second = searcher.suggest("b")
    assert second["number"] == 2 and second["point"] != default


def test_the_same_past_gives_the_same_point_and_another_seed_another() -> None:
    past: list[tuple[Point, float | None]] = []
    for _ in range(5):
        point = propose(SPACE, past, seed=3, spread=3)
        assert point is not None and point == propose(SPACE, past, seed=3, spread=3)
        past.append((point, loss(point)))
    assert propose(SPACE, past, seed=3, spread=3) not in [point for point, _ in past]
    assert propose(SPACE, [], seed=3, spread=3) != propose(SPACE, [], seed=4, spread=3)


def test_a_finished_trial_is_told_with_its_score() -> None:
    searcher = search()
    searcher.suggest("a")
    searcher.on_trial_complete("a", ended(0.7))
    assert told(searcher) == [0.7]


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (ended(0.001, finished=False), False),  # stopped by successive halving
        (ended(0.001), True),
        (ended(math.nan), False),
        (ended(math.inf), False),
        (ended(None), False),
        ({"error": "the loss is nan"}, False),
        (None, True),
    ],
)
def test_a_trial_that_did_not_finish_has_no_score(result: dict[str, Any] | None, error: bool) -> None:
    searcher = search()
    searcher.suggest("a")
    searcher.on_trial_complete("a", result, error)
    searcher.on_trial_result("a", ended(0.0, finished=False))
    assert told(searcher) == [None]
    assert searcher.suggest("b")["point"] != searcher.tried["a"][0]


def test_those_without_a_score_are_told_as_the_worst_of_the_finished() -> None:
    past: list[tuple[Point, float | None]] = []
    for _ in range(6):
        point = propose(SPACE, past, seed=0, spread=6)
        assert point is not None
        past.append((point, loss(point)))
    worst = max(score for _, score in past if score is not None)
    extra = {"learning_rate": 0.02, "batch_size": 64}
    lied, stopped = [*past, (extra, worst)], [*past, (extra, None)]
    assert propose(SPACE, stopped, seed=0, spread=6) == propose(SPACE, lied, seed=0, spread=6)
    assert propose(SPACE, stopped, seed=0, spread=6) != propose(SPACE, [*past, (extra, 0.0)], seed=0, spread=6)


def test_trials_that_run_at_once_try_different_things() -> None:
    searcher = search(spread=2)
    for number in range(4):
        searcher.on_trial_complete(str(number), ended(loss(searcher.suggest(str(number))["point"])))
    points = [searcher.suggest(f"running {number}")["point"] for number in range(4)]
    assert all(one != other for index, one in enumerate(points) for other in points[:index])


def test_a_space_that_is_used_up_is_finished() -> None:
    space = parse_space(
        {"batch_size": {"choices": [16, 32]}, "augment.flip": {"choices": [True, False]}}, TrainSettings()
    )
    searcher = search(space, spread=2)
    points = []
    for number in range(4):
        points.append(searcher.suggest(str(number))["point"])
        searcher.on_trial_complete(str(number), ended(float(number)))
    assert sorted(map(str, points)) == sorted({str(point) for point in points})
    assert searcher.suggest("none is left") == Searcher.FINISHED


def test_a_space_of_one_point_is_tried_once() -> None:
    searcher = search(parse_space({"epochs": {"min": 3, "max": 3}}, TrainSettings()))
    assert searcher.suggest("a")["point"] == {"epochs": 3}
    assert searcher.suggest("b") == Searcher.FINISHED


def test_trials_of_an_earlier_attempt_are_known() -> None:
    first, second = {"learning_rate": 0.01, "batch_size": 32}, {"learning_rate": 0.1, "batch_size": 64}
    waiting = {"learning_rate": 0.001, "batch_size": 64}
    searcher = search(waiting=[waiting])
    searcher.add_evaluated_point(first, 0.4)
    searcher.add_evaluated_point(second, 0.1, pruned=True)
    assert told(searcher) == [0.4, None]
    assert searcher.suggest("a")["point"] == waiting
    assert searcher.suggest("b")["point"] not in (first, second, waiting)
