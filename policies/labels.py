"""Whether a drop's labels are good enough to train on, by what the label audit flagged of it."""

from __future__ import annotations

from dataclasses import dataclass

from policies.decision import Decision, Finding
from policies.settings import LabelSettings
from policies.statistics import clopper_pearson


@dataclass(frozen=True, slots=True)
class DropAudit:
    """How many labels of a drop were audited and flagged, and how many of all the others that are in use."""

    drop: int
    samples: int
    flagged: int
    others: int = 0
    others_flagged: int = 0


def hold(audit: DropAudit, settings: LabelSettings) -> Finding:
    """Fired: more of the drop's labels are wrong than `hold_above`, beyond chance: a person has to look first.

    A classifier flags some right labels too. What it flags of the others, all of which are in use, is therefore taken
    off: the lower bound of the drop's share less the upper bound of theirs (Clopper and Pearson) is what counts.
    """
    if audit.samples < settings.samples:
        few = f"drop {audit.drop}: {audit.samples} of its labels could be audited, it takes {settings.samples}"
        return Finding("labels", False, few)
    low, _ = clopper_pearson(audit.flagged, audit.samples, settings.confidence)
    usual = clopper_pearson(audit.others_flagged, audit.others, settings.confidence)[1] if audit.others else 0.0
    wrong = max(low - usual, 0.0)
    beyond = f" beyond the {usual:.1%} at most that are flagged of the {audit.others:,} others" if audit.others else ""
    return Finding(
        "labels",
        wrong > settings.hold_above,
        f"drop {audit.drop}: {audit.flagged:,} of {audit.samples:,} labels are flagged, at least {wrong:.1%}{beyond}; "
        f"it is held above {settings.hold_above:.1%}",
    )


def hold_drop(audit: DropAudit, settings: LabelSettings) -> Decision:
    """The decision on a drop: "hold", or "nothing"."""
    finding = hold(audit, settings)
    if not finding.fired:
        return Decision("nothing", finding.reason, (finding,))
    answer = f"`relearn flags --drop {audit.drop}` shows them, `relearn flags release {audit.drop}` lets the drop in"
    return Decision("hold", f"{finding.reason}: {answer}", (finding,))
