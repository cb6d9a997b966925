"""Which tensors of a stranger's model are compressed, which every task keeps for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Sequence

import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from avalanche_compress.core.store import Place
from avalanche_compress.errors import UnsupportedModuleError, nearest

_WEIGHTED = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_REPARAMETRISING_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
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
    seen: dict[int, tuple[str, bool]] = {}
    for module_name, module in modules.items():
        excluded = any(_is_within(module_name, name) for name in exclude)
        _check_supported(module_name, module, module_name == head, excluded)
        norm = isinstance(module, nn.modules.batchnorm._NormBase)
        # not named_parameters(), which hides a parameter's second name
        for name, tensor in module._parameters.items():
            if tensor is None:
                continue
            full = _join(module_name, name)
            place = Place(module, name)
            first, first_excluded = seen.setdefault(id(tensor), (full, excluded))
            if first != full and not tensor.requires_grad and module_name != head:
                continue  # frozen and known already
            if first != full and not (excluded and first_excluded):
                raise _tied(full, first)
            if module_name == head:
                tensors.private[full] = place
            elif not tensor.requires_grad:
                tensors.static[full] = place
            elif not excluded and (full in include or _is_weight(module, name)):
                tensors.shared[full] = place
            else:
                tensors.private[full] = place
        for name, buffer in module._buffers.items():
            if buffer is None or name in module._non_persistent_buffers_set:
                continue
            if norm and name == "num_batches_tracked":
                continue  # no finished task reads it, and every task counts anew
            own = norm or excluded
            (tensors.private if own else tensors.static)[_join(module_name, name)] = Place(
                module, name
            )
    ignored = sorted(set(include) - set(tensors.shared))
    if ignored:
        raise UnsupportedModuleError(
            f"include= names {ignored[0]!r}, which cannot be compressed: it is the head's, frozen, "
            "or inside an excluded module. Leave it out."
        )
    return tensors


def _is_weight(module: nn.Module, name: str) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return name in _ATTENTION_WEIGHTS
    return isinstance(module, _WEIGHTED) and name == "weight"


def _inside_attention(modules: dict[str, nn.Module], name: str) -> bool:
    return isinstance(modules.get(_parent(name)), nn.MultiheadAttention)


def _check_supported(name: str, module: nn.Module, is_head: bool, excluded: bool) -> None:
    label = f"{name or 'the model'} ({type(module).__name__})"
    both = (*module._parameters.values(), *module._buffers.values())
    own = [tensor for tensor in both if tensor is not None]
    if any(is_lazy(tensor) for tensor in own):
        raise UnsupportedModuleError(
            f"{label} has no shape yet: run one batch through the model before the conversion."
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModuleError(
            f"{label} is compiled and cannot be lent another task's weights: convert the model "
            "before torch.jit.script or torch.jit.trace."
        )
    if any(tensor.is_complex() for tensor in own):
        raise UnsupportedModuleError(
            f"{label} has complex numbers, which cannot be stored: keep them as real ones with "
            "torch.view_as_real."
        )
    reparametrised = parametrize.is_parametrized(module) or any(
        isinstance(hook, _REPARAMETRISING_HOOKS) for hook in module._forward_pre_hooks.values()
    )
    what = "computes its weight from other parameters (weight norm, spectral norm, pruning)"
    if reparametrised and is_head:
        raise UnsupportedModuleError(
            f"{label} is the head, of which every task has a new one, and it {what}: remove that, "
            "or name another layer with head=."
        )
    if excluded:
        return
    advice = f"keep it out of compression with exclude=({name!r},): every task gets its own copy."
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        raise UnsupportedModuleError(f"{label} is recurrent, which is not supported: {advice}")
    if reparametrised:
        raise UnsupportedModuleError(
            f"{label} {what}, which is not supported: remove that, or {advice}"
        )


def _tied(name: str, first: str) -> UnsupportedModuleError:
    return UnsupportedModuleError(
        f"{name} and {first} are one tied parameter, and a weight can be kept per task in one "
        "place only: untie them, or keep both modules out with "
        f"exclude=({_parent(name)!r}, {_parent(first)!r})."
    )


def _check_names(argument: str, names: Iterable[str], known: dict[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise UnsupportedModuleError(
                f"{argument}= names {name!r}, which the model does not have{nearest(name, known)}."
            )


def _is_within(name: str, ancestor: str) -> bool:
    return name == ancestor or ancestor == "" or name.startswith(ancestor + ".")


def _join(module_name: str, name: str) -> str:
    return f"{module_name}.{name}" if module_name else name


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
