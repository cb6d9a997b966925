"""Runs in groups: by what may stand in one table, by strategy and by task order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from avalanche_compress import OrderRobustness, OrderRobustnessResult
from benchmarks.runs.results import RunResult

Runs = Sequence[RunResult]
_Key = TypeVar("_Key")

QUANTITIES = {
    "ranks": "rank: terms that each task added",
    "densities": "density: part of the weight that each task computes with (%)",
    "bits": "bits of a number that each task added",
}
"""Fields of a run that have a number per layer and task, with what they say."""


@dataclass(frozen=True)
class Group:
    """Runs that may stand in one table: of one stream, scenario, backbone, length and precision.

    :param runs: at least one.
    """

    runs: list[RunResult]

    @property
    def stream(self) -> str:
        """The stream, in brackets whether the runs were quick and in bfloat16."""
        first = self.runs[0]
        return first.stream + " (quick)" * first.quick + " (bfloat16)" * first.bf16

    @property
    def name(self) -> str:
        """The stream, in brackets the scenario unless it is the usual one."""
        scenario = self.runs[0].scenario
        return self.stream + ("" if scenario == "task" else f" ({scenario} scenario)")

    @property
    def title(self) -> str:
        """What the runs have in common, in a line."""
        first = self.runs[0]
        epochs = "1 epoch" if first.epochs == 1 else f"{first.epochs} epochs"
        tasks = f"{len(first.order)} tasks, {first.backbone}"
        return f"{self.name}: {tasks}, {epochs}, {_repetitions(self.runs)}"

    @property
    def strategies(self) -> dict[str, list[RunResult]]:
        """Runs by strategy and rule to infer tasks, in order of first appearance."""
        return by(self.runs, lambda run: run.key.label)

    @property
    def orders(self) -> dict[int, list[RunResult]]:
        """Runs by the number of their task order, ascending."""
        return by_order(self.runs)


def by_stream(results: Iterable[RunResult]) -> list[list[Group]]:
    """Streams (and backbones, lengths, precisions), of each a group per scenario.

    :param results: any runs.
    :return: in order of first appearance.
    """
    streams = by(results, lambda run: (run.stream, run.backbone, run.quick, run.epochs, run.bf16))
    return [
        [Group(runs) for runs in by(same, lambda run: run.scenario).values()]
        for same in streams.values()
    ]


def groups_of(results: Iterable[RunResult]) -> list[Group]:
    """All groups, those of one stream after each other.

    :param results: any runs.
    """
    return [group for groups in by_stream(results) for group in groups]


def groups_with(results: Iterable[RunResult], quantity: str) -> list[Group]:
    """The groups of those runs that have a quantity of :data:`QUANTITIES`."""
    return groups_of(run for run in results if getattr(run, quantity))


def by(
    results: Iterable[RunResult], key: Callable[[RunResult], _Key]
) -> dict[_Key, list[RunResult]]:
    """Runs by whatever the key says of them, in order of first appearance."""
    grouped: dict[_Key, list[RunResult]] = {}
    for result in results:
        grouped.setdefault(key(result), []).append(result)
    return grouped


def by_order(results: Iterable[RunResult]) -> dict[int, list[RunResult]]:
    """Runs by the number of their task order, ascending."""
    return dict(sorted(by(results, lambda run: run.order_index).items()))


def accuracy_by_order(runs: Runs) -> dict[int, dict[int, float]]:
    """``P[r][t]``: final accuracy by order and by task index in the canonical order.

    :param runs: of one strategy; several seeds of one order are averaged.
    :return: orders and tasks ascending.
    """
    return {
        order: {
            task: float(np.mean([run.final_by_task[task] for run in same]))
            for task in sorted(same[0].order)
        }
        for order, same in by_order(runs).items()
    }


def order_robustness(runs: Runs) -> OrderRobustnessResult:
    """How much the order of the tasks does to one strategy's accuracies.

    The key of a task is its index in the canonical order, which tells permuted tasks apart, too.

    :param runs: of one strategy in several orders; several seeds of one order are averaged.
    :raises OrderRobustnessError: if all runs had one order, or not all the same tasks.
    """
    robustness = OrderRobustness()
    for run in runs:
        for task, accuracy in run.final_by_task.items():
            robustness.update(run.order_index, task, accuracy)
    return robustness.result()


def layer_means(runs: Runs, quantity: str) -> dict[str, np.ndarray]:
    """The mean over runs, by layer: an array over the tasks, NaN where no run has a number.

    Densities are in percent.

    :param runs: of one strategy; those without the quantity are left out.
    :param quantity: of :data:`QUANTITIES`.
    """
    tables = [getattr(run, quantity) for run in runs if getattr(run, quantity)]
    scale = 100 if quantity == "densities" else 1
    # runs from before a change of the backbone, or of what is compressed, may have other layers
    layers = [w for w in tables[0] if all(w in table for table in tables)] if tables else []
    return {layer_name(w): scale * _means([table[w] for table in tables]) for w in layers}


def _means(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    numbers = np.ma.masked_invalid(np.array(rows, dtype=float))  # None becomes NaN
    return numbers.mean(axis=0).filled(np.nan)


def layer_name(weight: str) -> str:
    """The layer of a weight, for people.

    >>> layer_name("body.1.weight"), layer_name("attention.in_proj_weight")
    ('body.1', 'attention.in_proj_weight')
    """
    return weight[: -len(".weight")] if weight.endswith(".weight") else weight


def format_bytes(count: float, deviation: float | None = None) -> str:
    """Bytes with a decimal unit.

    :param count: how many.
    :param deviation: of several counts, in bytes as well.

    >>> format_bytes(812), format_bytes(81_600), format_bytes(4_536_000, 20_000)
    ('812 B', '81.6 kB', '4.54 ± 0.02 MB')
    """
    if count < 1e3:
        scale, digits, unit = 1.0, 0, "B"
    elif count < 1e6:
        scale, digits, unit = 1e3, 1, "kB"
    else:
        scale, digits, unit = 1e6, 2, "MB"
    numbers = [count] if deviation is None else [count, deviation]
    return f"{' ± '.join(f'{number / scale:.{digits}f}' for number in numbers)} {unit}"


def _repetitions(runs: Runs) -> str:
    """How often each strategy was run.

    With several orders the deviation is over all runs, whichever seed and order they had.
    """
    seeds, orders = len({run.seed for run in runs}), len(by_order(runs))
    if seeds > 1 and orders > 1:
        return f"mean ± deviation of {seeds} seeds in {orders} task orders"
    if orders > 1:
        return f"seed {runs[0].seed}, mean ± deviation of {orders} task orders"
    return f"mean ± deviation of {seeds} seeds" if seeds > 1 else f"seed {runs[0].seed}"
