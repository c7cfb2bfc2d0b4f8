"""The lane that looks for drift: what has come since the last check, compared with what the champion was tuned on."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, select

from daemon import forget, schema, snapshot, standings, targets
from daemon.config import Config
from daemon.errand import Errand
from daemon.events import Event
from daemon.journal import AnyRow, add, get, now
from daemon.stock import model_folder
from policies.facts import DriftCheck, from_dict, to_dict

log = logging.getLogger("relearn")
KINDS = ("labelled", "unlabelled")
LARGEST = 2048  # images of the reference: more would only cost time


@dataclass(frozen=True, slots=True)
class Window:
    """Images that came since the last check of their kind."""

    kind: str
    up_to_drop: int
    samples: list[str]  # SHA-256 in hex
    labels: list[int] | None  # indices of the model's classes
    held: list[int]  # drops up to that one that are held: looked at once they are released


class DriftWatch(Errand):
    """Small drops gather here until there are enough to compare."""

    doing = "the look for drift"

    def __init__(self, config: Config, journal: Engine, put: Callable[[Event], None]) -> None:
        super().__init__(config, journal, put)
        self.due = False
        self.model = ""
        self.windows: list[Window] = []  # that are being compared

    @property
    def busy(self) -> bool:
        return self.child is not None or self.due

    def want(self) -> None:
        """Something has come."""
        self.due = True

    def step(self) -> bool:
        """Begins a comparison, where enough has come. False: nothing is due, or one is under way."""
        if self.child is not None or not self.due:
            return False
        self.due = False
        with self.journal.connect() as connection:
            model = targets.embedding_model(connection)
            if model is None:
                return True
            try:
                reference = self._reference(connection, model)
            except OSError as error:
                log.warning("%s: what the model was tuned on is not known any more: drift is not looked for", error)
                return True
            least = self.config.settings.policies.drift.samples
            found = [self._window(connection, model, kind, reference["labels"]) for kind in KINDS]
        tuned = Counter(reference["labels"])
        self.windows = [window for window in found if _comparable(window, tuned) >= least]
        if self.windows and len(reference["samples"]) >= 2 * least:
            self.model = model
            self._start(reference)
        return True

    def _reference(self, connection: Connection, model: str) -> dict[str, list[Any]]:
        """Tune samples of the model's own snapshot, images that it has not learnt from: of each class its share."""
        row = get(connection, schema.models, model)
        index = {name: number for number, name in enumerate(row.classes)}
        counts = get(connection, schema.snapshots, row.snapshot_id).counts
        tuned = {name: given["tune"] for name, given in counts.items() if name in index}
        most = max(sum(tuned.values()), 1)
        left = Counter({name: math.ceil(number * min(LARGEST / most, 1)) for name, number in tuned.items()})
        chosen: dict[bytes, int] = {}
        for sha, name in self._rows(row.snapshot_id).of_role("tune"):  # by hash: by chance
            if left[name] > 0:
                chosen[sha] = index[name]
                left[name] -= 1
                if left.total() == 0:
                    break
        forgotten = forget.is_forgotten(connection, chosen)
        tune = {sha.hex(): label for sha, label in chosen.items() if sha not in forgotten}
        return {"samples": list(tune), "labels": list(tune.values())}

    def _rows(self, snapshot_id: str) -> snapshot.Rows:
        return snapshot.read(self.config.state / "snapshots" / f"{snapshot_id}.snapshot")[1]

    def _window(self, connection: Connection, model: str, kind: str, tuned: list[int]) -> Window:
        """What came since the last check of this kind; of classes that the reference has two images of at least."""
        checks = schema.drift_checks
        newest = connection.execute(select(checks).where(checks.c.kind == kind).order_by(checks.c.id.desc())).first()
        last, missed = (newest.up_to_drop, set(newest.figures.get("held", ()))) if newest else (0, set())
        row = get(connection, schema.models, model)
        taken = get(connection, schema.snapshots, row.snapshot_id)
        known, counts = self._rows(taken.id), Counter(tuned)
        index = {name: number for number, name in enumerate(row.classes) if counts[number] > 1}
        found = (
            self._labelled(connection, taken, index)
            if kind == "labelled"
            else standings.unlabelled(connection, last, missed)
        )
        come = [one for one in found if (one[0] > last or one[0] in missed) and one[1] not in known]
        up_to = max(last, *(drop for drop, _, _ in come)) if come else last
        given = [index[name] for _, _, name in come] if kind == "labelled" else None
        held = _held(connection, up_to) if kind == "labelled" else []
        return Window(kind, up_to, [sha.hex() for _, sha, _ in come], given, held)

    def _labelled(
        self, connection: Connection, trained_on: AnyRow, index: Mapping[str, int]
    ) -> list[tuple[int, bytes, str | None]]:
        """Drop, hash and class of what may be used to train and tune: of judge nothing is looked at."""
        usable = standings.usable_since(connection, trained_on.changed, trained_on.classes)
        return [(one.drop, one.sha256, one.name) for one in usable if one.role != "judge" and one.name in index]

    def _start(self, reference: dict[str, list[Any]]) -> None:
        folder = self.config.state / "audits"
        folder.mkdir(parents=True, exist_ok=True)
        windows = [{"kind": w.kind, "samples": w.samples, "labels": w.labels} for w in self.windows]
        asked = folder / "windows.json"
        asked.write_text(json.dumps({"reference": reference, "windows": windows}), encoding="utf-8")
        inputs = {
            "model": str(model_folder(self.config.state, self.model)),
            "embeddings": str(self.config.state / "embeddings" / self.model),
            "windows": str(asked),
            "compared": str(folder / "compared.json"),
            "seed": self.config.settings.train.seed,
        }
        token = f"drift.{self.model}." + ".".join(str(window.up_to_drop) for window in self.windows)
        images = len(reference["samples"]) + sum(len(window.samples) for window in self.windows)
        self.send("drift", token, inputs, folder / "drift.json", images)

    def take(self, outputs: dict[str, Any]) -> None:
        said = json.loads(Path(outputs["compared"]).read_text(encoding="utf-8"))
        with self.journal.begin() as connection:
            for window, figures in zip(self.windows, said, strict=True):
                check = from_dict(DriftCheck, figures)
                about = {"model_id": self.model, "up_to_drop": window.up_to_drop, "at": now()}
                kept = {**to_dict(check), "held": window.held}
                add(connection, schema.drift_checks, kind=window.kind, figures=kept, **about)
        self.windows = []  # they name every image that has come


def _held(connection: Connection, up_to: int) -> list[int]:
    drops = schema.drops
    return list(connection.execute(select(drops.c.id).where(drops.c.state == "held", drops.c.id <= up_to)).scalars())


def _comparable(window: Window, tuned: Counter[int]) -> int:
    """Of how many images of the window the comparison takes account: of a class, half of what the reference has."""
    if window.labels is None:
        return len(window.samples)
    return sum(min(number, tuned[label] // 2) for label, number in Counter(window.labels).items())
