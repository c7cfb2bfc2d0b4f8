"""The lane that asks the champion about new labelled samples: evidence of how good it still is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from daemon import evidence, proofs, schema, targets
from daemon.config import Config
from daemon.errand import Errand
from daemon.events import Event
from daemon.journal import get
from daemon.stock import model_folder


class Observer(Errand):
    """The champions of all targets, each asked once about each new sample of train and tune (never of judge)."""

    doing = "asking the champion about new samples"

    def __init__(self, config: Config, journal: Engine, put: Callable[[Event], None]) -> None:
        super().__init__(config, journal, put)
        self.due: list[str] = []  # targets whose champion is to be asked
        self.asking: targets.Champion | None = None

    @property
    def busy(self) -> bool:
        return self.child is not None or bool(self.due)

    def want(self) -> None:
        """New samples have come: every champion is to be asked about them."""
        with self.journal.connect() as connection:
            self.due = list(targets.requirements(connection))

    def step(self) -> bool:
        if self.child is not None or not self.due:
            return False
        target = self.due.pop(0)
        with self.journal.connect() as connection:
            found = evidence.unobserved(connection, self.config, target)
            if found is None or not found[1]:
                return True
            self.asking, shas = found
            artifact = get(connection, schema.artifacts, self.asking.artifact)
        self._start(model_folder(self.config.state, artifact.model_id), [sha.hex() for sha in shas])
        return True

    def _start(self, model: Path, shas: list[str]) -> None:
        assert self.asking is not None
        folder = self.config.state / "observations"
        folder.mkdir(parents=True, exist_ok=True)
        answers = folder / f"{self.asking.artifact}.answers.json"
        inputs = {"model": str(model), "samples": shas, "answers": str(answers)}
        token = f"observe.{self.asking.artifact}.{shas[0][:8]}.{len(shas)}"
        self.send("observe", token, inputs, folder / f"{self.asking.artifact}.json")

    def take(self, outputs: dict[str, Any]) -> None:
        assert self.asking is not None
        said = json.loads(Path(outputs["answers"]).read_text(encoding="utf-8"))
        said["predicted"] = [self.asking.classes[index] for index in said["predicted"]]
        with self.journal.begin() as connection:
            proofs.record_answers(connection, "observations", self.asking.artifact, said)
