"""Saving the state of a training at each epoch, and going on from it inside a task."""

from __future__ import annotations

import copy
import os
import time
from functools import partial
from typing import Any

from avalanche.core import SupervisedPlugin

from avalanche_compress.core.network import network_of
from avalanche_compress.errors import TrainingStateError
from avalanche_compress.files import PathLike
from avalanche_compress.host.strategy import Strategy
from avalanche_compress.training.state.checks import check_fits
from avalanche_compress.training.state.folder import read_newest, write_newest
from avalanche_compress.training.state.strategy_parts import (
    Position,
    RememberingLoop,
    State,
    capture,
    check_same_task,
    check_supported,
    restore,
)


class ResumableTraining(RememberingLoop):
    """The part of a strategy that lets its training of a task begin after some epochs.

    Avalanche prepares an experience (data, loader, model, optimiser, plugins) and then loops over
    its epochs. A strategy with a state to go on from prepares it in the same way, which opens the
    task again, then takes the saved state over and does the epochs that are left.
    """

    waiting_state: State | None = None
    """A state inside a task, until the task is trained on."""
    between_epochs = False
    """Whether a state inside a task can be saved now."""

    def training_begins(self) -> None:
        self.remember()
        super().training_begins()

    def epochs_begin(self) -> None:
        if self.waiting_state is not None:
            check_fits(self, self.waiting_state, "the state that was loaded")
            check_same_task(self, self.waiting_state)
            _take_over(self, self.waiting_state, "the state that was loaded")
            self.waiting_state = None
        super().epochs_begin()

    def epoch_boundary(self) -> None:
        """Let states be saved."""
        self.between_epochs = True
        try:
            for plugin in self.plugins:
                if isinstance(plugin, TrainingStatePlugin):
                    plugin.epoch_boundary(self)
        finally:
            self.between_epochs = False


class TrainingStatePlugin(SupervisedPlugin):
    """Saves the state of the training at epoch boundaries, for :func:`load_training_state`.

    A state is written when a task has been opened, after every ``every_epochs`` of its epochs and
    after the last one, and the last two are kept. The end of a task is not written: a run that is
    killed while it shapes the task, or evaluates it, goes on before the shaping, so that ``train``
    and what the script does after it are done once more and no evaluation is missing.

    :param folder: of the run's states; no other run may write there.
    :param every_epochs: how many epochs may be lost.
    :param every_seconds: within a task at least so long after the last state, so that short epochs
        do not spend their time on writing. A task that has been opened is always written: nothing
        but the task in flight is ever lost.
    :raises TrainingStateError: if ``every_epochs`` is not positive, or ``every_seconds`` negative;
        in training, if the strategy is none of this package's, or has a plugin whose state is not
        known.

    >>> TrainingStatePlugin("state", every_epochs=5).every_epochs
    5
    """

    saves_training_state = True
    state_attributes = ()

    def __init__(self, folder: PathLike, every_epochs: int = 1, every_seconds: float = 0):
        super().__init__()
        if every_epochs < 1:
            raise TrainingStateError(f"every_epochs={every_epochs} must be at least 1.")
        if every_seconds < 0:
            raise TrainingStateError(f"every_seconds={every_seconds} must not be negative.")
        self.folder = os.path.abspath(folder)  # wherever the script goes meanwhile
        self.every_epochs = every_epochs
        self.every_seconds = every_seconds
        self._last = time.monotonic()

    def before_training(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        _check_resumable(strategy)
        check_supported(strategy)  # refused now, not after an epoch

    def epoch_boundary(self, strategy: ResumableTraining) -> None:
        """Save the state if it is due.

        :param strategy: between two epochs.
        """
        done = strategy.clock.train_exp_epochs
        if done and time.monotonic() - self._last < self.every_seconds:
            return
        if done % self.every_epochs == 0 or done == strategy.train_epochs:
            save_training_state(strategy, self.folder)
            self._last = time.monotonic()


def save_training_state(strategy: ResumableTraining, folder: PathLike) -> Position:
    """Write everything that the rest of a training depends on.

    That is the network with all tasks and the one in training, the optimiser, schedulers, plugins,
    what metrics have counted, the clock, and the random generators of Python, NumPy and torch; and
    what has changed in plain attributes of the model, the criterion, the optimiser and a strategy
    of your own: numbers, text, tensors, arrays, containers of these, and generators. The
    file holds numbers, texts and tensors, no code and no pickle. It appears at once, and the one
    before it is kept in case that it is damaged. Not in it are data sets, hyper-parameters and
    loggers: whoever goes on builds the strategy and the stream in the same way. A plugin of your
    own lists in ``state_attributes`` what of it changes in training, or has a ``state_dict``.

    Call it between two calls of ``train`` and ``eval``; a :class:`TrainingStatePlugin` does it
    between two epochs.

    :param strategy: of this package.
    :param folder: of the run's states, two of which are kept; created if missing.
    :return: how far the run has come.
    :raises TrainingStateError: if it cannot be written, if something in the strategy cannot be kept
        in this way, or in the middle of an epoch.

    >>> import tempfile, torch
    >>> from avalanche_compress import PackNet
    >>> def build():
    ...     model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    ...     adam = torch.optim.Adam(model.parameters())
    ...     return PackNet(model=model, optimizer=adam, evaluator=None)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_training_state(build(), folder)
    ...     load_training_state(build(), folder)
    Position(experience=0, epochs=0)
    Position(experience=0, epochs=0)
    """
    _check_resumable(strategy)
    idle = strategy.experience is None and network_of(strategy).open_task is None
    if not (strategy.between_epochs or (idle and strategy.waiting_state is None)):
        raise TrainingStateError(
            "a training state can be saved between two tasks, and between two epochs by a "
            "TrainingStatePlugin: not within an epoch, and not before a loaded one goes on."
        )
    state = capture(strategy)
    write_newest(state, folder)
    return Position(*state["position"])


def load_training_state(strategy: ResumableTraining, folder: PathLike) -> Position:
    """Bring a strategy to the newest state of a run, without executing anything that is in it.

    Training then ends with the same numbers as a run that was never stopped::

        position = load_training_state(strategy, "state")
        for experience in benchmark.train_stream[position.experience :]:
            strategy.train(experience)  # the first one goes on after position.epochs epochs

    Everything in a file is checked against the strategy before anything is taken over. A damaged
    file, or one that does not fit, is passed over for the one before it, with a warning.

    :param strategy: a new one, built as in the run that wrote the state; updated in place.
    :param folder: of the run's states.
    :return: where to go on; the start if nothing was saved yet.
    :raises TrainingStateError: if no file is whole and fits the strategy and its model, or the
        newest is of another version; the strategy is then as it was.
    """
    _check_resumable(strategy)
    strategy.remember()
    state = read_newest(folder, partial(check_fits, strategy))
    if state is None:
        return Position(0, 0)
    before = copy.deepcopy(capture(strategy))
    try:
        _take_over(strategy, copy.deepcopy(state), folder)  # it changes what it is given
    except TrainingStateError:
        restore(strategy, before)
        raise
    strategy.waiting_state = None
    if state["task"] is not None:
        network_of(strategy).discard()  # its experience opens it again
        strategy.waiting_state = state
    return Position(*state["position"])


def _take_over(strategy: ResumableTraining, state: State, source: object) -> None:
    """Restore a state that fits; what of it a plugin of the user's refuses is named, too."""
    try:
        restore(strategy, state)
    except Exception as error:
        raise TrainingStateError(f"the state in {source} does not fit: {error}") from error


def _check_resumable(strategy: Strategy) -> None:
    if not isinstance(strategy, ResumableTraining):
        raise TrainingStateError(
            f"{type(strategy).__name__} cannot go on inside a task: take a strategy of this "
            "package, or save_checkpoint between tasks."
        )
