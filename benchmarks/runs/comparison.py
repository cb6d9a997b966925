"""The comparison: which runs a command asks for, who does them, what is stored and shown."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.choices import FIRST_STREAMS, RULES, SAVE_EVERY
from benchmarks.data.streams import STREAMS, Budget, nearest
from benchmarks.report import command as report
from benchmarks.runs.backbones import BACKBONES
from benchmarks.runs.display import Display, make_display
from benchmarks.runs.engines import (
    EngineError,
    Outcomes,
    run_here,
    run_in_processes,
    run_on_ray,
)
from benchmarks.runs.memory import available_bytes, run_bytes
from benchmarks.runs.reading import ResultsError
from benchmarks.runs.recipe import Changes, RecipeError, fingerprint, variant_of
from benchmarks.runs.results import RunKey, RunResult, write_results
from benchmarks.runs.run import Failure, Job
from benchmarks.runs.stopping import exit_code, stopping
from benchmarks.runs.store import NAME, Store, in_order
from benchmarks.runs.strategies import FIRST_LOOK, STRATEGIES
from benchmarks.runs.tracking import group_of


@dataclass(frozen=True)
class Options:
    """The command line, checked.

    :param epochs: epochs per task instead of each stream's default; None keeps the default.
    :param data: folder of the data sets.
    :param out: folder of everything that is written.
    :param wandb: ``off``, ``offline`` or ``online``.
    :param wandb_names: ``series``, or ``avalanche`` for its names of single experiences as well.
    :param scenarios: ``task``, ``class`` or both.
    :param inference: the rules by which our strategies infer tasks in the class scenario.
    :param orders: how many task orders, the canonical one first.
    :param quick: whether to train for a tenth of each stream's default epochs, but at least two.
    :param engine: ``local`` or ``ray``.
    :param workers: runs at a time.
    :param address: of a Ray cluster.
    :param device: ``"cpu"`` or ``"cuda"``.
    :param backbone: of all streams; None: each stream's own.
    :param bf16: whether to train in bfloat16.
    :param save_every: seconds between two states within a task of ours, at least.
    :param variants: by strategy, the changes of its recipe that are run, ``{}`` for the recipe as
        it is; a strategy that is not named is run as it is.
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
    wandb_names: str = "series"
    orders: int = 1
    quick: bool = False
    engine: str = "local"
    workers: int = 1
    address: str | None = None
    device: str = "cpu"
    backbone: str | None = None
    bf16: bool = False
    save_every: float = SAVE_EVERY
    variants: Mapping[str, Sequence[Changes]] = field(default_factory=dict)

    def runs(self) -> list[RunKey]:
        """All runs, the strategies of one stream, scenario, order and seed next to each other."""
        return [
            RunKey(
                strategy,
                stream,
                seed,
                scenario,
                rule,
                order,
                self.quick,
                self._other(stream),
                self.bf16,
                variant_of(changes),
            )
            for stream in self.streams
            for scenario in self.scenarios
            for order in range(self.orders)
            for seed in self.seeds
            for strategy in self.strategies
            if scenario in _scenarios(strategy)
            for rule in self._rules(strategy, scenario)
            for changes in self._changes(strategy)
        ]

    def _changes(self, strategy: str) -> Sequence[Changes]:
        return self.variants.get(strategy, [{}])

    def _rules(self, strategy: str, scenario: str) -> Sequence[str | None]:
        """A row per rule for whoever infers tasks."""
        if scenario == "class" and STRATEGIES[strategy].infers:
            return self.inference
        return [None]

    def _other(self, stream: str) -> str | None:
        """The backbone that was asked for, unless it is the stream's own anyway."""
        return None if self.backbone == STREAMS[stream].backbone else self.backbone

    def budget(self, stream: str) -> Budget:
        """What is spent on each task of a stream."""
        budget = dataclasses.replace(STREAMS[stream].budget, bf16=self.bf16)
        if self.quick:
            # two of them, because some methods need an epoch after pruning
            few = min(budget.epochs, max(2, budget.epochs // 10))
            return dataclasses.replace(budget, epochs=few)
        return budget if self.epochs is None else dataclasses.replace(budget, epochs=self.epochs)

    def jobs(self) -> list[Job]:
        """All runs, with everything that a worker has to know of them.

        :raises RecipeError: if there is something wrong with a recipe.
        """
        jobs = [self._job(key) for key in self.runs()]
        group = group_of([(job.key, job.recipe) for job in jobs])
        return [dataclasses.replace(job, group=group) for job in jobs]

    def _job(self, key: RunKey) -> Job:
        budget = self.budget(key.stream)
        backbone = self.backbone or STREAMS[key.stream].backbone
        changes = {variant_of(some): some for some in self._changes(key.strategy)}[key.variant]
        recipe = fingerprint(key.strategy, key.stream, backbone, budget, self.device, changes)
        return Job(
            key,
            budget,
            backbone,
            recipe,
            self.device,
            self.data,
            self.out,
            self.wandb,
            save_every=self.save_every,
            host_names=self.wandb_names == "avalanche",
            changes=changes,
        )


def compare(options: Options) -> int:
    """Run the comparison.

    :param options: what to compare.
    :return: exit code, 0 only when every run finished.
    """
    console = Console()
    try:
        with stopping() as check_stop:
            jobs = options.jobs()
            return 1 if _compare(jobs, options, console, check_stop) else 0
    except (RecipeError, EngineError, ResultsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as signal_received:
        print(
            f"stopped: what has finished is in {options.out / NAME}; give the same command again, "
            "and it goes on from there.",
            file=sys.stderr,
        )
        return exit_code(signal_received)


def _compare(
    jobs: Sequence[Job], options: Options, console: Console, check_stop: Callable[[], None]
) -> list[Failure]:
    """Do what has not been done before; show and write the tables of everything."""
    store = Store(options.out / NAME)
    store.results()  # a store that is damaged is refused now, and not after hours of work
    stored = [(job, _stored(job, store)) for job in jobs]
    before = [run for _, run in stored if run is not None]
    missing = [job for job, run in stored if run is None]
    if before:
        counts = f"{len(before)} of {len(jobs)} runs have finished before"
        console.print(f"{counts}: {store.path} has them.", soft_wrap=True)
    for result in before:
        store.add(result)  # the last recipe that somebody asked for is the one in the tables
    display = make_display(console, len(missing))
    failures: list[Failure] = []
    try:
        for job, outcome in _outcomes(missing, options, display):
            check_stop()
            if isinstance(outcome, Failure):
                failures.append(outcome)
                display.fail(job.key)
                continue
            try:
                _keep(job, outcome, store)
            except (ResultsError, OSError) as error:
                failures.append(Failure(job.key, f"its result cannot be stored: {error}"))
                display.fail(job.key)
                continue
            display.finish(outcome)
    finally:
        display.close()
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):  # which wants an end, and soon
            found = [_stored(job, store) for job in jobs]
            _report([run for run in found if run is not None], store, failures, console)
    return failures


def _outcomes(jobs: Sequence[Job], options: Options, display: Display) -> Outcomes:
    if not jobs:
        return iter(())
    if options.engine == "ray":
        return run_on_ray(jobs, display, options.workers, options.address)
    if min(options.workers, len(jobs)) == 1:
        return run_here(jobs, display)
    return run_in_processes(jobs, display, options.workers)


def _stored(job: Job, store: Store) -> RunResult | None:
    return store.find(job.key, job.budget.epochs, job.recipe)


def _keep(job: Job, result: RunResult, store: Store) -> None:
    """Store a result; only then are its checkpoints of no more use."""
    store.add(result)
    write_results(store.results(), job.out / "results.json")
    shutil.rmtree(job.checkpoints, ignore_errors=True)
    with suppress(OSError):  # other runs may have theirs there
        job.checkpoints.parent.rmdir()


def checked(given: argparse.Namespace, parser: argparse.ArgumentParser) -> Options:
    """The command line with its defaults; what cannot be done ends the program with exit code 2.

    :param given: as the parser has read it.
    :param parser: says what is wrong.
    """
    wanted = set(given.scenarios)
    if given.strategies in (None, ["all"]):
        names = list(STRATEGIES) if given.strategies else FIRST_LOOK
        given.strategies = [name for name in names if _scenarios(name) & wanted]
    if given.streams is None:
        given.streams = [name for name in FIRST_STREAMS if wanted <= set(STREAMS[name].scenarios)]
    _check_names(parser, "strategy", given.strategies, STRATEGIES)
    _check_names(parser, "stream", given.streams, STREAMS)
    _check_names(parser, "backbone", [given.backbone] if given.backbone else [], BACKBONES)
    known = [_without_layer(rule) for rule in RULES]
    _check_names(parser, "rule", [_without_layer(rule) for rule in given.inference], known)
    _check_scenarios(parser, given)
    if given.out.exists() and not given.out.is_dir():
        parser.error(f"--out is {given.out}, which is a file: give a folder.")
    if given.save_every < 0:
        parser.error(f"--save-every is {given.save_every}, but no time is less than 0 seconds.")
    if given.epochs is not None and given.epochs < 1:
        parser.error(f"--epochs is {given.epochs}, but a task needs at least 1.")
    if given.orders < 1:
        parser.error(f"--orders is {given.orders}, but a comparison needs at least 1.")
    if given.workers is not None and given.workers < 1:
        parser.error(f"--workers is {given.workers}, but somebody has to work: at least 1.")
    if given.address is not None and given.engine != "ray":
        parser.error("--address is of a Ray cluster: give --engine ray as well.")
    if given.device == "cuda" and given.engine == "local" and not torch.cuda.is_available():
        parser.error("--device is cuda, but this machine has none: give cpu or auto.")
    chosen_workers, given.workers = given.workers, _cores()
    given.device = _device(given.device)
    chosen = {name: value for name, value in vars(given).items() if name != "list"}
    lists = {name: list(dict.fromkeys(v)) for name, v in chosen.items() if isinstance(v, list)}
    return _with_workers(Options(**{**chosen, **lists}), chosen_workers)


def _with_workers(options: Options, chosen: int | None) -> Options:
    """As many as were chosen, but not more than cores; without a choice as many as fit in memory.

    Of a cluster the memory is not known.
    """
    most = min(chosen or _cores(), _cores())
    need = max(
        run_bytes(name, options.backbone or STREAMS[name].backbone, options.budget(name))
        for name in options.streams
    )
    free = None if options.address else available_bytes()
    fit = most if free is None else max(1, min(most, free // need))
    if chosen is None:
        return dataclasses.replace(options, workers=fit)
    at_a_time = min(most, len(options.runs()))
    if at_a_time > fit:
        print(
            f"warning: {at_a_time} runs at a time may need {at_a_time * need / 1e9:.1f} GB, but "
            f"memory has room for {fit}: the system may kill workers; give --workers {fit}.",
            file=sys.stderr,
        )
    return dataclasses.replace(options, workers=most)


def names() -> str:
    """What may be compared, a line a kind."""
    kinds: dict[str, Iterable[str]] = {
        "strategies": STRATEGIES,
        "streams": STREAMS,
        "backbones": BACKBONES,
    }
    return "\n".join(f"{kind}: {' '.join(known)}" for kind, known in kinds.items())


def _cores() -> int:
    return os.cpu_count() or 1


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _report(
    results: Sequence[RunResult], store: Store, failures: Sequence[Failure], console: Console
) -> None:
    """Print the tables of this command's runs, write those of all that are stored."""
    everything = store.results()
    if everything:
        write_results(everything, store.path.parent / "results.json")
        report.write_report(everything, store.path.parent)
    # Rich drops columns for which there is no room; a narrow terminal folds the lines instead.
    console.width = max(console.width, 200)
    for table in report.text_tables(in_order(results)):
        console.print(table)
    for failure in failures:
        console.print(str(failure), markup=False, highlight=False, soft_wrap=True)


def _scenarios(strategy: str) -> set[str]:
    return set(STRATEGIES[strategy].scenarios)


def _check_scenarios(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    for scenario in given.scenarios:
        for stream in given.streams:
            if scenario not in STREAMS[stream].scenarios:
                parser.error(
                    f"{stream} has no {scenario} scenario: its tasks are the same classes, so "
                    "there are no classes to add."
                )
    for strategy in given.strategies:
        if not set(given.scenarios) & _scenarios(strategy):
            parser.error(f"{strategy} needs task labels at test: it has no class scenario.")


def _without_layer(rule: str) -> str:
    """The name of a rule, which may have a layer and ``_batch`` behind it."""
    return rule.removesuffix("_batch").partition("@")[0]


def _check_names(
    parser: argparse.ArgumentParser, kind: str, given: Iterable[str], known: Iterable[str]
) -> None:
    for name in given:
        if name not in known:
            parser.error(f"there is no {kind} {name!r}; the nearest is {nearest(name, known)!r}.")
