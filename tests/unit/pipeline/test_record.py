"""What a checkpoint tells of a training, and what counts as none."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.record import Record, read_checkpoint
from pipeline.run_folder import RunFolder


class Touch:
    """Pickled: code that writes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_no_checkpoint_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_checkpoint(tmp_path / "last.ckpt") is None
    assert capsys.readouterr().err == ""


def test_the_state_of_a_checkpoint_is_read(tmp_path: Path) -> None:
    state = {"epochs": [{"epoch": 1}], "best_epoch": 1, "best_loss": float("inf")}
    torch.save({"callbacks": {"Record": state}}, tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt") == state


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "other"])
def test_a_damaged_checkpoint_is_none_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    file = tmp_path / "last.ckpt"
    torch.save({"callbacks": {}, "more": torch.zeros(1000)}, file)
    if kind != "other":
        file.write_bytes({"empty": b"", "text": b"text", "cut": file.read_bytes()[:2000]}[kind])
    assert read_checkpoint(file) is None
    said = capsys.readouterr().err
    assert str(file) in said and "starting anew" in said


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, zipped: bool) -> None:
    file, touched = tmp_path / "last.ckpt", tmp_path / "touched"
    content = {"callbacks": {"Record": Touch(touched)}}
    if zipped:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=2))
    assert read_checkpoint(file) is None
    assert not touched.exists()


@pytest.mark.parametrize(
    ("patience", "epochs", "best", "stopped"),
    [(0, 9, 1, False), (3, 3, 1, False), (3, 4, 1, True), (3, 9, 1, True), (3, 9, 9, False), (1, 2, 1, True)],
)
def test_patience_counts_the_epochs_since_the_best(
    tmp_path: Path, said: Any, patience: int, epochs: int, best: int, stopped: bool
) -> None:
    record = Record(RunFolder(tmp_path), 1, patience, said, list)
    record.load_state_dict({"epochs": [{}] * epochs, "best_epoch": best, "best_loss": 1.0})
    assert record.stopped_early is stopped


def test_its_state_comes_back_and_tells_where_the_attempt_began(tmp_path: Path, said: Any) -> None:
    one, two = Record(RunFolder(tmp_path), 1, 0, said, list), Record(RunFolder(tmp_path), 2, 0, said, list)
    one.epochs, one.best_epoch, one.best_loss = [{"epoch": 1}, {"epoch": 2}], 2, 0.5
    two.load_state_dict(one.state_dict())
    assert (two.epochs, two.best_epoch, two.best_loss, two.first) == (one.epochs, 2, 0.5, 2)
