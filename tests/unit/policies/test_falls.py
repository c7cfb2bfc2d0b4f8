from __future__ import annotations

import pytest

from policies.facts import ClassTally
from policies.falls import FALSE_ALARM, add_up, compare_classes
from policies.statistics import mcnemar

ALPHA, MARGIN = 0.02, 0.05


def tally(name: str, samples: int, lost: int = 0, won: int = 0) -> ClassTally:
    return ClassTally(name, samples - lost - won, lost, won, 0)


def test_a_clear_fall_of_one_class_is_found_among_ten() -> None:
    tallies = [tally(str(i), 100, 3, 3) for i in range(9)] + [tally("bad", 100, 25, 1)]
    tests = compare_classes(tallies, MARGIN, ALPHA)
    assert [t.tally.name for t in tests if t.fallen] == ["bad"]


def test_p_values_are_corrected_over_the_classes() -> None:
    alone = compare_classes([tally("a", 100, 8, 1)], MARGIN, ALPHA)
    assert alone[0].p == pytest.approx(mcnemar(8, 1)) and alone[0].fallen
    among = compare_classes([tally("a", 100, 8, 1), *(tally(str(i), 100) for i in range(9))], MARGIN, ALPHA)
    assert among[0].p == pytest.approx(10 * mcnemar(8, 1)) and not among[0].fallen


def test_a_significant_fall_shown_to_be_within_the_class_margin_is_forgiven() -> None:
    (small,) = compare_classes([tally("a", 100_000, 900, 500)], MARGIN, ALPHA)
    assert small.p is not None and small.p < FALSE_ALARM and not small.fallen
    assert small.smallest == MARGIN
    (large,) = compare_classes([tally("a", 100_000, 6_500, 500)], MARGIN, ALPHA)
    assert large.fallen


def test_small_classes_are_pooled_and_told() -> None:
    tallies = [tally("big", 200), *(tally(f"tiny{i}", 4, lost=3) for i in range(6))]
    tests = compare_classes(tallies, MARGIN, ALPHA)
    assert [t.tally.name for t in tests] == ["big", *(f"tiny{i}" for i in range(6)), "6 small classes, pooled"]
    assert all(t.p is None and t.smallest is None and not t.fallen for t in tests[1:-1])
    pool = tests[-1]
    assert pool.pool == tuple(f"tiny{i}" for i in range(6))
    assert (pool.tally.samples, pool.tally.champion_only) == (24, 18)
    assert pool.fallen


def test_more_samples_show_smaller_falls() -> None:
    falls = [compare_classes([tally("a", n)], 0.0, ALPHA)[0].smallest for n in (50, 200, 1_000, 10_000)]
    assert all(f is not None for f in falls)
    assert falls == sorted(falls, key=lambda f: -(f or 0.0))


@pytest.mark.parametrize("tallies", [[], [tally("a", 0)]])
def test_nothing_to_compare(tallies: list[ClassTally]) -> None:
    assert compare_classes(tallies, MARGIN, ALPHA) == ()


def test_a_row_of_the_table() -> None:
    (test,) = compare_classes([ClassTally("a", 80, 5, 3, 12)], MARGIN, ALPHA)
    row = test.row()
    assert {key: row[key] for key in ("class", "samples", "lost", "won", "new")} == {
        "class": "a",
        "samples": 100,
        "lost": 5,
        "won": 3,
        "new": False,
    }
    assert (row["champion_correct"], row["challenger_correct"]) == (85, 83)


def test_add_up() -> None:
    assert add_up([ClassTally("a", 1, 2, 3, 4), ClassTally("b", 10, 20, 30, 40)]) == ClassTally("all", 11, 22, 33, 44)
    assert add_up([]).samples == 0
