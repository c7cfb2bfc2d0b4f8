"""Views drawn for people, with rich."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from daemon import render_verdicts

View = Mapping[str, Any]
# What a child may say with its progress, in the order in which it is shown.
PROGRESS: dict[str, Callable[[float], str]] = {
    "loss": lambda value: f"loss {value:.3f}",
    "tune_accuracy": lambda value: f"{percent(value)} right on tune",
    "images_per_second": lambda value: f"{value:,.0f} images/s",
    "seconds_left": lambda value: f"{duration(value)} left",
}
DATA = {  # what of the data is in no class's counts, or not for training
    "unlabelled": "unlabelled",
    "in_conflict": "in conflict",
    "held": "held",
    "flagged": "flagged",
    "rejected": "rejected",
}
LEAST_FREE_MB = 100.0
OUTCOME_STYLE = {"promoted": "green", "kept": "cyan", "failed": "red", "violated": "yellow", "ask": "magenta"}


def status(view: View) -> RenderableType:
    state = Text("running", "green") if view["running"] else Text("no daemon runs (relearn run)", "yellow")
    parts: list[RenderableType] = [Text.assemble(f"{view['workspace']}: ", state)]
    parts += [Text(f"PAUSED: {said}; `relearn resume` ends it", "magenta") for said in view["paused"]]
    if (configuration := view["configuration"])["error"]:
        stand = "the settings before stand" if view["running"] else "no daemon starts with it"
        parts.append(Text(f"REFUSED: {configuration['error']}\n{stand}", "red"))
    elif configuration["edited"] and view["running"]:
        parts.append(Text("config.toml was edited since the daemon read it: `relearn reload`", "yellow"))
    if view["disk_free_mb"] is not None and view["disk_free_mb"] < LEAST_FREE_MB:
        full = (
            f"LOW: {view['disk_free_mb']:.0f} MB are left on the disk of the state folder, below {LEAST_FREE_MB:.0f}; "
            "where nothing can be written the daemon waits for room, and goes on then"
        )
        parts.append(Text(full, "red"))
    parts += filter(None, (_server(server, alone=len(view["servers"]) == 1) for server in view["servers"]))
    parts += [_target(target, view["servers"]) for target in view["targets"]] or [
        Text("no constraint file was read yet")
    ]
    if view["reading"]:
        parts.append(_reading(view["reading"]))
    parts.append(working(view["working"]))
    parts.append(_data(view["data"]))
    parts += map(_drift, view["drift"])
    if decision := view["last_decision"]:
        parts.append(Text(f"last decision d{decision['id']}: {decision['action']}: {decision['reason']}"))
    return Group(*parts)


def _server(view: View, *, alone: bool) -> Text | None:
    """A line on a Triton; on one that is alone and as it should be there is nothing to say."""
    if view["not_asked"]:
        return _not_asked(view)
    ready = view["answers"] and view["state"] in ("ready", None)
    if alone and (ready or view["state"] in ("away", None)):  # of one that is away its targets tell
        return None
    version = f", version {view['version']}" if view["version"] else ""
    said = f"Triton {view['name']} at {view['url']}: "
    if ready:
        since = f" since {clock(view['since'])}" if view["since"] else ""
        return Text(f"{said}ready{version}{since}")
    trouble = view["trouble"] if view["state"] in ("unfit", "away") else None
    since = f" (since {clock(view['since'])})" if trouble else ""
    how = "UNFIT" if view["answers"] and view["state"] == "unfit" else "AWAY"
    return Text(f"{said}{how}: {trouble or 'it does not answer'}{since}", "red")


def _away(view: View, triton: View) -> str | None:
    """Why nobody is answered by a target's champion, as far as its Triton could be asked."""
    if triton["answers"] is False:
        return f"no Triton answers at {triton['url']}; it is served once one does"
    if triton["answers"] and not triton["ready"].get(view["target"]):
        return f"Triton has not loaded version {view['champion']['version']}"
    return None


def _not_asked(view: View) -> Text:
    """Of a Triton that cannot be asked from here the daemon knows more."""
    since = f" since {clock(view['since'])}" if view["since"] else ""
    trouble = f": {view['trouble']}" if view["trouble"] else ""
    noted = f"the daemon found it {view['state']}{since}{trouble}" if view["state"] else "no daemon has found it yet"
    style = "yellow" if view["state"] in ("ready", None) else "red"
    return Text(f"Triton {view['name']} at {view['url']}: not asked from here: {view['not_asked']}; {noted}", style)


def _target(view: View, servers: Sequence[View]) -> RenderableType:
    lines = [Text(view["target"], "bold")]
    if champion := view["champion"]:
        triton = next((each for each in servers if each["name"] == champion["server"]), servers[0])
        by = f" at {triton['name']}" if len(servers) > 1 else ""
        lines.append(Text(f"  serves version {champion['version']}{by}: {_candidate(champion)}"))
        if away := _away(view, triton):
            lines.append(Text(f"  AWAY: {away}", "red"))
        if champion["gone"] is not None:
            lines.append(Text("  LOST: its artifact is gone from the disk, and is made again", "red"))
        if champion["trouble"]:
            lines.append(Text(f"  TROUBLE: {champion['trouble']}", "red"))
        lines.append(Text(f"  since {clock(champion['served_since'])}: {champion['reason']}"))
    else:
        lines.append(Text("  serves nothing yet"))
    if switching := view["switching"]:
        far = switching["error"] or (f"after {switching['step']}" if switching["step"] else "it begins")
        kind = "forced promotion" if switching["kind"] == "forced" else switching["kind"]
        lines.append(Text(f"  {kind} to version {switching['version']} is under way: {far}", "cyan"))
    if failed := view["not_served"]:
        asked = "forced" if failed["kind"] == "forced" else "gone back to"
        what = f"version {failed['version']} ({failed['artifact_id']}), {asked} by {failed['by']}, is not served"
        lines.append(Text(f"  FAILED: {what}: {failed['error']}", "red"))
    if view["asks"]:
        lines += _asks(view["target"], view["asks"])
    elif (last := view["last_cycle"]) and last["outcome"] in ("kept", "failed"):
        lines.append(Text(f"  last cycle c{last['id']}: {last['outcome']}: {last['reason']}"))
    lines += [Text(f"  not brought back: {said}") for said in dict.fromkeys(view["declined"].values())]
    if view["violated"]:
        lines.append(Text(f"  VIOLATED: {view['violated']}", "yellow"))
    lines += [Text(f"  UNKNOWN: {unknown}", "yellow") for unknown in view["unknown_classes"]]
    if view["error"]:
        stand = "\n  the last valid constraints stand" if view["requirement"] else ""
        lines.append(Text(f"  {view['error']}{stand}", "red"))
    if view["removed"]:
        lines.append(Text("  its constraint file is gone: it is served as it is, and not managed", "yellow"))
    return Group(*lines)


def _asks(target: str, asks: View) -> list[Text]:
    """What waits for a person, since when, and what to type."""
    would = "would be promoted" if asks["answer"] == "promote" else "is for you to decide"
    since = f"{asks['artifact']} {would} (v{asks['verdict']}, since {clock(asks['since'])})"
    how = f"`relearn approve {target}` promotes it, `relearn refuse {target}` does not"
    if asks["void"]:
        how = f"too late: {asks['void']}; `relearn promote {target} {asks['artifact']}` has it judged anew"
    return [Text(f"  ASKS YOU: {since}: {asks['reason']}", "magenta"), Text(f"  {how}", "magenta")]


def _candidate(view: View) -> str:
    figures = view["measurement"]
    speed = f", p95 {figures['latency_p95_ms']:.2f} ms, {figures['memory_mb']:.0f} MB" if figures else ""
    return (
        f"{view['architecture']} ({view['artifact'][:8]}), {len(view['classes'])} classes, "
        f"judge {percent(view['judge_accuracy'])}{speed}, {view['artifact_mb']:.2f} MB on disk"
    )


def _reading(view: View) -> Text:
    said = f"drop {view['drop']}: "
    if view["state"] == "matching":
        return Text(f"{said}near-duplicates of its images are looked for", "bold cyan")
    said += f"{view['done']:,} of {view['files']:,} files read"
    if view["done"]:
        said += f", {view['speed']:,.0f}/s, about {view['seconds_left']:,.0f} s left"
    return Text(said, "bold cyan")


def working(view: View | None) -> RenderableType:
    if view is None:
        return Text("idle: waits for images, an edit or a timer")
    what = f"{view.get('step') or ''} {view['stage'] or ''}".strip() or "between two steps"
    line = f"cycle c{view['cycle']} for {view['target']}: {what}"
    if said := view["progress"]:
        line += f", {said['unit']} {said['done']:.4g} of {said['total']:.4g}"
        line += "".join(f", {word(said[key])}" for key, word in PROGRESS.items() if said.get(key) is not None)
    if words := view.get("last_words"):
        line += f" ({words.strip().splitlines()[-1]})"
    return Text(f"{line}; rests: {view['paused']}", "magenta") if view["paused"] else Text(line, "bold cyan")


def _data(view: View) -> RenderableType:
    table = Table(title=None, box=None, pad_edge=False)
    for column in ("class", "train", "tune", "judge"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, counts in view["classes"].items():
        _row(table, name, *(str(counts.get(role, 0)) for role in ("train", "tune", "judge")))
    rest = ", ".join(f"{words} {view[key]}" for key, words in DATA.items())
    return Group(table, Text(rest))


def _drift(check: View) -> RenderableType:
    if check["alarm"]:
        return Text(f"DRIFT: {check['reason']} ({clock(check['at'])})", "yellow")
    return Text(f"no drift: {check['reason']} ({clock(check['at'])})")


def watch(console: Console, view: Callable[[], View]) -> None:
    """Shows the status until Ctrl-C, drawn anew twice a second."""
    with Live(status(view()), console=console, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(0.5)
                live.update(status(view()), refresh=True)
        except KeyboardInterrupt:
            return


def flags(view: View) -> RenderableType:
    table = Table("flag", "file", "given", "suggested", Column("score", justify="right"), "drop")
    for flag in view["flags"]:
        drop = str(flag["drop"])
        _row(table, str(flag["id"]), flag["file"], flag["given"], flag["suggested"], f"{flag['score']:.2g}", drop)
    held = [Text(f"HELD: {drop['reason']}; `relearn flags release {drop['drop']}`", "yellow") for drop in view["held"]]
    answers = "`relearn flags accept|keep|relabel FLAG… [--to CLASS]` answers, `--pair GIVEN:SUGGESTED` in bulk"
    return Group(table, *held, Text(f"{len(view['flags']):,} open; {answers}"))


def conflicts(view: Sequence[View]) -> RenderableType:
    table = Table("image", "classes", "files")
    for image in view:
        _row(table, image["sha256"][:12], ", ".join(image["classes"]), "\n".join(image["files"]))
    how = "`relearn conflicts settle IMAGE… --to CLASS` settles, `--pair CLASS:CLASS` in bulk"
    return Group(table, Text(f"{len(view):,} in conflict; {how}"))


def benchmarked(row: View) -> str:
    """One row, in a line."""
    if row["error"]:
        return f"{row['architecture']}: {row['error']}"
    return f"{row['architecture']}: p95 {row['latency_p95_ms']:.3g} ms, {row['throughput']:,.0f} images/s"


def benchmarks(view: Sequence[View]) -> RenderableType:
    """The fastest first, then what failed."""
    columns = ("p95 ms", "img/s", "memory MB", "MB", "parameters", "why not")
    table = Table(Column("architecture", no_wrap=True), *columns)
    for row in sorted(view, key=lambda row: (row["error"] is not None, row.get("latency_p95_ms") or 0.0)):
        keys = ("latency_p95_ms", "throughput", "memory_mb", "artifact_mb", "parameters")
        _row(table, row["architecture"], *(number(row.get(key)) for key in keys), row["error"] or "")
    return table


def audit(view: View) -> RenderableType:
    rate = view["noise_rate"]
    table = Table("index", "given", "suggested", Column("score", justify="right"))
    for flag in view["flagged"]:
        _row(table, str(flag["index"]), str(flag["given"]), str(flag["suggested"]), f"{flag['score']:.3g}")
    wrong = f"{percent(rate['estimate'])} of the labels are estimated to be wrong"
    between = f"{percent(rate['low'])} to {percent(rate['high'])} at 95% confidence"
    return Group(table, Text(f"{len(view['flagged']):,} flagged; {wrong} ({between})"))


def cycles(view: Sequence[View]) -> RenderableType:
    table = Table("cycle", "target", "began", "because of", "outcome", "reason")
    for cycle in view:
        outcome = cycle["outcome"] or cycle["state"]
        _row(
            table,
            f"c{cycle['id']} (d{cycle['decision']})",
            cycle["target"],
            clock(cycle["started"]),
            cycle["trigger"],
            Text(_came_to(cycle), OUTCOME_STYLE.get(outcome, "")),
            cycle["reason"] or "",
        )
    return table


def _came_to(cycle: View) -> str:
    """The outcome, what a person said to it, and the versions that Triton served of it."""
    said = [verdict["approval"] for verdict in cycle["verdicts"] if verdict["approval"]]
    versions = [f"version {row['version']}" for row in cycle["promotions"] if row["served"] is not None]
    return ", ".join([cycle["outcome"] or cycle["state"], *said, *versions])


def models(view: Sequence[View]) -> RenderableType:
    columns = ("cl.", "tune", "judge", "p95 ms", "img/s", "MB", "memory")
    table = Table(
        Column("artifact, of what, built by", overflow="fold", min_width=20),
        *(Column(name, justify="right", no_wrap=True) for name in columns),
        "serves",
        box=None,
        pad_edge=False,
    )
    for model in view:
        figures = model["measurement"] or {}
        _row(
            table,
            f"{model['artifact']}\n{model['architecture']}\n{model['engine']} {model['precision']}"
            + (f"\nadopted by {model['adopted']}" if model["adopted"] else ""),
            str(len(model["classes"])),
            percent(model["tune_accuracy"]),
            percent(model["judge_accuracy"]),
            number(figures.get("latency_p95_ms")),
            number(figures.get("throughput")),
            number(model["artifact_mb"]),
            number(figures.get("memory_mb")),
            model["serves"] or ("gone from the disk" if model["gone"] else "unverified" if model["unverified"] else ""),
        )
    return table


def decisions(view: Sequence[View]) -> RenderableType:
    table = Table("decision", "when", "target", "because", "action", "reason")
    for row in view:
        because = row["event"]
        _row(table, f"d{row['id']}", clock(row["at"]), row["target"], because, row["action"], row["reason"])
    return table


def rejected(view: Sequence[View]) -> RenderableType:
    table = Table(Column("file", overflow="fold"), "reason", "seen")
    for row in view:
        _row(table, row["file"], row["reason"], clock(row["at"]))
    return table if view else Text("no file was rejected")


def explained(view: View) -> RenderableType:
    """The sentence first, then class by class where there is a table, then all that it rests on."""
    title = Text(f"{view.get('action') or view.get('answer') or view.get('outcome') or 'running'}: ", "bold")
    parts: list[RenderableType] = [title + Text(str(view.get("reason") or ""))]
    if findings := view.get("findings"):
        parts += [Text(f"  {'●' if f['fired'] else '○'} {f['policy']}: {f['reason']}") for f in findings]
    for verdict in view.get("verdicts", ()):
        parts += [Text(f"verdict v{verdict['id']} on {verdict['artifact']}: {verdict['reason']}")]
        parts += [render_verdicts.by_class(verdict["table"])] if verdict["table"] else []
        parts += render_verdicts.said_by_people(verdict)
    if rows := view.get("table"):
        parts.append(render_verdicts.by_class(rows))
    parts += render_verdicts.said_by_people(view)
    skip = ("reason", "findings", "table", "verdicts", "action", "answer", "answered", "answered_by", "because")
    parts += [Text(line) for line in _outline({key: value for key, value in view.items() if key not in skip}, "")]
    return Group(*parts)


def _outline(value: Mapping[str, Any] | Sequence[Any], indent: str) -> Iterator[str]:
    """Keys and values, a line each, what lies in one of them below it and further in."""
    named = isinstance(value, Mapping)
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value, 1):
        start = f"{indent}{key}:" if named else f"{indent}{key}."
        if not _is_nested(inner) or (not isinstance(inner, Mapping) and not any(map(_is_nested, inner))):
            yield f"{start} {_plain(inner)}"
        else:
            yield start
            yield from _outline(inner, f"{indent}  ")


def _is_nested(value: Any) -> bool:
    return bool(value) and isinstance(value, Mapping | list | tuple)


def _plain(value: Any) -> str:
    if isinstance(value, float) and 1e9 < value < 1e10:  # a moment: no other number that is shown is that large
        return clock(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None or value == {} else str(value)


def checked(view: View) -> RenderableType:
    table = Table("setting", "value", "from")
    for row in view["settings"]:
        style = "dim" if row["from"] == "default" else ""
        _row(table, row["key"], str(row["value"]), row["from"], style=style)
    targets = [
        Text(f"{name}: " + ", ".join(f"{k}={v}" for k, v in requirement.items() if v not in (None, {}, name)))
        for name, requirement in view["requirements"].items()
    ]
    problems = [Text(problem, "red") for problem in view["errors"]] or [Text("no errors", "green")]
    remarks = [Text(remark, "yellow") for remark in view["remarks"]]
    return Group(table, *targets, *remarks, *problems)


def answer(view: View) -> RenderableType:
    return Text(view["answer"] or view["state"], "green" if view["state"] in ("done", "owed", "working") else "red")


def _row(table: Table, *cells: str | Text, style: str = "") -> None:
    """A row of text as it is: a class or a file may be named like a style."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), style=style)


def clock(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S") if seconds else ""


def duration(seconds: float) -> str:
    """As a person says it: 8 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
