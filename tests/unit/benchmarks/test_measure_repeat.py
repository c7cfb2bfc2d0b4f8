"""What the benchmark makes of its three rounds: a goal is not met where nothing was compared."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.measure_repeat import COMPARED, compare, compare_all, find_spread
from policies.facts import METHOD, Measurement

Round = dict[str, Measurement]


def measured(p50: float, *, p95: float = 2.0, throughput: float = 500.0, timed: float = 1.0) -> Measurement:
    """`timed`: how many times slower than it counts."""
    figures = {"latency_p50_ms": p50 * timed, "latency_p95_ms": p95 * timed, "throughput": throughput / timed}
    return Measurement("here", 1, 1, 1, METHOD, p50, p95, 9.0, throughput, 100.0, 9.0, 900, raw=figures)


def networks(p50s: Sequence[float], **figures: float) -> Round:
    return {f"net {number}": measured(p50, **figures) for number, p50 in enumerate(p50s)}


FIRST = networks([1.0, 1.1, 1.25, 2.0])


def test_pairs_that_are_close_keep_their_order_or_do_not() -> None:
    """Of 1, 1.1, 1.25 and 2 the first two are close, and the second and the third."""
    one, turned = ({"a": 1.0, "b": 1.1, "c": 1.25, "d": 2.0}, {"a": 1.2, "b": 1.1, "c": 1.25, "d": 1.0})
    assert (compare(one, one, one)["pairs"], compare(one, one, one)["pair_order"]) == (2, 1.0)
    assert compare(one, turned, one)["pair_order"] == 0.5


def test_without_a_close_pair_no_order_is_told() -> None:
    apart = {"a": 1.0, "b": 1.3}
    assert (compare(apart, apart, apart)["pairs"], compare(apart, apart, apart)["pair_order"]) == (0, None)


@pytest.mark.parametrize("suffix", COMPARED)
def test_each_figure_is_compared(suffix: str) -> None:
    changed = {"": {}, "_p95": {"p95": 1.6}, "_throughput": {"throughput": 600.0}}[suffix]
    p50s = [1.3, 1.43, 1.625, 2.6] if suffix == "" else [1.0, 1.1, 1.25, 2.0]
    found = compare_all(FIRST, FIRST, networks(p50s, **changed))
    strayed = {"": 0.3, "_p95": 0.2, "_throughput": 0.2}
    for other in COMPARED:
        expected = strayed[other] if other == suffix else 0.0
        assert found[f"median_deviation_loaded{other}"] == pytest.approx(expected)
        assert found[f"median_deviation{other}"] == 0.0


def test_what_was_timed_is_compared_apart() -> None:
    found = compare_all(FIRST, networks([1.0, 1.1, 1.25, 2.0], timed=1.25), FIRST)
    assert [found[f"median_deviation{suffix}"] for suffix in COMPARED] == [0.0] * 3
    assert [found[f"median_deviation{suffix}_raw"] for suffix in COMPARED] == pytest.approx([0.25, 0.25, 0.2])


def test_networks_further_apart_than_the_goals_are_about_are_refused() -> None:
    assert find_spread(networks([1.0, 3.0, 1.5])) == 3.0
    with pytest.raises(SystemExit, match=r"net 1 takes 3\.10 times as long as net 0 .*CHOSEN"):
        find_spread(networks([1.0, 3.1, 1.5]))
