"""The head of a model, which turns features into logits: of another size for every task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn

from avalanche_compress.errors import UnsupportedModuleError, nearest

HEADS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers that may give logits, the usual kind first."""
PER_CLASS = ("weight", "bias")
"""A head's parameters that have a row for each class; others, such as a scale, are as they are."""
MASKED_LOGIT = -1000.0
"""Logit of a class that is not the task's, as in Avalanche's classifiers."""
MOST_CLASSES = 1 << 20
"""Class numbers are below this: a row of logits is as long as the largest one."""
ANY_CLASSES = 1 << 16
"""Class numbers below this may have any gaps."""
ROOM_FOR_CLASSES = 16
"""Others are below so many times the number of classes that the tasks have: a row of logits takes
memory for each number up to the largest."""


class HeadAdapter(nn.Linear):
    """A linear head in the place of one of Avalanche's classifiers; it ignores the task label.

    ``(N, in_features) -> (N, out_features)``

    :param linear: the layer whose parameters it takes over.
    :param multi_head: whether it stands for a ``MultiHeadClassifier``, else for an
        ``IncrementalClassifier``.
    """

    def __init__(self, linear: nn.Linear, multi_head: bool):
        super().__init__(
            linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta"
        )
        self.weight = linear.weight
        self.bias = linear.bias
        self.multi_head = multi_head

    def forward(self, x: Tensor, task_labels: Any = None) -> Tensor:
        return super().forward(x)

    def original(self, task: int) -> nn.Module:
        """A classifier of Avalanche's with this head's parameters.

        :param task: the only label that it answers, if it is a ``MultiHeadClassifier``.
        """
        classes = self.weight.shape[0]
        incremental: Any = IncrementalClassifier(self.in_features, classes, masking=False)
        incremental.classifier.weight, incremental.classifier.bias = self.weight, self.bias
        if not self.multi_head:
            return incremental  # type: ignore[no-any-return]
        incremental._auto_adapt = False  # noqa: SLF001 - Avalanche has no argument for it
        classifier: nn.Module = MultiHeadClassifier(self.in_features, classes, masking=False)
        classifier.classifiers = nn.ModuleDict({str(task): incremental})
        return classifier


def replace_avalanche_heads(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Put one plain head where Avalanche's growing or multi-head classifiers stand, in place.

    :param model: the model; its own heads per task come from the network instead.
    :return: what was replaced: parent, name, and the classifier that stood there.
    """
    replaced = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            first: Any = child
            if isinstance(child, MultiHeadClassifier):
                first = child.classifiers["0"]
            elif not isinstance(child, IncrementalClassifier):
                continue
            replaced.append((parent, name, child))
            # not setattr: Avalanche's as_multitask forwards it to the wrapped model
            parent._modules[name] = HeadAdapter(first.classifier, first is not child)
    return replaced


def restore_avalanche_heads(model: nn.Module, task: int) -> None:
    """Give a model of one task classifiers of Avalanche's own again, in place.

    :param model: any.
    :param task: its label.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, HeadAdapter):
                parent._modules[name] = child.original(task)
                for part in (parent, parent._modules[name], model):
                    if isinstance(part, MultiTaskModule):
                        part.__dict__["max_class_label"] = child.out_features
                        part.__dict__["known_train_tasks_labels"] = {task}


def find_heads(model: nn.Module, head: str | Sequence[str] | None) -> list[str]:
    """The layers that turn features into logits.

    :param model: any module.
    :param head: their dotted names; None for the last ``nn.Linear`` in order of registration or,
        where there is none, the last convolution. Which layers gave the logits is seen when the
        model runs, see :func:`layers_behind`.
    :return: names, one at least.
    :raises UnsupportedModuleError: if there is no such layer.
    """
    modules = dict(model.named_modules())
    if head is not None:
        names = [head] if isinstance(head, str) else list(head)
        for name in names:
            if not isinstance(modules.get(name), HEADS):
                found = modules.get(name)
                what = "does not exist" if found is None else f"is a {type(found).__name__}"
                raise UnsupportedModuleError(
                    f"head={name!r} {what}, and an nn.Linear or a convolution of the model is "
                    f"needed: name the layer that gives the logits{nearest(name, modules)}."
                )
        return names
    for kind in (HEADS[:1], HEADS[1:]):
        found = [name for name, module in modules.items() if _may_be_head(modules, name, kind)]
        if found:
            return found[-1:]
    raise UnsupportedModuleError(
        f"{type(model).__name__} has no nn.Linear or convolution that could be the classifier "
        "head: end the model with one, so that every task can have logits of its own."
    )


def layers_behind(model: nn.Module, run: Callable[[], Tensor]) -> list[str]:
    """The layers whose outputs become the logits through no other layer.

    Each layer's output is cut off from what it was computed from, so that a gradient of the logits
    reaches no further than to the last layers: to their outputs, or to the weights that the model
    reads without calling them (``F.linear(x, F.normalize(self.head.weight))``).

    :param model: in which layers are looked for.
    :param run: a forward pass of the model that gives its logits.
    :return: dotted names of those that have as many outputs as there are logits, in order.
    :raises UnsupportedModuleError: if others give the logits, or none.

    >>> class Averaged(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.body, self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)
    ...         self.unused = nn.Linear(4, 3)
    ...     def forward(self, x):
    ...         return self.one(self.body(x)) + self.two(x)
    >>> model = Averaged()
    >>> layers_behind(model, lambda: model(torch.ones(1, 4)))
    ['one', 'two']
    """
    cut: list[tuple[str, Tensor]] = []

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            leaf = output.detach().requires_grad_()
            cut.append((name, leaf))
            return leaf.clone()  # which may be changed in place

        return hook

    modules: dict[str, Any] = dict(model.named_modules())
    layers = {name: module for name, module in modules.items() if isinstance(module, HEADS)}
    hooks = [module.register_forward_hook(hook_of(name)) for name, module in layers.items()]
    weights = {name: module._parameters.get("weight") for name, module in layers.items()}
    read = [(n, w) for n, w in weights.items() if w is not None and w.is_floating_point()]
    fixed = [weight for _, weight in read if not weight.requires_grad]
    try:
        with torch.enable_grad():
            for weight in fixed:
                weight.requires_grad_()
            logits = run()
            reached = {}
            if logits.requires_grad:
                ends = [*cut, *read]
                leaves = [leaf for _, leaf in ends]
                gradients = torch.autograd.grad(logits.sum(), leaves, allow_unused=True)
                reached = {name: 0 for (name, _), g in zip(ends, gradients) if g is not None}
    finally:
        for hook in hooks:
            hook.remove()
        for weight in fixed:
            weight.requires_grad_(False)
    found = [name for name in reached if modules[name].weight.shape[0] == logits.shape[-1]]
    if not found:
        last = f" (the last layers are {list(reached)})" if reached else ""
        raise UnsupportedModuleError(
            f"{type(model).__name__} gives logits of shape {tuple(logits.shape)}, and no nn.Linear "
            f"or convolution with {logits.shape[-1]} outputs gives them{last}: end the model with "
            "one whose outputs are the logits, so that every task can have a head of its own."
        )
    return found


def too_wide(classes: Iterable[Sequence[int]]) -> str | None:
    """Why rows of logits would be by far wider than all classes together; None if they are not.

    :param classes: the class numbers of each task, ascending.
    """
    numbers = list(classes)
    count, highest = sum(map(len, numbers)), max((task[-1] for task in numbers if task), default=0)
    if highest >= MOST_CLASSES:
        return f"the class number {highest}, of {MOST_CLASSES} at most"
    if highest < max(ANY_CLASSES, ROOM_FOR_CLASSES * count):
        return None
    return (
        f"the class number {highest} and {count} classes in all: numbers from {ANY_CLASSES} on are "
        f"below {ROOM_FOR_CLASSES} times the classes"
    )


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


def renew_head(head: nn.Module, classes: int) -> None:
    """Give a head fresh parameters for a task.

    :param head: of the model, changed in place.
    :param classes: its number of outputs from now on.
    """
    resize_head(head, classes)
    layer: Any = head
    if not isinstance(layer, nn.Linear):
        layer.reset_parameters()
        return
    fresh = nn.Linear(layer.in_features, classes, bias=layer.bias is not None)
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            layer.get_parameter(name).copy_(parameter)


def resize_head(head: nn.Module, classes: int) -> None:
    """Give a head the size of a task; where that changes, its values are undefined.

    :param head: of the model, changed in place.
    :param classes: its number of outputs from now on.
    """
    layer: Any = head
    set_outputs(layer, classes)
    if layer.weight.shape[0] == classes:
        return
    for name in PER_CLASS:
        parameter = layer._parameters[name]
        if parameter is not None:
            resized = parameter.new_empty((classes, *parameter.shape[1:]))
            layer._parameters[name] = nn.Parameter(resized, parameter.requires_grad)


def set_outputs(head: nn.Module, classes: int) -> None:
    """Have a head say how many outputs it has.

    :param head: a linear layer or a convolution.
    :param classes: that many.
    """
    setattr(head, "out_features" if isinstance(head, nn.Linear) else "out_channels", classes)


def fails_behind(head: nn.Module, run: Callable[[], Tensor]) -> bool:
    """Whether a forward pass fails after the head has given its output.

    :param head: of the model.
    :param run: a forward pass.
    """
    reached: list[bool] = []
    hook = head.register_forward_hook(lambda *_: reached.append(True))
    try:
        run()
    except RuntimeError:
        return bool(reached)
    finally:
        hook.remove()
    return False


def fails_behind_head(name: str, task: int, error: Exception) -> UnsupportedModuleError:
    """The error for a layer that was taken for the head and is followed by others.

    :param name: of the head.
    :param task: that ran.
    :param error: what was raised behind the head.
    """
    return UnsupportedModuleError(
        f"the model fails behind its layer {name!r}, which has as many outputs as task {task} has "
        f"classes ({error}): if that is not the layer that gives the logits, build the model anew "
        "and name that one with head=."
    )


def not_the_head(
    name: str, task: int, classes: int, shape: Sequence[int]
) -> UnsupportedModuleError:
    """The error for a layer that was taken for the head and gives no logits.

    :param name: of the head.
    :param task: that ran.
    :param classes: how many it has.
    :param shape: of what the model gave.
    """
    return UnsupportedModuleError(
        f"the model gives an output of shape {tuple(shape)} and task {task} has {classes} classes, "
        f"so {name!r} is not the layer that gives the logits: name that one with head=."
    )


def _may_be_head(modules: dict[str, nn.Module], name: str, kinds: tuple[type, ...]) -> bool:
    inside = isinstance(modules.get(name.rpartition(".")[0]), nn.MultiheadAttention)
    return isinstance(modules[name], kinds) and not inside
