"""The trials of one tuning, on disk: what each tries and how it ended, so that no kill costs one.

FOLDER/tuning.json     what is tuned, and over which space
FOLDER/trials/3.json   a trial: its point, and how it ended; written before it starts and when it has ended
FOLDER/trials/3/       its training: a run folder like any other
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.durable import read_json, write_json
from pipeline.run_folder import RunFolder
from pipeline.space import Point

METRIC = "tune_loss"  # of a trial's best epoch; lower is better
RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"


@dataclass(frozen=True)
class Trial:
    """One trial. `tune_loss` and `tune_accuracy` are those of its best epoch; None: no epoch had any."""

    number: int  # from 1
    settings: Point
    state: str = RUNNING
    epochs: int = 0
    tune_loss: float | None = None
    tune_accuracy: float | None = None
    seconds: float = 0.0  # of its epochs
    error: str | None = None

    def plain(self) -> dict[str, Any]:
        plain = dataclasses.asdict(self)
        return plain if self.error else {key: value for key, value in plain.items() if key != "error"}


class Trials:
    """All trials of the tuning whose folder this is, by number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: dict[int, Trial] = {}

    @classmethod
    def at(cls, folder: str) -> Trials:
        """For who looks at run folders alone."""
        return cls(Path(folder))

    def open(self, recipe: Mapping[str, Any]) -> str | None:
        """Reads what is there, for a tuning of this recipe; what is there of another is removed, and said."""
        said, file = None, self.folder / "tuning.json"
        if file.exists() and read_json(file) != recipe:
            said = f"{self.folder} holds a tuning of another recipe: starting anew"
            shutil.rmtree(self.folder)
        (self.folder / "trials").mkdir(parents=True, exist_ok=True)
        write_json(file, recipe)
        found = (Trial(**read_json(file)) for file in (self.folder / "trials").glob("*.json"))
        self.all = {trial.number: trial for trial in sorted(found, key=lambda trial: trial.number)}
        return said

    def run(self, number: int) -> RunFolder:
        return RunFolder(self.folder / "trials" / str(number))

    def begin(self, point: Point) -> int:
        """The number of the trial at this point: the one that was begun there, or a new one."""
        for trial in self.all.values():
            if trial.settings == point:
                return trial.number
        number = max(self.all, default=0) + 1
        self._write(Trial(number, point))
        return number

    def end(self, number: int, state: str, error: str | None = None) -> Trial:
        """Writes down how a trial ended; its epochs are read from its run folder."""
        epochs = self.epochs(number)
        best = min(
            (epoch for epoch in epochs if math.isfinite(epoch["tune_loss"])),
            key=lambda epoch: epoch["tune_loss"],
            default={"tune_loss": None, "tune_accuracy": None},
        )
        trial = Trial(
            number, self.all[number].settings, state, len(epochs), best["tune_loss"], best["tune_accuracy"],
            sum(epoch["seconds"] for epoch in epochs), error,
        )  # fmt: skip
        self._write(trial)
        self._forget_weights()
        return trial

    def epochs(self, number: int) -> list[dict[str, Any]]:
        """A trial's epochs so far."""
        history = self.run(number).history
        return list(read_json(history)["epochs"]) if history.exists() else []

    @property
    def ended(self) -> list[Trial]:
        return [trial for trial in self.all.values() if trial.state != RUNNING]

    @property
    def running(self) -> list[Trial]:
        return [trial for trial in self.all.values() if trial.state == RUNNING]

    @property
    def best(self) -> Trial | None:
        """Of those that finished; the earliest of equals."""
        finished = [trial for trial in self.all.values() if trial.state == FINISHED and trial.tune_loss is not None]
        return min(finished, key=lambda trial: trial.tune_loss or 0.0, default=None)

    def _write(self, trial: Trial) -> None:
        write_json(self.folder / "trials" / f"{trial.number}.json", trial.plain())
        self.all[trial.number] = trial

    def _forget_weights(self) -> None:
        """Checkpoints fill disks: of those that have ended the best alone keeps its own."""
        best = self.best
        for trial in self.ended:
            if best is None or trial.number != best.number:
                for file in (self.run(trial.number).checkpoint, self.run(trial.number).weights):
                    with contextlib.suppress(FileNotFoundError):
                        file.unlink()
