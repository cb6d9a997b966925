"""Which models work: torchvision's, timm's and transformers', each with two tasks of two steps.

Run ``python -m benchmarks.models`` to try all of them and write docs/models.md. What does not hold
ends the command with its error, unless the package refuses it by name.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets, task_incremental_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn
from torch.utils.data import Dataset

from avalanche_compress import (
    CompressError,
    ExportError,
    TaskNetwork,
    export_task,
    load_archive,
    method_named,
    save_archive,
)
from avalanche_compress.files import write_atomically
from benchmarks.stress.model_list import ENTRIES, Entry
from benchmarks.stress.outcomes import Outcome, numbered

METHODS = {"packnet": "dense", "cacl": "factored"}
"""A method whose weights are masked and one whose weights are terms; the form that is exported."""
COLUMNS = ("converts", "trains", "exact", "archive", "materialise", "ONNX")
TASKS, STEPS, SAMPLES = 2, 2, 4
RATE = 0.01
"""Learning rate of SGD."""
LEAST_STEP = 1e-6
"""A step that is smaller, as a part of the largest weight, may be lost in rounding."""
STEP_ERROR = 1e-4
"""What a weight may differ by after PackNet's first step, and after one of plain training."""
FORM_ERROR = 1e-3
"""What logits of a factored model may differ by, as a part of the largest."""
PAGE = Path(__file__).parents[2] / "docs" / "models.md"

INTRODUCTION = """\
# Which models work

`python -m benchmarks.models` tries the models of this page and writes it; it needs
`pip install '.[bench,export,models]'`. All have random weights and are small
configurations where the library has such; nothing is downloaded. Each learns two tasks of two
classes in two steps of four samples, with `PackNet` (masked weights) and with `CACL` (weights as
terms). A cell says *yes* if that holds with both:

- **converts**: a strategy takes the plain model.
- **trains**: PackNet's first step changes every parameter as a step of plain training does, with
  the same dropout; CACL's losses are finite, and its steps change every weight that
  plain training changes.
- **exact**: the logits of the first task are bit-identical after the second.
- **archive**: a file gives the network back, every logit bit-identical.
- **materialise**: each task as a plain model answers bit for bit as the network does (dense), and
  up to rounding as two thin layers where weights are terms (factored).
- **ONNX**: `export_task` writes a task that onnxruntime runs on four samples and on one, with
  torch's logits up to rounding; PackNet's dense, CACL's factored.

What cannot be kept per task is *refused*, for the reason that the error gives; a number refers to
it, or to what should be known, below the table.
"""
FIXED = "for a number of samples that is fixed, `any_batch_size=False`: the model counts them"


class Samples(Dataset[Any]):
    """The samples of a mini-batch.

    :param x: a tensor (N, ...) or a mapping of such.
    """

    def __init__(self, x: Any):
        self.x = x
        self.targets = [position % 2 for position in range(SAMPLES * STEPS)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        chosen = _rows(self.x, slice(index, index + 1))
        return _mapped(chosen, lambda part: part[0]), self.targets[index]


class FirstStep(SupervisedPlugin):
    """Compares the first training step with one of plain training.

    :param plain: the model as it was.
    :param exactly: whether it trains as the plain model does, or from an approximation of it.
    """

    def __init__(self, plain: nn.Module, exactly: bool):
        super().__init__()
        self.plain, self.exactly, self.is_done = plain.train(), exactly, False
        self.moves: dict[str, bool] = {}

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Have dropout draw what it draws for the plain model."""
        if not self.is_done:
            torch.manual_seed(1)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Compare."""
        assert bool(torch.isfinite(strategy.loss))
        if self.is_done:
            return
        self.is_done = True
        sgd = torch.optim.SGD(self.plain.parameters(), lr=RATE)
        torch.manual_seed(1)
        logits = _logits(self.plain, strategy.mb_x)
        nn.functional.cross_entropy(logits, strategy.mb_y).backward()  # type: ignore[no-untyped-call]
        sgd.step()
        expected = dict(self.plain.named_parameters())
        for name, parameter in expected.items():
            if parameter.grad is not None:
                step, size = RATE * parameter.grad.abs().max(), parameter.detach().abs().max()
                self.moves[name] = bool(step > LEAST_STEP * size)
        for name, parameter in strategy.network.backbone.named_parameters() if self.exactly else ():
            torch.testing.assert_close(
                parameter, expected[name], rtol=STEP_ERROR, atol=STEP_ERROR, msg=f"{name} differs"
            )


class Trial:
    """A model that learns two tasks, column by column of the page.

    :param entry: the model.
    :param method: that trains it.
    """

    def __init__(self, entry: Entry, method: str):
        self.entry, self.method = entry, method
        generator = torch.Generator().manual_seed(0)
        self.data = [entry.inputs(SAMPLES * STEPS, generator) for _ in range(TASKS)]
        self.x = _rows(self.data[0], slice(0, SAMPLES))
        self.strategy: Any = None

    def outcomes(self) -> list[Outcome]:
        """One of each column.

        :raises Exception: if something does not hold that was not refused.
        """
        found: list[Outcome] = []
        for column in (self.converts, self.trains, self.exact, self.archive, self.materialise):
            try:
                column()
            except CompressError as error:
                reason = f"`{type(error).__name__}`: {error}"
                found.append(Outcome("refused", reason))
                return found + [Outcome("-")] * (len(COLUMNS) - len(found))
            found.append(Outcome("yes"))
        return [*found, self.onnx()]

    def build(self) -> nn.Module:
        """The model, with the same values each time."""
        torch.manual_seed(0)
        return self.entry.build()

    def converts(self) -> None:
        """Make a strategy over the plain model."""
        model = self.build()
        self.first_step = FirstStep(self.build(), exactly=self.method == "packnet")
        self.strategy = method_named(self.method).build(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
            train_mb_size=SAMPLES,
            train_epochs=1,
            eval_mb_size=SAMPLES,
            evaluator=None,
            plugins=[self.first_step],
        )

    @property
    def network(self) -> TaskNetwork:
        """What is trained."""
        network: TaskNetwork = self.strategy.network
        return network

    def trains(self) -> None:
        """Learn all tasks."""
        sets = [as_classification_dataset(Samples(x)) for x in self.data]
        stream = task_incremental_benchmark(benchmark_from_datasets(train=sets)).train_stream
        self.known: dict[int, Tensor] = {}
        for task, experience in enumerate(stream):
            self.strategy.train(experience)
            self.known[task] = self.answer(self.network, task)
            assert bool(self.known[task].isfinite().all())
        assert self.first_step.is_done
        initial = dict(self.build().named_parameters())
        same = [
            store.name
            for store in self.network.weight_stores
            if self.first_step.moves.get(store.name)
            and torch.equal(self.network.weight_of(store.name, 1), initial[store.name])
        ]
        assert not same, f"{same} have not changed"

    def exact(self) -> None:
        """Ask finished tasks again."""
        for task, logits in self.known.items():
            assert torch.equal(self.answer(self.network, task), logits), f"task {task} changed"

    def archive(self) -> None:
        """Save and load the network."""
        with tempfile.TemporaryDirectory() as folder:
            save_archive(self.network, f"{folder}/tasks")
            loaded = load_archive(f"{folder}/tasks", self.entry.build)
        for task, logits in self.known.items():
            assert torch.equal(self.answer(loaded, task), logits), f"task {task} is another one"

    @torch.no_grad()
    def materialise(self) -> None:
        """Take each task out as a plain model."""
        for task, logits in self.known.items():
            dense = _logits(self.network.materialise(task), self.x)
            assert torch.equal(dense, logits), f"task {task} answers otherwise"
            thin = _logits(self.network.materialise(task, METHODS[self.method]), self.x)
            gap, size = float((thin - logits).abs().max()), float(logits.abs().max())
            assert gap <= FORM_ERROR * size, f"task {task} differs by {gap} of {size}"

    def onnx(self) -> Outcome:
        """Write a task, which compares it with onnxruntime."""
        with tempfile.TemporaryDirectory() as folder:
            given = (self.network, 0, f"{folder}/task.onnx", self.x)
            write = partial(export_task, *given, form=METHODS[self.method])
            try:
                write()
            except ExportError as error:
                if "any_batch_size=False" not in str(error):
                    return Outcome("refused", f"`ExportError`: {error}")
                write(any_batch_size=False)
                return Outcome("yes", FIXED)
        return Outcome("yes")

    @torch.no_grad()
    def answer(self, network: TaskNetwork, task: int) -> Tensor:
        """A finished task's logits."""
        return network.eval().own_logits(self.x, task)


def row(entry: Entry) -> list[list[Outcome]]:
    """What became of a model, by method and column.

    :param entry: the model.
    :raises Exception: if something does not hold that was not refused.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # of what the libraries deprecate
        return [Trial(entry, method).outcomes() for method in METHODS]


def missing_libraries() -> list[str]:
    """Those of the list that are not installed."""
    return [name for name in dict.fromkeys(e.library for e in ENTRIES) if not find_spec(name)]


def page(rows: Sequence[Sequence[Sequence[Outcome]]]) -> str:
    """The page in Markdown.

    :param rows: of each entry, by method and column.
    """
    reasons: list[str] = []
    lines = [
        "| library | model | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for entry, methods in zip(ENTRIES, rows):
        cells = [_cell(column, reasons) for column in zip(*methods)]
        lines.append(f"| {entry.library} | {entry.name} | " + " | ".join(cells) + " |")
    return "\n".join([INTRODUCTION, *lines, "", *numbered(reasons), ""])


def _cell(column: Sequence[Outcome], reasons: list[str]) -> str:
    """What one cell says, for both methods or for each."""
    words = [outcome.said(reasons) for outcome in column]
    if len(set(words)) == 1:
        return words[0]
    return ", ".join(f"{method} {word}" for method, word in zip(METHODS, words))


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all models and write the page.

    :param arguments: command line without the program's name.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=PAGE, metavar="FILE")
    given = parser.parse_args(arguments)
    missing = missing_libraries()
    if missing:
        parser.error(f"{missing} are needed: pip install '.[export,models]'")
    rows = []
    for position, entry in enumerate(ENTRIES, 1):
        print(f"{position}/{len(ENTRIES)} {entry.library} {entry.name}", flush=True)
        rows.append(row(entry))
    write_atomically(given.out, page(rows).encode())
    print(f"{given.out}: {len(rows)} models as they should be")
    return 0


def _logits(model: nn.Module, x: Any) -> Tensor:
    output: Any = model(**x) if isinstance(x, Mapping) else model(x)
    if isinstance(output, tuple):
        return output[0]  # type: ignore[no-any-return]
    return output if isinstance(output, Tensor) else output.logits


def _mapped(x: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(x, Mapping):
        return {name: function(part) for name, part in x.items()}
    return function(x)


def _rows(x: Any, which: slice) -> Any:
    return _mapped(x, lambda part: part[which])
