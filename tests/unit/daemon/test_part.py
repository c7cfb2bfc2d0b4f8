"""Which file of a part ends its reader."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from daemon.part import Part, why


@pytest.mark.parametrize(
    ("noted", "culprit"), [(None, "b"), (b"", "b"), (b"        2", "c"), (b"        0", "b")]
)  # one that has been read is never it, and where nothing was noted it is the first that was not
def test_the_file_at_which_a_child_ended_is_tried_alone_and_then_refused(
    tmp_path: Path, noted: bytes | None, culprit: str
) -> None:
    at = tmp_path / "0.at"
    if noted is not None:
        at.write_bytes(noted)
    part = Part(0, ["a", "b", "c", "d"])
    assert part.give() == ["a", "b", "c", "d"]
    part.take(1)
    part.suspect(at)
    assert part.give() == [culprit]
    assert part.convict() == culprit
    assert part.give() == [path for path in ("b", "c", "d") if path != culprit]


def test_a_file_that_is_fine_alone_is_read_with_the_others() -> None:
    part = Part(0, ["a", "b"], alone=True)
    assert part.give() == ["a"]
    part.take(1)
    part.alone = False
    assert part.give() == ["b"]


@pytest.mark.parametrize(
    ("status", "last_words", "said"),
    [
        (-signal.SIGALRM, "", "takes too long to decode"),
        (-signal.SIGSEGV, "first\nlast\n", "crashed the process that read it: last"),
        (-signal.SIGKILL, "", "crashed the process that read it: killed"),
    ],
)
def test_what_is_said_of_it(status: int, last_words: str, said: str) -> None:
    assert why(status, last_words) == said
