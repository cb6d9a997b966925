"""How many components each layer keeps, chosen over all layers at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_compress.codec import Choice, allocate
from avalanche_compress.errors import NonFiniteError


@dataclass(frozen=True)
class RankSelection:
    """The rank of every layer, and whether the singular values were enough to be sure of it.

    :param ranks: number of components, one per layer.
    :param certified: one per layer, False where a singular value that was not given might have
        been kept. Then more of that layer's are needed, and the ranks of the others may be too
        large.
    """

    ranks: list[int]
    certified: list[bool]


def select_ranks(
    singular_values: Sequence[Tensor],
    importance: Sequence[float] | Tensor,
    approx_rate: float,
    *,
    kernel_sizes: Sequence[int] | None = None,
    min_rank: int = 1,
    max_rank: int | None = None,
    caps: Sequence[int] | None = None,
    energies: Sequence[float | None] | None = None,
) -> RankSelection:
    r"""The ranks that keep a fraction of what all layers together would gain.

    Component i of layer l lowers the loss by about

    .. math:: score_{l,i} = K_l \, h_l \, \sigma_{l,i}^2

    The components with the largest scores are kept, up to and including the first that brings the
    sum above ``approx_rate`` of the total; of equal scores the earlier layer's, then the earlier
    component goes first. Then every rank is brought within its limits, and what a limit takes
    away is given to no other layer (Li et al., HALRP, TKDE 2024). The rate 1 keeps all that the
    limits allow. If the scores sum to zero, all layers are taken as equally important.

    :param singular_values: one tensor per layer, descending, each of at least one.
    :param importance: h, one per layer, e.g. the mean squared gradient; only ratios matter.
    :param approx_rate: fraction of the total score, in (0, 1].
    :param kernel_sizes: K, the kernel positions over which a component is constant, one per
        layer; 1 by default.
    :param min_rank: the least rank of a layer, unless it has fewer components or a smaller cap.
    :param max_rank: the largest rank of any layer.
    :param caps: the largest rank of each layer, e.g. that at which factors break even.
    :param energies: one per layer: the squared Frobenius norm of the matrix if only its leading
        singular values are given and they are exact, None if all are given.
    :return: the ranks and their certificates.
    :raises ValueError: if the rate is outside (0, 1], a limit or an importance is negative,
        ``max_rank < min_rank``, or the arguments are not one per layer.
    :raises NonFiniteError: if a singular value or an importance is NaN or infinite.

    Example::

        >>> import torch
        >>> from avalanche_compress.methods.halrp.rank_selection import select_ranks
        >>> values = [torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0, 1.0])]
        >>> select_ranks(values, importance=[1.0, 1.0], approx_rate=0.8)
        RankSelection(ranks=[1, 2], certified=[True, True])
    """
    if not 0 < approx_rate <= 1:
        raise ValueError(
            f"approx_rate is {approx_rate}, expected a fraction above 0 and up to 1: give 1 for "
            "full rank."
        )
    layers = _Layers(singular_values, importance, kernel_sizes, energies)
    most = layers.most(min_rank, max_rank, caps)
    if approx_rate == 1:
        chosen = layers.counts
        certified = layers.complete | (layers.counts >= most)
    else:
        chosen, cut = _keep_fraction(layers, approx_rate)
        certified = (layers.unseen == 0) | (layers.unseen < cut)
    ranks = chosen.clamp(min=min_rank).minimum(most).minimum(layers.counts)
    return RankSelection(ranks.tolist(), certified.tolist())


def ranks_within_budget(
    singular_values: Sequence[Tensor],
    importance: Sequence[float] | Tensor,
    costs_per_rank: Sequence[int],
    budget: int,
    *,
    kernel_sizes: Sequence[int] | None = None,
    min_rank: int = 1,
    caps: Sequence[int] | None = None,
) -> list[int]:
    r"""The ranks that gain most per parameter, within a number of parameters.

    Every layer gets ``min_rank``. Then components are added by falling score per parameter,
    ``K h sigma^2 / cost`` (scores and ties as in :func:`select_ranks`), up to the first that does
    not fit. It is not skipped for a cheaper one, so a larger budget never lowers a rank. What is
    left is less than the cost of that one component (our choice).

    :param singular_values: one tensor per layer, descending, each of at least one.
    :param importance: h, one per layer; only ratios matter.
    :param costs_per_rank: parameters of one component, one per layer, each at least 1, such
        as O + I for factors of O rows and I columns.
    :param budget: the most parameters, ``sum_l rank_l cost_l <= budget``.
    :param kernel_sizes: K, the kernel positions over which a component is constant, one per
        layer; 1 by default.
    :param min_rank: the least rank of a layer, unless it has fewer components or a smaller cap.
    :param caps: the largest rank of each layer.
    :return: the ranks.
    :raises ValueError: if the budget does not pay for ``min_rank`` in every layer, a cost is less
        than 1, a limit or an importance is negative, or the arguments are not one per layer.
    :raises NonFiniteError: if a singular value or an importance is NaN or infinite.

    Example::

        >>> import torch
        >>> from avalanche_compress.methods.halrp.rank_selection import ranks_within_budget
        >>> values = [torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0, 1.0])]
        >>> ranks_within_budget(values, [1.0, 1.0], costs_per_rank=[10, 5], budget=20)
        [1, 2]
    """
    layers = _Layers(singular_values, importance, kernel_sizes)
    costs = layers.per_layer("costs_per_rank", costs_per_rank, 1)
    if (costs < 1).any():
        raise ValueError(f"the costs per rank are {costs.tolist()}, expected at least 1 each.")
    most = layers.most(min_rank, None, caps).minimum(layers.counts)
    least = most.clamp(max=min_rank)
    needed = int((least * costs).sum())
    if budget < needed:
        raise ValueError(
            f"the budget is {budget} parameters, but rank {min_rank} everywhere takes {needed}: "
            f"give a budget of at least {needed}, or a lower min_rank."
        )
    layer, index = layers.layer, layers.index
    free = (index >= least[layer]) & (index < most[layer]) & (layers.scores > 0)
    gain = (layers.scores / costs[layer]).masked_fill(~free, -1)
    order = gain.sort(descending=True, stable=True).indices[: int(free.sum())]
    spent = needed + costs[layer[order]].cumsum(0)
    return (least + layers.count(order[spent <= budget])).tolist()


def ranks_within_bytes(
    singular_values: Sequence[Tensor],
    importance: Sequence[float] | Tensor,
    sizes: Sequence[Sequence[float]],
    budget: float,
    *,
    kernel_sizes: Sequence[int] | None = None,
) -> list[int]:
    r"""The ranks that lose least within a number of bytes; a layer's first one if nothing fits.

    At rank k a layer lacks components worth :math:`\sum_{i > k} K h \sigma_i^2`, scored as in
    :func:`select_ranks`. Bytes go where they save most of that
    (:func:`~avalanche_compress.codec.allocate`).

    :param singular_values: one tensor per layer, descending, each of at least one.
    :param importance: h, one per layer; only ratios matter.
    :param sizes: of each layer its bytes at the ranks 0, 1, 2 and so on, up to its largest one.
    :param budget: bytes of all layers.
    :param kernel_sizes: K, the kernel positions over which a component is constant, one per
        layer; 1 by default.

    >>> values = [torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0])]
    >>> ranks_within_bytes(values, [1.0, 1.0], [[0, 10, 20], [0, 5, 10]], budget=21)
    [1, 2]
    """
    layers = _Layers(singular_values, importance, kernel_sizes)
    choices = []
    for layer, ranks in enumerate(sizes):
        scores = layers.scores[layers.layer == layer]
        lacking = [float(scores[rank:].sum()) for rank in range(len(ranks))]
        choices.append([Choice(math.ceil(size), lost) for size, lost in zip(ranks, lacking)])
    chosen = allocate(choices, math.floor(budget))
    return [0] * len(choices) if chosen is None else chosen


def choose_conv_mode(
    mean_singular_values: Tensor,
    flat_singular_values: Tensor,
    outputs: int,
    inputs: int,
    kernel_size: int,
    parameters: int,
) -> str:
    r"""Which of a kernel's two matrices captures more of it with so many parameters.

    The k leading components of the mean over K kernel positions capture
    :math:`K \sum_{i \le k} \sigma_i^2` of the kernel's squared norm at k (O + I) parameters, those
    of the flattened kernel :math:`\sum_{i \le k} \sigma_i^2` at k (O + I K).

    :param mean_singular_values: of the mean, shape (O, I), descending.
    :param flat_singular_values: of the flattened kernel, shape (O, I K), descending.
    :param outputs: O, rows of the weight.
    :param inputs: I, columns of the weight.
    :param kernel_size: K, number of kernel positions.
    :param parameters: what both may spend; a part of a component buys nothing.
    :return: ``"flatten"`` if it captures more, else ``"spatial_mean"``.

    >>> mean, flat = torch.tensor([1.0, 0.5]), torch.tensor([4.0, 1.0])
    >>> [choose_conv_mode(mean, flat, 8, 8, 9, parameters=n) for n in (16, 80)]
    ['spatial_mean', 'flatten']
    """
    mean_rank = parameters // (outputs + inputs)
    flat_rank = parameters // (outputs + inputs * kernel_size)
    mean = kernel_size * mean_singular_values[:mean_rank].double().square().sum()
    flat = flat_singular_values[:flat_rank].double().square().sum()
    # what differs by rounding is equal
    return "flatten" if flat > mean * (1 + 1e-12) else "spatial_mean"


class _Layers:
    """The scores of all components of all layers in one row, on the CPU.

    counts: singular values per layer; complete: whether these are all that are not zero.
    layer, index: per component, its layer and its place in it.
    total: of all scores, also of components that are not given, none of which scores more than
    unseen, per layer.
    """

    def __init__(
        self,
        singular_values: Sequence[Tensor],
        importance: Sequence[float] | Tensor,
        kernel_sizes: Sequence[int] | None,
        energies: Sequence[float | None] | None = None,
    ):
        self.counts = torch.tensor([len(values) for values in singular_values], dtype=torch.long)
        if (self.counts == 0).any():
            raise ValueError("a layer has no singular values, expected at least one of each.")
        ends = self.counts.cumsum(0)
        self.layer = torch.arange(len(ends)).repeat_interleave(self.counts)
        self.index = torch.arange(len(self.layer)) - (ends - self.counts)[self.layer]
        squares = _flat(singular_values).square()
        energy = torch.zeros(len(ends), dtype=torch.float64).index_add(0, self.layer, squares)
        tails = self._tails(energy, energies)
        sizes = self.per_layer("kernel_sizes", kernel_sizes, 1).double()
        weights = sizes * self._relative(importance)
        if not (weights * (energy + tails)).any():
            weights = sizes
        self.scores = weights[self.layer] * squares
        self.total = float((weights * (energy + tails)).sum())
        self.unseen = weights * squares[ends - 1].minimum(tails)
        self.complete = tails == 0

    def per_layer(self, name: str, values: Sequence[float] | Tensor | None, default: int) -> Tensor:
        """The values as a tensor, the default for each layer if there are none."""
        if values is None:
            return torch.full_like(self.counts, default)
        if len(values) != len(self.counts):
            raise ValueError(
                f"{name} has {len(values)} entries, expected one for each of {len(self.counts)} "
                "layers."
            )
        return torch.as_tensor(values).detach().cpu()

    def most(self, min_rank: int, max_rank: int | None, caps: Sequence[int] | None) -> Tensor:
        """The largest rank of each layer, int64, whatever its number of singular values."""
        if max_rank is not None and max_rank < min_rank:
            raise ValueError(
                f"max_rank is {max_rank} and min_rank {min_rank}: give a max_rank of at least "
                f"{min_rank}."
            )
        most = self.per_layer("caps", caps, torch.iinfo(torch.long).max)
        if min_rank < 0 or (most < 0).any():
            raise ValueError(
                f"min_rank is {min_rank} and caps are {caps}, expected 0 or more of each."
            )
        return most if max_rank is None else most.clamp(max=max_rank)

    def count(self, components: Tensor) -> Tensor:
        """How many of the components are in each layer."""
        return torch.bincount(self.layer[components], minlength=len(self.counts))

    def _tails(self, energy: Tensor, energies: Sequence[float | None] | None) -> Tensor:
        """The energy of the singular values that are not given."""
        if energies is None:
            return torch.zeros_like(energy)
        known = self.per_layer("energies", [energy or 0.0 for energy in energies], 0)
        return (known - energy).clamp(min=0)

    def _relative(self, importance: Sequence[float] | Tensor) -> Tensor:
        """The importance of each layer by the power of two that leaves the largest in [1, 2).

        Nothing is rounded, so that scores which are equal stay so; zeros if all are zero.
        """
        values = self.per_layer("importance", importance, 1).double()
        if not values.isfinite().all():
            raise NonFiniteError(
                f"the importance of the layers is {values.tolist()}, expected finite numbers: "
                "check the loss, or lower the learning rate."
            )
        if (values < 0).any():
            raise ValueError(
                f"the importance of the layers is {values.tolist()}, expected 0 or more."
            )
        if not values.any():
            return values
        _, exponent = math.frexp(float(values.max()))
        return values / math.ldexp(1.0, exponent - 1)


def _keep_fraction(layers: _Layers, rate: float) -> tuple[Tensor, float]:
    """How many components each layer keeps and the last kept score, 0 if all have to be kept."""
    ordered, order = layers.scores.sort(descending=True, stable=True)
    reached = ordered.cumsum(0) > rate * layers.total
    kept = int((~reached).sum()) + 1
    cut = float(ordered[kept - 1]) if kept <= len(ordered) else 0.0
    return layers.count(order[: min(kept, int((ordered > 0).sum()))]), cut


def _flat(singular_values: Sequence[Tensor]) -> Tensor:
    if not singular_values:
        return torch.empty(0, dtype=torch.float64)
    values = torch.cat([values.detach() for values in singular_values]).cpu().double()
    if not values.isfinite().all():
        raise NonFiniteError("a singular value is NaN or infinite: check the weights.")
    return values
