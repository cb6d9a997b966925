"""Options of a strategy that are those of its plugins and its store, documented there."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Required, TypedDict, TypeVar

from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from torch import device as torch_device
from torch import nn
from torch.optim import Optimizer

from avalanche_compress.inference.task_inference import TaskInference
from avalanche_compress.shaping.size_budget import ArchiveBudget

F = TypeVar("F", bound=Callable[..., None])

_SAID_BY_THE_METHOD = {"self", "store", "shaping", "place", "name"}


class StrategyOptions(TypedDict, total=False):
    """Options of every strategy, see :class:`~avalanche_compress.CompressedStrategy`."""

    model: Required[nn.Module]
    optimizer: Required[Optimizer]
    criterion: Any
    head: str | None
    exclude: Sequence[str]
    include: Sequence[str]
    task_inference: str | TaskInference | None
    tensor_data: bool
    estimate_norms: bool
    size_budget: int | ArchiveBudget | None
    train_mb_size: int
    train_epochs: int
    eval_mb_size: int | None
    device: str | torch_device
    plugins: list[SupervisedPlugin] | None
    evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] | None
    eval_every: int
    peval_mode: str


def takes_over(*parts: Callable[..., Any], **defaults: Any) -> Callable[[F], F]:
    """Let a constructor take the options of other classes as its own.

    Its signature then names them, with their defaults and types, for ``help``, editors and recipes.
    The constructor itself is written with ``**options: Unpack[...]`` of a ``TypedDict`` of the same
    names, which type checkers read.

    :param parts: the classes; of options that several have, the first one's default counts.
    :param defaults: that differ from the parts'.

    >>> class Engine:
    ...     def __init__(self, power: int = 3): ...
    >>> class Car:
    ...     @takes_over(Engine)
    ...     def __init__(self, *, doors: int = 4, **options):
    ...         (engine,), rest = split_options(options, Engine)
    ...         print(doors, engine, rest)
    >>> car = Car(power=5)
    4 {'power': 5} {}
    >>> str(inspect.signature(Car))
    "(*, doors: 'int' = 4, power: 'int' = 3)"
    """

    def decorate(init: F) -> F:
        signature = _signature(init, parts, defaults)

        @functools.wraps(init)
        def with_defaults(*arguments: Any, **options: Any) -> None:
            init(*arguments, **{**defaults, **options})

        with_defaults.__signature__ = signature  # type: ignore[attr-defined]
        return with_defaults  # type: ignore[return-value]

    return decorate


def options_of(part: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options of a class by name: what its constructor takes by keyword.

    :param part: a strategy, a plugin or a store.
    """
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(part).parameters.items()
        if parameter.kind in kinds and name not in _SAID_BY_THE_METHOD
    }


def split_options(
    options: Mapping[str, Any], *parts: Callable[..., Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Give each part its options.

    :param options: that were given.
    :param parts: the classes; an option that several have goes to all of them.
    :return: those of each part, and those of none.
    """
    known = [options_of(part) for part in parts]
    shares = [{name: options[name] for name in options if name in names} for names in known]
    rest = {name: options[name] for name in options if not any(name in names for names in known)}
    return shares, rest


def _signature(
    init: Callable[..., Any], parts: Sequence[Callable[..., Any]], defaults: Mapping[str, Any]
) -> inspect.Signature:
    written = inspect.signature(init)
    parameters = {
        name: parameter
        for name, parameter in written.parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    for part in parts:
        for name, parameter in options_of(part).items():
            default = defaults.get(name, parameter.default)
            parameters.setdefault(name, parameter.replace(default=default))
    return written.replace(parameters=list(parameters.values()))
