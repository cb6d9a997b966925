"""The contract between a network and the store behind each of its weights."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avalanche_compress.codec import (
    ByteReader,
    CorruptStreamError,
    LowRankWeight,
    Values,
    all_finite,
    bytes_tensor,
)
from avalanche_compress.errors import NonFiniteError, TaskStateError

_TRIAL = -(1 << 70)
"""No archive has a task of this label."""


class Place(NamedTuple):
    """Where a module reads a tensor: ``module.name``, a Parameter or a buffer of its own."""

    module: nn.Module
    name: str

    @property
    def tensor(self) -> Tensor:
        """The tensor that the module itself owns (what the task in training changes)."""
        parameter = self.module._parameters.get(self.name)
        buffer = self.module._buffers.get(self.name)
        tensor = buffer if parameter is None else parameter
        assert tensor is not None
        return tensor


class Store(nn.Module, ABC):
    """Keeps what every finished task needs as the bytes that an archive will hold.

    :attr:`sections` maps a task's label to its bytes, in order of learning. Committing a task
    and loading it from a file take one road, encode then decode, so what is evaluated after a
    commit is what a file gives back, bit for bit.

    A section of an archive is taken as it is (:meth:`defer`) and read when it is first needed, all
    that depend on it after it. What a store holds besides is the state after the tasks read.

    :param name: dotted name of what is stored, for messages and archives.
    """

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.sections: dict[int, bytes] = {}
        self._taken = 0  # how many of them have been read, from the first on

    @abstractmethod
    def check_commit(self) -> None:
        """Refuse to commit before anything has changed.

        :raises NonFiniteError: if a value to be kept is NaN or infinite.
        """

    @abstractmethod
    def encode(self) -> bytes:
        """The open task as the section of an archive."""

    @abstractmethod
    def decode(self, reader: ByteReader) -> Any:
        """Read a section, which may come from an untrusted file; the store stays as it is.

        :param reader: the section, from its start.
        :return: what :meth:`accept` takes.
        :raises CorruptStreamError: if the section does not fit.
        """

    def recall(self, reader: ByteReader) -> Any:
        """:meth:`decode` of a section that a checksum vouches for, where that can be quicker.

        What no later task depends on may be passed over until this task is used.

        :param reader: the section, from its start.
        :raises CorruptStreamError: if the section does not fit.
        """
        return self.decode(reader)

    @abstractmethod
    def accept(self, task: int, content: Any) -> None:
        """Make ``task`` a finished task; nothing can fail any more.

        :param task: its label.
        :param content: what :meth:`decode` read.
        """

    @abstractmethod
    def stored_values(self, task: int) -> int:
        """How many numbers ``task`` added."""

    def encode_shared(self) -> bytes:
        """What all tasks share, which an archive has once; nothing by default."""
        return b""

    def accept_shared(self, section: bytes) -> None:
        """Take what all tasks share from an archive, before the first task.

        :param section: of :meth:`encode_shared`.
        :raises CorruptStreamError: if it does not fit; then nothing has changed.
        """
        if section:
            raise CorruptStreamError(f"{self.name} shares nothing and {len(section)} bytes are it")

    def check_built(self) -> None:
        """Refuse a model that gives other values than the archive, now read, counts on.

        :raises ArchiveError: if it does.
        """

    def section_of_version_1(self, section: bytes) -> bytes:
        """The section of a task as this release has it, out of an archive of the first format.

        :param section: of the next task in order of learning.
        :raises CorruptStreamError: if it does not fit.
        """
        return section

    def position_of(self, task: int) -> int:
        """How many tasks were finished before a finished one.

        :param task: its label.
        :raises TaskStateError: if it is not finished.
        """
        finished = list(self.sections)
        if task not in self.sections:
            raise TaskStateError(f"task {task} is not finished; finished are {finished}.")
        return finished.index(task)

    def restore(self, task: int, section: bytes) -> None:
        """Make ``task`` a finished task from its section; tasks come in order of learning.

        :param task: its label.
        :param section: what :meth:`encode` gave when it was learned.
        :raises CorruptStreamError: if the section does not fit; then nothing has changed.
        """
        self.read_on()
        with self.reading():
            self._take(task, section, self.decode)
        self.sections[task] = section

    def defer(self, task: int, section: bytes) -> None:
        """Make ``task`` a finished task whose section is read when it is first needed.

        :param task: its label.
        :param section: of an archive whose checksum fits.
        """
        self.sections[task] = section

    def read_on(self, count: int | None = None) -> None:
        """Read sections that were deferred.

        :param count: how many tasks are to have been read, in order of learning; None for all.
        :raises CorruptStreamError: if one does not fit; those before it have been read.
        """
        waiting = list(self.sections.items())[self._taken : count]
        if not waiting:
            return
        with self.reading():
            for task, section in waiting:
                self._take(task, section, self.recall)

    def _take(self, task: int, section: bytes, decode: Callable[[ByteReader], Any]) -> None:
        reader = ByteReader(section)
        with self._damage_named(task):
            content = decode(reader)
            reader.finish()
        self.accept(task, content)
        self._taken += 1

    @contextmanager
    def _damage_named(self, task: int) -> Iterator[None]:
        """Have what is wrong with a section say whose it is.

        :param task: the section's.
        """
        try:
            yield
        except CorruptStreamError as error:
            raise CorruptStreamError(f"{self.name} of task {task} is damaged: {error}") from error

    def _reach(self, task: int) -> int:
        """The position of a finished task that has been read, and all tasks before it too.

        :param task: its label.
        """
        position = self.position_of(task)
        self.read_on(position + 1)
        return position

    def reading(self) -> AbstractContextManager[None]:
        """Surrounds the reading of sections."""
        return nullcontext()

    def verify(self) -> None:
        """Read all finished tasks once more, with all checks; the store stays as it is.

        :raises CorruptStreamError: if a section is not what :meth:`encode` gives.
        """
        copy.deepcopy(self).restore_all(self.sections)

    def get_extra_state(self) -> dict[str, Tensor]:
        """The sections as tensors, so that ``state_dict`` carries the finished tasks."""
        return {str(task): bytes_tensor(section) for task, section in self.sections.items()}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restore the finished tasks from a ``state_dict``, in order.

        :raises CorruptStreamError: if a section does not fit; the tasks are then those from before.
        """
        before, taken = dict(self.sections), self._taken
        try:
            self.restore_all({int(t): data.cpu().numpy().tobytes() for t, data in state.items()})
        except CorruptStreamError:
            self.sections, self._taken = before, taken
            self.keep_first(len(before))
            raise

    def keep_first(self, count: int) -> None:
        """Have no finished tasks but the first ones, whatever was left half done after them.

        :param count: how many.
        """
        sections, taken = list(self.sections.items())[:count], min(self._taken, count)
        self.forget()
        for task, section in sections:
            self.defer(task, section)
        self.read_on(taken)

    def restore_all(self, sections: Mapping[int, bytes]) -> None:
        """Replace all finished tasks.

        :param sections: of each task its label and section, in order of learning.
        :raises CorruptStreamError: if a section does not fit; those before it are then kept.
        """
        self.forget()
        for task, section in sections.items():
            self.restore(task, section)

    def forget(self) -> None:
        """Drop every finished task, before others are loaded."""
        self.sections = {}
        self._taken = 0

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.read_on()
        super()._save_to_state_dict(*args, **kwargs)


class WeightStore(Store):
    """Keeps what all tasks have learned about one weight and hands out the weight of any task.

    The module that reads the weight keeps its own Parameter at :attr:`place`: it is the
    scratch that the task in training changes. What finished tasks use is a buffer in here, so
    no optimiser can reach it.

    The life of a task: :meth:`check_open`, :meth:`open`, training on :meth:`weight`, shaping
    (pruning; :meth:`kept_values` and :meth:`keep_values` for quantisation),
    :meth:`check_commit`, commit (:meth:`encode`, :meth:`restore`), and :meth:`committed` for
    ever after.

    :param place: the module and the name of the parameter that this store stands behind.
    :param name: its dotted name in the model.
    """

    kind: str
    """Name of the kind of store in an archive."""
    reserved_bits: int = 8
    """The most bits a value that the next task may use; it matters where bits are counted."""
    counts_bits: bool = False
    """Whether a code may not be wider than that, because codes of several tasks share a word."""

    def __init__(self, place: Place, name: str = "weight"):
        super().__init__(name)
        self.place = place

    @property
    def scratch(self) -> Tensor:
        """The module's own Parameter, of the weight's shape."""
        return self.place.tensor

    @property
    def shape(self) -> torch.Size:
        """The weight's shape."""
        return self.scratch.shape

    @property
    def free_weights(self) -> int | None:
        """How many weights a new task could train; None if there is no limit."""
        return None

    def config(self) -> dict[str, Any]:
        """Constructor arguments that an archive needs to build this store again."""
        return {}

    @abstractmethod
    def check_open(self, reusable: Sequence[int]) -> None:
        """Refuse a new task before anything has changed.

        :param reusable: finished tasks whose weights the new task may read.
        :raises CapacityExhaustedError: if this weight has no room for one more task.
        """

    @abstractmethod
    def open(self, reusable: Sequence[int]) -> None:
        """Start a task; one that was open and not committed is forgotten.

        :param reusable: finished tasks whose weights the new task may read.
        """

    @abstractmethod
    def weight(self) -> Tensor:
        """The weight of the open task, differentiable in exactly what this task may change."""

    def substitute(self) -> Tensor:
        """What the module computes with while the task is open: :meth:`weight`, or its stand-in."""
        return self.weight()

    def watched(self, weight: Tensor) -> Tensor:
        """What modules read in training for :meth:`substitute`, by which a store may see how.

        :param weight: differentiable, or constant.
        """
        return weight

    @abstractmethod
    def kept_values(self) -> list[Tensor]:
        """The 1-D float tensors that the open task newly keeps, in a fixed order."""

    @abstractmethod
    def kept_gradients(self) -> list[Tensor]:
        """What the last backward pass gave the kept values; aligned with :meth:`kept_values`.

        :return: 1-D float tensors, zeros where no gradient arrived.
        """

    @abstractmethod
    def keep_values(self, values: Sequence[Values]) -> None:
        """Replace the kept values, by floats or by codes whose decoded values are used from now on.

        :param values: one entry for each of :meth:`kept_values`, of its length.
        """

    def thin(self, part: float) -> None:
        """Keep only a part of what the open task newly keeps, where that can be told.

        :param part: of its own weights or terms, those that matter most, 0..1.
        """

    def planned_bytes(self, extent: float, bits: float) -> float:
        """About what the open or next task takes.

        :param extent: how much it keeps, a density or a rank as the method has it; 0 for nothing.
        :param bits: of a value.
        """
        return self.shape.numel() * bits / 8

    @abstractmethod
    def committed(self, task: int) -> Tensor:
        """The weight of a finished task, bit for bit the same at every call.

        :param task: its label.
        :return: a tensor of the weight's shape that needs no gradient.
        """

    def weight_in(self, section: bytes) -> Tensor:
        """The weight that the open task will have by its section; the store stays as it is.

        :param section: what :meth:`encode` gave.
        """
        # the module that the weight belongs to is none of the store's
        trial = copy.deepcopy(self, {id(self.place.module): self.place.module})
        trial.restore(_TRIAL, section)
        return trial.committed(_TRIAL)

    def rank_of(self, task: int) -> int | None:
        """How many terms a finished task added; None where weights are not kept as terms.

        :param task: its label.
        """
        return None

    def density_of(self, task: int) -> float | None:
        """The part of the weight that a finished task computes with, 0..1; None without masks.

        :param task: its label.
        """
        return None

    def low_rank(self, task: int) -> LowRankWeight | None:
        """The weight of a finished task as few terms; None where it is not kept so.

        :param task: its label.
        """
        return None

    @abstractmethod
    def value_bits(self, task: int) -> int:
        """Bits of the numbers that ``task`` added, masks and codebooks not counted."""

    @property
    def shared_bits(self) -> int:
        """Bits of the numbers that all tasks share and that no task's section has."""
        return 0

    def check_commit(self) -> None:
        """Refuse to commit before anything has changed.

        :raises NonFiniteError: if a value that was trained is NaN or infinite, kept or not.
        """
        trained = [self.scratch, *self.parameters(), *self.kept_values()]
        if not all(map(all_finite, trained)):
            raise non_finite(self.name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, parameter in self.named_parameters(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape != parameter.shape:
                # the same Parameter, so that an optimiser still knows it
                parameter.data = parameter.data.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


def non_finite(name: str) -> NonFiniteError:
    """The error for a tensor that must not be kept.

    :param name: its dotted name.
    """
    return NonFiniteError(
        f"{name} holds NaN or infinite values and only finite ones can be kept: train the task "
        "again with a smaller learning rate or gradient clipping."
    )
