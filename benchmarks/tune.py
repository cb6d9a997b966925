"""Tune the hyper-parameters of strategies, each with the same number of trials.

A trial trains a strategy on the first tasks of a stream, on four fifths of their training data, and
is judged by the accuracy on the last fifth after the last of these tasks; the test data are not
looked at. Optuna chooses within the recipe's ``search``, beginning with the recipe as it is. Trials
are kept in the store, a study per strategy, and count when the command is started again. Run
``python -m benchmarks.tune --help`` for the options.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from avalanche_compress import AutocastPlugin, ChannelsLastPlugin, TensorDataPlugin
from benchmarks.data.splits import StreamRequest
from benchmarks.data.streams import STREAMS, build_stream, nearest
from benchmarks.runs import recipe
from benchmarks.runs.accuracies import accuracy_row, mean_so_far
from benchmarks.runs.bfloat16 import ProductsInFloat32
from benchmarks.runs.engines import calm
from benchmarks.runs.run import one_line
from benchmarks.runs.settings import RunSettings
from benchmarks.runs.store import NAME
from benchmarks.runs.strategies import STRATEGIES

TUNING = 0.2
"""Part of each training set by which a trial is judged."""


@dataclass(frozen=True)
class Tuning:
    """What is the same for all strategies.

    :param stream: name in the registry.
    :param trials: of each strategy.
    :param tasks: the first ones of the stream.
    :param seed: of the data, the networks and the choices.
    :param epochs: per task.
    :param data: folder of the data sets.
    :param out: folder of the store.
    :param bf16: whether trials compute in bfloat16.
    """

    stream: str
    trials: int
    tasks: int
    seed: int
    epochs: int
    data: Path
    out: Path
    bf16: bool = False

    def study_name(self, strategy: str) -> str:
        """A name that changes with whatever the trials come from.

        :param strategy: name in the registry.
        """
        space = {name: r.model_dump() for name, r in recipe.search_space(strategy).items()}
        came_from = [space, recipe.arguments_of(strategy, self.stream), self.epochs, TUNING]
        came_from += ["bf16"] * self.bf16
        text = json.dumps(came_from, sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{self.stream}-{strategy}-{self.tasks}tasks-seed{self.seed}-{fingerprint}"


def held_out_accuracy(strategy: str, tuning: Tuning, changes: dict[str, Any]) -> float:
    """Mean accuracy over the first tasks on data that were not trained on.

    :param strategy: name in the registry.
    :param tuning: stream, tasks and seed.
    :param changes: other values than the recipe's.
    """
    entry = STREAMS[tuning.stream]
    budget = dataclasses.replace(entry.budget, epochs=tuning.epochs, bf16=tuning.bf16)
    held_out = 0.0 if STRATEGIES[strategy].holds_out else budget.validation_fraction
    random.seed(tuning.seed)
    np.random.seed(tuning.seed)
    torch.manual_seed(tuning.seed)
    stream = build_stream(
        StreamRequest(
            tuning.stream,
            tuning.data,
            tuning.seed,
            held_out,
            first=tuning.tasks,
            tuning=TUNING,
        )
    )
    plugins = [TensorDataPlugin(), ChannelsLastPlugin(), *[AutocastPlugin()] * tuning.bf16]
    settings = RunSettings(stream, entry.backbone, budget, tuning.seed, plugins)
    learner = recipe.build(strategy, settings, changes)
    with ProductsInFloat32.where_slow(tuning.bf16, "cpu"):
        for experience in stream.benchmark.train_stream:
            learner.train(experience)
    metrics = learner.eval(stream.benchmark.test_stream)
    return mean_so_far(accuracy_row(metrics, tuning.tasks)) or 0.0


def tune(strategy: str, tuning: Tuning) -> Any:
    """Run the trials that are left; say after each how it went.

    :param strategy: name in the registry.
    :param tuning: what is the same for all strategies.
    :return: the Optuna study.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tuning.out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{tuning.out / NAME}",
        study_name=tuning.study_name(strategy),
        direction="maximize",
        load_if_exists=True,
    )
    space = recipe.search_space(strategy)
    if not study.trials:
        study.enqueue_trial(_as_it_is(strategy, tuning, space))
    for number in range(len(_done(study)), tuning.trials):
        study.sampler = optuna.samplers.TPESampler(seed=tuning.seed + number)
        study.optimize(partial(_try, strategy, tuning, space), n_trials=1, catch=(Exception,))
        print(_line(strategy, tuning, study), flush=True)
    return study


def _try(strategy: str, tuning: Tuning, space: dict[str, recipe.Range], trial: Any) -> float:
    changes = {name: _suggest(trial, name, values) for name, values in space.items()}
    try:
        return held_out_accuracy(strategy, tuning, changes)
    except Exception as error:  # a choice that cannot be trained with is a trial, too
        trial.set_user_attr("error", one_line(error))
        raise


def _suggest(trial: Any, name: str, values: recipe.Range) -> Any:
    if values.choices is not None:
        # Optuna takes plain values only
        texts = [json.dumps(choice) for choice in values.choices]
        return json.loads(trial.suggest_categorical(name, texts))
    whole = isinstance(values.low, int) and isinstance(values.high, int)
    suggest = trial.suggest_int if whole else trial.suggest_float
    return suggest(name, values.low, values.high, log=values.log)


def _as_it_is(strategy: str, tuning: Tuning, space: dict[str, recipe.Range]) -> dict[str, Any]:
    """The recipe's own values, as far as they are among those that are tried."""
    budget = dataclasses.replace(STREAMS[tuning.stream].budget, epochs=tuning.epochs)
    written = recipe.arguments_of(strategy, tuning.stream)
    optimizer = {"lr": budget.lr, **written.get("optimizer", {})}
    known = {**written, **{f"optimizer.{name}": value for name, value in optimizer.items()}}
    found: dict[str, Any] = {}
    for name, values in space.items():
        value = known.get(name)
        if values.choices is not None and value in values.choices:
            found[name] = json.dumps(value)
        elif values.low is not None and isinstance(value, (int, float)):
            found[name] = float(np.clip(value, values.low, values.high))
    return found


def _done(study: Any) -> list[Any]:
    """Trials that have ended, well or not; one that was killed has not."""
    return [trial for trial in study.trials if trial.state.name in ("COMPLETE", "FAIL")]


def _line(strategy: str, tuning: Tuning, study: Any) -> str:
    done = _done(study)
    last = done[-1]
    if last.state.name == "FAIL":
        said = f"failed ({last.user_attrs.get('error', 'no reason')})"
    else:
        said = f"{100 * last.value:.2f} %"
    known = [trial.value for trial in done if trial.value is not None]
    best = f", best {100 * max(known):.2f} %" if known else ""
    return f"{strategy} on {tuning.stream}: trial {len(done)}/{tuning.trials}: {said}{best}"


def report(strategy: str, tuning: Tuning, study: Any) -> str:
    """What to write into the recipe.

    :param strategy: name in the registry.
    :param tuning: what is the same for all strategies.
    :param study: with all its trials.
    """
    done = _done(study)
    if all(trial.value is None for trial in done):
        return f"# {strategy}: all {len(done)} trials failed."
    space, best = recipe.search_space(strategy), study.best_trial
    values: dict[str, Any] = {}
    for name, value in best.params.items():
        chosen = json.loads(value) if space[name].choices is not None else value
        place, _, inner = name.rpartition(".")
        (values.setdefault(place, {}) if place else values)[inner] = chosen
    said = f"{len(done)} trials on held-out data of the first {tuning.tasks} tasks, "
    said += f"seed {tuning.seed}"
    entry = {"streams": {tuning.stream: values}, "tuned": {tuning.stream: said}}
    edges = [name for name in best.params if _at_the_edge(best.params[name], space[name])]
    lines = [f"# recipes/{strategy}.yaml: {100 * best.value:.2f} %"]
    lines += [f"# at the edge of what was tried, widen it: {', '.join(edges)}"] if edges else []
    return "\n".join([*lines, yaml.safe_dump(entry, sort_keys=False)])


def _at_the_edge(value: Any, values: recipe.Range) -> bool:
    """Whether a value lies in the first or last twentieth of its range."""
    if values.low is None or values.high is None:
        return False
    low, high, place = values.low, values.high, value
    if values.log:
        low, high, place = np.log([low, high, place]).tolist()
    return not 0.05 <= (place - low) / (high - low) <= 0.95


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune the strategies one after the other.

    :param arguments: command line without the program's name.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tune", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--stream", required=True, metavar="NAME")
    parser.add_argument("--strategies", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="default: 20")
    parser.add_argument("--tasks", type=int, default=3, metavar="N", help="default: the first 3")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--epochs", type=int, metavar="N", help="default: the stream's")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16")
    given = parser.parse_args(arguments)
    labelled = [name for name, entry in STRATEGIES.items() if "task" in entry.scenarios]
    for kind, names, known in (
        ("stream", [given.stream], list(STREAMS)),
        ("strategy with task labels", given.strategies, labelled),
    ):
        for name in set(names) - set(known):
            near = nearest(name, known)
            parser.error(f"there is no {kind} {name!r}; the nearest is {near!r}.")
    for name in ("trials", "tasks"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} is {getattr(given, name)}, but there has to be at least 1.")
    try:
        import optuna  # noqa: F401
    except ImportError:
        parser.error("tuning needs Optuna: pip install '.[tune]'.")
    epochs = given.epochs or STREAMS[given.stream].budget.epochs
    tasks = min(given.tasks, STREAMS[given.stream].tasks)
    tuning = Tuning(
        given.stream, given.trials, tasks, given.seed, epochs, given.data, given.out, given.bf16
    )
    calm()
    try:
        for strategy in given.strategies:
            print(report(strategy, tuning, tune(strategy, tuning)))
    except recipe.RecipeError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
