"""SIGKILL at sixty random moments over whole cycles, while clients ask: nothing lost, nothing done twice.

A round is something that a person does, the cycle that it sets off, and one kill on the way. The rounds take turns: a
drop with a class that is new (read, trained, built, proven, measured, promoted), constraints that the champion breaks
(another network is trained and promoted), the old constraints (the stored model is proven and promoted). The first
three are not killed: they tell how long each takes. The moment of a kill is drawn evenly over a fifth more than that,
as rounds grow with their images; every fourth waits for the switch instead, and falls into it. Every seventh hits
tritonserver, all others the daemon with its children. What was killed is started again as a service manager would, and
nobody helps further.

    injected            kills
    lost                images whose file was touched, or that journal and store have not as they were dropped
    doubled             stages, trainings by one recipe, epochs, verdicts, promotions, decisions on a drop, done twice
    wrong_answers       of clients: of a version that did not serve then, or not what its artifact and manifest say;
                        and golden batches that the served model answered otherwise after a recovery
    unrecovered         kills after which the cycle did not come to its end within 180 s, or ended as failed
    unsound             what SQLite says against the journal, and what was left lying in Triton's repository
    orphans             children that outlived their daemon by five seconds
    requests, failed    of the clients; failed_without_triton: those while tritonserver was killed, apart
    triton_seconds      from the kill of a tritonserver to the first answer after it; median

The rows tell which stage, or which step of the switch, was under way by the journal. KILLS=6 makes so many in place of
60, SEED=1 draws others. A workspace in which something was found is kept, and named. Goal: all faults and `failed` 0.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import soundness
from benchmarks.asking import Answer
from benchmarks.results import publish
from benchmarks.siege import Siege
from daemon.demo.processes import ROOMY_MB, TARGET, TIGHT_MB

KILLS = int(os.environ.get("KILLS", "60"))
SEED = int(os.environ.get("SEED", "0"))
TURNS = ("drop", "tighter", "looser")
ROUNDS = 24  # in one workspace: eight drops bring all ten digits
AIMED_EVERY, TRITON_EVERY = 4, 7  # kills; without a common divisor with the turns, so that each of them is hit
LONGER = 1.2  # than the round without a kill: what its moment is drawn from
SWITCH_SECONDS = 1.5  # that a switch takes
RECOVERY_SECONDS = 180.0
REST_SECONDS = 2.0  # in which nothing more begins
WAYS = ("lost", "doubled", "wrong_answers", "unrecovered", "unsound", "orphans")


@dataclass
class Kill:
    """One kill and what came of it."""

    victim: str
    aimed: bool
    at: float = 0.0
    seconds: float = 0.0  # since the round began
    where: str = ""
    orphans: int = 0  # children of the daemon that outlived it


@dataclass
class Found:
    """The faults of a workspace, by the figure that they count in: each once, however often it is seen."""

    faults: dict[str, dict[str, None]] = field(default_factory=lambda: {way: {} for way in WAYS})

    def add(self, way: str, faults: Sequence[str]) -> int:
        """How many of them are new."""
        before = len(self.faults[way])
        self.faults[way].update(dict.fromkeys(faults))
        for fault in list(self.faults[way])[before:]:
            print(f"{way}: {fault}")
        return len(self.faults[way]) - before

    def __bool__(self) -> bool:
        return any(self.faults.values())


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started ends too
    print(f"{KILLS} kills, seed {SEED}")
    random, rows, number = np.random.default_rng(SEED), list[dict[str, Any]](), 0
    lengths: dict[str, float] = {}  # of a round without a kill, by its turn
    while (injected := sum(bool(row["victim"]) for row in rows)) < KILLS:
        folder = Path(tempfile.mkdtemp(prefix="relearn-kill-"))
        siege, found = Siege(folder / f"workspace{number}"), Found()
        number += 1
        print(f"workspace {number}: {siege.folder}")
        try:
            siege.start_triton()
            siege.start_daemon()
            for row in attack(siege, found, random, lengths, injected):
                rows.append({"workspace": number, **row})
                print({key: value for key, value in rows[-1].items() if value}, flush=True)
                if row["unrecovered"] and not row["victim"]:
                    raise RuntimeError("a cycle that nobody killed did not come to its end as it should")
        finally:
            siege.stop()
        if found:
            print(f"workspace {number} stays, for what was found: {siege.folder}")
        else:
            shutil.rmtree(folder)
    publish("kill", rows, total(rows, lengths))


def attack(
    siege: Siege, found: Found, random: np.random.Generator, lengths: dict[str, float], injected: int
) -> Iterator[dict[str, Any]]:
    """The rounds of one workspace. It ends early where a cycle does not come to its end."""
    for number in range(ROUNDS):
        turn = TURNS[number % len(TURNS)]
        kill = plan(injected) if turn in lengths else None
        row = play(siege, found, turn, kill, random.uniform(), lengths)
        yield row
        injected += kill is not None
        if row["unrecovered"] or injected >= KILLS:
            return


def plan(number: int) -> Kill:
    """The victim of this kill, and whether it is to fall into a switch."""
    victim = "triton" if number % TRITON_EVERY == 3 else "daemon"
    return Kill(victim, aimed=number % AIMED_EVERY == 1)


def play(
    siege: Siege, found: Found, turn: str, kill: Kill | None, share: float, lengths: dict[str, float]
) -> dict[str, Any]:
    """One round: its row. share: of the time that is drawn from, 0 to 1."""
    cycles, began = siege.number_of_cycles(), time.time()
    act(siege, turn)
    if kill:
        strike(siege, kill, share, began, cycles, lengths[turn])
    trouble = await_rest(siege, cycles, kill)
    seconds = time.time() - REST_SECONDS - began
    outcome = siege.outcome(cycles)
    if trouble is None and outcome not in ("promoted", "kept"):
        trouble = f"the cycle ended as {outcome}"
    if kill is None:
        lengths[turn] = seconds
    answers = siege.take_answers()
    siege.let_ask()
    return {
        "turn": turn,
        **describe(kill),
        "seconds": seconds,
        "outcome": outcome,
        "version": siege.version(),
        **summarize(answers, kill),
        "lost": found.add("lost", soundness.find_lost(siege.config, siege.dropped)),
        "doubled": found.add("doubled", soundness.find_doubled(siege.config)),
        "wrong_answers": found.add("wrong_answers", find_wrong(siege, answers)),
        "unrecovered": found.add("unrecovered", [f"cycle {cycles + 1}: {trouble}"] if trouble else []),
        "unsound": found.add("unsound", find_unsound(siege)),
        "orphans": found.add("orphans", [f"{kill.orphans}, {kill.where}"] if kill and kill.orphans else []),
    }


def describe(kill: Kill | None) -> dict[str, Any]:
    if kill is None:
        return dict.fromkeys(("victim", "aimed", "kill_at", "where"))
    return {"victim": kill.victim, "aimed": kill.aimed, "kill_at": kill.seconds, "where": kill.where}


def act(siege: Siege, turn: str) -> None:
    """What a person does."""
    if turn == "drop":
        siege.drop_more()
    else:
        siege.constrain(TIGHT_MB if turn == "tighter" else ROOMY_MB)


def strike(siege: Siege, kill: Kill, share: float, began: float, cycles: int, length: float) -> None:
    """Waits for the moment, and kills."""
    if kill.aimed:
        deadline = began + RECOVERY_SECONDS
        while not siege.is_switching() and siege.outcome(cycles) is None and time.time() < deadline:
            time.sleep(0.003)
        time.sleep(share * SWITCH_SECONDS)
    else:
        time.sleep(max(0.0, began + share * LONGER * length - time.time()))
    kill.at = time.time()
    kill.seconds = kill.at - began
    if kill.victim == "triton":
        kill.where = siege.kill_triton()
    else:
        kill.where, kill.orphans = siege.kill_daemon_and_start_it()


def await_rest(siege: Siege, cycles: int, kill: Kill | None) -> str | None:
    """Until the cycle has come to its end, and nothing more begins.

    A daemon that was killed has decided again by then, a Triton that was killed answers. What is in the way of it;
    None: nothing.
    """
    started = kill.at if kill and kill.victim == "daemon" else 0.0
    deadline = time.time() + RECOVERY_SECONDS
    since: float | None = None
    while since is None or time.time() < since + REST_SECONDS:
        ended = next((name for name in ("daemon", "triton") if getattr(siege, name).poll() is not None), None)
        if ended:
            return f"{ended} ended by itself: {siege.log('run' if ended == 'daemon' else ended)[-500:]}"
        if time.time() > deadline:
            return f"not at rest after {RECOVERY_SECONDS:.0f} s, but {siege.where()}: {siege.log('run')[-500:]}"
        rests = siege.outcome(cycles) is not None and siege.has_decided(started) and siege.is_at_rest()
        if rests and since is None and kill and kill.victim == "triton":
            rests = siege.find_service_fault() is None
        since = (since or time.time()) if rests else None
        time.sleep(0.05)
    return None


def find_wrong(siege: Siege, answers: Sequence[Answer]) -> list[str]:
    """What clients were answered wrongly, and what is wrong with the service now."""
    fault = siege.find_service_fault()
    now = [f"after {siege.number_of_cycles()} cycles: {fault}"] if fault else []
    return siege.find_wrong(answers) + now


def find_unsound(siege: Siege) -> list[str]:
    return soundness.find_unsound(siege.config) + soundness.find_left_lying(siege.config, TARGET)


def summarize(answers: Sequence[Answer], kill: Kill | None) -> dict[str, Any]:
    """Requests, those that failed, and those of them that a killed tritonserver explains: until it answers again.

    A request that was sent while the signal was on its way may still be answered.
    """
    failed = [answer for answer in answers if answer.error is not None]
    away: float | None = None
    meanwhile = 0
    if answers and kill and kill.victim == "triton":
        gone = min((a.ended for a in failed if a.ended >= kill.at), default=kill.at)
        back = min((a.ended for a in answers if a.error is None and a.sent > gone), default=float("inf"))
        meanwhile = sum(kill.at <= answer.ended and answer.sent <= back for answer in failed)
        away = back - kill.at
    numbers = {"requests": len(answers), "failed": len(failed) - meanwhile, "failed_without_triton": meanwhile}
    return {**numbers, "triton_seconds": away}


def total(rows: Sequence[dict[str, Any]], lengths: dict[str, float]) -> dict[str, Any]:
    killed = [row for row in rows if row["victim"]]
    away = [row["triton_seconds"] for row in killed if row["triton_seconds"] is not None]
    return {
        "injected": len(killed),
        **{way: sum(row[way] for row in rows) for way in WAYS},
        **{name: sum(row[name] for row in rows) for name in ("requests", "failed", "failed_without_triton")},
        "triton_seconds": round(statistics.median(away), 1) if away else None,
        "round_seconds": {turn: round(seconds, 1) for turn, seconds in lengths.items()},
        "outcomes": dict(Counter(row["outcome"] for row in rows)),
        "where": dict(sorted(Counter(row["where"] for row in killed).items())),
        "seed": SEED,
    }


if __name__ == "__main__":
    main()
