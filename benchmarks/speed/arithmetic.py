"""What the arithmetic costs: task inference, thresholds, k-means, coding masks, ranks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from avalanche_compress import MaskedStore, TaskInference, TaskNetwork
from avalanche_compress.codec import decode_mask, encode_mask, kmeans_1d, kth_smallest
from avalanche_compress.methods.halrp.maths import (
    leading_svd,
    least_squares_scalings,
    scale_weight,
)
from avalanche_compress.methods.halrp.rank_selection import select_ranks
from benchmarks.runs.backbones import BACKBONES
from benchmarks.speed.figures import Figure, figure_of, seconds_of
from benchmarks.speed.training import CLASSES, ROUNDS, SHAPES

TASKS = 10
KEEPING = ("prototype", "gaussian@first", "triangular@first", "ridge@first")
"""Rules of task inference that keep statistics."""


@torch.no_grad()
def task_inference(backbone: str, batch: int) -> list[Figure]:
    """Answers to samples of unknown tasks, against a pass of each of the ten plain networks.

    Rules that keep statistics are held against the entropy of all sub-networks, which keeps none.

    :param backbone: name of the backbone.
    :param batch: samples in a mini-batch.
    """
    ways = {name: TaskInference(name) for name in ("entropy", "energy", *KEEPING)}
    ways["entropy, stacked"] = TaskInference("entropy", stacked=True)
    model = BACKBONES[backbone](SHAPES[backbone], CLASSES, False)
    network = TaskNetwork(model, partial(MaskedStore, scored=True)).eval()
    x, y = torch.randn(batch, *SHAPES[backbone]), torch.arange(batch) % CLASSES
    for task in range(TASKS):
        classes = range(CLASSES * task, CLASSES * (task + 1))
        network.open(task, classes)
        network.commit()
        for infer in ways.values():
            infer.collect(network, task, [(x, torch.tensor(classes)[y])])
    plain = [network.materialise(task) for task in network.tasks]
    figures = []
    repeats = 3 * ROUNDS if backbone == "mlp" else ROUNDS
    for name, infer in ways.items():
        by_entropy = partial(ways["entropy"], network, x)
        reference = by_entropy if name in KEEPING else lambda: [model(x) for model in plain]
        seconds, others = [], []
        for _ in range(repeats):
            seconds.append(seconds_of(partial(infer, network, x)))
            others.append(seconds_of(reference))
        what = f"inference by {name}, {backbone}, batch {batch}"
        against = "inference by entropy" if name in KEEPING else f"{TASKS} plain passes"
        figures.append(figure_of(what, seconds[1:], against, others[1:]))
    return figures


def threshold(count: int = 1_000_000) -> Figure:
    """The median of scores, as at every step of a learned mask, against torch's.

    :param count: scores.
    """
    scores = torch.rand(count, generator=torch.Generator().manual_seed(0))
    seconds = [seconds_of(lambda: kth_smallest(scores, count // 2)) for _ in range(ROUNDS)]
    reference = [seconds_of(lambda: scores.kthvalue(count // 2)) for _ in range(ROUNDS)]
    return figure_of(f"kth_smallest, {count:,} values", seconds, "torch.kthvalue", reference)


def kmeans(count: int = 1_000_000) -> list[Figure]:
    """Optimal one-dimensional k-means against scikit-learn's with one start.

    :param count: normal random values.
    """
    from sklearn.cluster import KMeans

    values = torch.randn(count, generator=torch.Generator().manual_seed(0))
    column = values.numpy().reshape(-1, 1)
    figures = []
    for k in (4, 16):
        ours, theirs = [], []
        for _ in range(3):
            ours.append(seconds_of(partial(kmeans_1d, values, k)))
            theirs.append(seconds_of(partial(KMeans(k, n_init=1, random_state=0).fit, column)))
        figures.append(figure_of(f"kmeans_1d, {count:,} values, k={k}", ours, "sklearn", theirs))
    return figures


def mask_coding(count: int = 1_000_000) -> Figure:
    """Coding a mask that inherits 80 % of the last task's, against decoding it.

    :param count: weights.
    """
    generator = torch.Generator().manual_seed(0)
    last = torch.rand(count, generator=generator) < 0.5
    fresh = torch.rand(count, generator=generator) < 0.5
    mask = torch.where(torch.rand(count, generator=generator) < 0.8, last, fresh)
    context = last.to(torch.uint8)
    coded = encode_mask(mask, context)
    encode = [seconds_of(lambda: encode_mask(mask, context)) for _ in range(ROUNDS)]
    decode = [seconds_of(lambda: decode_mask(coded, count, context)) for _ in range(ROUNDS)]
    return figure_of(f"encode_mask, {count:,} weights", encode, "decode_mask", decode)


def rank_estimation(rank: int = 100) -> list[Figure]:
    """From trained weights to ranks, against the singular value decomposition of each layer.

    :param rank: the largest rank.
    """
    from torchvision.models import resnet18

    generator = torch.Generator().manual_seed(0)
    linear = [torch.randn(2048, 1024, generator=generator)]
    network = [
        torch.randn(weight.shape, generator=generator)
        for weight in resnet18().parameters()
        if weight.dim() == 4
    ]
    figures = []
    for what, tuned in (("2048 x 1024 layer", linear), ("all layers of resnet18", network)):
        base = [weight + 0.1 * torch.randn(weight.shape, generator=generator) for weight in tuned]
        ours, theirs = [], []
        for _ in range(3):
            ours.append(seconds_of(partial(_ranks, tuned, base, rank)))
            theirs.append(seconds_of(partial(_decomposed, tuned)))
        figures.append(figure_of(f"rank estimation, {what}", ours, "linalg.svd", theirs))
    return figures


def _ranks(tuned: Sequence[torch.Tensor], base: Sequence[torch.Tensor], rank: int) -> list[int]:
    found = []
    for weight, frozen in zip(tuned, base):
        r, s = least_squares_scalings(weight, frozen)
        found.append(leading_svd(_matrix(weight - scale_weight(frozen, r, s)), rank))
    return select_ranks(
        [svd.singular_values for svd in found],
        torch.ones(len(found)),
        0.9,
        max_rank=rank,
        energies=[None if svd.exact else svd.energy for svd in found],
    ).ranks


def _decomposed(weights: Sequence[torch.Tensor]) -> list[Any]:
    return [torch.linalg.svd(_matrix(weight)) for weight in weights]


def _matrix(weight: torch.Tensor) -> torch.Tensor:
    return weight.flatten(2).mean(2) if weight.dim() > 2 else weight
