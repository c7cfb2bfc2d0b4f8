"""The corpus of hostile files in one drop: each is refused with its reason, all that is fine comes in, nothing dies."""

from __future__ import annotations

import os
import re
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from sqlalchemy import select

from daemon import reader as module
from daemon import scan, schema, walk
from daemon.config import load
from daemon.journal import open_journal
from daemon.reader import Reader
from daemon.sources import Sources
from tests.driven import drive
from tests.hostile import CORPUS, image, lay

DEEP = "/".join(["d"] * 200) + "/deep.png"


def test_the_corpus_is_large_enough() -> None:
    assert len(CORPUS) >= 60
    assert len({hostile.path for hostile in CORPUS}) == len(CORPUS)


def test_each_hostile_file_costs_itself_alone(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(workspace, ["triton.url=127.0.0.1:9"])
    images = config.folders[0]
    lay(images / "hostile")
    (images / "fine").mkdir()
    for number in range(20):
        (images / "fine" / f"{number}.png").write_bytes(image(seed=1000 + number))
    monkeypatch.setattr(
        module, "compare", lambda c, watched, paths, _seconds, writing: scan.compare(c, watched, paths, -60, writing)
    )
    (workspace / "state").mkdir(exist_ok=True)
    journal = open_journal(config.state, migrate=True)
    queue: SimpleQueue[Any] = SimpleQueue()
    told: list[str] = []
    reader = Reader(config, journal, queue.put, Sources(config, queue), told.append)
    reader.scan()
    drive(reader, queue)
    with journal.connect() as connection:
        occurrences, rejections = schema.occurrences, schema.rejections
        known = set(connection.execute(select(occurrences.c.path).where(occurrences.c.gone.is_(None))).scalars())
        refused = {row.path: row.reason for row in connection.execute(select(rejections))}
    wrong = {}
    for hostile in CORPUS:
        path = "hostile/" + walk.text(os.fsdecode(hostile.path))
        path = f"hostile/{DEEP}" if hostile.path == b"nested" else path
        if hostile.reason is None and path not in known:
            wrong[path] = refused.get(path, "was not looked at")
        if hostile.reason is not None and not re.search(hostile.reason, refused.get(path, "")):
            wrong[path] = refused.get(path, "accepted" if path in known else "was not looked at")
    assert wrong == {}
    assert {f"fine/{number}.png" for number in range(20)} <= known
    assert len(told) == 1
