"""The lane that audits labels: each drop's, by the embedding of a network, and all those in use where it takes that.

The network is the champion's, or a pretrained backbone where one is configured: then no drop waits for a first
champion. A drop that is small beside what was audited before is asked about alone, so that it costs what the drop costs
however much there is; policies/labels.py says when. Where the child finds that it takes all labels it says so, and is
asked once more.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from daemon import audit_rows, decisions, flags, schema, standings, targets
from daemon.backbone import Backbone, find_backbone
from daemon.config import Config
from daemon.errand import Errand
from daemon.events import Event
from daemon.journal import change, now
from daemon.standings import Labelled
from daemon.stock import model_folder
from policies.labels import DropAudit, hold_drop

log = logging.getLogger("relearn")


class Auditor(Errand):
    """Drops wait here for a champion to audit them by; a drop with too many wrong labels is held."""

    doing = "the audit of labels"

    def __init__(self, config: Config, journal: Engine, put: Callable[[Event], None]) -> None:
        super().__init__(config, journal, put)
        self.due = False
        self.drops: list[int] = []  # that are being audited
        self.own: list[Labelled] = []  # what those drops brought
        self.model = ""
        self.because = ""  # of which all labels are audited, and not the drops' alone
        self.again = ""  # why they have to be at the next step

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
            self.own, changes = audit_rows.of_drops(connection, drops), audit_rows.count_changes(connection)
            self.because = self.again or audit_rows.why_all(self._embeddings(model), self.own, changes)
            asked: Iterable[Labelled] = self.own
            if self.because:
                log.info("all labels are audited: %s", self.because)
                asked = standings.usable(connection, flagged=True)
            rows = audit_rows.write(self._folder / "rows", asked)
        self.drops, self.model, self.again = drops, model, ""
        self._start(rows, changes, backbone)
        return True

    @property
    def _folder(self) -> Path:
        return self.config.state / "audits"

    def _embeddings(self, model: str) -> Path:
        return self.config.state / "embeddings" / model

    def _start(self, rows: audit_rows.Written, changes: int, backbone: Backbone | None) -> None:
        folder = self._folder
        inputs = {
            "model": str(backbone.folder if backbone else model_folder(self.config.state, self.model)),
            "embeddings": str(self._embeddings(self.model)),
            "rows": str(rows.file),
            "classes": rows.classes,
            "whole": bool(self.because),
            "changed": changes,
            "found": str(folder / "found.json"),
            "seed": self.config.settings.train.seed,
        }
        token = f"audit.{self.model}.{self.drops[-1]}.{rows.number}"
        first = backbone.orders if backbone else ()
        self.send("audit", token, inputs, folder / "job.json", rows.number, first)

    def take(self, outputs: dict[str, Any]) -> None:
        if "folds" in outputs:
            self._ask_again(outputs["folds"])
            return
        found = json.loads(Path(outputs["found"]).read_text(encoding="utf-8"))
        unaudited = {bytes.fromhex(sha) for sha in found["unaudited"]}
        with self.journal.begin() as connection:
            still = set(audit_rows.of_drops(connection, self.drops))  # as they were when it was asked
            rows = [row for row in self.own if row in still and row.sha256 not in unaudited]
            audited, own = {row.sample for row in rows}, {row.name for row in rows}
            self.own = []
            if not self.because and not _suggested(found) - own <= set(standings.classes(connection)):
                self._ask_again("what a label was taken for is a class that no image is of any more")
                return
            flags.record(connection, self.model, found, None if self.because else audited)
            for audit in flags.count(connection, self.drops, audited, found["audited"]):
                self._judge(connection, audit)

    def _ask_again(self, why: str) -> None:
        self.again = why
        self.due = True

    def _judge(self, connection: Connection, audit: DropAudit) -> None:
        drop = audit.drop
        decision = hold_drop(audit, self.config.settings.policies.labels)
        (finding,) = decision.findings
        log.info("%s", decision.reason)
        change(connection, schema.drops, drop, audited=now(), reason=finding.reason)
        if decision.action == "hold":
            change(connection, schema.drops, drop, state="held")
            for target in targets.requirements(connection):
                decisions.write(connection, self.config, target, f"drop {drop}", decision, audit)


def _suggested(found: dict[str, Any]) -> set[str]:
    return {flag["suggested"] for flag in found["flags"]}
