"""Continual learning methods that learn compressed, as drop-in Avalanche strategies."""

__version__ = "0.1.0"
