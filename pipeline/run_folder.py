"""The folder of one training: what it is made from, where it stands, its best weights.

recipe.json (what is trained), last.ckpt (all state after the last epoch), best.safetensors, history.json (each epoch
with the attempt that ran it), result.json (written last: the training is over); evaluation adds evaluation.json and
tune.npz. Where the optimizer was raced for, optimizers.json says how the race stands or went, and optimizers/ holds the
run folder of each contender until it is over.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.durable import read_json, write_json
from pipeline.images import Size
from pipeline.settings import TrainSettings, parse_settings
from policies.job import StageError

if TYPE_CHECKING:
    from pipeline.model import Served, Values


@dataclass(frozen=True)
class Recipe:
    """All that a training depends on."""

    architecture: str
    weights: str
    height: int  # pixels
    width: int  # pixels
    resize: str
    classes: tuple[str, ...]
    snapshot: str
    settings: TrainSettings
    weights_sha256: str = ""  # of a local file

    @property
    def size(self) -> Size:
        return self.height, self.width

    def plain(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "classes": list(self.classes)}


class RunFolder:
    """The paths of one training's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.json"
        self.checkpoint = path / "last.ckpt"
        self.weights = path / "best.safetensors"
        self.history = path / "history.json"
        self.result = path / "result.json"
        self.evaluation = path / "evaluation.json"
        self.tune = path / "tune.npz"
        self.race = path / "optimizers.json"
        self.contenders = path / "optimizers"

    @property
    def told(self) -> tuple[Path, ...]:
        """What a finished training tells of itself, besides its weights; the model folder has copies."""
        raced = (self.race,) if self.race.exists() else ()
        return self.evaluation, self.tune, self.history, *raced

    def begin(self, recipe: Recipe) -> str | None:
        """Makes the folder ready; what it holds of another recipe is removed, and said."""
        said = None
        held = read_json(self.recipe) if self.recipe.exists() else None
        if _depends_on(held) != _depends_on(recipe.plain()) and self.path.exists() and any(self.path.iterdir()):
            said = f"{self.path} holds a training of another recipe: starting anew"
            self.clear()
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.recipe, recipe.plain())
        return said

    def read_recipe(self) -> Recipe:
        """What is trained here."""
        plain = read_json(self.recipe)
        settings = parse_settings(plain["settings"])
        return Recipe(**{**plain, "classes": tuple(plain["classes"]), "settings": settings})

    def clear(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def begin_attempt(self) -> int:
        """The number of the attempt that starts now, from 1; written down before anything is trained."""
        past: dict[str, Any] = read_json(self.history) if self.history.exists() else {"attempts": 0, "epochs": []}
        self.write_history(past["attempts"] + 1, past["epochs"])
        return int(past["attempts"]) + 1

    def write_history(self, attempts: int, epochs: list[dict[str, Any]]) -> None:
        write_json(self.history, {"format": 1, "attempts": attempts, "epochs": epochs})


def _depends_on(plain: Mapping[str, Any] | None) -> Any:
    """The recipe without the optimizers that nobody races for."""
    if plain is None or plain["settings"].get("optimizer") == "auto":
        return plain
    settings = {key: value for key, value in plain["settings"].items() if key != "optimizers"}
    return {**plain, "settings": settings}


def training_of(earlier: Mapping[str, Mapping[str, Any]]) -> tuple[RunFolder, Recipe]:
    """The finished training that a later stage of the job works on. Raises StageError where there is none."""
    if "run" not in earlier.get("train", {}):
        raise StageError("this stage needs the outputs of the stage train")
    run = RunFolder(Path(earlier["train"]["run"]))
    return run, run.read_recipe()


def load_trained(run: RunFolder, recipe: Recipe) -> Served:
    """The network with its best weights, ready to answer."""
    from pipeline.model import Served, create_network, load_weights  # torch: not for who looks at the folder alone

    net = create_network(recipe.architecture, len(recipe.classes), recipe.size)
    load_weights(net, run.weights)
    result = read_json(run.result)
    mean: Values = tuple(result["mean"])
    std: Values = tuple(result["std"])
    return Served(net, mean, std).eval()
