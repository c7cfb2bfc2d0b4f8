from __future__ import annotations

import pytest

from policies.retry import wait_after_cycles, wait_before
from policies.settings import RetrySettings

SETTINGS = RetrySettings(attempts=5, first_seconds=5.0, max_seconds=30.0)


@pytest.mark.parametrize(
    ("attempt", "expected"), [(1, 0.0), (2, 5.0), (3, 10.0), (4, 20.0), (5, 30.0), (6, None), (7, None)]
)
def test_wait_before_doubles_is_capped_and_gives_up(attempt: int, expected: float | None) -> None:
    assert wait_before(attempt, SETTINGS) == expected


def test_cycles_go_on_from_where_the_stage_left_off_and_never_give_up() -> None:
    settings = RetrySettings(attempts=3, first_seconds=5.0, max_seconds=3600.0)
    waits = [wait_after_cycles(failures, settings) for failures in range(0, 12)]
    assert waits[:4] == [0.0, 20.0, 40.0, 80.0]
    assert waits == sorted(waits)
    assert wait_after_cycles(10_000, settings) == 3600.0


def test_nothing_is_retried_at_once_even_with_a_single_attempt() -> None:
    assert wait_after_cycles(1, RetrySettings(attempts=1)) == 5.0
