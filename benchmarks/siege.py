"""A workspace whose daemon and Triton are killed: what is dropped and edited in it, and where a kill found it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import soundness
from benchmarks.asking import Answer, Crowd, Known, ask_graph
from benchmarks.soundness import Dropped
from daemon import schema
from daemon.demo.digits import Digit, cut, drop, known
from daemon.demo.processes import TARGET, Workspace
from daemon.stock import artifact_folder
from deploy.artifact import read_manifest
from deploy.server import SERVER
from deploy.switch import STEPS, Switch, find_fault
from deploy.triton import Triton, TritonError

EPOCHS = 12
FIRST_CLASSES = 3
OF_NEW_CLASS, OF_KNOWN_CLASS = 90, 6  # images, in each drop
RESTART_SECONDS = 0.1  # systemd's own RestartSec
ORPHAN_SECONDS = 5.0  # in which a killed daemon's children must be gone
CLIENTS, PER_SECOND = 2, 10.0
IMAGES = 40  # that the clients ask about

# With so few images no verdict could tell five points, and every drop is to be trained on: what is tried here is the
# way, not the statistics.
MORE_SETTINGS = f"""
[policies.volume]
new_samples = 20
new_share = 0.0
first_classes = {FIRST_CLASSES}

[policies.new_class]
samples = 20
"""


class Siege(Workspace):
    """One workspace under attack. Every drop brings a class that is new, so that there is something to promote."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, EPOCHS)
        config = folder / "config.toml"
        text = config.read_text(encoding="utf-8").replace("margin = 0.05", "margin = 0.25")
        config.write_text(text + MORE_SETTINGS, encoding="utf-8")
        self.dropped: list[Dropped] = []
        self.crowd: Crowd | None = None
        waves = cut()
        self.asked = np.stack([digit.as_sent() for digit in waves.held_back[:: len(waves.held_back) // IMAGES]])
        self._drops = cut_drops((*waves.first, *waves.second))
        self._known: dict[str, Known] = {}

    # --- what a person does ---------------------------------------------------------------------------------------

    def drop_more(self) -> None:
        """The next drop, at once."""
        digits = next(self._drops)
        drop(digits, self.images)
        files = [(self.images / digit.name / f"{digit.number}.png", digit.name) for digit in digits]
        self.dropped += [soundness.note(file, name) for file, name in files]

    # --- kills ------------------------------------------------------------------------------------------------------

    def kill_daemon_and_start_it(self) -> tuple[str, int]:
        """SIGKILL; where it was by the journal; how many of its children outlived it. Started as systemd would."""
        assert self.daemon is not None
        family = psutil.Process(self.daemon.pid).children(recursive=True)
        self.kill_daemon()
        where = self.where()
        _, alive = psutil.wait_procs(family, ORPHAN_SECONDS)
        time.sleep(RESTART_SECONDS)
        self.start_daemon()
        return where, len(alive)

    def kill_triton(self) -> str:
        """SIGKILL to tritonserver itself, which `relearn triton` starts again; where the daemon was."""
        assert self.triton is not None
        for process in psutil.Process(self.triton.pid).children(recursive=True):
            if process.name() == SERVER:
                process.send_signal(signal.SIGKILL)
        return self.where()

    def where(self) -> str:
        """What was under way, by the journal: the step of the switch, the stage, or what comes before."""
        query = "select state, step from promotions where state in ('switching', 'undoing') or state = 'serving'"
        for state, step in self.ask_journal(query + " and step <> 'retire' order by id desc"):
            done = STEPS.index(step) + 1 if step else 0
            return "undo" if state == "undoing" else f"switch: {STEPS[min(done, len(STEPS) - 1)]}"
        for what, query in {
            "stage: {}": "select name from stages where state = 'running'",
            "cycle: between stages": "select id from cycles where state = 'running'",
            "drop: {}": "select state from drops where state in ('reading', 'matching')",
        }.items():
            for (name,) in self.ask_journal(query):
                return what.format(name)
        return "at rest" if self.has_taken_in() else "settling"

    # --- what has come of it ----------------------------------------------------------------------------------------

    def ask_journal(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """No rows as long as the journal is still being made."""
        file = self.config.state / "journal.db"
        made = "select 1 from sqlite_master where name = ?"
        if not file.exists() or not soundness.ask(self.config, made, schema.sweeps.name):
            return []
        return soundness.ask(self.config, query, *values)

    def number_of_cycles(self) -> int:
        return sum(n for (n,) in self.ask_journal("select count(*) from cycles"))

    def is_switching(self) -> bool:
        return bool(self.ask_journal("select id from promotions where state = 'switching'"))

    def has_decided(self, since: float) -> bool:
        """Whether there is a decision since this moment, as each start of the daemon makes one."""
        return bool(self.ask_journal("select id from decisions where at > ? limit 1", since))

    def has_taken_in(self) -> bool:
        """Whether all that was dropped and edited is in the journal."""
        files = self.ask_journal("select count(*) from occurrences where gone is null")
        texts = self.ask_journal("select text from constraint_files where target = ? order by id desc limit 1", TARGET)
        return files == [(len(self.dropped),)] and texts == [(self.constraint_file.read_text(encoding="utf-8"),)]

    def is_at_rest(self) -> bool:
        """Nothing runs, nothing is under way, and the last switch has been tidied up after."""
        quiet = self.ask_journal(
            "select (select count(*) from cycles where state = 'running')"
            " + (select count(*) from promotions where state in ('switching', 'undoing'))"
            " + (select count(*) from promotions where state = 'serving' and step <> 'retire')"
            " + (select count(*) from drops where state in ('reading', 'matching'))"
        )
        return quiet == [(0,)] and self.has_taken_in()

    def outcome(self, after: int) -> str | None:
        """Of the last cycle, where there was one more than so many."""
        rows = self.ask_journal("select outcome from cycles where state <> 'running' order by id")
        return str(rows[-1][0]) if len(rows) > after else None

    def find_service_fault(self) -> str | None:
        """What is wrong with how the champion is served: its golden batch, its labels, its version; None: nothing."""
        query = "select version, artifact_id from promotions where target = ? and state = 'serving'"
        for version, artifact in self.ask_journal(query, TARGET):
            folder = artifact_folder(self.config.state, artifact)
            try:
                with Triton(self.url) as triton:
                    return find_fault(Switch(self.config.repository, TARGET, folder, version), triton)
            except TritonError as error:
                return str(error)
        return None

    # --- what the clients saw ---------------------------------------------------------------------------------------

    def let_ask(self) -> None:
        """Clients ask from the first version on."""
        if self.crowd is None and self.version():
            self.crowd = Crowd(self.url, TARGET, self.asked, CLIENTS, PER_SECOND)

    def take_answers(self) -> list[Answer]:
        return self.crowd.take() if self.crowd else []

    def find_wrong(self, answers: Sequence[Answer]) -> list[str]:
        """Answers of a version that did not serve then, or that are not what its artifact and its manifest say."""
        rows = self.ask_journal("select version, artifact_id, started, served from promotions where target = ?", TARGET)
        promoted = {version: (artifact, started, served) for version, artifact, started, served in rows}
        return [fault for answer in answers if answer.error is None and (fault := self._fault(answer, promoted))]

    def _fault(self, answer: Answer, promoted: dict[int, tuple[str, float, float | None]]) -> str | None:
        if answer.version not in promoted:
            return f"version {answer.version} answered, which the journal does not know"
        artifact, started, _ = promoted[answer.version]
        later = [served for number, (_, _, served) in promoted.items() if number > answer.version and served]
        if answer.ended < started or any(served < answer.sent for served in later):
            return f"version {answer.version} answered when another served: {answer}"
        right = self.knowledge(artifact)
        if not right.has_values(answer):
            return f"version {answer.version} answered otherwise than its artifact: {answer}"
        return None if right.has_labels(answer) else f"version {answer.version} has other labels: {answer}"

    def knowledge(self, artifact: str) -> Known:
        """What an artifact answers, asked of its own graph."""
        if artifact not in self._known:
            folder = artifact_folder(self.config.state, artifact)
            self._known[artifact] = ask_graph(folder / "model.onnx", self.asked, read_manifest(folder)["classes"])
        return self._known[artifact]

    def stop(self) -> None:
        if self.crowd:
            self.crowd.kill()
        super().stop()


def cut_drops(digits: Sequence[Digit]) -> Iterator[list[Digit]]:
    """Three digits, then with each drop one that is new and some more of the others. None of them twice."""
    names = [str(number) for number in range(10)]
    pools = {name: iter(known(digits, [name])) for name in names}

    def some(name: str, number: int) -> list[Digit]:
        return [digit for _, digit in zip(range(number), pools[name], strict=False)]

    yield [digit for name in names[:FIRST_CLASSES] for digit in some(name, OF_NEW_CLASS)]
    for new in range(FIRST_CLASSES, len(names)):
        known_ones = [digit for name in names[:new] for digit in some(name, OF_KNOWN_CLASS)]
        yield some(names[new], OF_NEW_CLASS) + known_ones
