"""Memory grows as the archive does, the optimiser's bookkeeping not at all; steps take turns."""

from __future__ import annotations

import json
from functools import partial

import pytest

from benchmarks.speed import scale


@pytest.mark.parametrize("name", [*scale.METHODS, "cacl_each_step"])
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
    expected = [name for name in names if name[0] >= first and name[1] == last]
    assert scale._like_steps(names, tasks) == expected


class GrowingSteps:
    """Its steps take as many seconds as it has tasks, and a hundred in a task's first epoch."""

    trained: tuple = ()

    def __init__(self, plugins, train_epochs, **others):
        (self.timer,) = plugins
        self.train_epochs = train_epochs
        self.tasks = 0

    def train(self, experience):
        self.tasks += 1
        GrowingSteps.trained += ((self.tasks, experience.task_label),)
        steps = len(experience.dataset) // scale.BATCH
        others = steps * (self.train_epochs - 1) // 2
        times = [self.tasks - 1.0, self.tasks + 1.0]  # now one, now the other
        self.timer.steps += [100.0] * steps + times * others


def test_a_late_task_takes_turns_with_a_second_one(monkeypatch):
    monkeypatch.setitem(scale.STRATEGIES, "growing", GrowingSteps)
    monkeypatch.setattr(GrowingSteps, "trained", ())
    figure = scale.in_turns("growing", tasks=4, turns=3)
    early = ((1, 0), (2, 1))
    late = [((number, number - 1),) for number in (1, 2, 3, 4, 5, 6)]
    expected = (*late[:3], *(part for task in late[3:] for part in (early, task)))
    assert GrowingSteps.trained == sum(expected, ())
    assert (figure.milliseconds, figure.reference_milliseconds, figure.ratio) == (5e3, 2e3, 2.5)
    assert figure.what == "growing step, mlp, batch 32, task 4"


def test_the_file_has_the_moments_and_the_steps_in_turns(monkeypatch, tmp_path):
    monkeypatch.setattr(scale, "in_turns", partial(scale.in_turns, turns=1))
    path = tmp_path / "figures.json"
    scale.main(["--tasks", "1", "2", "--strategies", "packnet", "--json", str(path)])
    figures = json.loads(path.read_text())
    assert [moment["tasks"] for moment in figures["moments"]] == [1, 2]
    for tasks, step in zip((1, 2), figures["steps"]):
        assert step["what"] == f"packnet step, mlp, batch 32, task {tasks}"
        assert step["reference"] == "task 2"
        assert step["ratio"] > 0
