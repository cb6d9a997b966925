"""What a network is besides its modules' tensors: how it is saved, loaded, copied and moved."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from avalanche_compress.codec import CorruptStreamError, all_finite
from avalanche_compress.core.batches import contiguous
from avalanche_compress.core.heads import resize_head
from avalanche_compress.core.store import Place, non_finite
from avalanche_compress.core.structure import Structure, constants_of
from avalanche_compress.errors import TaskStateError

if TYPE_CHECKING:
    from avalanche_compress.core.open_task import OpenTask
    from avalanche_compress.core.private import PrivateStore
    from avalanche_compress.core.static import StaticTensors
    from avalanche_compress.core.store import WeightStore
    from avalanche_compress.core.views import Views

_MOST_NAMES = 4
Self = TypeVar("Self", bound="NetworkState")


class NetworkState(nn.Module):
    """The part of a network that knows how to save, load, copy and move it."""

    backbone: nn.Module
    private: PrivateStore
    views: Views
    classes: dict[int, tuple[int, ...]]
    statistics: dict[int, dict[str, Tensor]]
    open_task: int | None
    max_class_label: int
    known_train_tasks_labels: set[int]
    stores: nn.ModuleDict
    _moving: list[Place]
    _static: StaticTensors
    _structure: Structure
    _open: OpenTask
    _head_places: list[Place]
    head_names: list[str]
    set_heads: Callable[[list[str]], None]
    _run: Callable[..., Tensor]
    _heads_seen: bool
    _open_classes: tuple[int, ...]

    @property
    def tasks(self) -> list[int]:
        """Labels of the finished tasks, in order of learning."""
        return list(self.classes)

    @property
    def weight_stores(self) -> list[WeightStore]:
        """The stores behind the weights, in the order of the model's parameters."""
        return list(self.stores.values())  # type: ignore[arg-type]

    @property
    def head(self) -> nn.Linear:
        """The model's classifier; it holds the parameters of the task in training."""
        return self._head_places[0].module  # type: ignore[return-value]

    @property
    def heads(self) -> list[nn.Linear]:
        """All layers that give the logits, :attr:`head` being the first: linear or convolutions."""
        return [place.module for place in self._head_places]  # type: ignore[misc]

    @property
    def head_name(self) -> str:
        """Dotted name of :attr:`head`."""
        return self.head_names[0]

    def moving_tensors(self) -> list[Tensor]:
        """What a forward pass in training moves: running statistics and other buffers of a task."""
        return [place.tensor for place in self._moving]

    def first_nonfinite(self) -> str | None:
        """The name of a tensor of the open task that holds NaN or infinite values, if any."""
        private = zip(self.private.names, (place.tensor for place in self.private.places))
        stored = (
            (f"{store.name}.{name}", parameter)
            for store in self.weight_stores
            for name, parameter in store.named_parameters()
        )
        for name, tensor in (*self.backbone.named_parameters(), *stored, *private):
            if not all_finite(tensor):
                return name
        return None

    def check_finite(self) -> None:
        """Refuse to shape or keep what is NaN or infinite.

        :raises NonFiniteError: naming a tensor of the open task.
        """
        name = self.first_nonfinite()
        if name is not None:
            raise non_finite(name)

    def verify(self) -> None:
        """Read every finished task with all checks, which is for untrusted archives.

        A loaded network reads a task when it is first used, and refuses a damaged one then.

        :raises CorruptStreamError: if a task is not as a network writes it.
        """
        for store in [self.private, *self.weight_stores]:
            store.verify()

    def static_tensors(self) -> dict[str, Tensor]:
        """What all tasks share and no training changes: frozen parameters and constant buffers."""
        return self._static.tensors()

    def constants(self) -> dict[str, int]:
        """Fingerprints of the tensors that a model has besides its parameters and buffers."""
        return self._structure.constants()

    def compare_constants(self, source: str, trained: Mapping[str, int]) -> None:
        """Warn of tensors that no file holds, and that the model has of other values now.

        :param source: that was read.
        :param trained: fingerprints that stand in it.
        """
        built = self.constants()
        names = [name for name, mark in trained.items() if built.get(name, mark) != mark]
        if names:
            found = ", ".join(map(repr, names[:_MOST_NAMES]))
            warnings.warn(
                f"the model has other values in {found} than the one that was trained, which are "
                f"not in {source}: if answers depend on that, they differ. Draw it from a seed "
                "of its own in the constructor, make it a buffer (register_buffer), or register "
                "the layer (nn.ModuleList) before training.",
                stacklevel=3,
            )

    def check_frozen(self) -> None:
        """Refuse to train what was frozen when the model was converted, which all tasks share.

        :raises TaskStateError: naming a parameter that requires gradients now.
        """
        self._static.check_frozen()

    def check_between_epochs(self) -> None:
        """Warn of what plugins have changed and no task keeps; else as :meth:`check_frozen`.

        :raises TaskStateError: naming a parameter that requires gradients now.
        """
        self.check_frozen()
        task = self.open_task
        if task is not None:
            self._open.warn_of_changes(task, partial(self._run, task))

    def remember_static(self) -> None:
        """Take the static tensors as they are for what must not change from here on."""
        self._static.remember()
        self._structure.retake()

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "classes": {str(task): list(classes) for task, classes in self.classes.items()},
            "statistics": {str(task): kept for task, kept in self.statistics.items()},
            "open_task": self.open_task,
            "open_classes": list(self._open_classes),
            "heads": list(self.head_names),
            "head_rows": self.head.weight.shape[0],
            "max_class_label": self.max_class_label,
            "static_marks": dict(self._static.marks),
            "constants": self.constants(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        # called before the children's tensors are loaded, so the head gets its size in time
        for head in self.heads:
            resize_head(head, state["head_rows"])
        self.classes = {int(task): tuple(numbers) for task, numbers in state["classes"].items()}
        self.statistics = {int(task): kept for task, kept in state["statistics"].items()}
        self.open_task = state["open_task"]
        self._open_classes = tuple(state["open_classes"])
        self.max_class_label = state["max_class_label"]
        self.known_train_tasks_labels = set(self.classes)
        self._static.marks = dict(state["static_marks"])
        self.views.clear()

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Take a state over; everything is read before anything is changed.

        :param state_dict: of a network of the same model and stores.
        :param args: further arguments of ``nn.Module.load_state_dict``, as ``kwargs``.
        :raises CorruptStreamError: if a task of a store is damaged, or a store lacks one.
        """
        extra = state_dict.get("_extra_state", {})
        heads = extra.get("heads", self.head_names)
        trial = copy.deepcopy(self)
        for network in (trial, self):
            if set(heads) != set(self.head_names):
                network.set_heads(heads)
        try:
            super(NetworkState, trial).load_state_dict(state_dict, *args, **kwargs)
            for store in [trial.private, *trial.weight_stores]:
                if list(store.sections) != trial.tasks:
                    raise CorruptStreamError(
                        f"{store.name} has the tasks {list(store.sections)} of {trial.tasks}"
                    )
        except CorruptStreamError as error:
            raise CorruptStreamError(
                f"the state is damaged, and the network is as it was: {error}"
            ) from error
        self.end_substitution()
        self.compare_constants("the state", extra.get("constants", {}))
        result = super().load_state_dict(state_dict, *args, **kwargs)
        self._structure.retake()  # the buffers that all tasks share are the state's
        return result

    def finish_loading(self, classes: dict[int, tuple[int, ...]]) -> None:
        """Declare the tasks that the stores were restored with.

        :param classes: class numbers by task label, in order of learning.
        """
        self.classes = dict(classes)
        self.known_train_tasks_labels = set(classes)
        largest = (max(numbers) for numbers in classes.values() if numbers)
        self.max_class_label = 1 + max(largest, default=-1)
        self.views.clear()

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        moved = fn(torch.empty(0, dtype=self.head.weight.dtype, device="cpu"))
        if self.classes and moved.is_meta:
            raise TaskStateError(
                f"on the device 'meta' tensors have no values, and the tasks {self.tasks} would be "
                "lost: move a copy, copy.deepcopy(network.backbone).to('meta')."
            )
        if self.classes and moved.dtype != self.head.weight.dtype:
            raise TaskStateError(
                f"the tasks {self.tasks} were learned in {self.head.weight.dtype} and would "
                "compute other logits in another type: convert materialise(task), or the network "
                "before its first task."
            )
        self.views.clear()
        self.end_substitution()

        def move(tensor: Tensor) -> Tensor:
            moved: Tensor = contiguous(fn(tensor))
            return moved

        result: Self = super()._apply(move, *args, **kwargs)  # type: ignore[no-untyped-call]
        if self.classes:
            self._structure.move(move)
        else:
            self.remember_static()
        return result

    def to_empty(self: Self, *, device: Any, recurse: bool = True) -> Self:
        """As of any module, before the first task; later it would lose what the tasks have learned.

        :param device: where to.
        :param recurse: whether submodules are moved, too.
        :raises TaskStateError: if a task is finished.
        """
        if self.classes:
            raise TaskStateError(
                f"to_empty() gives tensors without values, and the tasks {self.tasks} would be "
                "lost: move the network with to(), or call to_empty() on a copy of its backbone."
            )
        return super().to_empty(device=device, recurse=recurse)

    def end_substitution(self) -> None:
        """See :meth:`OpenTask.end_substitution`."""
        self._open.end_substitution()

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        for tensor in constants_of(self.backbone.modules()):
            if not tensor.is_leaf:  # such as the weight that torch's old weight_norm has computed
                memo[id(tensor)] = tensor.detach().clone()
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return made

    def __getstate__(self) -> dict[str, Any]:
        self.end_substitution()  # before the modules are copied: what is computed cannot be
        return dict(self.__dict__)


def counters(model: nn.Module) -> list[Place]:
    """Where norms count their batches.

    :param model: any.
    """
    return [
        Place(module, "num_batches_tracked")
        for module in model.modules()
        if module._buffers.get("num_batches_tracked") is not None
    ]


def restart_statistics(norm: _NormBase) -> None:
    """Reset the count of batches; statistics go on, unless they are not finite.

    :param norm: of a model whose next task starts.
    """
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.zero_()
    statistics = [t for t in (norm.running_mean, norm.running_var) if t is not None]
    if not all(map(all_finite, statistics)):
        norm.reset_running_stats()


@torch.no_grad()
def reset_nonfinite(module: nn.Module, name: str) -> None:
    """Reset entries of a module's parameters that a diverged training made NaN or infinite.

    They start as the module does when it is built, or at 0 if it does not say how.

    :param module: whose direct parameters are looked at.
    :param name: its dotted name, for the warning.
    """
    names = [
        name
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.requires_grad and not all_finite(parameter)
    ]
    if not names:
        return
    fresh = copy.deepcopy(module)
    reset = getattr(fresh, "reset_parameters", None) or getattr(fresh, "_reset_parameters", None)
    if callable(reset):
        reset()
    for entry in names:
        parameter, start = module._parameters[entry], fresh._parameters[entry]
        assert parameter is not None
        assert start is not None
        parameter.copy_(torch.where(parameter.isfinite(), parameter, start).nan_to_num_(0, 0, 0))
        warnings.warn(
            f"{f'{name}.{entry}'.lstrip('.')} held NaN or infinite values, from a training that "
            "diverged; those entries start anew.",
            stacklevel=3,
        )
