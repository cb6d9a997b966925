"""Avalanche's benchmarks with every strategy: lists, sets or no classes, task labels or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    benchmark_with_validation_stream,
    class_incremental_benchmark,
    nc_benchmark,
    new_instances_benchmark,
    ni_benchmark,
    split_online_stream,
    task_incremental_benchmark,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from torch.utils.data import TensorDataset

from avalanche_compress import TaskAlreadyLearnedError, TaskLabelError
from benchmarks.stress.small_training import (
    INPUTS,
    Case,
    all_logits,
    build,
    learn,
    samples,
    small_stream,
)

CLASSES = 4


def data(count: int, draw: int = 0) -> Any:
    """A data set as torchvision's are, with all classes in it.

    :param count: of samples.
    :param draw: of the samples.
    """
    x, y = samples(count, CLASSES, seed=0, draw=draw)
    dataset: Any = TensorDataset(x, y)
    dataset.targets = y.tolist()
    return dataset


def both() -> dict[str, Any]:
    """A training and a test set of Avalanche's new style."""
    return {
        "train": as_classification_dataset(data(48)),
        "test": as_classification_dataset(data(24, draw=1)),
    }


def new_classes(labels: bool, remapped: bool = False) -> Any:
    """Two classes a task, old style: experiences list them."""
    return nc_benchmark(
        data(48),
        data(24, draw=1),
        n_experiences=2,
        task_labels=labels,
        seed=0,
        class_ids_from_zero_in_each_exp=remapped,
    )


def new_style() -> Any:
    """Two classes a task, new style: experiences have sets of them and no task labels."""
    return class_incremental_benchmark(both(), num_experiences=2)


def from_datasets() -> Any:
    """All classes in each task; experiences know neither classes nor task labels."""
    sets = [as_classification_dataset(data(24, draw=draw)) for draw in range(4)]
    return benchmark_from_datasets(train=sets[:2], test=sets[2:])


def validated() -> Any:
    """An old-style benchmark that is split for validation, which drops its task labels."""
    return benchmark_with_validation_stream(new_classes(labels=True), 0.25, shuffle=True, seed=0)


def online() -> Any:
    """Each task in several experiences."""
    stream = small_stream()
    return split_online_stream(stream.train_stream, experience_size=12)


def works(make: Callable[[], Any], **arguments: Any) -> Callable[[str], None]:
    """A check that all experiences are learned as tasks of their own, and evaluated.

    :param make: the benchmark.
    :param arguments: of the strategy.
    """

    def check(name: str) -> None:
        stream = make()
        evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
        strategy = build(name, evaluator=evaluator, **arguments)
        learn(strategy, stream.train_stream)
        found = [tuple(sorted({int(s[1]) for s in e.dataset})) for e in stream.train_stream]
        assert len(found) == 2
        assert list(strategy.network.classes.values()) == found
        for evaluated in stream.streams.values():
            results = strategy.eval(evaluated)
            accuracies = [v for key, v in results.items() if f"/{evaluated.name}_stream" in key]
            assert len(accuracies) >= len(list(evaluated))

    return check


def refused(train: Callable[[], Any]) -> Callable[[str], None]:
    """A check that comes to an error which leaves everything as it was.

    :param train: the experiences.
    """

    def check(name: str) -> None:
        strategy, x = build(name), torch.randn(20, INPUTS)
        known: dict[int, Any] = {}
        try:
            for experience in train():
                known = all_logits(strategy, x)
                strategy.train(experience)
        finally:
            now = all_logits(strategy, x)
            assert strategy.network.open_task is None
            assert list(now) == list(known)
            assert all(torch.equal(now[task], logits) for task, logits in known.items())

    return check


NO_LABELS = "Each task is an experience; test samples need no labels."

CASES = [
    Case("`tensors_benchmark(task_labels=...)`: a list of classes", works(small_stream)),
    Case("`nc_benchmark(task_labels=True)`", works(lambda: new_classes(labels=True))),
    Case(
        "`nc_benchmark(task_labels=True, class_ids_from_zero_in_each_exp=True)`",
        works(lambda: new_classes(labels=True, remapped=True)),
    ),
    Case(
        "`nc_benchmark(task_labels=False)`",
        refused(lambda: new_classes(labels=False).train_stream),
        refused=TaskAlreadyLearnedError,
    ),
    Case(
        '`nc_benchmark(task_labels=False)`, `task_inference="entropy"`',
        works(lambda: new_classes(labels=False), task_inference="entropy"),
        note=NO_LABELS,
    ),
    Case(
        "`ni_benchmark(task_labels=True)`",
        works(lambda: ni_benchmark(data(48), data(24, draw=1), 2, task_labels=True, seed=0)),
        note="Its test stream is one experience, which Avalanche labels as task 0.",
    ),
    Case(
        "`benchmark_from_datasets`",
        refused(lambda: from_datasets().train_stream),
        refused=TaskLabelError,
    ),
    Case(
        '`benchmark_from_datasets`, `task_inference="entropy"`',
        works(from_datasets, task_inference="entropy"),
        note=NO_LABELS,
    ),
    Case(
        "`task_incremental_benchmark(benchmark_from_datasets(...))`: classes from the samples",
        works(lambda: task_incremental_benchmark(from_datasets())),
    ),
    Case(
        "`with_classes_timeline(task_incremental_benchmark(...))`: a set of classes",
        works(lambda: with_classes_timeline(task_incremental_benchmark(new_style()))),
    ),
    Case(
        "`class_incremental_benchmark`",
        refused(lambda: new_style().train_stream),
        refused=TaskLabelError,
    ),
    Case(
        '`class_incremental_benchmark`, `task_inference="entropy"`',
        works(new_style, task_inference="entropy"),
        note=NO_LABELS,
    ),
    Case(
        "`task_incremental_benchmark(new_instances_benchmark(...))`",
        works(
            lambda: task_incremental_benchmark(
                new_instances_benchmark(*both().values(), num_experiences=2)
            )
        ),
    ),
    Case(
        "`benchmark_with_validation_stream`, of an old-style benchmark",
        works(validated),
        note="Avalanche drops the experiences' task labels; those of the samples are taken.",
    ),
    Case(
        "`with_task_labels(benchmark_with_validation_stream(...))`, of a new-style benchmark",
        works(
            lambda: with_task_labels(
                benchmark_with_validation_stream(
                    task_incremental_benchmark(new_style()), 0.25, shuffle=True, seed=0
                )
            )
        ),
    ),
    Case("`split_online_stream`", refused(online), refused=TaskAlreadyLearnedError),
]
