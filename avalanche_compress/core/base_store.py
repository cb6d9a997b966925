"""Weights that are small changes of one base, which is frozen for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from avalanche_compress.codec import (
    ByteReader,
    ByteWriter,
    CorruptStreamError,
    Float,
    read_values,
    write_values,
)
from avalanche_compress.core.factor_store import Block, FactorStore, Part
from avalanche_compress.core.store import Place
from avalanche_compress.core.structure import bytes_of
from avalanche_compress.errors import ArchiveError, TaskStateError

BASES = ("first", "given", "external")
_MARK_BYTES = 16


class BaseStore(FactorStore):
    """``W_t`` is a small change of ``W_base``; tasks share nothing else and know nothing of others.

    The base is the weight of the first finished task, or the one that the model was given with.
    Every task starts from it in the scratch. A given base is what all tasks share: an archive has
    it once, and no task's section carries it. An external one is with whoever loads the archive,
    which has a checksum of it alone.

    :param place: the module and the name of its weight.
    :param name: dotted name of the weight in the model.
    :param base: ``"first"``: the weight of the first task; ``"given"``: the weight that the module
        has when the first task is opened, so that the first task changes it like any other;
        ``"external"``: that one, and ``build_model`` gives it again when an archive is loaded, of
        pretrained weights or of a seed.
    :raises TaskStateError: if there is no such base.
    """

    base: Tensor | None
    """The frozen weight, of the weight's shape; None before there is one."""

    def __init__(self, place: Place, name: str = "weight", *, base: str = "first"):
        super().__init__(place, name)
        if base not in BASES:
            raise TaskStateError(f"base={base!r} must be one of {BASES}.")
        self._origin = base
        self._mark = b""  # of an external base, as an archive says
        outputs: int = self.shape[0] if self.shape else 1
        inputs: int = self.shape[1] if len(self.shape) > 1 else 1
        convolution = isinstance(place.module, _ConvNd) and len(self.shape) > 1
        self.groups: int = place.module.groups if convolution else 1  # type: ignore[assignment]
        self.rows, self.columns = outputs // self.groups, inputs
        self.kernel_size = self.scratch.numel() // (outputs * inputs)
        """K, the number of kernel positions."""
        # a buffer, so that it goes with the network to a device; sections or the state hold it
        self.register_buffer("base", None, persistent=False)

    @property
    def base_is_given(self) -> bool:
        """Whether the base is a weight that no task of this network has trained."""
        return self._origin != "first"

    @property
    def trains_base(self) -> bool:
        """Whether the open or next task is the one that becomes the base."""
        return not self.sections and not self.base_is_given

    def config(self) -> dict[str, Any]:
        return {"base": self._origin}

    @torch.no_grad()
    def open(self, reusable: Sequence[int]) -> None:
        super().open(reusable)
        if self.base_is_given and self.base is None:
            self.base = self.scratch.detach().clone()
        if self.base is not None:
            self.scratch.copy_(self.base)

    @torch.no_grad()
    def accept(self, task: int, content: Block) -> None:
        if self._taken == 0 and not self.base_is_given:
            self.base = content.tensors[0].view(self.shape).to(self.scratch)
            content = content._replace(rank=0)
        super().accept(task, content)

    def forget(self) -> None:
        super().forget()
        if not self.base_is_given:
            self.base = None

    @torch.no_grad()
    def committed(self, task: int) -> Tensor:
        position = self.position_of(task)
        self.read_on(1)  # the base
        block = self._block_at(position, self.sections[task])
        if len(block.tensors) == 1:
            return block.tensors[0].view(self.shape)
        return self._compose(*block.tensors)

    def added_values(self, task: int) -> int:
        """Numbers that a finished task has besides the base: none if it is the base.

        :param task: its label.
        """
        return 0 if self._is_base(task) else self.stored_values(task)

    def _is_base(self, task: int) -> bool:
        return self.position_of(task) == 0 and not self.base_is_given

    def _compose(self, *parts: Tensor) -> Tensor:
        """The weight, of the parts that a task keeps."""
        raise NotImplementedError

    def _check_has_base(self, position: int) -> None:
        """Refuse a section that changes a base where none is.

        :param position: of the task in order of learning.
        :raises CorruptStreamError: if the task is the base itself, or a given base is missing.
        """
        if self.base is None or (position == 0 and not self.base_is_given):
            raise CorruptStreamError(
                f"{self.name} of a task that changes a base, and none is there"
            )

    def _frozen_base(self) -> Tensor:
        if self.base is None:
            raise TaskStateError(
                f"{self.name} has no base to change: the first task is to become the base and is "
                "kept as it is. Use base='given' to change the model's own weight."
            )
        return self.base

    @property
    def _dense_part(self) -> Part:
        """A whole weight that the open task keeps."""
        return Part(self.scratch, width=self.columns * self.kernel_size)

    def _by_group(self, weight: Tensor) -> Tensor:
        """A weight as (G, n, m, K)."""
        return weight.detach().reshape(self.groups, self.rows, self.columns, self.kernel_size)

    # ------------------------------------------------------------------ what all tasks share

    @property
    def shared_bits(self) -> int:
        if not self.base_is_given or self.base is None:
            return 0
        if self._origin == "external":
            return 8 * _MARK_BYTES
        return 8 * self.base.element_size() * self.base.numel()

    def encode_shared(self) -> bytes:
        if not self.base_is_given or self.base is None:
            return b""
        if self._origin == "external":
            return _mark_of(self.base)
        writer = ByteWriter()
        write_values(Float(self.base.flatten()), writer)
        return writer.getvalue()

    def accept_shared(self, section: bytes) -> None:
        if not self.base_is_given or not section:
            super().accept_shared(section)
            return
        if self._origin == "external":
            if len(section) != _MARK_BYTES:
                raise CorruptStreamError(f"{self.name} has {len(section)} bytes as its checksum")
            self._mark, self.base = section, self.scratch.detach().clone()
            return
        reader = ByteReader(section)
        values = read_values(reader, self.scratch.numel(), self.scratch.dtype)
        reader.finish()
        self.base = values.decode().view(self.shape).to(self.scratch)

    def check_built(self) -> None:
        if self._mark and self.base is not None and _mark_of(self.base) != self._mark:
            raise ArchiveError(
                f"the archive has tasks that change {self.name} as it was when the first began "
                "(base='external'), and that of build_model() has other values: let it give those, "
                "the same pretrained weights or the same seed, of the same type."
            )

    def set_extra_state(self, state: dict[str, Any]) -> None:
        before = self.base
        if self.base_is_given or not state["finished"]:
            given = state["open"]["base"]  # sections that change it are checked against it
            if given is not None and (not self.base_is_given or given.shape != self.shape):
                raise CorruptStreamError(f"{self.name} has a base that its state cannot have")
            self.base = None if given is None else given.to(self.scratch.device)
        try:
            super().set_extra_state(state)
        except CorruptStreamError:
            self.base = before
            raise

    def _open_state(self) -> dict[str, Any]:
        return {**super()._open_state(), "base": self.base if self.base_is_given else None}

    def section_of_version_1(self, section: bytes) -> bytes:
        """Take the base out of the first task's section, which carried it.

        :param section: of an archive of the first format.
        :raises CorruptStreamError: if it is too short.
        """
        if not self.base_is_given or self.sections:
            return section
        reader, writer = ByteReader(section), ByteWriter()
        base = reader.read_tensor(self.scratch.dtype, (self.scratch.numel(),))
        write_values(Float(base), writer)
        self.accept_shared(writer.getvalue())
        return reader.read_raw(reader.remaining)


def _mark_of(base: Tensor) -> bytes:
    """A checksum of the values."""
    return hashlib.sha256(bytes_of(base)).digest()[:_MARK_BYTES]
