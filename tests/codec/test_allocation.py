"""A budget is never exceeded, and is spent as well as brute force would nearly always."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_compress.codec.allocation import BudgetTooSmallError, Choice, allocate

CHOICES = st.builds(Choice, st.integers(1, 30), st.integers(0, 100))
LAYERS = st.lists(st.lists(CHOICES, min_size=1, max_size=4), min_size=1, max_size=4)


def totals(layers, chosen):
    kept = [choices[index] for choices, index in zip(layers, chosen)]
    return sum(choice.size for choice in kept), sum(choice.loss for choice in kept)


def best_of_all(layers, budget):
    ways = product(*(range(len(choices)) for choices in layers))
    fitting = [totals(layers, way) for way in ways]
    return min((loss for size, loss in fitting if size <= budget), default=None)


@settings(max_examples=300)
@given(LAYERS, st.integers(1, 120))
def test_the_budget_holds_and_nothing_single_would_be_better(layers, budget):
    least = sum(min(choice.size for choice in choices) for choices in layers)
    if least > budget:
        with pytest.raises(BudgetTooSmallError) as error:
            allocate(layers, budget)
        assert error.value.least == least
        return
    chosen = allocate(layers, budget)
    size, loss = totals(layers, chosen)
    assert size <= budget
    for layer, choices in enumerate(layers):
        for index in range(len(choices)):
            other = [*chosen[:layer], index, *chosen[layer + 1 :]]
            other_size, other_loss = totals(layers, other)
            assert other_size > budget or other_loss >= loss


@settings(max_examples=300)
@given(LAYERS, st.integers(1, 120))
def test_the_loss_is_within_a_single_step_of_the_best_of_all(layers, budget):
    best = best_of_all(layers, budget)
    if best is None:
        return
    _, loss = totals(layers, allocate(layers, budget))
    # the greedy choice along convex hulls lacks at most the one step that did not fit
    steps = [max(c.loss for c in choices) - min(c.loss for c in choices) for choices in layers]
    assert best <= loss <= best + max(steps)


def test_convex_choices_of_equal_steps_are_shared_out_optimally():
    layers = [[Choice(bits, 4.0**-bits * scale) for bits in range(1, 9)] for scale in (1, 50, 3000)]
    for budget in range(3, 25):
        _, loss = totals(layers, allocate(layers, budget))
        assert loss == pytest.approx(best_of_all(layers, budget))
