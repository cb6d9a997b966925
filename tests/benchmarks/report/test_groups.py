"""Runs in groups, and what the order of tasks decides, against numbers made by hand."""

import pytest
from benchmarks_for_tests import make_result

from avalanche_compress import OrderRobustnessError
from benchmarks.report.groups import (
    accuracy_by_order,
    by_stream,
    groups_of,
    layer_means,
    order_robustness,
)


def test_runs_of_another_backbone_length_or_precision_are_a_group_of_their_own():
    changes = [{}, {"seed": 1}, {"backbone": "lenet"}, {"epochs": 2}, {"bf16": True}]
    changes += [{"scenario": "class"}, {"quick": True, "epochs": 2}]
    groups = groups_of([make_result(**change) for change in changes])
    assert [group.name for group in groups] == [
        "split_digits",
        "split_digits (class scenario)",
        "split_digits",
        "split_digits",
        "split_digits (bfloat16)",
        "split_digits (quick)",
    ]
    assert [len(group.runs) for group in groups] == [2, 1, 1, 1, 1, 1]


def test_both_scenarios_of_a_stream_stand_together():
    runs = [make_result(), make_result(stream="split_mnist"), make_result(scenario="class")]
    assert [[group.name for group in groups] for groups in by_stream(runs)] == [
        ["split_digits", "split_digits (class scenario)"],
        ["split_mnist"],
    ]


def test_runs_without_layers_have_no_means_of_them():
    assert layer_means([make_result()], "ranks") == {}


def in_order(order_index, order, final, **changes):
    unseen = [[None] * len(final)] * (len(final) - 1)
    return make_result(
        order_index=order_index, order=order, accuracy_matrix=[*unseen, final], **changes
    )


def test_tasks_are_known_by_their_number_in_the_canonical_order():
    runs = [
        in_order(1, [2, 0, 1], [0.9, 0.5, 0.7]),
        in_order(0, [0, 1, 2], [0.6, 0.5, 0.5], seed=0),
        in_order(0, [0, 1, 2], [0.8, 0.7, 0.7], seed=1),
    ]
    assert runs[0].final_by_task == {2: 0.9, 0: 0.5, 1: 0.7}
    expected = {0: {0: 0.7, 1: 0.6, 2: 0.6}, 1: {0: 0.5, 1: 0.7, 2: 0.9}}
    found = accuracy_by_order(runs)
    assert list(found) == [0, 1]
    assert {order: pytest.approx(tasks) for order, tasks in found.items()} == expected
    spread = order_robustness(runs)
    assert spread.opd == pytest.approx({0: 0.2, 1: 0.1, 2: 0.3})
    assert (spread.aopd, spread.mopd, spread.orders) == (*map(pytest.approx, (0.2, 0.3)), 2)


def test_one_order_has_no_spread():
    with pytest.raises(OrderRobustnessError, match="at least 2"):
        order_robustness([make_result(), make_result(seed=1)])
