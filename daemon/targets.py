"""What the journal knows of a target: its requirement, its champion, the candidates it could serve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, func, select

from daemon import measurements, schema, snapshot, standings
from daemon.variants import Devices, is_bound_elsewhere, join, runs_on
from deploy.artifact import ArtifactError
from deploy.repository import verify_model
from policies import suggest
from policies.constraints import infeasible, infeasible_accuracy
from policies.facts import Candidate, ClassCount, ClassTally, Requirement, from_dict


@dataclass(frozen=True, slots=True)
class Champion:
    """What a target serves."""

    promotion: int
    artifact: str
    version: int  # Triton's
    classes: tuple[str, ...]
    snapshot: str  # that its model was trained on
    server: str = ""  # the Triton that has it, by name; "": the first


def requirements(connection: Connection) -> dict[str, Requirement]:
    """The last valid requirement of each target whose constraint file is there, by name."""
    files = schema.constraint_files
    newest = select(func.max(files.c.id)).group_by(files.c.target)
    present = connection.execute(
        select(files.c.target).where(files.c.id.in_(newest), files.c.gone.is_(False))
    ).scalars()
    valid = select(func.max(files.c.id)).where(files.c.requirement.is_not(None)).group_by(files.c.target)
    rows = connection.execute(
        select(files.c.target, files.c.requirement)
        .where(files.c.id.in_(valid), files.c.target.in_(list(present)))
        .order_by(files.c.target)
    )
    return {target: from_dict(Requirement, plain) for target, plain in rows if plain is not None}


def unknown_classes(connection: Connection, requirement: Requirement) -> list[str]:
    """A sentence on each class that `recall_min` names and no labelled image is of: it can never be met.

    None before there are labelled images.
    """
    if not requirement.recall_min:
        return []
    known = standings.classes(connection)
    found = []
    for name in sorted(set(requirement.recall_min) - set(known)) if known else []:
        near = suggest.nearest(name, known)
        meant = f"; did you mean {near!r}?" if near else ""
        found.append(f"require.recall_min.{name}: no labelled image is of this class, so no model can meet it{meant}")
    return found


def champion(connection: Connection, target: str) -> Champion | None:
    """The champion of a target: what was last switched to and answered by Triton."""
    promotions, artifacts, models = schema.promotions, schema.artifacts, schema.models
    row = connection.execute(
        select(
            promotions.c.id,
            promotions.c.artifact_id,
            promotions.c.version,
            models.c.classes,
            models.c.snapshot_id,
            promotions.c.server,
        )
        .join(artifacts, artifacts.c.id == promotions.c.artifact_id)
        .join(models, models.c.id == artifacts.c.model_id)
        .where(promotions.c.target == target, promotions.c.state == "serving")
        .order_by(promotions.c.version.desc())
    ).first()
    return None if row is None else Champion(row[0], row[1], row[2], tuple(row[3]), row[4], row[5])


def anchor(connection: Connection, target: str) -> str | None:
    """The artifact that no later one may fall below by small steps: last promoted as better, or rolled back to.

    What the policy found better stays that when a person approved it. What was forced is no anchor, whatever a verdict
    said of it before: it was served against the policy's word.
    """
    promotions, verdicts = schema.promotions, schema.verdicts
    return connection.execute(
        select(promotions.c.artifact_id)
        .outerjoin(verdicts, verdicts.c.id == promotions.c.verdict_id)
        .where(
            promotions.c.target == target,
            promotions.c.served.is_not(None),
            (verdicts.c.better.is_(True) & (promotions.c.kind == "promotion")) | (promotions.c.kind == "rollback"),
        )
        .order_by(promotions.c.version.desc())
    ).scalar()


def candidates(
    connection: Connection, requirement: Requirement, classes: Iterable[str], devices: Devices
) -> list[Candidate]:
    """Artifacts in stock that the target could serve: its accelerator, its input size, and at least these classes.

    `measurement` is the newest at the requirement's batch size and concurrency on this machine, corrected.
    """
    needed = set(classes)
    found = _that_fit(connection, requirement, devices, schema.artifacts.c.gone.is_(None))
    return [candidate for candidate in found if needed <= set(candidate.classes)]


def _that_fit(
    connection: Connection, requirement: Requirement, devices: Devices, which: ColumnElement[bool]
) -> list[Candidate]:
    artifacts, models = schema.artifacts, schema.models
    size = (models.c.height == requirement.height, models.c.width == requirement.width)
    rows = connection.execute(
        select(
            artifacts.c.id,
            artifacts.c.artifact_mb,
            artifacts.c.engine,
            artifacts.c.precision,
            artifacts.c.device,
            artifacts.c.engine_version,
            artifacts.c.unverified,
            models.c.id.label("model"),
            models.c.architecture,
            models.c.snapshot_id,
            models.c.classes,
            models.c.tune_accuracy,
            models.c.adopted,
        )
        .join(models, models.c.id == artifacts.c.model_id)
        .where(which, *size)
        .order_by(artifacts.c.created)
    ).all()
    best = measurements.quiet(connection, devices.get("onnxruntime", ""), requirement.concurrency)
    return [
        Candidate(
            artifact=row.id,
            model=row.model,
            architecture=row.architecture,
            snapshot=row.snapshot_id,
            classes=tuple(row.classes),
            artifact_mb=row.artifact_mb,
            tune_accuracy=_tune_accuracy(connection, row.id, row.tune_accuracy),
            measurement=measurements.newest(connection, row.id, requirement, devices.get(row.engine, ""), best),
            variant=join(row.engine, row.precision),
            unverified=row.unverified,
            adopted=row.adopted,
        )
        for row in rows
        if runs_on(row.engine, row.device, requirement.accelerator) and not is_bound_elsewhere(row, devices)
    ]


def _tune_accuracy(connection: Connection, artifact: str, of_model: float | None) -> float | None:
    proofs = schema.proofs
    newest = connection.execute(
        select(proofs.c.tune_accuracy).where(proofs.c.artifact_id == artifact).order_by(proofs.c.id.desc())
    ).scalar()
    return of_model if newest is None else float(newest)


def known(connection: Connection, requirement: Requirement, artifact: str, devices: Devices) -> Candidate | None:
    """One artifact as a candidate, also where it has gone from the disk: what it answered still judges others.

    None where the target asks for another input size or accelerator.
    """
    found = _that_fit(connection, requirement, devices, schema.artifacts.c.id == artifact)
    return found[0] if found else None


def feasible(
    connection: Connection,
    requirement: Requirement,
    champion: Champion,
    judge: tuple[ClassCount, ...],
    *,
    devices: Devices,
    confidence: float,
) -> bool:
    """Whether the champion meets the constraints, as far as it is measured and proven on the judge."""
    candidate = known(connection, requirement, champion.artifact, devices)
    if candidate is None or infeasible(requirement, candidate):
        return False
    return not infeasible_accuracy(requirement, judge, confidence)


def has_model(connection: Connection, artifact: str) -> bool:
    """Whether the model of this artifact is in stock."""
    artifacts, models = schema.artifacts, schema.models
    there = (artifacts.c.id == artifact, models.c.gone.is_(None))
    model = select(models.c.id).join(artifacts, artifacts.c.model_id == models.c.id).where(*there)
    return connection.execute(model).first() is not None


def embedding_model(connection: Connection) -> str | None:
    """The model whose embedding tells about new images: that of the first target's champion that is in stock.

    One that was adopted may have a graph that shows none.
    """
    artifacts, models = schema.artifacts, schema.models
    for target in requirements(connection):
        if found := champion(connection, target):
            stored = connection.execute(
                select(models.c.id)
                .join(artifacts, artifacts.c.model_id == models.c.id)
                .where(artifacts.c.id == found.artifact, models.c.gone.is_(None), models.c.embeds)
            ).scalar()
            if stored is not None:
                return str(stored)
    return None


def is_beyond_repair(connection: Connection, champion: Champion, repository: Path, target: str) -> bool:
    """Whether nothing is left to serve it from: neither artifact, nor model, nor its version in Triton's folder.

    It stands in nobody's way then: a worse answer is better than none.
    """
    artifacts = schema.artifacts
    gone = connection.execute(select(artifacts.c.gone).where(artifacts.c.id == champion.artifact)).scalar()
    if gone is None or has_model(connection, champion.artifact):
        return False
    try:
        verify_model(repository, target, champion.version)
    except ArtifactError:
        return True
    return False


def unmeasured(connection: Connection, requirement: Requirement, champion: Champion, devices: Devices) -> bool:
    """Whether the champion is in stock, and was never measured as it is served now."""
    in_stock = candidates(connection, requirement, (), devices)
    mine = [c for c in in_stock if c.artifact == champion.artifact and not c.unverified]
    return any(c.measurement is None for c in mine)


@dataclass(frozen=True, slots=True)
class JudgeSet:
    """The judge samples of a snapshot: true class by hash."""

    truth: Mapping[bytes, str]

    def since(self, rows: snapshot.Rows | None) -> JudgeSet | None:
        """The samples that these rows, of an older snapshot, do not have; None where that one is not known."""
        return None if rows is None else JudgeSet({sha: name for sha, name in self.truth.items() if sha not in rows})

    def answers(self, connection: Connection, artifact: str) -> dict[bytes, str]:
        """What the artifact answered to them, by hash; a sample it was never asked about is missing."""
        table, samples = schema.answers, schema.samples
        rows = connection.execute(
            select(samples.c.sha256, table.c.predicted)
            .join(samples, samples.c.id == table.c.sample_id)
            .where(table.c.artifact_id == artifact)
        ).all()
        return {sha: predicted for sha, predicted in rows if sha in self.truth}

    def covered(self, connection: Connection, artifact: str) -> bool:
        return len(self.answers(connection, artifact)) == len(self.truth)

    def counts(self, connection: Connection, artifact: str, classes: Iterable[str]) -> tuple[ClassCount, ...]:
        """Samples and right answers of each of these classes, over those that were answered.

        An artifact is counted on the classes that it knows: one that lacks a new class is no worse on the others
        for that, and lets the challenger that knows it gain by it (policies/gains.py).
        """
        known = set(classes)
        answered = {s: name for s, name in self.answers(connection, artifact).items() if self.truth[s] in known}
        samples = Counter(self.truth[sample] for sample in answered)
        correct = Counter(name for sample, name in answered.items() if self.truth[sample] == name)
        return tuple(ClassCount(name, number, correct[name]) for name, number in sorted(samples.items()))

    def tallies(
        self, connection: Connection, challenger: str, champion: str, classes: Sequence[str]
    ) -> tuple[ClassTally, ...]:
        """The paired answers of two artifacts on the judge samples of these classes."""
        new, old = self.answers(connection, challenger), self.answers(connection, champion)
        cells: dict[str, Counter[tuple[bool, bool]]] = {name: Counter() for name in classes}
        for sample, name in self.truth.items():
            if name in cells and sample in new and sample in old:
                cells[name][old[sample] == name, new[sample] == name] += 1
        return tuple(
            ClassTally(name, cell[True, True], cell[True, False], cell[False, True], cell[False, False])
            for name, cell in sorted(cells.items())
        )


def judge_set(connection: Connection, rows: snapshot.Rows) -> JudgeSet:
    """The judge set of a snapshot, given its rows, without what was forgotten since."""
    forgotten = standings.forgotten(connection)
    return JudgeSet({sha: name for sha, name in rows.of_role("judge") if sha not in forgotten})
