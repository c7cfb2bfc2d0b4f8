"""A manifest of any length: memory stays flat, in its child and in the daemon, and images that are there get labels.

MANIFEST_ROWS=10000000 in the environment makes it as long as that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
ROWS = int(os.environ.get("MANIFEST_ROWS", "600000"))
THERE = 3  # of so many rows one names a file that is there
CHILD_MB, GROWTH_MB = 70, 40  # of the daemon; to hold 200,000 rows took 91, and 89
Png = Callable[..., Path]

DAEMON = """
import json, sys, threading
from pathlib import Path
from queue import SimpleQueue
from sqlalchemy import select
from daemon import reader as module, scan, schema
from daemon.config import load
from daemon.events import ChildSpoke
from daemon.journal import open_journal
from daemon.reader import Reader
from daemon.sources import Sources

def peak(pid="self"):
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)

def watch(pid):
    while now := peak(pid):
        peaks.append(now)
        threading.Event().wait(0.05)

compare = lambda c, watched, paths, _seconds, writing: scan.compare(c, watched, paths, -60, writing)
module.compare = compare  # nothing is too fresh
entry = 'watch.folders=[{path="images", labels="manifest", manifest="labels.csv"}]'
config = load(Path(sys.argv[1]), ["triton.url=127.0.0.1:9", entry])
config.state.mkdir(exist_ok=True)
journal, queue, peaks, watchers = open_journal(config.state, migrate=True), SimpleQueue(), [], []
reader = Reader(config, journal, queue.put, Sources(config, queue), lambda told: None)

def work():
    reader.scan()
    while reader.step() or reader.busy:
        if reader.child and reader.child.token.startswith("manifest") and reader.child.token not in watchers:
            watchers.append(reader.child.token)
            threading.Thread(target=watch, args=[reader.child.pid], daemon=True).start()
        if reader.children:
            event = queue.get(timeout=600)
            if isinstance(event, ChildSpoke):
                reader.hear(event.line)
            elif event.token in {child.token for child in reader.children}:
                assert event.status == 0, event.last_words
                reader.bury(event.token, event.status, event.last_words)

manifest = config.folders[0] / "labels.csv"
manifest.rename(manifest.with_name(".labels.csv"))
work()
before = peak()
manifest.with_name(".labels.csv").rename(manifest)
work()
table = schema.occurrences
with journal.connect() as connection:
    rows = connection.execute(select(table.c.path, table.c.class_name).where(table.c.gone.is_(None))).all()
    (of,) = connection.execute(select(schema.manifests)).all()
told = dict(child=max(peaks), before=before, after=peak(), classes=[list(row) for row in rows])
print(json.dumps(told | dict(rows=of.rows, waiting=of.waiting, refused=of.refused)))
"""


def write_manifest(file: Path) -> None:
    """Rows of images that are not there, and of ways to one that is, as many as one likes: by links to where they lie.

    Each image that is there has a row somewhere in the midst.
    """
    with file.open("w", buffering=1 << 20) as stream:
        stream.write("path,label,group\n")
        for number in range(ROWS):
            if number % (ROWS // 5) == ROWS // 10:
                stream.write(f"{number // (ROWS // 5)}.png,class-{number // (ROWS // 5)},\n")
            elif number % THERE:
                stream.write(f"never/{number}.png,cat,part-{number}\n")
            else:
                stream.write(f"{f'{number:b}'.replace('0', 'o/').replace('1', 'l/')}0.png,dog,part-{number}\n")


def test_memory_does_not_grow_with_the_rows(workspace: Path, png: Png) -> None:
    images = workspace / "images"
    for number in range(5):
        png(images / f"{number}.png", number)
    for link in ("o", "l"):
        (images / link).symlink_to(".")
    write_manifest(images / "labels.csv")
    done = subprocess.run(
        [sys.executable, "-P", "-c", DAEMON, str(workspace)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    print(told)  # for whoever makes it longer
    assert dict(told["classes"]) == {f"{number}.png": f"class-{number}" for number in range(5)}
    assert told["rows"] == ROWS
    assert told["refused"] == 0
    assert told["waiting"] > ROWS / 2
    assert told["child"] < CHILD_MB
    assert told["after"] - told["before"] < GROWTH_MB
