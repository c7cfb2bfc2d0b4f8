"""Whether what comes looks different from what the champion was tuned on."""

from __future__ import annotations

from collections.abc import Iterable

from policies.decision import Finding
from policies.facts import DriftCheck
from policies.settings import DriftSettings

# The policy's name by what was checked. Of unlabelled images nobody can learn: what they say counts with another alone.
NAMES = {"labelled": "drift", "unlabelled": "drift_unlabelled"}


def drift(checks: Iterable[DriftCheck], settings: DriftSettings) -> tuple[Finding, ...]:
    """A finding each of the newest checks since the last training of labelled and of unlabelled images.

    Fired: a window drawn from `tune` itself would look as different less often than false alarms are allowed.
    """
    newest = {check.kind: check for check in checks}
    few = f"no {settings.samples} {{}} images have come since the last training that could be compared"
    return tuple(
        judge_drift(newest[kind], settings) if kind in newest else Finding(name, False, few.format(kind))
        for kind, name in NAMES.items()
    )


def judge_drift(check: DriftCheck, settings: DriftSettings) -> Finding:
    """What one check says."""
    allowed = settings.false_alarms_per_100_checks
    share = f"{check.chance * 100:.2g} of 100 clean windows look as different, {allowed:g} of 100 is an alarm"
    told = f"{check.samples} {check.kind} images are told apart from {check.reference} of tune with an area of "
    return Finding(NAMES[check.kind], check.chance * 100 <= allowed, f"{told}{check.statistic:.2f}: {share}")
