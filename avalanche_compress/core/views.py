"""A finished task as a module of its own: activated, stacked with others, or given away."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Sequence

import torch
from torch import Tensor, nn

from avalanche_compress.codec import CorruptStreamError
from avalanche_compress.core.batches import logits_of
from avalanche_compress.core.heads import restore_avalanche_heads
from avalanche_compress.core.private import PrivateStore
from avalanche_compress.core.store import Place, WeightStore
from avalanche_compress.core.substitution import Completion, Substitution
from avalanche_compress.core.thin_layers import thin_out
from avalanche_compress.errors import TaskStateError

if TYPE_CHECKING:
    from avalanche_compress.core.network import TaskNetwork

FORMS = ("dense", "factored", "auto")
"""How the layers of a materialised task compute."""


class Views:
    """The finished tasks of a network whose weights are in memory.

    :param model: whose tensors the tasks fill.
    :param head: its classifier.
    :param stores: behind its weights.
    :param private: behind all else that a task has for itself.
    :param completed: has tensors stand in all places that read them.
    """

    def __init__(
        self,
        model: nn.Module,
        head: nn.Linear,
        stores: Sequence[WeightStore],
        private: PrivateStore,
        completed: Completion,
    ):
        self._model = model
        self._head = head
        self._stores = list(stores)
        self._private = private
        self._completed = completed
        self.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "active": {}, "_stack": None}

    def clear(self) -> None:
        """Forget the tensors of all tasks, which makes room in memory."""
        self.active: dict[int, Substitution] = {}
        self._stack: tuple[tuple[int, ...], dict[str, Tensor]] | None = None

    def activate(self, *tasks: int) -> None:
        """Build the weights of finished tasks once; they are kept until another one is activated.

        :param tasks: their labels; all of them are in memory at a time.
        :raises CorruptStreamError: if one is damaged, in a network that was loaded.
        """
        if all(task in self.active for task in tasks):
            return
        kept = {task: self.active[task] for task in tasks if task in self.active}
        self.clear()  # what is not asked for makes room first
        for task in tasks:
            if task not in kept:
                kept[task] = Substitution(self._build(task))
        self.active = kept

    def tensors_of(self, task: int) -> list[tuple[Place, Tensor]]:
        """The places of the model that a finished task fills, and its tensors for them.

        :param task: its label.
        """
        self.activate(task)
        return self.active[task].tensors

    def stack(self, tasks: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of several finished tasks by their names in the model, one task a row.

        :param tasks: whose heads are of equal size.
        :return: ``(T, ...)`` each, as ``torch.func.vmap`` over ``functional_call`` takes them.
        """
        self.activate(*tasks)
        if self._stack is None or self._stack[0] != tuple(tasks):
            names = {
                (id(module), name): f"{prefix}.{name}".lstrip(".")
                for prefix, module in self._model.named_modules()
                for name in (*module._parameters, *module._buffers)
            }
            columns = zip(*(self.active[task].tensors for task in tasks))
            tensors = {
                names[id(column[0][0].module), column[0][0].name]: torch.stack(
                    [tensor for _, tensor in column]
                )
                for column in columns
            }
            self._stack = (tuple(tasks), tensors)
        return self._stack[1]

    def _build(self, task: int) -> list[tuple[Place, Tensor]]:
        with torch.inference_mode(False), torch.no_grad():  # what is kept serves training too
            try:
                tensors = [(store.place, store.committed(task)) for store in self._stores]
                tensors += zip(self._private.places, self._private.committed(task))
                tensors = self._completed(tensors)
            except CorruptStreamError as error:
                raise CorruptStreamError(f"task {task} cannot be used: {error}") from error
        return tensors

    def materialise(self, task: int, form: str, classes: int) -> nn.Module:
        """A finished task as a plain model, see :meth:`TaskNetwork.materialise`.

        :param task: its label.
        :param form: one of :data:`FORMS`.
        :param classes: how many it has.
        :raises TaskStateError: if the task is not finished, or there is no such form.
        """
        if form not in FORMS:
            raise TaskStateError(f"form={form!r} must be one of {FORMS}.")
        tensors = self.tensors_of(task)
        memo: dict[int, Any] = {}
        plain = copy.deepcopy(self._model, memo)
        copies: dict[int, Tensor] = {}
        for place, tensor in tensors:
            module = memo[id(place.module)]
            if place.name in module._parameters:
                # torch takes other kernels, with other roundings, if a weight requires a gradient
                if id(tensor) not in copies:
                    copies[id(tensor)] = nn.Parameter(tensor.clone(), requires_grad=False)
                module._parameters[place.name] = copies[id(tensor)]  # tied where it was
            else:
                module._buffers[place.name] = tensor.clone()
            if isinstance(module, nn.RNNBase):
                module._init_flat_weights()
        memo[id(self._head)].out_features = classes
        if form != "dense":
            weights = [
                (memo[id(store.place.module)], store.low_rank(task)) for store in self._stores
            ]
            thin_out(plain, weights, always=form == "factored")
        restore_avalanche_heads(plain, task)
        return plain.eval()


def run_with_features(network: TaskNetwork, x: Tensor, task: int) -> tuple[Tensor, Tensor]:
    """A task's logits and the inputs of its head, in one pass.

    :param network: any.
    :param x: ``(N, ...)``.
    :param task: finished or open.
    :return: ``(N, C_t)`` and ``(N, d)``.
    """
    with watching(network.head) as seen:
        logits = network.own_logits(x, task)
    return logits, seen[-1]


def run_stacked(
    network: TaskNetwork, tasks: Sequence[int], x: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Logits and head inputs of several finished tasks whose heads are of equal size, as one pass.

    :param network: any, in evaluation mode.
    :param tasks: their labels.
    :param x: ``(N, ...)``.
    :return: ``(N, C)`` and ``(N, d)`` of each task, in order.
    """

    def run(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        with watching(network.head) as seen:
            logits = logits_of(torch.func.functional_call(network.backbone, tensors, (x,)))
        return logits, seen[-1]

    logits, features = torch.func.vmap(run)(network.views.stack(tasks))
    return list(zip(logits, features))


class watching:  # noqa: N801 (reads as a statement)
    """While it lasts, the inputs of a module are kept, flattened to (N, d).

    :param module: any.
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self._seen: list[Tensor] = []

    def __enter__(self) -> list[Tensor]:
        self._hook = self._module.register_forward_pre_hook(self._remember)
        return self._seen

    def __exit__(self, *error: Any) -> None:
        self._hook.remove()

    def _remember(self, module: nn.Module, inputs: Any) -> None:
        self._seen.append(inputs[0].detach().flatten(1))
