"""Layers whose weight is ``diag(r) W diag(s) + U A``, computed without putting the weight together.

The gradient then has no part of the weight's size: where batches are small beside the weight, that
is faster than composing it in every step.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def perturbed_linear(
    x: Tensor,
    base: Tensor,
    r: Tensor,
    s: Tensor,
    left: Tensor,
    right: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    r"""``r * (W (s * x)) + U (A x) + b``.

    :param x: (..., I).
    :param base: W, (O, I), which gets no gradient.
    :param r: (O,).
    :param s: (I,).
    :param left: U, (O, k).
    :param right: A, (k, I).
    :param bias: b, (O,).
    :return: (..., O).

    >>> import torch
    >>> one = torch.ones(1)
    >>> perturbed_linear(one, torch.full((1, 1), 5.0), 2 * one, one, one.view(1, 1), one.view(1, 1))
    tensor([11.])
    """
    scaled = F.linear(x * s, base) * r
    return scaled + F.linear(F.linear(x, right), left, bias)


def perturbed_conv2d(
    x: Tensor,
    base: Tensor,
    r: Tensor,
    s: Tensor,
    left: Tensor,
    right: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """A convolution by a kernel to all of whose positions ``U A`` is added alike.

    It sums ``A x`` over the kernel's window before U is applied, so the product costs as much as
    two convolutions with a kernel of one position.

    :param x: (B, I, H, W).
    :param base: (O, I, kh, kw), which gets no gradient; not dilated, in one group.
    :param r: (O,).
    :param s: (I,).
    :param left: U, (O, k).
    :param right: A, (k, I).
    :param bias: (O,).
    :param stride: of the convolution.
    :param padding: zeros on each side.
    :return: (B, O, H', W').
    """
    kernel = base.shape[2:]
    scaled = F.conv2d(x * s.view(-1, 1, 1), base, None, stride, padding)
    mean = F.avg_pool2d(
        F.conv2d(x, right[:, :, None, None]), list(kernel), list(stride), list(padding)
    )
    product = F.conv2d(mean, (left * math.prod(kernel))[:, :, None, None], bias)
    return scaled * r.view(-1, 1, 1) + product
