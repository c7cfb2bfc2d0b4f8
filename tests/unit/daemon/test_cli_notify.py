"""`relearn notify`: which entries are meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.cli_notify import choose
from daemon.config import load
from daemon.errors import UsageError


def test_all_entries_or_the_one_that_is_named(workspace: Path) -> None:
    config = load(workspace, ['notify=[{url = "json://127.0.0.1", name = "line"}, {url = "mailto://127.0.0.1"}]'])
    assert [entry.called for entry in choose(config, None)] == ["line", "mailto"]
    assert [entry.called for entry in choose(config, "mailto")] == ["mailto"]
    with pytest.raises(UsageError, match=r"no \[\[notify\]\] of the name 'lin'; did you mean 'line'\?"):
        choose(config, "lin")
    with pytest.raises(UsageError, match="there are: line, mailto"):
        choose(config, "xyzzy")


def test_without_an_entry_it_is_said(workspace: Path) -> None:
    with pytest.raises(UsageError, match="nobody is told of anything"):
        choose(load(workspace), None)
