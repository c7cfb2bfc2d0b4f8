"""The simulated histories: a promotion that is wrong must be seen, whoever made it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import promotions
from benchmarks.promotions import MARGIN, RULES, Model, World, play

WORLD = World(400, 400, np.array([0.5, 0.5]), np.array([0.9, 0.9]), 0.97, 0.2)
SEEN = np.array([0, 1] * 200)


def model(*recall: float) -> Model:
    return Model(1, np.array(recall), np.ones(400, dtype=bool), 2)


@pytest.mark.parametrize("rule", RULES)
def test_all_rules_meet_the_same_challengers(rule: str) -> None:
    found, other = play("worse by 2", rule, 3), play("worse by 2", "always", 3)
    shared = ("samples", "most", "classes", "accuracy")
    assert [found[key] for key in shared] == [other[key] for key in shared]
    assert found["wrong"] <= found["promoted"] <= promotions.CHALLENGERS


def test_who_promotes_always_is_always_wrong_with_what_is_worse_and_creeps_down() -> None:
    found = play("worse by 2", "always", 3)
    assert found["promoted"] == found["wrong"] == promotions.CHALLENGERS
    assert found["creep_points"] > 100 * MARGIN * 10
    assert play("equal", "always", 3)["wrong"] == 0
    assert play("better by 1", "always", 3)["creep_points"] == 0


def test_small_steps_add_up_to_a_wrong_one() -> None:
    """Each a point below the one before: from the second on, what serves is the margin below the best ever served."""
    found = play("worse by 1", "always", 3)
    assert (found["promoted"], found["wrong"]) == (promotions.CHALLENGERS, promotions.CHALLENGERS - 1)


@pytest.mark.parametrize(
    ("recall", "smallest", "pool", "fell"),
    [
        ((0.65, 0.9), 0.2, [], True),
        ((0.75, 0.9), 0.2, [], False),  # by less than the verdict said it could show
        ((0.65, 0.9), None, [], False),  # it said that it could show nothing
        ((0.65, 0.9), 0.2, ["0", "1"], False),  # both together: by an eighth
        ((0.6, 0.75), 0.2, ["0", "1"], True),
    ],
)
def test_a_class_fell_where_it_is_worse_than_the_verdict_could_show(
    recall: tuple[float, float], smallest: float | None, pool: list[str], fell: bool
) -> None:
    table = [{"class": "0", "smallest_fall": smallest, "pool": pool}]
    assert promotions._fell(model(*recall), model(0.9, 0.9), SEEN, table) is fell
