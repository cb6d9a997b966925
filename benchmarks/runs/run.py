"""One run of the comparison: train and evaluate one strategy on one stream, or go on with it."""

from __future__ import annotations

import hashlib
import random
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avalanche_compress import AutocastPlugin, ChannelsLastPlugin, TensorDataPlugin
from benchmarks.data.splits import Stream, StreamRequest
from benchmarks.data.streams import STREAMS, Budget, build_stream, task_orders
from benchmarks.report import pictures
from benchmarks.runs import recipe
from benchmarks.runs.accuracies import (
    Row,
    accuracy_row,
    backward_transfer,
    final_accuracy,
    forgetting,
    mean_so_far,
)
from benchmarks.runs.bfloat16 import ProductsInFloat32
from benchmarks.runs.checkpoints import (
    LOGGED,
    Measured,
    Stopwatch,
    locked,
    open_history,
    write_history,
)
from benchmarks.runs.display import Display, EpochWatcher
from benchmarks.runs.learners import Learner
from benchmarks.runs.results import RunKey, RunResult, hardware, versions, write_text
from benchmarks.runs.settings import RunSettings
from benchmarks.runs.strategies import STRATEGIES
from benchmarks.runs.tracking import Tracker


@dataclass(frozen=True)
class Job:
    """Everything that a worker has to know of a run.

    :param key: which run.
    :param budget: what is spent on each task.
    :param backbone: name in :data:`benchmarks.runs.backbones.BACKBONES`.
    :param recipe: fingerprint of what its numbers come from.
    :param device: ``"cpu"`` or ``"cuda"``.
    :param data: folder of the data sets.
    :param out: folder of everything that is written.
    :param wandb: ``off``, ``offline`` or ``online``.
    :param group: of the grid that the run belongs to, for W&B.
    :param save_every: seconds between two states within a task of ours, at least.
    :param host_names: whether W&B gets Avalanche's names of single experiences, too.
    :param changes: other values than the recipe's, which the key's variant names.
    """

    key: RunKey
    budget: Budget
    backbone: str
    recipe: str
    device: str
    data: Path
    out: Path
    wandb: str = "off"
    group: str = ""
    save_every: float = RunSettings.save_every
    host_names: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)  # the key names them

    @property
    def archive(self) -> Path:
        """The compressed file."""
        return self.out / "archives" / self.key.slug

    @property
    def checkpoints(self) -> Path:
        """The folder of what is needed to go on; no two identities share one."""
        return self.out / "checkpoints" / f"{self.key.slug}-{self.recipe}"

    @property
    def error_file(self) -> Path:
        """Where a failure's traceback goes."""
        return self.out / "errors" / f"{self.key.slug}.txt"


@dataclass(frozen=True)
class Failure:
    """A run that did not finish."""

    key: RunKey
    reason: str
    traceback_file: Path | None = None

    def __str__(self) -> str:
        where = "" if self.traceback_file is None else f" (traceback in {self.traceback_file})"
        return f"failed: {self.key}: {self.reason}{where}"


def attempt(job: Job, display: Display) -> RunResult | Failure:
    """Do a run; whatever goes wrong with it is an outcome, too.

    :param job: the run.
    :param display: gets the progress.
    """
    try:
        return perform(job, display)
    except Exception as error:
        reason = one_line(error)
        try:
            write_text(job.error_file, traceback.format_exc())
        except OSError as another:  # of a full disk, or where nothing may be written
            return Failure(job.key, f"{reason}; {another}")
        return Failure(job.key, reason, job.error_file)


def one_line(error: BaseException) -> str:
    r"""What an error says.

    >>> one_line(ValueError("one\nand two"))
    'ValueError: one and two'
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def perform(job: Job, display: Display) -> RunResult:
    """Do a run, from its last state on if it was stopped before.

    :param job: the run.
    :param display: gets the progress.
    :raises RunInProgressError: if another process is training it.
    """
    with locked(job.checkpoints):
        job.error_file.unlink(missing_ok=True)
        stream = _build_stream(job)
        tracker = _tracker(job, stream)
        finished = False
        try:
            result = _measure(job, _settings(job, stream, tracker), tracker, display)
            pictures.draw_run(result, job.out)
            tracker.log(result, job.archive, sorted(job.out.glob(f"*-{job.key.slug}.png")))
            finished = True
        finally:
            tracker.close(failed=not finished)
    return result


def _tracker(job: Job, stream: Stream) -> Tracker:
    """The run's log, with everything that its numbers come from."""
    key, tasks = job.key, len(stream.tasks)
    parameters = recipe.hyper_parameters(
        key.strategy, key.stream, job.budget, tasks, changes=job.changes
    )
    config = {
        **asdict(key),
        **asdict(job.budget),
        "backbone": job.backbone,
        "recipe": job.recipe,
        "hyper_parameters": parameters,
        "order": stream.order,
        "device": job.device,
        "versions": versions(),
    }
    rows = job.checkpoints / LOGGED
    return Tracker(
        job.wandb, job.out, key.slug, job.recipe, job.group, config, rows, job.host_names
    )


def _settings(job: Job, stream: Stream, tracker: Tracker) -> RunSettings:
    return RunSettings(
        stream,
        job.backbone,
        job.budget,
        job.key.seed,
        loggers=[] if tracker.logger is None else [tracker.logger],
        inference=job.key.inference,
        device=job.device,
        save_every=job.save_every,
    )


def _build_stream(job: Job) -> Stream:
    key, order = job.key, None
    if key.order_index:
        order = task_orders(STREAMS[key.stream].tasks, key.order_index + 1)[key.order_index]
    held_out = 0.0 if STRATEGIES[key.strategy].holds_out else job.budget.validation_fraction
    _seed_everything(key.seed)
    return build_stream(
        StreamRequest(key.stream, job.data, key.seed, held_out, order=order, scenario=key.scenario)
    )


def _measure(job: Job, settings: RunSettings, tracker: Tracker, display: Display) -> RunResult:
    key, stream = job.key, settings.stream
    now = _Now(display, key)
    # the same way to the mini-batches for all strategies, so that their times compare
    data = TensorDataPlugin(), ChannelsLastPlugin()
    settings.plugins.extend([EpochWatcher(now.epoch), now.watch, *data])
    if job.budget.bf16:
        settings.plugins.append(AutocastPlugin())
    history = open_history(job.checkpoints)
    _seed_everything(key.seed)
    learner = recipe.build(key.strategy, settings, job.changes)
    done = learner.load(job.checkpoints, len(history))
    del history[done.experience :]  # what the state knows nothing of is done again
    tracker.goes_on(done.experience)
    display.start(key, len(stream.tasks), job.budget.epochs, done)
    with ProductsInFloat32.where_slow(job.budget.bf16, job.device):
        _train_all(learner, stream, now, history, job.checkpoints, tracker)
    matrix = [task.accuracies for task in history]
    sizes = learner.sizes(job.archive)
    layers = None if learner.layers is None else learner.layers()
    return RunResult(
        strategy=key.strategy,
        stream=key.stream,
        backbone=settings.backbone,
        seed=key.seed,
        order=stream.order,
        accuracy=final_accuracy(matrix),
        accuracy_matrix=matrix,
        forgetting=forgetting(matrix),
        bwt=backward_transfer(matrix),
        archive_bytes=sizes.archive,
        stored_bytes=sizes.stored,
        independent_bytes=settings.independent_bytes(),
        train_seconds=sum(task.train_seconds for task in history),
        eval_seconds=sum(task.eval_seconds for task in history),
        versions=versions(),
        epochs=job.budget.epochs,
        train_mb_size=job.budget.train_mb_size,
        scenario=key.scenario,
        task_inference=key.inference,
        task_id_accuracy=None if key.inference is None else final_accuracy([history[-1].task_ids]),
        order_index=key.order_index,
        ranks=(layers.ranks or None) if layers else None,
        quick=key.quick,
        recipe=job.recipe,
        device=job.device,
        archive_sha256=None if sizes.archive is None else _sha256(job.archive),
        own_backbone=key.backbone is None,
        densities=(layers.densities or None) if layers else None,
        bits=(layers.bits or None) if layers else None,
        hardware=hardware(job.device),
        bf16=key.bf16,
        memory_bytes=sizes.memory,
        refused=None if learner.refused is None else history[-1].refused,
        refused_before=None if learner.refused is None else _before(history),
        variant=key.variant,
    )


def _before(history: Sequence[Measured]) -> Row:
    """Refusals of each task's samples when the one before had been learned."""
    return [None, *(measured.refused[t] for t, measured in enumerate(history[:-1], start=1))]


@dataclass
class _Now:
    """Where a run is: Avalanche's clock knows the epoch, the loop knows the task."""

    display: Display
    key: RunKey
    task: int = 0
    watch: Stopwatch = field(default_factory=Stopwatch)

    def epoch(self, epoch: int) -> None:
        self.display.epoch(self.key, self.task, epoch)


def _train_all(
    learner: Learner,
    stream: Stream,
    now: _Now,
    history: list[Measured],
    folder: Path,
    tracker: Tracker,
) -> None:
    """Learn the tasks in order, from the first unfinished one; after each evaluate those seen."""
    finished = len(history)
    for task, experience in enumerate(stream.benchmark.train_stream[finished:], start=finished):
        now.task, now.watch.seconds = task, 0.0
        learner.train(experience)
        train_seconds, start = now.watch.seconds, time.perf_counter()
        tests = stream.benchmark.test_stream
        metrics = learner.eval(tests[: task + 1])
        eval_seconds = time.perf_counter() - start
        row = accuracy_row(metrics, len(stream.tasks))
        task_ids = accuracy_row(metrics, len(stream.tasks), "TaskId_Acc_Exp")
        refused = _refused(learner, tests, task)
        history.append(Measured(row, task_ids, train_seconds, eval_seconds, refused))
        tracker.measured([measured.accuracies for measured in history])
        learner.save(folder, task + 1)
        write_history(history, folder)
        now.display.task(now.key, task, mean_so_far(row))


def _refused(learner: Learner, tests: Sequence[Any], task: int) -> Row:
    """Refusals by task: of the next one, which nobody has learned, or of all at the end."""
    asked = [task + 1] if task + 1 < len(tests) else [*range(len(tests))]
    rates: Row = [None] * len(tests)
    if learner.refused is not None:
        for position in asked:
            rates[position] = learner.refused(tests[position])
    return rates


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
