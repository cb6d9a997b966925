"""How many runs fit into memory at a time."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from benchmarks.data.streams import STREAMS, Budget
from benchmarks.runs.backbones import BACKBONES, float_bytes

PROCESS_BYTES = 850 << 20
"""Of a process that has imported torch and Avalanche, as measured; forked ones share some of it."""
_COPIES = 12
"""Of a model: values, gradients, two moments, the best epoch, a view, what is quantised ..."""


def run_bytes(stream: str, backbone: str, budget: Budget) -> int:
    r"""What a run needs at its peak, in bytes, roughly and rather too much (our choice).

    .. math:: P + n d + 4 n_t d + 12 m + 2 b a + 3 b_e a_{max}

    That is a process P, n images of d bytes, those of one task as floats, a model of m bytes, what
    its layers give for a training batch with the gradients, and for an evaluation batch the largest
    of it with what comes before and after. Measured were 1.61 GB on ``split_cifar100_20`` and 1.67
    GB on ``split_cifar100_10``, for which this says 1.63 and 1.95.

    :param stream: name in the registry; of one that has no ``size``, only the process counts.
    :param backbone: name in :data:`~benchmarks.runs.backbones.BACKBONES`.
    :param budget: its batch sizes.

    >>> budget = STREAMS["split_digits"].budget
    >>> run_bytes("split_digits", "mlp", budget) - PROCESS_BYTES < 10e6
    True
    """
    size = STREAMS[stream].size
    if size is None:
        return PROCESS_BYTES
    try:
        with torch.device("meta"):  # shapes without numbers
            model = BACKBONES[backbone](size.shape, 10, False).eval()
        outputs = _output_bytes(model, size.shape)
    except Exception:  # a network for other images: its runs say what is wrong
        return PROCESS_BYTES
    samples = (size.images + 4 * size.task_images) * math.prod(size.shape)
    training = 2 * budget.train_mb_size * sum(outputs)
    evaluation = 3 * budget.eval_mb_size * max(outputs)
    return PROCESS_BYTES + samples + _COPIES * float_bytes(model) + training + evaluation


def _output_bytes(model: nn.Module, shape: tuple[int, ...]) -> list[int]:
    """Of each layer, what it gives for one sample."""
    outputs: list[int] = []

    def note(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            outputs.append(output.nbytes)

    layers = [module for module in model.modules() if not list(module.children())]
    for layer in layers:
        layer.register_forward_hook(note)
    with torch.device("meta"), torch.no_grad():
        model(torch.empty(1, *shape))
    return outputs


def available_bytes(root: Path = Path("/")) -> int | None:
    """What may be had without swapping, of the machine or of this container; None if unknown.

    :param root: of the file system.
    """
    free = []
    machine = _fields(root / "proc/meminfo")
    if "MemAvailable" in machine:
        free.append(machine["MemAvailable"] << 10)
    group = root / "sys/fs/cgroup"
    used = _fields(group / "memory.stat")
    limit = group / "memory.max"
    if "anon" in used and limit.is_file() and (most := limit.read_text().strip()).isdigit():
        free.append(max(0, int(most) - used["anon"]))  # files in memory make room
    return min(free, default=None)


def _fields(path: Path) -> dict[str, int]:
    """Names and numbers of a table of the system's."""
    if not path.is_file():
        return {}
    rows = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
