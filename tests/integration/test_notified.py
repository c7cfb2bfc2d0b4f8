"""What people do to a watched folder is known by notification alone: real files, real watches, and no scan of its own.

The last three have a process of their own: one that is held up until the kernel drops notifications, one in whose mount
namespace the folder is unmounted, and one that is polled.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from sqlalchemy import select

from daemon import conflicts, schema
from daemon.config import load
from daemon.events import ChildEnded, ChildSpoke, DropSettled, Event, SourceFailed
from daemon.journal import open_journal
from daemon.reader import Reader
from daemon.sources import LOOK_SECONDS, Sources, running
from tests.hostile import image

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = 30.0
Known = dict[str, tuple[str, str | None, int]]  # path -> hash, class, mtime in ns


class Daemon:
    """The part of a daemon that hears of files and reads them."""

    def __init__(self, workspace: Path, polling: bool) -> None:
        about = [f"watch.polling={str(polling).lower()}", "watch.polling_seconds=0.1", "watch.settle_seconds=0.05"]
        self.config = load(workspace, [*about, "triton.url=127.0.0.1:9"])
        self.images = self.config.folders[0]
        self.config.state.mkdir(exist_ok=True)
        self.journal = open_journal(self.config.state, migrate=True)
        self.queue: SimpleQueue[Event] = SimpleQueue()
        self.sources = Sources(self.config, self.queue)
        self.reader = Reader(self.config, self.journal, self.queue.put, self.sources, lambda _told: None)
        self.everywhere = 0  # how often it was told to look at all there is
        self.said: list[str] = []

    def until(self, holds: Callable[[], Any]) -> None:
        deadline = time.monotonic() + SECONDS
        while self.work() or not holds():
            assert time.monotonic() < deadline, (known(self), there(self.images), self.said)

    def work(self) -> bool:
        """Whether there is more to do, after the next event if one comes in a while."""
        if self.reader.step():
            return True
        try:
            self.hear(self.queue.get(timeout=0.05))
        except Empty:
            return self.reader.busy or self.sources.unsettled
        return True

    def hear(self, event: Event) -> None:
        if isinstance(event, DropSettled):
            self.everywhere += event.paths is None
            self.reader.waiting.append(event)
        elif isinstance(event, SourceFailed):
            self.said.append(event.what)
        elif isinstance(event, ChildSpoke):
            self.reader.hear(event.line)
        elif isinstance(event, ChildEnded) and event.token in {child.token for child in self.reader.children}:
            self.reader.bury(event.token, event.status, event.last_words)


@contextmanager
def watching(workspace: Path, polling: bool = False) -> Iterator[Daemon]:
    """A daemon that has looked once at what there is."""
    daemon = Daemon(workspace, polling)
    with running(daemon.sources):
        daemon.reader.scan()
        daemon.until(lambda: known(daemon) == there(daemon.images))
        daemon.everywhere = 0
        yield daemon
    daemon.journal.dispose()


def known(daemon: Daemon) -> Known:
    table, samples = schema.occurrences, schema.samples
    live = (
        select(table, samples.c.sha256).join(samples, samples.c.id == table.c.sample_id).where(table.c.gone.is_(None))
    )
    with daemon.journal.connect() as connection:
        return {row.path: (row.sha256.hex(), row.class_name, row.mtime_ns) for row in connection.execute(live)}


def rejected(daemon: Daemon) -> list[str]:
    table = schema.rejections
    with daemon.journal.connect() as connection:
        return list(connection.execute(select(table.c.path).where(table.c.gone.is_(None))).scalars())


def there(images: Path) -> Known:
    """All images, as they lie there; those that are broken say so in their names."""
    found: Known = {}
    for file in sorted(images.rglob("*.png")):
        path = str(file.relative_to(images))
        name = path.partition("/")[0] if "/" in path else None
        if "broken" not in path:
            found[path] = (hashlib.sha256(file.read_bytes()).hexdigest(), name, file.stat().st_mtime_ns)
    return found


def bring(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(image(size=(16, 16), seed=seed))


@pytest.mark.parametrize("polling", [False, True], ids=["notified", "polled"])
def test_all_that_is_done_to_files_is_known(workspace: Path, polling: bool) -> None:
    images = workspace / "images"
    for number, path in enumerate(("cat/1.png", "cat/2.png", "dog/3.png", "owl/4.png")):
        bring(images / path, number)

    with watching(workspace, polling) as daemon:

        def settled() -> bool:
            return known(daemon) == there(images)

        def in_conflict() -> list[list[str]]:
            with daemon.journal.connect() as connection:
                return [view["classes"] for view in conflicts.find(connection)]

        (images / "cat" / "1.png").touch()
        daemon.until(settled)
        (images / "cat" / "1.png").rename(images / "cat" / "renamed.png")
        daemon.until(settled)
        (images / "cat" / "renamed.png").rename(images / "dog" / "moved.png")
        daemon.until(settled)
        shutil.copy2(images / "dog" / "moved.png", images / "owl" / "copied.png")
        daemon.until(settled)
        assert in_conflict() == [["dog", "owl"]]
        (images / "owl" / "copied.png").unlink()
        daemon.until(settled)
        assert in_conflict() == []
        bring(images / "cat" / ".new", 10)
        (images / "cat" / ".new").rename(images / "cat" / "2.png")
        daemon.until(settled)
        bring(images / "cat" / "2.png", 11)
        daemon.until(settled)
        (images / "dog").rename(images / "wolf")
        daemon.until(settled)
        shutil.rmtree(images / "wolf")
        bring(images / "unlabelled.png", 12)
        daemon.until(settled)
        (images / "owl" / "broken.png").write_bytes(b"no image")
        daemon.until(lambda: rejected(daemon) == ["owl/broken.png"])
        bring(images / "owl" / "broken.png", 13)
        (images / "owl" / "broken.png").rename(images / "owl" / "mended.png")
        daemon.until(lambda: settled() and rejected(daemon) == [])
        assert daemon.everywhere == 0


def test_a_folder_that_goes_and_comes_back_is_as_it_was_and_what_came_meanwhile_is_new(workspace: Path) -> None:
    images, away = workspace / "images", workspace / "away"
    bring(images / "cat" / "1.png", 1)
    with watching(workspace) as daemon:
        before = known(daemon)
        images.rename(away)
        bring(away / "cat" / "2.png", 2)
        ends = time.monotonic() + 3 * LOOK_SECONDS
        daemon.reader.scan()
        daemon.until(lambda: time.monotonic() > ends)
        assert known(daemon) == before
        away.rename(images)
        daemon.until(lambda: known(daemon) == there(images))
        bring(images / "cat" / "3.png", 3)
        daemon.until(lambda: known(daemon) == there(images))


# --- in a process of its own ------------------------------------------------------------------------------------------

FLOODED = """
import sys
from pathlib import Path
from tests.integration.test_notified import known, there, watching

with watching(Path(sys.argv[1])) as daemon:
    print("ready", flush=True)
    daemon.until(lambda: "quiet/2.png" in known(daemon))
    assert known(daemon) == there(daemon.images), (known(daemon), there(daemon.images))
    print(daemon.said, daemon.everywhere, flush=True)
"""
MOUNTED = """
import subprocess, sys
from pathlib import Path
from tests.integration.test_notified import bring, known, there, watching

workspace = Path(sys.argv[1])
images, disk = workspace / "images", workspace / "disk"
bring(disk / "cat" / "1.png", 1)
mount = lambda: subprocess.run(["mount", "--bind", disk, images], check=True)
mount()
with watching(workspace) as daemon:
    before = known(daemon)
    subprocess.run(["umount", images], check=True)
    daemon.until(lambda: daemon.said)
    daemon.until(lambda: daemon.everywhere)
    assert known(daemon) == before and list(before) == ["cat/1.png"], before
    bring(disk / "cat" / "2.png", 2)
    mount()
    daemon.until(lambda: known(daemon) == there(images))
    bring(images / "cat" / "3.png", 3)
    daemon.until(lambda: known(daemon) == there(images))
    print(sorted(known(daemon)), daemon.said)
"""


def command(program: str, workspace: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return {"args": [sys.executable, "-P", "-c", program, str(workspace)], "env": environment, "text": True}


def test_what_notification_lost_is_found_by_a_look_at_everything(workspace: Path) -> None:
    """The daemon is held up while more changes than the kernel keeps, and then something comes that it drops."""
    images = workspace / "images"
    bring(images / "busy" / "1.png", 1)
    bring(images / "quiet" / "1.png", 2)
    with subprocess.Popen(**command(FLOODED, workspace), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        one, other = images / "busy" / "1.png", images / "busy" / "2.png"
        for _ in range(int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())):
            one, other = one.rename(other), one
        bring(images / "quiet" / "2.png", 3)
        process.send_signal(signal.SIGCONT)
        assert "notifications were lost; all folders are looked through" in process.stdout.read()
    assert process.returncode == 0


def test_a_folder_that_is_unmounted_and_mounted_again(workspace: Path) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine gives no user namespaces")
    how = command(MOUNTED, workspace)
    how["args"] = ["unshare", "-Urm", *how["args"]]
    done = subprocess.run(**how, check=False, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "['cat/1.png', 'cat/2.png', 'cat/3.png']" in done.stdout
    assert "is another folder than before; it is watched from now on" in done.stdout
