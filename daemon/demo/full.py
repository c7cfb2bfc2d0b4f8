"""`relearn demo --full`: labels, drift, engines, search and tuning, in the workspace that the demonstration leaves."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from daemon import data_views, views
from daemon.demo import checks
from daemon.demo.checks import require
from daemon.demo.digits import Digit, darken, swap_labels
from daemon.demo.processes import TARGET
from daemon.demo.script import Demo
from deploy.engines import ENGINES

MORE_SECONDS = 720.0  # for what comes after the short demonstration
CAPABILITY = "8.9"  # of the GPU that plans are built for
PACKAGES = {"tensorrt": "tensorrt", "torch2trt": "torch2trt"}  # that are optional, by engine
SEARCHED = (
    "test_byobnet", "test_convnext", "test_efficientnet", "test_mambaout", "test_vit", "test_vit3", "test_coatnet",
    "test_maxvit",
)  # fmt: skip
TINY_MB = 0.35  # smaller than all that is stored, in any precision
TRIALS = 8
FLAGS_ANSWERED = 3

LINE = """\
version = 1

[input]
height = 32
width = 32

[require]
batch_size = 32   # the line sends what a second of its camera gave
accuracy_min = 0.80

[prefer]
maximize = "throughput"
"""
ROBOT = """\
version = 1

[accelerator]
kind = "sm89"     # a GPU that is elsewhere

[input]
height = 32
width = 32
"""
TINY = f"""\
version = 1

[input]
height = 32
width = 32

[require]
artifact_max_mb = {TINY_MB}
accuracy_min = 0.80
"""


class FullDemo(Demo):
    """Every organ of the daemon in turn. Each decision is printed with its reason."""

    def run(self) -> None:
        super().run()
        self.deadline = time.monotonic() + MORE_SECONDS
        self.said, self.line = self.last_decision(), ""
        self.swapped_labels()
        self.drift()
        self.every_engine()
        self.plans()
        self.search()

    # --- labels and drift ---------------------------------------------------------------------------------------

    def swapped_labels(self) -> None:
        digits = swap_labels(self.waves.third)
        wrong = {f"{d.name}/{d.number}.png": d for d in digits if d.name != d.true_name}
        what = f"{len(digits)} images are dropped, the labels of {len(wrong)} of them swapped"
        with self.step("swapped labels", what) as found:
            self.drop(digits)
            self.wait(lambda: self.look_at_flags()["held"], "the drop is held")
            self.tell_decisions()
            held = self.look_at_flags()
            (drop,) = held["held"]
            right = [flag for flag in held["flags"] if place_of(flag) in wrong]
            found["held"] = f"drop {drop['drop']}: {drop['reason']}"
            found["flagged"] = f"{len(held['flags'])}, of which {len(right)} are wrong"
            require(len(right) >= FLAGS_ANSWERED, f"swapped labels are flagged: {len(right)} of {len(wrong)} are")
            found["answered"] = self.answer(right[:FLAGS_ANSWERED], wrong)
            self.workspace.ask("flags", "release", str(drop["drop"]))
            self.wait(lambda: not self.look_at_flags()["held"], "the drop is released")
            left = {flag["id"] for flag in self.look_at_flags()["flags"]}
            require(not left & {flag["id"] for flag in right[:FLAGS_ANSWERED]}, "what was answered is asked no more")
            self.settle()

    def answer(self, flags: list[dict[str, Any]], wrong: dict[str, Digit]) -> list[str]:
        """The first is accepted, the second relabelled, the third kept: as people do, one of three is a mistake."""
        accepted, relabelled, kept = flags
        truth = wrong[place_of(relabelled)].true_name
        answers = (
            ("accept", str(accepted["id"])),
            ("relabel", str(relabelled["id"]), "--to", truth),
            ("keep", str(kept["id"])),
        )
        for words in answers:
            self.workspace.ask("flags", *words)
        return [f"relearn flags {' '.join(words)}" for words in answers]

    def drift(self) -> None:
        clean, changed = self.waves.unlabelled
        with self.step("unlabelled images", f"{len(clean)} more images like those before") as found:
            found["drift"] = self.check_drift(clean, alarm=False)
        with self.step("darker images", f"{len(changed)} images, darker and blurred") as found:
            found["drift"] = self.check_drift(tuple(map(darken, changed)), alarm=True)
            self.settle()

    def check_drift(self, digits: tuple[Digit, ...], *, alarm: bool) -> str:
        """Drops the images without a label, and says what the next check of drift finds."""
        before = self.unlabelled_check()
        self.drop(digits, Digit.save_unlabelled)
        self.wait(lambda: self.unlabelled_check() != before, "they are checked for drift")
        check = self.unlabelled_check()
        assert check is not None
        require(check["alarm"] is alarm, f"{'an' if alarm else 'no'} alarm: {check['reason']}")
        return str(check["reason"])

    def unlabelled_check(self) -> dict[str, Any] | None:
        settings = self.workspace.config.settings.policies.drift
        found = self.workspace.look(lambda c: data_views.drift(c, settings)) or []
        return next((check for check in found if check["kind"] == "unlabelled"), None)

    def look_at_flags(self) -> dict[str, Any]:
        found: dict[str, Any] = self.workspace.look(data_views.flags)
        return found

    # --- engines ------------------------------------------------------------------------------------------------

    def every_engine(self) -> None:
        variants, missing = installed()
        with self.step("every engine", "a second target, `line`, sends 32 images at once") as found:
            found["not_installed"] = missing or "none"
            self.restart(f"build.engines={list(variants)}", f'build.compute_capability="{CAPABILITY}"')
            self.workspace.write_constraints("line", LINE)
            self.wait(lambda: self.workspace.target("line").get("champion"), "`line` is served")
            self.tell_decisions()
            champion = self.workspace.target("line")["champion"]
            built = [m for m in self.models() if m["model"] == champion["model"] and not m["unverified"]]
            speed = {variant_of(m): round(m["measurement"]["throughput"]) for m in built if m["measurement"]}
            found["images_per_second"] = speed
            found["served"] = {"digits": self.variant(TARGET), "line": self.variant("line")}
            wanted = {name for name in variants if ENGINES[name.partition(":")[0]].accelerator == "cpu"}
            require(set(speed) == wanted, f"the network is built on every engine for a CPU: {sorted(speed)}")
            require(speed[self.variant("line")] == max(speed.values()), "the fastest of them is served")
            require(self.variant("line") != self.variant(TARGET), "each target is served what suits it")
            self.settle()

    def plans(self) -> None:
        what = f"a third target, `robot`, asks for a GPU that is not here (compute capability {CAPABILITY})"
        with self.step("plans", what) as found:
            self.workspace.write_constraints("robot", ROBOT)
            self.wait(lambda: self.outcome("robot"), "all that can be known of it is known")
            self.tell_decisions()
            cycle = self.outcome("robot")
            assert cycle is not None
            plans = {variant_of(m): m["unverified"] for m in self.models() if m["unverified"]}
            found["unverified"] = plans
            found["verdict"] = cycle["reason"]
            require(cycle["outcome"] == "violated", f"nothing unverified is promoted: {cycle['outcome']}")
            require(
                set(plans) == {f"tensorrt_rtx:{precision}" for precision in ENGINES["tensorrt_rtx"].precisions},
                f"plans are built in every precision: {sorted(plans)}",
            )
            self.workspace.constraints_of("robot").unlink()
            self.settle()

    def variant(self, target: str) -> str:
        champion = self.workspace.target(target)["champion"]
        return next(variant_of(m) for m in self.models() if m["artifact"] == champion["artifact"])

    def models(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.workspace.look(views.models)
        return found

    # --- search and tuning --------------------------------------------------------------------------------------

    def search(self) -> None:
        what = f"`tiny` takes {TINY_MB} MB; {len(SEARCHED)} architectures, {TRIALS} trials, the optimizer by itself"
        with self.step("search", what) as found:
            self.restart(
                'build.engines=["onnxruntime:fp32", "onnxruntime:int8"]',
                f"search.architectures={list(SEARCHED)}",
                f"tune.trials={TRIALS}",
                'train.optimizer="auto"',
            )
            self.workspace.write_constraints("tiny", TINY)
            self.wait(lambda: self.trials_done() >= 2, "two trials are done")
            self.tell_decisions()
            found["killed"] = self.kill_trial()
            self.wait(lambda: self.outcome("tiny"), "the search has its verdict")
            self.tell_decisions()
            cycle = self.outcome("tiny")
            assert cycle is not None
            found.update(searched(cycle))
            require(cycle["outcome"] in ("promoted", "violated"), f"it ends with a verdict: {cycle['outcome']}")
            require("earest" in cycle["reason"] or cycle["outcome"] == "promoted", "the nearest model is named")

    def trials_done(self) -> float:
        doing = checks.doing(self.workspace)
        if not doing or doing["stage"] != "tune" or not doing["progress"]:
            return 0.0
        return float(doing["progress"]["done"])

    def kill_trial(self) -> str:
        """SIGKILL to the process of Ray's that trains, in the middle of the tuning."""
        assert self.workspace.daemon is not None
        family = psutil.Process(self.workspace.daemon.pid).children(recursive=True)
        workers = []
        for process in family:
            with suppress(psutil.NoSuchProcess):  # one that ends meanwhile
                name = " ".join(process.cmdline()[:1])
                if name.startswith("ray::") and "IDLE" not in name:
                    workers.append((sum(process.cpu_times()[:2]), process.pid, name))
        require(bool(workers), "a worker of Ray trains")
        _, busiest, name = max(workers)
        os.kill(busiest, signal.SIGKILL)
        self.screen.say(f"SIGKILL to {name}, in the middle of trial {self.trials_done() + 1:.1f}")
        return name

    # --- what they share ----------------------------------------------------------------------------------------

    def restart(self, *overrides: str) -> None:
        self.workspace.restart_daemon(*(word.replace("'", '"') for word in overrides))
        self.screen.say(f"the daemon is started again: {' '.join(f'--set {word}' for word in overrides)}")

    def settle(self) -> None:
        """Until nothing runs and nothing waits to be decided; what was decided meanwhile is told."""
        quiet_since = time.monotonic()
        last = self.last_decision()
        while time.monotonic() - quiet_since < 2.0:
            if checks.doing(self.workspace) or self.last_decision() != last:
                quiet_since, last = time.monotonic(), self.last_decision()
            self.wait(lambda: not checks.doing(self.workspace), "all that was set off is done")
            time.sleep(0.1)
        self.tell_decisions()

    def outcome(self, target: str) -> dict[str, Any] | None:
        """The last cycle of a target, once it has ended."""
        mine = [cycle for cycle in self.workspace.cycles() if cycle["target"] == target]
        return mine[-1] if mine and mine[-1]["state"] != "running" else None

    def last_decision(self) -> int:
        found = self.workspace.look(lambda c: views.decisions(c, 1)) or []
        return int(found[0]["id"]) if found else 0

    def tell_decisions(self) -> None:
        """Prints each decision since the last time, with its reason."""
        found = self.workspace.look(lambda c: views.decisions(c, 100))
        for row in reversed([row for row in found if row["id"] > self.said]):
            self.said, line = row["id"], f"  {row['target']}: {row['action']}: {row['reason']}"
            if line != self.line:  # what is decided again, in the same words, is said once
                self.screen.say(line)
            self.line = line


def installed() -> tuple[list[str], list[str]]:
    """Every engine and precision that can be built here, and the engines whose packages are not installed."""
    missing = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None]
    there = {name: line for name, line in ENGINES.items() if name not in missing}
    return [f"{name}:{precision}" for name, line in there.items() for precision in line.precisions], missing


def place_of(flag: dict[str, Any]) -> str:
    """The file of a flag, below the watched folder."""
    return "/".join(Path(flag["file"]).parts[-2:])


def variant_of(model: dict[str, Any]) -> str:
    return f"{model['engine']}:{model['precision']}"


def is_heat(stage: dict[str, Any]) -> bool:
    return bool(stage["name"] == "train" and stage["step"].startswith("race "))


def searched(cycle: dict[str, Any]) -> dict[str, Any]:
    """What a cycle searched, raced, tuned and chose, by its stages."""
    stages = cycle["stages"]
    done = [stage for stage in stages if stage["state"] == "done"]
    drawn = {stage["step"].split()[1] for stage in stages if stage["step"].startswith("sketch ")}
    (tuned,) = [stage for stage in done if stage["name"] == "tune"]
    trials = tuned["outputs"]["trials"]
    (trained,) = [stage for stage in done if stage["name"] == "train" and stage["step"].startswith("train ")]
    optimizer = trained["outputs"]["optimizer"]
    require(len(drawn) == len(SEARCHED), f"every architecture is drawn and measured: {sorted(drawn)}")
    require(len(trials) == TRIALS, f"no trial is lost: {len(trials)} of {TRIALS}")
    require(all(trial["state"] in ("finished", "stopped") for trial in trials), f"no trial fails: {trials}")
    require(len(optimizer["race"]) > 1, "optimizers race")
    return {
        "raced": [stage["step"].removeprefix("race ") for stage in done if is_heat(stage)],
        "trials": [f"{trial['state']} after {trial['epochs']} epochs: {trial['tune_loss']:.3f}" for trial in trials],
        "best_settings": tuned["outputs"]["best"],
        "optimizer": f"{optimizer['name']} of {', '.join(row['name'] for row in optimizer['race'])}",
        "verdict": cycle["reason"],
    }
