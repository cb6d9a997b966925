"""Steps of bare loops whose weights are composed by hand: what a method's arithmetic alone takes.

No framework, no callbacks, no checks, no penalties, and thresholds that are given. The weights are
written out here, and are not the package's, so that they do not change with what they are beside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_compress.codec import break_even_rank
from benchmarks.speed.figures import Figure, figure_of, seconds_of
from benchmarks.speed.training import CLASSES, adam, random_samples

LAYERS = ((784, 100), (100, 100))
THRESHOLD = 0.5
_LIFT = torch.tensor(1e-13)
"""Keeps squared gradients away from 0, whose root takes long on a CPU."""


class Weight(nn.Module):
    """A weight as it is.

    :param columns: of the layer's input.
    :param rows: of its output.
    """

    def __init__(self, columns: int, rows: int):
        super().__init__()
        self.own = nn.Parameter(torch.randn(rows, columns) / columns**0.5)
        self.writable: Tensor
        self.frozen: Tensor
        self.register_buffer("writable", (torch.rand(rows, columns) < 0.5).float())
        others = torch.randn(rows, columns) / columns**0.5
        self.register_buffer("frozen", others * (1 - self.writable))

    def forward(self) -> Tensor:
        return self.own

    def after_step(self) -> None:
        """What has to be done after the optimiser's step."""


class Masked(Weight):
    """``frozen + writable own``, and the gradient where it is writable: PackNet's arithmetic."""

    def forward(self) -> Tensor:
        weight: Tensor = _Composed.apply(self.frozen, self.writable, self.own)
        return weight


class Restored(Weight):
    """The same weight, trained as it is and put right after each step.

    It gives other plugins gradients of frozen numbers.
    """

    @torch.no_grad()
    def after_step(self) -> None:
        torch.addcmul(self.frozen, self.writable, self.own, out=self.own)


class Scored(Weight):
    """A masked weight whose mask is learned by scores: WSN's arithmetic, at a given threshold."""

    def __init__(self, columns: int, rows: int):
        super().__init__(columns, rows)
        self.scores = nn.Parameter(torch.randn(rows, columns))

    def forward(self) -> Tensor:
        weight: Tensor = _Chosen.apply(self.frozen, self.writable, self.own, self.scores)
        return weight


class Factored(nn.Module):
    """``frozen + U diag|sigma| V`` of the break-even rank: CACL's arithmetic.

    :param columns: of the layer's input.
    :param rows: of its output.
    """

    def __init__(self, columns: int, rows: int):
        super().__init__()
        rank = break_even_rank(rows, columns)
        self.frozen: Tensor
        self.register_buffer("frozen", torch.randn(rows, columns) / columns**0.5)
        self.left = nn.Parameter(torch.randn(rank, rows) / rank**0.5)
        self.sigma = nn.Parameter(torch.ones(rank))
        self.right = nn.Parameter(torch.randn(rank, columns) / columns**0.5)

    def forward(self) -> Tensor:
        return torch.addmm(self.frozen, self.left.t(), self.sigma.abs().unsqueeze(1) * self.right)

    def after_step(self) -> None:
        """Nothing."""


class _Composed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, frozen: Tensor, writable: Tensor, own: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(writable)
        return torch.addcmul(frozen, writable, own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (writable,) = ctx.saved_tensors
        return None, None, torch.addcmul(_LIFT, gradient, writable)


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, frozen: Tensor, writable: Tensor, own: Tensor, scores: Tensor
    ) -> Tensor:
        whole = torch.addcmul(frozen, writable, own)
        ctx.save_for_backward(writable, scores, whole)
        return torch.ops.aten.hardshrink_backward(whole, scores, THRESHOLD)  # whole where chosen

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        writable, scores, whole = ctx.saved_tensors
        chosen = torch.ops.aten.hardshrink_backward(gradient, scores, THRESHOLD)
        own = torch.addcmul(_LIFT, chosen, writable)
        return None, None, own, scores.sign().mul_(gradient).mul_(whole)


BARE: dict[str, Callable[[int, int], Any]] = {
    "a plain weight": Weight,
    "masked (packnet)": Masked,
    "masked, put right after the step": Restored,
    "learned mask (wsn)": Scored,
    "factored (cacl)": Factored,
}


class _Network(nn.Module):
    def __init__(self, kind: Callable[[int, int], Any]):
        super().__init__()
        self.weights: Any = nn.ModuleList(kind(*shape) for shape in LAYERS)
        self.head = nn.Linear(LAYERS[-1][1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = F.relu(F.linear(x, weight()))
        logits: Tensor = self.head(x)
        return logits


def bare_steps(batch: int, batches: int, rounds: int) -> list[Figure]:
    """A training step of the MLP of 784-100-100 of each kind, on random samples.

    :param batch: samples in a step.
    :param batches: steps in a round.
    :param rounds: epochs that are timed, and one more to warm up.
    """
    x, y = random_samples(LAYERS[0][:1], batch * batches)
    trained = {name: _trained(_Network(kind), x, y, batch) for name, kind in BARE.items()}
    seconds: dict[str, list[float]] = {name: [] for name in BARE}
    for _ in range(rounds + 1):
        for name, epoch in trained.items():
            seconds[name].append(seconds_of(epoch) / batches)
    plain, *others = ((name, times[1:]) for name, times in seconds.items())
    what = f"bare step, mlp, batch {batch}: "
    return [figure_of(what + name, times, *plain) for name, times in others]


def _trained(network: _Network, x: Tensor, y: Tensor, batch: int) -> Callable[[], None]:
    optimizer = adam(network)

    def epoch() -> None:
        for index in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(network(x[index]), y[index]).backward()
            optimizer.step()
            for weight in network.weights:
                weight.after_step()

    return epoch
