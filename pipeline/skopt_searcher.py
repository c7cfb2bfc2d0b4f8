"""Bayesian optimisation by scikit-optimize as a searcher of Ray Tune: which point a tuning tries next."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import skopt.space
from ray.tune.search import Searcher
from skopt import Optimizer
from skopt.sampler import Lhs

from pipeline.space import Point, Space
from pipeline.trials import FINISHED, METRIC

DRAWS = 200  # random points that are looked through for one that was not tried


def propose(space: Space, tried: Sequence[tuple[Point, float | None]], seed: int, spread: int) -> Point | None:
    """The point to try next, never one that was tried; None where none is left.

    `tried`: each point with its final score, None where it has none: it still runs, was stopped, or failed. A stopped
    trial's last score is no final one (the schedule was cut, and would have brought it down), yet leaving it out would
    send the search back to where trials are stopped. So all that have none are told as the worst of the finished:
    for running ones the constant liar, CL-max (Ginsbourger, Le Riche and Carraro 2010), for stopped ones an imputed
    value of a censored score (Hutter, Hoos and Leyton-Brown 2013), drawn anew from the finished ones each time.

    The first `spread` points are a Latin hypercube; then a Gaussian process says where expected improvement is
    largest (Jones, Schonlau and Welch 1998). The answer depends on nothing but the arguments.
    """
    known = [point for point, _ in tried]
    if not space.axes:
        return None if known else space.decode([])
    for values in _candidates(space, tried, seed, spread):
        point = space.decode(values)
        if point not in known:
            return point
    return None


def _candidates(
    space: Space, tried: Sequence[tuple[Point, float | None]], seed: int, spread: int
) -> Iterator[list[Any]]:
    """Points as scikit-optimize writes them, the best first; at the end random ones."""
    draw = np.random.RandomState((seed + len(tried)) % 2**32)
    scores = [score for _, score in tried if score is not None]
    if len(tried) < spread:
        yield Lhs().generate(space.dimensions, spread, random_state=seed % 2**32)[len(tried)]
    elif scores:
        optimizer = Optimizer(
            space.dimensions, "GP", n_initial_points=len(tried), initial_point_generator="random", acq_func="EI",
            random_state=draw,
        )  # fmt: skip
        worst = max(scores)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a fit on few points, and of a point that it would try again
            optimizer.tell([space.encode(point) for point, _ in tried], [worst if s is None else s for _, s in tried])
            yield optimizer.ask()
    yield from skopt.space.Space(space.dimensions).rvs(DRAWS, random_state=draw)


class SkoptSearcher(Searcher):
    """`propose` behind Ray's interface: it is asked for configurations and told how trials ended.

    A configuration is `{"point": …, "number": …}`; the number is what `begin` gives for the point, before the trial
    starts. `waiting`: points that are handed out first, in this order.
    """

    def __init__(
        self,
        space: Space,
        begin: Callable[[Point], int],
        *,
        waiting: Sequence[Point] = (),
        seed: int = 0,
        spread: int = 5,
    ) -> None:
        super().__init__(metric=METRIC, mode="min")
        self.space, self.begin, self.waiting = space, begin, list(waiting)
        self.seed, self.spread = seed, spread
        self.tried: dict[str, tuple[Point, float | None]] = {}  # by Ray's name of the trial

    def suggest(self, trial_id: str) -> Any:
        # Those that wait count as tried, so that none is proposed a second time.
        tried = [*self.tried.values(), *((point, None) for point in self.waiting)]
        point = self.waiting.pop(0) if self.waiting else propose(self.space, tried, self.seed, self.spread)
        if point is None:
            return Searcher.FINISHED
        self.tried[trial_id] = (point, None)
        return {"point": point, "number": self.begin(point)}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Ray calls this for stopped trials too: only one that ran to its own end has a final score."""
        score = (result or {}).get(METRIC)
        if not error and score is not None and math.isfinite(score) and (result or {}).get(FINISHED):
            self.tried[trial_id] = (self.tried[trial_id][0], float(score))

    def add_evaluated_point(
        self,
        parameters: Point,
        value: float | None,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: Sequence[float] | None = None,
    ) -> None:
        """A trial of an earlier attempt; its score counts where it was neither stopped (`pruned`) nor failed."""
        self.tried[f"earlier {len(self.tried)}"] = (parameters, None if error or pruned else value)

    def save(self, checkpoint_path: str) -> None:
        """Ray saves searchers now and then; all that this one knows is in the tuning's own folder."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a tuning goes on from its own folder, not from Ray's")
