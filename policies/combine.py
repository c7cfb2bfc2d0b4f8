"""From the evidence of one target to one decision: the triggers, cool-down and retries brought together."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from policies.decision import TRIGGERS, Action, Decision, Finding
from policies.drift import drift
from policies.evidence import Evidence
from policies.retry import wait_after_cycles
from policies.settings import PoliciesSettings, RuleSettings
from policies.triggers import accuracy, new_class, staleness, volume

LOOK_AGAIN_SECONDS = 900.0  # after which a spent budget may have room again
_WORDS = 240  # of a failure's last words, in characters


def decide(evidence: Evidence, settings: PoliciesSettings) -> Decision:
    """What this target calls for; while it is paused, what it would have called for."""
    decision = _call_for(evidence, settings)
    return decision if evidence.paused is None else _paused(decision, evidence.paused)


def _paused(decision: Decision, paused: str) -> Decision:
    """Nothing begins. What would have is decided anew once the pause ends: by then it may be something else."""
    if decision.action not in TRIGGERS:
        return replace(decision, reason=f"{paused}; {decision.reason}")
    return Decision("wait", f"{paused}; otherwise: {decision.action}: {decision.reason}", decision.findings)


def _call_for(evidence: Evidence, settings: PoliciesSettings) -> Decision:
    """Constraints first, then what people asked for, then what was lost, then the data.

    A person goes before cool-down and backing off, an edit made since the last failure too; all else waits
    for them, so that nothing fails or trains in a hot loop.
    """
    findings = (
        volume(evidence, settings.volume),
        new_class(evidence, settings.new_class),
        accuracy(evidence, settings.accuracy),
        *drift(evidence, settings.drift),
        staleness(evidence, settings.staleness),
    )
    if evidence.constraints_changed:
        return _rejudge(evidence, findings, settings)
    if by_people := _asked(evidence, findings):
        return by_people
    if evidence.lost or evidence.beyond_repair:
        return _replace_lost(evidence, findings, settings)
    fired = [f"{finding.policy}: {finding.reason}" for finding in _that_suffice(evidence, findings, settings.rule)]
    if not fired and (lacking := _lacking(evidence)):
        action, asked = lacking
        return _backing_off(evidence, asked, findings, settings) or Decision(action, asked, findings)
    if not fired:
        idle = "; ".join(f"{finding.policy}: {finding.reason}" for finding in findings)
        return Decision("nothing", f"{_standing(evidence)}{idle}", findings, _stale_at(evidence, settings))
    asked = "; ".join(fired)
    return (
        _backing_off(evidence, asked, findings, settings)
        or _cooling_down(evidence, asked, findings, settings)
        or _over_budget(evidence, asked, findings, settings)
        or Decision("train", asked, findings)
    )


def _asked(evidence: Evidence, findings: tuple[Finding, ...]) -> Decision | None:
    """What people asked for: first what they want judged, which takes less time than a training."""
    if evidence.asked_about is not None:
        whether = f"{evidence.asked_by} asked whether {evidence.asked_about} may replace what is served"
        return Decision("judge", f"requested: {whether}", findings)
    if evidence.requested is not None:
        return Decision("train", f"requested: {evidence.requested}", findings)
    return None


def _lacking(evidence: Evidence) -> tuple[Action, str] | None:
    """What is not known of the champion and could be, and what would tell; None: nothing."""
    if evidence.unmeasured:
        return (
            "rejudge",
            "the champion has no figures as it is served now (another machine, engine or number of threads)",
        )
    if evidence.unproven:
        return "prove", "the champion was adopted before there was anything to prove it on, and there is now"
    return None


def _that_suffice(evidence: Evidence, findings: tuple[Finding, ...], rule: RuleSettings) -> list[Finding]:
    """What asks for a training: any of those that may alone, or two of those that may only together.

    The first training of all waits for its volume alone, whatever the rule: nothing else could ask for it.
    """
    if evidence.is_first:
        return [finding for finding in findings if finding.fired and finding.policy == "volume"]
    fired = [finding for finding in findings if finding.fired and finding.policy in (*rule.alone, *rule.together)]
    alone = any(finding.policy in rule.alone for finding in fired)
    return fired if alone or len(fired) > 1 else []


def _stale_at(evidence: Evidence, settings: PoliciesSettings) -> float | None:
    """When age alone will ask for a training, with what has come by now; nothing else would wake the daemon."""
    counts = "staleness" in (*settings.rule.alone, *settings.rule.together)
    if not counts or not settings.staleness.days or evidence.trained_at is None:
        return None
    until = evidence.trained_at + settings.staleness.days * 86_400
    enough = sum(evidence.new_by_class.values()) >= settings.staleness.samples
    return until if enough and until > evidence.now else None


def _over_budget(
    evidence: Evidence, asked: str, findings: tuple[Finding, ...], settings: PoliciesSettings
) -> Decision | None:
    allowed = settings.budget.minutes_per_day
    spent = evidence.trained_seconds / 60
    if not allowed or spent < allowed:
        return None
    until = evidence.now + LOOK_AGAIN_SECONDS
    words = f"{spent:.0f} minutes of training in the last 24 hours, budget.minutes_per_day is {allowed:g}"
    return Decision("wait", f"{asked}; {words}: looked at again at {_clock(until)}", findings, until)


def _replace_lost(evidence: Evidence, findings: tuple[Finding, ...], settings: PoliciesSettings) -> Decision:
    if evidence.rebuildable:
        asked = "the artifact that is served is lost from the disk: its model gives it again"
        return _backing_off(evidence, asked, findings, settings) or Decision("rebuild", asked, findings)
    asked = "the artifact that is served is lost from the disk, and its model: another has to be trained"
    waits = _backing_off(evidence, asked, findings, settings)
    if not evidence.lost:  # a cycle tried already, and clients have nothing: again, but in no hot loop
        waits = waits or _cooling_down(evidence, asked, findings, settings)
    return waits or Decision("train", asked, findings)


def _rejudge(evidence: Evidence, findings: tuple[Finding, ...], settings: PoliciesSettings) -> Decision:
    asked = "the constraints changed: what is stored is judged by them first"
    edited, failed = evidence.constraints_changed_at, evidence.last_failure
    if edited is not None and failed is not None and edited > failed:
        return Decision("rejudge", asked, findings)
    return _backing_off(evidence, asked, findings, settings) or Decision("rejudge", asked, findings)


def _backing_off(
    evidence: Evidence, asked: str, findings: tuple[Finding, ...], settings: PoliciesSettings
) -> Decision | None:
    if not evidence.failures or evidence.last_failure is None:
        return None
    until = evidence.last_failure + wait_after_cycles(evidence.failures, settings.retry)
    if not _ahead(evidence.now, evidence.last_failure, until):
        return None
    times = "once" if evidence.failures == 1 else f"{evidence.failures} times in a row"
    words = " ".join(evidence.failure_reason.split()) or "no reason given"
    words = words if len(words) <= _WORDS else f"…{words[-_WORDS:]}"
    reason = f"{asked}; but the cycle failed {times} ({words}): tried again at {_clock(until)}"
    return Decision("wait", reason, findings, until)


def _cooling_down(
    evidence: Evidence, asked: str, findings: tuple[Finding, ...], settings: PoliciesSettings
) -> Decision | None:
    minutes, ended = settings.cooldown.minutes, evidence.last_cycle_ended
    if ended is None or not _ahead(evidence.now, ended, ended + minutes * 60):
        return None
    until = ended + minutes * 60
    ends = f"cool-down of {minutes:g} minutes until {_clock(until)}"
    reason = f"{asked}; the last cycle ended at {_clock(ended)}, {ends}"
    return Decision("wait", reason, findings, until)


def _ahead(now: float, since: float, until: float) -> bool:
    """Whether `until` is still to come. A `since` ahead of now is a clock set back: nothing waits for it."""
    return since <= now < until


def _standing(evidence: Evidence) -> str:
    return "the champion does not meet its constraints; " if evidence.feasible is False else ""


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
