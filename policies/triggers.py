"""What may ask for a training: each looks at the evidence and says, with its numbers, whether it does."""

from __future__ import annotations

from policies.decision import Finding
from policies.evidence import Evidence
from policies.settings import AccuracySettings, NewClassSettings, StalenessSettings, VolumeSettings
from policies.statistics import clopper_pearson


def volume(evidence: Evidence, settings: VolumeSettings) -> Finding:
    """Enough new labelled samples since the last training, in all or of one class, or enough for a first one."""
    if evidence.is_first:
        return _first_training(evidence, settings)
    new = sum(evidence.new_by_class.values())
    share = settings.new_share * evidence.trained_on
    grown = _grown_classes(evidence, settings)
    fired = (new >= settings.new_samples and new >= share and new > 0) or bool(grown)
    by_class = ", ".join(f"{name} {n:,}" for name, n in sorted(evidence.new_by_class.items()) if n)
    reason = (
        f"{new:,} new labelled samples since the last training{f' ({by_class})' if by_class else ''}, "
        f"it takes {settings.new_samples:,} and {settings.new_share:.0%} of its {evidence.trained_on:,}, "
        f"or of one class {settings.class_samples:,} and {settings.class_share:.0%} of what it had of that"
        f"{f': {grown}' if grown else ''}"
    )
    if evidence.gone:
        reason += f"; {evidence.gone:,} left"
    return Finding("volume", fired, reason)


def _grown_classes(evidence: Evidence, settings: VolumeSettings) -> str:
    """The classes of the last training that alone are worth another: few samples in all may be many of a rare class."""
    grown = []
    for name, new in sorted(evidence.new_by_class.items()):
        had = evidence.counts.get(name, 0) - new
        if had > 0 and new >= settings.class_samples and new >= settings.class_share * had:
            grown.append(f"{name} {new:,} to {had:,}")
    return ", ".join(grown)


def _first_training(evidence: Evidence, settings: VolumeSettings) -> Finding:
    needed, each = settings.first_classes, settings.first_samples_per_class
    ready = sorted(name for name, n in evidence.counts.items() if n >= each)
    short = sorted(name for name, n in evidence.counts.items() if n < each)
    if len(ready) >= needed:
        counts = ", ".join(f"{name} {evidence.counts[name]:,}" for name in ready)
        return Finding("volume", True, f"{len(ready)} classes have {each} samples, it takes {needed}: {counts}")
    missing = [f"class {name} has {evidence.counts[name]} of {each}" for name in short]
    unseen = needed - len(ready) - len(short)
    if unseen > 0:
        missing.append(f"{unseen} more {'class' if unseen == 1 else 'classes'} with {each} samples each")
    have = f"{len(ready)} of {needed} classes have {each} samples"
    return Finding("volume", False, f"the first training waits: {have}; {', '.join(missing)}")


def new_class(evidence: Evidence, settings: NewClassSettings) -> Finding:
    """A class that the champion does not know has enough samples, since the last training.

    A class that the last training had enough of already, and whose model was refused, asks again only when as
    many samples of it are new: otherwise the refusal would set off the next training.
    """
    if not evidence.champion:
        return Finding("new_class", False, "no champion yet that could lack a class")
    unknown = sorted(set(evidence.counts) - set(evidence.champion_classes))
    if not unknown:
        return Finding("new_class", False, "the champion knows every class")
    said = []
    fired = False
    for name in unknown:
        count, new = evidence.counts[name], evidence.new_by_class.get(name, 0)
        tried = count - new >= settings.samples
        fired = fired or (count >= settings.samples and (not tried or new >= settings.samples))
        known = f", of which {new} since the training that had it already" if tried else ""
        said.append(f"{name} has {count} samples{known}")
    reason = f"unknown to the champion: {', '.join(said)}; it takes {settings.samples}"
    return Finding("new_class", fired, reason)


def staleness(evidence: Evidence, settings: StalenessSettings) -> Finding:
    """The last training is long ago, and there is something new to learn."""
    if not settings.days or evidence.trained_at is None:
        off = "age alone asks for no training" if not settings.days else "nothing was trained yet"
        return Finding("staleness", False, off)
    age = max(evidence.now - evidence.trained_at, 0.0) / 86_400
    new = sum(evidence.new_by_class.values())
    fired = age >= settings.days and new >= settings.samples
    takes = f"it takes {settings.days:g} days and {settings.samples}"
    return Finding("staleness", fired, f"the last training is {age:.1f} days old, {new:,} samples are new; {takes}")


def accuracy(evidence: Evidence, settings: AccuracySettings) -> Finding:
    """The champion answers new labelled samples worse than its proof promised, by more than `fall`.

    Its accuracy on judge is taken at the new samples' mix of classes, so that a drop of one hard class is no
    fall; the fall must be beyond chance: the bounds of Clopper and Pearson count, the upper one on
    the new samples and the lower one on judge.
    """
    if not evidence.champion:
        return Finding("accuracy", False, "no champion yet whose accuracy could fall")
    known = [c for c in evidence.new_answers if c.name in evidence.champion_classes and c.samples > 0]
    samples, correct = sum(c.samples for c in known), sum(c.correct for c in known)
    proven = {c.name: c for c in evidence.judge if c.name in evidence.champion_classes and c.samples > 0}
    if samples < settings.samples or not proven:
        why = f"it takes {settings.samples}" if proven else "no proof on judge to compare with"
        return Finding("accuracy", False, f"{samples} new labelled samples of classes the champion knows, {why}")
    judged, right = sum(c.samples for c in proven.values()), sum(c.correct for c in proven.values())
    by_class = {name: c.correct / c.samples for name, c in proven.items()}
    estimate = sum(c.samples * by_class.get(c.name, right / judged) for c in known) / samples
    # What few judge samples promise is uncertain too: as much is taken off as their lower bound lies below their share.
    promised = estimate - (right / judged - clopper_pearson(right, judged, settings.confidence)[0])
    upper = clopper_pearson(correct, samples, settings.confidence)[1]
    fired = upper < promised - settings.fall
    return Finding(
        "accuracy",
        fired,
        f"{correct / samples:.1%} right on {samples:,} new labelled samples (at most {upper:.1%}), "
        f"{estimate:.1%} on judge for the same classes (at least {promised:.1%}); "
        f"it takes a fall of more than {settings.fall:.1%}",
    )
