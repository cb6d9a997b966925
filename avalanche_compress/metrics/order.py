"""How much the order of the tasks decides what is learned of each."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from statistics import mean, stdev

from avalanche.evaluation import Metric

from avalanche_compress.errors import CompressError


class OrderRobustnessError(CompressError, ValueError):
    """Final accuracies over task orders are too few, incomplete or not fractions."""


@dataclass(frozen=True)
class OrderRobustnessResult:
    """The spread of final accuracies over task orders, all in the unit of accuracy, 0..1.

    :param opd: order-normalised performance disparity of each task, ``OPD_t``, by its key.
    :param mopd: the largest of them.
    :param aopd: their mean.
    :param mean: mean accuracy over tasks and orders.
    :param std: sample standard deviation over orders of an order's mean accuracy.
    :param orders: how many there were; a maximum minus a minimum grows with it.
    """

    opd: dict[Hashable, float]
    mopd: float
    aopd: float
    mean: float
    std: float
    orders: int


class OrderRobustness(Metric[OrderRobustnessResult]):
    """Order-normalised performance disparity, over runs of the same tasks in several orders.

    With ``P[r, t]`` the final accuracy of task t in the run with order r::

        OPD_t = max_r P[r, t] - min_r P[r, t];  MOPD = max_t OPD_t;  AOPD = mean_t OPD_t

    (Yoon et al., "Scalable and Order-robust Continual Learning with Additive Parameter
    Decomposition", ICLR 2020). A task is known by a key and not by its position, which is another
    one in every order: the sorted tuple of its original classes, or its number in the canonical
    order where tasks share their classes (permuted images).

    >>> robustness = OrderRobustness()
    >>> for order, accuracies in {"A": (0.75, 1.0), "B": (0.5, 0.875)}.items():
    ...     for classes, accuracy in zip([(0, 1), (2, 3)], accuracies):
    ...         robustness.update(order, classes, accuracy)
    >>> result = robustness.result()
    >>> result.opd, result.mopd, result.aopd
    ({(0, 1): 0.25, (2, 3): 0.125}, 0.25, 0.1875)
    """

    def __init__(self) -> None:
        self._seen: dict[Hashable, dict[Hashable, list[float]]] = {}

    def update(self, order: Hashable, task_key: Hashable, accuracy: float) -> None:
        """Add a final accuracy; several of one order and task, as of seeds, are averaged.

        :param order: which order the run had.
        :param task_key: which task this is, the same in all orders.
        :param accuracy: of the task after the last one was learned, 0..1.
        :raises OrderRobustnessError: if the accuracy is outside 0..1 or NaN.
        """
        accuracy = float(accuracy)
        if not 0 <= accuracy <= 1:
            raise OrderRobustnessError(
                f"the accuracy of task {task_key!r} in order {order!r} is {accuracy} and a "
                "fraction of 0..1, as Avalanche's metrics give it, was expected: divide percents "
                "by 100."
            )
        self._seen.setdefault(order, {}).setdefault(task_key, []).append(accuracy)

    def result(self) -> OrderRobustnessResult:
        """The spread over all orders so far.

        :raises OrderRobustnessError: with fewer than two orders, or if one lacks a task that
            another has.
        """
        return order_robustness(
            {
                order: {task: mean(values) for task, values in tasks.items()}
                for order, tasks in self._seen.items()
            }
        )

    def reset(self) -> None:
        """Forget all accuracies."""
        self._seen = {}


def order_robustness(
    accuracies: Mapping[Hashable, Mapping[Hashable, float]],
) -> OrderRobustnessResult:
    """The arithmetic of :class:`OrderRobustness`.

    :param accuracies: ``P[r][t]``, by order and task key.
    :raises OrderRobustnessError: with fewer than two orders, or if one lacks a task that another
        has.

    >>> order_robustness({0: {"x": 0.5, "y": 1.0}, 1: {"x": 0.75, "y": 1.0}}).opd
    {'x': 0.25, 'y': 0.0}
    """
    _check_orders(accuracies)
    opd = {}
    for task in next(iter(accuracies.values())):
        values = [tasks[task] for tasks in accuracies.values()]
        opd[task] = max(values) - min(values)
    means = [mean(tasks.values()) for tasks in accuracies.values()]
    return OrderRobustnessResult(
        opd=opd,
        mopd=max(opd.values()),
        aopd=mean(opd.values()),
        mean=mean(means),
        std=stdev(means),
        orders=len(means),
    )


def _check_orders(accuracies: Mapping[Hashable, Mapping[Hashable, float]]) -> None:
    if len(accuracies) < 2:
        raise OrderRobustnessError(
            f"accuracies of {len(accuracies)} task order(s) were given and a spread needs at least "
            "2: train the same tasks in another order."
        )
    every = dict.fromkeys(task for tasks in accuracies.values() for task in tasks)
    for order, tasks in accuracies.items():
        lacking = [task for task in every if task not in tasks]
        if lacking:
            raise OrderRobustnessError(
                f"order {order!r} lacks {len(lacking)} of {len(every)} tasks, the first of them "
                f"{lacking[0]!r}: give every task's accuracy in every order, under the same key."
            )
