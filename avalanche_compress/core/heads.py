"""The head of a model, which turns features into logits: of another size for every task."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn

from avalanche_compress.errors import UnsupportedModuleError, nearest

MASKED_LOGIT = -1000.0
"""Logit of a class that is not the task's, as in Avalanche's classifiers."""


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
        incremental = IncrementalClassifier(self.in_features, classes, masking=False)
        incremental.classifier.weight, incremental.classifier.bias = self.weight, self.bias
        if not self.multi_head:
            return incremental
        incremental._auto_adapt = False
        classifier = MultiHeadClassifier(self.in_features, classes, masking=False)
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


def find_head(model: nn.Module, head: str | None) -> tuple[str, nn.Linear]:
    """The layer that turns features into logits.

    :param model: any module.
    :param head: its dotted name, or None for the last ``nn.Linear`` in order of registration.
    :return: name and layer.
    :raises UnsupportedModuleError: if there is no such layer.
    """
    modules = dict(model.named_modules())
    if head is not None:
        found = modules.get(head)
        if isinstance(found, nn.Linear):
            return head, found
        what = "does not exist" if found is None else f"is a {type(found).__name__}"
        raise UnsupportedModuleError(
            f"head={head!r} {what}, and an nn.Linear of the model is needed: name the layer that "
            f"gives the logits{nearest(head, modules)}."
        )
    linear = [
        (name, module)
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and not _inside_attention(modules, name)
    ]
    if not linear:
        raise UnsupportedModuleError(
            f"{type(model).__name__} has no nn.Linear that could be the classifier head: end the "
            "model with one, so that every task can have logits of its own."
        )
    return linear[-1]


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


def renew_head(head: nn.Linear, classes: int) -> None:
    """Give a head fresh parameters for a task.

    :param head: of the model, changed in place.
    :param classes: its number of outputs from now on.
    """
    resize_head(head, classes)
    fresh = nn.Linear(head.in_features, classes, bias=head.bias is not None)
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            head._parameters[name].copy_(parameter)  # type: ignore[union-attr]


def resize_head(head: nn.Linear, classes: int) -> None:
    """Give a head the size of a task; where that changes, its values are undefined.

    :param head: of the model, changed in place.
    :param classes: its number of outputs from now on.
    """
    if head.weight.shape[0] == classes:
        return
    head.out_features = classes
    for name in ("weight", "bias"):
        parameter = head._parameters[name]
        if parameter is not None:
            resized = parameter.new_empty((classes, *parameter.shape[1:]))
            head._parameters[name] = nn.Parameter(resized, parameter.requires_grad)


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


def _inside_attention(modules: dict[str, nn.Module], name: str) -> bool:
    return isinstance(modules.get(name.rpartition(".")[0]), nn.MultiheadAttention)
