"""Which architectures patterns name."""

from __future__ import annotations

import pytest
import timm

from pipeline.names import find_architectures
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
