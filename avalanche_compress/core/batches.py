"""What goes into a model and what comes out of it: tensors, or dictionaries and objects of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_compress.errors import TrainingDataError, UnsupportedModuleError

_LABELS = ("label", "labels", "label_ids")


class Caller:
    """Calls a model with the inputs of a mini-batch, whatever these are.

    A mapping of tensors is passed as keyword arguments to a model whose ``forward`` has arguments
    of those names, as those of ``transformers`` have; to any other model as it is.

    :param model: any.

    >>> class Texts(nn.Module):
    ...     def forward(self, input_ids, attention_mask=None):
    ...         return input_ids * attention_mask
    >>> ids, mask = torch.tensor([[5, 7]]), torch.tensor([[1, 0]])
    >>> Caller(Texts())(Texts(), {"input_ids": ids, "attention_mask": mask})
    tensor([[5, 0]])
    """

    def __init__(self, model: nn.Module):
        forward = getattr(model, "_orig_mod", model).forward  # a compiled model stands for another
        parameters = inspect.signature(forward).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        self._named = {parameter.name for parameter in parameters if parameter.kind in kinds}
        self._open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)

    def __call__(self, model: Any, x: Any, *others: Any) -> Any:
        """What the model returns.

        :param model: the one that this was made for, or a copy.
        :param x: the inputs.
        :param others: further positional arguments.
        :raises TrainingDataError: if the model does not take one of several inputs by name.
        """
        positional, by_name = self.arguments(x, *others)
        return model(*positional, **by_name)

    def arguments(self, x: Any, *others: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model is called with: positional arguments, and those that have names.

        :param x: the inputs.
        :param others: further positional arguments.
        :raises TrainingDataError: if the model does not take one of several inputs by name.
        """
        if isinstance(x, Mapping) and self._takes_by_name(x):
            return others, dict(x)
        return (x, *others), {}

    def _takes_by_name(self, x: Mapping[str, Any]) -> bool:
        unknown = [name for name in x if name not in self._named]
        if len(unknown) == len(x) and (self._named or not self._open_ended):
            return False
        if unknown and not self._open_ended:
            raise TrainingDataError(
                f"the mini-batch has the inputs {list(x)} and the model takes none called "
                f"{unknown[0]!r}: leave it out of the samples."
            )
        labels = [name for name in x if name in _LABELS]
        if labels:
            raise TrainingDataError(
                f"the mini-batch has {labels[0]!r} among its inputs, from which the model would "
                "compute a loss over other classes than the task's: leave it out of the samples, "
                "whose targets are their second element."
            )
        return True


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returns.

    :param output: a tensor; an object or a mapping that has ``logits``, as the models of
        ``transformers`` return; or a tuple that begins with them.
    :return: ``(N, ..., C)``.
    :raises UnsupportedModuleError: if it is none of these, or has logits of further heads.

    >>> logits_of({"logits": torch.ones(1, 2), "loss": None})
    tensor([[1., 1.]])
    >>> logits_of((torch.ones(1, 2), torch.zeros(1, 7)))
    tensor([[1., 1.]])
    """
    if isinstance(output, Tensor):
        return output
    _check_auxiliary(output)
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif hasattr(output, "logits"):
        found = output.logits
    else:
        found = output[0] if isinstance(output, (tuple, list)) and output else None
        _check_further(output, found)
    if isinstance(found, Tensor) and found.dim() > 1:
        return found
    raise UnsupportedModuleError(
        f"the model returns a {type(output).__name__} in which there are no logits (N, C): it "
        "may be a tensor, a tuple that begins with them, or have them as 'logits'. Wrap the model "
        "in a module that returns them."
    )


def _check_auxiliary(output: Any) -> None:
    """Refuse the outputs of classifiers that only training has, whose losses nobody would add."""
    names = output if isinstance(output, Mapping) else getattr(output, "_fields", ())
    for name in names:
        value = output[name] if isinstance(output, Mapping) else getattr(output, name)
        if str(name).startswith("aux") and value is not None:
            raise UnsupportedModuleError(
                f"the model returns {name!r} of an auxiliary classifier besides its logits, which "
                "would not be trained: build it without, as aux_logits=False does for GoogLeNet "
                "and Inception of torchvision."
            )


def _check_further(output: Any, first: Any) -> None:
    """Refuse a tuple of several that may be the logits."""
    if not isinstance(first, Tensor) or first.dim() < 2:
        return
    others = [part for part in output[1:] if isinstance(part, Tensor)]
    if any(part.shape == first.shape and part.requires_grad for part in others):
        raise UnsupportedModuleError(
            f"the model returns {len(output)} tensors of the shape {tuple(first.shape)}, all of "
            "which may be its logits, and only the first would be trained: wrap it in a module "
            "that returns what the loss is to see."
        )


def rows_of(x: Any, chosen: Tensor) -> Any:
    """Some samples of a mini-batch.

    :param x: a tensor (N, ...), or a mapping, list or tuple of such.
    :param chosen: an index (M,), or a mask (N,).

    >>> rows_of({"ids": torch.tensor([[1], [2]])}, torch.tensor([False, True]))
    {'ids': tensor([[2]])}
    """
    return mapped(x, lambda part: part[chosen.to(part.device)])


def moved_to(x: Any, device: str | torch.device) -> Any:
    """A mini-batch on a device.

    :param x: a tensor, or a mapping, list or tuple of such; other things stay as they are.
    :param device: where.
    """
    return mapped(x, lambda part: part.to(device, non_blocking=True))


def first_inputs(dataset: Any, count: int = 2) -> Any:
    """The inputs of the first samples of a data set, without its random transforms.

    :param dataset: of an experience.
    :param count: how many, if there are so many.
    :raises TrainingDataError: if they are no tensors.
    """
    data = dataset.eval() if hasattr(dataset, "eval") else dataset
    samples = [data[index] for index in range(min(count, len(data)))]
    collate = getattr(data, "collate_fn", None) or torch.utils.data.default_collate
    try:
        return collate(samples)[0]
    except TypeError as error:
        raise TrainingDataError(
            "the training data give no tensors when they are read without random transforms, which "
            "statistics and held-out samples need: give the benchmark an eval_transform=, as for "
            f"its test data ({error})."
        ) from error


def size_of(x: Any) -> int:
    """How many samples a mini-batch has.

    :param x: a tensor (N, ...), or a mapping, list or tuple of such.

    >>> size_of({"ids": torch.zeros(3, 5)})
    3
    """
    return len(x) if isinstance(x, Tensor) else len(first_tensor(x))


def first_tensor(x: Any) -> Tensor:
    """The first tensor of a mini-batch.

    :param x: a tensor, or a mapping, list or tuple of such.
    :raises TrainingDataError: if there is none.
    """
    if isinstance(x, Tensor):
        return x
    parts = x.values() if isinstance(x, Mapping) else x if isinstance(x, (list, tuple)) else ()
    for part in parts:
        if isinstance(part, (Tensor, Mapping, list, tuple)):
            return first_tensor(part)
    raise TrainingDataError(
        f"the inputs of the mini-batch are a {type(x).__name__} without a tensor: give tensors, or "
        "mappings or lists of them, such as tokenised text with return_tensors='pt'."
    )


def mapped(x: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A mini-batch with each of its tensors changed.

    :param x: a tensor, or a mapping, list or tuple of such; other things stay as they are.
    :param function: of a tensor.
    """
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, Mapping):
        return {name: mapped(part, function) for name, part in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(mapped(part, function) for part in x))
    if isinstance(x, (list, tuple)):
        return type(x)(mapped(part, function) for part in x)
    return x
