"""What a run leaves behind, and ``results.json``."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from avalanche_compress.files import write_atomically
from benchmarks.runs.accuracies import Row, final_row, mean_so_far

PAGES = "wandb_pages"
"""A folder with a text file for each run that W&B has, which holds the address."""
_LONGEST_NAME = 150
"""Characters of a run's file name: a system allows 255 bytes, and files put words before it."""


@dataclass(frozen=True)
class RunKey:
    """One cell of the comparison.

    Order 0 is the canonical one, ``backbone=None`` the stream's own and ``variant=""`` the recipe
    as it is; none of them is spelled out.
    """

    strategy: str
    stream: str
    seed: int
    scenario: str = "task"
    inference: str | None = None
    order_index: int = 0
    quick: bool = False
    backbone: str | None = None
    bf16: bool = False
    variant: str = ""

    @property
    def label(self) -> str:
        """The strategy, with its variant and its rule to infer tasks if it has one."""
        return ", ".join(filter(None, (self.strategy, self.variant, self.inference)))

    @property
    def slug(self) -> str:
        """A file name for whatever belongs to this run, however its parts are called."""
        stream = self.stream if self.scenario == "task" else f"{self.stream}-{self.scenario}"
        stream += "" if self.backbone is None else f"-{self.backbone}"
        order = f"-order{self.order_index}" if self.order_index else ""
        modes = "".join(f"-{mode}" for mode in self._modes)
        name = f"{stream}-{self.label.replace(', ', '-')}-seed{self.seed}{order}{modes}"
        return _as_file_name(name)

    def __str__(self) -> str:
        scenario = "" if self.scenario == "task" else f" ({self.scenario} scenario)"
        order = f", order {self.order_index}" if self.order_index else ""
        modes = "".join(f", {mode}" for mode in self._modes)
        scenario += "" if self.backbone is None else f" with {self.backbone}"
        return f"{self.label} on {self.stream}{scenario}, seed {self.seed}{order}{modes}"

    @property
    def _modes(self) -> list[str]:
        return ["quick"] * self.quick + ["bf16"] * self.bf16


@dataclass(frozen=True)
class RunResult:
    """One object of ``results.json``; the field names are its keys and do not change.

    :param order: the task index that each experience held.
    :param accuracy: mean over tasks of the final test accuracy, 0 to 1.
    :param accuracy_matrix: row i holds the test accuracy of every task after task i; None where
        a task was not seen yet.
    :param forgetting: mean over all tasks but the last of the best earlier accuracy minus the
        final one; None when tasks were not learnt one after the other.
    :param bwt: backward transfer, the mean of the final accuracy minus the one just after the
        task was learnt; None as for forgetting.
    :param archive_bytes: size of the archive file; None for methods that write none.
    :param stored_bytes: what the method has to keep to go on learning and to answer.
    :param independent_bytes: one plain network per task, at four bytes a number.
    :param scenario: ``"task"``, with task labels at test, or ``"class"``, without.
    :param task_inference: the rule by which tasks were inferred; None where none was.
    :param task_id_accuracy: mean over tasks of the final part of test samples whose task was
        inferred rightly, 0 to 1; None where none was inferred.
    :param order_index: the number of ``order`` among the stream's task orders; 0 is the canonical
        one.
    :param ranks: by dotted name of the weight, how many terms each task added to it, in order of
        learning; None where no weights are kept as terms.
    :param quick: whether the epochs were cut down by ``--quick``.
    :param recipe: fingerprint of the hyper-parameters, the backbone, the budget and the device, see
        :func:`benchmarks.runs.recipe.fingerprint`.
    :param device: where it was computed, ``"cpu"`` or ``"cuda"``.
    :param archive_sha256: of the archive's bytes; None where there is none.
    :param own_backbone: whether the backbone is the one that the stream has by default.
    :param densities: by dotted name of the weight, the part of it that each task computes with, 0
        to 1, in order of learning; None where tasks have no masks.
    :param bits: by dotted name of the weight, mean bits of the numbers that each task added to it,
        None where it added nothing; None where the method is not one of ours.
    :param hardware: the processor that it was computed on; empty where it was not recorded.
    :param bf16: whether training computed in bfloat16.
    :param memory_bytes: of what is stored, samples or statistics of samples; None where the method
        keeps none, or it was not recorded.
    :param refused: by task in order of learning, the part of its test samples that is refused as
        those of no learned task, when all are learned; None where nothing can be refused.
    :param refused_before: the same just before the task was learned, None for the first.
    :param variant: what is other than in the recipe, see :func:`benchmarks.runs.recipe.variant_of`.
    """

    strategy: str
    stream: str
    backbone: str
    seed: int
    order: list[int]
    accuracy: float
    accuracy_matrix: list[Row]
    forgetting: float | None
    bwt: float | None
    archive_bytes: int | None
    stored_bytes: int
    independent_bytes: int
    train_seconds: float
    eval_seconds: float
    versions: dict[str, str]
    epochs: int
    train_mb_size: int
    scenario: str = "task"
    task_inference: str | None = None
    task_id_accuracy: float | None = None
    order_index: int = 0
    ranks: dict[str, list[int]] | None = None
    quick: bool = False
    recipe: str = ""
    device: str = "cpu"
    archive_sha256: str | None = None
    own_backbone: bool = True
    densities: dict[str, list[float]] | None = None
    bits: dict[str, list[float | None]] | None = None
    hardware: str = ""
    bf16: bool = False
    memory_bytes: int | None = None
    refused: Row | None = None
    refused_before: Row | None = None
    variant: str = ""

    @property
    def key(self) -> RunKey:
        """Which run this is."""
        return RunKey(
            self.strategy,
            self.stream,
            self.seed,
            self.scenario,
            self.task_inference,
            self.order_index,
            self.quick,
            None if self.own_backbone else self.backbone,
            self.bf16,
            self.variant,
        )

    @property
    def compared_bytes(self) -> int:
        """The archive on disk, or what is kept where there is no archive."""
        return self.stored_bytes if self.archive_bytes is None else self.archive_bytes

    @property
    def ratio(self) -> float:
        """Compared bytes over those of independent networks."""
        return self.compared_bytes / self.independent_bytes

    @property
    def accuracy_so_far(self) -> Row:
        """After each task, the mean accuracy over the tasks seen; None where none was measured."""
        return [mean_so_far(row) for row in self.accuracy_matrix]

    @property
    def final_by_task(self) -> dict[int, float]:
        """Final accuracy by task index in the canonical order, whichever order was trained."""
        return dict(zip(self.order, final_row(self.accuracy_matrix)))


def _as_file_name(name: str) -> str:
    """A name that is one part of a path; one that had to be changed says so by a fingerprint.

    >>> _as_file_name("split_digits-wsn-seed0"), _as_file_name("../../etc/x")
    ('split_digits-wsn-seed0', '_.._etc_x-56da1a2e')
    """
    safe = re.sub(r"[^\w.+=-]+", "_", name, flags=re.ASCII).lstrip(".")
    if safe == name and len(name) <= _LONGEST_NAME:
        return name
    fingerprint = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()
    return f"{safe[:_LONGEST_NAME]}-{fingerprint[:8]}"


def versions() -> dict[str, str]:
    """Versions of whatever the numbers depend on."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    import avalanche_compress

    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "avalanche-lib", "numpy"):
        found[name] = metadata.version(name)
    found["avalanche_compress"] = avalanche_compress.__version__
    return found


def hardware(device: str) -> str:
    """The processor that computes, for people.

    :param device: ``"cpu"`` or ``"cuda"``.
    """
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    """The processor's model; Linux keeps it where Python does not look."""
    table = Path("/proc/cpuinfo")
    text = table.read_text(encoding="utf-8") if table.exists() else ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()


def write_results(results: Sequence[RunResult], path: Path) -> None:
    """Replace ``results.json`` in one step: a reader sees the old file or the new one."""
    write_text(path, json.dumps([asdict(result) for result in results], indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step, through a temporary file next to it."""
    write_atomically(path, text.encode("utf-8"))
