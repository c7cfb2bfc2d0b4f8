"""The demonstration, step by step, each checked from outside: the exit code is 0 only if all did as they should."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from daemon.demo import checks
from daemon.demo.clients import Client, Record, accuracy
from daemon.demo.digits import FIRST, Digit, Waves, cut, drop, drop_broken, known
from daemon.demo.processes import ROOMY_MB, TARGET, TIGHT_MB, StepFailed, Workspace
from daemon.demo.screen import Screen
from daemon.errors import RelearnError
from deploy.triton import TritonError

EPOCHS = 12
PER_SECOND = 20.0  # requests of the client
QUIET_SECONDS = 2.0  # in which nothing may happen
LIMIT_SECONDS = 240.0  # of all steps together, after which it has failed


@dataclass(slots=True)
class Facts:
    """What the demonstration found, step by step; `relearn demo --json` prints it."""

    notes: list[str] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    accuracy: dict[str, float] = field(default_factory=dict)  # through Triton, by moment
    client: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    failed: str | None = None


def run_demo(folder: Path | None, *, keep: bool, as_json: bool, full: bool = False) -> int:
    """Runs the demonstration, or all of it; returns the exit code."""
    from daemon.demo.full import FullDemo

    workspace_folder = folder or Path(tempfile.mkdtemp(prefix="relearn-demo-"))
    screen = Screen(quiet=as_json)
    facts = Facts(
        notes=[
            "digits are few: the judge has a share of 20%, and the margin is 5 points "
            "(defaults: 10% and 2 points, in config.toml)"
        ]
    )
    screen.say(facts.notes[0])
    began = time.monotonic()
    workspace = Workspace(workspace_folder, EPOCHS)
    demo = (FullDemo if full else Demo)(workspace, screen, facts)
    try:
        demo.run()
    except (RelearnError, TritonError) as error:
        facts.failed = str(error)
        screen.fail(f"{error}\nthe daemon's log ends:\n{workspace.log('run')}")
    finally:
        facts.seconds = time.monotonic() - began
        if not keep or facts.failed:
            workspace.stop()
    screen.table(demo.table())
    print(json.dumps({**asdict(facts), "table": demo.table()}, indent=2)) if as_json else screen.summary(facts)
    if keep and not facts.failed:
        screen.keep(workspace)
    elif folder is None and not facts.failed:
        shutil.rmtree(workspace_folder, ignore_errors=True)
    else:
        screen.say(f"the workspace stays: {workspace_folder}")
    return 1 if facts.failed else 0


class Demo:
    """The script and what it remembers from step to step."""

    def __init__(self, workspace: Workspace, screen: Screen, facts: Facts) -> None:
        self.workspace = workspace
        self.screen = screen
        self.facts = facts
        self.waves: Waves = cut()
        self.dropped: set[str] = set()  # SHA-256 of the pixels of all that was dropped
        self.asked: set[str] = set()  # of all that Triton was asked about between the steps
        self.client: Client | None = None
        self.deadline = time.monotonic() + LIMIT_SECONDS

    def run(self) -> None:
        with self.step("start", "a workspace, a real tritonserver and the daemon are started"):
            self.workspace.start_triton()
            self.workspace.start_daemon()
        self.first_wave()
        self.second_wave()
        self.tighten()
        self.loosen()
        self.broken_constraints()
        self.broken_files()
        self.end_clients()

    # --- the steps ----------------------------------------------------------------------------------------------

    def first_wave(self) -> None:
        digits = self.waves.first
        with self.step("first wave", f"{len(digits)} images of {len(FIRST)} digits are dropped") as found:
            self.drop(self.waves.first)
            self.wait(lambda: self.workspace.version() == 1, "a first model is promoted")
            found.update(self.promotion(1))
        self.ask("first wave", FIRST)
        held_back = known(self.waves.held_back, FIRST)
        ws = self.workspace
        self.client = Client(ws.url, TARGET, ws.config.repository, held_back, PER_SECOND)
        self.client.start()

    def second_wave(self) -> None:
        digits = self.waves.second
        what = f"{len(digits)} images, two digits among them that are new; the daemon is killed in the midst of it"
        with self.step("second wave", what) as found:
            self.drop(self.waves.second)
            self.wait(lambda: self.epochs_done() >= 2, "two epochs are trained")
            self.workspace.kill_daemon()
            self.screen.say(f"SIGKILL to the daemon in epoch {self.epochs_done():.1f}; it is started again")
            self.workspace.start_daemon()
            self.wait(lambda: self.workspace.version() == 2, "a model with ten classes is promoted")
            found.update(self.promotion(2))
            found.update(checks.promoted_once(self.workspace, classes=10))
            found.update(checks.went_on(self.workspace))
        self.ask("second wave", [*FIRST, "8", "9"])

    def tighten(self) -> None:
        what = f"artifact_max_mb = {TIGHT_MB:g}: the champion no longer fits"
        with self.step("tighter constraints", what) as found:
            self.workspace.constrain(TIGHT_MB)
            self.wait(lambda: self.workspace.version() == 3, "a smaller model is promoted")
            found.update(self.promotion(3))
            found.update(checks.came_from(self.workspace, trained=True))
        self.ask("tighter constraints", [*FIRST, "8", "9"])

    def loosen(self) -> None:
        with self.step("looser constraints", f"artifact_max_mb = {ROOMY_MB:g} again") as found:
            self.workspace.constrain(ROOMY_MB)
            self.wait(lambda: self.workspace.version() == 4, "the stored model comes back")
            found.update(self.promotion(4))
            found.update(checks.came_from(self.workspace, trained=False))
        self.ask("looser constraints", [*FIRST, "8", "9"])

    def broken_constraints(self) -> None:
        with self.step("broken constraints", "a misspelt key is saved in the constraint file") as found:
            good = self.workspace.constraint_file.read_text(encoding="utf-8")
            bad = good.replace("latency_p95_ms", "latency_p95")
            self.workspace.constraint_file.write_text(bad, encoding="utf-8")
            self.wait(lambda: self.workspace.target().get("error"), "the error is shown")
            found.update(
                checks.stands(self.workspace, version=4, line=bad.splitlines().index("latency_p95 = 20.0") + 1)
            )
            self.workspace.constraint_file.write_text(good, encoding="utf-8")
            self.wait(lambda: not self.workspace.target().get("error"), "the file is good again")

    def broken_files(self) -> None:
        with self.step("broken files", "a truncated PNG, text named .png, an empty file are dropped") as found:
            time.sleep(QUIET_SECONDS)  # what the file before set off has been decided
            before = checks.doings(self.workspace)
            files = drop_broken(self.workspace.images, self.waves.first[0])
            self.wait(lambda: len(checks.rejections(self.workspace)) == len(files), "each is reported")
            time.sleep(QUIET_SECONDS)  # in which a decision would come, if one came
            found.update(checks.only_reported(self.workspace, files, before))

    def end_clients(self) -> None:
        assert self.client is not None
        what = "what the client saw, that asked all the time"
        with self.step("client", what) as found:
            record = self.client.stop()
            self.facts.client = describe(record)
            found.update(checks.undisturbed(record, PER_SECOND))
            found.update(checks.disjoint(record.sent | self.asked, self.dropped))

    # --- what they share ----------------------------------------------------------------------------------------

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[dict[str, Any]]:
        """One step: shown, timed, and noted with what was found."""
        self.screen.begin(name, what)
        began = time.monotonic()
        found: dict[str, Any] = {"event": name, "what": what}
        yield found
        found["seconds"] = round(time.monotonic() - began, 1)
        self.facts.steps.append(found)
        self.screen.done(name, found)

    def wait(self, until: Callable[[], Any], what: str) -> None:
        """Waits until it is so, showing what the daemon does. Raises StepFailed after a while."""
        while not until():
            daemon, triton = self.workspace.daemon, self.workspace.triton
            if (daemon and daemon.poll() is not None) or (triton and triton.poll() is not None):
                raise StepFailed(f"waiting until {what}: the daemon or Triton has ended")
            if time.monotonic() > self.deadline:
                over = f"{LIMIT_SECONDS:.0f} s are over while waiting until {what}"
                raise StepFailed(f"{over}; the target: {self.workspace.target()}")
            self.screen.progress(checks.doing(self.workspace), what)
            time.sleep(0.1)

    def drop(self, digits: Sequence[Digit], save: Callable[[Digit, Path], Path] = Digit.save) -> None:
        drop(digits, self.workspace.images, save)
        self.dropped.update(digit.sha256 for digit in digits)

    def epochs_done(self) -> float:
        doing = checks.doing(self.workspace)
        if not doing or doing["stage"] != "train" or not doing["progress"]:
            return 0.0
        return float(doing["progress"]["done"])

    def promotion(self, version: int) -> dict[str, Any]:
        """The promotion as the journal tells it, checked against the version's folder in Triton's repository."""
        return checks.promotion(self.workspace, version)

    def ask(self, moment: str, classes: Any) -> None:
        digits = known(self.waves.held_back, classes)
        self.asked.update(digit.sha256 for digit in digits)
        share, version, pairs = accuracy(self.workspace.url, TARGET, digits)
        self.facts.accuracy[moment] = share
        self.screen.predictions(pairs, share, version)
        if share < 0.8:
            raise StepFailed(f"the accuracy through Triton is {share:.1%}: not what a model of digits should reach")

    def table(self) -> list[dict[str, Any]]:
        """Event, decision with its reason, candidate, accuracy, p95, constraints, promoted version."""
        return [row for step in self.facts.steps for row in [step.get("row")] if row]


def describe(record: Record) -> dict[str, Any]:
    """The client's record as plain values."""
    return {
        "requests": record.requests,
        "per_second": round(record.requests / record.seconds, 1),
        "failed": len(record.failures),
        "wrong_labels": len(record.mismatches),
        "by_version": dict(sorted(record.versions.items())),
        "longest_ms": round(record.longest_ms, 1),
        "different_images": len(record.sent),
    }
