"""How long to wait after a failure: doubling and capped, so that nothing fails in a hot loop."""

from __future__ import annotations

from policies.settings import RetrySettings


def wait_before(attempt: int, settings: RetrySettings) -> float | None:
    """Seconds to wait before this attempt of a stage (the first is 1, which never waits); None: give up."""
    if attempt > settings.attempts:
        return None
    return 0.0 if attempt <= 1 else _doubled(attempt - 2, settings)


def wait_after_cycles(failures: int, settings: RetrySettings) -> float:
    """Seconds to wait after so many cycles failed in a row.

    It goes on doubling from where the attempts of the stage left off, and never gives up: what made the cycle
    fail (a full disk, Triton away) may be mended at any time.
    """
    return 0.0 if failures <= 0 else _doubled(settings.attempts + failures - 2, settings)


def _doubled(times: int, settings: RetrySettings) -> float:
    return float(min(settings.first_seconds * 2.0 ** min(max(times, 0), 60), settings.max_seconds))
