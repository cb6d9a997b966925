"""Which tensors of a stranger's model are compressed, which every task keeps for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Sequence

from avalanche.models import IncrementalClassifier, MultiHeadClassifier
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from avalanche_compress.errors import UnsupportedModuleError, nearest
from avalanche_compress.stores import Place

_WEIGHTED = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
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


class HeadAdapter(nn.Linear):
    """A linear head that ignores the task label which Avalanche's classifiers are given.

    ``(N, in_features) -> (N, out_features)``

    :param linear: the layer whose parameters it takes over.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__(
            linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta"
        )
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: Tensor, task_labels: Any = None) -> Tensor:
        return super().forward(x)


def replace_avalanche_heads(model: nn.Module) -> None:
    """Put one plain head where Avalanche's growing or multi-head classifiers stand, in place.

    :param model: the model; its own heads per task come from the network instead.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MultiHeadClassifier):
                # not setattr: Avalanche's as_multitask forwards it to the wrapped model
                parent._modules[name] = HeadAdapter(child.classifiers["0"].classifier)
            elif isinstance(child, IncrementalClassifier):
                parent._modules[name] = HeadAdapter(child.classifier)


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


def sort_tensors(
    model: nn.Module, head: str, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Tensors:
    """Decide for every tensor of a model who keeps it.

    :param model: any module.
    :param head: dotted name of the head.
    :param include: parameters to compress although they are none of the usual weights.
    :param exclude: modules whose parameters every task keeps for itself, uncompressed.
    :raises UnsupportedModuleError: for tied weights, recurrent layers and re-parametrised weights
        outside ``exclude``, and for names that the model does not have.
    """
    modules = dict(model.named_modules())
    _check_names("include", include, dict(model.named_parameters()))
    _check_names("exclude", exclude, modules)
    tensors = Tensors({}, {}, {})
    excluded_ids = set()
    seen: dict[int, str] = {}
    for module_name, module in modules.items():
        excluded = any(_is_within(module_name, name) for name in exclude)
        if not excluded:
            _check_supported(module_name, module)
        norm = isinstance(module, nn.modules.batchnorm._NormBase)
        for name, tensor in module.named_parameters(recurse=False):
            full = f"{module_name}.{name}" if module_name else name
            place = Place(module, name)
            if id(tensor) in seen and not (excluded and id(tensor) in excluded_ids):
                raise UnsupportedModuleError(
                    f"{full} and {seen[id(tensor)]} are one tied parameter, and a weight can "
                    "be kept per task in one place only: untie them, or keep both modules "
                    f"out with exclude=({_parent(full)!r}, {_parent(seen[id(tensor)])!r})."
                )
            seen[id(tensor)] = full
            if excluded:
                excluded_ids.add(id(tensor))
            if not tensor.requires_grad:
                tensors.static[full] = place
            elif module_name == head or excluded:
                tensors.private[full] = place
            elif full in include or _is_weight(module, name):
                tensors.shared[full] = place
            else:
                tensors.private[full] = place
        for name, buffer in module.named_buffers(recurse=False):
            full = f"{module_name}.{name}" if module_name else name
            if name in module._non_persistent_buffers_set:
                continue
            own = buffer.is_floating_point() and (norm or excluded)
            (tensors.private if own else tensors.static)[full] = Place(module, name)
    return tensors


def _is_weight(module: nn.Module, name: str) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return name in _ATTENTION_WEIGHTS
    return isinstance(module, _WEIGHTED) and name == "weight"


def _inside_attention(modules: dict[str, nn.Module], name: str) -> bool:
    return isinstance(modules.get(_parent(name)), nn.MultiheadAttention)


def _check_supported(name: str, module: nn.Module) -> None:
    label = f"{name or 'the model'} ({type(module).__name__})"
    advice = f"keep it out of compression with exclude=({name!r},): every task gets its own copy."
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        raise UnsupportedModuleError(f"{label} is recurrent, which is not supported: {advice}")
    reparametrised = parametrize.is_parametrized(module) or any(
        own.endswith(("_g", "_orig")) for own in module._parameters
    )
    if reparametrised:
        raise UnsupportedModuleError(
            f"{label} computes its weight from other parameters (weight norm, spectral norm, "
            f"pruning), which is not supported: remove that, or {advice}"
        )
    if any(isinstance(p, UninitializedParameter) for p in module._parameters.values()):
        raise UnsupportedModuleError(
            f"{label} has no shape yet: run one batch through the model before the conversion."
        )


def _check_names(argument: str, names: Iterable[str], known: dict[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise UnsupportedModuleError(
                f"{argument}= names {name!r}, which the model does not have{nearest(name, known)}."
            )


def _is_within(name: str, ancestor: str) -> bool:
    return name == ancestor or ancestor == "" or name.startswith(ancestor + ".")


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
