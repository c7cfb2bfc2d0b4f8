"""Whether labels are good enough to train on, by what the label audit flagged of them.

What is flagged is shown to people. What is left out of training, and what a drop is held for, is less: the flags that a
calibrated classifier (pipeline/flags.py) is sure of. Of a weak one nearly all flags are mistakes of its own. On
digits, on CIFAR-10 with a pretrained and with a hopeless network (95, 72 and 37% right), with clean, human and random
labels, it was sure of at most 1.2% of the right labels, where all flags were up to 76% of them; of labels wrong at
random it was sure of 53 to 86% with a network 84% right or better, of 28% at most with the others (benchmarks/LOG.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from policies.decision import Decision, Finding
from policies.settings import LabelSettings
from policies.statistics import clopper_pearson

SURE = 0.9  # of another class, at least …
UNLIKELY = 0.02  # … and of the class given, at most
GROWN = 0.2  # of what was audited in folds has come, gone or been answered since: then folds are made again


def is_sure(score: float, suggested_score: float) -> bool:
    """Whether a flag is beyond doubt: probabilities of the class given and of the one suggested."""
    return suggested_score > SURE and score < UNLIKELY


@dataclass(frozen=True, slots=True)
class Folds:
    """What was last audited in folds, and what became of it since. "Fitted": all samples but those of judge."""

    audited: int
    fitted: Mapping[str, int]  # class -> samples
    since: int  # samples that were audited by what the folds left
    since_fitted: Mapping[str, int]
    changed: int  # files that went, and answers of people


def needs_folds(folds: Folds | None, drop: int, fitted: Mapping[str, int]) -> str:
    """Why a drop of so many samples, `fitted` of them by class, cannot be audited alone; "": it can.

    By what the folds left it is looked at for the price of the drop. That holds as long as there is little that they
    have not seen: of all, and of each class, of which two samples at least have to be known.
    """
    if folds is None:
        return "nothing was audited by this network yet"
    come = folds.since + folds.changed + drop
    if come > GROWN * folds.audited:
        return f"{come:,} have come or changed since {folds.audited:,} were"
    for name, number in fitted.items():
        known, new = folds.fitted.get(name, 0), folds.since_fitted.get(name, 0) + number
        if known < 2 <= known + new:
            return f"{name} is new"
        if 2 <= known < new:
            return f"{name} has more than doubled, from {known:,} samples"
    return ""


@dataclass(frozen=True, slots=True)
class DropAudit:
    """How many labels of a drop were audited and are wrong beyond doubt, and of all the others that are in use."""

    drop: int
    samples: int
    flagged: int
    others: int = 0
    others_flagged: int = 0
    doubtful: int = 0  # of the drop's labels: flagged too, but not beyond doubt


def hold(audit: DropAudit, settings: LabelSettings) -> Finding:
    """Fired: more of the drop's labels are wrong than `hold_above`, beyond chance: a person has to look first.

    A classifier is sure of some right labels too. What it is of the others, all of which are in use, is taken off:
    the lower bound of the drop's share less the upper bound of theirs (Clopper and Pearson) is what counts. At the
    first audit there are no others to compare with, or too few, and nothing is taken off: on clean labels of the
    networks above the share is 1.1% at most, so that no drop is held because its network is weak. There a third of
    labels wrong at random is held where the network is good (18 to 27% found, at least 14% by the lower bound), and
    neither where it is weak nor where one class is always taken for the same other: all data being of that drop, it
    can't be told.
    """
    if audit.samples < settings.samples:
        few = f"drop {audit.drop}: {audit.samples} of its labels could be audited, it takes {settings.samples}"
        return Finding("labels", False, few)
    low, _ = clopper_pearson(audit.flagged, audit.samples, settings.confidence)
    compared = audit.others >= settings.samples
    usual = clopper_pearson(audit.others_flagged, audit.others, settings.confidence)[1] if compared else 0.0
    wrong = max(low - usual, 0.0)
    beyond = f" beyond the {usual:.1%} at most of the {audit.others:,} others" if compared else ""
    doubtful = f" and {audit.doubtful:,} more with doubt" if audit.doubtful else ""
    return Finding(
        "labels",
        wrong > settings.hold_above,
        f"drop {audit.drop}: {audit.flagged:,} of {audit.samples:,} labels are flagged beyond doubt{doubtful}, "
        f"at least {wrong:.1%}{beyond}; it is held above {settings.hold_above:.1%}",
    )


def hold_drop(audit: DropAudit, settings: LabelSettings) -> Decision:
    """The decision on a drop: "hold", or "nothing"."""
    finding = hold(audit, settings)
    if not finding.fired:
        return Decision("nothing", finding.reason, (finding,))
    answer = f"`relearn flags --drop {audit.drop}` shows them, `relearn flags release {audit.drop}` lets the drop in"
    return Decision("hold", f"{finding.reason}: {answer}", (finding,))
