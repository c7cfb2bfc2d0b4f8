"""What must be true after each step, looked up where it cannot be made up: the repository, manifests, journal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from daemon import data_views, views
from daemon.demo.clients import Record
from daemon.demo.processes import TARGET, StepFailed, Workspace
from deploy.repository import verify_version

Found = dict[str, Any]


def require(holds: bool, what: str) -> None:
    if not holds:
        raise StepFailed(f"not as it should be: {what}")


def doing(workspace: Workspace) -> dict[str, Any] | None:
    """What the daemon is doing now."""
    found: dict[str, Any] | None = workspace.look(views.working)
    return found


def doings(workspace: Workspace) -> tuple[int, int]:
    """How many decisions and cycles there have been."""
    return (
        len(workspace.look(lambda c: views.decisions(c, 10_000)) or []),
        len(workspace.cycles()),
    )


def rejections(workspace: Workspace) -> list[dict[str, Any]]:
    return workspace.look(data_views.rejected) or []


def promotion(workspace: Workspace, version: int) -> Found:
    """The promoted version: every file of it under its SHA-256, and the row for the table at the end."""
    manifest = verify_version(workspace.config.repository / TARGET / str(version))
    cycle = _promoting(workspace, version)
    champion = workspace.target()["champion"]
    require(manifest["artifact"] == champion["artifact"], f"version {version} holds the promoted artifact")
    require(manifest["classes"] == champion["classes"], f"version {version} lists the promoted classes")
    decision = workspace.look(lambda c: views.explain(c, f"d{cycle['decision']}"))
    require(decision["replayed"] == "the same", f"decision d{cycle['decision']} can be replayed")
    return {
        "version": version,
        "row": {
            "event": decision["event"],
            "decision": f"{decision['action']}: {decision['reason']}",
            "verdict": cycle["verdicts"][-1]["reason"],
            "candidate": f"{champion['architecture']} {champion['artifact'][:8]}",
            "accuracy": champion["judge_accuracy"],
            "p95_ms": champion["measurement"]["latency_p95_ms"],
            "constraints": constraints(workspace, champion),
            "version": version,
        },
    }


def constraints(workspace: Workspace, champion: dict[str, Any]) -> list[str]:
    """Constraint by constraint: asked and found."""
    asked = workspace.target()["requirement"]
    figures = champion["measurement"]
    found = {
        "latency_p95_ms": (figures["latency_p95_ms"], "≤"),
        "artifact_max_mb": (champion["artifact_mb"], "≤"),
        "accuracy_min": (champion["judge_accuracy"], "≥"),
    }
    return [f"{key} {value:.3g} {sign} {asked[key]:g}" for key, (value, sign) in found.items()]


def _promoting(workspace: Workspace, version: int) -> dict[str, Any]:
    for cycle in workspace.cycles():
        if any(p["version"] == version and p["served"] for p in cycle["promotions"]):
            require(cycle["outcome"] in ("promoted", None), f"cycle c{cycle['id']} ends as promoted")
            return cycle
    raise StepFailed(f"no cycle promoted version {version}")


def promoted_once(workspace: Workspace, classes: int) -> Found:
    """Of all promotions just one is of a model with so many classes."""
    served = [
        verdict["artifact"]
        for cycle in workspace.cycles()
        for verdict in cycle["verdicts"]
        if any(p["artifact_id"] == verdict["artifact"] and p["served"] for p in cycle["promotions"])
    ]
    models = {m["artifact"]: m for m in workspace.look(views.models)}
    many = [artifact for artifact in served if len(models[artifact]["classes"]) == classes]
    require(len(many) == 1, f"one promotion of a model with {classes} classes, not {len(many)}")
    return {"promotions_with_ten_classes": len(many)}


def went_on(workspace: Workspace) -> Found:
    """The killed training went on from its checkpoint: its epochs by attempt follow each other, none twice."""
    cycle = workspace.cycles()[-1]
    stage = next(s for s in cycle["stages"] if s["name"] == "train")
    outcomes = [attempt["outcome"] for attempt in stage["attempts"]]
    require(outcomes == ["lost", "done"], f"the training had one lost and one finished attempt, not {outcomes}")
    history = json.loads((Path(stage["outputs"]["run"]) / "history.json").read_text(encoding="utf-8"))["epochs"]
    epochs = [row["epoch"] for row in history]
    by_attempt = {
        str(n): [r["epoch"] for r in history if r["attempt"] == n] for n in sorted({r["attempt"] for r in history})
    }
    require(len(epochs) == len(set(epochs)), f"no epoch was trained twice: {by_attempt}")
    require(len(by_attempt) == 2, f"both attempts trained epochs: {by_attempt}")
    require(epochs == sorted(epochs), f"the second attempt went on where the first ended: {by_attempt}")
    return {"epochs_by_attempt": by_attempt}


def came_from(workspace: Workspace, *, trained: bool) -> Found:
    """Whether the last promotion came from a training or from the store, by the journal's training seconds."""
    cycle = workspace.cycles()[-1]
    seconds = sum(
        (attempt["ended"] or 0) - attempt["started"]
        for stage in cycle["stages"]
        if stage["name"] == "train"
        for attempt in stage["attempts"]
    )
    require((seconds > 0) == trained, f"training seconds of cycle c{cycle['id']}: {seconds:.1f}")
    return {"training_seconds": round(seconds, 1)}


def stands(workspace: Workspace, version: int, line: int) -> Found:
    """The broken constraint file is named with line, key and what to do; the requirement and the champion stand."""
    target = workspace.target()
    error = target["error"]
    for part in (f"{TARGET}.toml:{line}", "latency_p95", "did you mean"):
        require(part in error, f"the error names {part!r}: {error}")
    require(target["requirement"]["latency_p95_ms"] == 20.0, "the last valid constraints stand")
    require(target["champion"]["version"] == version, "the champion serves on")
    return {"error": error}


def only_reported(workspace: Workspace, files: list[Path], before: tuple[int, int]) -> Found:
    """Each broken file is listed with its reason, and nothing was decided or begun because of them."""
    reasons = {Path(row["file"]): row["reason"] for row in rejections(workspace)}
    require(set(reasons) == set(files), f"each broken file is listed: {reasons}")
    after = doings(workspace)
    require(after == before, f"nothing else happens: decisions and cycles {before}, then {after}")
    return {"rejected": {file.name: reason for file, reason in reasons.items()}}


def undisturbed(record: Record, per_second: float) -> Found:
    """The client asked as often as it should, no request failed, every label belonged to the version that answered."""
    rate = record.requests / record.seconds
    require(rate >= 0.9 * per_second, f"the client asks {per_second:g} times a second: it asked {rate:.1f} times")
    require(not record.failures, f"no request fails: {len(record.failures)} did: {record.failures[:3]}")
    require(not record.mismatches, f"labels belong to their version: {record.mismatches[:3]}")
    require(set(record.versions) == {1, 2, 3, 4}, f"every version answered: {dict(record.versions)}")
    return {"requests": record.requests, "failed": 0}


def disjoint(asked: set[str], dropped: set[str]) -> Found:
    """Nothing that Triton was asked about had been dropped, by the SHA-256 of the pixels."""
    both = asked & dropped
    require(not both, f"no image that was asked about had been dropped: {len(both)} of {len(asked)} had")
    return {"asked_about": len(asked)}
