"""Which tensors of a model are compressed, which every task keeps, and which never change."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from avalanche_compress.codec import all_finite
from avalanche_compress.core.copying import COMPUTING_WEIGHTS
from avalanche_compress.core.store import Place
from avalanche_compress.errors import NonFiniteError, UnsupportedModuleError, nearest

_WEIGHTED = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.Bilinear,
)
_WEIGHTED_ELSEWHERE = ("transformers.pytorch_utils.Conv1D",)
"""Layers of other libraries that have a weight matrix, as ``module.class``."""
_STORED_TYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass
class Tensors:
    """The tensors of a model, sorted by who keeps them. Names are dotted paths in the model."""

    shared: dict[str, Place]
    """Weight matrices and kernels: a store behind each."""
    private: dict[str, Place]
    """Biases, norms with their running statistics, the head, bare parameters: a copy per task."""
    static: dict[str, Place]
    """Buffers and frozen parameters that no training changes: one copy for all tasks."""
    aliases: list[tuple[Place, Place]]
    """Of tied parameters that are shared or private: the first place, and each further one."""


def sort_tensors(
    model: nn.Module,
    heads: Sequence[str],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    compressed: Collection[str] | None = None,
) -> Tensors:
    """Decide for every tensor of a model who keeps it.

    A tied parameter is kept once, under the first of its names: by each task if one of its modules
    is excluded, else compressed if it is a weight in one of them.

    :param model: any module.
    :param heads: dotted names of the layers that give the logits.
    :param include: parameters to compress although they are none of the usual weights.
    :param exclude: modules whose parameters every task keeps for itself, uncompressed.
    :param compressed: exactly the parameters to compress, as an archive names them; None to decide.
    :raises UnsupportedModuleError: for a tied head, for tensors that cannot be stored,
        re-parametrised weights outside ``exclude``, and names that the model does not have.
    """
    modules = dict(model.named_modules())
    _check_names("include", include, dict(model.named_parameters(remove_duplicate=False)))
    _check_names("exclude", exclude, modules)
    uses = _uses(modules)
    tensors = Tensors({}, {}, {}, [])
    for module_name, module in modules.items():
        excluded = _is_excluded(module_name, exclude)
        _check_supported(module_name, module, module_name in heads, excluded)
        for name, parameter in module._parameters.items():
            full, place = _join(module_name, name), Place(module, name)
            if parameter is None or uses[id(parameter)][0][0] != full:
                continue
            names = [use for use, _ in uses[id(parameter)]]
            if any(_parent(use) in heads for use in names):
                if len(names) > 1:
                    raise _tied_head(names)
                tensors.private[full] = place
                continue
            if not parameter.requires_grad:
                tensors.static[full] = place  # tied or not, nothing changes it
                continue
            if compressed is not None:
                weight = full in compressed
            elif any(_is_excluded(_parent(use), exclude) for use in names):
                weight = False
            else:
                weight = any(n in include or _is_weight(*use) for n, use in uses[id(parameter)])
            (tensors.shared if weight else tensors.private)[full] = place
            tensors.aliases += [(place, other) for _, other in uses[id(parameter)][1:]]
        norm = isinstance(module, _NormBase)
        for name, buffer in module._buffers.items():
            if buffer is None or name in module._non_persistent_buffers_set:
                continue
            if norm and name == "num_batches_tracked":
                continue  # no finished task reads it, and every task starts counting at 0
            kept = tensors.private if norm or excluded else tensors.static
            kept[_join(module_name, name)] = Place(module, name)
    if compressed is None:
        _check_included(include, uses, tensors)
    return tensors


def check_values(model: nn.Module) -> None:
    """Refuse a model that holds NaN or infinity before any step, or parameters without a shape.

    :param model: any.
    :raises NonFiniteError: naming a parameter.
    :raises UnsupportedModuleError: naming a layer whose parameters have no shape yet.
    """
    for module_name, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and is_lazy(parameter):
                _check_tensor(f"{module_name} ({type(module).__name__})", name, parameter, True)
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and not all_finite(parameter):
            raise NonFiniteError(
                f"{name} of the model holds NaN or infinite values before any training: build or "
                "load it again."
            )


def padding_rows(tensors: Tensors) -> dict[Place, Tensor]:
    """Rows of compressed embeddings that stand for padding, and are zero for every task.

    A store knows nothing of rows: one that composes a weight from factors would fill them.

    :param tensors: of a model.
    :return: by place, the index of its row, (1,) on the CPU; without rows that are not zero, as a
        pretrained one may be, and without tied weights, whose other use trains the row.
    """
    rows, tied = {}, {place for place, _ in tensors.aliases}
    for place in tensors.shared.values():
        if place in tied:
            continue
        index = getattr(place.module, "padding_idx", None)
        if index is not None and not bool(place.tensor[index].any()):
            rows[place] = torch.tensor([index % len(place.tensor)], device="cpu")
    return rows


def _uses(modules: dict[str, nn.Module]) -> dict[int, list[tuple[str, Place]]]:
    """Where each parameter is read: names and places, by its id; several if it is tied."""
    uses: dict[int, list[tuple[str, Place]]] = {}
    for module_name, module in modules.items():
        # not named_parameters(), which hides a parameter's second name
        for name, parameter in module._parameters.items():
            if parameter is not None:
                use = _join(module_name, name), Place(module, name)
                uses.setdefault(id(parameter), []).append(use)
    return uses


def _check_included(
    include: Sequence[str], uses: dict[int, list[tuple[str, Place]]], tensors: Tensors
) -> None:
    first_of = {name: tied[0][0] for tied in uses.values() for name, _ in tied}
    ignored = sorted(name for name in include if first_of[name] not in tensors.shared)
    if ignored:
        raise UnsupportedModuleError(
            f"include= names {ignored[0]!r}, which cannot be compressed: it is the head's, frozen, "
            "or inside an excluded module. Leave it out."
        )


def _is_weight(module: nn.Module, name: str) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return name in _ATTENTION_WEIGHTS
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return name.startswith("weight_")
    if name != "weight":
        return False
    kinds = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__)
    return isinstance(module, _WEIGHTED) or any(kind in _WEIGHTED_ELSEWHERE for kind in kinds)


def _check_supported(name: str, module: nn.Module, is_head: bool, excluded: bool) -> None:
    label = f"{name or 'the model'} ({type(module).__name__})"
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModuleError(
            f"{label} is compiled and cannot compute with another task's weights: convert the "
            "model before torch.jit.script or torch.jit.trace."
        )
    for key, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            persistent = key not in module._non_persistent_buffers_set
            _check_tensor(label, key, tensor, persistent)
    reparametrised = parametrize.is_parametrized(module) or any(
        isinstance(hook, COMPUTING_WEIGHTS) for hook in module._forward_pre_hooks.values()
    )
    what = "computes its weight from other parameters (weight norm, spectral norm, pruning)"
    if reparametrised and is_head:
        raise UnsupportedModuleError(
            f"{label} is the head, of which every task has a new one, and it {what}: remove that, "
            "or name another layer with head=."
        )
    if reparametrised and not excluded:
        raise UnsupportedModuleError(
            f"{label} {what}, which is not supported: remove that, or keep it out of compression "
            f"with exclude=({name!r},): every task gets its own copy."
        )


def _check_tensor(label: str, key: str, tensor: Tensor, persistent: bool) -> None:
    """Refuse a tensor that no archive could hold."""
    if is_lazy(tensor):
        raise UnsupportedModuleError(
            f"{label} has no shape yet: run one batch through the model before the conversion."
        )
    if tensor.is_meta:
        raise UnsupportedModuleError(
            f"{label} has no values, its {key!r} is on the device 'meta': build the model on a "
            "real one, or move it there with to_empty(device='cpu') and load its values first."
        )
    if tensor.is_complex():
        raise UnsupportedModuleError(
            f"{label} has complex numbers, which cannot be stored: keep them as real ones with "
            "torch.view_as_real."
        )
    if not persistent:
        return  # not in an archive; a builder makes it
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise UnsupportedModuleError(
            f"{label} keeps {key!r} as a {tensor.layout} tensor, which cannot be stored: keep it "
            "dense, or register it with persistent=False and build it in the constructor."
        )
    if tensor.dtype not in _STORED_TYPES:
        raise UnsupportedModuleError(
            f"{label} keeps {key!r} as {tensor.dtype}, which cannot be stored: convert it to one "
            "of the usual types, such as float32 or int64, or register it with persistent=False "
            "and build it in the constructor."
        )


def _tied_head(names: Sequence[str]) -> UnsupportedModuleError:
    head = _parent(names[-1])
    return UnsupportedModuleError(
        f"{' and '.join(names)} are one tied parameter, and {head!r} is the head, of which every "
        f"task has one of its own: untie it, model.{head} = copy.deepcopy(model.{head}), or name "
        "another layer with head=."
    )


def _check_names(argument: str, names: Iterable[str], known: dict[str, Any]) -> None:
    if isinstance(names, str):
        raise UnsupportedModuleError(
            f"{argument}={names!r} must be a list of names: give {argument}=({names!r},)."
        )
    for name in names:
        if not name:
            raise UnsupportedModuleError(
                f"{argument}= names the model itself, of which nothing would be compressed: name "
                "modules inside it, and put parameters and buffers of its own into one."
            )
        if name not in known:
            raise UnsupportedModuleError(
                f"{argument}= names {name!r}, which the model does not have{nearest(name, known)}."
            )


def _is_excluded(module_name: str, exclude: Sequence[str]) -> bool:
    return any(_is_within(module_name, name) for name in exclude)


def _is_within(name: str, ancestor: str) -> bool:
    return name == ancestor or ancestor == "" or name.startswith(ancestor + ".")


def _join(module_name: str, name: str) -> str:
    return f"{module_name}.{name}" if module_name else name


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def store_key(name: str) -> str:
    """A weight's name as a key of a ModuleDict, where no dots may be and some words are taken.

    :param name: dotted name.

    >>> store_key("body.0.weight")
    'body/0/weight'
    """
    key = name.replace("%", "%25").replace("/", "%2F").replace(".", "/")
    return f"{key}/" if hasattr(nn.ModuleDict, key) else key
