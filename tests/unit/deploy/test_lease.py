"""One measures at a time on a machine; who waits says so; who dies frees the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import lease
from policies.job import StageError

HOLDING = """
import sys, time
from deploy import lease
with lease.hold(print):
    print("holds", flush=True)
    time.sleep(600)
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def never(why: str) -> None:
    raise AssertionError(why)


def test_the_lock_lies_where_all_of_a_user_find_it(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lease.place() == runtime / "relearnd-measures.lock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / "nowhere"))
    monkeypatch.setenv("TMPDIR", str(runtime))
    assert lease.place() == Path(f"/tmp/{os.getuid()}-relearnd-measures.lock")


def test_nobody_waits_where_nobody_measures() -> None:
    with lease.hold(never):
        pass
    with lease.hold(never):
        assert lease.place().read_text() == str(os.getpid())


def test_a_second_waits_for_the_first_and_says_so() -> None:
    said, order = [], []
    asked, over = threading.Event(), threading.Event()

    def second() -> None:
        with lease.hold(lambda why: (said.append(why), asked.set())):  # type: ignore[func-returns-value]
            order.append("second")
            over.set()

    with lease.hold(never):
        thread = threading.Thread(target=second)
        thread.start()
        assert asked.wait(60)
        order.append("first")
    assert over.wait(60)
    thread.join()
    assert order == ["first", "second"]
    assert said == [f"waits for the measurement of process {os.getpid()}"]


def test_who_waits_comes_before_one_that_has_just_measured() -> None:
    """However soon that asks again: 40 times without a pause, while another waits for its first turn."""
    order: list[str] = []
    asked = threading.Event()

    def second() -> None:
        with lease.hold(lambda _: asked.set()):
            order.append("second")

    with lease.hold(never):
        thread = threading.Thread(target=second)
        thread.start()
        assert asked.wait(60)
    for _ in range(40):
        with lease.hold(lambda _: None):
            order.append("first")
    thread.join()
    assert order == ["second", *["first"] * 40]


def test_what_is_held_for_too_long_is_an_error_that_names_the_holder(start: Start) -> None:
    holder = start("-c", HOLDING)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holds\n"
    with (
        pytest.raises(StageError, match=f"process {holder.pid} has measured for 0 s, or hangs"),
        lease.hold(lambda _: None, wait_seconds=0.0),
    ):
        pass


def test_a_holder_that_is_killed_frees_the_machine(start: Start) -> None:
    holder = start("-c", HOLDING)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holds\n"
    said: list[str] = []

    def wait(why: str) -> None:
        said.append(why)
        holder.send_signal(signal.SIGKILL)

    with lease.hold(wait, wait_seconds=60.0):
        assert said == [f"waits for the measurement of process {holder.pid}"]


def test_a_link_that_another_laid_is_not_followed(runtime: Path) -> None:
    (runtime / "precious").write_text("mine")
    lease.place().symlink_to(runtime / "precious")
    with pytest.raises(StageError, match="cannot be opened"), lease.hold(never):
        pass
    assert (runtime / "precious").read_text() == "mine"
