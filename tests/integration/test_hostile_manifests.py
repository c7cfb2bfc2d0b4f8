"""The corpus of hostile manifests, each beside three fine images: what is odd is told, what is fine holds."""

from __future__ import annotations

import re
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from sqlalchemy import select

from daemon import data_views, scan, schema
from daemon import reader as module
from daemon.config import load
from daemon.journal import open_journal
from daemon.reader import Reader
from daemon.sources import Sources
from tests.driven import drive
from tests.hostile import FIRST_ROW, MANIFESTS, image

PICTURES = {f"{number}.png": image(seed=2000 + number) for number in (1, 2, 3)}


def test_each_hostile_manifest_costs_itself_alone(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = []
    (workspace / "outside.csv").write_bytes(FIRST_ROW)
    for manifest in MANIFESTS:
        folder = workspace / "images" / manifest.name
        folder.mkdir()
        for name, content in PICTURES.items():
            (folder / name).write_bytes(content)
        manifest.make(folder / f"labels{folder.suffix}")
        entries.append(f'{{path="images/{manifest.name}", labels="manifest", manifest="labels{folder.suffix}"}}')
    config = load(workspace, ["triton.url=127.0.0.1:9", f"watch.folders=[{', '.join(entries)}]"])
    monkeypatch.setattr(
        module, "compare", lambda c, watched, paths, _seconds, writing: scan.compare(c, watched, paths, -60, writing)
    )
    (workspace / "state").mkdir()
    journal = open_journal(config.state, migrate=True)
    queue: SimpleQueue[Any] = SimpleQueue()
    reader = Reader(config, journal, queue.put, Sources(config, queue), lambda _told: None)
    for _ in range(2):  # nothing is read again
        reader.scan()
        drive(reader, queue)
    with journal.connect() as connection:
        rejected = data_views.rejected(connection)
        live = list(connection.execute(select(schema.occurrences).where(schema.occurrences.c.gone.is_(None))))
        assert len(list(connection.execute(select(schema.drops)))) == len(MANIFESTS)
    wrong = {}
    for manifest in MANIFESTS:
        folder = workspace / "images" / manifest.name
        known = {row.path: row.class_name for row in live if row.folder == str(folder)}
        said = [view["reason"] for view in rejected if view["file"] == str(folder / f"labels{folder.suffix}")]
        missing = [reason for reason in manifest.reasons if not any(re.search(reason, what) for what in said)]
        if missing or len(said) != len(manifest.reasons) or known != dict.fromkeys(PICTURES) | manifest.classes:
            wrong[manifest.name] = (missing, [what[:200] for what in said], known)
    assert wrong == {}
