from __future__ import annotations

import pytest

from policies.suggest import nearest


@pytest.mark.parametrize(
    ("word", "expected"),
    [("epoch", "epochs"), ("latency_p95", "latency_p95_ms"), ("rsnet18", "resnet18"), ("zzz", None), ("", None)],
)
def test_nearest(word: str, expected: str | None) -> None:
    assert nearest(word, ["epochs", "latency_p95_ms", "resnet18"]) == expected


def test_nothing_known() -> None:
    assert nearest("epochs", []) is None
