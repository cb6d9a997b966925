"""The tables of a comparison as data: columns, rows and notes, whatever they are rendered as."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from statistics import mean, stdev
from typing import Any

import numpy as np

from benchmarks.report.groups import (
    QUANTITIES,
    Group,
    Runs,
    by,
    by_order,
    format_bytes,
    layer_means,
    order_robustness,
)
from benchmarks.report.statistics import (
    EXACT_PAIRS,
    Series,
    best_series,
    holm,
    paired,
    sign_flip_p,
    smallest_p,
)
from benchmarks.runs.accuracies import Row, mean_so_far
from benchmarks.runs.ours import UNKNOWN
from benchmarks.runs.strategies import REFERENCES

RESULT_NOTE = (
    "accuracy: mean over tasks at the end; BWT: backward transfer; archive: file on disk; "
    "stored: what the method keeps; ratio: archive, or stored where there is none, "
    "to independent networks"
)
CLASS_NOTE = (
    "class scenario: no task labels at test, all classes in one head; task id: part of the test "
    "samples whose task was inferred rightly"
)
MEMORY_NOTE = "memory: of what is stored, samples or statistics of samples"
REFUSED_NOTE = (
    f"refused: part of the test samples that unknown={UNKNOWN} refuses, known ones of the tasks "
    "learned at the end, new ones of each task just before it was learned"
)
ORDER_NOTE = (
    "AOPD, MOPD: mean and maximum over tasks of a task's best minus worst final accuracy in R "
    "task orders, which grows with R"
)
BEST_NOTE = (
    "bold: the best mean accuracy and all that a paired test does not tell from it (sign flips, "
    f"Holm's correction, p < .05), without the references {', '.join(REFERENCES)}"
)
LAYER_NOTE = (
    "mean over tasks, with 10 or more of them over the first 5 → the last 5 learned; rank: terms "
    "that a task added to the layer; total: terms of all tasks; density: part of the weight that a "
    "task computes with; bits: of a number that a task added, masks and codebooks not counted"
)
RUN_NOTE = (
    "bytes: the archive, or what is stored where there is none; recipe: fingerprint of "
    "hyper-parameters, backbone, budget and device"
)


@dataclass(frozen=True)
class Column:
    """The head of a column.

    :param name: what is in it.
    :param unit: of its numbers.
    """

    name: str
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.unit}".strip()


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    :param text: as people read it.
    :param value: by what it is sorted; None where there is nothing.
    :param is_bold: whether it stands out.
    """

    text: str
    value: float | str | None = None
    is_bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its heading.

    :param title: the heading.
    :param columns: their heads.
    :param rows: a cell per column.
    :param notes: what has to be said below it.
    """

    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)

    @property
    def caption(self) -> str:
        """The notes in a line."""
        return "; ".join(self.notes)

    def holds_text(self, place: int) -> bool:
        """Whether the cells of a column are names, and not numbers.

        :param place: of the column, from 0.
        """
        return any(isinstance(row[place].value, str) for row in self.rows)

    def texts(self) -> list[list[str]]:
        """The rows as people read them."""
        return [[cell.text for cell in row] for row in self.rows]


NOTHING = Cell("-")

_Columns = list[tuple[Column, Callable[[Any], Cell]]]
"""Heads, each with what it says of a row's subject."""


def _table(title: str, columns: _Columns, subjects: Iterable[Any], notes: Sequence[str]) -> Table:
    rows = [[cell(subject) for _, cell in columns] for subject in subjects]
    return Table(title, [column for column, _ in columns], rows, list(notes))


def result_table(group: Group) -> Table:
    """A row per strategy: mean over seeds and orders, with the deviation of several.

    :param group: runs of one stream and scenario.
    """
    strategies = group.strategies
    accuracies = {
        name: _accuracies(runs) for name, runs in strategies.items() if name not in REFERENCES
    }
    without_labels = group.runs[0].scenario == "class"
    # whoever keeps samples and whoever keeps statistics do not compete
    best = set() if without_labels else best_series(accuracies)
    notes = [RESULT_NOTE]
    columns: _Columns = [(Column("strategy"), _label)]
    if len({_count_seeds(runs) for runs in strategies.values()}) > 1:  # else the title says it
        columns.append((Column("seeds"), lambda runs: count_cell(_count_seeds(runs))))
    columns.append(
        (
            Column("accuracy", "%"),
            lambda runs: replace(_accuracy(runs), is_bold=runs[0].key.label in best),
        )
    )
    if any(run.task_inference for run in group.runs):
        columns.append((Column("task id", "%"), _task_id))
    columns += [
        (Column("forgetting", "pp"), lambda runs: percent_cell([run.forgetting for run in runs])),
        (Column("BWT", "pp"), lambda runs: percent_cell([run.bwt for run in runs])),
    ]
    if len(group.orders) > 1:
        columns += [
            (Column("R"), lambda runs: count_cell(len(by_order(runs)))),
            (Column("AOPD", "pp"), lambda runs: percent_cell(_spread(runs, "aopd"))),
            (Column("MOPD", "pp"), lambda runs: percent_cell(_spread(runs, "mopd"))),
        ]
        notes.append(ORDER_NOTE)
    columns += [
        (Column("archive"), lambda runs: bytes_cell([run.archive_bytes for run in runs])),
        (Column("stored"), lambda runs: bytes_cell([run.stored_bytes for run in runs])),
        (Column("ratio"), lambda runs: number_cell([mean(run.ratio for run in runs)], digits=3)),
    ]
    if without_labels and any(run.memory_bytes is not None for run in group.runs):
        columns.append((Column("memory"), _memory))
        notes.append(MEMORY_NOTE)
    if any(run.refused for run in group.runs):
        columns += [
            (Column("refused: known", "%"), lambda runs: _mean_rate([r.refused for r in runs])),
            (Column("new", "%"), lambda runs: _mean_rate([r.refused_before for r in runs])),
        ]
        notes.append(REFUSED_NOTE)
    notes += [CLASS_NOTE] if without_labels else []
    notes += [BEST_NOTE] if best else []
    return _table(group.title, columns, strategies.values(), notes)


def _label(runs: Runs) -> Cell:
    return text_cell(runs[0].key.label)


def _accuracy(runs: Runs) -> Cell:
    return percent_cell([run.accuracy for run in runs])


def _task_id(runs: Runs) -> Cell:
    return percent_cell([run.task_id_accuracy for run in runs])


def _memory(runs: Runs) -> Cell:
    return bytes_cell([run.memory_bytes for run in runs])


def _mean_rate(rows: Sequence[Row | None]) -> Cell:
    """Of each run the mean over the tasks of which a rate is known."""
    return percent_cell([mean_so_far(row) for row in rows if row is not None])


def _accuracies(runs: Runs) -> Series:
    return {(run.seed, run.order_index): run.accuracy for run in runs}


def _count_seeds(runs: Runs) -> int:
    return len({run.seed for run in runs})


def _spread(runs: Runs, metric: str) -> list[float]:
    """AOPD or MOPD, where there are several orders."""
    return [getattr(order_robustness(runs), metric)] if len(by_order(runs)) > 1 else []


def scenario_table(groups: Sequence[Group]) -> Table:
    """Accuracy with task labels at test and without, a row per strategy and rule.

    :param groups: both scenarios of one stream.
    """
    runs = [run for group in groups for run in group.runs]
    rows = []
    for strategy, same in by(runs, lambda run: run.strategy).items():
        labelled = [run for run in same if run.scenario == "task"]
        without = by([run for run in same if run.scenario == "class"], lambda run: run.key.label)
        rows += [(strategy, labelled, inferred) for inferred in without.values() or [[]]]
    columns: _Columns = [
        (Column("strategy"), lambda row: text_cell(row[0])),
        (Column("with task labels", "%"), lambda row: _accuracy(row[1])),
        (Column("without, tasks inferred by"), lambda row: _rule(row[2])),
        (Column("accuracy", "%"), lambda row: _accuracy(row[2])),
        (Column("task id", "%"), lambda row: _task_id(row[2])),
    ]
    return _table(f"{groups[0].stream}: both scenarios", columns, rows, [])


def _rule(runs: Runs) -> Cell:
    return text_cell(runs[0].task_inference if runs else None)


def order_table(group: Group) -> Table:
    """Mean final accuracy by order, a row per strategy; none for a single order.

    :param group: runs of one stream and scenario.
    """
    columns: _Columns = [(Column("strategy"), _label)]
    for order in group.orders:
        columns.append((Column(f"order {order}", "%"), partial(_accuracy_in, order)))
    spelled = [
        f"order {order}: {' '.join(str(task + 1) for task in runs[0].order)}"
        for order, runs in group.orders.items()
    ]
    rows = group.strategies.values() if len(group.orders) > 1 else []
    note = f"tasks as learned, {'; '.join(spelled)}"
    return _table(f"{group.name}: accuracy by task order", columns, rows, [note])


def _accuracy_in(order: int, runs: Runs) -> Cell:
    return _accuracy(by_order(runs).get(order, []))


def layer_table(group: Group) -> Table:
    """What tasks made of each layer: mean over seeds and orders, a row per strategy and layer.

    :param group: runs of one stream and scenario; those that know no layers have no row.
    """
    rows = []
    for strategy, runs in group.strategies.items():
        means = {quantity: layer_means(runs, quantity) for quantity in QUANTITIES}
        for layer in dict.fromkeys(name for known in means.values() for name in known):
            known = {quantity: means[quantity].get(layer) for quantity in QUANTITIES}
            rows.append({"strategy": strategy, "layer": layer, **known})
    columns: _Columns = [
        (Column("strategy"), lambda row: text_cell(row["strategy"])),
        (Column("layer"), lambda row: text_cell(row["layer"])),
        (Column("rank"), lambda row: _early_and_late(row["ranks"])),
        (Column("total"), lambda row: _total(row["ranks"])),
        (Column("density", "%"), lambda row: _early_and_late(row["densities"])),
        (Column("bits"), lambda row: _early_and_late(row["bits"])),
    ]
    return _table(f"{group.name}: layers", columns, rows, [LAYER_NOTE])


def _total(ranks: np.ndarray | None) -> Cell:
    if ranks is None:
        return NOTHING
    total = round(float(ranks.sum()), 1)
    return Cell(f"{total:g}", total)


def _early_and_late(values: np.ndarray | None) -> Cell:
    """Mean over the first and the last five tasks, over all where that would count some twice.

    :param values: by task, NaN where there is none.

    >>> _early_and_late(np.arange(10)).text, _early_and_late(np.arange(9)).text
    ('2.0 → 7.0', '4.0')
    """
    if values is None or np.isnan(values).all():
        return NOTHING
    parts = [values] if len(values) < 10 else [values[:5], values[-5:]]
    texts = ["-" if np.isnan(part).all() else f"{np.nanmean(part):.1f}" for part in parts]
    return Cell(" → ".join(texts), float(np.nanmean(values)))


def difference_table(group: Group) -> Table:
    """How the accuracies of any two strategies differ, by runs of the same seed and order.

    :param group: runs of one stream and scenario.
    """
    known = [
        (first, second, paired(_accuracies(ours), _accuracies(theirs)))
        for (first, ours), (second, theirs) in combinations(group.strategies.items(), 2)
    ]
    compared = [row for row in known if row[2]]
    chances = [sign_flip_p(differences) for *_, differences in compared]
    corrected = iter(holm([p for p in chances if p is not None]))
    rows = [(*row, p, None if p is None else next(corrected)) for row, p in zip(compared, chances)]
    columns: _Columns = [
        (Column("strategy"), lambda row: text_cell(row[0])),
        (Column("minus"), lambda row: text_cell(row[1])),
        (Column("pairs"), lambda row: count_cell(len(row[2]))),
        (Column("difference", "pp"), lambda row: percent_cell(row[2])),
        (Column("p"), lambda row: _p_cell(row[3])),
        (Column("p, Holm"), lambda row: _p_cell(row[4])),
    ]
    notes = _difference_notes({len(row[2]) for row in rows}, len(group.orders))
    return _table(f"{group.name}: paired differences in accuracy", columns, rows, notes)


def _p_cell(p: float | None) -> Cell:
    return NOTHING if p is None else Cell(f"{p:.3g}", p)


def _difference_notes(counts: set[int], orders: int) -> list[str]:
    """What the test is, and the least that it can say of so few pairs."""
    notes = ["difference: mean ± deviation over the runs that both have, by seed and task order"]
    if 1 in counts:
        notes.append("one pair says nothing of chance: there is no test of it")
    tested = sorted(counts - {1})
    if tested:
        how = "exact" if tested[-1] <= EXACT_PAIRS else f"exact up to {EXACT_PAIRS} pairs"
        least = ", ".join(f"{smallest_p(n):.3g} with {n} pairs" for n in tested)
        notes.append(
            f"p: paired permutation test that flips signs, two-sided, {how}; the least that it can "
            f"be is {least}, whatever the difference"
        )
        notes.append("p, Holm: corrected for the number of tests in this table")
        if orders > 1:
            notes.append("runs of one seed in several orders are counted as pairs of their own")
    return notes


def run_table(group: Group) -> Table:
    """Every run by itself.

    :param group: runs of one stream and scenario.
    """
    columns: _Columns = [
        (Column("strategy"), lambda run: text_cell(run.key.label)),
        (Column("order"), lambda run: count_cell(run.order_index)),
        (Column("seed"), lambda run: count_cell(run.seed)),
        (Column("accuracy", "%"), lambda run: percent_cell([run.accuracy])),
        (Column("forgetting", "pp"), lambda run: percent_cell([run.forgetting])),
        (Column("BWT", "pp"), lambda run: percent_cell([run.bwt])),
        (Column("bytes"), lambda run: bytes_cell([run.compared_bytes])),
        (Column("recipe"), lambda run: text_cell(run.recipe)),
    ]
    return _table(f"{group.name}: all runs", columns, group.runs, [RUN_NOTE])


TABLES: dict[str, Callable[[Group], Table]] = {
    "results": result_table,
    "differences": difference_table,
    "orders": order_table,
    "layers": layer_table,
    "runs": run_table,
}
"""The tables of a group, by subject."""


def text_cell(text: str | None) -> Cell:
    """A name; a dash where there is none."""
    return Cell(text, text) if text else NOTHING


def count_cell(count: int) -> Cell:
    """A whole number."""
    return Cell(str(count), count)


def percent_cell(values: Sequence[float | None]) -> Cell:
    """Fractions in percent, mean and deviation; a dash where none is known."""
    return number_cell([100 * value for value in values if value is not None])


def number_cell(values: Sequence[float], digits: int = 2, sign: str = "") -> Cell:
    """Mean and, of several, sample deviation; a dash of none.

    :param values: any number of them.
    :param digits: after the point.
    :param sign: ``"+"`` to write it before what is not negative.

    >>> number_cell([90, 94]).text, number_cell([2.25], digits=1, sign="+").text
    ('92.00 ± 2.83', '+2.2')
    """
    if not values:
        return NOTHING
    # Adding 0 turns a rounded -0.00 into 0.00.
    text = f"{round(mean(values), digits) + 0.0:{sign}.{digits}f}"
    if len(values) > 1:
        text += f" ± {stdev(values):.{digits}f}"
    return Cell(text, mean(values))


def bytes_cell(counts: Sequence[int | None]) -> Cell:
    """Mean with a unit and, where the numbers differ, their deviation in the same unit.

    >>> bytes_cell([80_000, 82_000]).text, bytes_cell([500, 500]).text
    ('81.0 ± 1.4 kB', '500 B')
    """
    known = [count for count in counts if count is not None]
    if not known:
        return NOTHING
    deviation = stdev(known) if len(set(known)) > 1 else None
    return Cell(format_bytes(mean(known), deviation), mean(known))
