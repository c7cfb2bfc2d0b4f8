"""Whether a workspace still is what it must be after a kill: looked up in the files and the journal, not asked for.

Each function returns a sentence for every fault. The journal is read with SQLite's own module.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.config import Config
from daemon.store import place
from deploy import repository

TWICE = {  # what there may be one of alone, and a query whose rows tell of what
    "occurrence of a file": "select path from occurrences",
    "label of a sample": "select sample_id from labels",
    "end of a stage": "select stage_id from attempts where outcome = 'done'",
    "training by a recipe": "select recipe from models where recipe <> ''",
    "cycle of a decision": "select decision_id from cycles",
    "verdict on an artifact": "select cycle_id, artifact_id from verdicts",
    "proof in a cycle": "select cycle_id, artifact_id from proofs",
    "promotion by a verdict": "select verdict_id from promotions where verdict_id is not null",
    "promotion in a cycle": "select cycle_id, artifact_id from promotions where cycle_id is not null",
    "champion of a target": "select target from promotions where state = 'serving'",
}


@dataclass(frozen=True, slots=True)
class Dropped:
    """One image as it was put into the watched folder."""

    file: Path
    name: str  # of the class
    sha256: str
    mtime_ns: int


def note(file: Path, name: str) -> Dropped:
    return Dropped(file, name, hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)


def ask(config: Config, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """What the journal says now."""
    with closing(sqlite3.connect(config.state / "journal.db", timeout=30)) as journal:
        return journal.execute(query, values).fetchall()


def find_lost(config: Config, dropped: Iterable[Dropped]) -> list[str]:
    """Images whose file was touched, or that the journal and the store do not have as they were dropped."""
    [folder] = config.folders
    found = ask(
        config,
        "select path, lower(hex(sha256)), occurrences.class, (select group_concat(labels.class) from labels where"
        " labels.sample_id = samples.id) from occurrences join samples on samples.id = sample_id where gone is null",
    )
    known = {folder / path: (sha256, name, labels) for path, sha256, name, labels in found}
    return [fault for image in dropped for fault in _missing(config, image, known.get(image.file))]


def _missing(config: Config, image: Dropped, known: tuple[str, str, str] | None) -> Iterator[str]:
    if not image.file.is_file() or note(image.file, image.name) != image:
        yield f"{image.file} is not the file that was dropped"
    if known is None:
        yield f"{image.file} is not in the journal"
        return
    sha256, name, labels = known
    if (sha256, name) != (image.sha256, image.name) or set((labels or "").split(",")) != {image.name}:
        yield f"{image.file} of class {image.name} is in the journal as {sha256[:8]} of class {name}, labels {labels}"
    copy = place(config.state / "store", image.sha256)
    if not copy.is_file() or hashlib.sha256(copy.read_bytes()).hexdigest() != image.sha256:
        yield f"the store has no whole copy of {image.file}"


def find_doubled(config: Config) -> list[str]:
    """Whatever was done twice."""
    faults = [f"{what} {row}: {number} times" for what, row, number in _counted(config)]
    decided = Counter(
        (target, kind, drop)
        for target, event in ask(config, "select target, event from decisions")
        for drop, kind in set(re.findall(r"\bdrop (\d+)(:?)", event))
    )
    faults += [f"decision on drop {drop} for {target}: {n} times" for (target, _, drop), n in decided.items() if n > 1]
    for (outputs,) in ask(config, "select outputs from stages where name = 'train' and state = 'done'"):
        history = Path(json.loads(outputs)["run"]) / "history.json"
        epochs = [row["epoch"] for row in json.loads(history.read_text(encoding="utf-8"))["epochs"]]
        if epochs != list(range(1, len(epochs) + 1)):
            faults.append(f"epochs in {history}: {epochs}")
    return faults


def _counted(config: Config) -> Iterator[tuple[str, tuple[Any, ...], int]]:
    for what, query in TWICE.items():
        for row, number in Counter(ask(config, query)).items():
            if number > 1:
                yield what, row, number


def find_unsound(config: Config) -> list[str]:
    """What SQLite says against the journal."""
    said = [row for row in ask(config, "pragma integrity_check") if row != ("ok",)]
    return [f"the journal: {row}" for row in [*said, *ask(config, "pragma foreign_key_check")]]


def find_left_lying(config: Config, target: str) -> list[str]:
    """What a switch left in Triton's repository beside the version that serves, once it is over."""
    root, staging = config.repository, repository.staging_folder(config.repository)
    served = [version for (version,) in ask(config, "select version from promotions where state = 'serving'")]
    expected = {root / target / str(version) for version in served}
    there = {path for path in root.glob("*/*") if path.is_dir()} | {
        path for path in root.iterdir() if path.name != target
    }
    staged = {path for path in staging.rglob("*") if path.is_file()} if staging.exists() else set()
    faults = [f"{path} is left lying" for path in sorted(there - expected | staged)]
    return faults + [f"{path} is missing" for path in sorted(expected - there)]


def say(faults: Sequence[str], most: int = 5) -> str:
    """The first few, in one line."""
    more = f" and {len(faults) - most} more" if len(faults) > most else ""
    return "; ".join(faults[:most]) + more
