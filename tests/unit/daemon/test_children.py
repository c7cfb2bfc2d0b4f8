"""Child processes: what is heard of them, and that they end when they are told to, or with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import psutil
import pytest

from daemon.children import LAST_WORDS, Child
from daemon.events import ChildEnded, ChildSpoke, Event

CHECKOUT = Path(__file__).resolve().parents[3]
Start = Callable[..., Child]
SECONDS = 60.0


@pytest.fixture
def queue() -> SimpleQueue[Event]:
    return SimpleQueue()


@pytest.fixture
def start(tmp_path: Path, queue: SimpleQueue[Event]) -> Iterator[Start]:
    """Starts a child that runs this code."""
    started: list[Child] = []

    def run(code: str, token: str = "t1", environment: Mapping[str, str] | None = None, nice: int = 0) -> Child:
        name = f"child{len(started)}"
        (tmp_path / f"{name}.py").write_text(code)
        found = {"PYTHONPATH": f"{CHECKOUT}:{tmp_path}", **(environment or {})}
        started.append(Child(token, name, [], queue.put, environment=found, nice=nice))
        return started[-1]

    yield run
    for child in started:
        child.kill()


def hear(queue: SimpleQueue[Event]) -> tuple[list[dict[str, object]], ChildEnded]:
    """All that a child says, and its end."""
    lines = []
    while True:
        event = queue.get(timeout=SECONDS)
        if isinstance(event, ChildEnded):
            return lines, event
        assert isinstance(event, ChildSpoke)
        lines.append(event.line)


SAY = """
import json, sys
def say(**line): print(json.dumps(line), flush=True)
"""


def test_its_lines_come_in_order_then_its_end(start: Start, queue: SimpleQueue[Event]) -> None:
    start(f"{SAY}\nfor n in range(100): say(token='t1', n=n)")
    lines, end = hear(queue)
    assert [line["n"] for line in lines] == list(range(100))
    assert (end.token, end.status, end.last_words) == ("t1", 0, "")


def test_lines_of_another_token_are_not_heard(start: Start, queue: SimpleQueue[Event]) -> None:
    start(f"{SAY}\nsay(token='t0', n=0)\nsay(n=1)\nsay(token='t1', n=2)\nprint('[1]')\nprint('chatter')")
    lines, end = hear(queue)
    assert [line["n"] for line in lines] == [2]
    assert end.last_words == "chatter"


def test_the_end_of_what_it_wrote_to_stderr_is_kept(start: Start, queue: SimpleQueue[Event]) -> None:
    start("import sys\nfor n in range(1000): print('word', n, file=sys.stderr)\nraise SystemExit(3)")
    _, end = hear(queue)
    assert end.status == 3
    assert end.last_words.splitlines() == [f"word {n}" for n in range(1000 - LAST_WORDS, 1000)]


def test_a_traceback_is_among_its_last_words(start: Start, queue: SimpleQueue[Event]) -> None:
    start("raise ValueError('the seventh layer')")
    _, end = hear(queue)
    assert end.status == 1
    assert end.last_words.splitlines()[-1] == "ValueError: the seventh layer"


def test_bytes_that_are_no_text_do_not_end_the_listening(start: Start, queue: SimpleQueue[Event]) -> None:
    start(f"{SAY}\nimport os\nos.write(1, b'\\xff\\xfe\\n'); os.write(2, b'\\xff\\n')\nsay(token='t1', n=1)")
    lines, end = hear(queue)
    assert [line["n"] for line in lines] == [1]
    assert end.status == 0


def test_a_signal_is_a_negative_status(start: Start, queue: SimpleQueue[Event]) -> None:
    start("import os\nos.kill(os.getpid(), 9)")
    assert hear(queue)[1].status == -signal.SIGKILL


READY = f"{SAY}\nimport signal, time\nHANDLER\nsay(token='t1', ready=True)\nwhile True: time.sleep(1)"


def wait_ready(queue: SimpleQueue[Event]) -> None:
    assert isinstance(queue.get(timeout=SECONDS), ChildSpoke)


def test_stop_asks_first(start: Start, queue: SimpleQueue[Event]) -> None:
    child = start(READY.replace("HANDLER", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))"))
    wait_ready(queue)
    child.stop(grace_seconds=SECONDS)
    assert child.wait(SECONDS)
    assert hear(queue)[1].status == 143


def test_stop_ends_what_does_not_end_by_itself(start: Start, queue: SimpleQueue[Event]) -> None:
    child = start(READY.replace("HANDLER", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"))
    wait_ready(queue)
    child.stop(grace_seconds=0.2)
    assert child.wait(SECONDS)
    assert hear(queue)[1].status == -signal.SIGKILL


def test_wait_says_whether_it_is_gone(start: Start, queue: SimpleQueue[Event]) -> None:
    child = start(READY.replace("HANDLER", ""))
    wait_ready(queue)
    assert not child.wait(0.01)
    assert child.age > 0
    child.kill()
    assert child.wait(SECONDS)
    child.stop(0.1)  # of one that is gone: nothing happens


def test_what_it_waits_for_others_is_told_apart(
    start: Start, queue: SimpleQueue[Event], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1_000.0)
    monkeypatch.setattr("daemon.children.time", SimpleNamespace(monotonic=lambda: clock.now))
    turns = f"""
import pathlib, time
for name in ("it waits", "it works", "it waits again", "the end"):
    while not pathlib.Path({str(tmp_path)!r}, name).exists(): time.sleep(0.01)
    say(token='t1', event='progress', **({{'waiting': 'for another'}} if 'waits' in name else {{}}))
"""
    child = start(SAY + turns)
    found = []
    for name, seconds in (("it waits", 100.0), ("it works", 7.0), ("it waits again", 1000.0), ("the end", 0.5)):
        (tmp_path / name).touch()
        wait_ready(queue)
        clock.now += seconds
        found.append((child.worked, child.waited))
    assert found == [(0.0, 100.0), (7.0, 100.0), (7.0, 1100.0), (7.5, 1100.0)]


@pytest.mark.parametrize("ending", ["raise SystemExit(0)", "import os; os.kill(os.getpid(), 9)"])
def test_what_it_started_ends_with_it(
    start: Start, queue: SimpleQueue[Event], eventually: Callable[..., None], ending: str
) -> None:
    """A grandchild holds the pipes open: the end of the child is heard nevertheless, and nothing is left."""
    start(
        f"{SAY}\nimport subprocess\nother = subprocess.Popen(['sleep', '600'])\n"
        f"say(token='t1', pid=other.pid)\n{ending}"
    )
    (line,), _ = hear(queue)
    eventually(lambda: not alive(int(str(line["pid"]))))


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_it_runs_in_the_environment_and_at_the_priority_that_it_is_given(
    start: Start, queue: SimpleQueue[Event]
) -> None:
    start(
        f"{SAY}\nimport os\nsay(token='t1', omp=os.environ['OMP_NUM_THREADS'], nice=os.nice(0))",
        environment={"OMP_NUM_THREADS": "3"},
        nice=7,
    )
    (line,), _ = hear(queue)
    assert (line["omp"], line["nice"]) == ("3", min(19, os.nice(0) + 7))


PARENT = """
import sys, threading
from queue import SimpleQueue
from daemon.children import Child
queue = SimpleQueue()
child = Child("t1", "orphan", [], queue.put, environment={"PYTHONPATH": ":".join(sys.argv[1:])})
print(getattr(queue.get(), "line", {"pid": 0})["pid"], flush=True)
threading.Event().wait()
"""
ORPHAN = f"""
{SAY}
import os, time
from daemon.children import die_with_parent
die_with_parent()
say(token='t1', pid=os.getpid())
while True: time.sleep(1)
"""


@pytest.mark.parametrize("wrapper", [[], ["unshare", "--pid", "--fork", "--kill-child"]], ids=["plain", "as process 1"])
def test_it_dies_with_its_parent(tmp_path: Path, eventually: Callable[..., None], wrapper: list[str]) -> None:
    """Also where the parent is process 1, as a daemon in a container is: it is not taken for gone."""
    if wrapper and subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces may be made here")
    (tmp_path / "orphan.py").write_text(ORPHAN)
    parent = subprocess.Popen(
        [*wrapper, sys.executable, "-P", "-c", PARENT, str(CHECKOUT), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    said = int(parent.stdout.readline())
    assert said > 0, "the child ended before it spoke"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert any("orphan" in other.cmdline() for other in family)
    parent.kill()
    parent.wait(SECONDS)
    eventually(lambda: not any(alive(other.pid) for other in family))


LATE = """
import os, sys, time
while os.getppid() == int(sys.argv[2]): time.sleep(0.01)
from daemon.children import die_with_parent
open(sys.argv[1], "w").write(f"{os.getppid()} ")
die_with_parent()
open(sys.argv[1], "a").write("ran on")
"""


def test_it_does_not_run_on_when_its_parent_is_gone_already(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """Between its start and its asking to die with the parent, the parent may die: init has it, nobody listens."""
    start_and_leave = (
        "import os, subprocess, sys\n"
        "command = [sys.executable, '-P', '-c', *sys.argv[1:], str(os.getpid())]\n"
        "late = subprocess.Popen(command, stdout=subprocess.PIPE)\n"
        "print(late.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", start_and_leave, LATE, str(tmp_path / "said")],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    eventually(lambda: not alive(int(done.stdout)))
    said = (tmp_path / "said").read_text()
    if not said.startswith("1 "):
        pytest.skip("a subreaper adopts orphans here")
    assert said == "1 "
