"""What the tables of a comparison say, whatever they are written in."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Sequence

import numpy as np

from benchmarks.report.layer_pictures import QUANTITIES, layer_means
from benchmarks.report.statistics import (
    EXACT_PAIRS,
    PairedDifference,
    holm,
    paired_differences,
    smallest_p,
)
from benchmarks.runs.results import (
    RunResult,
    by_order,
    by_strategy,
    count_orders,
    format_bytes,
    order_robustness,
    scenario_of,
    title_of,
)

LEGEND = (
    "accuracy: mean over tasks at the end; BWT: backward transfer; archive: file on disk; "
    "stored: what the method keeps; ratio: archive, or stored where there is none, "
    "to independent networks"
)
CLASS_LEGEND = (
    "class scenario: no task labels at test, all classes in one head; task id: part of the test "
    "samples whose task was inferred rightly"
)
ORDER_LEGEND = (
    "AOPD, MOPD: mean and maximum over tasks of a task's best minus worst final accuracy in R "
    "task orders, which grows with R"
)
LAYER_LEGEND = (
    "mean over tasks, with 10 or more of them over the first 5 → the last 5 learned; rank: terms "
    "that a task added to the layer; total: terms of all tasks; density: part of the weight that a "
    "task computes with; bits: of a number that a task added, masks and codebooks not counted"
)
REFERENCES = ("independent", "joint")
"""What methods are measured against: one network per task, and the data of all tasks at once."""
BEST = f"bold: best mean of its column, without the references {' and '.join(REFERENCES)}"


@dataclass(frozen=True)
class Column:
    """The head of a column.

    :param name: what is in it.
    :param unit: of its numbers.
    :param best: ``"most"`` or ``"least"`` where one end of the scale is the better one.
    """

    name: str
    unit: str = ""
    best: str | None = None


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    :param text: as people read it.
    :param value: by what it is sorted; None where there is nothing.
    :param is_best: whether no other row has a better mean, in the digits that are shown.
    """

    text: str
    value: float | str | None = None
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its heading and what has to be said below it."""

    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    legend: str = ""

    @property
    def caption(self) -> str:
        """The legend, and what is bold where something is."""
        bold = any(cell.is_best for row in self.rows for cell in row)
        return "; ".join(part for part in (self.legend, BEST if bold else "") if part)

    def holds_text(self, place: int) -> bool:
        """Whether the cells of a column are names, and not numbers.

        :param place: of the column, from 0.
        """
        return any(isinstance(row[place].value, str) for row in self.rows)

    def texts(self) -> list[list[str]]:
        """The rows as people read them."""
        return [[cell.text for cell in row] for row in self.rows]


NOTHING = Cell("-")

STRATEGY = Column("strategy")
ACCURACY = Column("accuracy", "%", "most")
TASK_ID = Column("task id", "%", "most")


def result_table(runs: Sequence[RunResult], stream: str) -> Table:
    """One row per strategy: mean over seeds and orders, with the deviation of several.

    :param runs: of one stream in one scenario.
    :param stream: its name, as of :func:`benchmarks.runs.results.by_stream`.
    """
    grouped = list(by_strategy(runs).values())
    columns = _result_columns(runs)
    cells = [_result_cells(own) for own in grouped]
    rows = mark_best(columns, [[own[column.name] for column in columns] for own in cells])
    return Table(title_of(runs, stream), columns, rows, _result_legend(runs))


def _result_columns(runs: Sequence[RunResult]) -> list[Column]:
    inferred = any(run.task_inference is not None for run in runs)
    grouped = by_strategy(runs).values()
    orders = {count_orders(own) for own in grouped}
    seeds = {_count_seeds(own) for own in grouped}
    # what grows with the number of orders compares only where that is the same
    least = "least" if len(orders) == 1 else None
    spread = [Column("R"), Column("AOPD", "pp", least), Column("MOPD", "pp", least)]
    return [
        STRATEGY,
        # the title has the number where it is the same
        *([Column("seeds")] if len(seeds) > 1 else []),
        ACCURACY,
        *([TASK_ID] if inferred else []),
        Column("forgetting", "pp", "least"),
        Column("BWT", "pp", "most"),
        *(spread if max(orders) > 1 else []),
        Column("archive", best="least"),
        Column("stored", best="least"),
        Column("ratio", best="least"),
        Column("time", "s"),
    ]


def _count_seeds(runs: Sequence[RunResult]) -> int:
    return len({run.seed for run in runs})


def _result_cells(runs: Sequence[RunResult]) -> dict[str, Cell]:
    """What the table says of one strategy, by name of the column."""
    archives = [run.archive_bytes for run in runs if run.archive_bytes is not None]
    orders = count_orders(runs)
    spread = order_robustness(runs) if orders > 1 else None
    ratio = mean(run.ratio for run in runs)
    return {
        "strategy": text_cell(runs[0].key.label),
        "seeds": number_cell([_count_seeds(runs)], digits=0),
        "accuracy": percent_cell([run.accuracy for run in runs]),
        "task id": percent_cell([run.task_id_accuracy for run in runs]),
        "forgetting": percent_cell([run.forgetting for run in runs]),
        "BWT": percent_cell([run.bwt for run in runs]),
        "R": Cell(str(orders), orders),
        "AOPD": percent_cell([spread.aopd if spread else None]),
        "MOPD": percent_cell([spread.mopd if spread else None]),
        "archive": bytes_cell(archives),
        "stored": bytes_cell([run.stored_bytes for run in runs]),
        "ratio": Cell(f"{ratio:.3f}", ratio),
        "time": number_cell([run.seconds for run in runs], digits=1),
    }


def _result_legend(runs: Sequence[RunResult]) -> str:
    legends = [LEGEND]
    if count_orders(runs) > 1:
        legends.append(ORDER_LEGEND)
    if runs[0].scenario == "class":
        legends.append(CLASS_LEGEND)
    return "; ".join(legends)


def scenario_table(runs: Sequence[RunResult], stream: str) -> Table:
    """Accuracy with task labels at test beside accuracy without, a row per strategy and rule.

    :param runs: of one stream in both scenarios.
    :param stream: its name.
    """
    columns = [
        STRATEGY,
        Column("with task labels", "%", "most"),
        Column("without, tasks inferred by"),
        ACCURACY,
        TASK_ID,
    ]
    rows = []
    for strategy in dict.fromkeys(run.strategy for run in runs):
        own = [run for run in runs if run.strategy == strategy]
        labelled = [run.accuracy for run in own if run.scenario == "task"]
        without = by_strategy([run for run in own if run.scenario == "class"]).values()
        for same in without or [[]]:
            rule = same[0].task_inference if same else None
            rows.append(
                [
                    text_cell(strategy),
                    percent_cell(labelled),
                    NOTHING if rule is None else text_cell(rule),
                    percent_cell([run.accuracy for run in same]),
                    percent_cell([run.task_id_accuracy for run in same]),
                ]
            )
    return Table(f"{stream}: both scenarios", columns, mark_best(columns, rows))


def order_table(runs: Sequence[RunResult], stream: str) -> Table:
    """Mean final accuracy by order, a row per strategy.

    :param runs: of one stream in one scenario.
    :param stream: its name.
    """
    orders = by_order(runs)
    columns = [STRATEGY, *(Column(f"order {order}", "%", "most") for order in orders)]
    rows = []
    for strategy, same in by_strategy(runs).items():
        own = by_order(same)
        cells = [percent_cell([run.accuracy for run in own.get(order, [])]) for order in orders]
        rows.append([text_cell(strategy), *cells])
    title = f"{stream}{scenario_of(runs)}: accuracy by task order"
    return Table(title, columns, mark_best(columns, rows), _order_legend(runs))


def _order_legend(runs: Sequence[RunResult]) -> str:
    """Which task came when, in the numbers of the canonical order, from 1."""
    spelled = [
        f"order {order}: {' '.join(str(task + 1) for task in own[0].order)}"
        for order, own in by_order(runs).items()
    ]
    return f"tasks as learned, {'; '.join(spelled)}"


def layer_table(runs: Sequence[RunResult], stream: str) -> Table:
    """What tasks made of each layer: mean over seeds and orders, a row per strategy and layer.

    :param runs: of one stream in one scenario; nothing is said of those that know no layers.
    :param stream: its name.
    """
    columns = [
        STRATEGY,
        Column("layer"),
        Column("rank"),
        Column("total"),
        Column("density", "%"),
        Column("bits"),
    ]
    rows = []
    for strategy, same in by_strategy(runs).items():
        means = {quantity: _known_means(same, quantity) for quantity in QUANTITIES}
        for layer in dict.fromkeys(name for own in means.values() for name in own):
            ranks, densities, bits = (means[quantity].get(layer) for quantity in QUANTITIES)
            cells = [_early_and_late(ranks), _total(ranks)]
            cells += [_early_and_late(densities), _early_and_late(bits)]
            rows.append([text_cell(strategy), text_cell(layer), *cells])
    return Table(f"{stream}{scenario_of(runs)}: layers", columns, rows, LAYER_LEGEND)


def _known_means(runs: Sequence[RunResult], quantity: str) -> dict[str, np.ndarray]:
    known = [run for run in runs if getattr(run, quantity)]
    return layer_means(known, quantity) if known else {}


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


def difference_table(runs: Sequence[RunResult], stream: str) -> Table:
    """How the accuracies of any two strategies differ, by runs of the same seed and order.

    :param runs: of one stream in one scenario.
    :param stream: its name.
    """
    columns = [
        Column("strategy"),
        Column("minus"),
        Column("pairs"),
        Column("difference", "pp"),
        Column("p"),
        Column("p, Holm"),
    ]
    differences = paired_differences(runs)
    chances = [difference.p for difference in differences]
    corrected = iter(holm([chance for chance in chances if chance is not None]))
    rows = [
        [
            text_cell(difference.first),
            text_cell(difference.second),
            Cell(str(len(difference.differences)), len(difference.differences)),
            percent_cell(difference.differences),
            _chance_cell(chance),
            _chance_cell(None if chance is None else next(corrected)),
        ]
        for difference, chance in zip(differences, chances)
    ]
    title = f"{stream}{scenario_of(runs)}: paired differences in accuracy"
    return Table(title, columns, rows, _difference_legend(differences, count_orders(runs)))


def _chance_cell(chance: float | None) -> Cell:
    return NOTHING if chance is None else Cell(f"{chance:.3g}", chance)


def _difference_legend(differences: Sequence[PairedDifference], orders: int) -> str:
    """What the test is, and the least that it can say of so few pairs."""
    pairs = sorted({len(difference.differences) for difference in differences})
    tested = [number for number in pairs if number > 1]
    legends = ["difference: mean ± deviation over the runs that both have, by seed and task order"]
    if 1 in pairs:
        legends.append("one pair says nothing of chance: there is no test of it")
    if tested:
        how = "exact" if tested[-1] <= EXACT_PAIRS else f"exact up to {EXACT_PAIRS} pairs"
        least = ", ".join(f"{smallest_p(n):.3g} with {n} pairs" for n in tested)
        legends.append(
            f"p: paired permutation test that flips signs, two-sided, {how}; the least that it can "
            f"be is {least}, whatever the difference"
        )
        legends.append("p, Holm: corrected for the number of tests in this table")
        if orders > 1:
            legends.append("runs of one seed in several orders are counted as pairs of their own")
    return "; ".join(legends)


def run_table(runs: Sequence[RunResult], stream: str) -> Table:
    """Every run by itself.

    :param runs: of one stream in one scenario.
    :param stream: its name.
    """
    columns = [
        STRATEGY,
        Column("order"),
        Column("seed"),
        ACCURACY,
        Column("forgetting", "pp", "least"),
        Column("BWT", "pp", "most"),
        Column("bytes", best="least"),
        Column("training", "s"),
        Column("evaluation", "s"),
        Column("recipe"),
    ]
    rows = [
        [
            text_cell(run.key.label),
            Cell(str(run.order_index), run.order_index),
            Cell(str(run.seed), run.seed),
            percent_cell([run.accuracy]),
            percent_cell([run.forgetting]),
            percent_cell([run.bwt]),
            bytes_cell([run.compared_bytes]),
            number_cell([run.train_seconds], digits=1),
            number_cell([run.eval_seconds], digits=1),
            text_cell(run.recipe) if run.recipe else NOTHING,
        ]
        for run in runs
    ]
    legend = "bytes: the archive, or what is stored where there is none; recipe: fingerprint of "
    legend += "hyper-parameters, backbone, budget and device"
    return Table(f"{stream}{scenario_of(runs)}: all runs", columns, rows, legend)


def mark_best(columns: Sequence[Column], rows: Sequence[list[Cell]]) -> list[list[Cell]]:
    """Mark the best mean of each column that has a better end, and all that look like it.

    :param columns: the heads, the first one of the strategies.
    :param rows: the cells; those of :data:`REFERENCES` are never the best.
    :return: the rows; nothing is marked in a column whose means are all the same.
    """
    marked = [list(row) for row in rows]
    competing = [row for row in marked if row[0].value not in REFERENCES]
    for place, column in enumerate(columns):
        sign = {"most": 1, "least": -1}.get(column.best or "")
        known = [row[place] for row in competing if isinstance(row[place].value, (int, float))]
        if sign is None or len(set(map(_middle, known))) < 2:
            continue
        _, best = max((sign * float(cell.value or 0), _middle(cell)) for cell in known)
        for row in competing:
            if _middle(row[place]) == best:
                row[place] = replace(row[place], is_best=True)
    return marked


def _middle(cell: Cell) -> str:
    """The mean as it is shown, without its deviation."""
    return re.sub(r" ± [\d.]+", "", cell.text)


def text_cell(text: str) -> Cell:
    """A name."""
    return Cell(text, text)


def percent_cell(values: Sequence[float | None]) -> Cell:
    """Fractions in percent, mean and deviation; a dash where none is known."""
    return number_cell([100 * value for value in values if value is not None])


def number_cell(values: Sequence[float], digits: int = 2) -> Cell:
    """Mean and, of several, sample deviation; a dash of none.

    >>> number_cell([90, 94]).text, number_cell([2.25], digits=1).text
    ('92.00 ± 2.83', '2.2')
    """
    if not values:
        return NOTHING
    # Adding 0 turns a rounded -0.00 into 0.00.
    text = f"{round(mean(values), digits) + 0.0:.{digits}f}"
    if len(values) > 1:
        text += f" ± {stdev(values):.{digits}f}"
    return Cell(text, mean(values))


def bytes_cell(counts: Sequence[int]) -> Cell:
    """Mean with a unit and, where the numbers differ, their deviation in the same unit.

    >>> bytes_cell([80_000, 82_000]).text, bytes_cell([500, 500]).text
    ('81.0 ± 1.4 kB', '500 B')
    """
    if not counts:
        return NOTHING
    deviation = stdev(counts) if len(set(counts)) > 1 else None
    return Cell(format_bytes(mean(counts), deviation), mean(counts))
