"""Weights that are trained as few terms: penalties, truncation, and how the network grows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch
from torch import Tensor

from avalanche_compress.codec import Factors
from avalanche_compress.core.deferred import full_precision
from avalanche_compress.core.network import TaskNetwork, network_of
from avalanche_compress.core.options import is_count
from avalanche_compress.errors import TaskStateError
from avalanche_compress.host.strategy import Strategy
from avalanche_compress.methods.cacl.maths import GROWTH, TRUNCATION, free_rank
from avalanche_compress.methods.cacl.penalties import (
    SPARSITY,
    FrozenRows,
    OrthogonalityBound,
    differentiable,
    orthogonality,
    sparsity,
)
from avalanche_compress.methods.cacl.store import FactoredStore
from avalanche_compress.shaping.plugin import ShapingPlugin, Stage, check_known, stores_of
from avalanche_compress.shaping.size_budget import planned_part

_HARDLY_SMALLER = 0.9
REG_SCOPES = ("all", "new")
ENERGY_SCOPES = ("new", "cumulative")
INITS = ("random", "orthogonal", "svd")

_Penalty = tuple[Tensor, tuple[Tensor, Tensor]]
_Bounds = dict[Tensor, OrthogonalityBound]


class FactorizationOptions(TypedDict, total=False):
    """Options of :class:`FactorizationPlugin`."""

    lambda_orth: float
    lambda_sparse: float
    energy: float
    sparsity: str
    reg_interval: int
    reg_scope: str
    truncation: str
    energy_scope: str
    grow: str
    grow_from: int
    rank: int | float | str
    init: str
    residual: float


@dataclass(eq=False)
class FactorizationPlugin(ShapingPlugin):
    """Trains each weight as terms ``U diag|sigma| V`` and keeps the few that matter.

    In training, ``lambda_orth (O(U) + O(V)) + lambda_sparse H(sigma)`` of each layer is added to
    the loss: O for orthonormal rows, H for few large sigma (see
    :mod:`~avalanche_compress.methods.cacl.penalties`). Afterwards the terms of least energy are
    dropped, without retraining (CACL; Teja and Panda, arXiv 2009.01956). It needs a network of
    :class:`~avalanche_compress.FactoredStore`.

    :param lambda_orth: weight of the orthogonality penalty.
    :param lambda_sparse: weight of the sparsity penalty. It takes the thousands of steps of long
        trainings to empty terms: in a few hundred, .1 and .4 leave as many as 0.
    :param energy: part of a layer's energy ``sum sigma^2`` that truncation may lose, 0..1: more is
        smaller and less accurate, however short the training.
    :param sparsity: ``"hoyer"``, ``"hoyer_square"`` or ``"l1"``.
    :param reg_interval: steps after which the orthogonality penalty is computed anew, which beside
        many frozen terms takes as long as the rest of a step; in between, and not beyond an epoch,
        :class:`~avalanche_compress.methods.cacl.penalties.OrthogonalityBound` stands for it (our
        choice). 1 is the paper's: at every step.
    :param reg_scope: penalties on ``"all"`` terms together, frozen ones too (the public code; the
        pressure on new sigma fades as frozen energy grows), or on the ``"new"`` ones alone.
    :param truncation: ``"raw"`` by the sigma as trained, ``"exact"`` by true singular values.
    :param energy_scope: ``"new"``, or ``"cumulative"`` to count frozen energy as kept already.
    :param grow: how many terms a task may train, see
        :func:`~avalanche_compress.methods.cacl.maths.free_rank`.
    :param grow_from: finished tasks before the network may grow; the public code has 2.
    :param rank: terms of the first task, or of each with ``grow="fixed"``: a number of terms (int),
        a part of the break-even rank (float in 0..1), or ``"full"``.
    :param init: how a task's terms start: ``"random"``, the public code's; ``"orthogonal"``, which
        the penalty leaves alone and in which no term is stronger than another; ``"svd"``, the
        model's own weights for the first task and orthogonal for others.
    :param residual: factor of U when a later task starts. 1 is the public code's: new terms are as
        strong as a layer's random start; 0 leaves the task with what earlier ones have learned.
    :raises TaskStateError: if an argument is outside its range.

    >>> FactorizationPlugin(lambda_sparse=0.4, grow="r0").energy
    3e-05
    """

    lambda_orth: float = 1.0
    lambda_sparse: float = 0.1
    energy: float = 3e-5
    sparsity: str = "hoyer"
    reg_interval: int = 32
    reg_scope: str = "all"
    truncation: str = "raw"
    energy_scope: str = "new"
    grow: str = "avg"
    grow_from: int = 1
    rank: int | float | str = 1.0
    init: str = "svd"
    residual: float = 0.0

    stage = Stage.PRUNE

    def __post_init__(self) -> None:
        super().__init__()
        if not 0 <= self.energy < 1:
            raise TaskStateError(
                f"energy={self.energy} must be at least 0 and below 1: it is the part of a layer's "
                "energy that truncation may lose."
            )
        if not (self.rank == "full" or is_count(self.rank) or _is_part(self.rank)):
            raise TaskStateError(
                f"rank={self.rank!r} must be an int of at least 1, a float above 0 and up to 1 (a "
                "part of the break-even rank), or 'full'."
            )
        if self.reg_interval < 1:
            raise TaskStateError(f"reg_interval={self.reg_interval} must be an int of at least 1.")
        if self.grow_from < 0:
            raise TaskStateError(f"grow_from={self.grow_from} must be an int of at least 0.")
        if not (self.lambda_orth >= 0 and self.lambda_sparse >= 0 and self.residual >= 0):
            raise TaskStateError(
                f"lambda_orth={self.lambda_orth}, lambda_sparse={self.lambda_sparse} and "
                f"residual={self.residual} cannot be negative."
            )
        check_known(
            sparsity=(self.sparsity, SPARSITY),
            reg_scope=(self.reg_scope, REG_SCOPES),
            truncation=(self.truncation, TRUNCATION),
            energy_scope=(self.energy_scope, ENERGY_SCOPES),
            grow=(self.grow, GROWTH),
            init=(self.init, INITS),
        )
        self._frozen: list[_Frozen] = []
        self._bounds: _Bounds = {}
        # by weight: what the frozen terms of the last task added up to, and their sections
        self._earlier: dict[str, tuple[tuple[bytes, ...], _Frozen]] = {}

    def free_rank(self, store: FactoredStore) -> int:
        """How many terms the next task trains in a layer.

        :param store: the layer's.
        """
        most = min(store.rows, store.columns)
        if isinstance(self.rank, str):
            initial = most
        elif isinstance(self.rank, int):
            initial = min(self.rank, most)
        else:
            initial = max(1, round(self.rank * store.initial_rank))
        return free_rank(
            list(store.ranks.values()),
            initial,
            self.grow,
            fixed=initial,
            grow_from=self.grow_from,
        )

    def after_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        stores = factored_stores(network_of(strategy))
        free = [self.free_rank(store) for store in stores]
        part = planned_part(
            strategy,
            lambda part, bits: sum(
                store.planned_bytes(round(part * rank), bits) for store, rank in zip(stores, free)
            ),
        )
        for store, rank in zip(stores, free):
            store.rank = min(rank, max(1, round(part * rank)))
            store.start = self.init
            store.residual_strength = self.residual

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, *args, **kwargs)
        stores = factored_stores(network_of(strategy))
        with full_precision(network_of(strategy).head.weight.device):
            self._frozen = [self._frozen_of(store) for store in stores]

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        # training states are written between epochs, so bounds need not be in them
        if strategy.clock.train_epoch_iterations % self.reg_interval == 0:
            self._bounds = {}
        bounds = self._bounds if self.reg_interval > 1 else None
        strategy.loss = strategy.loss + self.penalty(network_of(strategy), bounds)

    def penalty(self, network: TaskNetwork, bounds: _Bounds | None = None) -> Tensor:
        """What is added to the loss of the open task.

        :param network: in training.
        :param bounds: by parameter, what stands for its orthogonality penalty; those that are
            missing are put in. None for the penalty itself.
        :return: scalar.
        """
        total = torch.zeros((), device=network.head.weight.device)
        parameters, slopes = [], []
        with full_precision(total.device):
            for store, frozen in zip(factored_stores(network), self._frozen):
                for parameter, (value, slope) in self._penalties(store, frozen, bounds):
                    total = total + value
                    parameters.append(parameter)
                    slopes.append(slope)
        return differentiable(total, parameters, slopes)

    def _penalties(
        self, store: FactoredStore, frozen: _Frozen, bounds: _Bounds | None
    ) -> Iterator[_Penalty]:
        """Of one layer: what each is on, its value and its slope; none if nothing trains."""
        if not store.sigma.numel() or not store.scratch.requires_grad:
            return
        if self.lambda_orth:
            for side, rows in ((store.left, frozen.left), (store.right, frozen.right)):
                yield side, _orthogonality(side, rows, bounds, self.lambda_orth)
        if self.lambda_sparse:
            value, slope = sparsity(store.sigma, self.sparsity, frozen.norms)
            yield store.sigma, (self.lambda_sparse * value, slope.mul_(self.lambda_sparse))

    def _frozen_of(self, store: FactoredStore) -> _Frozen:
        """What a layer's frozen terms add up to; those that were there before are not read again.

        :param store: with an open task.
        """
        sections = tuple(store.sections[task] for task in store.reusable)
        known, frozen = self._earlier.get(store.name, ((), _Frozen()))
        moved = frozen.left is not None and frozen.left.device != store.shared.device
        if moved or sections[: len(known)] != known:
            known, frozen = (), _Frozen()
        for block in store.frozen_terms(skipped=len(known)):
            frozen = frozen.extended(block, penalised=self.reg_scope == "all")
        self._earlier[store.name] = sections, frozen
        return frozen

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bounds": {}, "_earlier": {}}

    def shape(self, strategy: Strategy) -> None:
        stores = factored_stores(network_of(strategy))
        for store in stores:
            store.check_finite()  # before any of them has changed
        for store, frozen in zip(stores, self._frozen):
            earlier = frozen.energy if self.energy_scope == "cumulative" else 0.0
            store.truncate(self.energy, self.truncation, earlier)
            store.compact_rows()
        self._frozen, self._bounds = [], {}
        if not network_of(strategy).tasks:
            self._warn_if_hardly_smaller(stores)

    def _warn_if_hardly_smaller(self, stores: Sequence[FactoredStore]) -> None:
        """Say what to set where the first task keeps about as many numbers as a whole network."""
        kept = sum(values.numel() for store in stores for values in store.kept_values())
        whole = sum(store.shape.numel() for store in stores)
        if stores and kept >= _HARDLY_SMALLER * whole:
            warnings.warn(
                f"the first task keeps {kept:,} numbers where its weights have {whole:,}: in this "
                "training sigma has not become sparse. For less give rank=0.25 (a part of the "
                f"break-even rank), energy= above {self.energy:g}, lambda_sparse= above "
                f"{self.lambda_sparse:g}, or more epochs.",
                stacklevel=2,
            )


def _orthogonality(
    side: Tensor, frozen: FrozenRows | None, bounds: _Bounds | None, weight: float
) -> tuple[Tensor, Tensor]:
    if bounds is None:
        value, slope = orthogonality(side, frozen)
        return weight * value, slope.mul_(weight)
    if side not in bounds:
        bounds[side] = OrthogonalityBound(side, frozen, weight)
    return bounds[side].at(side)


def _is_part(rank: object) -> bool:
    return isinstance(rank, float) and 0 < rank <= 1


@dataclass(frozen=True)
class _Frozen:
    """What the terms that a layer builds on add to its penalties: constant while a task trains."""

    left: FrozenRows | None = None
    right: FrozenRows | None = None
    norms: tuple[float, float] = (0.0, 0.0)
    energy: float = 0.0

    def extended(self, terms: Factors, penalised: bool) -> _Frozen:
        """The same with the terms of one more task.

        :param terms: of the task.
        :param penalised: whether frozen terms take part in the penalties.
        """
        scale = terms.scale.double()
        energy = self.energy + float((scale**2).sum())
        if not penalised:
            return replace(self, energy=energy)
        norms = (self.norms[0] + float(scale.abs().sum()), energy)
        left, right = _extended(self.left, terms.left), _extended(self.right, terms.right)
        return _Frozen(left, right, norms, energy)


def _extended(frozen: FrozenRows | None, rows: Tensor) -> FrozenRows:
    return FrozenRows(rows) if frozen is None else frozen.extended(rows)


def factored_stores(network: TaskNetwork) -> list[FactoredStore]:
    """The weights of a network that are trained as terms.

    :param network: any.
    :return: without those that are too small to be factored.
    :raises TaskStateError: if its weights are kept in another way.
    """
    stores = stores_of(network, FactoredStore, "FactorizationPlugin", "factored", "FactoredStore")
    return [store for store in stores if store.factored]
