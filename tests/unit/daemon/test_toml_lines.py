"""Where a key stands in a TOML text."""

from __future__ import annotations

import pytest

from daemon.toml_lines import line_of, nearest_line

TEXT = """\
version = 1
# epochs = 9
[train]   # a comment
epochs = 3
  batch_size=4
augment.flip = true

[require.recall_min]
"v1.2" = 0.9
'a b' = 0.8
[ policies . volume ]
new_samples = 5
[prefer]
minimize = "epochs = 1"
inline = { deep = { key = 1 } }
"""


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("version", 1),
        ("train", 3),
        ("train.epochs", 4),
        ("train.batch_size", 5),
        ("train.augment.flip", 6),
        ("require.recall_min", 8),
        ("require.recall_min.v1.2", 9),
        ("require.recall_min.a b", 10),
        ("policies.volume", 11),
        ("policies.volume.new_samples", 12),
        ("prefer.minimize", 14),
        ("epochs", None),
        ("prefer.epochs", None),
        ("train.version", None),
        ("", None),
    ],
)
def test_line_of(key: str, line: int | None) -> None:
    assert line_of(TEXT, key) == line


@pytest.mark.parametrize(
    ("key", "line"),
    [("train.epochs", 4), ("train.missing", 3), ("prefer.inline.deep.key", 15), ("nowhere.at.all", 1), ("", 1)],
)
def test_nearest_line(key: str, line: int) -> None:
    assert nearest_line(TEXT, key) == line
