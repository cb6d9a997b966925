"""The frame that all strategies of this package share."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models.dynamic_optimizers import update_optimizer
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates.strategy_mixin_protocol import CriterionType
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_compress.core.batches import is_finite, rows_of, size_of
from avalanche_compress.core.conversion import check_values
from avalanche_compress.core.experiences import (
    position_in_stream,
    single_task_label,
    task_labels_of,
)
from avalanche_compress.core.network import StoreFactory, TaskNetwork
from avalanche_compress.errors import (
    NonFiniteError,
    TaskLabelError,
    TaskStateError,
    TrainingDataError,
)
from avalanche_compress.host.refused_plugins import check_plugins
from avalanche_compress.host.strategy import criterion_of, forward_size
from avalanche_compress.host.tensor_data.plugin import TensorDataPlugin, TensorLoader
from avalanche_compress.host.training_loop import TrainingLoop
from avalanche_compress.inference.task_inference import TaskInference
from avalanche_compress.metrics.task_identity import RefusedSamples, TaskIdAccuracy, task_id_metrics
from avalanche_compress.shaping.criterion_state import stream_width
from avalanche_compress.shaping.norms import NormPlugin
from avalanche_compress.shaping.plugin import shape_and_commit
from avalanche_compress.shaping.size_budget import ArchiveBudget, with_budget
from avalanche_compress.shaping.task_loss import Known, TaskLoss, loss_by_task, task_loss
from avalanche_compress.shaping.validation import (
    find_validation,
    iterate_batches,
    restart_comparisons,
)
from avalanche_compress.training.optimizer_groups import (
    check_optimizer,
    join_groups,
    plan_groups,
    rejoin_groups,
    taken_parameters,
)
from avalanche_compress.training.options import takes_over
from avalanche_compress.training.ownership import check_not_owned, former_owner, take_over
from avalanche_compress.training.state import ResumableTraining
from avalanche_compress.training.step_guard import StepGuard


class CompressedStrategy(ResumableTraining):
    """Trains a :class:`TaskNetwork` task by task; a method is a store and a list of plugins.

    A plain model is converted on construction and the optimiser goes on with its parameters, in
    their groups; new ones (scores, factors) join the group of the weight that they belong to. The
    optimiser's state is reset at each task, the optimiser object stays, so that schedulers do.
    Tasks are told apart by the experiences' task labels, in training and in evaluation. A strategy
    takes over the model that it is built over: the one that trained it before can only evaluate.

    With ``task_inference`` no labels are needed, and those that there are play no role: the task in
    training is the position of its experience in the stream, evaluation infers every sample's, and
    :class:`~avalanche_compress.TaskIdAccuracy` is reported with what the evaluator reports, and
    with ``TaskInference(unknown=...)`` :class:`~avalanche_compress.RefusedSamples`.

    :param model: a plain ``nn.Module`` or a :class:`TaskNetwork`.
    :param optimizer: over the model's parameters.
    :param criterion: loss of logits (N, C) and targets (N,).
    :param store: what to put behind each weight of a plain model.
    :param shaping: the method's plugins, in their order; they run before the user's.
    :param head: dotted name of the classifier, see :class:`TaskNetwork`.
    :param exclude: modules to keep out of compression, see :class:`TaskNetwork`.
    :param include: further parameters to compress, see :class:`TaskNetwork`.
    :param task_inference: how evaluation finds out the task: a :class:`TaskInference` or the name
        of its rule, such as ``"triangular@first"``; None for streams with task labels.
    :param tensor_data: see :class:`~avalanche_compress.TensorDataPlugin`: the same batches, faster.
    :param estimate_norms: do so when a task is shaped, see :class:`~avalanche_compress.NormPlugin`.
    :param size_budget: bytes a task, or an :class:`~avalanche_compress.ArchiveBudget`; see
        :class:`~avalanche_compress.SizeBudgetPlugin`.
    :param train_mb_size: samples per training step.
    :param train_epochs: epochs a task.
    :param eval_mb_size: samples per evaluation step; None means ``train_mb_size``.
    :param device: where to compute.
    :param plugins: the user's plugins.
    :param evaluator: metrics and loggers.
    :param eval_every: epochs between evaluations during training, -1 for none.
    :param base_kwargs: further options of Avalanche's ``SupervisedTemplate``.
    :raises TaskStateError: if a given TaskNetwork has other stores than the method needs, or it is
        unclear which group of the optimiser a parameter that was left out belongs to; in training,
        if a strategy that was built later has taken the model over.
    :raises NonFiniteError: if the model holds NaN or infinite weights.
    :raises UnsupportedPluginError: if a plugin or a metric of Avalanche's cannot work with
        sub-networks that are frozen.
    :raises TaskInferenceError: if there is no such rule, if it cannot judge the network's tasks, or
        if a plugin replays samples, whose tasks nobody would know.
    """

    optimized_param_id: Any
    _task_loss: TaskLoss

    @takes_over(TrainingLoop)
    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: CriterionType = nn.CrossEntropyLoss(),  # noqa: B008 (the host's signature)
        store: StoreFactory,
        shaping: Sequence[SupervisedPlugin],
        head: str | None = None,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        task_inference: str | TaskInference | None = None,
        tensor_data: bool = True,
        estimate_norms: bool = True,
        size_budget: int | ArchiveBudget | None = None,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: list[SupervisedPlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = default_evaluator,
        eval_every: int = -1,
        **base_kwargs: Any,
    ):
        if isinstance(task_inference, str):
            task_inference = TaskInference(task_inference)
        if callable(evaluator):
            evaluator = evaluator()
        metrics = [] if evaluator is None else evaluator.metrics
        check_plugins([*(plugins or []), criterion, *metrics], task_inference is not None)
        check_optimizer(optimizer)
        if isinstance(model, TaskNetwork):
            _check_stores(model, store)
            groups = plan_groups(model.backbone, optimizer)
            network = model
        else:
            check_values(model)
            groups = plan_groups(model, optimizer, without=former_owner(model))
            network = TaskNetwork(model, store, head=head, exclude=exclude, include=include)
        if task_inference is not None:
            task_inference.candidates(network)
        network.task_of = single_task_label if task_inference is None else position_in_stream
        self.task_inference = task_inference
        self.inferred_tasks: Tensor | None = None
        self.guard = StepGuard()
        self._at_commit: dict[str, float] = {}
        self._answered_by: int | Tensor = 0
        self._targets_are_known: Known = True
        self._stream_width: int | None = None
        join_groups(network, optimizer, groups)
        plugins = with_budget(shaping, plugins or [], size_budget)
        if estimate_norms and not any(isinstance(plugin, NormPlugin) for plugin in plugins):
            plugins.append(NormPlugin())
        if tensor_data and not any(isinstance(plugin, TensorDataPlugin) for plugin in plugins):
            plugins.append(TensorDataPlugin())
        super().__init__(
            model=network,
            optimizer=optimizer,
            criterion=criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            **base_kwargs,
        )
        if task_inference is not None:
            _report_task_identity(self.evaluator, task_inference.unknown is not None)
        take_over(network, self)
        self.names_of_every_strategy = list(vars(self))

    @property
    def network(self) -> TaskNetwork:
        """The model, with its type."""
        assert isinstance(self.model, TaskNetwork)
        return self.model

    def follow_heads(self, find: Callable[[TaskNetwork], None]) -> None:
        """Find the network's heads, and have the optimiser train what is compressed then.

        :param find: changes the network's heads, or leaves them.
        """
        stores = self.network.weight_stores
        find(self.network)
        if stores != self.network.weight_stores:
            former = {id(part) for store in stores for part in store.parameters()}
            rejoin_groups(self.network, self.optimizer, former)

    def make_optimizer(self, **kwargs: Any) -> None:
        """Give the optimiser the open task's parameters, in place and without old state.

        :param kwargs: as Avalanche's, for example ``remove_params``.
        """
        self.optimized_param_id = update_optimizer(
            self.optimizer,
            taken_parameters(self.model, self.optimizer),
            self.optimized_param_id,
            reset_state=True,
            remove_params=kwargs.get("remove_params", False),
        )

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """Open the experience's task in training; see Avalanche.

        :param model: the strategy's own, unless another is given.
        """
        adapted: nn.Module = super().model_adaptation(model)
        task = self.network.open_task
        if self.task_inference is not None and self.is_training and task is not None:
            # before hours of training, and not at the evaluation after them
            self.task_inference.check_classes(task, self.network.classes_of(task))
        return adapted

    def training_epoch(self, **kwargs: Any) -> None:
        """Train on all mini-batches; a step that fails leaves nothing behind.

        :param kwargs: of ``train``.
        """
        self._task_loss = task_loss(self)
        self.network.check_between_epochs()  # plugins may have changed what no task keeps
        with self.guard:
            super().training_epoch(**kwargs)

    def forward(self) -> Any:
        """Logits of the mini-batch, by its task labels or by inferred ones.

        :return: ``(N, C)``.
        :raises TaskLabelError: if labels are needed and the experience has none.
        :raises TrainingDataError: in training, if the mini-batch is too small for BatchNorm.
        """
        if not self.is_training:
            return self._logits()
        self.guard.step_begins(self.network.moving_tensors())
        try:
            return self._logits()
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingDataError(
                f"a mini-batch of {size_of(self.mb_x)} is too small for BatchNorm, which takes "
                "means over samples in training: call train(experience, drop_last=True), or choose "
                "another train_mb_size. The weights are those before this step."
            ) from error

    def criterion(self) -> Tensor:
        """The loss of the mini-batch, of each sample over the columns of its task's classes.

        In training that is the loss of the open task's samples: those of finished tasks, which
        replay may have added, have no gradient and do not count. See
        :class:`~avalanche_compress.shaping.task_loss.TaskLoss`.
        """
        if self.is_training:
            return self._training_loss()
        width = self._stream_width
        return loss_by_task(
            criterion_of(self), self.network, self.mb_output, self.mb_y, self._answered_by, width
        )

    def _training_loss(self) -> Tensor:
        logits, targets = self.mb_output, self.mb_y
        loader, classes = self.dataloader, None
        if isinstance(loader, TensorLoader):
            classes = loader.classes_of(targets)
        if isinstance(self._answered_by, Tensor):
            assert self.network.open_task is not None
            chosen = torch.eq(self._answered_by, self.network.open_task)
            if not bool(chosen.all()):
                logits, targets = logits[chosen], rows_of(targets, chosen)
            if not len(logits):
                return torch.zeros((), device=self.device, requires_grad=True)
        loss, self._targets_are_known = self._task_loss.checked(logits, targets, classes)
        return loss

    def _logits(self) -> Any:
        """Logits of the mini-batch; remembers which task was asked for each."""
        self.inferred_tasks = None
        if self.task_inference is None:
            self._answered_by = self._task_labels()
        elif self.is_training or not self.task_inference.candidates(self.network):
            # in an evaluation before the first task is finished there is no choice yet
            task = self.network.open_task
            self._answered_by = 0 if task is None else task
        else:
            logits, self.inferred_tasks = self.task_inference(self.network, self.mb_x)
            self._answered_by = self.inferred_tasks
            return logits
        return self.model(self.mb_x, self._answered_by)

    def _task_labels(self) -> int | Tensor:
        """The mini-batch's; one int, where the loader knows it and nobody changed them."""
        loader = self.dataloader
        known = loader.task_of(self.mbatch[-1]) if isinstance(loader, TensorLoader) else None
        if known is not None:
            return known
        if not hasattr(self.experience, "task_labels") and task_labels_of(self.experience) is None:
            raise TaskLabelError(
                "the experience has no task labels, which say whose sub-network is to answer: "
                "build the stream with return_task_id=True, or with with_task_labels(); for a "
                "stream that has none, give the strategy task_inference='triangular@first'."
            )
        labels: Tensor = self.mb_task_id
        return labels

    def backward(self) -> None:
        """Back-propagate, unless the loss is NaN or infinite.

        :raises TrainingDataError: if a target is none of the task's classes.
        :raises NonFiniteError: before the step that would make the weights so.
        """
        fine, known = self.guard.is_finite(self.loss), self._targets_are_known
        self.guard.expect(fine if known is True else fine & known, self._loss_error)
        super().backward()
        self.network.end_substitution()  # plugins find gradients at the modules' own weights

    def optimizer_step(self) -> None:
        """Change the weights, unless the loss was NaN or infinite.

        :raises NonFiniteError: before the weights change.
        """
        self.guard.weights_change()
        super().optimizer_step()
        self.guard.step_ends()
        self.network.end_substitution()  # what plugins read of the modules is what was stepped

    def _loss_error(self) -> Exception:
        task = self.network.open_task
        assert task is not None
        if not bool(self._targets_are_known):
            foreign = self._task_loss.foreign(self.mb_output, self.mb_y)
            return TrainingDataError(
                f"the mini-batch has targets of the classes {foreign} "
                f"and those of task {task} are {list(self.network.classes_of(task))}, as the "
                "experience says: make its classes those of its samples. The weights are those "
                "before this step."
            )
        return NonFiniteError(
            f"the loss is {float(self.loss.detach().sum())} in epoch "
            f"{self.clock.train_exp_epochs} of task {task}; the weights are those before this "
            f"step: {self._cause()}"
        )

    def _cause(self) -> str:
        """What may have brought a loss about that is not finite, and what to do."""
        nonfinite = self.network.first_nonfinite()
        if nonfinite is not None:
            return (
                f"an earlier one has made values of {nonfinite} NaN or infinite, which are reset "
                "when the task is trained again; lower the learning rate, or clip gradients."
            )
        if not is_finite(self.mb_x):
            return "the inputs hold NaN or infinite values, take those samples out."
        return "check the inputs, or lower the learning rate."

    def training_begins(self) -> None:
        """Refuse plugins that have been added since, and a model that another strategy trains."""
        super().training_begins()
        check_plugins(self.plugins, self.task_inference is not None)
        check_not_owned(self.network, self)
        take_over(self.network, self)  # as a copy, or out of a file, it has not yet done so

    def task_begins(self) -> None:
        """Refuse an experience that cannot be trained on, before anything has changed."""
        self.network.check_experience(self.experience)
        self.follow_heads(lambda network: network.find_heads_in(self.experience))
        if self.task_inference is not None:
            self.task_inference.check_experience(self.network, self.experience)

    def epochs_begin(self) -> None:
        """Refuse a criterion that cannot do with the task's classes; forget other tasks' epochs."""
        restart_comparisons(self)
        task_loss(self).check()
        self._stream_width = stream_width(criterion_of(self), self.experience)
        super().epochs_begin()

    def evaluation_begins(self) -> None:
        """Find out how many classes the stream has, unless a training has."""
        if self._stream_width is None:
            self._stream_width = stream_width(criterion_of(self), self.experience)

    def task_ends(self) -> None:
        """Commit, so that periodic evaluation and the user's plugins see what will stay."""
        shape_and_commit(self)
        self._at_commit = _sums(self.network.backbone)
        if self.task_inference is not None and self.task_inference.needs_statistics:
            batches = iterate_batches(self.adapted_dataset.eval(), forward_size(self))
            validation = find_validation(self)
            held_out = [] if validation is None else validation.batches
            self.task_inference.collect(self.network, self.network.tasks[-1], batches, held_out)

    def task_has_ended(self) -> None:
        """Warn of weights that were set after they had been kept."""
        changed = _sums(self.network.backbone)
        names = [name for name, total in self._at_commit.items() if changed.get(name) != total]
        self._at_commit = {}
        if names:
            warnings.warn(
                f"{names[0]!r} and {len(names) - 1} more were changed in after_training_exp, when "
                "the task was finished, which changes nothing of it: averaged weights (EMA, SWA) "
                "and those of an optimiser's eval() are kept if you set them in "
                "after_training_epoch of the last epoch, see docs/misuse.md.",
                stacklevel=2,
            )


def _sums(model: nn.Module) -> dict[str, float]:
    """What a change of a parameter shows by; NaN as 0."""
    names, parameters = zip(*model.named_parameters())
    sums = torch.stack([parameter.detach().double().sum() for parameter in parameters])
    return dict(zip(names, sums.nan_to_num().tolist()))


def _report_task_identity(evaluator: EvaluationPlugin, refuses: bool) -> None:
    """Accuracy without labels says little unless one knows how often the task was right."""
    if not any(isinstance(metric, TaskIdAccuracy) for metric in evaluator.metrics):
        evaluator.metrics = [*evaluator.metrics, *task_id_metrics()]
    if refuses and not any(isinstance(metric, RefusedSamples) for metric in evaluator.metrics):
        refused = [RefusedSamples(place) for place in ("experience", "stream")]
        evaluator.metrics = [*evaluator.metrics, *refused]


def _check_stores(network: TaskNetwork, factory: StoreFactory) -> None:
    """Refuse a network whose stores are not what ``factory`` (a class or a partial) builds."""
    kind: Any = getattr(factory, "func", factory)
    options = inspect.signature(kind).parameters.values()
    config = {
        option.name: option.default for option in options if option.kind is option.KEYWORD_ONLY
    }
    config.update(getattr(factory, "keywords", {}))
    for store in network.weight_stores:
        known = {name: value for name, value in config.items() if name in store.config()}
        if not isinstance(store, kind) or not known.items() <= store.config().items():
            raise TaskStateError(
                f"the TaskNetwork keeps {store.name} in a {type(store).__name__}{store.config()}, "
                f"and this method needs {kind.__name__}{config}: pass the plain model, or build "
                "the network with that store."
            )
