"""What a tuning searches over: `[tune.space]` of config.toml as dimensions of scikit-optimize, and points in it.

A point is a plain mapping from settings of `[train]` (nested ones dotted: "augment.crop_min") to plain Python values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.settings import TrainSettings, check_name, parse_settings
from policies.job import StageError

if TYPE_CHECKING:
    from skopt.space import Dimension

Point = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Axis:
    """One setting, and what it may be: numbers from `low` to `high`, or one of the `choices`."""

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def only(self) -> Any:
        """The one value that there is; None: there are several."""
        if self.choices:
            return self.choices[0] if len(self.choices) == 1 else None
        return self._number(self.low) if self.low == self.high else None

    @property
    def dimension(self) -> Dimension:
        """Choices are told apart by their place, so that any value can be one and comes back as it was written."""
        from skopt.space import Categorical, Integer, Real

        if self.choices:
            return Categorical(list(range(len(self.choices))), name=self.name)
        kind = Integer if self.integer else Real
        return kind(self.low, self.high, prior="log-uniform" if self.log else "uniform", name=self.name)

    def holds(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    def encode(self, value: Any) -> Any:
        return self.choices.index(value) if self.choices else value

    def decode(self, value: Any) -> Any:
        """A plain value of what scikit-optimize hands out: a numpy scalar, which rounding may take past a bound."""
        if self.choices:
            return self.choices[int(value)]
        return self._number(min(max(value, self.low), self.high))

    def _number(self, value: Any) -> int | float:
        return round(value) if self.integer else float(value)


@dataclasses.dataclass(frozen=True)
class Space:
    """The axes along which something can be chosen, and the settings of which there is one value alone."""

    axes: tuple[Axis, ...]
    fixed: Point

    @property
    def dimensions(self) -> list[Dimension]:
        return [axis.dimension for axis in self.axes]

    def encode(self, point: Mapping[str, Any]) -> list[Any]:
        return [axis.encode(point[axis.name]) for axis in self.axes]

    def decode(self, values: Sequence[Any]) -> Point:
        chosen = {axis.name: axis.decode(value) for axis, value in zip(self.axes, values, strict=True)}
        return {**chosen, **self.fixed}

    def find(self, settings: TrainSettings) -> Point | None:
        """The point at which these settings lie; None: they lie outside."""
        point = {name: value_of(settings, name) for name in (*(axis.name for axis in self.axes), *self.fixed)}
        inside = all(axis.holds(point[axis.name]) for axis in self.axes)
        return point if inside and all(point[name] == value for name, value in self.fixed.items()) else None


def parse_space(plain: Mapping[str, Mapping[str, Any]], settings: TrainSettings) -> Space:
    """The space that a job carries as JSON: `{name: {"min", "max", "log"} or {"choices"}}`.

    Raises StageError for a setting that there is not, or a value that it would refuse.
    """
    axes = [_axis(name, order, settings) for name, order in plain.items()]
    fixed = {axis.name: axis.only for axis in axes if axis.only is not None}
    return Space(tuple(axis for axis in axes if axis.only is None), fixed)


def apply(settings: TrainSettings, point: Mapping[str, Any]) -> TrainSettings:
    """The settings, moved to a point. Raises StageError where one would be refused."""
    plain = dataclasses.asdict(settings)
    for name, value in point.items():
        section, _, key = name.rpartition(".")
        (plain[section] if section else plain)[key] = value
    return parse_settings(plain)


def value_of(settings: TrainSettings, name: str) -> Any:
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings


def setting_names() -> list[str]:
    """Every setting of `[train]`, nested ones dotted."""
    plain = dataclasses.asdict(TrainSettings())
    nested = {name: value for name, value in plain.items() if isinstance(value, dict)}
    return [
        *(name for name in plain if name not in nested),
        *(f"{name}.{key}" for name, table in nested.items() for key in table),
    ]


def _axis(name: str, order: Mapping[str, Any], settings: TrainSettings) -> Axis:
    check_name("tune.space: the setting", name, setting_names())
    if order.get("choices"):
        axis = Axis(name, choices=tuple(order["choices"]))
        ends: Sequence[Any] = axis.choices
    else:
        low, high = order["min"], order["max"]
        if low > high:
            raise StageError(f"tune.space.{name}: min {low} is above max {high}")
        axis = Axis(name, low, high, bool(order.get("log")), type(value_of(settings, name)) is int)
        ends = (axis.decode(low), axis.decode(high))
    for value in ends:
        apply(settings, {name: value})
    return axis
