"""What goes into a model and what comes out of it: tensors, or dictionaries and objects of them.

A mini-batch is a tensor, a ``PackedSequence``, an object that moves itself by a method ``to``, as
batches of graphs do, or a mapping, list, tuple or dataclass of such, of any class, which it keeps.
How it is measured, moved, cut and changed is known here alone.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

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
    """Some samples of a mini-batch; of numbers and texts beside its tensors, all.

    :param x: of N samples.
    :param chosen: an index (M,), or a mask (N,).
    :raises TrainingDataError: if a part of it has no row for each sample, or cannot be cut.

    >>> rows_of({"ids": torch.tensor([[1], [2]])}, torch.tensor([False, True]))
    {'ids': tensor([[2]])}
    """
    if isinstance(x, Tensor):
        return _rows_of_tensor(x, chosen)
    return _rows_of(x, chosen, size_of(x))


def _rows_of(x: Any, chosen: Tensor, count: int) -> Any:
    if not _is_part(x):
        found = _cut_by_itself(x, chosen) if _moves_itself(x) else None
        if found is not None:
            return found
        return _rebuilt(x, lambda inner: _rows_of(inner, chosen, count))
    if size_of(x) != count:
        raise TrainingDataError(
            f"the mini-batch has {count} samples by its first tensor, and another part of it has "
            f"{size_of(x)} rows, so that samples cannot be taken out of it: give every input a row "
            "for each sample, or make mini-batches of one task."
        )
    if isinstance(x, Tensor):
        return _rows_of_tensor(x, chosen)
    if isinstance(x, PackedSequence):
        return _rows_of_packed(x, chosen)
    found = _cut_by_itself(x, chosen)
    if found is None:
        raise _no_rows(type(x).__name__)
    return found


def _rows_of_tensor(x: Tensor, chosen: Tensor) -> Tensor:
    chosen = chosen.to(x.device)
    if x.layout is torch.strided and not x.is_nested:
        return x[chosen]
    index = chosen.nonzero().flatten() if chosen.dtype == torch.bool else chosen
    if x.is_nested:
        samples = x.unbind()
        wanted = [samples[position] for position in index.tolist()]
        found: Tensor = torch.nested.as_nested_tensor(wanted, layout=x.layout)
    elif x.layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
        found = x.to_sparse_coo().index_select(0, index)  # no other layout knows how
        found = found.to_sparse(layout=x.layout)
    else:
        raise _no_rows(f"tensor of the layout {x.layout}")
    return found


def _rows_of_packed(x: PackedSequence, chosen: Tensor) -> PackedSequence:
    padded, lengths = pad_packed_sequence(x, batch_first=True)
    lengths, padded = lengths[chosen.to(lengths.device)], padded[chosen.to(padded.device)]
    return pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)


def _cut_by_itself(x: Any, chosen: Tensor) -> Any:
    """What an object says that some of its samples are; None if it says nothing of the kind."""
    try:
        found = x[chosen.cpu()]
    except Exception:  # whatever a stranger's class raises
        return None
    return found if type(found) is type(x) else None


def _no_rows(what: str) -> TrainingDataError:
    return TrainingDataError(
        f"samples cannot be taken out of a {what}, as mini-batches of several tasks and task "
        "inference need: make mini-batches of one task, give tensors or containers of them, or a "
        "class whose x[indices] is such a mini-batch again."
    )


def moved_to(x: Any, device: str | torch.device) -> Any:
    """A mini-batch on a device.

    :param x: a mini-batch, or a part of it; what has no ``to`` stays as it is.
    :param device: where.
    """
    if isinstance(x, Tensor):
        return x.to(device, non_blocking=True)
    if not _moves_itself(x):
        return _rebuilt(x, lambda inner: moved_to(inner, device))
    copied = copy.copy(x)  # some move themselves in place
    try:
        return copied.to(device, non_blocking=True)
    except TypeError:  # it knows devices alone
        return copied.to(device)


def first_samples(dataset: Any, count: int = 2) -> Any:
    """A mini-batch of a data set's first samples, inputs first, without its random transforms.

    :param dataset: of an experience.
    :param count: how many, if there are so many.
    :raises TrainingDataError: if they are no tensors.
    """
    data = dataset.eval() if hasattr(dataset, "eval") else dataset
    samples = [data[index] for index in range(min(count, len(data)))]
    collate = getattr(data, "collate_fn", None) or torch.utils.data.default_collate
    try:
        return collate(samples)
    except TypeError as error:
        raise TrainingDataError(
            "the training data give no tensors when they are read without random transforms, which "
            "statistics and held-out samples need: give the benchmark an eval_transform=, as for "
            f"its test data ({error})."
        ) from error


def size_of(x: Any) -> int:
    """How many samples a mini-batch has.

    :param x: a mini-batch.
    :raises TrainingDataError: if it does not say.

    >>> size_of({"ids": torch.zeros(3, 5)})
    3
    """
    if isinstance(x, Tensor):
        return x.size(0)
    for part in parts_of(x):
        if isinstance(part, Tensor):
            return part.size(0)
        if isinstance(part, PackedSequence):
            return int(part.batch_sizes[0])
        if hasattr(type(part), "__len__"):
            return len(part)
    raise _no_tensor(x)


def _no_tensor(x: Any) -> TrainingDataError:
    return TrainingDataError(
        f"the inputs of the mini-batch are a {type(x).__name__} without a tensor: give tensors, or "
        "mappings or lists of them, such as tokenised text with return_tensors='pt'."
    )


def is_finite(x: Any) -> bool:
    """Whether no tensor of a mini-batch has a value that is NaN or infinite.

    :param x: a mini-batch.
    """
    tensors = [part.data if isinstance(part, PackedSequence) else part for part in parts_of(x)]
    values = [_values_of(part) for part in tensors if isinstance(part, Tensor)]
    return all(bool(torch.isfinite(value).all()) for value in values)


def _values_of(x: Tensor) -> Tensor:
    """The values of a tensor of any layout, as one that every function takes."""
    if x.layout is torch.strided and not x.is_nested:
        return x
    return x.coalesce().values() if x.layout is torch.sparse_coo else x.values()


def contiguous(x: Any) -> Any:
    """A mini-batch whose tensors lie in memory in the order of their axes, if they have one.

    :param x: a mini-batch.
    """
    return mapped(x, lambda part: part.contiguous() if part.layout is torch.strided else part)


def mapped(x: Any, function: Callable[[Tensor], Any]) -> Any:
    """A mini-batch with each of its tensors changed; other parts stay as they are.

    :param x: a mini-batch.
    :param function: of a tensor.
    """
    if isinstance(x, Tensor):
        return function(x)
    return _rebuilt(x, lambda inner: mapped(inner, function))


def parts_of(x: Any) -> Iterator[Any]:
    """What holds the samples of a mini-batch: tensors, packed sequences, objects with ``to``.

    :param x: a mini-batch.

    >>> [part.shape for part in parts_of({"ids": torch.zeros(3, 5), "name": "text"})]
    [torch.Size([3, 5])]
    """
    if _is_part(x):
        yield x
        return
    for inner in _inside(x):
        yield from parts_of(inner)


def _is_part(x: Any) -> bool:
    """Whether samples are in x itself; a number that is a tensor is of no sample."""
    if isinstance(x, Tensor):
        return x.dim() > 0
    return isinstance(x, PackedSequence) or (_moves_itself(x) and not _is_container(x))


def _moves_itself(x: Any) -> bool:
    return hasattr(type(x), "to")  # asked of x, some mappings would look for an item


def _is_container(x: Any) -> bool:
    if isinstance(x, PackedSequence):
        return False
    return isinstance(x, (Mapping, tuple, MutableSequence)) or _is_record(x)


def _is_record(x: Any) -> bool:
    return is_dataclass(x) and not isinstance(x, type)


def _inside(x: Any) -> Iterable[Any]:
    if not _is_container(x):
        return ()
    if isinstance(x, Mapping):
        return x.values()
    return [getattr(x, name) for name in _fields_of(x)] if _is_record(x) else x


def _fields_of(x: Any) -> list[str]:
    return [field.name for field in fields(x) if hasattr(x, field.name)]


def _rebuilt(x: Any, change: Callable[[Any], Any]) -> Any:
    """A container of the same class with each thing in it changed; anything else as it is."""
    if not _is_container(x):
        return x
    if isinstance(x, Mapping):
        return _with_items(x, {name: change(inner) for name, inner in x.items()})
    if isinstance(x, tuple):
        inner = [change(inner) for inner in x]
        return x._make(inner) if hasattr(x, "_make") else type(x)(inner)
    copied = _copied(x)
    if isinstance(x, MutableSequence):
        for index, inner in enumerate(x):
            copied[index] = change(inner)
    else:
        for name in _fields_of(x):
            object.__setattr__(copied, name, change(getattr(x, name)))  # it may be frozen
    return copied


def _with_items(x: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    """A mapping of the same class, and with the same attributes if it can be copied."""
    if type(x) is dict:
        return items
    try:
        if not isinstance(x, MutableMapping):
            return type(x)(items)  # type: ignore[call-arg]
        copied: MutableMapping[Any, Any] = _copied(x)
        for name, value in items.items():
            copied[name] = value
        return copied
    except TypeError:  # a class that is neither made of items nor takes them, as torch does
        return items


def _copied(x: Any) -> Any:
    """A copy whose items are its own: ``copy.copy`` shares what a class keeps its items in."""
    copied, attributes = copy.copy(x), getattr(x, "__dict__", {})
    if attributes is x:  # of a dictionary whose items are its attributes
        copied.__dict__ = copied
        return copied
    for name, value in attributes.items():
        if isinstance(value, (MutableMapping, MutableSequence)):
            copied.__dict__[name] = copy.copy(value)
    return copied
