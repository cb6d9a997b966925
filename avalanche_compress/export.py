"""A finished task as a file that needs no part of this package: ONNX, or a program of torch's."""

from __future__ import annotations

import inspect
import io
import math
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from avalanche_compress.core.batches import Caller, logits_of, mapped, moved_to, rows_of, size_of
from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.errors import ExportError
from avalanche_compress.files import AnyPath, path_of, write_atomically

NEEDED_FOR_ONNX = ("onnx", "onnxscript", "onnxruntime")
"""Packages of the extra ``export``."""
AGREEMENT = 0.5
"""This part of a type's digits must agree with torch's: other kernels add up in another order
(3e-4 of the largest logit in float32; up to 1e-5 was seen on the models of docs/models.md)."""

Answer = Callable[[Any], Tensor]


def export_task(
    network: TaskNetwork,
    task: int,
    path: AnyPath,
    example: Any,
    *,
    form: str = "dense",
    any_batch_size: bool = True,
) -> int:
    """Write a finished task as a file that other programs run: ONNX, or ``torch.export``'s.

    The file maps the model's inputs to ``logits`` (N, C_t), a column for each class of the task in
    ascending order of class number (:meth:`TaskNetwork.classes_of`). It is run before it is
    written, by onnxruntime or by torch, on the example and on one sample of it, and must answer as
    the task does up to rounding.

    :param network: with finished tasks.
    :param task: its label.
    :param path: where; a name that ends in ``.onnx`` makes an ONNX model, which needs the extra
        ``avalanche-compress[export]``, one in ``.pt2`` a program for ``torch.export.load``. Written
        by way of a temporary file, as by :func:`save_archive`.
    :param example: inputs of a few samples, as the network takes them; the file's inputs have their
        names, types and sizes, except for the number of samples.
    :param form: how layers of few terms compute, as of :meth:`TaskNetwork.materialise`.
    :param any_batch_size: False for a file that takes just as many samples as the example has,
        which is what a model needs whose forward pass counts them.
    :return: bytes written.
    :raises ExportError: if the path ends otherwise, a package is missing, the model's forward pass
        cannot be traced or has no counterpart in ONNX, or the file answers otherwise than the task;
        nothing is written then.
    :raises TaskStateError: if the task is not finished, or there is no such form.
    :raises TrainingDataError: if the model does not take one of several inputs by name.
    :raises OSError: naming the path, if it cannot be written.

    >>> import tempfile
    >>> network = TaskNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    >>> network.open(0, classes=[0, 1])
    >>> network.commit()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = export_task(network, 0, f"{folder}/task.pt2", torch.randn(3, 4))
    ...     program = torch.export.load(f"{folder}/task.pt2").module()
    >>> program(torch.randn(5, 4)).shape
    torch.Size([5, 2])
    """
    suffix = path_of(path).suffix
    if suffix not in (".onnx", ".pt2"):
        raise ExportError(
            f"{path_of(path).name!r} ends neither in '.onnx' nor in '.pt2': name the file so, for "
            "an ONNX model or a program of torch.export."
        )
    _check_packages(suffix)
    model = Exported(network.materialise(task, form).cpu(), task, moved_to(example, "cpu"))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about its own exporter
        program = _traced(model, any_batch_size)
        data, answer = (_onnx if suffix == ".onnx" else _pt2)(model, program)
        for count in (size_of(model.example), *([1] if any_batch_size else [])):
            _check_answer(model, answer, rows_of(model.example, torch.arange(count)))
    return write_atomically(path, data)


class Exported(nn.Module):
    """A task's model that returns logits, and whose arguments have the names of its inputs.

    :param plain: the model.
    :param task: that it is of.
    :param example: its inputs; one sample becomes two, since torch takes a size of 1 for a
        constant.
    """

    def __init__(self, plain: nn.Module, task: int, example: Any):
        super().__init__()
        self.model = getattr(plain, "_orig_mod", plain)  # of a compiled one, what was compiled
        self.arguments = Caller(self.model).arguments
        self._others = (task,) if isinstance(self.model, MultiTaskModule) else ()
        if isinstance(example, Mapping):
            example = dict(example)  # torch.export knows no other
        one = size_of(example) == 1
        self.example = rows_of(example, torch.zeros(2, dtype=torch.int64)) if one else example
        positional, by_name = self.arguments(self.example)
        names = [*inspect.signature(self.model.forward).parameters][: len(positional)]
        self.names = [*names, *by_name]
        # in the instance: torch writes a check of the number of samples by the arguments' names
        self.__dict__["forward"] = self._with_names()

    def _with_names(self) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            return logits_of(self.model(*args, *self._others, **kwargs))

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind) for name in self.names]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return forward


def _check_packages(suffix: str) -> None:
    dimension: Any = torch.export.Dim
    if not hasattr(dimension, "DYNAMIC"):
        raise ExportError(
            f"torch {torch.__version__} exports no such models: install 2.6 or newer."
        )
    missing = [name for name in NEEDED_FOR_ONNX if suffix == ".onnx" and not find_spec(name)]
    if missing:
        raise ExportError(
            f"an ONNX model is written and checked with {missing}, which is not installed: "
            "pip install 'avalanche-compress[export]', or name the file task.pt2."
        )


def _traced(model: Exported, any_batch_size: bool) -> torch.export.ExportedProgram:
    """The model as one graph.

    :raises ExportError: if there is none, or only for one batch size where any was asked for.
    """
    positional, by_name = model.arguments(model.example)
    values = dict(zip(model.names, (*positional, *by_name.values())))

    def trace(first: Any) -> torch.export.ExportedProgram:
        def free(part: Tensor) -> Any:
            return {0: first}

        shapes = {name: mapped(value, free) for name, value in values.items()}
        return torch.export.export(model, positional, by_name, dynamic_shapes=shapes)

    dimension: Any = torch.export.Dim
    try:
        return trace(dimension.DYNAMIC if any_batch_size else dimension.STATIC)
    except Exception as error:  # of whatever the model does
        if any_batch_size and _succeeds(lambda: trace(dimension.STATIC)):
            raise ExportError(
                f"the forward pass of {type(model.model).__name__} depends on the number of "
                f"samples ({_first_line(error)}): pass any_batch_size=False, and an example of "
                "as many samples as the file is to take."
            ) from error
        raise ExportError(
            f"torch.export cannot trace the forward pass of {type(model.model).__name__} "
            f"({_first_line(error)}): let it depend on no values of tensors, and call nothing "
            "but torch. materialise() gives the task as a plain model."
        ) from error


def _succeeds(function: Callable[[], Any]) -> bool:
    try:
        function()
    except Exception:
        return False
    return True


def _pt2(model: Exported, program: torch.export.ExportedProgram) -> tuple[bytes, Answer]:
    """The program as a file, and as one that answers."""
    program.example_inputs = None  # samples are nobody else's business,
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # nor where the model's code lies on this machine
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()

    def answer(x: Any) -> Tensor:
        positional, by_name = model.arguments(x)
        logits: Tensor = loaded(*positional, **by_name)
        return logits

    return file.getvalue(), answer


def _onnx(model: Exported, program: torch.export.ExportedProgram) -> tuple[bytes, Answer]:
    """The program as an ONNX file, and as onnxruntime answers by it.

    :raises ExportError: if an operation of the program has no counterpart in ONNX.
    """
    import onnxruntime

    positional, by_name = model.arguments(model.example)
    try:
        converted = torch.onnx.export(
            program, positional, kwargs=by_name, output_names=["logits"], dynamo=True, verbose=False
        )
        assert converted is not None  # it is, where no file is named
        for node in converted.model.graph.all_nodes():
            node.metadata_props.clear()  # where the model's code lies on this machine
        data: bytes = converted.model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as error:  # of torch, onnxscript, protobuf or onnxruntime
        raise ExportError(
            f"{type(model.model).__name__} cannot be converted to ONNX ({_first_line(error)}): "
            "name the file task.pt2 for a program of torch.export, which needs no conversion."
        ) from error
    inputs = [entry.name for entry in session.get_inputs()]

    def answer(x: Any) -> Tensor:
        positional, by_name = model.arguments(x)
        tensors = [leaf.numpy() for leaf in tree_leaves((positional, by_name))]
        return torch.from_numpy(session.run(["logits"], dict(zip(inputs, tensors)))[0])

    return data, answer


def _check_answer(model: Exported, answer: Answer, x: Any) -> None:
    """Refuse a file that answers otherwise than the task."""
    positional, by_name = model.arguments(x)
    try:
        expected: Tensor = model(*positional, **by_name)
    except Exception:  # a model that takes no single sample, say; it has taken the example
        return
    try:
        logits = answer(x)
    except Exception as error:  # of onnxruntime, or of the program
        raise ExportError(
            f"the exported file does not run on {size_of(x)} samples ({_first_line(error)}): pass "
            "any_batch_size=False, and an example of as many samples as it is to take."
        ) from error
    allowed = torch.finfo(expected.dtype).eps ** AGREEMENT * float(expected.abs().max())
    gap = float((logits - expected).abs().max()) if logits.shape == expected.shape else math.inf
    if not gap <= allowed:
        raise ExportError(
            f"the exported file answers {size_of(x)} samples otherwise than the task does (logits "
            f"of shape {tuple(logits.shape)} differ by up to {gap:.3g}, {allowed:.3g} is rounding)."
        )


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
