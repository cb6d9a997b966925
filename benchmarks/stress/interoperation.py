"""What works together: every strategy with Avalanche's plugins, loggers, metrics and benchmarks.

Run ``python -m benchmarks.interoperation`` to try everything and write docs/interoperation.md. A
case that does not do what it is for ends the command with its error.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avalanche_compress import Method, registered_methods
from avalanche_compress.files import write_atomically
from benchmarks.stress import (
    interoperation_benchmarks,
    interoperation_logging,
    interoperation_plugins,
)
from benchmarks.stress.outcomes import Outcome, numbered
from benchmarks.stress.small_training import Case

METHODS: Sequence[Method] = registered_methods()
"""The columns of the page."""
PAGE = Path(__file__).parents[2] / "docs" / "interoperation.md"

INTRODUCTION = """\
# What works together

Every strategy with what Avalanche 0.6 brings. `python -m benchmarks.interoperation` tries all of it
and writes this page; the tests try it, too. A combination *works* if two or three tasks are
learned, the logits of finished tasks stay bit-identical, and the plugin, logger, metric or
benchmark has done what it is for: the rate fell, training stopped, the file has its rows, the
counts are those made by hand. What cannot work is *refused*, for the reason that the error gives. A
number refers to what should be known, below the table.
"""

AVALANCHES_TESTS = """\
## Avalanche's own tests

Its repository's `tests/training` and `tests/test_optimizer.py` (at eb075be3, with release 0.6.0,
`FAST_TEST=true`), `Naive` replaced by a strategy with `task_inference="energy"`. Not written by the
command: they were run by hand next to the same tests with `Naive`, with all seven strategies. What
fails besides what fails with `Naive`, too (`test_checkpointing` does not pickle, `test_optimizers`
counts what SGD keeps, others lack a download or IL2M, which the release has not):

| test | why |
|---|---|
"""
EXPLAINED = {
    "`test_dictionary_train_replay`, `test_replay_balanced_memory`, `test_balancing`": (
        "`ReplayPlugin` next to `task_inference=` is refused"
    ),
    "`test_rwalk`, `test_feature_distillation`": (
        "`RWalkPlugin` and `FeatureDistillationPlugin` are refused"
    ),
    "`UpdateNCMTest`, `UpdateFeCAMTest`": (
        "their plugins are refused; the tests call the end of an experience that was never begun"
    ),
    "`test_optimizer_groups_manual_addition`": "layers are added between tasks, which is refused",
    "`test_scheduler_reduce_on_plateau_plugin`, in 6 settings with TinySubNets and AdaQPackNet, 10 "
    "with WSN, 12 with the others": (
        "expects the rates that a plain model's loss over all classes gives; here the loss is over "
        "the task's"
    ),
    "`test_scheduler_plugin`, CACL only": (
        "a learning rate of 4 makes the loss NaN, which is a `NonFiniteError`"
    ),
    "`test_reproduce_old_base_strategy`": "expects the losses of Naive to the last bit",
}
"""Tests of Avalanche's that fail, and why."""


@dataclass(frozen=True)
class Section:
    """A table of the page.

    :param title: its heading.
    :param about: a sentence before it.
    :param cases: its rows.
    """

    title: str
    about: str
    cases: Sequence[Case]


SECTIONS = [
    Section(
        "Plugins",
        "A plugin that is refused is refused when the strategy is built, before the model changes, "
        "and when training starts, if it was added later.",
        interoperation_plugins.CASES,
    ),
    Section("Loggers", "All of them together, over three tasks.", interoperation_logging.LOGGERS),
    Section(
        "Metrics",
        "Compared with what the logits say. A metric is refused when the strategy is built.",
        interoperation_logging.METRICS,
    ),
    Section(
        "Benchmarks",
        "An experience is refused before anything has changed.",
        interoperation_benchmarks.CASES,
    ),
]


def outcome(case: Case, strategy: str) -> Outcome:
    """Try a case with a strategy.

    :param case: any.
    :param strategy: the name of a registered method.
    :raises AssertionError: if it does not do what it is for, or is not refused although it should.
    """
    if case.refused is None:
        case.check(strategy)
        return Outcome("works", case.note)
    try:
        case.check(strategy)
    except case.refused as error:
        # without the name, plugins that are refused for one reason share it
        reason = str(error).replace(f"{case.name.split('`')[1]} ", "it ", 1)
        return Outcome("refused", f"`{type(error).__name__}`: {reason}")
    raise AssertionError(f"{case.name} with {strategy} was to be refused")


def page(outcomes: Sequence[Sequence[Sequence[Outcome]]]) -> str:
    """The page in Markdown.

    :param outcomes: of each section, case and strategy.
    """
    parts = [INTRODUCTION]
    for section, results in zip(SECTIONS, outcomes):
        parts.append(f"## {section.title}\n\n{section.about}\n\n{_table(section.cases, results)}")
    explained = [f"| {tests} | {why} |\n" for tests, why in EXPLAINED.items()]
    return "\n".join([*parts, "".join([AVALANCHES_TESTS, *explained])])


def _table(cases: Sequence[Case], outcomes: Sequence[Sequence[Outcome]]) -> str:
    """A row a case, a column a strategy; reasons are numbered and follow."""
    reasons: list[str] = []
    titles = [method.strategy.__name__ for method in METHODS]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for case, results in zip(cases, outcomes):
        cells = [result.said(reasons) for result in results]
        lines.append(f"| {case.name} | " + " | ".join(cells) + " |")
    notes = numbered(reasons)
    return "\n".join([*lines, "", *notes, ""] if notes else [*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Try everything and write the page.

    :param arguments: command line without the program's name.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.interoperation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=PAGE, metavar="FILE")
    given = parser.parse_args(arguments)
    os.environ["WANDB_SILENT"] = "true"
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # of what Avalanche deprecates
        outcomes = [
            [[outcome(case, method.name) for method in METHODS] for case in section.cases]
            for section in SECTIONS
        ]
    write_atomically(given.out, page(outcomes).encode())
    print(f"{given.out}: {sum(map(len, outcomes)) * len(METHODS)} combinations as they should be")
    return 0
