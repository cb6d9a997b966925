"""What runs leave behind: the numbers, their arithmetic, how they group, and ``results.json``."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Callable, Iterable, List, Mapping, Optional, Sequence, TypeVar

import torch

from avalanche_compress import OrderRobustness, OrderRobustnessResult
from avalanche_compress.files import write_atomically

Row = List[Optional[float]]
_Key = TypeVar("_Key")

_PER_EXPERIENCE = r"/eval_phase/test_stream/Task\d+/Exp(\d+)"


@dataclass(frozen=True)
class RunKey:
    """One cell of the comparison.

    Order 0 is the canonical one, and ``backbone=None`` the stream's own; neither is spelled out.
    """

    strategy: str
    stream: str
    seed: int
    scenario: str = "task"
    inference: str | None = None
    order_index: int = 0
    quick: bool = False
    backbone: str | None = None
    bf16: bool = False

    @property
    def label(self) -> str:
        """The strategy, with its rule to infer tasks if it has one."""
        return self.strategy if self.inference is None else f"{self.strategy}, {self.inference}"

    @property
    def slug(self) -> str:
        """A file name for whatever belongs to this run."""
        stream = self.stream if self.scenario == "task" else f"{self.stream}-{self.scenario}"
        stream += "" if self.backbone is None else f"-{self.backbone}"
        order = f"-order{self.order_index}" if self.order_index else ""
        modes = "".join(f"-{mode}" for mode in self._modes)
        return f"{stream}-{self.label.replace(', ', '-')}-seed{self.seed}{order}{modes}"

    def __str__(self) -> str:
        scenario = "" if self.scenario == "task" else f" ({self.scenario} scenario)"
        order = f", order {self.order_index}" if self.order_index else ""
        modes = "".join(f", {mode}" for mode in self._modes)
        scenario += "" if self.backbone is None else f" with {self.backbone}"
        return f"{self.label} on {self.stream}{scenario}, seed {self.seed}{order}{modes}"

    @property
    def _modes(self) -> list[str]:
        return ["quick"] * self.quick + ["bf16"] * self.bf16


@dataclass(frozen=True)
class RunResult:
    """One object of ``results.json``; the field names are its keys and do not change.

    :param order: the task index that each experience held.
    :param accuracy: mean over tasks of the final test accuracy, 0 to 1.
    :param accuracy_matrix: row i holds the test accuracy of every task after task i; None where
        a task was not seen yet.
    :param forgetting: mean over all tasks but the last of the best earlier accuracy minus the
        final one; None when tasks were not learnt one after the other.
    :param bwt: backward transfer, the mean of the final accuracy minus the one just after the
        task was learnt; None as for forgetting.
    :param archive_bytes: size of the archive file; None for methods that write none.
    :param stored_bytes: what the method has to keep to go on learning and to answer.
    :param independent_bytes: one plain network per task, at four bytes a number.
    :param scenario: ``"task"``, with task labels at test, or ``"class"``, without.
    :param task_inference: the rule by which tasks were inferred; None where none was.
    :param task_id_accuracy: mean over tasks of the final part of test samples whose task was
        inferred rightly, 0 to 1; None where none was inferred.
    :param order_index: the number of ``order`` among the stream's task orders; 0 is the canonical
        one.
    :param ranks: by dotted name of the weight, how many terms each task added to it, in order of
        learning; None where no weights are kept as terms.
    :param quick: whether the epochs were cut down by ``--quick``.
    :param recipe: fingerprint of the hyper-parameters, the backbone, the budget and the device, see
        :func:`benchmarks.runs.recipe.fingerprint`.
    :param device: where it was computed, ``"cpu"`` or ``"cuda"``.
    :param archive_sha256: of the archive's bytes; None where there is none.
    :param own_backbone: whether the backbone is the one that the stream has by default.
    :param densities: by dotted name of the weight, the part of it that each task computes with, 0
        to 1, in order of learning; None where tasks have no masks.
    :param bits: by dotted name of the weight, mean bits of the numbers that each task added to it,
        None where it added nothing; None where the method is not one of ours.
    :param hardware: the processor that it was computed on; empty where it was not recorded.
    :param bf16: whether training computed in bfloat16.
    """

    strategy: str
    stream: str
    backbone: str
    seed: int
    order: list[int]
    accuracy: float
    accuracy_matrix: list[Row]
    forgetting: float | None
    bwt: float | None
    archive_bytes: int | None
    stored_bytes: int
    independent_bytes: int
    train_seconds: float
    eval_seconds: float
    versions: dict[str, str]
    epochs: int
    train_mb_size: int
    scenario: str = "task"
    task_inference: str | None = None
    task_id_accuracy: float | None = None
    order_index: int = 0
    ranks: dict[str, list[int]] | None = None
    quick: bool = False
    recipe: str = ""
    device: str = "cpu"
    archive_sha256: str | None = None
    own_backbone: bool = True
    densities: dict[str, list[float]] | None = None
    bits: dict[str, list[float | None]] | None = None
    hardware: str = ""
    bf16: bool = False

    @property
    def key(self) -> RunKey:
        """Which run this is."""
        return RunKey(
            self.strategy,
            self.stream,
            self.seed,
            self.scenario,
            self.task_inference,
            self.order_index,
            self.quick,
            None if self.own_backbone else self.backbone,
            self.bf16,
        )

    @property
    def compared_bytes(self) -> int:
        """The archive on disk, or what is kept where there is no archive."""
        return self.stored_bytes if self.archive_bytes is None else self.archive_bytes

    @property
    def ratio(self) -> float:
        """Compared bytes over those of independent networks."""
        return self.compared_bytes / self.independent_bytes

    @property
    def seconds(self) -> float:
        """Seconds of training and evaluation."""
        return self.train_seconds + self.eval_seconds

    @property
    def accuracy_so_far(self) -> Row:
        """After each task, the mean accuracy over the tasks seen; None where none was measured."""
        return [mean_so_far(row) for row in self.accuracy_matrix]

    @property
    def final_by_task(self) -> dict[int, float]:
        """Final accuracy by task index in the canonical order, whichever order was trained."""
        return dict(zip(self.order, _known(self.accuracy_matrix[-1])))


def accuracy_row(metrics: Mapping[str, float], tasks: int, metric: str = "Top1_Acc_Exp") -> Row:
    """Per-task accuracies out of the dictionary that Avalanche's ``eval`` returns.

    :param metrics: metric name to value.
    :param tasks: number of tasks of the stream.
    :param metric: which one, as Avalanche calls it.
    :return: one accuracy per task, None where there is none.

    >>> accuracy_row({"Top1_Acc_Exp/eval_phase/test_stream/Task001/Exp001": 0.5}, 3)
    [None, 0.5, None]
    """
    row: Row = [None] * tasks
    for name, value in metrics.items():
        found = re.fullmatch(metric + _PER_EXPERIENCE, name)
        if found:
            row[int(found.group(1))] = float(value)
    return row


def mean_so_far(row: Row) -> float | None:
    """Mean accuracy over the tasks of a row that were measured; None where none was.

    >>> mean_so_far([0.5, 1.0, None]), mean_so_far([None, None])
    (0.75, None)
    """
    known = [accuracy for accuracy in row if accuracy is not None]
    return _mean(known) if known else None


def final_accuracy(matrix: Sequence[Row]) -> float:
    r"""``1/T sum_j a[T-1][j]``: the mean over tasks after the last one.

    :raises ValueError: if a task has no final accuracy.
    """
    return _mean(_known(matrix[-1]))


def forgetting(matrix: Sequence[Row]) -> float | None:
    r"""``mean_{j<T-1} (max_{i<T-1} a[i][j] - a[T-1][j])`` (Chaudhry et al., 2018).

    :return: None when no task was measured before the last one was learnt; 0 for a single task.
    """
    if len(matrix) == 1:
        return 0.0
    earlier = [_known_column(matrix[:-1], task) for task in range(len(matrix) - 1)]
    if not all(earlier):
        return None
    final = _known(matrix[-1])
    return _mean([max(best) - now for best, now in zip(earlier, final)])


def backward_transfer(matrix: Sequence[Row]) -> float | None:
    r"""``mean_{j<T-1} (a[T-1][j] - a[j][j])`` (Lopez-Paz and Ranzato, 2017).

    :return: None when some task was not measured right after it was learnt; 0 for a single task.
    """
    if len(matrix) == 1:
        return 0.0
    final = _known(matrix[-1])
    changes = []
    for task, now in enumerate(final[:-1]):
        learnt = matrix[task][task]
        if learnt is None:
            return None
        changes.append(now - learnt)
    return _mean(changes)


def accuracy_by_order(runs: Sequence[RunResult]) -> dict[int, dict[int, float]]:
    """``P[r][t]``: final accuracy by order and by task index in the canonical order.

    :param runs: of one strategy; several seeds of one order are averaged.
    :return: orders and tasks ascending.
    """
    found = {}
    for order in sorted({run.order_index for run in runs}):
        finals = [run.final_by_task for run in runs if run.order_index == order]
        found[order] = {task: _mean([f[task] for f in finals]) for task in sorted(finals[0])}
    return found


def order_robustness(runs: Sequence[RunResult]) -> OrderRobustnessResult:
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


def by_stream(results: Iterable[RunResult]) -> list[tuple[str, list[RunResult]]]:
    """Runs that may stand in one table: of one stream, backbone, number of epochs and precision.

    :param results: any runs.
    :return: the stream's name, behind it in brackets whether they were quick and in bfloat16, with
        the runs, in order of first appearance.
    """
    grouped = _grouped(
        results, lambda run: (run.stream, run.backbone, run.quick, run.epochs, run.bf16)
    )
    return [
        (stream + " (quick)" * quick + " (bfloat16)" * bf16, runs)
        for (stream, _, quick, _, bf16), runs in grouped.items()
    ]


def by_scenario(results: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    """Runs grouped by scenario, in order of first appearance."""
    return _grouped(results, lambda run: run.scenario)


def by_strategy(results: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    """Runs grouped by strategy and rule to infer tasks, in order of first appearance."""
    return _grouped(results, lambda run: run.key.label)


def by_order(results: Iterable[RunResult]) -> dict[int, list[RunResult]]:
    """Runs grouped by the number of their task order, ascending."""
    return dict(sorted(_grouped(results, lambda run: run.order_index).items()))


def count_orders(results: Iterable[RunResult]) -> int:
    """In how many task orders the runs learned."""
    return len(by_order(results))


def learned_in_turn(runs: Iterable[RunResult]) -> bool:
    """Whether tasks were learned one after the other, and not from the data of all at once."""
    return all(run.forgetting is not None for run in runs)


def title_of(results: Sequence[RunResult], stream: str) -> str:
    """What runs of one scenario have in common, in a line; stream as of :func:`by_stream`."""
    first = results[0]
    epochs = "1 epoch" if first.epochs == 1 else f"{first.epochs} epochs"
    tasks = f"{len(first.order)} tasks, {first.backbone}"
    return f"{stream}{scenario_of(results)}: {tasks}, {epochs}, {_repetitions(results)}"


def scenario_of(results: Sequence[RunResult]) -> str:
    """The scenario of all runs in brackets, to put behind the stream; empty for the usual one."""
    scenario = results[0].scenario
    return "" if scenario == "task" else f" ({scenario} scenario)"


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


def versions() -> dict[str, str]:
    """Versions of whatever the numbers depend on."""
    import avalanche_compress

    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "avalanche-lib", "numpy"):
        found[name] = metadata.version(name)
    found["avalanche_compress"] = avalanche_compress.__version__
    return found


def hardware(device: str) -> str:
    """The processor that computes, for people.

    :param device: ``"cpu"`` or ``"cuda"``.
    """
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    """The processor's model; Linux keeps it where Python does not look."""
    table = Path("/proc/cpuinfo")
    text = table.read_text(encoding="utf-8") if table.exists() else ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()


def write_results(results: Sequence[RunResult], path: Path) -> None:
    """Replace ``results.json`` in one step: a reader sees the old file or the new one."""
    write_text(path, json.dumps([asdict(result) for result in results], indent=2) + "\n")


def read_results(path: Path) -> list[RunResult]:
    """Read what :func:`write_results` wrote."""
    return [RunResult(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step, through a temporary file beside it."""
    write_atomically(path, text.encode("utf-8"))


def _grouped(
    results: Iterable[RunResult], key: Callable[[RunResult], _Key]
) -> dict[_Key, list[RunResult]]:
    grouped: dict[_Key, list[RunResult]] = {}
    for result in results:
        grouped.setdefault(key(result), []).append(result)
    return grouped


def _repetitions(results: Sequence[RunResult]) -> str:
    """How often each strategy was run.

    With several orders the deviation is over all runs, whichever seed and order they had.
    """
    seeds, orders = len({result.seed for result in results}), count_orders(results)
    if seeds > 1 and orders > 1:
        return f"mean ± deviation of {seeds} seeds in {orders} task orders"
    if orders > 1:
        return f"seed {results[0].seed}, mean ± deviation of {orders} task orders"
    return f"mean ± deviation of {seeds} seeds" if seeds > 1 else f"seed {results[0].seed}"


def _known(row: Row) -> list[float]:
    values = [value for value in row if value is not None]
    if len(values) != len(row):
        raise ValueError(f"Every task needs a final accuracy, but the last row is {row}.")
    return values


def _known_column(matrix: Sequence[Row], task: int) -> list[float]:
    return [value for value in (row[task] for row in matrix) if value is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
