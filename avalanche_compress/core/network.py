"""One set of layers for all tasks: which weights they compute with depends on the task."""

from __future__ import annotations

import copy
import warnings
import zlib
from typing import Any, Callable, Collection, Iterable, List, Mapping, Sequence, Tuple

import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn

from avalanche_compress.codec import CorruptStreamError
from avalanche_compress.core.conversion import (
    find_head,
    padding_rows,
    replace_avalanche_heads,
    restore_avalanche_heads,
    sort_tensors,
)
from avalanche_compress.core.experiences import classes_in, single_task_label
from avalanche_compress.core.private import PrivateStore
from avalanche_compress.core.registry import store_of_kind
from avalanche_compress.core.store import Place, WeightStore, non_finite
from avalanche_compress.core.substitution import Lending, evaluating
from avalanche_compress.core.thin_layers import thin_layers, work_of
from avalanche_compress.errors import (
    CapacityExhaustedError,
    TaskAlreadyLearnedError,
    TaskLabelError,
    TaskStateError,
    TrainingDataError,
    UnsupportedModuleError,
)

MASKED_LOGIT = -1000.0
"""Logit of a class that is not the task's, as in Avalanche's classifiers."""

FORMS = ("dense", "factored", "auto")
"""How the layers of a materialised task compute."""

StoreFactory = Callable[[Place, str], WeightStore]
Loans = List[Tuple[Place, Tensor]]


class TaskNetwork(MultiTaskModule):
    """Any model, made to learn task after task without forgetting.

    The model's modules stay as they are. Behind every weight matrix and kernel stands a
    :class:`~avalanche_compress.core.store.WeightStore`; all else that a task trains (biases, norms
    with their running statistics, the classifier head, bare parameters) every task has for
    itself. For a forward pass the modules are *lent* the tensors of the task at hand: they shadow
    the modules' own Parameters, which remain the scratch of the task in training.

    Inputs ``(N, ...)`` as the model takes them, task labels ``(N,)`` or an int; outputs ``(N, C)``
    where column c is class c of the stream, as the experience numbers it. Classes that are not the
    task's have logit -1000, as in Avalanche. Evaluating a task that was never trained creates
    nothing: the newest finished task answers.

    :param model: an ``nn.Module`` that maps inputs to logits; converted in place. Avalanche's
        ``MultiHeadClassifier`` and ``IncrementalClassifier`` are replaced by heads of the tasks'
        own.
    :param store: what to put behind each weight, ``store(place, name)``; by default a
        :class:`~avalanche_compress.MaskedStore`.
    :param head: dotted name of the classifier, an ``nn.Linear``; by default the last one. Every
        task has a head with as many outputs as it has classes.
    :param exclude: names of modules to keep out of compression; every task has its own float copy.
    :param include: names of further parameters to compress.
    :param compressed: names of exactly the parameters to compress, as an archive knows them.
    :raises UnsupportedModuleError: if a module cannot be kept per task, before anything is changed.

    >>> network = TaskNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    >>> network.open(0, classes=[0, 1, 2])
    >>> network.commit()
    >>> network(torch.zeros(5, 4), 0).shape
    torch.Size([5, 3])
    """

    max_class_label: int

    def __init__(
        self,
        model: nn.Module,
        store: StoreFactory | None = None,
        *,
        head: str | None = None,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        compressed: Collection[str] | None = None,
    ):
        super().__init__()
        store = store_of_kind("masked") if store is None else store
        if any(isinstance(module, TaskNetwork) for module in model.modules()):
            raise UnsupportedModuleError(
                "the model is, or holds, a TaskNetwork already: pass it as is."
            )
        if isinstance(model, (MultiHeadClassifier, IncrementalClassifier)):
            model = nn.Sequential(model)
        replaced = replace_avalanche_heads(model)
        try:
            self.head_name, head_layer = find_head(model, head)
            tensors = sort_tensors(model, self.head_name, include, exclude, compressed)
        except UnsupportedModuleError:
            for parent, name, classifier in replaced:
                parent._modules[name] = classifier
            raise
        self.options = {"head": self.head_name, "exclude": list(exclude), "include": list(include)}
        self.backbone = model
        self._takes_task = isinstance(model, MultiTaskModule)
        self._head_place = Place(head_layer, "weight")  # in a tuple: not a second registration
        self.stores = nn.ModuleDict(
            {name.replace(".", "/"): store(place, name) for name, place in tensors.shared.items()}
        )
        self.private = PrivateStore(list(tensors.private.values()), list(tensors.private))
        self._moving = [
            *(place for place in self.private.places if place.name in place.module._buffers),
            *_counters(model),
        ]
        self._static = tensors.static
        self._aliases = tensors.aliases
        self._padding = padding_rows(tensors)
        self.remember_static()
        self.classes: dict[int, tuple[int, ...]] = {}
        self.statistics: dict[int, dict[str, Tensor]] = {}
        self.task_of: Callable[[Any], int] = single_task_label
        self.open_task: int | None = None
        self._open_classes: tuple[int, ...] = ()
        self._planned_reuse: Sequence[int] | None = None
        self._active: dict[int, Lending] = {}
        self._stack: tuple[tuple[int, ...], dict[str, Tensor]] | None = None

    # ------------------------------------------------------------------ life of a task

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
        return self._head_place.module  # type: ignore[return-value]

    def plan_reuse(self, tasks: Sequence[int] | None) -> None:
        """Say whose weights the next task may read; holds for one :meth:`open`.

        :param tasks: finished tasks, or None for all of them.
        """
        self._planned_reuse = tasks

    def check_open(self, task: int, reusable: Sequence[int] | None = None) -> None:
        """Refuse a task that cannot be trained, before anything has changed.

        :param task: its label.
        :param reusable: finished tasks whose weights it may read, None for all.
        :raises TaskAlreadyLearnedError: if the task is finished.
        :raises TaskStateError: if another task is open.
        :raises CapacityExhaustedError: if no weights are left for it.
        :raises CorruptStreamError: if a finished task is damaged (see :meth:`verify`).
        """
        self._check_label(task)
        self.private.read_on()
        for store in self.weight_stores:
            store.read_on()
            store.check_open(self.tasks if reusable is None else reusable)
        free = [store.free_weights for store in self.weight_stores]
        if any(count is not None for count in free) and not any(count != 0 for count in free):
            raise CapacityExhaustedError(
                f"no free weights are left for task {task} after {len(self.tasks)} tasks: prune "
                "more of each task, or start from a wider model."
            )

    def check_experience(self, experience: Any) -> None:
        """Refuse an experience that cannot be trained on, before anything has changed.

        :param experience: with samples of one task.
        :raises TrainingDataError: if it has no samples.
        :raises TaskLabelError: if it has no task label or several.
        :raises TaskAlreadyLearnedError: if its task is finished.
        :raises TaskStateError: if another task is open.
        """
        if not len(experience.dataset):
            raise TrainingDataError(
                "the experience has no samples, and a task is learned from one at least: leave it "
                "out of the stream."
            )
        self._check_label(self.task_of(experience))

    def check_frozen(self) -> None:
        """Refuse to train what was frozen when the model was converted, which all tasks share.

        :raises TaskStateError: naming a parameter that requires gradients now.
        """
        for name, place in self._static.items():
            if place.tensor.requires_grad:
                raise TaskStateError(
                    f"{name} was frozen when the model was converted, so that all tasks share it, "
                    "and now requires gradients: freeze it again, or build the model anew, give it "
                    "to the strategy while it may be trained, and freeze it afterwards."
                )

    def _check_label(self, task: int) -> None:
        if task in self.classes:
            raise TaskAlreadyLearnedError(
                f"task {task} is finished and its weights are frozen; each experience needs a task "
                f"label of its own (finished: {self.tasks}). Build the stream with "
                "return_task_id=True, or one label per experience; for a stream that has none, "
                "give the strategy task_inference='entropy'."
            )
        if self.open_task not in (None, task):
            raise TaskStateError(
                f"task {self.open_task} is still in training, so task {task} cannot start: call "
                "commit() to keep it or discard() to drop it. (A plain Avalanche strategy needs a "
                "MaskingPlugin or QuantizationPlugin, which commits after each experience.)"
            )

    def open(self, task: int, classes: Iterable[int]) -> None:
        """Start training a task; a task that was open under the same label starts anew.

        :param task: its label, any int that is not finished.
        :param classes: the class numbers of its targets.
        :raises TaskAlreadyLearnedError: if the task is finished.
        :raises TaskStateError: if another task is open.
        :raises CapacityExhaustedError: if no weights are left for it.
        :raises TaskLabelError: if there are no classes, or one of them is negative.
        """
        reusable, self._planned_reuse = self._planned_reuse, None
        numbers = tuple(sorted({int(c) for c in classes}))
        if not numbers or numbers[0] < 0:
            raise TaskLabelError(
                f"task {task} has the classes {list(numbers)}, and one class number or more from "
                "0 on were expected: pass those of its targets."
            )
        self.check_open(task, reusable)
        self.check_frozen()
        for name, module in self.backbone.named_modules():
            _replace_spoiled(module, name)
        for store in self.weight_stores:
            store.open(self.tasks if reusable is None else reusable)
        self.open_task = task
        self._open_classes = numbers
        self._fresh_head(len(self._open_classes))
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                _start_counting(module)

    def commit(self) -> None:
        """Freeze the open task: from now on its logits never change.

        :raises TaskStateError: if no task is open.
        :raises NonFiniteError: if a weight is NaN or infinite; then nothing has changed.
        """
        task = self._require_open()
        self._check_static()
        stores = [self.private, *self.weight_stores]
        for store in stores:
            store.check_commit()
        sections = [store.encode() for store in stores]
        for store, section in zip(stores, sections):
            store.restore(task, section)
        self.classes[task] = self._open_classes
        self.known_train_tasks_labels.add(task)
        self.open_task = None
        self._deactivate()

    def discard(self) -> None:
        """Drop the open task, if there is one; finished tasks are untouched."""
        self.open_task = None

    def classes_of(self, task: int) -> tuple[int, ...]:
        """The class numbers of a finished or open task.

        :param task: its label.
        """
        return self._open_classes if task == self.open_task else self.classes[task]

    # ------------------------------------------------------------------ Avalanche's interface

    def adaptation(self, experience: Any) -> None:
        """Avalanche's hook before each experience: in training it opens the task.

        Which task that is says :attr:`task_of`, a function of the experience: its one task label,
        unless a strategy that infers tasks counts experiences instead.

        :param experience: with one task label.
        :raises TaskLabelError: in training, if it has no task label or several.
        """
        classes = classes_in(experience)
        if self.training:
            self.open(self.task_of(experience), classes)
        self.max_class_label = max(self.max_class_label, max(classes, default=-1) + 1)

    def forward(self, x: Tensor, task_labels: Any = None) -> Any:
        """Logits of each sample by the sub-network of its task.

        :param x: ``(N, ...)``.
        :param task_labels: int, or tensor (N,); None gives a dictionary with every finished
            task's logits.
        :return: ``(N, C)``.
        """
        if isinstance(task_labels, int):
            return self.forward_single_task(x, task_labels)
        if task_labels is None:
            return self.forward_all_tasks(x)
        task_labels = torch.as_tensor(task_labels)
        if task_labels.numel():
            first = int(task_labels.flatten()[0])
            if bool((task_labels == first).all()):  # three times faster than torch.unique
                return self.forward_single_task(x, first)
        return self._forward_mixed(x, task_labels, torch.unique(task_labels).tolist())

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Logits by the sub-network of one task.

        :param x: ``(N, ...)``.
        :param task_label: an int.
        :return: ``(N, C)``.
        """
        # asked here, too: of evaluation's few microseconds beside the model a call is one in ten
        task = task_label if task_label in self.classes else self._answering(task_label)
        if task is None:
            logits = self._run(x, task_label)
            return spread_logits(logits, range(logits.shape[-1]), self.max_class_label)
        logits, classes = self.own_logits(x, task), self.classes_of(task)
        if task_label != task:
            # an unseen task's classes may lie beyond those of the task that answers
            return spread_logits(logits, classes, self.max_class_label)
        return logits if classes[-1] + 1 == len(classes) else spread_logits(logits, classes)

    def own_logits(self, x: Tensor, task: int) -> Tensor:
        """Logits of one task's classes alone.

        :param x: ``(N, ...)``.
        :param task: finished or open.
        :return: ``(N, C_t)``, in ascending order of class number (:meth:`classes_of`).
        """
        logits = self._run_open(x, task) if task == self.open_task else self._run_finished(x, task)
        if logits.shape[-1] != len(self.classes_of(task)):
            raise self._not_the_head(logits, task)
        return logits

    def _forward_mixed(self, x: Tensor, task_labels: Tensor, labels: Sequence[int]) -> Tensor:
        parts = [
            (task_labels == t, self.forward_single_task(x[task_labels == t], t)) for t in labels
        ]
        width = max([self.max_class_label, *(logits.shape[-1] for _, logits in parts)])
        inner = parts[0][1].shape[1:-1] if parts else ()
        out = (parts[0][1] if parts else x).new_full((x.shape[0], *inner, width), MASKED_LOGIT)
        for chosen, logits in parts:
            out[chosen, ..., : logits.shape[-1]] = logits
        return out

    def _check_head_is_last(self, run: Callable[[], Tensor], task: int, error: Exception) -> None:
        """Tell a model that fails behind the head, which has an output for each class of a task.

        :param run: a forward pass of the task.
        :param error: what it raised.
        :raises UnsupportedModuleError: if the head had given its output by then.
        """
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return
        reached: list[bool] = []
        hook = self.head.register_forward_hook(lambda *_: reached.append(True))
        try:
            with evaluating(self.backbone), torch.no_grad():
                run()
        except RuntimeError:
            if reached:
                raise UnsupportedModuleError(
                    f"the model fails behind its layer {self.head_name!r}, which has as many "
                    f"outputs as task {task} has classes ({error}): if that is not the layer that "
                    "gives the logits, build the model anew and name that one with head=."
                ) from error
        finally:
            hook.remove()

    def _not_the_head(self, logits: Tensor, task: int) -> UnsupportedModuleError:
        return UnsupportedModuleError(
            f"the model gives an output of shape {tuple(logits.shape)} and task {task} has "
            f"{len(self.classes_of(task))} classes, so {self.head_name!r} is not the layer that "
            "gives the logits: name that one with head=."
        )

    # ------------------------------------------------------------------ lending

    def activate(self, *tasks: int) -> None:
        """Build the weights of finished tasks once; they are kept until another one is activated.

        :param tasks: their labels; all of them are in memory at a time.
        :raises CorruptStreamError: if one is damaged, in a network that was loaded.
        """
        if all(task in self._active for task in tasks):
            return
        kept = {task: self._active[task] for task in tasks if task in self._active}
        self._deactivate()  # what is not asked for makes room first
        for task in tasks:
            if task not in kept:
                kept[task] = Lending(self._build(task))
        self._active = kept

    def loans_of(self, task: int) -> Loans:
        """The places of the model that a finished task fills, and its tensors for them.

        :param task: its label.
        """
        return self._activated(task).loans

    def _activated(self, task: int) -> Lending:
        self.activate(task)
        return self._active[task]

    def stack(self, tasks: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of several finished tasks by their names in the model, one task a row.

        :param tasks: whose heads are of equal size.
        :return: ``(T, ...)`` each, as ``torch.func.vmap`` over ``functional_call`` takes them.
        """
        self.activate(*tasks)
        if self._stack is None or self._stack[0] != tuple(tasks):
            names = {
                (id(module), own): f"{prefix}.{own}".lstrip(".")
                for prefix, module in self.backbone.named_modules()
                for own in (*module._parameters, *module._buffers)
            }
            columns = zip(*(self._active[task].loans for task in tasks))
            tensors = {
                names[id(column[0][0].module), column[0][0].name]: torch.stack(
                    [tensor for _, tensor in column]
                )
                for column in columns
            }
            self._stack = (tuple(tasks), tensors)
        return self._stack[1]

    def _deactivate(self) -> None:
        self._active = {}
        self._stack = None

    def _build(self, task: int) -> Loans:
        with torch.inference_mode(False), torch.no_grad():  # what is kept serves training too
            try:
                loans = [(store.place, store.committed(task)) for store in self.weight_stores]
                loans += zip(self.private.places, self.private.committed(task))
                loans = self._completed(loans)
            except CorruptStreamError as error:
                raise CorruptStreamError(f"task {task} cannot be used: {error}") from error
        return loans

    def _completed(self, loans: Loans) -> Loans:
        """With tied parameters in all their places, and rows of padding at zero."""
        if self._padding:
            loans = [
                (place, tensor.index_fill(0, self._padding[place].to(tensor.device), 0))
                if place in self._padding
                else (place, tensor)
                for place, tensor in loans
            ]
        if self._aliases:
            tensors = dict(loans)
            loans += [(other, tensors[p]) for p, other in self._aliases if p in tensors]
        return loans

    def _run_open(self, x: Tensor, task: int) -> Tensor:
        loans = [
            (store.place, store.loan() if store.scratch.requires_grad else store.weight().detach())
            for store in self.weight_stores
        ]
        lending = Lending(self._completed(loans))
        try:
            return self._lend(lending, x, task)
        except RuntimeError as error:
            self._check_head_is_last(lambda: self._lend(lending, x, task), task, error)
            raise

    def _run_finished(self, x: Tensor, task: int) -> Tensor:
        lending = self._active.get(task) or self._activated(task)
        backbone: Any = self._modules["backbone"]  # a third of the time of self.backbone
        if not backbone.training:
            with lending:  # what _lend does, for a call less
                return self._run(x, task)
        # a replayed sample of a finished task: its running statistics must not move
        with evaluating(backbone):
            return self._lend(lending, x, task)

    def _lend(self, lending: Lending, x: Tensor, task: int) -> Tensor:
        """Run the model while its modules read the lent tensors instead of their own."""
        with lending:
            return self._run(x, task)

    def _run(self, x: Tensor, task: int) -> Tensor:
        backbone: Any = self._modules["backbone"]
        logits: Tensor = backbone(x, task) if self._takes_task else backbone(x)
        return logits

    def _answering(self, task_label: int) -> int | None:
        """The task whose sub-network answers; None before any task was opened."""
        if task_label == self.open_task or task_label in self.classes:
            return task_label
        if self.classes:
            return next(reversed(self.classes))
        return self.open_task

    def moving_tensors(self) -> list[Tensor]:
        """What a forward pass in training moves: running statistics and other buffers of a task."""
        return [place.tensor for place in self._moving]

    def spoiled(self) -> str | None:
        """The name of a tensor of the open task that holds NaN or infinite values, if any."""
        private = zip(self.private.names, (place.tensor for place in self.private.places))
        named = ((name.partition(".")[2], own) for name, own in self.named_parameters())
        for name, tensor in (*named, *private):
            if not bool(torch.isfinite(tensor).all()):
                return name.replace("/", ".")
        return None

    def check_finite(self) -> None:
        """Refuse to shape or keep what is NaN or infinite.

        :raises NonFiniteError: naming a tensor of the open task.
        """
        name = self.spoiled()
        if name is not None:
            raise non_finite(name)

    def verify(self) -> None:
        """Read every finished task with all checks, which is for archives of strangers.

        A loaded network reads a task when it is first used, and refuses a damaged one then.

        :raises CorruptStreamError: if a task is not as a network writes it.
        """
        for store in [self.private, *self.weight_stores]:
            store.verify()

    # ------------------------------------------------------------------ looking inside

    def weight_of(self, name: str, task: int) -> Tensor:
        """The dense weight that a finished task computes with.

        :param name: dotted name of the weight in the model.
        :param task: its label.
        """
        store: WeightStore = self.stores[name.replace(".", "/")]  # type: ignore[assignment]
        ((_, weight),) = self._completed([(store.place, store.committed(task))])[:1]
        return weight

    def materialise(self, task: int, form: str = "dense") -> nn.Module:
        """A finished task as a model of the original classes, which runs without this package.

        :param task: its label.
        :param form: ``"dense"`` for the layers as they are; ``"factored"`` to make two thin layers
            of each whose weight is kept as few terms (logits are then equal up to rounding);
            ``"auto"`` to do so where that is fewer multiplications.
        :return: a copy of the model in evaluation mode, which requires no gradients; its head has
            one output per class of the task, in ascending order of class number
            (:meth:`classes_of`).
        :raises TaskStateError: if the task is not finished, or there is no such form.
        """
        if form not in FORMS:
            raise TaskStateError(f"form={form!r} must be one of {FORMS}.")
        loans = self.loans_of(task)
        memo: dict[int, Any] = {}
        plain = copy.deepcopy(self.backbone, memo)
        copies: dict[int, Tensor] = {}
        for place, tensor in loans:
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
        memo[id(self.head)].out_features = len(self.classes[task])
        if form != "dense":
            self._thin_out(plain, memo, task, always=form == "factored")
        restore_avalanche_heads(plain, task)
        return plain.eval()

    def _thin_out(self, plain: nn.Module, memo: dict[int, Any], task: int, always: bool) -> None:
        """Put two thin layers where a copied layer's weight has few terms."""
        thin: dict[int, nn.Module] = {}
        for store in self.weight_stores:
            layer, weight = memo[id(store.place.module)], store.low_rank(task)
            if weight is None or not weight.factors.rank:
                continue
            pair = thin_layers(layer, weight)
            if pair is not None:
                dense, factored = work_of(layer, weight)
                if always or factored < dense:
                    thin[id(layer)] = pair
        for parent in list(plain.modules()):
            for name, child in list(parent._modules.items()):
                if id(child) in thin:
                    parent._modules[name] = thin[id(child)]

    def static_tensors(self) -> dict[str, Tensor]:
        """What all tasks share and no training changes: frozen parameters and constant buffers."""
        return {name: place.tensor for name, place in self._static.items()}

    def remember_static(self) -> None:
        """Take the static tensors as they are for what must not change from here on."""
        self._static_marks = {name: _mark(tensor) for name, tensor in self.static_tensors().items()}

    # ------------------------------------------------------------------ state

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "classes": {str(task): list(own) for task, own in self.classes.items()},
            "statistics": {str(task): own for task, own in self.statistics.items()},
            "open_task": self.open_task,
            "open_classes": list(self._open_classes),
            "head_rows": self.head.weight.shape[0],
            "max_class_label": self.max_class_label,
            "static_marks": dict(self._static_marks),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        # called before the children's tensors are loaded, so the head gets its size in time
        self._resize_head(state["head_rows"])
        self.classes = {int(task): tuple(own) for task, own in state["classes"].items()}
        self.statistics = {int(task): own for task, own in state["statistics"].items()}
        self.open_task = state["open_task"]
        self._open_classes = tuple(state["open_classes"])
        self.max_class_label = state["max_class_label"]
        self.known_train_tasks_labels = set(self.classes)
        self._static_marks = dict(state["static_marks"])
        self._deactivate()

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Take a state over; everything is read before anything is changed.

        :param state_dict: of a network of the same model and stores.
        :param args: further arguments of ``nn.Module.load_state_dict``, as ``kwargs``.
        :raises CorruptStreamError: if a task of a store is damaged, or a store lacks one.
        """
        trial = copy.deepcopy(self)
        try:
            super(TaskNetwork, trial).load_state_dict(state_dict, *args, **kwargs)
            for store in [trial.private, *trial.weight_stores]:
                if list(store.sections) != trial.tasks:
                    raise CorruptStreamError(
                        f"{store.name} has the tasks {list(store.sections)} of {trial.tasks}"
                    )
        except CorruptStreamError as error:
            raise CorruptStreamError(
                f"the state is damaged, and the network is as it was: {error}"
            ) from error
        return super().load_state_dict(state_dict, *args, **kwargs)

    def finish_loading(self, classes: dict[int, tuple[int, ...]]) -> None:
        """Declare the tasks that the stores were restored with.

        :param classes: class numbers by task label, in order of learning.
        """
        self.classes = dict(classes)
        self.known_train_tasks_labels = set(classes)
        self.max_class_label = max((max(own) + 1 for own in classes.values() if own), default=0)
        self._deactivate()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_active": {}, "_stack": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> TaskNetwork:
        moved = fn(torch.empty(0, dtype=self.head.weight.dtype))
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
        self._deactivate()
        result: TaskNetwork = super()._apply(fn, *args, **kwargs)
        if not self.classes:
            self.remember_static()
        return result

    def _require_open(self) -> int:
        if self.open_task is None:
            raise TaskStateError("no task is open: call open(task, classes) and train it first.")
        return self.open_task

    def _check_static(self) -> None:
        for name, mark in self._static_marks.items():
            if _mark(self._static[name].tensor) != mark:
                raise TaskStateError(
                    f"{name} changed while task {self.open_task} was trained, but all tasks share "
                    f"it: keep its module out with exclude=({name.rpartition('.')[0]!r},)."
                )

    def _fresh_head(self, classes: int) -> None:
        """Head parameters for a new task; the first task takes the model's own when they fit."""
        if not self.classes and self.head.weight.shape[0] == classes:
            return
        self._resize_head(classes)
        fresh = nn.Linear(self.head.in_features, classes, bias=self.head.bias is not None)
        with torch.no_grad():
            for name, parameter in fresh.named_parameters():
                self.head._parameters[name].copy_(parameter)  # type: ignore[union-attr]

    def _resize_head(self, classes: int) -> None:
        if self.head.weight.shape[0] == classes:
            return
        self.head.out_features = classes
        for name in ("weight", "bias"):
            own = self.head._parameters[name]
            if own is not None:
                resized = own.new_empty((classes, *own.shape[1:]))
                self.head._parameters[name] = nn.Parameter(resized, own.requires_grad)


def _counters(model: nn.Module) -> list[Place]:
    """Where norms count their batches."""
    return [
        Place(module, "num_batches_tracked")
        for module in model.modules()
        if module._buffers.get("num_batches_tracked") is not None
    ]


def _start_counting(norm: nn.modules.batchnorm._NormBase) -> None:
    """Count batches anew; statistics go on, unless an attempt that diverged has spoiled them."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.zero_()
    statistics = [t for t in (norm.running_mean, norm.running_var) if t is not None]
    if not all(bool(torch.isfinite(t).all()) for t in statistics):
        norm.reset_running_stats()


@torch.no_grad()
def _replace_spoiled(module: nn.Module, name: str) -> None:
    """Let entries of a module's own parameters start anew that an attempt has made NaN or infinite.

    They start as the module does when it is built, or at 0 if it does not say how.
    """
    spoiled = [
        own
        for own, parameter in module._parameters.items()
        if parameter is not None
        and parameter.requires_grad
        and not bool(torch.isfinite(parameter).all())
    ]
    if not spoiled:
        return
    fresh = copy.deepcopy(module)
    reset = getattr(fresh, "reset_parameters", None) or getattr(fresh, "_reset_parameters", None)
    if callable(reset):
        reset()
    for own in spoiled:
        parameter, anew = module._parameters[own], fresh._parameters[own]
        assert parameter is not None and anew is not None
        parameter.copy_(torch.where(parameter.isfinite(), parameter, anew).nan_to_num_(0, 0, 0))
        warnings.warn(
            f"{f'{name}.{own}'.lstrip('.')} held NaN or infinite values, from a training that "
            "diverged; those entries start anew.",
            stacklevel=3,
        )


def _mark(tensor: Tensor) -> int:
    """A fingerprint by which a change shows."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return zlib.crc32(flat.view(torch.uint8).numpy().tobytes())  # NumPy lacks bfloat16


def spread_logits(logits: Tensor, classes: Sequence[int], width: int = 0) -> Tensor:
    """Put a task's logits at the columns of its classes.

    :param logits: ``(N, len(classes))``.
    :param classes: ascending class numbers.
    :param width: least number of columns.
    :return: ``(N, max(classes) + 1)`` or wider; other columns hold -1000.

    >>> spread_logits(torch.ones(1, 2), [1, 3]).tolist()
    [[-1000.0, 1.0, -1000.0, 1.0]]
    """
    width = max(width, classes[-1] + 1)
    if width == len(classes):
        return logits
    out = logits.new_full((*logits.shape[:-1], width), MASKED_LOGIT)
    out[..., list(classes)] = logits
    return out


def network_of(strategy: Any) -> TaskNetwork:
    """The network that a strategy trains.

    :param strategy: an Avalanche strategy.
    :raises TaskStateError: if its model is none of ours.
    """
    if not isinstance(strategy.model, TaskNetwork):
        raise TaskStateError(
            f"a TaskNetwork is needed and the strategy's model is a "
            f"{type(strategy.model).__name__}: wrap it, model=TaskNetwork(model)."
        )
    return strategy.model
