"""Kept embeddings are found again: in chunks, in order, after a kill, and after some of them were erased."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.erase import erase_embeddings
from pipeline import embedding_cache
from pipeline.embedding_cache import Cache


def shas(*numbers: int) -> list[bytes]:
    return [hashlib.sha256(str(number).encode()).digest() for number in numbers]


def values(numbers: Sequence[int]) -> Any:
    """An embedding that says whose it is."""
    return np.repeat(np.array(numbers, np.float32)[:, None], 3, axis=1)


def fill(folder: Path, *chunks: Sequence[int]) -> None:
    for numbers in chunks:
        Cache(folder).add(shas(*numbers), values(numbers))


def taken(folder: Path, *numbers: int) -> list[float]:
    cache = Cache(folder)
    return cache.take(cache.find(shas(*numbers)))[:, 0].tolist()


def indices(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("places*"))


def test_what_is_asked_for_comes_in_its_order(tmp_path: Path) -> None:
    fill(tmp_path, [1, 2, 3], [4], [5, 6])
    assert taken(tmp_path, 6, 1, 4, 6) == [6, 1, 4, 6]
    places = Cache(tmp_path).find(shas(2, 99))
    assert places.tolist() == [[1, 1], [-1, -1]]
    assert Cache(tmp_path).take(places).tolist() == [[2.0] * 3, [0.0] * 3]
    assert Cache(tmp_path).take(Cache(tmp_path).find([])).shape == (0, 0)
    assert indices(tmp_path) == []  # so few are looked through


@pytest.fixture
def ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four chunks, as an older version left them, three of which are put in order at the first question."""
    monkeypatch.setattr(embedding_cache, "CHUNKS", 2)
    folder = tmp_path / "model"
    fill(folder, [1, 2, 3], [4], [5, 6])
    assert taken(folder, 3) == [3]
    assert indices(folder) == ["places.000003.npy"]
    fill(folder, [7])
    return folder


def test_many_chunks_are_put_in_order_once(ordered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda file, **how: read.append(Path(file).name) or load(file, **how))
    assert Cache(ordered).find(shas(5)).tolist() == [[3, 0]]
    assert sorted(set(read)) == ["000003.samples.npy", "000004.samples.npy", "places.000003.npy"]
    fill(ordered, [8], [9])
    assert taken(ordered, 1, 7, 8, 9) == [1, 7, 8, 9]
    assert indices(ordered) == ["places.000006.npy"]
    assert taken(ordered, *range(1, 10)) == list(range(1, 10))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY damaged"])
def test_a_damaged_index_is_made_again(ordered: Path, content: bytes) -> None:
    (ordered / "places.000003.npy").write_bytes(content)
    assert taken(ordered, 1, 7) == [1, 7]
    assert indices(ordered) == ["places.000004.npy"]


def test_what_was_erased_is_not_found_by_an_older_index(ordered: Path) -> None:
    erase_embeddings(ordered.parent, set(shas(2, 7)))
    assert Cache(ordered).find(shas(2, 7, 3))[:, 0].tolist() == [-1, -1, 1]
    Cache(ordered).add(shas(2), values([20]))
    assert taken(ordered, 2, 3) == [20, 3]
    fill(ordered, [8])
    assert taken(ordered, 2, 8) == [20, 8]
    assert indices(ordered) == ["places.000004.npy"]  # made anew: the old one went with what was erased
    assert taken(ordered, 2, 1) == [20, 1]


def test_two_that_write_at_once_mix_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second comes when the first has chosen its number and written half of its chunk."""
    caches = [Cache(tmp_path), Cache(tmp_path)]
    second = threading.Thread(target=lambda: caches[1].add(shas(3, 4), values([3, 4])))
    save = np.save

    def save_slowly(file: Any, array: Any) -> None:
        save(file, array)
        if threading.current_thread() is threading.main_thread() and not second.ident:
            second.start()
            second.join(0.3)

    monkeypatch.setattr(np, "save", save_slowly)
    caches[0].add(shas(1, 2), values([1, 2]))
    second.join()
    assert taken(tmp_path, 1, 2, 3, 4) == [1, 2, 3, 4]
