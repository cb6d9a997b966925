"""What is advised is the Pareto front of the methods that learn task by task."""

from __future__ import annotations

from dataclasses import replace

from benchmarks_for_tests import make_result

from benchmarks.report.advice import advice_on, budgets_on
from benchmarks.report.groups import Group


def group_of(*points):
    """Runs of (strategy, bytes, accuracy, forgetting)."""
    return Group(
        [
            replace(
                make_result(strategy),
                archive_bytes=None,
                stored_bytes=size,
                independent_bytes=1000,
                accuracy=accuracy,
                forgetting=forgetting,
            )
            for strategy, size, accuracy, forgetting in points
        ]
    )


def test_who_is_beaten_in_both_is_not_advised():
    group = group_of(
        ("wsn", 100, 0.9, 0.0),
        ("packnet", 200, 0.85, 0.0),
        ("cacl", 300, 0.95, 0.0),
        ("halrp", 400, 0.99, 0.03),
        ("independent", 1000, 1.0, 0.0),
        ("joint", 50, 1.0, None),
    )
    found = advice_on(group)
    assert [(advice.label, advice.need) for advice in found] == [
        ("wsn", "as few bytes as possible"),
        ("cacl", "in between"),
        ("halrp", "as accurate as possible"),
    ]
    assert found[0].what.startswith("90.0 % in 100 B, 10 % of a network for each task; forgets no")
    assert found[2].what.endswith("forgets 3.0 points")


def test_each_budget_has_its_choice():
    group = group_of(
        ("cacl", 300, 0.95, 0.0), ("wsn", 100, 0.9, 0.0), ("independent_4bit", 50, 0.99, 0.0)
    )
    few, more = budgets_on(group)
    assert few.startswith("100 B to 300 B: wsn, 90.0 % in 100 B")
    assert more.startswith("300 B or more: cacl, 95.0 % in 300 B")
    assert budgets_on(group_of(("joint", 100, 0.9, None))) == []


def test_one_that_beats_all_is_both():
    (advice,) = advice_on(group_of(("wsn", 100, 0.9, 0.001), ("cacl", 200, 0.8, 0.0)))
    assert (advice.label, advice.need) == ("wsn", "smallest and most accurate")
    assert "next to nothing" in advice.what


def test_nothing_is_advised_where_nothing_learned_task_by_task():
    assert advice_on(group_of(("joint", 100, 0.9, None))) == []
