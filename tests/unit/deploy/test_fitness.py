"""Whether a Triton reads the repository that it is to be given models by, seen by the packaged one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import fitness
from deploy.fitness import find_marker, forget, inspect, shares
from deploy.server import Server
from deploy.triton import Triton, TritonRefused, TritonUnfit, VersionState


class Late(Triton):
    """Shows what lies in the repository as it was a while ago, as over a network file system, which is not here."""

    caching = True

    def index(self) -> dict[str, list[VersionState]]:
        return {} if self.caching else super().index()


@pytest.fixture
def late(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Late]:
    monkeypatch.setattr(fitness, "MARKER_SECONDS", 0.1)
    with Late(server.address) as triton:
        yield triton


def test_its_own_repository_is_seen_and_nothing_stays_there(triton: Triton, repository: Path) -> None:
    assert inspect(triton, repository, owner="mine").startswith("2.")
    assert list(repository.iterdir()) == []


def test_a_share_that_shows_late_is_seen_at_a_later_look(late: Late, repository: Path) -> None:
    assert not shares(late, repository, "mine")
    assert [path.name for path in repository.iterdir()] == [find_marker(repository, "mine").name]
    began = find_marker(repository, "mine").stat().st_mtime_ns
    assert not shares(late, repository, "mine")
    assert find_marker(repository, "mine").stat().st_mtime_ns == began  # the same, which the share may show by now
    late.caching = False
    assert shares(late, repository, "mine")
    assert list(repository.iterdir()) == []


def test_what_does_not_show_in_a_minute_goes_again(late: Late, repository: Path) -> None:
    assert not shares(late, repository, "mine")
    make_older(find_marker(repository, "mine"), 61.0)
    assert not shares(late, repository, "mine")
    assert list(repository.iterdir()) == []


def test_one_that_nobody_looks_for_any_more_is_taken_away(late: Late, repository: Path) -> None:
    assert not shares(late, repository, "mine")
    forget(repository, "mine")
    forget(repository, "mine")
    assert list(repository.iterdir()) == []


def test_another_daemon_s_is_left_alone_unless_it_was_left_behind(late: Late, triton: Triton, repository: Path) -> None:
    assert not shares(late, repository, "theirs")
    theirs = find_marker(repository, "theirs")
    assert shares(triton, repository, "mine")
    assert list(repository.iterdir()) == [theirs]
    make_older(theirs, 3601.0)
    assert shares(triton, repository, "mine")
    assert list(repository.iterdir()) == []


def test_one_that_goes_meanwhile_is_no_trouble(triton: Triton, repository: Path) -> None:
    class Hasty(Triton):
        def index(self) -> dict[str, list[VersionState]]:
            found = super().index()
            find_marker(repository, "mine").rmdir()
            return found

    with Hasty(triton.endpoint) as other:
        assert shares(other, repository, "mine")


def test_what_refuses_is_unfit_in_its_own_words(server: Server, repository: Path) -> None:
    class Refusing(Triton):
        def unload(self, model: str) -> None:
            raise TritonRefused("unauthorized")

    with (
        Refusing(server.address) as triton,
        pytest.raises(TritonUnfit, match=r"refuses what a Triton .*: unauthorized"),
    ):
        inspect(triton, repository)


def make_older(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds, time.time() - seconds))
