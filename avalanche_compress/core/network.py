"""One set of layers for all tasks: which weights they compute with depends on the task."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from avalanche_compress.core import checks
from avalanche_compress.core.batches import Caller, logits_of, rows_of
from avalanche_compress.core.conversion import Tensors, padding_rows, sort_tensors, store_key
from avalanche_compress.core.experiences import classes_in, single_task_label
from avalanche_compress.core.head_finding import HeadFinding
from avalanche_compress.core.heads import (
    MASKED_LOGIT,
    fails_behind_head,
    find_heads,
    not_the_head,
    renew_head,
    replace_avalanche_heads,
    spread_logits,
)
from avalanche_compress.core.open_task import OpenTask
from avalanche_compress.core.private import PrivateStore
from avalanche_compress.core.registry import store_of_kind
from avalanche_compress.core.state import counters, reset_nonfinite, restart_statistics
from avalanche_compress.core.static import StaticTensors
from avalanche_compress.core.store import Place, WeightStore
from avalanche_compress.core.structure import Structure, make_contiguous
from avalanche_compress.core.substitution import Completion
from avalanche_compress.core.views import Views
from avalanche_compress.errors import (
    CompressError,
    TaskStateError,
    TrainingDataError,
    UnsupportedModuleError,
)

StoreFactory = Callable[[Place, str], WeightStore]


class TaskNetwork(HeadFinding, MultiTaskModule):
    """Any model, made to learn task after task without forgetting.

    The model's modules stay as they are. Behind every weight matrix and kernel stands a
    :class:`~avalanche_compress.core.store.WeightStore`; all else that a task trains (biases, norms
    with their running statistics, the classifier head, bare parameters) every task has for
    itself. For a forward pass a task's tensors are *substituted* for the modules' own Parameters,
    which remain the scratch of the task in training.

    Inputs ``(N, ...)`` as the model takes them, or a mapping of such that becomes keyword arguments
    where the model's ``forward`` has them; task labels ``(N,)`` or an int; outputs ``(N, C)``
    where column c is class c of the stream, as the experience numbers it. Classes that are not the
    task's have logit -1000, as in Avalanche. Evaluating a task that was never trained creates
    nothing: the newest finished task answers.

    :param model: an ``nn.Module`` that maps inputs to logits, or to an object, a mapping or a tuple
        that has them (:func:`~avalanche_compress.core.batches.logits_of`); converted in place.
        Avalanche's ``MultiHeadClassifier`` and ``IncrementalClassifier`` are replaced by heads of
        the tasks' own.
    :param store: what to put behind each weight, ``store(place, name)``; by default a
        :class:`~avalanche_compress.MaskedStore`.
    :param head: dotted name of the classifier, an ``nn.Linear`` or a convolution, or names of
        several; by default those that are seen to give the logits of the first mini-batch. Every
        task has a head with as many outputs as it has classes.
    :param exclude: names of modules to keep out of compression; every task has its own float copy.
    :param include: names of further parameters to compress.
    :param compressed: names of exactly the parameters to compress, as an archive knows them.
    :param example: inputs of one sample or more, by which the head is found at once.
    :raises UnsupportedModuleError: if a module cannot be kept per task, before anything is changed.

    >>> network = TaskNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    >>> network.open(0, classes=[0, 1, 2])
    >>> network.commit()
    >>> network(torch.zeros(5, 4), 0).shape
    torch.Size([5, 3])
    """

    max_class_label: int
    forward_all_tasks: Callable[..., Any]

    def __init__(
        self,
        model: nn.Module,
        store: StoreFactory | None = None,
        *,
        head: str | Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        compressed: Collection[str] | None = None,
        example: Any = None,
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
            heads = find_heads(model, head)
            tensors = sort_tensors(model, heads, include, exclude, compressed)
        except UnsupportedModuleError:
            for parent, name, classifier in replaced:
                parent._modules[name] = classifier
            raise
        make_contiguous(model)
        self.options: dict[str, Any] = {"head": head, "exclude": [*exclude], "include": [*include]}
        self.backbone = model
        self._takes_task = isinstance(model, MultiTaskModule)
        self._call = Caller(model)
        self._convert(heads, tensors, store)
        self._heads_seen = head is not None
        self.classes: dict[int, tuple[int, ...]] = {}
        self.statistics: dict[int, dict[str, Tensor]] = {}
        self.task_of: Callable[[Any], int] = single_task_label
        self.open_task: int | None = None
        self._open_classes: tuple[int, ...] = ()
        self._planned_reuse: Sequence[int] | None = None
        if example is not None:
            self.find_heads_with(example)

    def _convert(self, heads: Sequence[str], tensors: Tensors, store: StoreFactory) -> None:
        """Put stores behind the model's tensors.

        :param heads: names of the layers that give the logits.
        :param tensors: who keeps which.
        :param store: what to put behind each weight.
        """
        modules = dict(self.backbone.named_modules())
        self.head_names = list(heads)
        self.options["head"] = heads[0] if len(heads) == 1 else list(heads)
        # in tuples: not a second registration
        self._head_places = [Place(modules[name], "weight") for name in heads]
        self.stores = nn.ModuleDict(
            {store_key(name): store(place, name) for name, place in tensors.shared.items()}
        )
        self.private = PrivateStore(list(tensors.private.values()), list(tensors.private))
        self._moving = [
            *(place for place in self.private.places if place.name in place.module._buffers),
            *counters(self.backbone),
        ]
        self._static = StaticTensors(tensors.static)
        self._completed = Completion(tensors.aliases, padding_rows(tensors))
        self._structure = Structure(self.backbone)
        self.views = Views(
            self._structure, self.heads, self.weight_stores, self.private, self._completed
        )
        self._open = OpenTask(
            self.backbone,
            self.heads,
            self._structure,
            self.views,
            self.weight_stores,
            self.private,
            self._static,
            self._completed,
        )

    # ------------------------------------------------------------------ life of a task

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
        checks.check_label(task, self.tasks, self.open_task)
        self.private.read_on()
        for store in self.weight_stores:
            store.read_on()
            store.check_open(self.tasks if reusable is None else reusable)
        checks.check_capacity(task, self.tasks, self.weight_stores)

    def check_experience(self, experience: Any) -> None:
        """Refuse an experience that cannot be trained on, before anything has changed.

        :param experience: with samples of one task.
        :raises TrainingDataError: if it has no samples.
        :raises TaskLabelError: if it has no task label or several, or classes as of :meth:`open`.
        :raises TaskAlreadyLearnedError: if its task is finished.
        :raises TaskStateError: if another task is open.
        """
        if not len(experience.dataset):
            raise TrainingDataError(
                "the experience has no samples, and a task is learned from one at least: leave it "
                "out of the stream."
            )
        task, classes = self.task_of(experience), sorted(classes_in(experience))
        checks.check_label(task, self.tasks, self.open_task)
        checks.check_classes(task, classes, self.classes.values())

    def open(self, task: int, classes: Iterable[int]) -> None:
        """Start training a task; one that was open under the same label is dropped.

        :param task: its label, any int that is not finished.
        :param classes: the class numbers of its targets.
        :raises TaskAlreadyLearnedError: if the task is finished.
        :raises TaskStateError: if another task is open.
        :raises CapacityExhaustedError: if no weights are left for it.
        :raises TaskLabelError: if there are no classes, or one is negative or too large to be kept.
        :raises UnsupportedModuleError: if a head is frozen.
        """
        reusable, self._planned_reuse = self._planned_reuse, None
        numbers = tuple(sorted({int(c) for c in classes}))
        checks.check_classes(task, numbers, self.classes.values())
        self.check_open(task, reusable)
        checks.check_heads(dict(zip(self.head_names, self.heads)))
        self.check_frozen()
        checks.check_structure(task, self._structure, self.heads)
        self._open.restart()
        if not self.classes:
            self._structure.retake()
        for name, module in self.backbone.named_modules():
            reset_nonfinite(module, name)
        for store in self.weight_stores:
            store.open(self.tasks if reusable is None else reusable)
        self.open_task = task
        self._open_classes = numbers
        for head in self.heads:
            if self.classes or head.weight.shape[0] != len(numbers):
                renew_head(head, len(numbers))  # else the first task starts with the model's own
        for module in self.backbone.modules():
            if isinstance(module, _NormBase):
                restart_statistics(module)

    def commit(self) -> None:
        """Freeze the open task: from now on its logits never change.

        :raises TaskStateError: if no task is open, or the task's bytes do not answer the last
            mini-batch of training as the task does; then nothing has changed.
        :raises UnsupportedModuleError: if modules came or went; then nothing has changed.
        :raises NonFiniteError: if a weight or an answer is NaN or infinite; nothing has changed.
            After any other error, an interruption or a lack of memory, say, the finished tasks are
            those from before; once stores had begun to take the open task, it is dropped.
        """
        task = self._require_open()
        checks.check_structure(task, self._structure, self.heads)
        self._static.check(task)
        sections = self._open.encode(task, partial(self._run, task))
        try:
            self._open.keep(task, sections)
            self.classes[task] = self._open_classes
        except BaseException:
            self.classes.pop(task, None)
            self._open.take_back(finished=len(self.classes))
            self.open_task = None
            raise
        self.known_train_tasks_labels.add(task)
        self.open_task = None
        self._open.restart()
        self.views.clear()

    def discard(self) -> None:
        """Drop the open task, if there is one; finished tasks are untouched."""
        self.open_task = None
        self._open.restart()

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
            self.find_heads_in(experience)
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
        # asked here, too: of the few microseconds besides the model a call is one in ten
        task = task_label if task_label in self.classes else self.answering(task_label)
        if task is None:
            logits = self._run(task_label, self.backbone, x)
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
            raise not_the_head(self.head_name, task, len(self.classes_of(task)), logits.shape)
        return logits

    def _forward_mixed(self, x: Tensor, task_labels: Tensor, labels: Sequence[int]) -> Tensor:
        parts = [
            (task_labels == t, self.forward_single_task(rows_of(x, task_labels == t), t))
            for t in labels
        ]
        width = max([self.max_class_label, *(logits.shape[-1] for _, logits in parts)])
        inner = parts[0][1].shape[1:-1] if parts else ()
        like = parts[0][1] if parts else self.head.weight
        out = like.new_full((len(task_labels), *inner, width), MASKED_LOGIT)
        for chosen, logits in parts:
            out[chosen, ..., : logits.shape[-1]] = logits
        return out

    def activate(self, *tasks: int) -> None:
        """Build the weights of finished tasks once; they are kept until another one is activated.

        :param tasks: their labels; all of them are in memory at a time.
        :raises CorruptStreamError: if one is damaged, in a network that was loaded.
        """
        self.views.activate(*tasks)

    def _run_open(self, x: Any, task: int) -> Tensor:
        if not self._heads_seen:
            self._check_heads(x)
        call = partial(self._run, task)
        try:
            return self._open.run(x, task, call)
        except RuntimeError as error:
            is_ours = isinstance(error, (CompressError, torch.cuda.OutOfMemoryError))
            if not is_ours and self._open.fails_behind_head(x, call):
                raise fails_behind_head(self.head_name, task, error) from error
            raise

    def _run_finished(self, x: Any, task: int) -> Tensor:
        # a view is in evaluation mode: of a replayed sample no running statistics move
        view = self.views.active.get(task) or self.views[task]
        return self._run(task, view.model, x)

    def _run(self, task: int, model: nn.Module, x: Any) -> Tensor:
        if isinstance(x, Tensor):
            output = model(x, task) if self._takes_task else model(x)
        else:
            output = self._call(model, x, *([task] if self._takes_task else ()))
        return output if type(output) is Tensor else logits_of(output)

    def answering(self, task_label: int) -> int | None:
        """The task whose sub-network answers; None before any task was opened.

        :param task_label: that is asked for.
        """
        if task_label == self.open_task or task_label in self.classes:
            return task_label
        if self.classes:
            return next(reversed(self.classes))
        return self.open_task

    # ------------------------------------------------------------------ looking inside

    def weight_of(self, name: str, task: int) -> Tensor:
        """The dense weight that a finished task computes with.

        :param name: dotted name of the weight in the model.
        :param task: its label.
        """
        store: WeightStore = self.stores[store_key(name)]  # type: ignore[assignment]
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
        return self.views.materialise(task, form)

    def _require_open(self) -> int:
        if self.open_task is None:
            raise TaskStateError("no task is open: call open(task, classes) and train it first.")
        return self.open_task


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
