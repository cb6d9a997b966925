"""The random generators of Python, NumPy and torch: their states, taken, checked and put back."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_compress.errors import TrainingStateError

_WORDS = 624
"""Numbers of 32 bits in a Mersenne twister, which Python's and NumPy's generators are."""


def generator_states() -> dict[str, Any]:
    """The states of the generators of Python, NumPy and torch, on the CPU and on all GPUs."""
    kind, keys, *others = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *others),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_generators(state: dict[str, Any]) -> None:
    """Put states back.

    :param state: of :func:`generator_states`, checked by :func:`check_generators`.
    """
    kind, keys, *others = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *others))
    torch.set_rng_state(state["torch"])
    for device in range(min(len(state["cuda"]), torch.cuda.device_count())):
        torch.cuda.set_rng_state(state["cuda"][device], device)


def check_generators(state: dict[str, Any]) -> None:
    """Refuse states that no generator has: NumPy takes any position and reads there.

    :param state: out of a file.
    :raises TrainingStateError: naming the generator.

    >>> check_generators(generator_states())
    """
    checks = {
        "python": is_python_generator,
        "numpy": _is_numpy,
        "torch": is_torch_generator,
        "cuda": _is_cuda,
    }
    if not isinstance(state, dict) or state.keys() != checks.keys():
        raise TrainingStateError("the generators are not those of Python, NumPy, torch and CUDA.")
    for name, fits in checks.items():
        if not fits(state[name]):
            raise TrainingStateError(f"its state of the random generator of {name} is none.")


def _false_if_refused(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    @wraps(check)
    def fits(state: Any) -> bool:
        try:
            return check(state)
        except (TypeError, ValueError, ArithmeticError, RuntimeError, LookupError):
            return False

    return fits


@_false_if_refused
def is_python_generator(state: Any) -> bool:
    """Whether a generator of Python can have a state.

    :param state: of ``random.Random.getstate``, out of a file.

    >>> is_python_generator(random.Random(0).getstate()), is_python_generator((3, (1, 2), None))
    (True, False)
    """
    version, words, gauss = state
    random.Random().setstate(state)
    return version == 3 and _are_words(words[:-1]) and any(words[:-1]) and _is_gauss(gauss)


@_false_if_refused
def _is_numpy(state: Any) -> bool:
    kind, keys, position, has_gauss, gauss = state
    return (
        kind == "MT19937"
        and isinstance(keys, Tensor)
        and keys.dtype == torch.int64
        and keys.shape == (_WORDS,)
        and _are_words(keys.tolist())
        and bool(keys.any())
        and type(position) is int
        and 0 <= position <= _WORDS
        and has_gauss in (0, 1)
        and type(has_gauss) is int
        and isinstance(gauss, float)
        and math.isfinite(gauss)
    )


@_false_if_refused
def is_torch_generator(state: Any) -> bool:
    """Whether a generator of torch, on the CPU, can have a state.

    :param state: of ``torch.Generator.get_state``, out of a file.

    >>> is_torch_generator(torch.Generator().get_state()), is_torch_generator(torch.zeros(4))
    (True, False)
    """
    torch.Generator().set_state(state)  # torch says of a twister whether its numbers fit
    return True


@_false_if_refused
def _is_cuda(state: Any) -> bool:
    for number, saved in enumerate(state):
        if not isinstance(saved, Tensor) or saved.dtype != torch.uint8 or saved.shape != (16,):
            return False
        if number < torch.cuda.device_count():
            torch.Generator(f"cuda:{number}").set_state(saved)
    return isinstance(state, list)


def _are_words(words: Any) -> bool:
    return len(words) == _WORDS and all(type(w) is int and 0 <= w < 1 << 32 for w in words)


def _is_gauss(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isfinite(value))
