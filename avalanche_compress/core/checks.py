"""What cannot be kept per task is refused in a task's first step, and at its end."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from avalanche_compress.core.answers import Run, alike, answer, differ
from avalanche_compress.core.deferred import DeferredWeight
from avalanche_compress.core.heads import too_wide
from avalanche_compress.core.store import Place, WeightStore
from avalanche_compress.core.structure import Structure, independent_copy
from avalanche_compress.core.substitution import Substitution, forget_derived
from avalanche_compress.errors import (
    CapacityExhaustedError,
    TaskAlreadyLearnedError,
    TaskLabelError,
    TaskStateError,
    UnsupportedModuleError,
)

_MOST_NAMES = 4
Tensors = Sequence["tuple[Place, Tensor]"]


class ReadsPastAttributes(TorchFunctionMode):
    """While it lasts, this notes which of some parameters a function of torch is given.

    Where a model's weights are substituted, a model that reads a parameter did not read it as an
    attribute of its module.

    :param parameters: by name.
    """

    def __init__(self, parameters: dict[str, Tensor]):
        super().__init__()
        self.names: set[str] = set()
        self.without_gradients = False
        """Whether a substituted tensor was read where no gradients are recorded."""
        self._substituted: set[int] = set()
        spans = sorted((*_span(tensor), name) for name, tensor in parameters.items())
        self._spans = [span for span in spans if span[0] < span[1]]
        self._starts = [start for start, *_ in self._spans]

    def separated(self, tensors: Sequence[tuple[Place, Tensor]]) -> list[tuple[Place, Tensor]]:
        """Tensors that are substituted for the parameters, none of them in a parameter's memory.

        :param tensors: by place; gradients reach them.
        """
        made = [
            (place, tensor.clone() if self._name_of(tensor) is not None else tensor)
            for place, tensor in tensors
        ]
        self._substituted = {id(tensor) for _, tensor in made}
        return made

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, (Tensor, tuple, list)):  # else it was asked for a shape or a device
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    self._note(value)
        return result

    def _note(self, tensor: Tensor) -> None:
        if id(tensor) in self._substituted and not torch.is_grad_enabled():
            self.without_gradients = True
        name = self._name_of(tensor)
        if name is not None:
            self.names.add(name)

    def _name_of(self, tensor: Tensor) -> str | None:
        if isinstance(tensor, DeferredWeight):  # it has no memory
            return None
        start, end = _span(tensor)
        index = bisect_right(self._starts, start) - 1
        if index < 0 or start == end or start >= self._spans[index][1]:
            return None
        return self._spans[index][2]


def state_of(tensor: Tensor) -> tuple[int, int | None]:
    """What is another one once a tensor has been written into, whatever it holds then.

    :param tensor: that has memory of its own; one of inference mode has no count of changes.
    """
    changes = None if tensor.is_inference() else tensor._version  # noqa: SLF001 - no public name
    return tensor.data_ptr(), changes


def _span(tensor: Tensor) -> tuple[int, int]:
    """Addresses of a tensor's first byte and of the one behind its last, if it has memory."""
    try:
        start = tensor.data_ptr()
    except RuntimeError:  # of functorch, of a subclass without memory
        return 0, 0
    return start, start + tensor.numel() * tensor.element_size()


class FirstStep:
    """Watches the first training step of a task for what its view would not have.

    :param structure: of the model.
    :param heads: its classifier, or classifiers.
    :param changed_static: names of the shared tensors that have changed.
    :param scratch: the parameters behind which stores stand, by name.
    :param is_first_task: whether the model has not passed for an earlier one, so that its code is
        tried out, too.
    """

    def __init__(
        self,
        structure: Structure,
        heads: Sequence[nn.Module],
        changed_static: Callable[[], list[str]],
        scratch: dict[str, Tensor],
        is_first_task: bool,
    ):
        self._structure = structure
        self._heads = list(heads)
        self._changed_static = changed_static
        self._is_first_task = is_first_task
        self._before: tuple[Tensors, Tensor | None] = [], None
        self.reads = ReadsPastAttributes(scratch)

    def begins(self, weights: Tensors, private: Tensors, run: Run) -> None:
        """Remember how the task answers before the step.

        :param weights: compressed ones that it computes with, by place.
        :param private: all else that the task has for itself, by place.
        :param run: has a model answer the step's mini-batch.
        """
        tensors = [*weights, *((place, tensor.clone()) for place, tensor in private)]
        self._before = tensors, answer(self._structure.copy(tensors)[0], run)

    def check(
        self, task: int, weights: Tensors, private: Tensors, run: Run, others: Sequence[Run]
    ) -> None:
        """Refuse the model if a finished task would not answer as it does now.

        :param task: in training.
        :param weights: compressed ones that it computes with, by place.
        :param private: all else that the task has for itself, by place.
        :param run: has a model answer the step's mini-batch.
        :param others: have a model answer inputs unlike it.
        :raises UnsupportedModuleError: naming all that was found.
        """
        tensors = [*weights, *private]
        found = [
            _reassembled(self._structure.differences(self._heads)) or self._growing(task),
            _moving(self._changed_static()),
            self._moving_by_mode()
            or outside(self._structure, tensors, run)
            or self._drifting(tensors, run, others)
            or self._elsewhere(run),
            self._aliased() or self._read_past(weights, run),
        ]
        if any(found):
            raise UnsupportedModuleError(
                f"task {task} cannot be trained: {'; '.join(part for part in found if part)}."
            )

    def _growing(self, task: int) -> str:
        """Rehearses the next task's adaptation, Avalanche's hook by which modules grow."""
        if not self._is_first_task or not self._structure.has_method("adaptation"):
            return ""
        model = independent_copy(self._structure.copy_of_now([]))[0].train()
        parts: list[Any] = [part for part in model.modules() if hasattr(part, "adaptation")]
        before, label, classes = _outline(model), task + 1, [2, 3]
        following = SimpleNamespace(
            classes_in_this_experience=classes,
            task_labels=[label],
            current_experience=label,
            dataset=SimpleNamespace(targets=classes, targets_task_labels=[label]),
        )
        for part in parts:
            # it may need more than this; then what it does is seen when it does it
            with suppress(Exception):
                part.adaptation(following)
        now = _outline(model)
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if not names:
            return ""
        return (
            f"{_few(names)} would come or grow when the next task starts, in adaptation(), and no "
            "archive would know of it: use a model of fixed size, every task has a head and "
            "weights of its own"
        )

    def _moving_by_mode(self) -> str:
        names = self._structure.moved_by_modes() if self._is_first_task else []
        if not names:
            return ""
        return (
            f"train() and eval() change {_few(names)}, as layers do that merge an adapter into "
            "their weight, so that an evaluation would change the task: switch the merging off"
        )

    def _drifting(self, tensors: Tensors, run: Run, others: Sequence[Run]) -> str:
        if not self._is_first_task:
            return ""
        model, parts = self._structure.copy(tensors)
        name_of = {id(part): name for name, part in model.named_modules()}
        twins = [
            (parts[id(module)], name) for (module, name), _ in tensors if name in module._parameters
        ]
        before = [state_of(getattr(*twin)) for twin in twins]
        first = answer(model, run)
        names = [
            f"{name_of[id(module)]}.{name}"
            for (module, name), state in zip(twins, before)
            if state_of(getattr(module, name)) != state
        ]
        if names:
            return (
                f"its evaluation changes {_few(names)} in place, as an embedding does that has a "
                "max_norm=, and what finished tasks answer would change with it: let the forward "
                "pass compute with a changed copy"
            )
        if first is None:
            return ""
        again = alike(first, run(model))
        for other in others:
            answer(model, other)
        if again and alike(first, run(model)):
            return ""
        after = ", after one of other samples," if again else ""
        return (
            f"a second evaluation of the same samples{after} answers otherwise than the first, so "
            "that no answer could be kept: let evaluation change nothing that answers depend on, "
            "and draw random numbers by torch"
        )

    def _elsewhere(self, run: Run) -> str:
        """Has a copy with the tensors of before the step answer again."""
        tensors, before = self._before
        after = None if before is None else answer(self._structure.copy(tensors)[0], run)
        if before is None or after is None or alike(before, after):
            return ""
        return (
            "its answers depend on something outside of its modules (an attribute of a class, a "
            "global variable, a variable of a closure), which training changes and no archive "
            "holds: make it a buffer (register_buffer) and keep its module out of compression with "
            "exclude="
        )

    def _aliased(self) -> str:
        names = self._structure.views_of_parameters()
        if not names:
            return ""
        return (
            f"{_few(names)} is a view of a parameter, which no task has of its own: keep the "
            "parameter itself, and take the view in the forward pass"
        )

    def _read_past(self, weights: Tensors, run: Run) -> str:
        """Has the model compute with other weights, by substitution and in their true places."""
        if not self._is_first_task and not self.reads.names:
            return ""
        other = [(place, tensor * 1.5 + 0.01) for place, tensor in weights]
        there = self._structure.copy(other)[0]
        model, parts = self._structure.copy([])
        places = [(Place(parts[id(module)], name), tensor) for (module, name), tensor in other]
        with Substitution(places), self.reads:
            forget_derived(model)
            past = differ(there, model, run)
        if not past:
            forget_derived(model)
            return self._stale(model, run)
        names = sorted(self.reads.names)
        which, where = (_few(names), _exclude(names)) if names else ("a weight", "exclude=")
        return (
            f"its forward pass reads {which} past the attribute (by parameters(), by an alias), "
            "where the task's weight is not: read it as an attribute of its module, or keep that "
            f"module out of compression with {where}"
        )

    def _stale(self, model: nn.Module, run: Run) -> str:
        """Has a model that has answered with other weights answer with its own."""
        if not differ(self._structure.copy([])[0], model, run):
            return ""
        return (
            "its evaluation goes on with what it has derived from weights of before and kept: drop "
            "that in train(), which is called when weights change, or do not keep it"
        )


def outside(structure: Structure, tensors: Tensors, run: Run) -> str:
    """What no archive holds of that by which a task answers; nothing if there is none.

    :param structure: of the model as it was.
    :param tensors: of the task, by place.
    :param run: has a model answer a mini-batch.
    """
    names = structure.changed_attributes()
    if not names or not differ(structure.copy(tensors)[0], structure.copy_of_now(tensors), run):
        return ""  # what it remembers is not what it answers by
    return (
        f"its answers depend on {_few(names)}, which changed since the first task started and "
        "which no archive holds: let it stay, or make it a buffer (register_buffer) and "
        f"{for_each_task(names)}"
    )


def for_each_task(names: Iterable[str]) -> str:
    """How each task has its own of some tensors, as the end of a message.

    :param names: of them, dotted.
    """
    if all("." in name for name in names):
        return f"keep its module out of compression with {_exclude(names)}"
    return "put it into a module of its own inside the model, and exclude= that"


def check_structure(task: int, structure: Structure, heads: Sequence[nn.Module]) -> None:
    """Refuse a model whose modules are not those that it was converted with.

    :param task: to be trained or finished.
    :param structure: of the model.
    :param heads: its classifier, or classifiers.
    :raises UnsupportedModuleError: naming what came, went or was replaced.
    """
    found = _reassembled(structure.differences(heads))
    if found:
        raise UnsupportedModuleError(f"task {task} cannot be kept: {found}.")


def _outline(model: nn.Module) -> dict[str, Any]:
    """Modules and the shapes of parameters, by name."""
    shapes = {name: p.shape for name, p in model.named_parameters(remove_duplicate=False)}
    return {**{name: type(module) for name, module in model.named_modules()}, **shapes}


def _reassembled(names: list[str]) -> str:
    if not names:
        return ""
    return (
        f"{_few(names)} came, went or changed since the model was converted, and no finished task "
        "and no archive knows of it: put back what was there, or convert the model as it is now "
        "(modules that grow in adaptation() are none of an archive's)"
    )


def _moving(names: list[str]) -> str:
    if not names:
        return ""
    advice = for_each_task(names)
    return f"its forward pass changes {_few(names)}, which all tasks share: {advice}"


def _few(names: Iterable[object]) -> str:
    found = [repr(name) for name in names]
    more = f" and {len(found) - _MOST_NAMES} more" if len(found) > _MOST_NAMES else ""
    return ", ".join(found[:_MOST_NAMES]) + more


def _exclude(names: Iterable[str]) -> str:
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    return f"exclude=({', '.join(map(repr, modules[:_MOST_NAMES]))},)"


def check_label(task: int, finished: Sequence[int], open_task: int | None) -> None:
    """Refuse a task that cannot be trained now.

    :param task: its label.
    :param finished: labels of the finished tasks.
    :param open_task: the one in training, if there is one.
    :raises TaskAlreadyLearnedError: if the task is finished.
    :raises TaskStateError: if another task is open.
    """
    if task in finished:
        raise TaskAlreadyLearnedError(
            f"task {task} is finished and its weights are frozen; each experience needs a task "
            f"label of its own (finished: {list(finished)}). Build the stream with "
            "return_task_id=True, or one label per experience; for a stream that has none, "
            "give the strategy task_inference='triangular@first'."
        )
    if open_task not in (None, task):
        raise TaskStateError(
            f"task {open_task} is still in training, so task {task} cannot start: call "
            "commit() to keep it or discard() to drop it. (A plain Avalanche strategy needs a "
            "MaskingPlugin or QuantizationPlugin, which commits after each experience.)"
        )


def check_classes(task: int, numbers: Sequence[int], finished: Iterable[Sequence[int]]) -> None:
    """Refuse classes that no row of logits has a place for, and what no archive would hold.

    :param task: its label.
    :param numbers: its class numbers, ascending.
    :param finished: those of the finished tasks.
    :raises TaskLabelError: if there are none, or one is negative or too large, or the label is.
    """
    if not numbers or numbers[0] < 0:
        raise TaskLabelError(
            f"task {task} has the classes {_few(numbers) or None}, and one class number or more "
            "from 0 on were expected: pass those of its targets; values of a regression are none."
        )
    if not -(1 << 63) <= task < 1 << 63:
        raise TaskLabelError(f"the label {task} does not fit 64 bits: give the task another one.")
    reason = too_wide([*finished, numbers])
    if reason:
        raise TaskLabelError(
            f"task {task} has {reason}, since a row of logits takes memory for each number up to "
            "the largest: number the classes of the stream from 0 on."
        )


def check_heads(heads: Mapping[str, nn.Linear]) -> None:
    """Refuse heads that cannot be trained.

    :param heads: the layers that give the logits, by name.
    :raises UnsupportedModuleError: naming a frozen one.
    """
    for name, head in heads.items():
        if not head.weight.requires_grad:
            raise UnsupportedModuleError(
                f"the head {name!r} is frozen, and every task trains one of its own: let it be "
                f"trained (model.get_submodule({name!r}).requires_grad_()), or put a layer behind "
                "it that gives the logits."
            )


def check_capacity(task: int, finished: Sequence[int], stores: Sequence[WeightStore]) -> None:
    """Refuse a task for which no weight is free anywhere.

    :param task: its label.
    :param finished: labels of the finished tasks.
    :param stores: behind all weights.
    :raises CapacityExhaustedError: if stores count their free weights, and there are none.
    """
    free = [store.free_weights for store in stores]
    if any(count is not None for count in free) and not any(count != 0 for count in free):
        raise CapacityExhaustedError(
            f"no free weights are left for task {task} after {len(finished)} tasks: prune "
            "more of each task, or start from a wider model."
        )
