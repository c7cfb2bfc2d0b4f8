"""The settings of a training as a job carries them: read, defaulted, refused."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pipeline.settings import AugmentSettings, TrainSettings, parse_settings
from policies.job import StageError

CHECKOUT = Path(__file__).resolve().parents[3]


def test_the_defaults_are_those_of_config_toml() -> None:
    written = tomllib.loads((CHECKOUT / "config.toml").read_text(encoding="utf-8"))["train"]
    assert written == dataclasses.asdict(parse_settings({}))


def test_what_is_said_holds_and_the_rest_takes_its_default() -> None:
    found = parse_settings({"epochs": 3, "learning_rate": 1, "augment": {"flip": False}})
    assert found == TrainSettings(epochs=3, learning_rate=1, augment=AugmentSettings(flip=False))
    assert found.batch_size == TrainSettings().batch_size


@pytest.mark.parametrize(
    ("plain", "key", "near"),
    [
        ({"epoch": 3}, "train.epoch", "epochs"),
        ({"lerning_rate": 1e-3}, "train.lerning_rate", "learning_rate"),
        ({"augment": {"rotate": 3}}, "train.augment.rotate", "rotate_degrees"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(plain: dict[str, Any], key: str, near: str) -> None:
    with pytest.raises(StageError) as told:
        parse_settings(plain)
    assert key in str(told.value) and near in str(told.value)


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [
        ("scheduler", "cosin", "cosine"),
        ("sampling", "balance", "balanced"),
        ("precision", "bf16", "bf16-mixed"),
        ("accelerator", "nvidia", "cuda"),  # nothing is near: all are named, as they are few
    ],
)
def test_an_unknown_name_is_refused_and_the_nearest_named(key: str, value: str, near: str) -> None:
    with pytest.raises(StageError) as told:
        parse_settings({key: value})
    assert f"train.{key}" in str(told.value) and near in str(told.value)


@pytest.mark.parametrize(
    ("plain", "key"),
    [
        ({"epochs": 0}, "train.epochs"),
        ({"batch_size": 0}, "train.batch_size"),
        ({"learning_rate": 0.0}, "train.learning_rate"),
        ({"learning_rate": float("nan")}, "train.learning_rate"),
        ({"learning_rate": float("inf")}, "train.learning_rate"),
        ({"augment": {"crop_min": 0.0}}, "train.augment.crop_min"),
        ({"augment": {"crop_min": 1.5}}, "train.augment.crop_min"),
    ],
)
def test_a_value_out_of_its_range_is_refused(plain: dict[str, Any], key: str) -> None:
    with pytest.raises(StageError, match=key):
        parse_settings(plain)


@pytest.mark.parametrize(
    "plain", [{"epochs": "3"}, {"epochs": 2.5}, {"augment": 3}, {"augment": {"flip": "no"}}, {"optimizer": 3}]
)
def test_a_value_of_another_type_is_refused(plain: dict[str, Any]) -> None:
    with pytest.raises(StageError):
        parse_settings(plain)
