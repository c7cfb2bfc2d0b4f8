"""What a person puts in front of the clients: an approval, a candidate by name, by force, an earlier version.

Each is a promotion like any other, by the same switch, recorded with who asked for it and what the policy had said.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from daemon import approvals, schema, targets
from daemon.dates import day
from daemon.errors import NotFound, UsageError
from daemon.journal import AnyRow, get
from daemon.serving import Serving
from daemon.stock import find_damage
from daemon.withdrawal import RENEWALS
from policies.facts import Requirement

promotions = schema.promotions
NAMED, LONGEST = 5, 60  # classes that an answer names, and characters of each
SHORTEST = 4  # digits that may be the beginning of an artifact's id as well as a version


def approve(connection: Connection, serving: Serving, requirement: Requirement, by: str) -> str:
    """Promotes what waits for a person. Raises UsageError where nothing does, or what it rests on has changed."""
    verdict = approvals.find_approved(connection, serving.config.state, requirement.target)
    _check_servable(connection, serving, requirement, verdict.artifact_id)
    _check_quiet(connection, requirement.target)
    return _serve(connection, serving, verdict, by)


def promote(
    connection: Connection, serving: Serving, requirement: Requirement, named: str, by: str, *, force: bool
) -> tuple[str, str]:
    """Promotes a candidate that the policy would promote, or any that can be served; state and answer of the request.

    "owed": no verdict on it holds now, so that a cycle has to judge it first. Raises UsageError where the policy or a
    person keeps the champion, or it cannot be served.
    """
    target, artifact = requirement.target, find_artifact(connection, named)
    champion = targets.champion(connection, target)
    if champion and champion.artifact == artifact:
        raise UsageError(f"{target} serves {artifact} already, as version {champion.version}")
    _check_servable(connection, serving, requirement, artifact)
    _check_quiet(connection, target)
    verdict = approvals.last_on(connection, target, artifact)
    if force:
        return "done", _force(connection, serving, target, artifact, verdict, by)
    if verdict is None:
        return "owed", f"the policy was never asked whether {artifact} may serve {target}: a cycle asks it next"
    if fault := approvals.find_fault(connection, serving.config.state, verdict):
        return "owed", f"the verdict on {artifact} (v{verdict.id}) holds no more: {fault}; a cycle judges it anew"
    if verdict.answer == "keep" and (news := approvals.find_news(connection, serving.config, verdict)):
        return "owed", f"{artifact} was not promoted (v{verdict.id}), but {news} since: a cycle judges it anew"
    _check_verdict(verdict, by)
    return "done", _serve(connection, serving, verdict, by)


def _check_verdict(verdict: AnyRow, by: str) -> None:
    forced = "`--force` promotes it all the same"
    if verdict.approval == "refused":
        why = f" ({verdict.because})" if verdict.because else ""
        who = "you" if verdict.answered_by == by else verdict.answered_by
        raise UsageError(f"{who} refused {verdict.artifact_id} on {day(verdict.answered)}{why}; {forced}")
    if verdict.answer == "keep":
        said = f"{verdict.reason.rstrip('.')} (v{verdict.id} of {day(verdict.at)})"
        raise UsageError(f"{verdict.artifact_id} is not promoted: {said}; {forced}")


def rollback(connection: Connection, serving: Serving, requirement: Requirement, named: str | None, by: str) -> str:
    """Serves an earlier artifact again; says which, and as which version. Raises UsageError, NotFound.

    What is under way is taken back, unless Triton may be loading it already: then it is gone back behind.
    """
    target, champion = requirement.target, targets.champion(connection, requirement.target)
    coming = _under_way(connection, target)
    alone = coming is not None and champion is None and not named  # nothing was served before what is coming
    artifact = None if alone else find_earlier(connection, target, named) if named else previous(connection, target)
    if artifact is not None:
        _check_servable(connection, serving, requirement, artifact)
    back = coming is not None and serving.take_back(connection, coming, by)
    if artifact is None or (champion and champion.artifact == artifact and (back or not coming)):
        return _taken_back(target, champion, coming if back else None)
    promotion = serving.request(connection, target, artifact, kind="rollback", by=by, cycle=None)
    return f"{target} goes back to {artifact}: it becomes version {promotion.version}"


def _taken_back(target: str, champion: targets.Champion | None, coming: AnyRow | None) -> str:
    """What is said where nothing has to be switched. Raises UsageError where nothing was under way either."""
    if coming is None and champion:
        raise UsageError(f"{target} serves {champion.artifact} already, as version {champion.version}")
    if coming is None:
        raise UsageError(f"{target} serves nothing, and what is coming is being loaded: ask again once it serves")
    serves = f"serves {champion.artifact}, as version {champion.version}" if champion else "serves nothing"
    again = "; `relearn reload` has it tried again" if coming.kind in RENEWALS else ""
    return f"{coming.artifact_id} is not switched to any more: {target} {serves}{again}"


def _serve(connection: Connection, serving: Serving, verdict: AnyRow, by: str) -> str:
    """What the policy would promote is promoted, on a person's word."""
    approvals.answer(connection, verdict.id, "approved", by)
    said = f"approved by {by}: {verdict.reason}"
    return _switch(connection, serving, verdict.target, verdict.artifact_id, "promotion", by, said, verdict)


def _force(
    connection: Connection, serving: Serving, target: str, artifact: str, verdict: AnyRow | None, by: str
) -> str:
    if verdict is not None and verdict.approval == "waiting":
        approvals.answer(connection, verdict.id, "approved", by)
    known = f"said of it (v{verdict.id}): {verdict.answer}: {verdict.reason}" if verdict else "was never asked about it"
    return _switch(connection, serving, target, artifact, "forced", by, f"forced by {by}; the policy {known}", verdict)


def _switch(
    connection: Connection,
    serving: Serving,
    target: str,
    artifact: str,
    kind: str,
    by: str,
    reason: str,
    verdict: AnyRow | None,
) -> str:
    of = verdict.id if verdict else None
    row = serving.request(connection, target, artifact, kind=kind, by=by, cycle=None, reason=reason, verdict_id=of)
    changes = _changes(connection, target, artifact)
    return f"{target} is switched to {artifact}: Triton loads it as version {row.version} now{changes}"


def _changes(connection: Connection, target: str, artifact: str) -> str:
    """What clients meet: classes that come and go."""
    champion = targets.champion(connection, target)
    if champion is None:
        return ""
    classes = get(connection, schema.models, get(connection, schema.artifacts, artifact).model_id).classes
    lost = [name for name in champion.classes if name not in classes]
    new = [name for name in classes if name not in champion.classes]
    said = [f"{what} {_listed(names)}" for what, names in (("it does not know", lost), ("new:", new)) if names]
    return f"; {'; '.join(said)}" if said else ""


def _listed(names: Sequence[str]) -> str:
    """A few of them: a model may know a hundred thousand classes."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(name if len(name) <= LONGEST else f"{name[:LONGEST]}…" for name in names[:NAMED]) + more


def _check_servable(connection: Connection, serving: Serving, requirement: Requirement, artifact: str) -> None:
    """Raises UsageError where Triton could not serve it, or no client ask it."""
    target, stored = requirement.target, get(connection, schema.artifacts, artifact)
    model = get(connection, schema.models, stored.model_id)
    if (model.height, model.width) != (requirement.height, requirement.width):
        raise UsageError(
            f"{artifact} takes images of {model.height} x {model.width}, the clients of {target} send "
            f"{requirement.height} x {requirement.width}"
        )
    if targets.known(connection, requirement, artifact, serving.devices) is None:
        built = f"{stored.engine} {stored.precision}{f' for {stored.device}' if stored.device else ''}"
        raise UsageError(f"{artifact} ({built}) cannot run on {requirement.accelerator!r} here")
    if stored.gone is not None or find_damage(connection, serving.config.state, artifact):
        others = f"`relearn models` lists others, `relearn retrain {target}` makes a new one"
        raise UsageError(f"the folder of {artifact} is gone or damaged, so that it cannot be served: {others}")


def _check_quiet(connection: Connection, target: str) -> None:
    if row := _under_way(connection, target):
        kind = "forced promotion" if row.kind == "forced" else row.kind
        what = f"a {kind} of {row.artifact_id} to {target}, as version {row.version}, is under way"
        raise UsageError(f"{what}: ask again once it is over, or `relearn rollback {target}` goes back behind it")


def _under_way(connection: Connection, target: str) -> AnyRow | None:
    """The promotion that the target's clients are about to have."""
    mine = (promotions.c.target == target, promotions.c.state == "switching")
    return connection.execute(select(promotions).where(*mine)).first()


def find_artifact(connection: Connection, name: str) -> str:
    """The artifact whose id begins like this. Raises NotFound, UsageError where several do."""
    if not name:
        raise UsageError("which artifact? `relearn models` lists them")
    found = _beginning(connection, name)
    if name in found or len(found) == 1:
        return name if name in found else found[0]
    if found:
        raise UsageError(f"{name} is the beginning of several artifacts: {', '.join(sorted(found))}")
    raise NotFound(f"the journal has no artifact {name!r}; `relearn models` lists them")


def _beginning(connection: Connection, name: str) -> list[str]:
    ids: Sequence[str] = connection.execute(select(schema.artifacts.c.id)).scalars().all()
    return [id_ for id_ in ids if id_.startswith(name)]


def find_earlier(connection: Connection, target: str, name: str) -> str:
    """The artifact that a version number of the target, or the beginning of an id, names. Raises NotFound, UsageError.

    A short number is a version; one that could be both is said to be.
    """
    if not (name.isascii() and name.isdigit() and len(name) < 10):
        return find_artifact(connection, name)
    of = select(promotions).where(promotions.c.target == target).order_by(promotions.c.version)
    rows = {row.version: row for row in connection.execute(of)}
    ids = _beginning(connection, name) if len(name) >= SHORTEST else []
    row = rows.get(int(name))
    if row is None:
        if ids:
            return find_artifact(connection, name)
        served = ", ".join(str(version) for version, row in rows.items() if row.served is not None)
        raise NotFound(f"{target} has had no version {name}; it has served {served or 'none'}")
    if others := [id_ for id_ in ids if id_ != row.artifact_id]:
        both = f"{name} is version {name} of {target} ({row.artifact_id}) and the beginning of {', '.join(others)}"
        raise UsageError(f"{both}: write more of the id")
    if row.served is None:
        raise UsageError(f"version {name} of {target} was never served: {row.error or 'its switch is not over'}")
    return str(row.artifact_id)


def previous(connection: Connection, target: str) -> str:
    """The artifact that the target served before its champion; the champion, while another takes its place.

    Raises NotFound.
    """
    served = list(
        connection.execute(
            select(promotions.c.artifact_id)
            .where(promotions.c.target == target, promotions.c.served.is_not(None))
            .order_by(promotions.c.version.desc())
        ).scalars()
    )
    if served and _under_way(connection, target):
        return str(served[0])
    earlier = [artifact for artifact in served[1:] if artifact != served[0]]
    if not earlier:
        raise NotFound(f"{target} has served no other artifact before")
    return str(earlier[0])
