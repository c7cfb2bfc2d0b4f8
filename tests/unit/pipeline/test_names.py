"""Which architectures patterns name."""

from __future__ import annotations

import pytest
import timm

from pipeline.names import find_architectures, find_faults
from policies.job import StageError


def test_patterns_name_architectures_each_once() -> None:
    assert find_architectures(["test_resnet", "test_res*"]) == ["test_resnet"]
    both = find_architectures(["mobilenetv3_small_0*", "resnet18"])
    assert both[-1] == "resnet18"
    assert {"mobilenetv3_small_050", "mobilenetv3_small_075"} <= set(both)
    assert find_architectures([]) == timm.list_models()


def test_a_pattern_that_names_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(StageError, match="'resnet181' is not known; nearest: resnet18"):
        find_architectures(["resnet18", "resnet181"])


@pytest.mark.parametrize("pattern", ["*xyz*", "zzz*", "[", ""])
def test_what_is_like_nothing_is_refused_with_names_too(pattern: str) -> None:
    with pytest.raises(StageError, match=r"is not known; nearest: \w+, \w+, \w+$"):
        find_architectures(["resnet18", pattern])


def test_the_nearest_are_of_what_a_pattern_says() -> None:
    with pytest.raises(StageError, match=r"nearest: .*resnet"):
        find_architectures(["*ressnet*"])


def test_names_that_timm_does_not_know_are_told_with_their_settings() -> None:
    named = [
        ("model.architectures", "resnet18"),
        ("model.architectures", "resnett18"),
        ("train.optimizer", "adamw"),
        ("train.optimizers.lionn", "lionn"),
    ]
    first, second = find_faults(named)
    assert first[0] == "model.architectures" and "'resnett18' is not known" in first[1]
    assert second[0] == "train.optimizers.lionn" and "'lionn' is not known; nearest: lion" in second[1]
