"""Bytes shared out among layers: against all combinations that there are."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_compress.codec import Choice, allocate, smallest_total

CHOICES = st.lists(
    st.builds(Choice, st.integers(0, 30), st.integers(0, 40).map(float)), min_size=1, max_size=6
)
LAYERS = st.lists(CHOICES, min_size=1, max_size=4)


def totals(layers, chosen):
    taken = [choices[number] for choices, number in zip(layers, chosen)]
    return sum(choice.size for choice in taken), sum(choice.loss for choice in taken)


def every_total(layers):
    for taken in itertools.product(*layers):
        yield sum(choice.size for choice in taken), sum(choice.loss for choice in taken)


@settings(max_examples=300, deadline=None)
@given(LAYERS, st.integers(0, 90))
def test_it_fits_wherever_anything_does_and_is_refused_where_nothing_does(layers, budget):
    chosen = allocate(layers, budget)
    least = min(size for size, _ in every_total(layers))
    assert smallest_total(layers) == least
    if budget < least:
        assert chosen is None
    else:
        assert totals(layers, chosen)[0] <= budget


@settings(max_examples=300, deadline=None)
@given(LAYERS, st.integers(0, 90))
def test_it_loses_no_more_than_the_best_for_a_budget_without_the_largest_step(layers, budget):
    chosen = allocate(layers, budget)
    spans = [max(choices).size - min(choices).size for choices in layers]
    within = [loss for size, loss in every_total(layers) if size <= budget - max(spans)]
    if within:
        assert totals(layers, chosen)[1] <= min(within)


@settings(max_examples=300, deadline=None)
@given(LAYERS, st.integers(0, 90))
def test_no_single_exchange_that_fits_loses_less(layers, budget):
    chosen = allocate(layers, budget)
    if chosen is None:
        return
    size, loss = totals(layers, chosen)
    for layer, choices in enumerate(layers):
        for number in range(len(choices)):
            other = totals(layers, [*chosen[:layer], number, *chosen[layer + 1 :]])
            assert not (other[0] <= budget and other[1] < loss), (size, other)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4))
def test_with_steps_of_one_size_and_convex_losses_it_is_the_optimum(savings):
    """Where every byte buys less than the one before it, greedy is exact."""
    layers = []
    for saved in savings:
        falling = sorted(saved, reverse=True)
        rest = [float(sum(falling[place:])) for place in range(len(falling) + 1)]
        layers.append([Choice(place, loss) for place, loss in enumerate(rest)])
    for budget in range(sum(map(len, savings)) + 1):
        best = min(loss for size, loss in every_total(layers) if size <= budget)
        assert totals(layers, allocate(layers, budget))[1] == best
