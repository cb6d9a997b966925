"""Huffman's code lengths: against the reference's numbers and the entropy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_compress.codec import fused_mask_bits, huffman_bits


@pytest.mark.parametrize(
    ("text", "bits"),
    [("011100", 6), ("AAAAAAABCCCCCCDDEEEEE", 45), ("304076401", 22), ("zz", 2), ("", 0)],
)
def test_bits_are_those_of_the_public_code(text, bits):
    assert huffman_bits(torch.tensor([ord(c) for c in text], dtype=torch.long)) == bits


def test_fused_masks_are_those_of_the_public_code():
    masks = torch.tensor([[int(c) for c in row] for row in ("10010001", "10000001", "01000001")])
    assert fused_mask_bits(masks.bool()) == 16


@given(st.lists(st.integers(0, 9), min_size=2, max_size=80).filter(lambda s: len(set(s)) > 1))
def test_bits_are_within_one_a_symbol_of_the_entropy(symbols):
    counts = torch.bincount(torch.tensor(symbols)).double()
    shares = counts[counts > 0] / len(symbols)
    entropy = float(-(shares * shares.log2()).sum()) * len(symbols)
    assert entropy - 1e-9 <= huffman_bits(torch.tensor(symbols)) < entropy + len(symbols)


def test_single_bits_cannot_be_compressed_and_groups_of_seven_can():
    masks = torch.rand(7, 7000, generator=torch.Generator().manual_seed(1)) < 0.05
    assert fused_mask_bits(masks, group=1) == 7 * 7000
    assert fused_mask_bits(masks) / (7 * 7000) == pytest.approx(0.292, abs=0.01)
