"""Order robustness, against the golden case and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from avalanche_compress import CompressError, OrderRobustness, OrderRobustnessError
from avalanche_compress.metrics import order_robustness

GOLDEN = ((80, 70, 90), (78, 75, 88), (84, 66, 91))
CLASSES = ((0, 1), (2, 3), (4, 5))


def golden_metric():
    metric = OrderRobustness()
    for order, row in zip("ABC", GOLDEN):
        for classes, percent in zip(CLASSES, row):
            metric.update(order, classes, percent / 100)
    return metric


def test_the_golden_case():
    result = golden_metric().result()
    assert result.opd == pytest.approx(dict(zip(CLASSES, (0.06, 0.09, 0.03))))
    assert result.mopd == pytest.approx(0.09)
    assert result.aopd == pytest.approx(0.06)
    assert 100 * result.mean == pytest.approx(80.2222, abs=5e-5)
    assert result.std == pytest.approx(np.std(np.mean(GOLDEN, axis=1) / 100, ddof=1))
    assert result.orders == 3


@pytest.mark.parametrize(("orders", "tasks", "seeds"), [(2, 1, 1), (5, 20, 1), (3, 4, 6)])
def test_seeds_are_averaged_before_the_spread_is_taken(orders, tasks, seeds):
    drawn = np.random.default_rng().random((seeds, orders, tasks))
    metric = OrderRobustness()
    for seed, order, task in np.ndindex(*drawn.shape):
        metric.update(order, task, drawn[seed, order, task])
    accuracies = drawn.mean(axis=0)
    opd = np.ptp(accuracies, axis=0)
    result = metric.result()
    assert list(result.opd.values()) == pytest.approx(opd)
    assert (result.mopd, result.aopd) == (pytest.approx(opd.max()), pytest.approx(opd.mean()))
    assert result.mean == pytest.approx(accuracies.mean())
    assert result.std == pytest.approx(accuracies.mean(axis=1).std(ddof=1))


def test_an_order_with_more_seeds_counts_no_more_than_another():
    metric = OrderRobustness()
    for order, accuracy in ((0, 0.5), (0, 0.5), (0, 0.5), (1, 1.0)):
        metric.update(order, "task", accuracy)
    assert metric.result().mean == 0.75


def test_tasks_are_known_by_their_key_whenever_they_come():
    metric = OrderRobustness()
    for order in ((0, 1, 2), (2, 0, 1)):
        for task in order:
            metric.update(order, CLASSES[task], (0.9, 0.5, 0.7)[task])
    assert metric.result().opd == dict.fromkeys(CLASSES, 0.0)


def test_accuracies_may_be_tensors():
    metric = OrderRobustness()
    for order, accuracy in enumerate((0.25, 0.75)):
        metric.update(order, 0, torch.tensor(accuracy))
    assert metric.result().aopd == 0.5


def test_reset_forgets_everything():
    metric = golden_metric()
    metric.reset()
    with pytest.raises(OrderRobustnessError, match=r"0 task order\(s\)"):
        metric.result()


def test_the_result_can_be_asked_for_again():
    metric = golden_metric()
    assert metric.result() == metric.result()


def test_one_order_has_no_spread():
    metric = OrderRobustness()
    metric.update("A", (0, 1), 0.5)
    with pytest.raises(OrderRobustnessError, match="needs at least 2: train the same tasks in"):
        metric.result()


def test_an_order_that_lacks_a_task_is_named_with_it():
    metric = golden_metric()
    metric.update("B", (6, 7), 0.5)
    with pytest.raises(OrderRobustnessError, match=r"order 'A' lacks 1 of 4 tasks, .* \(6, 7\)"):
        metric.result()
    with pytest.raises(OrderRobustnessError, match=r"order 1 lacks 1 of 2 tasks, .* 'y'"):
        order_robustness({0: {"x": 0.5, "y": 0.5}, 1: {"x": 0.5}})


@pytest.mark.parametrize("accuracy", [math.nan, math.inf, -0.01, 80])
def test_what_is_no_fraction_is_refused_at_once(accuracy):
    metric = golden_metric()
    before = metric.result()
    with pytest.raises(OrderRobustnessError, match=r"task \(0, 1\) in order 'A' is .*divide"):
        metric.update("A", (0, 1), accuracy)
    assert metric.result() == before


def test_its_error_is_one_of_the_package():
    assert issubclass(OrderRobustnessError, (CompressError, ValueError))
