"""Which failed requests a killed Triton explains, and which it does not."""

from __future__ import annotations

from benchmarks.asking import Answer
from benchmarks.kill import Kill, summarize


def asked(sent: float, error: str | None = None) -> Answer:
    return Answer(0, sent, sent, sent + 0.1, 0, error=error)


ANSWERS = [asked(9.9), asked(10.01), asked(10.2, "away"), asked(12.0, "away"), asked(14.0), asked(15.0, "odd")]


def test_what_fails_until_a_killed_triton_answers_again_is_its_own() -> None:
    """The second was sent while the signal was on its way, and answered; the last failed once it was back."""
    found = summarize(ANSWERS, Kill("triton", aimed=False, at=10.0))
    assert (found["requests"], found["failed"], found["failed_without_triton"]) == (6, 1, 2)
    assert round(found["triton_seconds"], 1) == 4.1


def test_where_the_daemon_was_killed_every_failed_request_is_a_fault() -> None:
    found = summarize(ANSWERS, Kill("daemon", aimed=False, at=10.0))
    assert (found["failed"], found["failed_without_triton"], found["triton_seconds"]) == (3, 0, None)
