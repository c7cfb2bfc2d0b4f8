"""`[tune.space]`: which settings of `[train]` a tuning varies, and what is wrong with what it says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_serializer

from policies.suggest import nearest

Value = bool | int | float | str


def _check_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    return value


def _check_choices(values: Any) -> Any:
    if not isinstance(values, list) or not all(isinstance(value, Value) for value in values):
        raise ValueError("must be a list of numbers, words, true or false")
    return values


Number = Annotated[Any, BeforeValidator(_check_number)]


class Axis(BaseModel):
    """What one setting may be: numbers from `min` to `max`, evenly by their logarithm where `log`, or the `choices`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    min: Number = None
    max: Number = None
    log: bool = False
    choices: Annotated[Any, BeforeValidator(_check_choices)] = None

    @model_serializer
    def _plain(self) -> dict[str, Any]:
        if self.choices is not None and self.min is None and self.max is None:
            return {"choices": self.choices}
        more = {} if self.choices is None else {"choices": self.choices}
        return {"min": self.min, "max": self.max, **more, **({"log": True} if self.log else {})}


KEYS = frozenset(Axis.model_fields)


def is_axis(value: Mapping[str, Any]) -> bool:
    """Whether a table is one axis, a single value as settings go, rather than a section of settings."""
    return bool(value) and value.keys() <= KEYS


def flatten(space: Any) -> Any:
    """Nested tables under dotted names: `augment.crop_min = {…}` says the same with quotes and without."""
    if not isinstance(space, Mapping):
        return space
    flat: dict[str, Any] = {}
    for name, value in space.items():
        if isinstance(value, Mapping) and value and not value.keys() & KEYS:
            inner = {f"{name}.{key}": axis for key, axis in flatten(value).items()}
        else:
            inner = {name: value}
        for key, axis in inner.items():
            both = isinstance(axis, Mapping) and isinstance(flat.get(key), Mapping)
            flat[key] = {**flat[key], **axis} if both else axis
    return flat


def wrong(space: Mapping[str, Axis], train: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Key and sentence of each axis that cannot be searched; `train` is the model of `[train]`, which takes values."""
    known = setting_names(train)
    for name, axis in space.items():
        if name not in known:
            guess = nearest(name, known)
            yield (
                f"tune.space.{name}",
                f"[train] has no setting {name!r}" + (f"; did you mean {guess!r}?" if guess else ""),
            )
        elif said := next(_faults(name, axis, train), None):
            yield f"tune.space.{name}", said


def setting_names(train: type[BaseModel]) -> list[str]:
    """Every setting of `[train]`, nested ones dotted; the table of optimizers is a choice of its own, and none."""
    values = {name: getattr(train(), name) for name in train.model_fields}
    sections = {name: value for name, value in values.items() if isinstance(value, BaseModel)}
    return [
        *(name for name, value in values.items() if not isinstance(value, BaseModel | Mapping)),
        *(f"{name}.{key}" for name, section in sections.items() for key in type(section).model_fields),
    ]


def _faults(name: str, axis: Axis, train: type[BaseModel]) -> Iterator[str]:
    if axis.choices is not None:
        if axis.min is not None or axis.max is not None or axis.log:
            yield "has both choices and a range: give choices, or min and max"
        if not axis.choices:
            yield "choices is empty: name one value at least"
        for value in axis.choices:
            yield from _refusals(name, value, train)
        return
    low, high = axis.min, axis.max
    if low is None or high is None:
        yield "needs min and max, or choices"
        return
    if isinstance(_default(name, train), bool | str):
        yield "is no number: give choices"
    if low > high:
        yield f"min {low:g} is above max {high:g}"
    if axis.log and low <= 0:
        yield f"a logarithmic scale needs a min above 0 (is {low:g})"
    for value in (low, high):
        yield from _refusals(name, value, train)


def _refusals(name: str, value: Value, train: type[BaseModel]) -> Iterator[str]:
    """What `[train]` says against the value."""
    section, _, key = name.rpartition(".")
    try:
        settings = train.model_validate({section: {key: value}} if section else {key: value})
    except ValidationError as error:
        yield f"{value!r} is no value of {name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        return
    taken = _value(settings, name)
    if taken != value or isinstance(taken, bool) is not isinstance(value, bool):
        yield f"{value!r} is no value of {name}, which would take it for {taken!r}"


def _default(name: str, train: type[BaseModel]) -> Any:
    return _value(train(), name)


def _value(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings
