"""A finished task as a module of its own: activated, stacked with others, or given away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from avalanche_compress.codec import CorruptStreamError
from avalanche_compress.core.batches import logits_of
from avalanche_compress.core.heads import restore_avalanche_heads, set_outputs
from avalanche_compress.core.private import PrivateStore
from avalanche_compress.core.store import Place, WeightStore
from avalanche_compress.core.structure import Structure, independent_copy
from avalanche_compress.core.substitution import Completion
from avalanche_compress.core.thin_layers import thin_out
from avalanche_compress.errors import TaskStateError, UnsupportedModuleError

FORMS = ("dense", "factored", "auto")
"""How the layers of a materialised task compute."""

Tensors = Sequence["tuple[Place, Tensor]"]
Seen = list[tuple[Any, Any]]


class View(NamedTuple):
    """A finished task that answers."""

    model: nn.Module
    tensors: Tensors
    parts: dict[int, nn.Module]
    """Its modules by the ids of the network's."""


class Stack(NamedTuple):
    """Finished tasks that answer as one."""

    tasks: tuple[int, ...]
    frame: View
    """Computes with the tensors of any of them."""
    tensors: dict[str, Tensor]
    """A row a task, by name."""


class Views:
    """The finished tasks of a network that are in memory, each as a module of its own.

    A view has the structure of the model and the tensors of its task, so nothing that two tasks
    share is changed when one is evaluated: several threads may evaluate several tasks. What all
    tasks share is in memory once.

    :param structure: of the model.
    :param heads: its classifier, or classifiers.
    :param stores: behind its weights.
    :param private: behind all else that a task has for itself.
    :param completed: has tensors stand in all places that read them.
    """

    def __init__(
        self,
        structure: Structure,
        heads: Sequence[nn.Module],
        stores: Sequence[WeightStore],
        private: PrivateStore,
        completed: Completion,
    ):
        self._structure = structure
        self._heads = list(heads)
        self._stores = list(stores)
        self._private = private
        self._completed = completed
        self._lock = threading.RLock()
        self.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "active": {}, "_stack": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def clear(self) -> None:
        """Forget all views, which makes room in memory."""
        self.active: dict[int, View] = {}
        self._stack: Stack | None = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def activate(self, *tasks: int) -> None:
        """Build the views of finished tasks once; they are kept until another one is activated.

        :param tasks: their labels; all of them are in memory at a time.
        :raises CorruptStreamError: if one is damaged, in a network that was loaded.
        """
        with self._lock:
            if all(task in self.active for task in tasks):
                return
            kept = {task: self.active[task] for task in tasks if task in self.active}
            self.clear()  # what is not asked for makes room first
            for task in tasks:
                if task not in kept:
                    kept[task] = self._build(task)
            self.active = kept

    def __getitem__(self, task: int) -> View:
        """A finished task, which is activated if it is not."""
        view = self.active.get(task)
        return self._activated(task) if view is None else view

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _activated(self, task: int) -> View:
        with self._lock:  # no other thread activates its own task in between
            self.activate(task)
            return self.active[task]

    def of_tensors(self, tensors: Tensors) -> View:
        """A view with given tensors, of no finished task.

        :param tensors: by place in the model.
        """
        with torch.inference_mode(False), torch.no_grad():
            tensors = self._completed(list(tensors))
            model, parts = self._structure.copy(tensors)
        for head in self._heads:
            copied: Any = parts[id(head)]
            set_outputs(copied, copied.weight.shape[0])
        return View(model, tensors, parts)

    def run_stacked(self, tasks: Sequence[int], x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Logits and head inputs of several tasks whose heads are of equal size, as one pass.

        :param tasks: finished.
        :param x: ``(N, ...)``.
        :return: ``(N, C)`` and ``(N, d)`` of each task, in order.
        """
        with self._lock:  # the module that computes is changed while it does
            self.activate(*tasks)
            if self._stack is None or self._stack.tasks != tuple(tasks):
                models = [self.active[task].model for task in tasks]
                frame = self.of_tensors(self.active[tasks[0]].tensors)
                self._stack = Stack(tuple(tasks), frame, _stacked(models))
            stack = self._stack
            head = stack.frame.parts[id(self._heads[0])]

            def run(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
                with watching([head]) as (seen,):
                    output = torch.func.functional_call(stack.frame.model, tensors, (x,))
                return logits_of(output), seen[-1][0].detach().flatten(1)

            logits, features = torch.func.vmap(run)(stack.tensors)
        return list(zip(logits, features))

    def materialise(self, task: int, form: str) -> nn.Module:
        """A finished task as a plain model, see :meth:`TaskNetwork.materialise`.

        :param task: its label.
        :param form: one of :data:`FORMS`.
        :raises TaskStateError: if the task is not finished, or there is no such form.
        """
        if form not in FORMS:
            raise TaskStateError(f"form={form!r} must be one of {FORMS}.")
        # of its own: another thread may be watching the head of the one that is active
        view = self.of_tensors(self[task].tensors)
        plain, copy_of = independent_copy(view.model)
        if form != "dense":
            weights = [
                (copy_of[id(view.parts[id(store.place.module)])], store.low_rank(task))
                for store in self._stores
            ]
            thin_out(plain, weights, always=form == "factored")
        restore_avalanche_heads(plain, task)
        return plain

    def _build(self, task: int) -> View:
        with torch.inference_mode(False), torch.no_grad():  # what is kept serves training too
            try:
                tensors = [(store.place, store.committed(task)) for store in self._stores]
                tensors += zip(self._private.places, self._private.committed(task))
            except CorruptStreamError as error:
                raise CorruptStreamError(f"task {task} cannot be used: {error}") from error
        view = self.of_tensors(tensors)
        for module in view.model.modules():
            # where attributes are looked up first: two of three microseconds that a layer costs
            module.__dict__.update((n, p) for n, p in module._parameters.items() if p is not None)
        return view


class Answering(Protocol):
    """A network, as :func:`run_with_features` needs it."""

    views: Views
    open_task: int | None

    @property
    def head(self) -> nn.Linear:
        """The classifier of the task in training."""

    def own_logits(self, x: Tensor, task: int) -> Tensor:
        """Logits of one task's classes alone."""


def run_with_features(network: Answering, x: Tensor, task: int) -> tuple[Tensor, Tensor]:
    """A task's logits and the inputs of its head, in one pass.

    :param network: a :class:`~avalanche_compress.TaskNetwork`.
    :param x: ``(N, ...)``.
    :param task: finished or open.
    :return: ``(N, C_t)`` and ``(N, d)``.
    :raises UnsupportedModuleError: if the model has a head that it does not call.
    """
    with watching_task(network, task, [network.head]) as (seen,):
        logits = network.own_logits(x, task)
    if not seen:
        raise UnsupportedModuleError(
            "the model reads the weight of its head and does not call it, so the head's inputs "
            "are unknown: call the head as a module, or choose what needs no features."
        )
    inputs, _ = seen[-1]
    return logits, inputs.detach().flatten(1)


@contextmanager
def watching_task(
    network: Answering, task: int, modules: Sequence[nn.Module]
) -> Iterator[list[Seen]]:
    """While it lasts, what modules of the model are given and give for a task is kept.

    :param network: a :class:`~avalanche_compress.TaskNetwork`.
    :param task: finished or open.
    :param modules: of ``network.backbone``.
    """
    is_open = task == network.open_task
    parts = modules if is_open else [network.views[task].parts[id(module)] for module in modules]
    try:
        with watching(parts) as seen:
            yield seen
    finally:
        for part in parts if is_open else ():
            stop_watching(part)


@contextmanager
def watching(modules: Sequence[nn.Module]) -> Iterator[list[Seen]]:
    """While it lasts, what this thread's calls give to modules and get from them is kept.

    :param modules: other threads may call them meanwhile, and they stay prepared for them.
    :return: pairs of first input and output, in the order of calls, for each module.
    """
    watched: list[Any] = []
    for module in modules:
        forward: Any = module.forward
        if not isinstance(forward, _Watched):
            module.__dict__["forward"] = forward = _Watched(module)
        watched.append(forward)
    for forward in watched:
        forward.local.seen = []
    try:
        yield [forward.local.seen for forward in watched]
    finally:
        for forward in watched:
            forward.local.seen = None


def stop_watching(module: nn.Module) -> None:
    """Let a module be as it was before anybody watched it.

    :param module: any.
    """
    watched = module.__dict__.get("forward")
    if isinstance(watched, _Watched):
        module.__dict__.pop("forward")
        module.__dict__.update(watched.before)


class _Watched:
    """A module's forward that keeps what it is given and gives, for threads that have asked."""

    def __init__(self, module: nn.Module):
        self._forward: Callable[..., Any] = module.forward
        self.before = {key: value for key, value in vars(module).items() if key == "forward"}
        self.local = threading.local()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._forward(*args, **kwargs)
        seen: Seen | None = getattr(self.local, "seen", None)
        if seen is not None:
            seen.append((args[0] if args else next(iter(kwargs.values())), output))
        return output


def _stacked(models: Sequence[nn.Module]) -> dict[str, Tensor]:
    """What the models do not share, a row a model, by name."""
    tensors = {}
    named = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in models]
    for name, first in named[0].items():
        column = [entries[name] for entries in named]
        if len(models) == 1 or any(t.data_ptr() != first.data_ptr() for t in column):
            tensors[name] = torch.stack([tensor.detach() for tensor in column])
    return tensors
