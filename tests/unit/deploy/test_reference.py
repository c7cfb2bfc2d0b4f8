"""The reference network is always the same work, as long as what it stands beside."""

from __future__ import annotations

import threading

import numpy as np

from deploy.reference import SIDE, Reference, write_graph

NONE = np.zeros((1, 1, 1, 3), np.uint8)


def test_it_is_the_same_to_the_last_byte_everywhere() -> None:
    assert write_graph() == write_graph()


def test_its_answers_do_not_depend_on_what_is_handed_in() -> None:
    run = Reference(1, 0.0)
    answers = run(NONE)
    assert answers.shape == (1, 256)
    assert np.isfinite(answers).all()
    assert len(np.unique(answers)) > 200
    assert np.array_equal(answers, run(np.full((1, SIDE, SIDE, 3), 255, np.uint8)))


def test_a_call_is_as_long_as_asked_for() -> None:
    """By how often the network runs in it, not by the clock."""
    assert Reference(1, 0.0).length == 1
    assert Reference(1, 1.0).length > 20 * Reference(1, 0.001).length > 0


def test_several_threads_may_call_it_at_once() -> None:
    run = Reference(1, 0.0)
    expected, found = run(NONE), []
    threads = [threading.Thread(target=lambda: found.append(run(NONE))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(expected, answers) for answers in found)
    assert len(found) == 4
