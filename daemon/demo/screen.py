"""What the demonstration shows while it runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from daemon import render

if TYPE_CHECKING:
    from daemon.demo.processes import Workspace
    from daemon.demo.script import Facts


class Screen:
    def __init__(self, *, quiet: bool) -> None:
        self.console = Console(stderr=quiet, quiet=quiet, highlight=False)
        self.status: Status | None = None
        self._last = ""
        self._said_at = 0.0

    def say(self, text: str) -> None:
        self.console.print(Text(text))

    def begin(self, name: str, what: str) -> None:
        self.console.print(Text.assemble(("▶ ", "cyan"), (name, "bold"), f": {what}"))
        if self.console.is_terminal:
            self.status = self.console.status("…")
            self.status.start()

    def done(self, name: str, found: Mapping[str, Any]) -> None:
        self._end_status()
        self.console.print(Text.assemble(("✓ ", "green"), (name, "bold"), f" in {found['seconds']} s"))
        for key, value in found.items():
            if key not in ("event", "what", "row", "seconds"):
                self.console.print(Text(f"  {key.replace('_', ' ')}: {plain(value)}"))
        if row := found.get("row"):
            self.console.print(Text(f"  decision  {row['decision']}\n  verdict   {row['verdict']}"))

    def fail(self, text: str) -> None:
        self._end_status()
        self.console.print(Text.assemble(("✗ ", "red"), text))

    def progress(self, working: Mapping[str, Any] | None, what: str) -> None:
        """What the daemon does: on a terminal always, otherwise a line when it changes, at most one a second."""
        line = render.working(working)
        text = line.plain if isinstance(line, Text) else str(line)
        if self.status:
            self.status.update(Text(f"until {what}: {text}"))
        elif text != self._last and time.monotonic() - self._said_at > 1.0:
            self.console.print(Text(f"  {text}"))
            self._last, self._said_at = text, time.monotonic()

    def predictions(self, pairs: Sequence[tuple[str, str]], share: float, version: int) -> None:
        some = random.Random(0).sample(list(pairs), 10)
        line = "  ".join(f"{said}{'' if said == true else f' (is {true})'}" for true, said in some)
        self.console.print(Text(f"  ten of {len(pairs)} answers of version {version}: {line}"))
        self.console.print(Text(f"  accuracy through Triton on {len(pairs)} held-back digits: {share:.1%}", "bold"))

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        table = Table("event", "decision, and what the verdict said", "promoted", show_lines=True)
        for row in rows:
            promoted = [
                f"version {row['version']}: {row['candidate']}",
                f"accuracy {row['accuracy']:.1%} on judge",
                f"p95 {row['p95_ms']:.2f} ms",
                *row["constraints"],
            ]
            table.add_row(row["event"], f"{row['decision']}\n→ {row['verdict']}", "\n".join(promoted))
        self.console.print(table)

    def summary(self, facts: Facts) -> None:
        if facts.failed:
            self.console.print(Text(f"failed: {facts.failed}", "red"))
        else:
            self.console.print(
                Text(f"every step did what it should, in {facts.seconds:.0f} s; {plain(facts.client)}", "green")
            )

    def keep(self, workspace: Workspace) -> None:
        self.say(
            f"It goes on running. Ask it:\n"
            f"  ./relearn status --workspace {workspace.folder}\n"
            f"  ./relearn models --workspace {workspace.folder}\n"
            f"  Triton: gRPC at {workspace.url}, model `digits`, input `images` uint8 [n, 32, 32, 3]\n"
            f"End it: kill {workspace.daemon.pid if workspace.daemon else ''} "
            f"{workspace.triton.pid if workspace.triton else ''}"
        )

    def _end_status(self) -> None:
        if self.status:
            self.status.stop()
            self.status = None


def plain(value: Any) -> str:
    """Facts as a person reads them."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {plain(item)}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
