"""Whether numbers are finite, found by their sum."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_compress.codec import all_finite

ODD = [float("inf"), float("-inf"), float("nan"), 3e38, -3e38, 0.0]


@given(st.lists(st.one_of(st.sampled_from(ODD), st.floats(-9, 9, width=32)), max_size=40))
def test_it_is_what_numpy_says_of_each_number(numbers):
    found = all_finite(torch.tensor(numbers, dtype=torch.float32))
    assert found == bool(np.isfinite(np.array(numbers, dtype=np.float32)).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_large_finite_numbers_of_any_type_are_finite(dtype):
    values = torch.full((500, 300), 60_000.0).to(dtype)
    assert all_finite(values)


def test_one_number_among_many_is_found():
    values = torch.rand(1_000_000)
    values[123_456] = torch.nan
    assert not all_finite(values)
