"""Results that nobody had to train for."""

from __future__ import annotations

from typing import Any

from benchmarks.runs.results import RunResult


def make_result(strategy: str = "naive", **changes: Any) -> RunResult:
    """A run of two tasks, with some fields as the test wants them."""
    values = {
        "strategy": strategy,
        "stream": "split_digits",
        "backbone": "mlp",
        "seed": 0,
        "order": [0, 1],
        "accuracy": 0.9,
        "accuracy_matrix": [[0.95, None], [0.9, 0.9]],
        "forgetting": 0.05,
        "bwt": -0.05,
        "archive_bytes": None,
        "stored_bytes": 69_600,
        "independent_bytes": 332_000,
        "train_seconds": 2.0,
        "eval_seconds": 0.25,
        "versions": {},
        "epochs": 20,
        "train_mb_size": 16,
    }
    return RunResult(**{**values, **changes})


def reordered(
    strategy: str = "naive", accuracies: tuple[float, float] = (0.9, 0.9), **changes: Any
) -> RunResult:
    """A run in the other order; accuracies are by position."""
    values = {"order": [1, 0], "order_index": 1, "accuracy": sum(accuracies) / 2, **changes}
    matrix = [[0.95, None], list(accuracies)]
    return make_result(strategy, accuracy_matrix=matrix, **values)
