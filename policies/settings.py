"""The settings that policies read, with their defaults. config.toml fills them; see there for the units."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FORBID = {"extra": "forbid"}  # read by pydantic, which builds these from config.toml: unknown keys are refused


@dataclass(frozen=True, slots=True)
class VolumeSettings:
    """Enough new labelled samples since the last training."""

    __pydantic_config__ = FORBID
    new_samples: int = 100
    new_share: float = 0.05  # and at least this share of the samples that the last training had
    class_samples: int = 30  # or so many of one class that the last training had …
    class_share: float = 0.5  # … and at least this share of what it had of it
    first_classes: int = 2  # the first training of all waits for so many classes …
    first_samples_per_class: int = 20  # … with so many samples each


@dataclass(frozen=True, slots=True)
class NewClassSettings:
    """A class that the champion does not know."""

    __pydantic_config__ = FORBID
    samples: int = 30  # a judge share of a tenth has three of them: fewer cannot be proven


@dataclass(frozen=True, slots=True)
class AccuracySettings:
    """The champion's accuracy on labelled new data has fallen."""

    __pydantic_config__ = FORBID
    fall: float = 0.05  # below its accuracy on judge, by the upper confidence bound
    samples: int = 50  # fewer than this say nothing
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """Labels that the audit takes for wrong."""

    __pydantic_config__ = FORBID
    hold_above: float = 0.1  # share of a drop's labels, by the lower bound, above which a person has to look first
    samples: int = 20  # audited labels of a drop; fewer say nothing of it
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """Images that look different."""

    __pydantic_config__ = FORBID
    false_alarms_per_100_checks: float = 1.0
    samples: int = 10  # images that have to have come; fewer wait for more


@dataclass(frozen=True, slots=True)
class StalenessSettings:
    """A champion that is old, and new data."""

    __pydantic_config__ = FORBID
    days: float = 0.0  # since the last training; 0: age alone asks for none
    samples: int = 1  # new labelled ones


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    __pydantic_config__ = FORBID
    minutes_per_day: float = 0.0  # of training that data may ask for, in any 24 hours; 0: no limit


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """When settings are searched again; a first model's always are, where there is any tuning."""

    __pydantic_config__ = FORBID
    days: float = 30.0  # since the last tuning of an architecture for a target; 0: time alone asks for none
    missed_days: float = 1.0  # the same where the champion does not meet its constraints; 0: that asks for none


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """Which policies ask for a training alone, and which only together with another."""

    __pydantic_config__ = FORBID
    alone: tuple[str, ...] = ("volume", "new_class", "accuracy", "drift", "staleness")
    together: tuple[str, ...] = ("drift_unlabelled",)


@dataclass(frozen=True, slots=True)
class CooldownSettings:
    __pydantic_config__ = FORBID
    minutes: float = 10.0  # between the end of one cycle and the start of the next that data asks for


@dataclass(frozen=True, slots=True)
class RetrySettings:
    __pydantic_config__ = FORBID
    attempts: int = 3  # of one stage, before the cycle fails
    first_seconds: float = 5.0  # wait after the first failure; doubled after each further one
    max_seconds: float = 3600.0


@dataclass(frozen=True, slots=True)
class PoliciesSettings:
    __pydantic_config__ = FORBID
    volume: VolumeSettings = field(default_factory=VolumeSettings)
    new_class: NewClassSettings = field(default_factory=NewClassSettings)
    accuracy: AccuracySettings = field(default_factory=AccuracySettings)
    drift: DriftSettings = field(default_factory=DriftSettings)
    staleness: StalenessSettings = field(default_factory=StalenessSettings)
    rule: RuleSettings = field(default_factory=RuleSettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    tuning: TuningSettings = field(default_factory=TuningSettings)
    labels: LabelSettings = field(default_factory=LabelSettings)
    cooldown: CooldownSettings = field(default_factory=CooldownSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)


@dataclass(frozen=True, slots=True)
class PromotionSettings:
    """When a model may replace another."""

    __pydantic_config__ = FORBID
    margin: float = 0.02  # by how much a challenger may be worse and still be called no worse
    class_margin: float = 0.05  # the same for one class
    error_budget: float = 0.05  # chance of a wrong promotion, over all askings of a period
    period_days: float = 90.0
    new_class_recall_min: float = 0.5  # absolute floor for a class that the champion does not know
    confidence: float = 0.95  # of the bound that calls a champion infeasible
    approval: Literal["policy", "ask"] = "policy"  # "ask": what the policy would promote waits for a person
