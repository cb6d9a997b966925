"""The ways to keep a layer of the open task: a part of what it has trained, at so many bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from avalanche_compress.codec import ByteWriter, Choice, Float, Values, quantise_steps
from avalanche_compress.core.store import WeightStore

FLOAT_BITS = 32.0
"""Stands for floats."""
_PARTS = (1.0, 0.75, 0.5, 0.35, 0.2, 0.1, 0.04, 0.0)
_BITS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 14.0, 16.0)
_BITS_OF_A_PART = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
"""A part at more bits loses more than a larger part at these."""
_HALVINGS = 8
_FULL = 0.998
"""Part of a budget that is as good as all of it."""


@dataclass(frozen=True)
class Option:
    """One way to keep a layer."""

    part: float
    bits: float
    values: list[Values]
    choice: Choice


class Ladder:
    """The ways to keep a layer of the open task, tried out on copies.

    :param store: the layer's.
    :param curvature: of the loss.
    :param room: bytes that no way may take more than, but those of fewest bits.
    :param most_bits: of a value.
    """

    def __init__(self, store: WeightStore, curvature: float, room: int, most_bits: float):
        self.store = store
        self._curvature = curvature
        self._weight = store.weight().detach().clone()
        self._most_bits = most_bits
        self.bits = [bits for bits in (*_BITS, FLOAT_BITS) if bits <= most_bits]
        self.options: list[Option] = []
        counts: set[int] = set()
        for part in _PARTS:
            trial = self.thinned(part)
            count = sum(values.numel() for values in trial.kept_values())
            if count in counts:
                continue
            counts.add(count)
            for bits in self.bits if part == 1 else _BITS_OF_A_PART:
                option = self.option(trial, part, bits)
                if option.choice.size > room and bits > _BITS[0]:
                    break
                self.options.append(option)

    @property
    def choices(self) -> list[Choice]:
        """Bytes and loss of each of the options."""
        return [option.choice for option in self.options]

    def thinned(self, part: float) -> WeightStore:
        """A copy of the store that keeps a part, on a tensor of its own.

        :param part: 0..1.
        """
        place = self.store.place
        module = nn.Module()
        module.register_parameter(place.name, nn.Parameter(place.tensor.detach().clone()))
        trial = copy.deepcopy(self.store, {id(place.module): module})
        trial.thin(part)
        return trial

    def option(self, trial: WeightStore, part: float, bits: float) -> Option:
        """What is kept of a part at so many bits a value.

        :param trial: that keeps the part; its values are afterwards what they were.
        :param part: 0..1.
        :param bits: of a value; 32 for floats.
        """
        originals = [values.clone() for values in trial.kept_values()]
        most = int(min(self._most_bits, 16))
        values: list[Values] = [
            Float(v) if bits == FLOAT_BITS else quantise_steps(v, bits, most) for v in originals
        ]
        trial.keep_values(values)
        writer = ByteWriter()
        writer.write_bytes(trial.encode())
        change = (trial.weight() - self._weight).double().square().sum()
        trial.keep_values([Float(v) for v in originals])
        choice = Choice(len(writer.getvalue()), self._curvature * float(change))
        return Option(part, bits, values, choice)


def fill_budget(ladders: Sequence[Ladder], kept: list[Option], room: int, budget: int) -> int:
    """Make one layer after another finer as long as bytes are left.

    :param ladders: of all layers.
    :param kept: of each the option that is taken, which is replaced.
    :param room: bytes for all of them.
    :param budget: of the task.
    :return: bytes that are left.
    """
    left = room - sum(option.choice.size for option in kept)
    for layer in sorted(range(len(kept)), key=lambda i: -kept[i].choice.size):
        for finer in (_finer_bits, _larger_part):
            if left > (1 - _FULL) * budget:
                before = kept[layer].choice.size
                kept[layer] = finer(ladders[layer], kept[layer], before + left)
                left -= kept[layer].choice.size - before
    return left


def _finer_bits(ladder: Ladder, option: Option, room: int) -> Option:
    above = [bits for bits in ladder.bits if bits > option.bits]
    if not above or above[0] == FLOAT_BITS:
        return option
    trial = ladder.thinned(option.part)
    return _largest_between(
        lambda bits: ladder.option(trial, option.part, bits), option, option.bits, above[0], room
    )


def _larger_part(ladder: Ladder, option: Option, room: int) -> Option:
    above = [part for part in _PARTS if part > option.part]
    if not above:
        return option
    return _largest_between(
        lambda part: ladder.option(ladder.thinned(part), part, option.bits),
        option,
        option.part,
        above[-1],
        room,
    )


def _largest_between(
    make: Callable[[float], Option], option: Option, low: float, high: float, room: int
) -> Option:
    """The largest option that fits, between one that does and what is too much."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        tried = make(middle)
        if tried.choice.size > room:
            high = middle
            continue
        low = middle
        if tried.choice.size > option.choice.size:
            option = tried
    return option
