"""The space of a tuning: what lies in it, and that values come back as a person would have written them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from pipeline.settings import TrainSettings
from pipeline.space import apply, parse_space
from policies.job import StageError

SPACE: dict[str, dict[str, Any]] = {
    "learning_rate": {"min": 1e-4, "max": 1e-1, "log": True},
    "early_stopping_patience": {"min": 0, "max": 5},
    "batch_size": {"choices": [32, 64, 128]},
    "optimizer": {"choices": ["adamw", "sgd"]},
    "augment.flip": {"choices": [True, False]},
    "augment.crop_min": {"min": 0.3, "max": 1},
}


def test_what_scikit_optimize_draws_comes_back_as_plain_values_within_the_bounds() -> None:
    space = parse_space(SPACE, TrainSettings())
    from skopt.space import Space

    drawn = Space(space.dimensions).rvs(300, random_state=0)
    points = [space.decode(values) for values in drawn]
    kinds = {name: {type(point[name]) for point in points} for name in SPACE}
    assert kinds == {
        "learning_rate": {float},
        "early_stopping_patience": {int},
        "batch_size": {int},
        "optimizer": {str},
        "augment.flip": {bool},
        "augment.crop_min": {float},
    }
    assert json.loads(json.dumps(points)) == points
    assert {point["early_stopping_patience"] for point in points} == set(range(6))
    assert {point["batch_size"] for point in points} == {32, 64, 128}
    assert {point["augment.flip"] for point in points} == {True, False}
    for point in points:
        apply(TrainSettings(), point)
        assert space.decode(space.encode(point)) == point


def test_a_logarithmic_scale_gives_each_decade_its_share() -> None:
    from skopt.space import Space

    space = parse_space({"learning_rate": SPACE["learning_rate"]}, TrainSettings())
    drawn = [space.decode(values)["learning_rate"] for values in Space(space.dimensions).rvs(3000, random_state=0)]
    decades = np.histogram(np.log10(drawn), bins=[-4, -3, -2, -1])[0]
    assert all(850 < count < 1150 for count in decades), decades


def test_rounding_takes_no_value_past_its_bound() -> None:
    space = parse_space({"learning_rate": SPACE["learning_rate"]}, TrainSettings())
    assert space.decode([np.float64(0.1 + 1e-17) * (1 + 1e-15)]) == {"learning_rate": 0.1}
    assert space.decode([np.float64(1e-4) * (1 - 1e-15)]) == {"learning_rate": 1e-4}


def test_the_settings_themselves_are_a_point_where_they_lie_inside() -> None:
    space = parse_space(SPACE, TrainSettings())
    assert space.find(TrainSettings()) == {
        "learning_rate": 1e-3, "early_stopping_patience": 0, "batch_size": 64, "optimizer": "adamw",
        "augment.flip": True, "augment.crop_min": 0.6,
    }  # fmt: skip
    assert space.find(TrainSettings(learning_rate=0.5)) is None
    assert space.find(TrainSettings(batch_size=48)) is None


def test_a_setting_with_one_value_is_no_axis_yet_part_of_every_point() -> None:
    plain = {"epochs": {"min": 5, "max": 5}, "sampling": {"choices": ["balanced"]}, "batch_size": {"choices": [32, 64]}}
    space = parse_space(plain, TrainSettings())
    assert [axis.name for axis in space.axes] == ["batch_size"]
    assert space.decode([1]) == {"batch_size": 64, "epochs": 5, "sampling": "balanced"}
    assert space.find(TrainSettings()) is None
    assert space.find(TrainSettings(epochs=5, sampling="balanced")) is not None


def test_settings_are_moved_to_a_point() -> None:
    moved = apply(TrainSettings(), {"learning_rate": 0.01, "augment.crop_min": 0.9})
    assert (moved.learning_rate, moved.augment.crop_min) == (0.01, 0.9)
    assert dataclasses.replace(moved, learning_rate=1e-3, augment=TrainSettings().augment) == TrainSettings()


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"lerning_rate": {"min": 1, "max": 2}}, "learning_rate"),
        ({"augment.crop": {"min": 1, "max": 2}}, "augment.crop_min"),
        ({"augment.crop_min": {"min": 0.0, "max": 1.0}}, "augment.crop_min must be above 0"),
        ({"learning_rate": {"min": 2.0, "max": 1.0}}, "above max"),
        ({"sampling": {"choices": ["fair"]}}, "sampling"),
        ({"batch_size": {"choices": [32, "many"]}}, "must be of type int"),
    ],
)
def test_a_space_that_no_training_could_use_is_refused(plain: dict[str, Any], said: str) -> None:
    with pytest.raises(StageError, match=said):
        parse_space(plain, TrainSettings())
