"""What a hundred tasks cost and five hundred: memory, steps, opening, activation, archives.

Run ``python -m benchmarks.scale``; each strategy learns tasks of a few random samples with an MLP
of 784-100-100, and is looked at after some of them. Times are medians of this process's CPU time;
whether steps become slower is found by taking turns with a strategy at its second task.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.core import SupervisedPlugin
from rich.console import Console
from rich.table import Table
from torch import nn

from avalanche_compress import TaskNetwork, load_archive, registered_methods, save_archive
from benchmarks.runs.backbones import BACKBONES
from benchmarks.speed.figures import Figure, figure_of, seconds_of, table_of

SHAPE = (1, 28, 28)
CLASSES = 10
BATCH = 32
STEPS = 4
EPOCHS = 2
LOOKS = 9
"""Tasks at which a moment's times are taken; the median counts."""
ROUNDS = 5
"""Activations of each task; the median counts."""
FIRST = 10
"""Tasks whose activation others' are compared with."""
TURNS = 15
"""Tasks that an early and a late strategy train in turns."""
TURN_STEPS = 32
TURN_EPOCHS = 3
"""Of such a task: epochs that are long enough for what CACL computes only now and then."""
STRATEGIES: dict[str, Callable[..., Any]] = {
    name: partial(method.build, {**settings, **method.long})
    for method in registered_methods()
    for name, settings in method.examples.items()
}
"""The methods and their variants."""
METHODS = [method.name for method in registered_methods()]


@dataclass(frozen=True)
class Moment:
    """A strategy after some number of tasks. Times are milliseconds.

    :param held_bytes: that the network holds, see :func:`held_bytes`.
    :param archive_bytes: of its archive.
    :param resident_bytes: that the process has in memory.
    :param optimised: tensors that the optimiser has.
    :param step: a training step with its callbacks, in the last epoch of tasks but the first:
        HALRP's first task, and the first epoch of others, train whole weights.
    :param open: what comes before the first step of a task.
    :param close: what comes after its last one.
    :param activate: from another task to one, the mean over all there are, in random order.
    :param activate_first: the same of the slowest of the first ten.
    :param activate_slowest: the same of the slowest of all.
    :param save: writing the archive.
    :param load_first: reading the archive and activating the first task, beyond reading the bytes.
    :param load_middle: the same with the task in the middle.
    :param load_last: the same with the newest task.
    """

    strategy: str
    tasks: int
    held_bytes: int
    archive_bytes: int
    resident_bytes: int
    optimised: int
    step: float
    open: float
    close: float
    activate: float
    activate_first: float
    activate_slowest: float
    save: float
    load_first: float
    load_middle: float
    load_last: float


class TaskTimer(SupervisedPlugin):
    """Seconds of the parts of each task's training."""

    def __init__(self) -> None:
        super().__init__()
        self.opening: list[float] = []
        self.steps: list[float] = []
        self.closing: list[float] = []
        self._began = 0.0

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._began = time.process_time()

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if strategy.clock.train_exp_epochs == 0:
            self.opening.append(time.process_time() - self._began)

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._began = time.process_time()

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.steps.append(time.process_time() - self._began)

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._began = time.process_time()

    def after_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.closing.append(time.process_time() - self._began)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table.

    :param arguments: command line without the program's name.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--tasks", type=int, nargs="+", default=[20, 100, 500], metavar="N")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=METHODS)
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    moments = []
    for name in given.strategies:
        moments += grow(name, given.tasks)
        Console(width=140).print(_table(moments[-len(given.tasks) :]))
    steps = [in_turns(name, tasks) for name in given.strategies for tasks in given.tasks]
    Console().print(table_of(steps))
    if given.json is not None:
        figures = {
            "moments": [asdict(moment) for moment in moments],
            "steps": [asdict(step) for step in steps],
        }
        given.json.write_text(json.dumps(figures, indent=2))
    return 0


def grow(name: str, looks: Sequence[int]) -> list[Moment]:
    """Train a strategy task after task.

    :param name: one of :data:`STRATEGIES`.
    :param looks: numbers of tasks after which it is looked at, ascending.
    """
    strategy, timer = _learner(name)
    moments = []
    for number, experience in enumerate(_stream(looks[-1]).train_stream, 1):
        strategy.train(experience)
        if number in looks:
            moments.append(_look(name, strategy, timer))
    return moments


def in_turns(name: str, tasks: int, turns: int = TURNS) -> Figure:
    """A training step of a late task against one of task 2, by strategies that take turns.

    In each turn one strategy trains its next task and the other, which is new, its second: both
    find the machine as busy. The mean over a turn's steps counts, those of a task's first epoch
    apart.

    :param name: one of :data:`STRATEGIES`.
    :param tasks: number of the late task; each turn is one task later.
    :param turns: how many.
    """
    small, stream = _stream(tasks).train_stream, _stream(tasks + turns, TURN_STEPS).train_stream
    late = _learner(name)
    for experience in small[: tasks - 1]:
        late[0].train(experience)
    late_steps, early_steps = [], []
    for experience in stream[tasks - 1 : tasks - 1 + turns]:
        early = _learner(name)
        early[0].train(small[0])
        early_steps.append(_step(*early, stream[1]))
        late_steps.append(_step(*late, experience))
    what = f"{name} step, mlp, batch {BATCH}, task {tasks}"
    return figure_of(what, late_steps, "task 2", early_steps)


def _step(strategy: Any, timer: TaskTimer, experience: Any) -> float:
    """Seconds of one that is not of a task's first epoch; the task is trained."""
    strategy.train_epochs = TURN_EPOCHS
    strategy.train(experience)
    return statistics.mean(timer.steps[-TURN_STEPS * (TURN_EPOCHS - 1) :])


def _learner(name: str) -> tuple[Any, TaskTimer]:
    """A strategy that has learned nothing yet, and what times it."""
    torch.manual_seed(0)
    model, timer = _build(), TaskTimer()
    strategy = STRATEGIES[name](
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=BATCH,
        train_epochs=EPOCHS,
        evaluator=None,
        plugins=[timer],
    )
    return strategy, timer


def _look(name: str, strategy: Any, timer: TaskTimer) -> Moment:
    network = strategy.network.eval()
    tasks = network.tasks
    activations = _activations(network)
    held = held_bytes(network)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive"
        saves = [seconds_of(lambda: save_archive(network, path)) for _ in range(3)]
        size = path.stat().st_size
        reads = [seconds_of(path.read_bytes) for _ in range(3)]
        loads = [
            statistics.median(seconds_of(partial(_use, path, task)) for _ in range(3))
            for task in (tasks[0], tasks[len(tasks) // 2], tasks[-1])
        ]
    return Moment(
        name,
        len(tasks),
        held,
        size,
        _resident_bytes(),
        sum(len(group["params"]) for group in strategy.optimizer.param_groups),
        1e3 * statistics.median(_like_steps(timer.steps, len(tasks))),
        1e3 * statistics.median(timer.opening[-LOOKS:]),
        1e3 * statistics.median(timer.closing[-LOOKS:]),
        1e3 * statistics.mean(activations),
        1e3 * max(activations[:FIRST]),
        1e3 * max(activations),
        1e3 * statistics.median(saves),
        *(1e3 * (load - statistics.median(reads)) for load in loads),
    )


def _activations(network: TaskNetwork) -> list[float]:
    """Seconds that the activation of each task takes, when others were active before."""
    rounds: dict[int, list[float]] = {task: [] for task in network.tasks}
    draw = Random(0)
    for _ in range(ROUNDS):
        for task in draw.sample(network.tasks, len(rounds)):
            rounds[task].append(seconds_of(partial(network.activate, task)))
    return [statistics.median(seconds) for seconds in rounds.values()]


def _like_steps(steps: Sequence[float], tasks: int) -> list[float]:
    """Those of all steps that do the same work: of the newest tasks' last epochs."""
    first = max(min(1, tasks - 1), tasks - LOOKS)
    ends = range((first + 1) * EPOCHS * STEPS, tasks * EPOCHS * STEPS + 1, EPOCHS * STEPS)
    return [step for end in ends for step in steps[end - STEPS : end]]


def _use(path: Path, task: int) -> None:
    """Load an archive for one task."""
    load_archive(path, _build).activate(task)


def held_bytes(network: TaskNetwork) -> int:
    """Bytes of everything that a network refers to: tensors' memory and Python's objects.

    :param network: any; gradients are not counted.
    """
    network.zero_grad()
    gc.collect()
    total, storages = 0, set()
    for held in _reachable(network):
        total += sys.getsizeof(held)
        if isinstance(held, torch.Tensor) and not held.is_meta:
            storage = held.untyped_storage()
            if storage.data_ptr() not in storages:
                storages.add(storage.data_ptr())
                total += storage.nbytes()
    return total


def _reachable(root: Any) -> Iterator[Any]:
    """An object and all data that it refers to, each once."""
    code = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
    seen, waiting = {id(root)}, [root]
    while waiting:
        found = waiting.pop()
        yield found
        for other in gc.get_referents(found):
            if id(other) not in seen and not isinstance(other, code):
                seen.add(id(other))
                waiting.append(other)


def _resident_bytes() -> int:
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


def _build() -> nn.Module:
    return BACKBONES["mlp"](SHAPE, CLASSES, True)


def _stream(tasks: int, steps: int = STEPS) -> Any:
    """Tasks of random samples, each with labels of its own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(steps * BATCH, *SHAPE, generator=generator)
    labels = [torch.randint(CLASSES, (len(x),), generator=generator) for _ in range(tasks)]
    pairs = [(x, y) for y in labels]
    return tensors_benchmark(
        train_tensors=pairs, test_tensors=pairs, task_labels=list(range(tasks))
    )


def slope(moments: Sequence[Moment], name: str) -> float:
    """What a task added, from the first moment to the last.

    :param moments: of one strategy.
    :param name: of a number of bytes.

    >>> early, late = (Moment("wsn", n, 9 * n, 8 * n, 0, 5, *10 * [1]) for n in (2, 10))
    >>> slope([early, late], "held_bytes")
    9.0
    """
    first, last = moments[0], moments[-1]
    return float((getattr(last, name) - getattr(first, name)) / (last.tasks - first.tasks))


def _table(moments: Sequence[Moment]) -> Table:
    title = moments[0].strategy
    if len(moments) > 1:
        held, stored = slope(moments, "held_bytes"), slope(moments, "archive_bytes")
        resident = slope(moments, "resident_bytes")
        title += (
            f": {held:,.0f} bytes a task held, {stored:,.0f} in the archive, ratio "
            f"{held / stored:.3f}; resident {resident:,.0f}"
        )
    table = Table(title=title)
    times = [field.name for field in fields(Moment) if field.type == "float"]
    headings = (f"{name.replace('_', ' ')} ms" for name in times)
    for heading in ("tasks", "held", "archive", "optimised", *headings):
        table.add_column(heading, justify="right")
    for moment in moments:
        table.add_row(
            str(moment.tasks),
            f"{moment.held_bytes:,}",
            f"{moment.archive_bytes:,}",
            str(moment.optimised),
            *(f"{getattr(moment, name):.3g}" for name in times),
        )
    return table
