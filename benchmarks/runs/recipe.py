"""The hyper-parameters of each strategy on each stream, read from ``recipes/*.yaml`` and checked.

``recipes/wsn.yaml`` belongs to the strategy ``wsn``. All its keys are optional::

    like: cacl                  # start from another strategy's recipe
    default:                    # hyper-parameters on every stream,
      density: 0.5
      post_prune_epochs: {part_of_epochs: 0.2}
    streams:                    # and what differs on some
      permuted_mnist:
        density: 0.3
        optimizer: {name: sgd, lr: 0.01, momentum: 0.9, weight_decay: 1.0e-4}
    search:                     # what ``benchmarks.tune`` tries,
      density: {low: 0.1, high: 0.9}
      optimizer.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
      bits: {choices: [2, 4, 8]}
    tuned:                      # and what it has been tuned on
      permuted_mnist: 20 trials on held-out data of the first 3 tasks, seed 0

A strategy takes the hyper-parameters that its registry entry knows. Three forms stand for numbers
that depend on the run: :class:`PartOfEpochs`, :class:`AllEpochsBut` and :class:`Shares`. Any
strategy takes an ``optimizer`` as well, see :class:`~benchmarks.runs.settings.OptimizerChoice`;
where it says nothing it is Adam at the learning rate of the stream's budget.

A density may also be ``{drawn_from: [0.2, 0.3]}`` or ``{searched_in: [0.2, 0.3]}``, which stand for
a :class:`~avalanche_compress.DensityRange` and a :class:`~avalanche_compress.DensitySearch`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)
from pydantic import create_model as create_schema

from avalanche_compress import DensityRange, DensitySearch
from benchmarks.data.streams import STREAMS, Budget, nearest
from benchmarks.runs.learners import Learner
from benchmarks.runs.settings import OPTIMIZERS, OptimizerChoice, RunSettings
from benchmarks.runs.strategies import STRATEGIES

FOLDER = Path(__file__).parent.parent / "recipes"

Arguments = dict[str, Any]
Changes = Mapping[str, Any]
"""Other values than a recipe's, by names as of :func:`search_space`."""

Part = Annotated[float, Field(strict=True, ge=0, le=1)]
Amount = Annotated[float, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=0)]
Bits = Annotated[int, Field(strict=True, ge=1, le=16)]


class RecipeError(ValueError):
    """A recipe cannot be used; the message names the file, the key and what to do."""


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PartOfEpochs(_Form):
    """``{part_of_epochs: 0.2}``: that part of the epochs of a task, rounded down.

    >>> PartOfEpochs(part_of_epochs=0.2).resolve(epochs=14, tasks=5)
    2
    """

    part_of_epochs: Part

    def resolve(self, epochs: int, tasks: int) -> int:
        """The epochs that are meant."""
        return int(Fraction(str(self.part_of_epochs)) * epochs)


class AllEpochsBut(_Form):
    """``{all_epochs_but: 0.2}``: the epochs without that part of them, which is at least one.

    >>> AllEpochsBut(all_epochs_but=0.2).resolve(epochs=14, tasks=5)
    12
    """

    all_epochs_but: Part

    def resolve(self, epochs: int, tasks: int) -> int:
        """The epochs that are meant."""
        return epochs - max(1, int(Fraction(str(self.all_epochs_but)) * epochs))


_Pair = Annotated[list[Amount], Field(min_length=2, max_length=2)]


class Shares(_Form):
    """``{shares: [0.5, 0.9]}``: what each task prunes of the weights it finds free.

    The tasks' shares of all weights grow evenly from the first to the last one's, which are given
    in units of ``1 / tasks``: early tasks choose from many weights, later ones have to compute
    together with what is frozen.

    >>> Shares(shares=[1.0, 1.0]).resolve(epochs=20, tasks=4)
    [0.75, 0.6666666666666667, 0.5, 0.0]
    """

    shares: _Pair

    def resolve(self, epochs: int, tasks: int) -> list[float]:
        """What is pruned, by position of the task."""
        first, last = self.shares
        step = (last - first) / max(1, tasks - 1)
        kept = [(first + step * task) / tasks for task in range(tasks)]
        free = [1.0 - sum(kept[:task]) for task in range(tasks)]
        return [max(0.0, 1.0 - share / left) for share, left in zip(kept, free)]


class DrawnFrom(_Form):
    """``{drawn_from: [0.2, 0.3]}``: each layer of each task draws its density.

    >>> DrawnFrom(drawn_from=[0.2, 0.3]).resolve(epochs=20, tasks=5)
    DensityRange(low=0.2, high=0.3)
    """

    drawn_from: _Pair

    def resolve(self, epochs: int, tasks: int) -> DensityRange:
        """The densities that are meant."""
        low, high = self.drawn_from
        return DensityRange(low, high)


class SearchedIn(_Form):
    """``{searched_in: [0.2, 0.3]}``: of several draws of all layers' densities the best.

    >>> SearchedIn(searched_in=[0.2, 0.3]).resolve(epochs=20, tasks=5)
    DensitySearch(low=0.2, high=0.3, candidates=8)
    """

    searched_in: _Pair

    def resolve(self, epochs: int, tasks: int) -> DensitySearch:
        """The densities that are meant."""
        low, high = self.searched_in
        return DensitySearch(low, high)


Fractions = Part | list[Part] | Shares | dict[str, Part | list[Part] | Shares]
Density = Fractions | DrawnFrom | SearchedIn
Epochs = Count | PartOfEpochs | AllEpochsBut

VALUES: dict[str, Any] = {
    "alpha": Amount,
    "beta": Amount,
    "bits": Bits | Literal["auto"] | None,
    "codebook_finetune_epochs": Count,
    "decay_factor": Part | None,
    "density": Density,
    "energy": Part,
    "ewc_lambda": Amount,
    "growth_bound": Amount | None,
    "lambda_orth": Amount,
    "lambda_sparse": Amount,
    "lambda_reg": Amount,
    "lr": Annotated[float, Field(strict=True, gt=0)],
    "max_bits": Bits,
    "memory": Count,
    "memory_batch": Count | None,
    "momentum": Part,
    "name": Literal[tuple(OPTIMIZERS)],
    "post_prune_epochs": Epochs,
    "private_bits": Bits | None,
    "prune_fraction": Part,
    "prune_proportion": Fractions,
    "prune_rounds": Count,
    "prune_tolerance": Amount,
    "rank": Annotated[int, Field(strict=True, ge=1)] | Part | Literal["full"],
    "residual": Amount,
    "sample_size": Count,
    "scale_center": Amount,
    "si_lambda": Amount,
    "similarity_threshold": Part,
    "temperature": Amount,
    "tolerance": Amount,
    "validation_fraction": Part,
    "warmup_epochs": Epochs | Part,
    "weight_decay": Amount,
}
"""What a hyper-parameter of this name may be; one that is not listed is of its default's type."""

_PARTS = ("default", "streams", "search", "tuned")

_TYPES = {bool: StrictBool, str: StrictStr, float: Amount, int: Count}


def arguments_of(strategy: str, stream: str) -> Arguments:
    """The hyper-parameters of a strategy on a stream, with the forms as they are written.

    :param strategy: name in the registry; without a file it is built with its own defaults.
    :param stream: name in the registry.
    :raises RecipeError: if the file is no recipe of this strategy.

    >>> arguments_of("wsn", "split_digits")
    {'density': 0.5, 'score_init': 'random', 'post_prune_epochs': {'part_of_epochs': 0.2}}
    """
    path = FOLDER / f"{strategy}.yaml"
    recipe = _read(path) if path.exists() else {}
    if "like" in recipe:
        _check_name(path, "like", "strategy", recipe["like"], STRATEGIES)
    inherited = arguments_of(recipe["like"], stream) if "like" in recipe else {}
    per_stream = recipe.get("streams", {})
    known = {**STRATEGIES[strategy].known(), "optimizer": None}
    for name, given in [("default", recipe.get("default", {})), *per_stream.items()]:
        _check_arguments(path, name, given, known)
        if "optimizer" in given:
            _check_optimizer(path, f"{name}: optimizer", given["optimizer"])
    return {**inherited, **recipe.get("default", {}), **per_stream.get(stream, {})}


_Bound = StrictInt | StrictFloat | None
_Choices = list[Any] | None


class Range(_Form):
    """``{low: 1, high: 100, log: true}`` or ``{choices: [2, 4]}``: the values that are tried.

    :param low: least.
    :param high: greatest.
    :param log: whether orders of magnitude are alike, instead of differences.
    :param choices: the values, where they are few.
    """

    low: _Bound = None
    high: _Bound = None
    log: StrictBool = False
    choices: _Choices = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Range:
        bounded = self.low is not None and self.high is not None and self.low < self.high
        if bounded == bool(self.choices) or (self.log and (self.low or 0) <= 0 and bounded):
            raise ValueError("give low < high, above 0 where log is true, or a list of choices")
        return self


_RATES = Range(low=1e-4, high=1e-2, log=True)


def search_space(strategy: str) -> dict[str, Range]:
    """What ``benchmarks.tune`` tries, by hyper-parameter, the optimiser's as ``optimizer.lr``.

    :param strategy: name in the registry.
    :raises RecipeError: if the recipe's ``search`` is none.

    >>> sorted(search_space("replay"))
    ['memory', 'optimizer.lr']
    """
    path = FOLDER / f"{strategy}.yaml"
    recipe = _read(path) if path.exists() else {}
    inherited = search_space(recipe["like"]) if "like" in recipe else {"optimizer.lr": _RATES}
    optimizer = [f"optimizer.{field.name}" for field in fields(OptimizerChoice)]
    known = [*STRATEGIES[strategy].known(), *optimizer]
    found = {}
    for name, given in recipe.get("search", {}).items():
        _check_name(path, "search", "hyper-parameter", name, known)
        try:
            found[name] = Range(**given)
        except (TypeError, ValidationError) as error:
            raise RecipeError(f"{path}: search: {name}: {given!r} is no range: {error}.") from error
    return {**inherited, **found}


def resolve(arguments: Arguments, epochs: int, tasks: int) -> Arguments:
    """Put numbers in the place of the forms.

    :param arguments: as :func:`arguments_of` returns them.
    :param epochs: epochs per task.
    :param tasks: tasks of the stream.

    >>> resolve({"density": 0.5, "post_prune_epochs": {"part_of_epochs": 0.2}}, 20, 5)
    {'density': 0.5, 'post_prune_epochs': 4}
    """
    return {name: _resolved(value, epochs, tasks) for name, value in arguments.items()}


def hyper_parameters(
    strategy: str,
    stream: str,
    budget: Budget,
    tasks: int,
    changes: Changes | None = None,
) -> Arguments:
    """What a run is configured with: numbers instead of forms, and its optimiser spelled out.

    :param strategy: name in the registry.
    :param stream: name in the registry.
    :param budget: has the epochs, and the learning rate unless the recipe has its own.
    :param tasks: tasks of the stream.
    :param changes: other values than the recipe's, by names as of :func:`search_space`.
    :raises RecipeError: if there is something wrong with the recipe.

    >>> hyper_parameters("replay", "split_digits", STREAMS["split_digits"].budget, 5)
    {'memory': 500, 'optimizer': {'name': 'adam', 'lr': 0.001}}
    """
    arguments = arguments_of(strategy, stream)
    chosen = {"name": OptimizerChoice.name, "lr": budget.lr, **arguments.pop("optimizer", {})}
    for name, value in (changes or {}).items():
        place, _, inner = name.rpartition(".")
        (chosen if place else arguments)[inner] = value
    return {**resolve(arguments, budget.epochs, tasks), "optimizer": chosen}


def build(strategy: str, settings: RunSettings, changes: Changes | None = None) -> Learner:
    """Make a strategy as its recipe says.

    :param strategy: name in the registry.
    :param settings: of the run; the recipe adds the optimiser, the budget what lowers its rate.
    :param changes: other values than the recipe's, by names as of :func:`search_space`.
    :raises RecipeError: if there is something wrong with its recipe.
    """
    stream, budget = settings.stream, settings.budget
    arguments = hyper_parameters(strategy, stream.name, budget, len(stream.tasks), changes)
    settings = replace(settings, optimizer_choice=OptimizerChoice(**arguments.pop("optimizer")))
    settings = replace(settings, plugins=[*settings.plugins, *settings.decay()])
    return STRATEGIES[strategy].build(settings, **arguments)


def variant_of(changes: Changes) -> str:
    """What names a recipe with other values.

    :param changes: these values.

    >>> variant_of({"sharing": "none", "density": {"drawn_from": [0.2, 0.3]}}), variant_of({})
    ('sharing none, density drawn_from 0.2 0.3', '')
    """
    return ", ".join(f"{name} {_spoken(value)}" for name, value in changes.items())


def _spoken(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_spoken(inner)}" for name, inner in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def fingerprint(
    strategy: str,
    stream: str,
    backbone: str,
    budget: Budget,
    device: str,
    changes: Changes | None = None,
) -> str:
    """Twelve hexadecimal digits that change with whatever a run's numbers come from.

    :param strategy: name in the registry; its hyper-parameters count, its recipe's wording does
        not.
    :param stream: name in the registry.
    :param backbone: that it is run with.
    :param budget: what is spent on a task.
    :param device: where it is computed.
    :param changes: other values than the recipe's.
    """
    content: dict[str, Any] = {
        "arguments": arguments_of(strategy, stream),
        "backbone": backbone,
        "budget": asdict(budget),
        "device": device,
    }
    if changes:
        content["changes"] = dict(changes)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _read(path: Path) -> dict[str, Any]:
    """A recipe's parts, without a look at the hyper-parameters."""
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise RecipeError(f"{path} has to map like, default and streams to what they are.")
    for key in recipe:
        _check_name(path, "the top", "key", key, ("like", *_PARTS))
    for key in _PARTS:
        value = recipe.get(key, {})
        if not isinstance(value, dict):
            raise RecipeError(f"{path}: {key} has to map names to values, but is {value!r}.")
    for key in ("streams", "tuned"):
        for stream in recipe.get(key, {}):
            _check_name(path, key, "stream", stream, STREAMS)
    return recipe


def _check_arguments(path: Path, where: str, given: Any, known: Mapping[str, Any]) -> None:
    if not isinstance(given, dict):
        raise RecipeError(f"{path}: {where} has to map names to values, but is {given!r}.")
    for name in given:
        _check_name(path, where, "hyper-parameter", name, known)
    kinds: dict[str, Any] = {
        name: (VALUES.get(name, _TYPES.get(type(default), Any)), default)
        for name, default in known.items()
    }
    try:
        create_schema(path.stem, **kinds)(**given)
    except ValidationError as error:
        # of a union every branch complains; the one that got furthest is the one that was meant
        first = max(error.errors(), key=lambda problem: len(problem["loc"]))
        name = first["loc"][0]
        message = f"{first['msg']}, but it is {first['input']!r}"
        raise RecipeError(f"{path}: {where}: {name}: {message}.") from error


def _check_optimizer(path: Path, where: str, given: Any) -> None:
    _check_arguments(path, where, given, {field.name: None for field in fields(OptimizerChoice)})
    name = given.get("name", OptimizerChoice.name)
    if "momentum" in given and name != "sgd":
        raise RecipeError(f"{path}: {where}: momentum is of sgd, but the optimiser is {name}.")


def _check_name(path: Path, where: str, kind: str, name: Any, known: Collection[str]) -> None:
    if name not in known:
        raise RecipeError(
            f"{path}: {where} has the {kind} {name!r}, which is not known; the nearest is "
            f"{nearest(str(name), known)!r}."
        )


def _resolved(value: Any, epochs: int, tasks: int) -> Any:
    if not isinstance(value, dict):
        return value
    for form in (PartOfEpochs, AllEpochsBut, Shares, DrawnFrom, SearchedIn):
        if set(value) == set(form.model_fields):
            return form(**value).resolve(epochs, tasks)
    return {name: _resolved(inner, epochs, tasks) for name, inner in value.items()}
