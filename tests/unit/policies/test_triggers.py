"""The triggers as tables: what they fire on, and the numbers in what they say."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from policies.evidence import Evidence
from policies.facts import ClassCount, from_dict, to_dict
from policies.settings import AccuracySettings, NewClassSettings, VolumeSettings
from policies.triggers import accuracy, new_class, volume

BARE = Evidence(now=1_000_000.0, target="edge")
SERVING = dataclasses.replace(
    BARE,
    champion=True,
    champion_classes=("a", "b"),
    counts={"a": 500, "b": 500},
    trained_on=1_000,
    feasible=True,
    judge=(ClassCount("a", 100, 95), ClassCount("b", 100, 85)),
)


@pytest.mark.parametrize(
    ("counts", "fired", "said"),
    [
        ({}, False, "0 of 2 classes have 20 samples; 2 more classes with 20 samples each"),
        ({"a": 31}, False, "1 of 2 classes have 20 samples; 1 more class with 20 samples each"),
        ({"a": 31, "b": 12}, False, "class b has 12 of 20"),
        ({"a": 31, "b": 20}, True, "2 classes have 20 samples, it takes 2: a 31, b 20"),
        ({"a": 31, "b": 20, "c": 3}, True, "2 classes have 20 samples, it takes 2: a 31, b 20"),
    ],
)
def test_volume_waits_for_the_first_training(counts: dict[str, int], fired: bool, said: str) -> None:
    finding = volume(dataclasses.replace(BARE, counts=counts, new_by_class=counts), VolumeSettings())
    assert (finding.policy, finding.fired) == ("volume", fired)
    assert said in finding.reason


@pytest.mark.parametrize(
    ("new", "trained_on", "champion", "fired"),
    [
        ({"a": 99}, 1_000, True, False),
        ({"a": 60, "b": 40}, 1_000, True, True),
        ({"a": 100}, 3_000, True, False),  # fewer than 5%
        ({"a": 150}, 3_000, True, True),
        ({}, 1_000, True, False),
        ({"a": 50, "b": 49}, 1_000, False, False),  # trained, and nothing was promoted: no hot loop
        ({"a": 100}, 1_000, False, True),
    ],
)
def test_volume_after_a_training(new: dict[str, int], trained_on: int, champion: bool, fired: bool) -> None:
    evidence = dataclasses.replace(SERVING, new_by_class=new, trained_on=trained_on, champion=champion)
    finding = volume(evidence, VolumeSettings())
    assert finding.fired is fired
    assert f"{sum(new.values())} new labelled samples" in finding.reason
    assert f"100 and 5% of its {trained_on:,}" in finding.reason


@pytest.mark.parametrize(
    ("had", "new", "fired"),
    [
        (40, 29, False),  # too few
        (40, 30, True),
        (200, 99, False),  # less than half of what it had
        (180, 90, True),
        (0, 60, False),  # the policy of new classes has a say of its own
    ],
)
def test_volume_of_one_class(had: int, new: int, fired: bool) -> None:
    evidence = dataclasses.replace(SERVING, counts={"rare": had + new}, new_by_class={"rare": new}, trained_on=5_000)
    finding = volume(evidence, VolumeSettings(new_samples=1_000))
    assert finding.fired is fired
    assert (f"of one class 30 and 50% of what it had of that: rare {new} to {had}" in finding.reason) is fired


def test_volume_never_fires_on_nothing_new() -> None:
    assert not volume(SERVING, VolumeSettings(new_samples=0, new_share=0.0)).fired


def test_volume_tells_what_left() -> None:
    assert "7 left" in volume(dataclasses.replace(SERVING, gone=7), VolumeSettings()).reason


@pytest.mark.parametrize(
    ("counts", "new", "fired", "said"),
    [
        ({}, {}, False, "the champion knows every class"),
        ({"c": 19}, {"c": 19}, False, "c has 19 samples; it takes 20"),
        ({"c": 20}, {"c": 20}, True, "c has 20 samples; it takes 20"),
        ({"c": 25}, {"c": 10}, True, "c has 25 samples"),  # 15 were too few at the last training
        ({"c": 25}, {}, False, "of which 0 since the training that had it"),  # its model was refused
        ({"c": 26}, {"c": 1}, False, "of which 1 since the training that had it"),
        ({"c": 45}, {"c": 20}, True, "of which 20 since the training that had it"),
        ({"c": 25, "d": 20}, {"d": 20}, True, "d has 20 samples"),
    ],
)
def test_new_class(counts: dict[str, int], new: dict[str, int], fired: bool, said: str) -> None:
    evidence = dataclasses.replace(SERVING, counts={"a": 500, "b": 500, **counts}, new_by_class=new)
    finding = new_class(evidence, NewClassSettings(samples=20))
    assert (finding.policy, finding.fired) == ("new_class", fired)
    assert said in finding.reason


def test_new_class_needs_a_champion() -> None:
    assert not new_class(dataclasses.replace(BARE, counts={"a": 500}), NewClassSettings()).fired


@pytest.mark.parametrize(
    ("answers", "fired", "said"),
    [
        ([("a", 49, 0)], False, "49 new labelled samples of classes the champion knows, it takes 50"),
        ([("a", 50, 47), ("b", 50, 42)], False, "90.0% on judge for the same classes"),
        ([("a", 50, 40), ("b", 50, 40)], False, "80.0% right on 100"),  # 10 points, within chance
        ([("a", 50, 35), ("b", 50, 35)], True, "70.0% right on 100"),
        ([("b", 100, 80)], False, "85.0% on judge"),  # the hard class alone is no fall
        ([("a", 100, 70)], True, "95.0% on judge"),
        ([("c", 500, 0)], False, "0 new labelled samples of classes the champion knows"),
    ],
)
def test_accuracy(answers: list[tuple[str, int, int]], fired: bool, said: str) -> None:
    counts = tuple(ClassCount(*answer) for answer in answers)
    finding = accuracy(dataclasses.replace(SERVING, new_answers=counts), AccuracySettings())
    assert (finding.policy, finding.fired) == ("accuracy", fired)
    assert said in finding.reason


@pytest.mark.parametrize("change", [{"champion": False}, {"judge": ()}])
def test_accuracy_without_anything_to_compare_with(change: dict[str, Any]) -> None:
    evidence = dataclasses.replace(SERVING, new_answers=(ClassCount("a", 100, 0),), **change)
    assert not accuracy(evidence, AccuracySettings()).fired


def test_evidence_goes_through_json() -> None:
    evidence = dataclasses.replace(SERVING, new_answers=(ClassCount("a", 3, 2),), requested="ann: new camera")
    assert from_dict(Evidence, json.loads(json.dumps(to_dict(evidence)))) == dataclasses.replace(
        evidence, counts=dict(evidence.counts)
    )
