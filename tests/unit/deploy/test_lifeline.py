"""Children end with the process that started them."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable

import psutil
import pytest

Start = Callable[..., subprocess.Popen[str]]
SECONDS = 60.0

WAITING = "import time; print('ready', flush=True); time.sleep(600)"
TETHERED = f"from deploy.lifeline import die_with_parent; die_with_parent(); {WAITING}"
PARENT = {
    "asked by the child": (f"import subprocess, sys\ncommand = [sys.executable, '-P', '-c', {TETHERED!r}]\n"),
    "asked before the command runs": (
        "import subprocess, sys\nfrom deploy.lifeline import tether\n"
        f"command = tether([sys.executable, '-c', {WAITING!r}])\n"
    ),
}
START = (
    "child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)\n"
    "print(child.pid, child.stdout.readline().strip(), flush=True)\n"
    "child.wait()"
)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("how", PARENT)
def test_a_child_dies_with_its_parent(start: Start, eventually: Callable[..., None], how: str) -> None:
    parent = start("-c", PARENT[how] + START)
    assert parent.stdout is not None
    pid, word = parent.stdout.readline().split()
    assert word == "ready"
    assert alive(int(pid))
    parent.send_signal(signal.SIGKILL)
    parent.wait(SECONDS)
    eventually(lambda: not alive(int(pid)))


def test_the_command_gets_its_arguments_and_its_place(start: Start) -> None:
    """The launcher becomes the command: the same process, whose status is the command's."""
    code = (
        "import os, subprocess, sys\nfrom deploy.lifeline import tether\n"
        "inner = 'import os, sys; print(os.getpid(), sys.argv[1:]); sys.exit(7)'\n"
        "child = subprocess.Popen(tether([sys.executable, '-c', inner, 'a b', '-x']))\n"
        "print(child.pid, child.wait())"
    )
    said, errors = start("-c", code).communicate(timeout=SECONDS)
    assert errors == ""
    inner, outer = said.splitlines()
    assert inner.split(maxsplit=1)[1] == "['a b', '-x']"
    assert outer.split() == [inner.split()[0], "7"]


def test_a_command_whose_parent_is_gone_does_not_start(start: Start) -> None:
    """Between fork and prctl the parent may die: the launcher then belongs to another."""
    code = (
        "import subprocess, sys\nfrom deploy.lifeline import tether\n"
        "command = tether([sys.executable, '-c', 'print(1)'])\n"
        "place = command.index(str(__import__('os').getpid()))\n"
        "command[place] = '1' if command[place] != '1' else '2'\n"
        "done = subprocess.run(command, stdout=subprocess.PIPE)\n"
        "print(done.returncode, done.stdout)"
    )
    said, errors = start("-c", code).communicate(timeout=SECONDS)
    assert (said.strip(), errors) == ("1 b''", "")


def test_one_that_nobody_listens_to_and_that_init_adopted_ends(start: Start, eventually: Callable[..., None]) -> None:
    late = (
        "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass\n"
        "from deploy.lifeline import die_with_parent\nsys.stderr.write(f'{os.getppid()} ')\n"
        "sys.stderr.flush()\ndie_with_parent()\nsys.stderr.write('ran on')"
    )
    leave = (
        "import os, subprocess, sys\n"
        "late = subprocess.Popen([sys.executable, '-P', '-c', sys.argv[1], str(os.getpid())], stdout=subprocess.PIPE)"
    )
    _, said = start("-c", leave, late).communicate(timeout=SECONDS)  # stderr ends when the late one has ended
    if not said.startswith("1 "):
        pytest.skip("a subreaper adopts orphans here")
    assert said == "1 "
