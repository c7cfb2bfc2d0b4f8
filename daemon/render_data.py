"""`relearn data`, drawn for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from daemon.render import clock

View = dict[str, Any]


def report(view: View) -> RenderableType:
    parts: list[RenderableType] = [_classes(view["classes"]), Text(), _folders(view["folders"])]
    if view["drops"]:
        parts += [Text(), _drops(view["drops"])]
    parts.append(Text())
    if view["held"]:
        parts.append(Text(f"{view['held']:,} images are held until a person releases them: `relearn flags`", "yellow"))
    if view["in_conflict"]:
        said = f"{view['in_conflict']:,} images stand in two classes at once, and are used nowhere: `relearn conflicts`"
        parts.append(Text(said, "yellow"))
    if near := view["near_two_roles"]:
        parts.append(
            Text(f"{len(near):,} images are near-duplicates of images in two roles, and are used nowhere:", "yellow")
        )
        parts += [Text(f"  {row['file']}: near to {_twins(row)}") for row in near[:20]]
    if view["first_frame_alone"]:
        parts.append(Text(f"{view['first_frame_alone']:,} images are animated or have pages: the first alone counts"))
    said = f"{view['unlabelled']:,} unlabelled, {view['flagged']:,} flagged, {view['rejected']:,} files rejected"
    parts.append(Text(f"{said}: `relearn rejected`" if view["rejected"] else said))
    return Group(*parts)


def _classes(rows: list[View]) -> Table:
    table = Table("class", *(Column(name, justify="right") for name in ("train", "tune", "judge")), "can be judged")
    for row in rows:
        fall = row["smallest_fall"]
        said = "too small: no fall could be shown" if fall is None else f"a fall of about {100 * fall:.0f} points"
        table.add_row(Text(row["class"]), *(f"{row[role]:,}" for role in ("train", "tune", "judge")), said)
    return table


def _folders(rows: list[View]) -> Table:
    columns = (Column(name, justify="right") for name in ("files", "unlabelled", "rejected"))
    table = Table("folder", "labels by", *columns)
    for row in rows:
        table.add_row(
            Text(row["folder"]), _source(row), *(f"{row[name]:,}" for name in ("files", "unlabelled", "rejected"))
        )
    return table


def _source(row: View) -> Text:
    manifest = row.get("manifest")
    if manifest is None:
        return Text("their folders" if row["labels"] == "folders" else "nobody")
    if manifest["rows"] is None:
        return Text(f"{manifest['file']}, not there yet")
    rest = f"{manifest['waiting']:,} wait for their image, {manifest['refused']:,} refused"
    return Text(f"{manifest['file']}: {manifest['rows']:,} rows, {rest}")


def _drops(rows: list[View]) -> Table:
    columns = (Column(name, justify="right") for name in ("new", "relabelled", "gone", "rejected"))
    table = Table("drop", "at", "folder", "state", *columns)
    for row in rows:
        numbers = (f"{row[name]:,}" for name in ("new", "relabelled", "gone", "rejected"))
        table.add_row(str(row["drop"]), clock(row["at"]), Text(Path(row["folder"]).name), row["state"], *numbers)
    return table


def _twins(row: View) -> str:
    return ", ".join(f"{twin['sha256'][:12]} ({twin['role'] or 'no role'})" for twin in row["near"])


def snapshot(view: View) -> RenderableType:
    table = Table("class", *(Column(name, justify="right") for name in ("train", "tune", "judge")))
    for row in view["classes"]:
        table.add_row(Text(row["class"]), *(f"{row[role]:,}" for role in ("train", "tune", "judge")))
    return Group(table, Text(f"snapshot {view['snapshot']}: {view['rows']:,} images"))


def difference(view: View) -> RenderableType:
    columns = (Column(name, justify="right") for name in ("added", "removed", "relabelled to", "relabelled from"))
    table = Table("class", *columns)
    for row in view["by_class"]:
        names = ("added", "removed", "relabelled_to", "relabelled_from")
        table.add_row(Text(row["class"]), *(f"{row[name]:,}" for name in names))
    counts = view["counts"]
    changes = ", ".join(f"{counts[name]:,} {name}" for name in ("added", "removed", "relabelled"))
    said = [
        f"{view['before']} has {counts['before']:,} images, {view['after']} has {counts['after']:,}: {changes}",
    ]
    for key, words in (("classes_added", "new classes"), ("classes_removed", "classes that are gone")):
        if view[key]:
            said.append(f"{words}: {', '.join(view[key])}")
    return Group(table, *(Text(line) for line in said), Text("--json lists each image"))
