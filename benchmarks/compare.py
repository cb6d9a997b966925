"""Train strategies on streams of tasks and compare accuracy, forgetting, bytes and seconds.

Run ``python -m benchmarks.compare --help`` for the options.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Iterable, NoReturn, Sequence

import numpy as np
import torch
from rich.console import Console

from benchmarks import pictures, report
from benchmarks.display import Display, EpochWatcher, make_display
from benchmarks.results import (
    Row,
    RunKey,
    RunResult,
    accuracy_row,
    backward_transfer,
    final_accuracy,
    forgetting,
    versions,
    write_results,
    write_text,
)
from benchmarks.strategies import RULES, STRATEGIES, Learner, RunSettings
from benchmarks.streams import SCENARIOS, STREAMS, Budget, Stream, nearest, task_orders
from benchmarks.tracking import MODES, Tracker


@dataclass(frozen=True)
class Options:
    """The command line, checked.

    :param epochs: epochs per task instead of each stream's default; None keeps the default.
    :param data: folder of the data sets.
    :param out: folder of everything that is written.
    :param wandb: ``off``, ``offline`` or ``online``.
    :param scenarios: ``task``, ``class`` or both.
    :param inference: the rules by which our strategies infer tasks in the class scenario.
    :param orders: how many task orders, the canonical one first.
    """

    strategies: list[str]
    streams: list[str]
    seeds: list[int]
    epochs: int | None
    data: Path
    out: Path
    wandb: str
    scenarios: list[str]
    inference: list[str]
    orders: int = 1

    def runs(self) -> list[RunKey]:
        """All runs, the strategies of one stream, scenario, order and seed beside each other."""
        return [
            RunKey(strategy, stream, seed, scenario, rule, order)
            for stream in self.streams
            for scenario in self.scenarios
            for order in range(self.orders)
            for seed in self.seeds
            for strategy in self.strategies
            if scenario in _scenarios(strategy)
            for rule in self._rules(strategy, scenario)
        ]

    def _rules(self, strategy: str, scenario: str) -> Sequence[str | None]:
        """A row per rule for whoever infers tasks."""
        if scenario == "class" and STRATEGIES[strategy].infers:
            return self.inference
        return [None]

    def budget(self, stream: str) -> Budget:
        """What is spent on each task of a stream."""
        budget = STREAMS[stream].budget
        return budget if self.epochs is None else dataclasses.replace(budget, epochs=self.epochs)


@dataclass(frozen=True)
class Failure:
    """A run that did not finish."""

    key: RunKey
    reason: str
    traceback_file: Path

    def __str__(self) -> str:
        return f"failed: {self.key}: {self.reason} (traceback in {self.traceback_file})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison.

    :param arguments: command line without the program's name; that of the process by default.
    :return: exit code, 0 only when every run finished.
    """
    options = parse(arguments)
    # Avalanche warns about its own deprecations in every run.
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    console = Console()
    runs = options.runs()
    display = make_display(console, len(runs))
    results: list[RunResult] = []
    failures: list[Failure] = []
    try:
        for key in runs:
            try:
                results.append(run(key, options, display))
                write_results(results, options.out / "results.json")
                display.finish(results[-1])
            except Exception as error:
                failures.append(_failure(key, error, options.out))
                display.fail(key)
    finally:
        display.close()
        _report(results, failures, options.out, console)
    return 1 if failures else 0


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line; an unknown name ends the program with exit code 2."""
    parser = _Parser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--streams", nargs="+", default=["split_digits"], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs per task")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR", help="data sets (default: data)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), metavar="DIR", help="default: results"
    )
    parser.add_argument("--wandb", choices=MODES, default="off")
    parser.add_argument(
        "--scenario",
        nargs="+",
        choices=SCENARIOS,
        default=["task"],
        help="with task labels at test, or without and all classes in one head",
    )
    parser.add_argument(
        "--inference",
        nargs="+",
        default=list(RULES),
        metavar="RULE",
        help=f"class scenario: how our strategies infer tasks (default: {' '.join(RULES)})",
    )
    parser.add_argument(
        "--orders",
        type=int,
        default=1,
        metavar="N",
        help="orders of the tasks, the canonical one first (default: 1)",
    )
    parser.epilog = f"strategies: {' '.join(STRATEGIES)}; streams: {' '.join(STREAMS)}"
    given = parser.parse_args(arguments)
    if given.strategies is None:
        given.strategies = [name for name in STRATEGIES if _scenarios(name) & set(given.scenario)]
    _check_names(parser, "strategy", given.strategies, STRATEGIES)
    _check_names(parser, "stream", given.streams, STREAMS)
    _check_names(parser, "rule", given.inference, [*RULES, *(f"{rule}_batch" for rule in RULES)])
    _check_scenarios(parser, given)
    if given.epochs is not None and given.epochs < 1:
        parser.error(f"--epochs is {given.epochs}, but a task needs at least 1.")
    if given.orders < 1:
        parser.error(f"--orders is {given.orders}, but a comparison needs at least 1.")
    return Options(
        _unique(given.strategies),
        _unique(given.streams),
        _unique(given.seeds),
        given.epochs,
        given.data,
        given.out,
        given.wandb,
        _unique(given.scenario),
        _unique(given.inference),
        given.orders,
    )


def run(key: RunKey, options: Options, display: Display) -> RunResult:
    """Train and evaluate one strategy on one stream with one seed and order.

    :param key: which run.
    :param options: the command line.
    :param display: gets the progress.
    """
    budget = options.budget(key.stream)
    _error_file(key, options.out).unlink(missing_ok=True)
    tracker = Tracker(options.wandb, options.out, key, budget)
    finished = False
    try:
        settings = _settings(key, options, tracker)
        archive = options.out / "archives" / key.slug
        result = _measure(key, settings, display, archive)
        pictures.draw_run(result, options.out)
        tracker.log(result, archive)
        finished = True
    finally:
        tracker.close(failed=not finished)
    return result


def _settings(key: RunKey, options: Options, tracker: Tracker) -> RunSettings:
    budget = options.budget(key.stream)
    stream = _build_stream(key, options.data, budget)
    loggers = [] if tracker.logger is None else [tracker.logger]
    backbone = STREAMS[key.stream].backbone
    return RunSettings(stream, backbone, budget, key.seed, loggers=loggers, inference=key.inference)


def _build_stream(key: RunKey, data: Path, budget: Budget) -> Stream:
    held_out = 0.0 if STRATEGIES[key.strategy].holds_out else budget.validation_fraction
    changes: dict[str, Any] = {}
    if key.scenario != "task":
        changes["scenario"] = key.scenario
    if key.order_index:
        changes["order"] = _task_order(key, data)
    _seed_everything(key.seed)
    return STREAMS[key.stream].build(data, key.seed, held_out, **changes)


def _task_order(key: RunKey, data: Path) -> list[int]:
    orders = key.order_index + 1
    return task_orders(_count_tasks(key.stream, data), orders)[key.order_index]


@lru_cache(maxsize=None)
def _count_tasks(stream: str, data: Path) -> int:
    """Only a stream that was built knows its tasks."""
    return len(STREAMS[stream].build(data, 0).tasks)


def _measure(key: RunKey, settings: RunSettings, display: Display, archive: Path) -> RunResult:
    stream, budget = settings.stream, settings.budget
    position = _Position(display)
    settings.plugins.append(EpochWatcher(position.epoch))
    display.start(key, len(stream.tasks), budget.epochs)
    _seed_everything(key.seed)
    learner = STRATEGIES[key.strategy].build(settings)
    history = _train_all(learner, stream, position)
    sizes = learner.sizes(archive)
    return RunResult(
        strategy=key.strategy,
        stream=key.stream,
        backbone=settings.backbone,
        seed=key.seed,
        order=stream.order,
        accuracy=final_accuracy(history.matrix),
        accuracy_matrix=history.matrix,
        forgetting=forgetting(history.matrix),
        bwt=backward_transfer(history.matrix),
        archive_bytes=sizes.archive,
        stored_bytes=sizes.stored,
        independent_bytes=settings.independent_bytes(),
        train_seconds=history.train_seconds,
        eval_seconds=history.eval_seconds,
        versions=versions(),
        epochs=budget.epochs,
        train_mb_size=budget.train_mb_size,
        scenario=key.scenario,
        task_inference=key.inference,
        task_id_accuracy=None if key.inference is None else final_accuracy([history.task_ids]),
        order_index=key.order_index,
        ranks=(learner.ranks() or None) if learner.ranks else None,
    )


@dataclass
class _Position:
    """Where a run is: Avalanche's clock knows the epoch, the loop knows the task."""

    display: Display
    task: int = 0

    def epoch(self, epoch: int) -> None:
        self.display.epoch(self.task, epoch)


@dataclass
class _History:
    matrix: list[Row]
    task_ids: Row = field(default_factory=list)
    train_seconds: float = 0.0
    eval_seconds: float = 0.0


def _train_all(learner: Learner, stream: Stream, position: _Position) -> _History:
    """Learn the tasks in order; after each one evaluate those that were seen."""
    history = _History([])
    for task, experience in enumerate(stream.benchmark.train_stream):
        position.task = task
        start = time.perf_counter()
        learner.train(experience)
        trained = time.perf_counter()
        metrics = learner.eval(stream.benchmark.test_stream[: task + 1])
        history.train_seconds += trained - start
        history.eval_seconds += time.perf_counter() - trained
        row = accuracy_row(metrics, len(stream.tasks))
        history.task_ids = accuracy_row(metrics, len(stream.tasks), "TaskId_Acc_Exp")
        history.matrix.append(row)
        position.display.task(task, _mean_so_far(row))
    return history


def _mean_so_far(row: Row) -> float | None:
    seen = [accuracy for accuracy in row if accuracy is not None]
    return sum(seen) / len(seen) if seen else None


def _report(
    results: Sequence[RunResult], failures: Sequence[Failure], out: Path, console: Console
) -> None:
    if results:
        report.write_report(results, out)
    # Rich drops columns for which there is no room; a narrow terminal folds the lines instead.
    console.width = max(console.width, 200)
    for table in report.rich_tables(results):
        console.print(table)
    for failure in failures:
        console.print(str(failure), markup=False, highlight=False, soft_wrap=True)


def _failure(key: RunKey, error: Exception, out: Path) -> Failure:
    path = _error_file(key, out)
    write_text(path, traceback.format_exc())
    return Failure(key, f"{type(error).__name__}: {' '.join(str(error).split())}", path)


def _error_file(key: RunKey, out: Path) -> Path:
    return out / "errors" / f"{key.slug}.txt"


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _unique(values: list) -> list:
    return list(dict.fromkeys(values))


class _Parser(argparse.ArgumentParser):
    """Prints one line for an error, not the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def _scenarios(strategy: str) -> set[str]:
    return set(STRATEGIES[strategy].scenarios)


def _check_scenarios(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    for scenario in given.scenario:
        for stream in given.streams:
            if scenario not in STREAMS[stream].scenarios:
                parser.error(
                    f"{stream} has no {scenario} scenario: its tasks are the same classes in other "
                    "guises, so there are no classes to add."
                )
    for strategy in given.strategies:
        if not set(given.scenario) & _scenarios(strategy):
            parser.error(f"{strategy} needs task labels at test: it has no class scenario.")


def _check_names(
    parser: argparse.ArgumentParser, kind: str, given: Iterable[str], known: Iterable[str]
) -> None:
    for name in given:
        if name not in known:
            parser.error(f"there is no {kind} {name!r}; the nearest is {nearest(name, known)!r}.")


if __name__ == "__main__":
    sys.exit(main())
