"""Avalanche's training loop, with names for the moments that it keeps private."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from operator import length_hint
from typing import Any

from avalanche.training.templates import SupervisedTemplate

from avalanche_compress.core.batches import moved_to
from avalanche_compress.errors import TrainingDataError, nearest
from avalanche_compress.host.callbacks import StepCallbacks


class TrainingLoop(StepCallbacks, SupervisedTemplate):
    """The loop over a task's epochs, with methods for subclasses to say what happens when.

    Avalanche's loop calls methods with private names. They are overridden here and nowhere else,
    and call, in this order for a stream of one experience::

        training_begins()      before any plugin
        task_begins()          before data, model and optimiser are prepared for the experience
        epochs_begin()         when they are, and every plugin has seen it
        epoch_boundary()       before the first epoch and after each
        task_ends()            after the last epoch, before any plugin sees its end
        task_has_ended()       when every plugin has
        evaluation_begins()    before an experience is evaluated
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__init__ = _with_known_options(cls, cls.__init__)  # type: ignore[method-assign]

    def training_begins(self) -> None:
        """``train`` was called."""

    def task_begins(self) -> None:
        """The experience is known."""

    def epochs_begin(self) -> None:
        """The task is prepared; :attr:`clock` says how many of its epochs are done already."""

    def epoch_boundary(self) -> None:
        """Every plugin and the clock have done with the last epoch."""

    def task_ends(self) -> None:
        """All epochs are done."""

    def task_has_ended(self) -> None:
        """Every plugin has seen the end of the task."""

    def evaluation_begins(self) -> None:
        """The experience to evaluate is known."""

    @property
    def told_to_stop(self) -> bool:
        """Whether ``stop_training`` was called, since the last epoch that began."""
        return bool(self._stop_training)

    @told_to_stop.setter
    def told_to_stop(self, stop: bool) -> None:
        self._stop_training = stop

    def _before_training(self, **kwargs: Any) -> None:
        self.training_begins()
        super()._before_training(**kwargs)

    def _before_training_exp(self, **kwargs: Any) -> None:
        self.task_begins()
        super()._before_training_exp(**kwargs)

    def _before_eval_exp(self, **kwargs: Any) -> None:
        self.evaluation_begins()
        super()._before_eval_exp(**kwargs)

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        # not Avalanche's own, which begins with the first epoch
        self.epochs_begin()
        self.epoch_boundary()
        self._check_batches()
        for _ in range(self.clock.train_exp_epochs, self.train_epochs):
            self._before_training_epoch(**kwargs)
            if self.told_to_stop:
                self.told_to_stop = False
                break
            self.training_epoch(**kwargs)
            self._after_training_epoch(**kwargs)
            self.epoch_boundary()

    def _check_batches(self) -> None:
        """Refuse a task of which there is no mini-batch, which would end as it starts.

        A loader that does not know its length is taken at its word.
        """
        if self.train_epochs > 0 and not length_hint(self.dataloader, 1):
            raise TrainingDataError(
                f"drop_last=True leaves no mini-batch of the {len(self.adapted_dataset)} samples "
                f"to train on, as train_mb_size={self.train_mb_size}: choose a smaller one, or "
                "train without drop_last."
            )

    def _unpack_minibatch(self) -> None:
        # not Avalanche's own, which knows no inputs but tensors
        batch: Any = self.mbatch  # type: ignore[has-type]
        self.mbatch = [moved_to(part, self.device) for part in batch]

    def _after_training_exp(self, **kwargs: Any) -> None:
        self.task_ends()
        super()._after_training_exp(**kwargs)
        self.task_has_ended()


def _with_known_options(cls: type, init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that says what a name that it does not know may have been meant for.

    Avalanche refuses the same names without a proposal.
    """

    @functools.wraps(init)
    def checked(*arguments: Any, **options: Any) -> None:
        known = [
            name
            for base in cls.mro()[:-1]
            for name in inspect.signature(base.__init__).parameters  # type: ignore[misc]
        ]
        for name in options:
            if name not in known:
                raise TypeError(f"{cls.__name__} has no option {name!r}{nearest(name, known)}.")
        init(*arguments, **options)

    return checked
