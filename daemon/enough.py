"""Whether there is enough to train on, for who asks for a training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from sqlalchemy import Connection

from daemon import snapshot, targets
from daemon.config import Config
from daemon.errors import UsageError


def check(connection: Connection, config: Config, target: str, without: Collection[int] = ()) -> None:
    """Raises UsageError where a training could not even begin: two classes at least, with images to train on.

    without: samples that are about to go.
    """
    champion, policies = targets.champion(connection, target), config.settings.policies
    least = policies.new_class.samples if champion else policies.volume.first_samples_per_class
    rows = [row for row in snapshot.usable(connection)[0] if row.sample not in without]
    counts = Counter(row.name for row in rows)
    classes = snapshot.choose_classes(counts, champion.classes if champion else (), least)
    train = {row.name for row in rows if row.role == "train" and row.name in classes}
    if len(train) < 2:
        have = ", ".join(f"{name} {number:,}" for name, number in sorted(counts.items())) or "no labelled image"
        raise UsageError(f"a training takes two classes with {least} images each; there is {have}")
