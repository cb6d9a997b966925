"""Messages of errors are short enough to be read, whatever they are about."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from avalanche_compress import TaskNetwork, errors, load_archive
from avalanche_compress.codec import CorruptStreamError
from avalanche_compress.errors import LONGEST_MESSAGE, CompressError, shortened

NAMED = [
    kind
    for kind in (*vars(errors).values(), CorruptStreamError)
    if isinstance(kind, type) and issubclass(kind, CompressError)
]


@pytest.mark.parametrize("kind", NAMED, ids=lambda kind: kind.__name__)
def test_every_named_error_is_short_and_keeps_its_start_and_its_end(kind):
    error = kind(f"task 7 has {['x' * 30] * 900}: give it another one.")
    assert len(str(error)) <= LONGEST_MESSAGE
    assert str(error).startswith("task 7 has ['xxx")
    assert str(error).endswith("another one.")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@given(st.text(max_size=LONGEST_MESSAGE))
def test_what_is_short_enough_is_left_as_it_is(text):
    assert shortened(text) == text


@given(st.text(alphabet="[], ab7(", min_size=LONGEST_MESSAGE, max_size=5000))
def test_any_message_gets_short(text):
    assert len(shortened(text)) <= LONGEST_MESSAGE


def test_of_lists_the_ends_and_their_length_are_named():
    said = shortened(f"{list(range(400))} and {[4, 5]} and {list(range(500, 900))}: so.")
    assert said == (
        "[0, 1, 2, 3, 4, 5, ... 399], 400 in all and [4, 5] and "
        "[500, 501, 502, 503, 504, 505, ... 899], 400 in all: so."
    )


def test_errors_about_many_tasks_and_long_names_are_short(tmp_path):
    network = TaskNetwork(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))
    for task in range(0, 600):
        network.classes[task] = (0, 1)
    calls = [
        lambda: network.open(5, [0, 1]),
        lambda: network.open(1000, range(-5000, 5)),
        lambda: network.weight_stores[0].committed(7),
        lambda: network.materialise(0, "x" * 3000),
        lambda: network.to(torch.float64),
        lambda: load_archive(tmp_path, nn.Module),
        lambda: TaskNetwork(nn.Linear(2, 2), head="y" * 3000),
    ]
    for call in calls:
        with pytest.raises(CompressError) as caught:
            call()
        assert len(str(caught.value)) <= LONGEST_MESSAGE
