"""Whether there is enough to train on, for who asks for a training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from sqlalchemy import Connection

from daemon import snapshot, standings, targets
from daemon.config import Config
from daemon.errors import UsageError
from daemon.journal import chunks


def check(connection: Connection, config: Config, target: str, without: Collection[int] = ()) -> None:
    """Raises UsageError where a training could not even begin: two classes at least, with images to train on.

    without: samples that are about to go.
    """
    champion, policies = targets.champion(connection, target), config.settings.policies
    least = policies.new_class.samples if champion else policies.volume.first_samples_per_class
    counts = Counter({(name, role): n for (state, name, role), n in standings.count(connection).items()
                      if state == standings.USABLE})  # fmt: skip
    for some in chunks(without):
        counts -= standings.count_usable(connection, some)
    usable: Counter[str] = Counter()
    for (name, _), number in counts.items():
        usable[str(name)] += number
    classes = snapshot.choose_classes(usable, champion.classes if champion else (), least)
    train = {name for name in classes if counts[name, "train"]}
    if len(train) < 2:
        have = ", ".join(f"{name} {number:,}" for name, number in sorted(usable.items())) or "no labelled image"
        raise UsageError(f"a training takes two classes with {least} images each; there is {have}")
