"""What the public code does otherwise: its loops, and its golden numbers."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_compress.methods.halrp.maths import least_squares_scalings
from avalanche_compress.methods.halrp.reference import reference_prune, reference_scalings
from tests.methods.halrp.test_budget import BASE, ENTRIES, FIXED, A, U, kept
from tests.methods.halrp.test_maths import SHAPES, draw, error, seeds


def public_code(tuned, base):
    """The loops of bug B1, with its broadcast of (O, 1) against (O,)."""
    outputs, inputs = base.shape[:2]
    tuned, base = tuned.reshape(outputs, inputs, -1), base.reshape(outputs, inputs, -1)
    r = torch.stack([(tuned[o] * base[o]).sum() / base[o].square().sum() for o in range(outputs)])
    s = torch.zeros(inputs, dtype=base.dtype)
    for i in range(inputs):
        scaled = r[:, None, None] * base[None, :, i]
        s[i] = (scaled * tuned[None, :, i]).sum() / scaled.square().sum()
    return r, s


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(SHAPES))
def test_the_public_codes_error_is_never_smaller(seed, shape):
    tuned, base = draw(*shape, seed=seed), draw(*shape, seed=seed + 1)
    r, s = reference_scalings(tuned, base)
    for ours, theirs in zip((r, s), public_code(tuned, base)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    least = error(tuned, base, *least_squares_scalings(tuned, base))
    assert least <= error(tuned, base, r, s) + 1e-14 * float(tuned.square().sum())


def growth(tasks):
    return BASE + tasks * (FIXED + ENTRIES)


def test_golden_case_the_public_rule_keeps_5_and_8_and_misses_the_bound():
    masks = reference_prune([A, U], BASE, growth(1), bound=0.2, floor=1e-5)
    assert kept(masks) == [5, 8]
    assert torch.equal(masks[0], A.abs() > 0.0774194)
    assert BASE + FIXED + sum(kept(masks)) == 124


def test_golden_case_the_public_rule_on_two_tasks():
    tasks = [(A, U), (2 * A, 2 * U)]
    each = [kept(reference_prune(task, BASE, growth(2), 0.2, 1e-5)) for task in tasks]
    assert each == [[0, 7], [0, 7]]
    assert BASE + 2 * FIXED + sum(map(sum, each)) == 136
    together = kept(reference_prune([A, U, 2 * A, 2 * U], BASE, growth(2), 0.2, 1e-5))
    assert together == [0, 2, 3, 8]
    assert BASE + 2 * FIXED + sum(together) == 135


def test_the_public_rule_prunes_nothing_below_the_bound():
    assert kept(reference_prune([A, U], BASE, growth(1), bound=0.32, floor=0.05)) == [12, 8]
    assert kept(reference_prune([A, U], BASE, growth(1), bound=0.31, floor=0.05))[0] < 12
