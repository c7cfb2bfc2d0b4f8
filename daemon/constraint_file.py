"""A target's constraint file: read and checked; an invalid one changes nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from sqlalchemy import Connection, func, null, select

from daemon.errors import ConfigError
from daemon.journal import AnyRow, add, get, now
from daemon.schema import constraint_files
from daemon.text_file import parse_toml, read_text
from daemon.toml_lines import nearest_line
from daemon.walk import text
from policies.constraints import contradictions
from policies.facts import Requirement, to_dict
from policies.suggest import nearest

ACCELERATOR = re.compile(r"^(cpu|cuda|sm\d{2,3})$")
TARGET_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")


def _refuse_bool(value: Any) -> Any:
    """`true` equals 1, for Python."""
    return str(value) if isinstance(value, bool) else value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Accelerator(_Section):
    kind: str = "cpu"

    @field_validator("kind")
    @classmethod
    def _must_be_served(cls, kind: str) -> str:
        if not ACCELERATOR.match(kind):
            raise ValueError(
                'nothing is built for it; write "cpu", "cuda", or one kind of GPU by its compute capability, as "sm89"'
            )
        return kind


class _Input(_Section):
    height: Annotated[int, Field(ge=8, le=4096)]
    width: Annotated[int, Field(ge=8, le=4096)]


class _Require(_Section):  # ranges: policies/constraints.py `contradictions`
    batch_size: int = 1
    concurrency: int = 1
    latency_p95_ms: float | None = None
    throughput_min: float | None = None
    memory_max_mb: float | None = None
    gpu_memory_max_mb: float | None = None
    artifact_max_mb: float | None = None
    accuracy_min: float | None = None
    recall_min: dict[str, float] = {}
    allow_unverified: bool = False


class _Prefer(_Section):
    maximize: Literal["accuracy", "throughput"] | None = None
    minimize: Literal["latency_p95_ms", "memory_mb", "artifact_mb"] | None = None


class _Serve(_Section):
    triton: str = ""


class _ConstraintFile(_Section):
    version: Annotated[Literal[1], BeforeValidator(_refuse_bool)]
    accelerator: _Accelerator = _Accelerator()
    input: _Input
    require: _Require = _Require()
    prefer: _Prefer = _Prefer()
    serve: _Serve = _Serve()


_KEYS = {
    "accelerator": set(_Accelerator.model_fields),
    "input": set(_Input.model_fields),
    "require": set(_Require.model_fields),
    "prefer": set(_Prefer.model_fields),
    "serve": set(_Serve.model_fields),
}


def target_of(file: Path) -> str | None:
    """The target that a path in the constraints folder speaks of; None for editors' leavings and other files."""
    if file.suffix != ".toml" or file.name.startswith((".", "#")):
        return None
    return file.stem


def read(file: Path, servers: Sequence[str] = ()) -> Requirement:
    """The requirement that a constraint file asks for. `servers`: the names in [[triton]]; none are not looked at.

    Raises ConfigError with a line for each thing wrong: file, line, key, and what to do.
    """
    try:
        return parse(read_text(file), file, servers)
    except FileNotFoundError:
        raise ConfigError(f"{file}: is not there") from None


def parse(content: str, file: Path, servers: Sequence[str] = ()) -> Requirement:
    """As `read`, of a text already read; `file` names it in errors and gives the target's name."""
    if not TARGET_NAME.match(file.stem) or file.stem.endswith("-candidate"):
        raise ConfigError(
            f"{text(str(file))}: the file's name is the Triton model's: letters, digits, - and _ alone, "
            "and not ending in -candidate; rename the file"
        )
    plain = parse_toml(content, file)
    try:
        parsed = _ConstraintFile.model_validate(plain)
    except ValidationError as error:
        lines = [_explain(problem, file, content) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from None
    if parsed.prefer.maximize and parsed.prefer.minimize:
        where = f"{file}:{nearest_line(content, 'prefer.minimize')}"
        raise ConfigError(f"{where}: prefer.minimize: prefer one thing: maximize or minimize, not both")
    if servers and (said := _wrong_server(parsed.serve.triton, servers)):
        raise ConfigError(f"{file}:{nearest_line(content, 'serve.triton')}: serve.triton {said}")
    requirement = _requirement(parsed, file.stem)
    if wrong := contradictions(requirement):
        # each sentence opens with its key
        raise ConfigError("\n".join(f"{file}:{nearest_line(content, said.split(' is ')[0])}: {said}" for said in wrong))
    return requirement


def _wrong_server(name: str, servers: Sequence[str]) -> str | None:
    known = f"the servers of config.toml are {', '.join(servers)}"
    if name in servers or (not name and len(servers) == 1):
        return None
    return f"is {name!r}, which is none of them: {known}" if name else f"is missing: say which serves it; {known}"


def _requirement(parsed: _ConstraintFile, target: str) -> Requirement:
    return Requirement(
        target=target,
        accelerator=parsed.accelerator.kind,
        height=parsed.input.height,
        width=parsed.input.width,
        prefer=parsed.prefer.minimize or parsed.prefer.maximize or "accuracy",
        server=parsed.serve.triton,
        **parsed.require.model_dump(),
    )


def _explain(problem: Any, file: Path, content: str) -> str:
    parts = [str(part) for part in problem["loc"]]
    key = ".".join(parts)
    line = nearest_line(content, key)
    if problem["type"] == "extra_forbidden":
        known = {f"{section}.{name}" for section, names in _KEYS.items() for name in names}
        guess = nearest(key, known | set(_KEYS)) or nearest(
            parts[-1], {name for names in _KEYS.values() for name in names}
        )
        return f"{file}:{line}: unknown key {key!r}" + (f"; did you mean {guess!r}?" if guess else "")
    if problem["type"] == "missing":
        return f"{file}:{line}: {key} is missing: add it"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{file}:{line}: {key}: {message} (is {problem.get('input')!r})"


def take_in(connection: Connection, folder: Path, servers: Sequence[str] = ()) -> list[AnyRow]:
    """Compares the constraint files with the journal; each new content becomes a row. Returns the new rows.

    An invalid content is a row with its error and no requirement: the last valid one stands. A file that is gone
    leaves its target as it is served, and unmanaged.
    """
    present = {text(target): file for file in sorted(folder.glob("*.toml")) if (target := target_of(file))}
    known = _newest(connection)
    new = []
    for target, file in present.items():
        content, requirement, error = _attempt(file, servers)
        row = known.get(target)
        if row is None or row.gone or row.text != content or row.error != error:
            new.append(
                add(
                    connection,
                    constraint_files,
                    target=target,
                    at=now(),
                    text=content,
                    requirement=to_dict(requirement) if requirement else null(),  # None would be JSON's null: a value
                    error=error,
                )
            )
    for target, row in known.items():
        if target not in present and not row.gone:
            values = {"target": target, "at": now(), "text": "", "gone": True}
            new.append(add(connection, constraint_files, **values))
    return [get(connection, constraint_files, id_) for id_ in new]


def _newest(connection: Connection) -> dict[str, AnyRow]:
    newest = select(func.max(constraint_files.c.id)).group_by(constraint_files.c.target)
    rows = connection.execute(select(constraint_files).where(constraint_files.c.id.in_(newest)))
    return {row.target: row for row in rows}


def _attempt(file: Path, servers: Sequence[str]) -> tuple[str, Requirement | None, str | None]:
    content = ""
    try:
        content = read_text(file)
        return content, parse(content, file, servers), None
    except FileNotFoundError:
        return content, None, f"{text(str(file))}: is a link to nothing"
    except ConfigError as error:
        return content, None, str(error).encode("utf-8", "backslashreplace").decode()
