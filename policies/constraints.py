"""What a constraint file asks, held against what is measured and proven, in sentences with numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from policies.facts import MAXIMIZED, Candidate, ClassCount, Measurement, Requirement, Shortfall
from policies.statistics import clopper_pearson

_SPEED = (  # field of the measurement, constraint, its words, unit
    ("latency_p95_ms", "latency_p95_ms", "p95 latency", "ms"),
    ("throughput", "throughput_min", "throughput", "images/s"),
    ("memory_mb", "memory_max_mb", "memory", "MB"),
    ("gpu_memory_mb", "gpu_memory_max_mb", "GPU memory", "MB"),
)


def shortfalls(requirement: Requirement, candidate: Candidate) -> tuple[Shortfall, ...]:
    """The hard constraints (size, speed, memory, verified) known not to hold; what is unmeasured is no shortfall."""
    found = [_excess("artifact_max_mb", "artifact", candidate.artifact_mb, requirement.artifact_max_mb, "MB")]
    for field, constraint, words, unit in _SPEED if candidate.measurement else ():
        value, limit = getattr(candidate.measurement, field), getattr(requirement, constraint)
        check = _lack if field in MAXIMIZED else _excess
        found.append(_tell(check(constraint, words, value, limit, unit), candidate.measurement, field))
    if candidate.unverified and not requirement.allow_unverified:
        said = f"{candidate.variant} is unverified ({candidate.unverified}), allow_unverified is false"
        found.append(Shortfall("allow_unverified", 1.0, 0.0, said))
    return tuple(shortfall for shortfall in found if shortfall)


def infeasible(requirement: Requirement, champion: Candidate) -> tuple[Shortfall, ...]:
    """The hard constraints that a champion misses by more than its measurement's own uncertainty.

    Noise at a limit does not turn champions out.
    """
    doubted = in_doubt(requirement, champion)
    return tuple(missed for missed in shortfalls(requirement, champion) if missed.constraint not in doubted)


def _tell(shortfall: Shortfall | None, measurement: Measurement | None, field: str) -> Shortfall | None:
    """The same, saying also what was timed where that was corrected, and whether the measurement can tell at all."""
    if shortfall is None or measurement is None:
        return shortfall
    said = shortfall.sentence + _correction(measurement, field)
    low, high = measurement.interval(field)
    if low <= shortfall.required <= high:
        said += f", within the uncertainty of the measurement ({_number(low)} to {_number(high)})"
    return replace(shortfall, sentence=said)


def _correction(measurement: Measurement, field: str) -> str:
    """What was timed, where it was corrected by more than a hundredth."""
    slower = measurement.slowdown(field)
    timed, found = measurement.raw.get(field), getattr(measurement, field)
    if timed is None or abs(timed - found) <= 0.01 * found:
        return ""
    by = f", by which a reference network ran {slower:.2f} times slower" if slower >= 1.01 else ""
    return f" (timed as {_number(timed)}, moments included in which it was disturbed{by})"


def open_limits(requirement: Requirement, measurement: Measurement) -> dict[str, float]:
    """The figures whose limit lies within the measurement's own uncertainty, with that limit: field -> limit."""
    found: dict[str, float] = {}
    for field, constraint, _, _ in _SPEED:
        value, limit = getattr(measurement, field), getattr(requirement, constraint)
        if value is None or limit is None:
            continue
        low, high = measurement.interval(field)
        if low < limit < high:
            found[field] = limit
    return found


def in_doubt(requirement: Requirement, candidate: Candidate) -> dict[str, str]:
    """The constraints that are met or missed by less than the measurement's own uncertainty, with a sentence each."""
    measurement = candidate.measurement
    if measurement is None:
        return {}
    doubted, found = open_limits(requirement, measurement), {}
    for field, constraint, words, unit in _SPEED:
        if field in doubted:
            low, high = measurement.interval(field)
            told = f"{words} {_number(getattr(measurement, field))} {unit}{_correction(measurement, field)}"
            between = f"is between {_number(low)} and {_number(high)}"
            found[constraint] = f"{told} {between}, {constraint} {_number(doubted[field])}"
    return found


def unmeasured(requirement: Requirement, candidate: Candidate) -> tuple[str, ...]:
    """The constraints that ask for a measurement which the candidate lacks."""
    asked = [(field, key) for field, key, _, _ in _SPEED if getattr(requirement, key) is not None]
    return tuple(key for field, key in asked if _measured(candidate.measurement, field) is None)


def _measured(measurement: Measurement | None, field: str) -> float | None:
    return None if measurement is None else getattr(measurement, field)


def _excess(constraint: str, words: str, found: float | None, limit: float | None, unit: str) -> Shortfall | None:
    if limit is None or found is None or found <= limit:
        return None
    said = f"{words} {_number(found)} {unit} is above {constraint} {_number(limit)} by {_number(found - limit)}"
    return Shortfall(constraint, limit, found, said)


def _lack(constraint: str, words: str, found: float | None, limit: float | None, unit: str) -> Shortfall | None:
    if limit is None or found is None or found >= limit:
        return None
    said = f"{words} {_number(found)} {unit} is below {constraint} {_number(limit)} by {_number(limit - found)}"
    return Shortfall(constraint, limit, found, said)


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 or value == 0 else f"{value:.3g}"


def accuracy_shortfalls(requirement: Requirement, counts: Iterable[ClassCount]) -> tuple[Shortfall, ...]:
    """`accuracy_min` and `recall_min` that a challenger's answers on judge miss, by the estimate."""
    return tuple(
        _missed(name, needed, c, c.correct / c.samples if c.samples else 0.0, "")
        for name, needed, c in _asked(requirement, counts)
        if c.samples == 0 or c.correct < needed * c.samples - 1e-9
    )


def infeasible_accuracy(
    requirement: Requirement, counts: Iterable[ClassCount], confidence: float
) -> tuple[Shortfall, ...]:
    """What a champion's answers on judge miss even by the upper bound (Clopper-Pearson, at `confidence`).

    Noise at the floor does not turn a champion out; a class without samples says nothing against it.
    """
    missed = []
    for name, needed, c in _asked(requirement, counts):
        upper = clopper_pearson(c.correct, c.samples, confidence)[1]
        if c.samples and upper < needed:
            missed.append(_missed(name, needed, c, upper, f", at most {upper:.2%} at {confidence:.0%} confidence,"))
    return tuple(missed)


def _asked(requirement: Requirement, counts: Iterable[ClassCount]) -> Iterable[tuple[str, float, ClassCount]]:
    by_class = {c.name: c for c in counts}
    if requirement.accuracy_min is not None:
        samples, correct = (
            sum(c.samples for c in by_class.values()),
            sum(c.correct for c in by_class.values()),
        )
        yield "accuracy_min", requirement.accuracy_min, ClassCount("", samples, correct)
    for name, needed in sorted(requirement.recall_min.items()):
        yield f"recall_min.{name}", needed, by_class.get(name, ClassCount(name, 0, 0))


def _missed(constraint: str, needed: float, count: ClassCount, found: float, bound: str) -> Shortfall:
    what = f"recall of class {count.name}" if count.name else "accuracy"
    if count.samples == 0:
        return Shortfall(constraint, needed, 0.0, f"{what} is unknown, judge has no sample; {constraint} {needed:g}")
    share = count.correct / count.samples
    told = f"{what} {share:.2%} ({count.correct:,} of {count.samples:,}){bound}"
    said = f"{told} is below {constraint} {needed:g} by {(needed - found) * 100:.1f} points"
    return Shortfall(constraint, needed, found, said)


def rank(candidates: Iterable[Candidate], requirement: Requirement) -> list[Candidate]:
    """Best first by what [prefer] names (accuracy: on tune), ties by smaller latency, then size, then id."""

    def key(candidate: Candidate) -> tuple[float, float, float, str]:
        value = preferred(candidate, requirement)
        order = math.inf if value is None else -value if requirement.prefer in MAXIMIZED else value
        latency = _measured(candidate.measurement, "latency_p95_ms")
        return order, math.inf if latency is None else latency, candidate.artifact_mb, candidate.artifact

    return sorted(candidates, key=key)


def preferred(candidate: Candidate, requirement: Requirement) -> float | None:
    """The candidate's figure of what [prefer] names; accuracy is that on tune. None: not known yet."""
    if requirement.prefer == "accuracy":
        return candidate.tune_accuracy
    if requirement.prefer == "artifact_mb":
        return candidate.artifact_mb
    return _measured(candidate.measurement, requirement.prefer)


def nearest(candidates: Iterable[Candidate], requirement: Requirement) -> str | None:
    """The candidate that misses by least (its worst miss, as a share of what is asked), and by what.

    None: no candidate misses anything.
    """
    broken = [(c, missed) for c in candidates if (missed := _all_missed(c, requirement))]
    if not broken:
        return None
    candidate, missed = min(broken, key=lambda pair: (max(map(_miss, pair[1])), pair[0].artifact))
    return f"{candidate.artifact} ({candidate.architecture}): {'; '.join(s.sentence for s in missed)}"


def nearest_by_constraint(candidates: Sequence[Candidate], requirement: Requirement) -> list[str]:
    """For each constraint that some candidate misses: the one that comes nearest, or meets it, with its figure.

    Of what was not measured, or not proven, nothing is said.
    """
    misses = [(c, {s.constraint: s for s in _all_missed(c, requirement)}) for c in candidates]
    said = []
    for constraint in dict.fromkeys(key for _, missed in misses for key in missed if key != "allow_unverified"):
        known = [(c, missed.get(constraint)) for c, missed in misses if _has_figure(c, constraint)]
        candidate, shortfall = min(known, key=lambda pair: _miss(pair[1]) if pair[1] else 0.0)
        who = f"{candidate.architecture} as {candidate.variant}"
        said.append(f"{constraint}: {who} meets it" if shortfall is None else f"{who}: {shortfall.sentence}")
    return said


def _has_figure(candidate: Candidate, constraint: str) -> bool:
    fields = {key: field for field, key, _, _ in _SPEED}
    if constraint in fields:
        return _measured(candidate.measurement, fields[constraint]) is not None
    return constraint == "artifact_max_mb" or candidate.proof is not None


def _all_missed(candidate: Candidate, requirement: Requirement) -> Sequence[Shortfall]:
    proven = accuracy_shortfalls(requirement, candidate.proof) if candidate.proof else ()
    return (*shortfalls(requirement, candidate), *proven)


def _miss(shortfall: Shortfall) -> float:
    return abs(shortfall.found - shortfall.required) / max(abs(shortfall.required), 1e-9)


MOST = 10_000  # images at once, and requests: more is a mistyped number


def contradictions(requirement: Requirement) -> tuple[str, ...]:
    """Values of a constraint file that can never hold, one sentence each, opening with the key."""
    wrong = []
    for section, keys in (("input", ("height", "width")), ("require", ("batch_size", "concurrency"))):
        for key in keys:
            if (value := getattr(requirement, key)) < 1:
                wrong.append(f"{section}.{key} is {value}: it must be at least 1")
            elif value > MOST:
                wrong.append(f"{section}.{key} is {value}: it must be at most {MOST:,}")
    limits = [key for _, key, _, _ in _SPEED] + ["artifact_max_mb"]
    for key in limits:
        value = getattr(requirement, key)
        if value is not None and not (math.isfinite(value) and value > 0):
            wrong.append(f"require.{key} is {value:g}: it must be a number above 0; leave the line out to ask nothing")
    if requirement.gpu_memory_max_mb is not None and math.isfinite(requirement.gpu_memory_max_mb):
        wrong.append(
            f"require.gpu_memory_max_mb is {requirement.gpu_memory_max_mb:g}: memory of a GPU is not measured yet, "
            "leave the line out"
        )
    speed = [key for _, key, _, _ in _SPEED if getattr(requirement, key) is not None]
    if requirement.allow_unverified and speed:
        wrong.append(
            "require.allow_unverified is true: what cannot be run here cannot be measured, leave out "
            f"{' and '.join(speed)}"
        )
    shares = {"accuracy_min": requirement.accuracy_min}
    shares |= {f"recall_min.{name}": value for name, value in requirement.recall_min.items()}
    for key, share in shares.items():
        if share is not None and not 0.0 <= share <= 1.0:
            wrong.append(f"require.{key} is {share:g}: it must lie from 0 to 1{_percent(share)}")
    return tuple(wrong)


def _percent(share: float) -> str:
    return f" (for {share:g}% write {share / 100:g})" if 1.0 < share <= 100.0 else ""
