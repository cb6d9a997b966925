"""Stop at any epoch, go on to the same numbers, from files that hold no code."""

from avalanche_compress.training.state.resuming import (
    ResumableTraining,
    TrainingStatePlugin,
    load_training_state,
    save_training_state,
)
from avalanche_compress.training.state.strategy_parts import Position

__all__ = [
    "Position",
    "ResumableTraining",
    "TrainingStatePlugin",
    "load_training_state",
    "save_training_state",
]
