"""What all tasks share: frozen parameters and constant buffers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from avalanche_compress.core.checks import for_each_task, state_of
from avalanche_compress.core.store import Place
from avalanche_compress.core.structure import fingerprint
from avalanche_compress.errors import TaskStateError


class StaticTensors:
    """What all tasks share and no training changes: frozen parameters and constant buffers.

    :param places: where they are, by their dotted names in the model.
    """

    def __init__(self, places: Mapping[str, Place]):
        self.places = dict(places)
        self.marks: dict[str, int] = {}
        self.remember()

    def tensors(self) -> dict[str, Tensor]:
        """They, by name."""
        return {name: place.tensor for name, place in self.places.items()}

    def remember(self) -> None:
        """Take them as they are for what must not change from here on."""
        self.marks = {name: fingerprint(tensor) for name, tensor in self.tensors().items()}
        self._states = {name: state_of(tensor) for name, tensor in self.tensors().items()}

    def check_frozen(self) -> None:
        """Refuse to train what was frozen when the model was converted.

        :raises TaskStateError: naming a parameter that requires gradients now.
        """
        for name, place in self.places.items():
            if place.tensor.requires_grad:
                raise TaskStateError(
                    f"{name} was frozen when the model was converted, so that all tasks share it, "
                    "and now requires gradients: freeze it again, or build the model anew, give it "
                    "to the strategy while it may be trained, and freeze it afterwards."
                )

    def check(self, task: int | None) -> None:
        """Refuse to go on if one has changed.

        :param task: that was trained meanwhile.
        :raises TaskStateError: naming it.
        """
        for name in self.changed():
            raise TaskStateError(
                f"{name} changed while task {task} was trained, but all tasks share it: "
                f"{for_each_task([name])}."
            )

    def changed(self, *, noticeably: bool = False) -> list[str]:
        """Names of those that are not as they were.

        :param noticeably: whether only those are looked at that torch says were written into.
        """
        return [
            name
            for name, mark in self.marks.items()
            if not (noticeably and state_of(self.places[name].tensor) == self._states[name])
            and fingerprint(self.places[name].tensor) != mark
        ]
