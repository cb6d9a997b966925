"""Memory grows as the archive does, and the optimiser's bookkeeping not at all."""

from __future__ import annotations

import pytest

from benchmarks import scale


@pytest.mark.parametrize("name", scale.STRATEGIES)
def test_a_further_task_takes_as_much_memory_as_its_part_of_the_archive(name):
    early, late = scale.grow(name, [3, 12])
    held = scale.slope([early, late], "held_bytes")
    assert held == pytest.approx(scale.slope([early, late], "archive_bytes"), rel=0.1)
    assert early.optimised == late.optimised


@pytest.mark.parametrize(("tasks", "first"), [(1, 0), (2, 1), (9, 1), (10, 1), (30, 21)])
def test_steps_are_compared_that_do_the_same_work(tasks, first):
    """Steps of last epochs, and of the first task only if there is no other."""
    names = [(t, e) for t in range(tasks) for e in range(scale.EPOCHS) for _ in range(scale.STEPS)]
    last = scale.EPOCHS - 1
    expected = [own for own in names if own[0] >= first and own[1] == last]
    assert scale._like_steps(names, tasks) == expected
