"""What two tasks of a network of 25 million parameters cost at their ends, in files and in memory.

Run ``python -m benchmarks.speed --large``. Every method learns two tasks of a few steps each, with
ResNet-50 at 4 bits by k-means, and with a ViT-S in floats and at 4 bits of entropy as well, each in
a process of its own, whose memory Linux tells.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from rich.table import Table
from torch import nn
from torchvision.models import VisionTransformer, resnet50

from avalanche_compress import (
    QuantizationPlugin,
    load_archive,
    method_named,
    registered_methods,
    save_archive,
)
from benchmarks.speed.figures import seconds_of
from benchmarks.speed.training import CLASSES, random_samples, stream_of

PIXELS = 32
SAMPLES = 8
"""Of a task, all in one step but those that are held out."""
NOISE = 0.1
"""What training moves each weight by, as part of a layer's standard deviation."""
BITS = 4
MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": partial(resnet50, num_classes=CLASSES),
    "vit_s": partial(
        VisionTransformer,
        image_size=PIXELS,
        patch_size=16,
        num_layers=12,
        num_heads=6,
        hidden_dim=384,
        mlp_dim=1536,
        num_classes=CLASSES,
    ),
}
FORMS = {"resnet50": ("kmeans",), "vit_s": ("float", "kmeans", "entropy")}
"""How each model's values are kept: as they are, or by a method of quantisation."""
METHODS = [method.name for method in registered_methods()]


@dataclass(frozen=True)
class Row:
    """Two tasks of a method. Times are seconds, memory is in multiples of the model's parameters.

    :param form: how values are kept, ``"float"`` or a method of quantisation.
    :param shape_first: pruning, truncating and quantising the first task, which with some methods
        is the base of all others.
    :param commit_first: encoding it, and decoding what was encoded.
    :param shape: the second task.
    :param commit: the second task.
    :param save: writing the archive.
    :param load: reading it.
    :param activate: the second task, whose bytes are decoded then.
    :param verify: reading all tasks with all checks.
    :param megabytes: of the archive.
    :param held: in memory after the last step, gradients included.
    :param shaping: at most, while the second task is pruned and quantised.
    :param committing: at most, while it is encoded and decoded.
    :param saving: at most.
    :param loading: at most, until the task is active; the network that was trained is gone then.
    """

    method: str
    model: str
    form: str
    shape_first: float
    commit_first: float
    shape: float
    commit: float
    save: float
    load: float
    activate: float
    verify: float
    megabytes: float
    held: float
    shaping: float
    committing: float
    saving: float
    loading: float


class EndTimer(SupervisedPlugin):
    """Moves all weights as a long training would, then times how each task is shaped and committed.

    :param network: that is trained.
    :param memory: in which it is.
    """

    def __init__(self, network: Any, memory: Memory) -> None:
        super().__init__()
        self.shaping: list[float] = []
        self.commits: list[float] = []
        self.held = self.shaping_peak = self.commit_peak = 0
        self._network, self._memory, self._began = network, memory, 0.0
        commit = network.commit

        def timed() -> None:
            self.shaping.append(time.process_time() - self._began)
            self.shaping_peak = self._memory.peak()
            self._memory.restart()
            self.commits.append(seconds_of(commit))
            self.commit_peak = self._memory.peak()

        network.commit = timed

    @torch.no_grad()
    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        for store in self._network.weight_stores:
            for parameter in (store.scratch, *store.parameters()):
                if parameter.numel() > 1 and parameter.requires_grad:
                    noise = torch.randn(parameter.shape)
                    parameter.add_(noise, alpha=NOISE * float(parameter.std()))
        self.held = self._memory.restart()
        self._began = time.process_time()


class Memory:
    """The resident memory of this process, from now on."""

    def __init__(self) -> None:
        self._before = 0
        self._before = self.restart()

    def restart(self) -> int:
        """Count the peak from here on; bytes that are held."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed long ago is nobody's
        Path("/proc/self/clear_refs").write_text("5")
        return self.peak()

    def peak(self) -> int:
        """Bytes that were held at most."""
        lines = Path("/proc/self/status").read_text().splitlines()
        found = next(line for line in lines if line.startswith("VmHWM"))
        return 1024 * int(found.split()[1]) - self._before


def forms_of(method: str, model: str) -> list[str]:
    """The forms that are measured: a method that always quantises keeps no floats.

    :param method: its name.
    :param model: one of :data:`MODELS`.

    >>> forms_of("packnet", "vit_s"), forms_of("tinysubnets", "vit_s")
    (['float', 'kmeans', 'entropy'], ['kmeans', 'entropy'])
    """
    return [form for form in FORMS[model] if form != "float" or not _quantises(method)]


def section(methods: Sequence[str], models: Sequence[str]) -> Iterator[list[Row]]:
    """The rows of one method on one model after another, each from a process of its own.

    :param methods: names.
    :param models: names, of :data:`MODELS`.
    """
    for model in models:
        for method in methods:
            rows = []
            for form in forms_of(method, model):
                with ProcessPoolExecutor(1, mp_context=get_context("fork")) as process:
                    rows.append(process.submit(measure, method, model, form).result())
            yield rows


def measure(method: str, model: str, form: str) -> Row:
    """Two tasks of a method, in this process.

    :param method: its name.
    :param model: one of :data:`MODELS`.
    :param form: ``"float"`` or a method of quantisation.
    """
    torch.manual_seed(0)
    memory, build = Memory(), MODELS[model]
    strategy = _learner(method, build(), form)
    timer = EndTimer(strategy.network, memory)
    strategy.plugins.append(timer)
    size = sum(p.numel() * p.element_size() for p in strategy.network.backbone.parameters())
    for experience in stream_of(*random_samples((3, PIXELS, PIXELS), SAMPLES), 2).train_stream:
        strategy.train(experience)
    network = strategy.network
    _, task = network.tasks
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive"
        memory.restart()
        save = seconds_of(partial(save_archive, network, path))
        saving, megabytes = memory.peak(), path.stat().st_size / 1e6
        (shape_first, shape), (commit_first, commit) = timer.shaping, timer.commits
        peaks = [timer.held, timer.shaping_peak, timer.commit_peak, saving]
        del strategy, timer, network
        memory.restart()
        start = time.process_time()
        loaded = load_archive(path, build)
        load = time.process_time() - start
        activate = seconds_of(partial(loaded.activate, task))
        peaks.append(memory.peak())
        verify = seconds_of(loaded.verify)
    times = shape_first, commit_first, shape, commit, save, load, activate, verify
    return Row(method, model, form, *times, megabytes, *(peak / size for peak in peaks))


def _learner(name: str, model: nn.Module, form: str) -> Any:
    method = method_named(name)
    settings: dict[str, Any] = {}
    plugins = []
    if _quantises(name):
        settings = {"bits": BITS, "method": form}
    elif form != "float":
        plugins = [QuantizationPlugin(BITS, form)]
    return method.build(
        settings,
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-3),
        train_mb_size=SAMPLES,
        train_epochs=2,
        plugins=plugins,
        evaluator=None,
    )


def _quantises(name: str) -> bool:
    return "bits" in inspect.signature(method_named(name).strategy).parameters


def table_of_rows(rows: Sequence[Row]) -> Table:
    """Rows as lines to print.

    :param rows: of one method on one model.
    """
    title = f"{rows[0].method}, {rows[0].model}, torch {torch.__version__}"
    table = Table(title=f"{title}: seconds, megabytes, memory in multiples of the model")
    names = [field.name for field in fields(Row)][2:]
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        values = [getattr(row, name) for name in names]
        table.add_row(*(v if isinstance(v, str) else f"{v:.3g}" for v in values))
    return table
