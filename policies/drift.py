"""Whether what comes looks different from what the champion was tuned on."""

from __future__ import annotations

from policies.decision import Finding
from policies.evidence import Evidence
from policies.facts import DriftCheck
from policies.settings import DriftSettings

# The policy's name by what was checked. Of unlabelled images nobody can learn: what they say counts with another alone.
NAMES = {"labelled": "drift", "unlabelled": "drift_unlabelled"}


def drift(evidence: Evidence, settings: DriftSettings) -> tuple[Finding, ...]:
    """A finding each of the newest checks since the last training of labelled and of unlabelled images.

    Fired: a window drawn from `tune` itself would look as different less often than false alarms are allowed. The
    model of a training that such an alarm asked for may have been refused: the champion then still finds the same
    look new. The alarm asks again only when as many samples are new as that training had, or a check in between was
    quiet: otherwise each refusal would set off the next training.
    """
    newest = {check.kind: check for check in evidence.drift}
    few = f"no {settings.samples} {{}} images have come since the last training that could be compared"
    return tuple(
        _unless_tried(newest[kind], evidence, settings) if kind in newest else Finding(name, False, few.format(kind))
        for kind, name in NAMES.items()
    )


def _unless_tried(check: DriftCheck, evidence: Evidence, settings: DriftSettings) -> Finding:
    finding = judge_drift(check, settings)
    before = {known.kind: known for known in evidence.refused_drift}.get(check.kind)
    quiet = any(not judge_drift(known, settings).fired for known in evidence.drift if known.kind == check.kind)
    new = sum(evidence.new_by_class.values())
    if before is None or not judge_drift(before, settings).fired or not finding.fired or quiet:
        return finding
    tried = f"it was an alarm before the last training too, whose model was refused: {new:,} labelled samples are new"
    asks = f"it asks again from {evidence.refused_new:,} on, or after a quiet check"
    return Finding(finding.policy, new >= max(evidence.refused_new, 1), f"{finding.reason}; {tried}, {asks}")


def judge_drift(check: DriftCheck, settings: DriftSettings) -> Finding:
    """What one check says."""
    allowed = settings.false_alarms_per_100_checks
    share = f"{check.chance * 100:.2g} of 100 clean windows look as different, {allowed:g} of 100 is an alarm"
    told = f"{check.samples} {check.kind} images are told apart from {check.reference} of tune with an area of "
    return Finding(NAMES[check.kind], check.chance * 100 <= allowed, f"{told}{check.statistic:.2f}: {share}")
