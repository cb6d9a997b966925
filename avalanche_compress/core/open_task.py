"""How the task in training answers, and what is checked in its first step and at its end."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from avalanche_compress.core.answers import check_answers, nudged
from avalanche_compress.core.batches import contiguous, mapped
from avalanche_compress.core.checks import FirstStep, for_each_task, outside
from avalanche_compress.core.deferred import DeferredWeight, full_precision
from avalanche_compress.core.heads import fails_behind
from avalanche_compress.core.private import PrivateStore
from avalanche_compress.core.static import StaticTensors
from avalanche_compress.core.store import Place, Store, WeightStore
from avalanche_compress.core.structure import Structure
from avalanche_compress.core.substitution import (
    Completion,
    Substitution,
    evaluating,
    forget_derived,
)
from avalanche_compress.core.views import Views
from avalanche_compress.errors import UnsupportedModuleError

Call = Callable[[nn.Module, Any], Tensor]
"""Has a model answer inputs."""
Made = TypeVar("Made", bound=Callable[..., Any])


def uncompiled(function: Made) -> Made:
    """``torch.compiler.disable``, which takes ten microseconds, at no cost where nothing compiles.

    :param function: that is no part of a graph.
    """
    disabled = torch.compiler.disable(function)

    @functools.wraps(function)
    def called(*args: Any) -> Any:
        return disabled(*args) if torch.compiler.is_compiling() else function(*args)

    return cast(Made, called)


class OpenTask:
    """The forward pass of the task in training, by tensors that are substituted for the model's.

    :param model: that is trained.
    :param heads: its classifier, or classifiers.
    :param structure: of the model.
    :param views: of its finished tasks.
    :param stores: behind its weights.
    :param private: behind all else that a task has for itself.
    :param static: what all tasks share.
    :param completed: has tensors stand in all places that read them.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: Sequence[nn.Module],
        structure: Structure,
        views: Views,
        stores: Sequence[WeightStore],
        private: PrivateStore,
        static: StaticTensors,
        completed: Completion,
    ):
        self._model = model
        self._heads = list(heads)
        self._structure = structure
        self._views = views
        self._stores = list(stores)
        self._private = private
        self._static = static
        self._completed = completed
        self._store_at = {store.place: store for store in stores}
        self._substituted: Substitution | None = None
        self.restart()

    def __getstate__(self) -> dict[str, Any]:
        self.end_substitution()  # what is computed from parameters cannot be copied
        return {**self.__dict__, "_last_inputs": None}

    def restart(self) -> None:
        """Forget the task that was in training."""
        self.end_substitution()
        self._is_checked = False
        self._recomputes = self._warned = False
        self._last_inputs: Any = None

    def end_substitution(self) -> None:
        """Let the modules read their own parameters again, after a step of training.

        A task's tensors stay in place for the backward pass, which may run parts of the model once
        more (``torch.utils.checkpoint``); the next forward pass replaces them.
        """
        if self._substituted is not None:
            self._substituted.__exit__()
            self._substituted = None

    def run(self, x: Any, task: int, call: Call) -> Tensor:
        """Logits by the model as it is trained.

        :param x: ``(N, ...)``.
        :param task: in training.
        :param call: runs the model.
        """
        is_first = self._model.training and not self._is_checked and torch.is_grad_enabled()
        tensors = self._trained_tensors(is_first or self._recomputes)
        if not torch.is_grad_enabled():
            with self._substituted_for_now(tensors):
                return self._call(x, call)
        if self._model.training:
            self._last_inputs = x
        if is_first:
            logits: Tensor = self._run_first(tensors, x, task, call)
            return logits
        return self._run(tensors, x, call)

    def fails_behind_head(self, x: Any, call: Call) -> bool:
        """Whether a forward pass fails after the head has given its output.

        :param x: ``(N, ...)``.
        :param call: runs the model.
        """
        with torch.no_grad(), Substitution(self._weights()), evaluating(self._model):
            return fails_behind(self._heads[0], lambda: call(self._model, x))

    def warn_of_changes(self, task: int, call: Call) -> None:
        """Say, once, what has changed by which the task answers and of which nothing is kept.

        :param task: in training.
        :param call: runs the model.
        """
        found, names = self._outside(call), self._static.changed(noticeably=True)
        if names:
            found = f"{names[0]!r} has changed, which all tasks share: {for_each_task(names)}"
        if found and not self._warned:
            self._warned = True
            warnings.warn(
                f"task {task} is refused at its end, unless it is as before by then: {found}.",
                stacklevel=2,
            )

    def _outside(self, call: Call) -> str:
        if self._last_inputs is None or not self._structure.changed_attributes():
            return ""
        tensors = [*self._weights(), *self._private_tensors()]
        return outside(self._structure, tensors, partial(self._answer, self._last_inputs, call))

    def encode(self, task: int, call: Call) -> list[bytes]:
        """The sections that the task's stores would keep, which answer as the task does now.

        :param task: in training.
        :param call: runs the model.
        :return: of the private tensors, then of each weight.
        :raises TaskStateError: if they answer the last mini-batch of training otherwise.
        :raises NonFiniteError: if a value is NaN or infinite, or a logit of that mini-batch.
        """
        stores, x = self._all_stores(), self._last_inputs
        for store in stores:
            store.check_commit()
        self.end_substitution()
        expected = None
        if x is not None:
            with Substitution(self._weights()), evaluating(self._model):
                expected = self._answer(x, call, self._model)
        sections = [store.encode() for store in stores]
        if expected is not None:
            check_answers(
                task,
                expected,
                self._answer(x, call, self._view_of(sections)),
                lambda: self._answer(x, call, self._view_of(sections, nudged)),
                lambda: self._outside(call),
            )
        return sections

    def keep(self, task: int, sections: Sequence[bytes]) -> None:
        """Have the task's stores keep it.

        :param task: in training.
        :param sections: of :meth:`encode`.
        """
        for store, section in zip(self._all_stores(), sections):
            store.restore(task, section)

    def take_back(self, finished: int) -> None:
        """Undo what :meth:`keep` had begun; the open task is forgotten.

        :param finished: tasks that were finished before.
        """
        for store in self._all_stores():
            store.keep_first(finished)
        self._views.clear()
        self.restart()

    def _all_stores(self) -> list[Store]:
        return [self._private, *self._stores]

    def _weights(self) -> list[tuple[Place, Tensor]]:
        """The compressed weights of the task, whole and without gradients, by place."""
        with torch.no_grad():
            return self._completed([(s.place, s.weight().detach()) for s in self._stores])

    def _private_tensors(self) -> list[tuple[Place, Tensor]]:
        private = [(place, place.tensor.detach()) for place in self._private.places]
        return self._completed(private)

    def _call(self, x: Any, call: Call) -> Tensor:
        if not self._model.training:
            self._forget_derived()
        return call(self._model, x)

    @uncompiled
    def _forget_derived(self) -> None:
        forget_derived(self._model)

    @uncompiled
    def _trained_tensors(self, recomputed: bool) -> list[tuple[Place, Tensor]]:
        """What the layers compute with: differentiable in what the task may change.

        :param recomputed: whether the backward pass computes weights again, see
            :class:`Recomputed`.
        """
        weights = [
            (store, _substitute(store) if store.scratch.requires_grad else store.weight().detach())
            for store in self._stores
        ]
        if not recomputed:
            tensors = self._completed([(store.place, weight) for store, weight in weights])
        else:
            tensors = [place for pair in weights for place in self._recomputed(*pair)]
        return [
            (place, Densified.apply(tensor) if _is_sparse(place) else tensor)
            for place, tensor in tensors
        ]

    def _recomputed(self, store: WeightStore, weight: Tensor) -> list[tuple[Place, Tensor]]:
        """A weight in all its places, that the backward pass computes again if it is composed."""
        places = self._completed([(store.place, weight)])
        if not weight.requires_grad or isinstance(weight, DeferredWeight):
            return places
        parts = [part for part in (store.scratch, *store.parameters()) if part.requires_grad]
        again = Recomputed.apply(partial(self._weight_of, store), *parts)
        return [(place, again) for place, _ in places]

    def _weight_of(self, store: WeightStore) -> Tensor:
        return self._completed([(store.place, store.weight())])[0][1]

    def _run(self, tensors: list[tuple[Place, Tensor]], x: Any, call: Call) -> Tensor:
        """A forward pass after which the tensors stay, see :meth:`end_substitution`."""
        self._substituted = Substitution(self._watched(tensors))
        self._substituted.__enter__()
        try:
            return self._call(x, call)
        except BaseException:
            self.end_substitution()
            raise

    @uncompiled
    def _watched(self, tensors: list[tuple[Place, Tensor]]) -> list[tuple[Place, Tensor]]:
        """Lets stores see how their weights are read, and users copy the model meanwhile."""
        stores = self._store_at
        seen = {id(t): stores[place].watched(t) for place, t in tensors if place in stores}
        tensors = [(place, seen.get(id(tensor), tensor)) for place, tensor in tensors]
        for place, tensor in tensors:
            if isinstance(tensor, DeferredWeight) or not tensor.is_leaf:
                _copy_as_parameter(tensor, place)
        return tensors

    @contextmanager
    def _substituted_for_now(self, tensors: list[tuple[Place, Tensor]]) -> Iterator[None]:
        try:
            with Substitution(tensors):
                yield
        finally:
            if self._substituted is not None:  # a backward pass may still need it
                self._substituted.__enter__()

    @uncompiled
    def _run_first(
        self, tensors: list[tuple[Place, Tensor]], x: Any, task: int, call: Call
    ) -> Tensor:
        """The first forward pass of a task's training, which is watched."""
        scratch = {store.name: store.scratch for store in self._stores}
        is_first_task = not self._private.sections
        step = FirstStep(self._structure, self._heads, self._static.changed, scratch, is_first_task)
        tensors = step.reads.separated(tensors)
        weights, answer = self._weights(), partial(self._answer, x, call)
        step.begins(weights, self._private_tensors(), answer)
        try:
            with step.reads:
                logits = self._run(tensors, x, call)
        except AttributeError as error:
            if "is not an nn.Parameter" not in str(error):
                raise
            raise UnsupportedModuleError(
                f"the model asks for a parameter by get_parameter() ({error}), where the task's "
                "weight is not: read it as an attribute of its module, or keep that module out of "
                "compression with exclude=."
            ) from error
        try:
            others = [
                partial(self._answer, mapped(x, partial(_unlike, by)), call) for by in (4, -4)
            ]
            step.check(task, weights, self._private_tensors(), answer, others)
        except BaseException:
            self.end_substitution()
            raise
        self._is_checked, self._recomputes = True, step.reads.without_gradients
        return logits

    def _view_of(
        self, sections: Sequence[bytes], change: Callable[[Tensor], Tensor] = Tensor.detach
    ) -> nn.Module:
        """The task as its bytes are read back, its weights changed."""
        private, *weights = sections
        with torch.inference_mode(False), torch.no_grad():
            tensors = [
                (store.place, change(store.weight_in(section)))
                for store, section in zip(self._stores, weights)
            ]
            tensors += zip(self._private.places, self._private.tensors_in(private))
        return self._views.of_tensors(tensors).model

    def _answer(self, x: Any, call: Call, model: nn.Module) -> Tensor:
        """Logits by a model in evaluation mode, with the same random numbers at all times.

        Autocast would compute with what it had cast before a weight changed, and layouts are of
        training only.
        """
        device = next(self._heads[0].parameters()).device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad(), full_precision(device):
            torch.default_generator.manual_seed(0)
            for index in devices:
                with torch.cuda.device(index):
                    torch.cuda.manual_seed(0)
            return call(model, contiguous(x))


def _unlike(by: float, inputs: Tensor) -> Tensor:
    """Inputs of the same sizes and other values, if they are no indices."""
    return inputs * by if inputs.is_floating_point() else inputs


def _copy_as_parameter(tensor: Tensor, place: Place) -> None:
    """Have copies and pickles of a model hold the model's own parameter where a tensor stands.

    What is computed from parameters cannot be copied, and would hide the copy's.

    :param tensor: substituted for the parameter.
    :param place: of the parameter.
    """
    tensor.__dict__.update(
        __deepcopy__=lambda memo: copy.deepcopy(place.tensor, memo),
        __reduce_ex__=lambda protocol: (cast, (None, place.tensor)),
    )


def _is_sparse(place: Place) -> bool:
    """Whether a layer's gradient has entries of the rows alone that a mini-batch has read."""
    # not by getattr: a module takes a microsecond to say that it has no such attribute
    of_class = getattr(type(place.module), "sparse", False)
    return bool(vars(place.module).get("sparse", of_class))


def _substitute(store: WeightStore) -> Tensor:
    return store.weight() if _is_sparse(store.place) else store.substitute()


class Densified(torch.autograd.Function):
    """A weight whose gradient is dense, as all that it is composed of needs it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        """The weight.

        :param ctx: of torch.
        :param weight: of a layer whose gradients are sparse.
        """
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient of the weight.

        :param ctx: of torch.
        :param gradient: of what the layer was given, sparse.
        """
        return gradient.to_dense()


class Recomputed(torch.autograd.Function):
    """A weight that is computed again when its gradient is, so that it may be asked for twice.

    Checkpointing with ``use_reentrant=True`` runs a backward pass of its own for each region, and
    torch frees what a weight's composition had saved at the first of those that read the weight.
    """

    @staticmethod
    def forward(ctx: Any, compose: Callable[[], Tensor], *parts: Tensor) -> Tensor:
        """The weight.

        :param ctx: of torch.
        :param compose: makes it.
        :param parts: what it depends on, all of which require gradients.
        """
        ctx.compose, ctx.parts = compose, parts
        return compose().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of the parts.

        :param ctx: of torch.
        :param gradient: of the weight.
        """
        with torch.enable_grad():
            weight = ctx.compose()
        create = torch.is_grad_enabled()
        with _without_hooks(ctx.parts):  # they are called when the gradients arrive
            return None, *torch.autograd.grad(
                weight, ctx.parts, gradient, create_graph=create, allow_unused=True
            )


@contextmanager
def _without_hooks(parameters: Iterable[Tensor]) -> Iterator[None]:
    """While it lasts, gradients do not call the hooks that are registered on parameters."""
    found = [part._backward_hooks for part in parameters]  # noqa: SLF001 - no public name
    hooks = [registered for registered in found if registered]
    known = [dict(registered) for registered in hooks]
    for registered in hooks:
        registered.clear()
    try:
        yield
    finally:
        for registered, before in zip(hooks, known):
            registered.update(before)
