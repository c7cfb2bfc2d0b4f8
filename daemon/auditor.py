"""The lane that audits labels: each drop's, together with all those in use, by the embedding of a network.

That is the champion's, or a pretrained backbone's where one is configured: then no drop waits for a first champion.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from daemon import decisions, flags, schema, standings, targets
from daemon.backbone import Backbone, find_backbone
from daemon.config import Config
from daemon.errand import Errand
from daemon.events import Event
from daemon.journal import change, now
from daemon.standings import Labelled
from daemon.stock import model_folder
from policies.labels import hold_drop

log = logging.getLogger("relearn")


class Auditor(Errand):
    """Drops wait here for a champion to audit them by; a drop with too many wrong labels is held."""

    doing = "the audit of labels"

    def __init__(self, config: Config, journal: Engine, put: Callable[[Event], None]) -> None:
        super().__init__(config, journal, put)
        self.due = False
        self.drops: list[int] = []  # that are being audited
        self.model = ""

    @property
    def busy(self) -> bool:
        return self.child is not None or self.due

    def want(self) -> None:
        """A drop has come, or a champion."""
        self.due = True

    def step(self) -> bool:
        """Begins the audit of all drops that are due. False: there is none, or one is under way."""
        if self.child is not None or not self.due:
            return False
        self.due = False
        with self.journal.connect() as connection:
            drops = flags.due_drops(connection)
            backbone = find_backbone(self.config)
            model = (backbone.name if backbone else targets.embedding_model(connection)) if drops else None
            if model is None:
                return True
            rows = list(standings.usable(connection, flagged=True))
        self.drops, self.model = drops, model
        self._start(rows, backbone)
        return True

    def _start(self, rows: list[Labelled], backbone: Backbone | None) -> None:
        folder = self.config.state / "audits"
        folder.mkdir(parents=True, exist_ok=True)
        classes = sorted({row.name for row in rows})
        index = {name: number for number, name in enumerate(classes)}
        asked = {
            "classes": classes,
            "samples": [row.sha256.hex() for row in rows],
            "labels": [index[row.name] for row in rows],
            "judge": [row.role == "judge" for row in rows],
        }
        (folder / "rows.json").write_text(json.dumps(asked), encoding="utf-8")
        inputs = {
            "model": str(backbone.folder if backbone else model_folder(self.config.state, self.model)),
            "embeddings": str(self.config.state / "embeddings" / self.model),
            "rows": str(folder / "rows.json"),
            "found": str(folder / "found.json"),
            "seed": self.config.settings.train.seed,
        }
        token = f"audit.{self.model}.{self.drops[-1]}.{len(rows)}"
        first = backbone.orders if backbone else ()
        self.send("audit", token, inputs, folder / "job.json", len(rows), first)

    def take(self, outputs: dict[str, Any]) -> None:
        found = json.loads(Path(outputs["found"]).read_text(encoding="utf-8"))
        with self.journal.begin() as connection:
            flags.record(connection, self.model, found)
            for drop in self.drops:
                self._judge(connection, drop, found["audited"])

    def _judge(self, connection: Connection, drop: int, audited: list[str]) -> None:
        audit = flags.count(connection, drop, self.drops, audited)
        decision = hold_drop(audit, self.config.settings.policies.labels)
        (finding,) = decision.findings
        log.info("%s", decision.reason)
        change(connection, schema.drops, drop, audited=now(), reason=finding.reason)
        if decision.action == "hold":
            change(connection, schema.drops, drop, state="held")
            for target in targets.requirements(connection):
                decisions.write(connection, self.config, target, f"drop {drop}", decision, audit)
