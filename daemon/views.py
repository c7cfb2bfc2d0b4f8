"""What the journal shows to people and programs, as plain values."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from daemon import approvals, configurations, data_views, measurements, pauses, schema, servers, standings, targets
from daemon.config import Config
from daemon.declined import declined
from daemon.errors import ConfigError, NotFound
from daemon.journal import AnyRow, get
from daemon.lock import is_running
from daemon.settings import Triton
from daemon.stock import artifact_folder
from daemon.withdrawal import was_unwanted
from deploy.triton import TritonError
from policies.combine import decide
from policies.decision import Decision
from policies.evidence import Evidence
from policies.facts import from_dict, to_dict
from policies.labels import DropAudit, hold_drop
from policies.settings import PoliciesSettings

View = dict[str, Any]
TRITON_SECONDS = 1.0  # in which it says whether it is there


def status(connection: Connection, config: Config, refused: str | None = None) -> View:
    """What the daemon is doing, what each target serves, what data there is.

    refused: why config.toml as it is now cannot be used; `config` is then what was in force last.
    """
    return {
        "workspace": str(config.workspace),
        "running": is_running(config.state),
        "paused": [pauses.describe(row) for row in pauses.standing(connection)],
        "configuration": configurations.view(connection, config.file, refused),
        "disk_free_mb": free_mb(config.state),
        "targets": (found := [target(connection, config, name) for name in _target_names(connection)]),
        "servers": _ask_servers(connection, config, found),
        "working": working(connection),
        "reading": data_views.reading(connection),
        "data": data_views.data(connection),
        "drift": data_views.drift(connection, config.settings.policies.drift),
        "last_decision": next(iter(decisions(connection, 1)), None),
    }


def free_mb(state: Path) -> float | None:
    """Megabytes left for the state folder. None: it is not there yet."""
    return shutil.disk_usage(state).free / 1e6 if state.is_dir() else None


def _ask_servers(connection: Connection, config: Config, found: Sequence[View]) -> list[View]:
    """Each Triton: as the daemon last found it, and what it says itself, now, all asked at once."""
    noted = {row.name: row for row in connection.execute(select(schema.servers))}
    first = config.server_names[0]
    views = []
    for server in config.settings.triton:
        row = noted.get(server.name)
        mine = [view for view in found if view["champion"] and (view["champion"]["server"] or first) == server.name]
        said = {key: getattr(row, key) if row else None for key in ("state", "trouble", "version", "since")}
        views.append((server, mine, {"name": server.name, "url": server.url, **said}))
    with ThreadPoolExecutor(len(views)) as pool:
        answers = pool.map(lambda each: _ask_server(config, each[0], each[1]), views)
        return [{**view, **answer} for (_, _, view), answer in zip(views, answers, strict=True)]


def _ask_server(config: Config, server: Triton, found: Sequence[View]) -> View:
    """Whether it answers, and of which targets it has the champion's version ready.

    Where it cannot be asked from here (a header's variable that the daemon alone has, a key that it alone may read)
    "answers" is None, and "not_asked" says why.
    """
    ready: dict[str, bool] = {}
    silent = {"answers": False, "ready": {}, "not_asked": None}
    try:
        with servers.connect(config, server, TRITON_SECONDS) as triton:
            if not triton.is_live(timeout=TRITON_SECONDS):
                return silent
            for view in found:
                ready[view["target"]] = triton.is_ready(view["target"], view["champion"]["version"])
    except TritonError:
        return silent
    except (ConfigError, OSError) as error:
        return {"answers": None, "ready": {}, "not_asked": str(error)}
    return {"answers": True, "ready": ready, "not_asked": None}


def _target_names(connection: Connection) -> list[str]:
    """Of the targets that have a constraint file, or are served."""
    files, promotions = schema.constraint_files, schema.promotions
    newest = select(func.max(files.c.id)).group_by(files.c.target)
    served = select(promotions.c.target).where(promotions.c.state == "serving")
    wanted = files.c.id.in_(newest) & (files.c.gone.is_(False) | files.c.target.in_(served))
    return list(connection.execute(select(files.c.target).where(wanted).order_by(files.c.target)).scalars())


def target(connection: Connection, config: Config, name: str) -> View:
    """One target: its requirement, the error of its file if there is one, and what it serves. Raises NotFound."""
    files = schema.constraint_files
    newest = connection.execute(select(files).where(files.c.target == name).order_by(files.c.id.desc())).first()
    if newest is None:
        raise NotFound(f"there is no target {name!r}")
    requirement = targets.requirements(connection).get(name)
    champion = targets.champion(connection, name)
    last = connection.execute(
        select(schema.cycles).where(schema.cycles.c.target == name).order_by(schema.cycles.c.id.desc())
    ).first()
    return {
        "target": name,
        "requirement": to_dict(requirement) if requirement else None,
        "error": newest.error,
        "removed": newest.gone,
        "champion": _champion(connection, champion) if champion else None,
        "switching": _switching(connection, name),
        "not_served": _not_served(connection, name),
        "last_cycle": _cycle(connection, last) if last else None,
        "asks": _asks(connection, config, name),
        "declined": declined(connection, name),
        "violated": _violated(connection, name),
        "unknown_classes": targets.unknown_classes(connection, requirement) if requirement else [],
    }


def _asks(connection: Connection, config: Config, name: str) -> View | None:
    """The verdict that waits for a person, since when, and why it cannot be approved any more, if so."""
    row = approvals.waiting(connection, name)
    if row is None:
        return None
    view = {"verdict": row.id, "artifact": row.artifact_id, "answer": row.answer, "since": row.at}
    return {**view, "reason": row.reason, "void": approvals.find_change(connection, row)}


def _violated(connection: Connection, name: str) -> str | None:
    """Why nothing met the constraints when they were last judged by; None: something does, or nobody has judged.

    A cycle about the one artifact that a person named says nothing of all the others, nor does one that builds again
    what is served.
    """
    cycles = schema.cycles
    whole = cycles.c.trigger.not_in(("asked", "stock")) | (cycles.c.outcome == "promoted")
    judged = connection.execute(
        select(cycles.c.outcome, cycles.c.reason)
        .where(cycles.c.target == name, cycles.c.state == "done", whole)
        .order_by(cycles.c.id.desc())
    ).first()
    return judged.reason if judged and judged.outcome == "violated" else None


def _champion(connection: Connection, champion: targets.Champion) -> View:
    view = model(connection, champion.artifact)
    row = get(connection, schema.promotions, champion.promotion)
    return {
        **view,
        "version": champion.version,
        "server": champion.server,
        "served_since": row.served,
        "reason": row.reason,
        "by": row.by,
        "trouble": row.error,
    }


def _switching(connection: Connection, name: str) -> View | None:
    """The promotion under way, whoever asked for it, and what it waits for."""
    table = schema.promotions
    row = connection.execute(
        select(table).where(table.c.target == name, table.c.state.in_(("switching", "undoing"))).order_by(table.c.id)
    ).first()
    return None if row is None else {key: getattr(row, key) for key in ("version", "kind", "by", "step", "error")}


def _not_served(connection: Connection, name: str) -> View | None:
    """What a person asked for last, where it failed. Of the policy's own the cycle tells."""
    table = schema.promotions
    row = connection.execute(select(table).where(table.c.target == name).order_by(table.c.id.desc())).first()
    if row is None or row.state != "failed" or row.kind not in ("forced", "rollback") or was_unwanted(row):
        return None
    return {key: getattr(row, key) for key in ("version", "artifact_id", "kind", "by", "error")}


def model(connection: Connection, artifact: str) -> View:
    """A stored artifact, with what was measured and proven of it."""
    stored = get(connection, schema.artifacts, artifact)
    trained = get(connection, schema.models, stored.model_id)
    table = schema.measurements
    figures = connection.execute(
        select(table.c.figures).where(table.c.artifact_id == artifact).order_by(table.c.id.desc())
    ).scalar()
    proofs = schema.proofs
    proof = connection.execute(
        select(proofs).where(proofs.c.artifact_id == artifact).order_by(proofs.c.id.desc())
    ).first()
    return {
        "artifact": artifact,
        "model": trained.id,
        "architecture": trained.architecture,
        "adopted": trained.adopted,
        "classes": trained.classes,
        "engine": stored.engine,
        "precision": stored.precision,
        "device": stored.device,
        "unverified": stored.unverified,
        "artifact_mb": stored.artifact_mb,
        "snapshot": trained.snapshot_id,
        "cycle": trained.cycle_id,
        "train_seconds": trained.train_seconds,
        "tune_accuracy": proof.tune_accuracy if proof else trained.tune_accuracy,
        "judge_accuracy": judge_accuracy(connection, artifact, trained.classes),
        "parity": proof.parity if proof else None,
        "measurement": to_dict(measurements.read(connection, figures)) if figures else None,
        "created": stored.created,
        "path": str(artifact_folder(Path(), artifact)),  # below the state folder
        "gone": stored.gone,
    }


def judge_accuracy(connection: Connection, artifact: str, classes: list[str]) -> float | None:
    """Share of right answers on the judge samples, of the classes it knows, that the artifact was asked about."""
    standings.refresh(connection)
    answers, said = schema.answers, schema.standings
    rows = connection.execute(
        select(answers.c.predicted, said.c.class_name)
        .join(said, said.c.sample_id == answers.c.sample_id)
        .where(answers.c.artifact_id == artifact, said.c.class_name.in_(classes), said.c.state.in_(standings.LABELLED))
    ).all()
    return sum(predicted == name for predicted, name in rows) / len(rows) if rows else None


def models(connection: Connection) -> list[View]:
    """Every stored artifact, the newest first."""
    ids = connection.execute(select(schema.artifacts.c.id).order_by(schema.artifacts.c.created.desc())).scalars()
    serving: dict[str, list[str]] = {}
    for row in _serving(connection):
        serving.setdefault(row.artifact_id, []).append(f"{row.target}/{row.version}")
    return [{**model(connection, id_), "serves": ", ".join(serving.get(id_, ())) or None} for id_ in ids]


def _serving(connection: Connection) -> list[AnyRow]:
    return list(connection.execute(select(schema.promotions).where(schema.promotions.c.state == "serving")))


def working(connection: Connection) -> View | None:
    """The running cycle and how far its stage has come; None: nothing runs."""
    begun = connection.execute(select(schema.cycles).where(schema.cycles.c.state == "running")).all()
    if not begun:
        return None
    resting = {row.id: pauses.tell(connection, row.target) for row in begun}
    row = min(begun, key=lambda row: (resting[row.id] is not None, row.id))
    stages, attempts = schema.stages, schema.attempts
    stage = connection.execute(
        select(stages).where(stages.c.cycle_id == row.id, stages.c.state.in_(("running", "waiting")))
    ).first()
    view: View = {
        "cycle": row.id,
        "target": row.target,
        "since": row.started,
        "paused": resting[row.id],
        "stage": None,
        "progress": None,
    }
    if stage is not None:
        attempt = connection.execute(
            select(attempts).where(attempts.c.stage_id == stage.id).order_by(attempts.c.id.desc())
        ).first()
        view |= {"step": stage.step, "stage": stage.name, "state": stage.state, "attempt": stage.attempts}
        view["progress"] = attempt.progress if attempt else None
        view["last_words"] = attempt.last_words if attempt else None
        return view
    waiting = connection.execute(
        select(schema.promotions).where(
            schema.promotions.c.cycle_id == row.id, schema.promotions.c.state == "switching"
        )
    ).first()
    if waiting is not None:
        view |= {"stage": "promotion", "step": waiting.step, "last_words": waiting.error}
    return view


def decisions(connection: Connection, limit: int) -> list[View]:
    """The newest decisions, the newest first."""
    table = schema.decisions
    rows = connection.execute(select(table).order_by(table.c.id.desc()).limit(limit))
    return [
        {"id": row.id, "at": row.at, "target": row.target, "event": row.event, "action": row.action,
         "reason": row.reason, "until": row.until}
        for row in rows
    ]  # fmt: skip


def cycles(connection: Connection, limit: int = 20) -> list[View]:
    """The newest cycles with their stages, the newest first."""
    table = schema.cycles
    rows = connection.execute(select(table).order_by(table.c.id.desc()).limit(limit))
    return [_cycle(connection, row) for row in rows]


def _cycle(connection: Connection, row: AnyRow) -> View:
    stages, attempts = schema.stages, schema.attempts
    found = connection.execute(select(stages).where(stages.c.cycle_id == row.id).order_by(stages.c.id)).all()
    tries: dict[int, list[View]] = {}
    for attempt in connection.execute(
        select(attempts).where(attempts.c.stage_id.in_([stage.id for stage in found])).order_by(attempts.c.id)
    ):
        tries.setdefault(attempt.stage_id, []).append(
            {key: getattr(attempt, key) for key in ("number", "started", "ended", "outcome", "last_words")}
        )
    return {
        "id": row.id,
        "decision": row.decision_id,
        "target": row.target,
        "trigger": row.trigger,
        "state": row.state,
        "outcome": row.outcome,
        "reason": row.reason,
        "snapshot": row.snapshot_id,
        "started": row.started,
        "ended": row.ended,
        "stages": [
            {
                "step": stage.step,
                "name": stage.name,
                "state": stage.state,
                "outputs": stage.outputs,
                "attempts": tries.get(stage.id, []),
            }
            for stage in found
        ],
        "about": row.about,
        "verdicts": [_verdict(v) for v in _verdict_rows(connection, row.id)],
        "promotions": [_promotion(p) for p in _promotion_rows(connection, row.id)],
    }


def _verdict_rows(connection: Connection, cycle: int) -> list[AnyRow]:
    table = schema.verdicts
    return list(connection.execute(select(table).where(table.c.cycle_id == cycle).order_by(table.c.id)))


def _promotion_rows(connection: Connection, cycle: int) -> list[AnyRow]:
    table = schema.promotions
    of = table.c.verdict_id.in_(select(schema.verdicts.c.id).where(schema.verdicts.c.cycle_id == cycle))
    return list(connection.execute(select(table).where((table.c.cycle_id == cycle) | of).order_by(table.c.id)))


def _verdict(row: AnyRow) -> View:
    return {
        "id": row.id,
        "target": row.target,
        "artifact": row.artifact_id,
        "against": row.champion_id,
        "at": row.at,
        "approval": row.approval,
        "answered": row.answered,
        "answered_by": row.answered_by,
        "because": row.because,
        **row.verdict,
    }


def _promotion(row: AnyRow) -> View:
    keys = (
        "id",
        "target",
        "artifact_id",
        "kind",
        "version",
        "server",
        "state",
        "step",
        "reason",
        "error",
        "by",
        "served",
    )
    return {key: getattr(row, key) for key in keys}


def explain(connection: Connection, name: str) -> View:
    """A decision (d3), a cycle (c3) or a verdict (v3) with everything that it rests on; d3 is replayed.

    Raises NotFound.
    """
    kind, number = name[:1].lower(), name[1:]
    if name.isdigit():
        kind, number = "d", name
    if not (number.isascii() and number.isdigit()) or len(number) > 18 or kind not in "dcv":
        raise NotFound(f"{name!r}: name a decision (d3), a cycle (c3) or a verdict (v3)")
    if kind == "c":
        view = _cycle(connection, get(connection, schema.cycles, int(number)))
        return {**view, "decided_by": _decision(connection, view["decision"])}
    if kind == "v":
        row = get(connection, schema.verdicts, int(number))
        table = schema.promotions
        came = connection.execute(select(table).where(table.c.verdict_id == row.id).order_by(table.c.id))
        promoted = [_promotion(promotion) for promotion in came]
        return {**_verdict(row), "cycle": row.cycle_id, "promotions": promoted, "facts": row.facts}
    return _decision(connection, int(number))


def _decision(connection: Connection, id_: int) -> View:
    row = get(connection, schema.decisions, id_)
    view = {column: getattr(row, column) for column in row._fields}
    if row.evidence:
        again = _replay(row)
        same = (again.action, again.reason) == (row.action, row.reason)
        view["replayed"] = "the same" if same else f"this version would say: {again.action}: {again.reason}"
    return view


def _replay(row: AnyRow) -> Decision:
    settings = from_dict(PoliciesSettings, row.settings)
    if row.action == "hold":
        return hold_drop(from_dict(DropAudit, row.evidence), settings.labels)
    return decide(from_dict(Evidence, row.evidence), settings)
