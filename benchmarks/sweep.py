"""Sweeps of W&B over a recipe's search space: the file for ``wandb sweep``, and its trials.

``python -m benchmarks.sweep --strategy cacl --stream split_digits > sweep.yaml`` writes the file;
``wandb sweep sweep.yaml`` registers it and says how to start agents, which run trials by the same
command with ``--trial``. A trial is judged as those of ``python -m benchmarks.tune``: by the
accuracy on a fifth of the training data of the first tasks; the test data are not looked at.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from avalanche_compress import WandBLogger
from benchmarks.data.streams import STREAMS, nearest
from benchmarks.runs import recipe
from benchmarks.runs.engines import calm
from benchmarks.runs.strategies import STRATEGIES
from benchmarks.tune import Tuning, held_out_accuracy

METRIC = "held_out/accuracy"


def sweep_of(strategy: str, tuning: Tuning) -> dict[str, Any]:
    """The content of a file for ``wandb sweep``.

    :param strategy: name in the registry.
    :param tuning: stream, tasks, epochs and seed of its trials.
    """
    options = {
        "--strategy": strategy,
        "--stream": tuning.stream,
        "--tasks": tuning.tasks,
        "--epochs": tuning.epochs,
        "--seed": tuning.seed,
        "--data": str(tuning.data),
        "--out": str(tuning.out),
        "--trial": "${args_json}",
    }
    words = [str(word) for option in options.items() for word in option]
    space = recipe.search_space(strategy).items()
    return {
        "name": f"{tuning.stream}-{strategy}",
        "method": "bayes",
        "metric": {"name": METRIC, "goal": "maximize"},
        "command": ["${env}", "python", "-m", "benchmarks.sweep", *words],
        "parameters": {name: _parameter(values) for name, values in space},
    }


def _parameter(values: recipe.Range) -> dict[str, Any]:
    """What W&B is to choose from."""
    if values.choices is not None:
        return {"values": list(values.choices)}
    whole = isinstance(values.low, int) and isinstance(values.high, int)
    if values.log:
        kind = "q_log_uniform_values" if whole else "log_uniform_values"
    else:
        kind = "int_uniform" if whole else "uniform"
    return {"distribution": kind, "min": values.low, "max": values.high}


def try_out(strategy: str, tuning: Tuning, changes: dict[str, Any]) -> float:
    """Do a trial and log it to W&B, to the sweep whose agent has started this process.

    :param strategy: name in the registry.
    :param tuning: what is the same for all trials.
    :param changes: other values than the recipe's.
    :return: the held-out accuracy, 0..1.
    """
    with WandBLogger(
        project_name="avalanche-compress",
        run_name=f"{tuning.stream}-{strategy}",
        save_code=False,
        config={"strategy": strategy, "stream": tuning.stream, **changes},
        dir=str(tuning.out),
        params={"job_type": "sweep", "tags": [strategy, tuning.stream]},
    ) as logger:
        accuracy = held_out_accuracy(strategy, tuning, changes)
        logger.log_single_metric(METRIC, accuracy, 0)
    return accuracy


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the file of a sweep, or do a trial of one.

    :param arguments: command line without the program's name.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--strategy", required=True, metavar="NAME")
    parser.add_argument("--stream", required=True, metavar="NAME")
    parser.add_argument("--tasks", type=int, default=3, metavar="N", help="default: the first 3")
    parser.add_argument("--epochs", type=int, metavar="N", help="default: the stream's")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--trial", type=json.loads, metavar="JSON", help="values to train with")
    given = parser.parse_args(arguments)
    for name, known in (("strategy", STRATEGIES), ("stream", STREAMS)):
        if getattr(given, name) not in known:
            near = nearest(getattr(given, name), list(known))
            parser.error(f"there is no {name} {getattr(given, name)!r}; the nearest is {near!r}.")
    epochs = given.epochs or STREAMS[given.stream].budget.epochs
    tasks = min(given.tasks, STREAMS[given.stream].tasks)
    tuning = Tuning(given.stream, 1, tasks, given.seed, epochs, given.data, given.out)
    if given.trial is None:
        print(yaml.safe_dump(sweep_of(given.strategy, tuning), sort_keys=False), end="")
        return 0
    calm()
    print(f"{METRIC}: {try_out(given.strategy, tuning, given.trial):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
