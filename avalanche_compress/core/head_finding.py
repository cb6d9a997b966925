"""The part of a network that finds out which of the model's layers give the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from avalanche_compress.core.batches import first_samples, moved_to
from avalanche_compress.core.conversion import Tensors, sort_tensors
from avalanche_compress.core.heads import layers_behind
from avalanche_compress.core.registry import store_of_kind
from avalanche_compress.core.state import NetworkState
from avalanche_compress.core.store import Place, WeightStore
from avalanche_compress.errors import UnsupportedModuleError


class HeadFinding(NetworkState):
    """Sees the heads of a model when it first runs, and keeps those per task.

    Nothing else says which they are: models register layers that only pretraining uses, two heads
    whose answers are averaged, or a convolution.
    """

    options: dict[str, Any]
    _convert: Callable[[Sequence[str], Tensors, Callable[[Place, str], WeightStore]], None]
    _run: Any

    def find_heads_with(self, x: Any) -> None:
        """Take those layers for heads that give the logits of these samples.

        Nothing happens if ``head=`` has named them, or a task is open or finished.

        :param x: inputs of one sample or more.
        :raises UnsupportedModuleError: if none could be a head.
        """
        if self._heads_seen or self.classes or self.open_task is not None:
            return
        found = self._heads_of(x)
        if found is not None:
            self._heads_seen = True
            self.set_heads(found)

    def find_heads_in(self, experience: Any) -> None:
        """:meth:`find_heads_with` two samples of an experience.

        :param experience: of Avalanche.
        """
        known = self._heads_seen or self.classes or self.open_task is not None
        if not known and getattr(experience, "dataset", None):
            x = first_samples(experience.dataset)[0]
            self.find_heads_with(moved_to(x, self.head.weight.device))

    def set_heads(self, names: Sequence[str]) -> None:
        """Have every task keep other layers than those that were taken for the heads.

        :param names: of the layers that give the logits.
        """
        if self.classes or self.open_task is not None or set(names) == set(self.head_names):
            return
        tensors = sort_tensors(
            self.backbone, names, self.options["include"], self.options["exclude"]
        )
        before = {store.name: store for store in self.weight_stores}
        alike = next(iter(before.values()), None)

        def store(place: Place, name: str) -> WeightStore:
            if name in before:
                return before[name]
            if alike is None:
                return store_of_kind("masked")(place, name)
            return type(alike)(place, name, **alike.config())

        self._convert(names, tensors, store)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _heads_of(self, x: Any) -> list[str] | None:
        """The layers that give the logits; None if the model does not run on its own tensors."""
        model = self._structure.copy_of_now([])  # what it derives and keeps, the model does not
        with torch.random.fork_rng(devices=[]):
            try:
                return layers_behind(model, lambda: self._run(0, model, x))
            except UnsupportedModuleError:
                raise
            except Exception:  # training meets it again, and says what it is about
                return None

    def _check_heads(self, x: Any) -> None:
        """Refuse to train on if the open task's logits come from other layers than its heads.

        :param x: inputs of the first forward pass.
        """
        self._heads_seen = True
        found = self._heads_of(x)
        if found is not None and set(found) != set(self.head_names):
            names = found[0] if len(found) == 1 else tuple(found)
            raise UnsupportedModuleError(
                f"{self.head_names[0]!r} is not the layer that gives the logits, or not the only "
                f"one: build the model anew and give TaskNetwork or the strategy head={names!r}."
            )
