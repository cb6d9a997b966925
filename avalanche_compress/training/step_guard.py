"""A training step that fails leaves nothing behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class StepGuard:
    """Lets a training step that fails leave the model as it was before the step.

    What a forward pass moves (running statistics) is put back, whatever failed: the forward pass,
    the loss, a plugin, the backward pass. What would make weights non-finite is found before they
    change. A value on a CPU is looked at as soon as it is there; a GPU would idle meanwhile, so its
    values are looked at when the backward pass is queued behind them.

    Used around an epoch, ``with guard:``, and told what happens within a step.

    >>> statistics, guard = torch.zeros(1), StepGuard()
    >>> try:
    ...     with guard:
    ...         guard.step_begins([statistics])
    ...         _ = statistics.add_(1)
    ...         guard.expect(torch.tensor(False), lambda: ValueError("the loss is NaN"))
    ... except ValueError as error:
    ...     print(error, statistics.tolist())
    the loss is NaN [0.0]
    """

    def __init__(self) -> None:
        self._before: list[tuple[Tensor, Tensor]] = []
        self._late: list[tuple[_LateFlag, Callable[[], Exception]]] = []

    def __enter__(self) -> StepGuard:
        self._forget()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self._undo()
        self._forget()

    def step_begins(self, moving: Sequence[Tensor]) -> None:
        """A forward pass is about to start.

        :param moving: the tensors that it moves.
        """
        self._before = [(tensor, tensor.clone()) for tensor in moving]

    def expect(self, flag: bool | Tensor, error: Callable[[], Exception]) -> None:
        """Let the step fail unless a flag is True, now or before the weights change.

        :param flag: bool, or a scalar of it.
        :param error: makes the error to be raised.
        """
        if isinstance(flag, bool) or self.waits_for(flag):
            self._check(flag, error)
        else:
            self._late.append((_LateFlag(flag), error))

    def waits_for(self, value: Tensor) -> bool:
        """Whether a value is looked at as soon as it is there.

        :param value: any.
        """
        return not value.is_cuda

    def is_finite(self, value: Tensor) -> bool | Tensor:
        """Whether a value is neither NaN nor infinite: a bool, or on a GPU a scalar there.

        :param value: of any shape.
        """
        if value.numel() != 1 or not self.waits_for(value):
            return torch.isfinite(value.detach()).all()
        return math.isfinite(value.item())  # a quarter of the time it takes in torch

    def weights_change(self) -> None:
        """The weights are about to change: what was expected must hold by now."""
        late, self._late = self._late, []
        for flag, error in late:
            self._check(flag, error)

    def step_ends(self) -> None:
        """The weights have changed, and nothing of the step can be undone."""
        self._forget()

    def _check(self, flag: bool | Tensor | _LateFlag, error: Callable[[], Exception]) -> None:
        if not bool(flag):
            self._undo()  # the error may look for its cause in the model
            raise error()

    def _undo(self) -> None:
        for tensor, before in self._before:
            tensor.copy_(before)

    def _forget(self) -> None:
        self._before, self._late = [], []


class _LateFlag:
    """A flag on its way from a GPU, which goes on with what was queued behind it.

    :param flag: bool, scalar.
    """

    def __init__(self, flag: Tensor):
        self._flag = flag.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()

    def __bool__(self) -> bool:
        self._copied.synchronize()
        return bool(self._flag)
