"""Terms to start from, to keep and to grow by: NumPy, brute force, the public code's numbers."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_compress.codec import Factors, break_even_rank
from avalanche_compress.methods.cacl.maths import (
    free_rank,
    kept_terms,
    orthogonal_factors,
    orthogonal_terms,
    random_terms,
    svd_factors,
    truncate,
)

# out channels, and in channels times kernel positions, of the public code's five convolutions
SHAPES = [(64, 27), (64, 576), (128, 576), (128, 1152), (256, 512)]
# cumulative ranks after tasks 1..20 of the public 20-split CIFAR-100 run, lambda_sparse 0.1
CIFAR = [
    [9, 22, 30, 27, 22],
    [14, 37, 53, 51, 49],
    [20, 49, 75, 73, 82],
    [25, 65, 90, 93, 105],
    [33, 85, 109, 114, 120],
    [40, 107, 132, 135, 142],
    [53, 135, 162, 156, 167],
    [62, 167, 186, 189, 195],
    [71, 198, 217, 217, 225],
    [78, 224, 249, 246, 254],
    [91, 253, 279, 275, 286],
    [100, 279, 308, 307, 329],
    [112, 313, 334, 348, 368],
    [120, 339, 354, 383, 408],
    [134, 368, 392, 420, 451],
    [143, 394, 424, 456, 496],
    [152, 421, 458, 491, 547],
    [163, 455, 491, 524, 598],
    [171, 487, 521, 558, 641],
    [181, 519, 546, 597, 692],
]
# ranks of each task of the public 5-sequence run, in its order
SEQUENCE = [
    [2, 2, 6, 4, 8],
    [3, 4, 12, 23, 30],
    [17, 3, 7, 21, 27],
    [3, 8, 19, 39, 63],
    [17, 53, 2, 12, 19],
]


def random_factors(rank, rows, columns, seed=0, dtype=torch.float64) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(rank, rows), (rank,), (rank, columns)]
    return Factors(*(torch.randn(*size, generator=generator, dtype=dtype) for size in sizes))


def numbers(ranks) -> int:
    """Numbers in the terms of the public code's network, one rank a layer."""
    return sum(rank * (n + m + 1) for rank, (n, m) in zip(ranks, SHAPES))


# ------------------------------------------------------------------ decompositions


@pytest.mark.parametrize("rank", [1, 3, 5, 9])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_svd_gives_the_best_approximation_of_the_rank(rank, shape):
    matrix = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    terms = svd_factors(matrix, rank)
    singular = np.linalg.svd(matrix.numpy(), compute_uv=False)
    kept = min(rank, *shape)
    np.testing.assert_allclose(terms.scale.numpy(), singular[:kept], rtol=1e-12)
    error = float((matrix - terms.compose()).square().sum())
    assert error == pytest.approx((singular[kept:] ** 2).sum(), rel=1e-10, abs=1e-24)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_svd_keeps_the_type_and_gives_contiguous_rows(dtype):
    terms = svd_factors(torch.randn(6, 4, dtype=dtype), 3)
    assert all(part.dtype == dtype and part.is_contiguous() for part in terms)


@pytest.mark.parametrize("rank", [1, 3, 6, 14])
@pytest.mark.parametrize("shape", [(6, 8), (8, 6)])
def test_orthogonal_factors_are_the_svd_of_the_same_matrix(rank, shape):
    terms = random_factors(rank, *shape)
    orthogonal = orthogonal_factors(terms)
    matrix = terms.compose()
    torch.testing.assert_close(orthogonal.compose(), matrix, rtol=0, atol=1e-12)
    eye = torch.eye(orthogonal.rank).double()
    for rows in (orthogonal.left, orthogonal.right):
        torch.testing.assert_close(rows @ rows.t(), eye, rtol=0, atol=1e-12)
    singular = np.linalg.svd(matrix.numpy(), compute_uv=False)
    np.testing.assert_allclose(orthogonal.scale.numpy(), singular[: orthogonal.rank], atol=1e-12)


# ------------------------------------------------------------------ starts


def test_random_terms_have_the_variances_of_the_public_code():
    torch.manual_seed(0)
    left, scale, right = random_terms(60, 90, 200)
    assert float(left.square().mean()) == pytest.approx(2 / 200, rel=0.1)
    assert float(scale.square().mean()) == pytest.approx(1, rel=0.3)
    assert float(right.square().mean()) == pytest.approx(2 / 90, rel=0.1)
    entries = [float(random_terms(60, 90, 30).compose().square().mean()) for _ in range(30)]
    assert np.mean(entries) == pytest.approx(4 / 90, rel=0.15)


@pytest.mark.parametrize("rank", [1, 5, 6, 8, 11])
@pytest.mark.parametrize("shape", [(6, 8), (8, 6)])
def test_orthogonal_terms_are_orthonormal_equally_strong_and_of_kaimings_variance(shape, rank):
    terms = orthogonal_terms(*shape, rank)
    for rows in (terms.left, terms.right):
        gram = rows @ rows.t() if rank <= rows.shape[1] else rows.t() @ rows
        torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)
    assert len(terms.scale.unique()) == 1
    variance = float(terms.compose().square().mean())
    assert variance == pytest.approx(2 / shape[1], rel=1e-4)


@pytest.mark.parametrize("build", [random_terms, orthogonal_terms])
def test_starting_with_no_terms_is_a_matrix_of_zeros(build):
    assert torch.equal(build(5, 7, 0).compose(), torch.zeros(5, 7))


# ------------------------------------------------------------------ which terms stay


@pytest.mark.parametrize(
    ("scale", "energy", "kept"),
    [
        ([3, -0.001, 0.02, 1], 3e-5, [0, 2, 3]),
        ([3, -0.001, 0.02, 1], 0.05, [0, 3]),
        ([3, -0.001, 0.02, 1], 0.1, [0, 3]),
        ([1, 0.005, 0.0031, 0.003], 1e-5, [0, 1, 2]),
        ([1, 0.005, 0.0031, 0.003], 3e-5, [0, 1]),
        ([1, 1, 1, 1], 0.5, [0, 1, 2, 3]),
        ([3, -0.001, 1], 0.05, [0, 2]),
        ([0, 0, 0], 3e-5, []),
        ([], 3e-5, []),
    ],
)
def test_kept_terms_are_those_of_the_public_code(scale, energy, kept):
    mask = kept_terms(torch.tensor(scale, dtype=torch.float32), energy)
    assert mask.nonzero().flatten().tolist() == kept


def test_nothing_new_is_kept_where_earlier_energy_is_enough():
    scale = torch.tensor([0.3, -0.1, 0.1])
    assert kept_terms(scale, 0.05, earlier=25.0).tolist() == [False] * 3
    assert kept_terms(scale, 0.05).any()


def test_earlier_energy_counts_on_both_sides():
    # 35 in all, of which 33.25 are wanted: 25 are there, and 9 of the largest term
    scale = torch.tensor([3.0, -0.001, 1.0])
    assert kept_terms(scale, 0.05, earlier=25.0).tolist() == [True, False, False]


def brute_force(scale, energy, earlier) -> list[bool]:
    """Drop terms from the smallest on while what is lost is within the part of all energy."""
    squares = [Fraction(s) ** 2 for s in scale]
    budget = Fraction(energy) * (sum(squares) + Fraction(earlier))
    order = sorted(range(len(scale)), key=lambda i: squares[i])
    dropped, lost = set(), Fraction(0)
    for i in order:
        if lost + squares[i] > budget:
            break
        lost += squares[i]
        dropped.add(i)
    least = min((squares[i] for i in range(len(scale)) if i not in dropped), default=None)
    return [least is not None and square >= least for square in squares]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(-30, 30), max_size=12),
    st.integers(0, 63),
    st.integers(0, 2000),
)
def test_as_many_of_the_smallest_terms_go_as_the_energy_allows(scale, part, earlier):
    # whole numbers and parts of 64, so that not a bit is rounded
    mask = kept_terms(torch.tensor(scale, dtype=torch.float32), part / 64, float(earlier))
    assert mask.tolist() == brute_force(scale, part / 64, earlier)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30),
    st.floats(0, 0.999),
)
def test_the_kept_energy_is_enough_and_one_term_less_would_not_be(scale, energy):
    mask = kept_terms(torch.tensor(scale, dtype=torch.float32), energy)
    squares = np.square(np.array(scale, dtype=np.float64))
    total, kept = squares.sum(), squares[mask.numpy()]
    if total == 0:
        assert not mask.any()
        return
    assert kept.sum() >= (1 - energy) * total * (1 - 1e-12)
    without_ties = kept[kept > kept.min()].sum()
    assert without_ties < (1 - energy) * total * (1 + 1e-12)
    assert kept.min() >= squares[~mask.numpy()].max(initial=0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=20),
    st.lists(st.floats(0, 0.999), min_size=2, max_size=6).map(sorted),
)
def test_more_energy_lost_never_keeps_more(scale, energies):
    masks = [kept_terms(torch.tensor(scale), energy) for energy in energies]
    assert all(not bool((more & ~less).any()) for less, more in itertools.pairwise(masks))


def test_without_loss_only_zeros_go():
    scale = torch.tensor([0.1, 0.0, -0.7, 0.3, 0.3, -0.0])
    assert kept_terms(scale, 0.0).tolist() == [True, False, True, True, True, False]


# ------------------------------------------------------------------ truncation


@pytest.mark.parametrize("energy", [3e-5, 0.01, 0.3])
@pytest.mark.parametrize("shape", [(2, 9, 7), (6, 9, 7), (15, 9, 7), (12, 5, 30)])
def test_exact_truncation_is_that_of_numpys_svd(shape, energy):
    terms = random_factors(*shape)
    matrix = terms.compose().numpy()
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    parts = np.cumsum(s**2) / (s**2).sum()
    kept = int(np.argmax(parts >= 1 - energy)) + 1
    ours = truncate(terms, energy, "exact")
    assert ours.rank == kept
    np.testing.assert_allclose(ours.scale.numpy(), s[:kept], rtol=1e-10)
    best = (u[:, :kept] * s[:kept]) @ vt[:kept]
    np.testing.assert_allclose(ours.compose().numpy(), best, atol=1e-10)
    error = ((matrix - ours.compose().numpy()) ** 2).sum()
    assert error == pytest.approx((s[kept:] ** 2).sum(), rel=1e-5, abs=1e-20)
    assert parts[kept - 1] >= 1 - energy
    assert kept == 1 or parts[kept - 2] < 1 - energy


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.floats(0, 0.9), st.integers(0, 10**6))
def test_raw_truncation_loses_no_more_than_the_norms_of_what_it_drops(rank, energy, seed):
    terms = random_factors(rank, 6, 9, seed)
    ours = truncate(terms, energy)
    dropped = ~kept_terms(terms.scale, energy)
    bound = (terms.scale.abs() * terms.left.norm(dim=1) * terms.right.norm(dim=1))[dropped].sum()
    assert float((terms.compose() - ours.compose()).norm()) <= float(bound) * (1 + 1e-12) + 1e-12
    assert ours.rank == int((~dropped).sum())


def test_raw_truncation_leaves_the_terms_it_keeps_as_they_are():
    terms = random_factors(6, 5, 7, dtype=torch.float32)
    mask = kept_terms(terms.scale, 0.2)
    for ours, whole in zip(truncate(terms, 0.2), terms):
        assert torch.equal(ours, whole[mask])


@pytest.mark.parametrize("mode", ["raw", "exact"])
def test_nothing_is_left_of_no_terms_and_of_zeros(mode):
    assert truncate(random_factors(0, 4, 5), 3e-5, mode).rank == 0
    terms = random_factors(3, 4, 5)
    assert truncate(terms._replace(scale=torch.zeros(3).double()), 3e-5, mode).rank == 0


@pytest.mark.parametrize("mode", ["raw", "exact"])
def test_truncation_with_more_loss_is_never_larger(mode):
    terms = random_factors(20, 12, 15)
    ranks = [truncate(terms, e, mode).rank for e in (0, 1e-6, 1e-4, 0.01, 0.1, 0.5, 0.9, 0.99)]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] > ranks[-1]


# ------------------------------------------------------------------ growth


def free_of(history, policy="avg", grow_from=2) -> list[int]:
    """What the next task may train, a number a layer; ``history`` is cumulative."""
    free = []
    for layer, (n, m) in enumerate(SHAPES):
        cumulative = [0, *(ranks[layer] for ranks in history)]
        kept = [after - before for before, after in itertools.pairwise(cumulative)]
        free.append(free_rank(kept, break_even_rank(n, m), policy, grow_from=grow_from))
    return free


def totals_of(history) -> list[int]:
    used = history[-1] if history else [0] * len(SHAPES)
    return [u + f for u, f in zip(used, free_of(history))]


def test_growth_replays_the_public_cifar_run():
    assert free_of([]) == [18, 57, 104, 115, 170]
    for tasks in range(len(CIFAR)):
        before = CIFAR[tasks - 1] if tasks else [0] * len(SHAPES)
        kept = [b - a for a, b in zip(before, CIFAR[tasks])]
        assert all(k <= f for k, f in zip(kept, free_of(CIFAR[:tasks])))
    assert totals_of(CIFAR[:1]) == [18, 57, 104, 115, 170]
    assert totals_of(CIFAR[:2]) == [23, 59, 104, 115, 170]
    assert totals_of(CIFAR[:3]) == [31, 78, 116, 115, 170]
    assert totals_of(CIFAR) == [199, 576, 650, 712, 862]


def test_the_public_runs_have_the_size_that_was_published():
    assert numbers(CIFAR[-1]) == 2_031_166
    assert 4e-6 * (numbers(CIFAR[-1]) + 20 * 5125) == pytest.approx(8.534664, abs=1e-9)
    layers = [sum(layer) for layer in zip(*SEQUENCE)]
    assert numbers(layers) + 5 * 10_250 == 372_276


def test_growth_replays_the_public_five_data_sets():
    history = np.cumsum(SEQUENCE, axis=0).tolist()
    for tasks, kept in enumerate(SEQUENCE):
        free = free_of(history[:tasks], "r0")
        assert all(k <= f for k, f in zip(kept, free))
        if tasks >= 2:
            assert all(f >= break_even_rank(n, m) for f, (n, m) in zip(free, SHAPES))


@pytest.mark.parametrize("policy", ["avg", "r0", "mean_task", "fixed", "none"])
def test_the_first_task_has_the_initial_rank(policy):
    assert free_rank([], 18, policy, fixed=18) == 18


def test_the_policies_want_what_they_say():
    kept = [6, 2, 8]  # cumulative 6, 8, 16; the first total is 9
    assert free_rank(kept[:1], 9, "r0", grow_from=2) == 3
    assert free_rank(kept[:1], 9, "r0", grow_from=1) == 9
    assert free_rank(kept, 9, "r0") == 9
    assert free_rank(kept, 9, "avg") == 7  # mean of 6 and 8
    assert free_rank(kept, 9, "mean_task") == 5  # 16 / 3
    assert free_rank([2, 3], 9, "none") == 4
    assert free_rank([4, 5], 9, "none") == 0
    assert free_rank(kept, 9, "fixed", fixed=4) == 4


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["avg", "r0", "mean_task", "none"]),
    st.integers(1, 40),
    st.integers(1, 3),
    st.lists(st.floats(0, 1), max_size=12),
)
def test_no_policy_ever_asks_for_less_than_nothing_or_more_than_the_initial_rank(
    policy, initial, grow_from, parts
):
    kept: list[int] = []
    for part in parts:
        free = free_rank(kept, initial, policy, grow_from=grow_from)
        assert 0 <= free <= initial
        kept.append(int(part * free))
