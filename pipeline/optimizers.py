"""Which optimizer a training uses where it is left open (`train.optimizer = "auto"`): a race by successive halving.

The contenders of `train.optimizers` start from the same weights and see the same batches, each in a run folder of its
own below the training's, with the schedule over all of `train.epochs`. After 1, 2, 4, … epochs the better half stays,
until one is left (Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization"). What the winner has learnt becomes the training's, which goes on from there: nothing of it is trained
twice, and its weights are those of a training that used this optimizer from the start.

An optimizer's learning rate is `train.learning_rate` times its factor, its weight decay divided by it: a step decays
by the product of the two, which thus stays as configured (as Chen et al. 2023 ask for of Lion; with a factor of 100
it also gives the usual 0.1 and 5e-4 of SGD for AdamW's 1e-3 and 0.05).
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from timm.optim._optim_factory import list_optimizers

from pipeline.durable import read_json, sync, write_json
from pipeline.run_folder import Recipe, RunFolder
from pipeline.settings import TrainSettings, check_name
from policies.job import Report, StageError

SMOOTHING = 0.5  # weight of the epochs before, in the mean that contenders are compared by

TrainTo = Callable[[Recipe, RunFolder, int, Report], object]
"""Trains what the recipe says, in its folder, to so many epochs."""


@dataclass
class Contender:
    """One optimizer in the race, and how it fares."""

    name: str
    learning_rate: float
    weight_decay: float
    losses: list[float] = field(default_factory=list)  # on tune, of each epoch
    score: float | None = None  # the smoothed loss after the last of them
    left: int | None = None  # the epochs it had when it left; None: it won, or is in the race
    error: str | None = None  # why it cannot go on

    def score_after(self, epochs: int) -> float:
        """Its smoothed loss then; infinite where it did not get there."""
        return smooth(self.losses[:epochs]) if len(self.losses) >= epochs else math.inf

    def apply(self, settings: TrainSettings) -> TrainSettings:
        """The settings of a training that uses it."""
        return dataclasses.replace(
            settings, optimizer=self.name, learning_rate=self.learning_rate, weight_decay=self.weight_decay
        )


class Race:
    """The race of one training, as its optimizers.json holds it.

    The file is written after every word of a contender. A race that was killed is run through again from the losses
    that are there: only what is missing is trained.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder) -> None:
        self.recipe, self.folder = recipe, folder
        held: dict[str, Any] = read_json(folder.race) if folder.race.exists() else {"name": None, "race": []}
        settings = recipe.settings
        self.contenders = [Contender(**entry) for entry in held["race"]] or [
            Contender(name, settings.learning_rate * factor, settings.weight_decay / factor)
            for name, factor in settings.optimizers.items()
        ]
        self.winner = next((each for each in self.contenders if each.name == held["name"]), None)
        self.total = planned(len(self.contenders), settings.epochs)

    def run(self, train_to: TrainTo, report: Report) -> Contender:
        """The winner. Raises StageError, naming each contender's reason, where none got through."""
        field = self.contenders
        for size, epochs in rungs(len(self.contenders), self.recipe.settings.epochs):
            for each in field:
                if each.error is None and len(each.losses) < epochs:
                    self._train(each, epochs, train_to, report)
            field = rank(field, epochs)[: -(-size // 2)]
            if not field:
                raise StageError(_nobody(self.contenders))
            for each in self.contenders:
                each.left = None if each in field else len(each.losses)
            if len(field) == 1:
                break
        self.winner, *others = field
        for each in others:  # all epochs are over: the best of them has won
            each.left = len(each.losses)
        self.write()
        return self.winner

    def _train(self, contender: Contender, epochs: int, train_to: TrainTo, report: Report) -> None:
        own = RunFolder(self.folder.contenders / contender.name)
        # Patience would end a contender before the epoch at which all are compared: it counts in the training alone.
        settings = dataclasses.replace(contender.apply(self.recipe.settings), early_stopping_patience=0)
        recipe = dataclasses.replace(self.recipe, settings=settings)
        own.begin(recipe)
        try:
            train_to(recipe, own, epochs, self._raced(contender, report))
        except (StageError, RuntimeError) as error:  # torch's, where an optimizer can't take this network or memory
            contender.error = str(error).strip().splitlines()[0] or type(error).__name__
        told = [epoch["tune_loss"] for epoch in read_json(own.history)["epochs"]] if own.history.exists() else []
        contender.losses = list(takewhile(math.isfinite, told))
        contender.score = smooth(contender.losses) if contender.losses else None
        if len(contender.losses) < len(told):
            contender.error = f"its loss on the tune samples was {told[-1]} after epoch {len(told)}"
        self.write()

    def _raced(self, contender: Contender, report: Report) -> Report:
        """A contender's progress as part of the whole training's; how long its own epochs last is of no use."""
        before = self._epochs_of_others(contender)

        def tell(done: float, total: float, unit: str, **figures: Any) -> None:
            report(before + done, self.total, unit, **{**figures, "seconds_left": None, "optimizer": contender.name})

        return tell

    def after(self, report: Report) -> Report:
        """The progress of the training that goes on from the race, which counts in it."""
        assert self.winner is not None
        before = self._epochs_of_others(self.winner)

        def tell(done: float, total: float, unit: str, **figures: Any) -> None:
            report(before + done, before + total, unit, **figures)

        return tell

    def _epochs_of_others(self, contender: Contender) -> int:
        return sum(len(each.losses) for each in self.contenders if each is not contender)

    def told(self) -> dict[str, Any]:
        """The choice, with what it rests on."""
        chosen = self.winner
        return {
            "name": chosen.name if chosen else None,
            "learning_rate": chosen.learning_rate if chosen else None,
            "weight_decay": chosen.weight_decay if chosen else None,
            "race": [dataclasses.asdict(each) for each in self.contenders],
        }

    @property
    def settings(self) -> TrainSettings:
        """Those of the training that goes on from the race."""
        assert self.winner is not None
        return self.winner.apply(self.recipe.settings)

    def write(self) -> None:
        write_json(self.folder.race, {"format": 1, **self.told()})


def choose(recipe: Recipe, folder: RunFolder, tuned: bool, train_to: TrainTo, report: Report) -> Race:
    """The race that was run, now or in an earlier attempt; what its winner has learnt is in the training's folder.

    Raises StageError for a name that timm does not know, and where there is nothing to compare on.
    """
    known: list[Any] = list_optimizers()
    for name in recipe.settings.optimizers:
        check_name("an optimizer of train.optimizers", name, known)
    if not tuned:
        raise StageError(
            'train.optimizer = "auto" compares optimizers on tune samples, and the snapshot '
            f"{recipe.snapshot} has none: set roles.tune above 0, or name an optimizer"
        )
    race = Race(recipe, folder)
    winner = race.winner or race.run(train_to, report)
    adopt(RunFolder(folder.contenders / winner.name), folder)
    return race


def adopt(own: RunFolder, folder: RunFolder) -> None:
    """Makes a contender's state the training's, and removes the contenders.

    Each file is renamed in one step, and one that was renamed is no longer there: after a kill it is done again.
    """
    for source, place in (
        (own.weights, folder.weights),
        (own.history, folder.history),
        (own.checkpoint, folder.checkpoint),
    ):
        if source.exists():
            source.replace(place)
    sync(folder.path)
    shutil.rmtree(folder.contenders, ignore_errors=True)


def rank(contenders: Sequence[Contender], epochs: int) -> list[Contender]:
    """Those that got so far, the best first; of equals the one that is configured first."""
    through = [each for each in contenders if each.score_after(epochs) < math.inf]
    return sorted(through, key=lambda each: each.score_after(epochs))


def smooth(losses: Sequence[float]) -> float:
    """The exponential moving average of the losses, debiased as Adam's moments are (Kingma and Ba 2015)."""
    mean = 0.0
    for loss in losses:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
    return mean / (1 - SMOOTHING ** len(losses))


def rungs(contenders: int, epochs: int) -> Iterator[tuple[int, int]]:
    """How many are in the race, and to which epoch it goes: (7, 1), (4, 2), (2, 4) for seven and many epochs."""
    size, rung = contenders, 1
    while size > 1:
        yield size, rung
        if rung == epochs:
            return
        size, rung = -(-size // 2), min(2 * rung, epochs)


def planned(contenders: int, epochs: int) -> int:
    """Epochs of race and training in all, where no contender fails."""
    done = total = 0
    for size, rung in rungs(contenders, epochs):
        total, done = total + size * (rung - done), rung
    return total + epochs - done


def _nobody(contenders: Sequence[Contender]) -> str:
    reasons = {each.error for each in contenders}
    if len(reasons) == 1:
        return f"none of train.optimizers could train: {reasons.pop()}"
    return "none of train.optimizers could train: " + "; ".join(f"{each.name}: {each.error}" for each in contenders)
