"""Huffman's code, to count masks as WSN and TinySubNets do; our files use the range coder."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor


def huffman_bits(symbols: Tensor) -> int:
    """Bits of a sequence under its own optimal prefix code, the code's table not counted.

    The sum of the merged counts when the two rarest groups are merged until one is left. A single
    kind of symbol takes one bit each, as no code word can be empty.

    :param symbols: integers, any shape, n entries.
    :return: between n and n ceil(log2 K) bits for K kinds of symbols; 0 for none.

    >>> huffman_bits(torch.tensor([0, 1, 1, 1, 0, 0]))
    6
    """
    counts = torch.unique(symbols, return_counts=True)[1].tolist()
    if len(counts) < 2:
        return sum(counts)
    heapq.heapify(counts)
    bits = 0
    while len(counts) > 1:
        merged = heapq.heappop(counts) + heapq.heappop(counts)
        bits += merged
        heapq.heappush(counts, merged)
    return bits


def fused_mask_bits(masks: Tensor, group: int = 7) -> int:
    """Bits of the masks of all tasks as the public WSN code stores them.

    Each weight's masks in ``group`` tasks become one number, ``sum_t M_t 2^t``, and the numbers of
    a layer share one Huffman code.

    :param masks: bool, ``(tasks, weights)`` of one layer.
    :param group: tasks in a number; 7 gives symbols 0..127.

    >>> fused_mask_bits(torch.tensor([[1, 0, 0, 1, 0, 0, 0, 1],
    ...                               [1, 0, 0, 0, 0, 0, 0, 1],
    ...                               [0, 1, 0, 0, 0, 0, 0, 1]]).bool())
    16
    """
    powers = 2 ** torch.arange(group, device="cpu")
    return sum(
        huffman_bits((part.long() * powers[: len(part), None]).sum(0))
        for part in masks.flatten(1).split(group)
    )
