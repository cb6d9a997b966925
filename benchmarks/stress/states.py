"""Damaged training states: refused for the one before, or a training that goes on without harm."""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor

from avalanche_compress import (
    CompressError,
    TrainingStateError,
    TrainingStatePlugin,
    load_training_state,
)
from avalanche_compress.archive import archive_bytes
from benchmarks.stress.cases import EXACT, OTHER, REFUSED, Case, Target
from benchmarks.stress.examples import EXAMPLES, build_model, stream
from benchmarks.stress.mutations import ACCIDENTS
from benchmarks.stress.trees import change

HEADER = struct.Struct("<8sIQQ32s")
OLDER, NEWEST = (1, 0), (1, 1)
"""Positions of the two states of a run that was stopped in its second task."""


def mutate(name: str, random: Random, data: bytes, other: bytes) -> bytes:
    """A state that is damaged, or changed and sealed again.

    :param name: one of :data:`MUTATIONS`.
    :param random: decides where.
    :param data: a valid file.
    :param other: another one.
    """
    if name in ACCIDENTS:
        return ACCIDENTS[name](random, data, other)
    structure, tensors = _parts(data)
    their_structure, their_tensors = _parts(other)
    if name == "sealed: values":
        text = json.dumps(change(random, json.loads(structure))).encode()
        return _sealed(data, text, tensors)
    if name == "sealed: tensors":
        return _sealed(data, structure, _with_other_tensors(random, tensors))
    if name == "sealed: parts of another":
        return _sealed(
            data, *random.choice([(structure, their_tensors), (their_structure, tensors)])
        )
    damage = random.choice(list(ACCIDENTS.values()))
    if random.random() < 0.5:
        return _sealed(data, damage(random, structure, their_structure), tensors)
    return _sealed(data, structure, damage(random, tensors, their_tensors))


SEALED = ["sealed: values", "sealed: tensors", "sealed: parts of another", "sealed: bytes"]
MUTATIONS = [*ACCIDENTS, *SEALED * 4]  # the checksum stops the others


def _parts(data: bytes) -> tuple[bytes, bytes]:
    _, _, length, _, _ = HEADER.unpack_from(data)
    return data[HEADER.size :][:length], data[HEADER.size + length :]


def _sealed(data: bytes, structure: bytes, tensors: bytes) -> bytes:
    magic, version, *_ = HEADER.unpack_from(data)
    digest = hashlib.sha256(structure + tensors).digest()
    head = HEADER.pack(magic, version, len(structure), len(tensors), digest)
    return head + structure + tensors


_CHANGED: list[Callable[[Tensor], Tensor]] = [
    torch.zeros_like,
    lambda tensor: tensor.flatten(),
    lambda tensor: tensor[None],
    lambda tensor: tensor.flatten()[:1],
    lambda tensor: tensor.flatten()[1:],
    lambda tensor: tensor.flatten()[:0],
    lambda tensor: torch.cat([tensor.flatten(), tensor.flatten()]),
    lambda tensor: tensor.double(),
    lambda tensor: tensor.long(),
    lambda tensor: tensor.bool(),
    lambda tensor: -tensor.float(),
    lambda tensor: tensor.float() * torch.inf,
    lambda tensor: torch.full_like(tensor, torch.finfo(torch.float32).max, dtype=torch.float32),
    lambda tensor: torch.bitwise_not(tensor) if not tensor.is_floating_point() else tensor + 1,
    lambda tensor: torch.full_like(tensor, 100),
]


def _with_other_tensors(random: Random, data: bytes) -> bytes:
    tensors = safetensors.torch.load(data)
    for _ in range(random.randint(1, 3)):
        name = random.choice(list(tensors))
        kind = random.randrange(len(_CHANGED) + 2)
        if kind < len(_CHANGED):
            tensors[name] = _CHANGED[kind](tensors[name]).contiguous().clone()
        elif kind == len(_CHANGED):
            other = random.choice(list(tensors))
            tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()
        elif len(tensors) > 1:
            del tensors[name]
    return bytes(safetensors.torch.save(tensors))


# ---------------------------------------------------------------------------- runs


def _strategy(name: str, seed: int) -> Any:
    torch.manual_seed(seed)
    model = build_model(name)
    metrics = accuracy_metrics(epoch=True, experience=True), loss_metrics(epoch=True)
    return EXAMPLES[name](
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.001),
        train_mb_size=15,
        train_epochs=2,
        evaluator=EvaluationPlugin(*metrics, loggers=[]),
    )


class _Copies(TrainingStatePlugin):
    """Keeps what was written, by position."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.states: dict[tuple[int, int], bytes] = {}

    def epoch_boundary(self, strategy: Any) -> None:
        super().epoch_boundary(strategy)
        newest = max(Path(self.folder).glob("*.state"))
        clock = strategy.clock
        self.states[clock.train_exp_counter, clock.train_exp_epochs] = newest.read_bytes()


def _run(name: str) -> tuple[dict[tuple[int, int], bytes], str]:
    """The states of a run, and what it ends with."""
    with tempfile.TemporaryDirectory() as folder:
        strategy, copies = _strategy(name, 0), _Copies(Path(folder))
        strategy.plugins.insert(0, copies)
        for experience in stream(2).train_stream:
            strategy.train(experience)
    return copies.states, _end_of(strategy)


def _end_of(strategy: Any) -> str:
    return hashlib.sha256(archive_bytes(strategy.model)).hexdigest()


def examples() -> dict[str, bytes]:
    """The newest state of a run of each example."""
    return {name: _run(name)[0][NEWEST] for name in EXAMPLES}


def expect(files: dict[str, bytes]) -> dict[str, tuple[bytes, str]]:
    """By name, the state before the newest one, and what the run ends with.

    :param files: by name.
    """
    found = {}
    for name in files:
        states, end = _run(name)
        found[name] = states[OLDER], end
    return found


def outcome(case: Case, expected: Mapping[str, tuple[bytes, str]], folder: Path) -> str:
    """Go on from the newest state of a run, if that can be, to the end.

    :param case: the newest state.
    :param expected: of :func:`expect`.
    :param folder: for the states.
    """
    older, end = expected[case.example]
    (folder / "00000000.state").write_bytes(older)
    (folder / "00000001.state").write_bytes(case.data)
    strategy = _strategy(case.example, 1)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            position = load_training_state(strategy, folder)
    except TrainingStateError as error:
        return REFUSED if str(folder) in str(error) else f"an error that names no file: {error}"
    if position == OLDER and any(str(folder) in str(warning.message) for warning in said):
        return REFUSED
    try:
        for experience in stream(2).train_stream[position.experience :]:
            strategy.train(experience)
        if _end_of(strategy) == end:
            return EXACT
    except CompressError:
        return REFUSED  # by a training that goes on from numbers that lead nowhere
    return OTHER if case.mutation.startswith("sealed") else "silently another training"


STATES = Target("states", MUTATIONS, mutate, examples, expect, outcome)
