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
