"""A task's loss is what a plain model of that task alone would have."""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import loss_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from streams_for_tests import OURS, make_stream, mlp
from torch import nn
from torch.nn import functional as F

from avalanche_compress import (
    FactoredStore,
    MaskingPlugin,
    TaskNetwork,
    TrainingDataError,
    UnsupportedPluginError,
    ValidationPlugin,
)
from avalanche_compress.core.experiences import width_of_stream
from avalanche_compress.shaping.criterion_state import stream_width
from avalanche_compress.shaping.task_loss import TaskLoss, loss_by_task, task_loss

STREAM = 8
"""Classes of the stream."""
CLASSES = [(0, 1, 2), (3, 4, 5), (1, 4, 6), (7,)]


class Focal(nn.Module):
    """A criterion of one's own with an entry for each class, as a buffer or a plain attribute."""

    def __init__(self, alpha, buffer):
        super().__init__()
        if buffer:
            self.register_buffer("alpha", alpha)
        else:
            self.alpha = alpha

    def forward(self, logits, targets):
        log_p = F.log_softmax(logits, dim=1).gather(1, targets[:, None])[:, 0]
        return -(self.alpha[targets] * (1 - log_p.exp()) ** 2 * log_p).mean()


class Costs(nn.Module):
    """What it costs to take one class for another, looked up by target."""

    def __init__(self, costs):
        super().__init__()
        self.register_buffer("costs", costs)

    def forward(self, logits, targets):
        return (logits.softmax(1) * self.costs[targets]).sum(1).mean()


class Listed(nn.Module):
    """Weights of classes in any container; what the criterion remembers is its own."""

    def __init__(self, weights):
        super().__init__()
        self.weights, self.losses = weights, []

    def forward(self, logits, targets):
        weight = torch.tensor([float(self.weights[int(target)]) for target in targets])
        loss = (weight * F.cross_entropy(logits, targets, reduction="none")).sum() / weight.sum()
        self.losses.append(loss.item())
        return loss


class Binary(nn.Module):
    """One-vs-all: a binary cross-entropy for each class."""

    def __init__(self, pos_weight=None):
        super().__init__()
        self.loss = nn.BCEWithLogitsLoss(pos_weight=pos_weight)

    def forward(self, logits, targets):
        return self.loss(logits, F.one_hot(targets, logits.shape[1]).to(logits))


def squared(logits, targets):
    return F.mse_loss(logits.softmax(1), F.one_hot(targets, logits.shape[1]).to(logits))


WEIGHT = torch.arange(1.0, STREAM + 1)
CRITERIA = {  # for the stream, and for a plain model of some of its classes
    "plain": (nn.CrossEntropyLoss(), lambda c: nn.CrossEntropyLoss()),
    "smoothing": (
        nn.CrossEntropyLoss(label_smoothing=0.2),
        lambda c: nn.CrossEntropyLoss(label_smoothing=0.2),
    ),
    "weights": (
        nn.CrossEntropyLoss(weight=WEIGHT),
        lambda c: nn.CrossEntropyLoss(weight=WEIGHT[c]),
    ),
    "weights and smoothing": (
        nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2),
        lambda c: nn.CrossEntropyLoss(weight=WEIGHT[c], label_smoothing=0.2),
    ),
    "margin": (nn.MultiMarginLoss(weight=WEIGHT), lambda c: nn.MultiMarginLoss(weight=WEIGHT[c])),
    "a partial": (
        partial(F.cross_entropy, weight=WEIGHT, label_smoothing=0.1),
        lambda c: partial(F.cross_entropy, weight=WEIGHT[c], label_smoothing=0.1),
    ),
    "a function": (squared, lambda c: squared),
    "binary": (Binary(WEIGHT), lambda c: Binary(WEIGHT[c])),
    "a buffer of one's own": (Focal(WEIGHT, True), lambda c: Focal(WEIGHT[c], True)),
    "an attribute of one's own": (Focal(WEIGHT, False), lambda c: Focal(WEIGHT[c], False)),
    "costs of confusion": (
        Costs(WEIGHT.outer(WEIGHT).sqrt()),
        lambda c: Costs(WEIGHT.outer(WEIGHT).sqrt()[c][:, c]),
    ),
    "a method": (Focal(WEIGHT, False).forward, lambda c: Focal(WEIGHT[c], False).forward),
    "summed": (
        nn.CrossEntropyLoss(reduction="sum"),
        lambda c: nn.CrossEntropyLoss(reduction="sum"),
    ),
}


def samples(classes, count=9):
    """Logits over the stream's columns, of which the task's are leaves, and places of targets."""
    narrow_logits = torch.randn(count, len(classes), requires_grad=True)
    wide = torch.full((count, STREAM), -1000.0)
    wide[:, list(classes)] = narrow_logits
    return narrow_logits, wide, torch.arange(count) % len(classes)


def assert_same(wide_loss, narrow_loss, narrow_logits):
    assert torch.equal(wide_loss, narrow_loss)
    ours, plain = (torch.autograd.grad(loss, narrow_logits)[0] for loss in (wide_loss, narrow_loss))
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", CRITERIA)
def test_loss_and_gradients_are_those_of_a_plain_model(name, classes):
    torch.manual_seed(0)
    criterion, narrow = CRITERIA[name]
    narrow_logits, wide, places = samples(classes)
    targets = torch.tensor(classes)[places]
    loss, known = TaskLoss(criterion, classes, STREAM).checked(wide, targets)
    assert bool(known)
    assert_same(loss, narrow(list(classes))(narrow_logits, places), narrow_logits)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize(
    "container",
    [list, np.array, lambda weights: dict(enumerate(weights))],
    ids=["list", "array", "dict"],
)
def test_containers_with_an_entry_for_each_class_are_restricted(classes, container):
    narrow_logits, wide, places = samples(classes)
    criterion = Listed(container(WEIGHT.tolist()))
    before = criterion.weights
    narrow = Listed(WEIGHT[list(classes)].tolist())
    loss = TaskLoss(criterion, classes, STREAM)(wide, torch.tensor(classes)[places])
    assert_same(loss, narrow(narrow_logits, places), narrow_logits)
    assert criterion.weights is before
    assert criterion.losses == narrow.losses


@pytest.mark.parametrize("classes", CLASSES[1:3])
def test_what_has_an_entry_for_each_class_of_the_task_is_taken_as_it_is(classes):
    narrow_logits, wide, places = samples(classes)
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]))
    loss = TaskLoss(criterion, classes)(wide, torch.tensor(classes)[places])
    assert_same(loss, criterion(narrow_logits, places), narrow_logits)


@pytest.mark.parametrize("width", [3, STREAM])
@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss(label_smoothing=0.1), nn.BCEWithLogitsLoss()]
)
def test_soft_targets_are_those_of_the_stream_or_of_the_task(criterion, width):
    classes = (1, 4, 6)
    narrow_logits, wide, places = samples(classes)
    mixed = 0.7 * F.one_hot(places, 3).float() + 0.3 * F.one_hot(places.flip(0), 3).float()
    targets = mixed
    if width == STREAM:
        targets = torch.zeros(len(places), STREAM)
        targets[:, list(classes)] = mixed
    loss, known = TaskLoss(criterion, classes).checked(wide, targets)
    assert bool(known)
    assert_same(loss, criterion(narrow_logits, mixed), narrow_logits)


def test_what_smoothing_gives_the_stream_alike_is_left_out():
    classes = (1, 4, 6)
    narrow_logits, wide, places = samples(classes)
    numbers = torch.tensor(classes)[places]
    smooth = 0.02 + 0.84 * F.one_hot(numbers, STREAM).float()
    mixed = 0.3 * smooth + 0.7 * smooth.flip(0)
    criterion = nn.CrossEntropyLoss()
    loss, known = TaskLoss(criterion, classes).checked(wide, mixed)
    assert bool(known)
    assert_same(loss, criterion(narrow_logits, mixed[:, list(classes)]), narrow_logits)
    mixed[2, 5] += 0.01  # one of the others more than the rest
    assert not TaskLoss(criterion, classes).knows(wide, mixed)
    assert TaskLoss(criterion, classes).foreign(wide, mixed) == [5]
    foreign = smooth.roll(1, dims=1)  # all alike but one, which is none of the task's
    assert not TaskLoss(criterion, classes).knows(wide, foreign)


def test_what_only_may_have_an_entry_for_each_class_is_taken_as_it_is():
    narrow_logits, wide, places = samples((3, 4, 5))
    criterion = Listed([2.0, 3.0, 5.0, 7.0])  # of a stream of eight, or of unknown width
    for width in (STREAM, None):
        loss = TaskLoss(criterion, (3, 4, 5), width)(wide, places + 3)
        assert torch.equal(loss, criterion(narrow_logits, places))


class Keeps(nn.Module):
    """Keeps something that need not have anything to do with classes, and notes how long it is."""

    def __init__(self, kept):
        super().__init__()
        if isinstance(kept, torch.Tensor):
            self.register_buffer("edges", kept)
        else:
            self.edges = kept
        self.lengths = set()

    def forward(self, logits, targets):
        self.lengths.add(len(self.edges))
        return F.cross_entropy(logits, targets)


@pytest.mark.parametrize("entries", [STREAM - 1, STREAM + 1, 11])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: torch.linspace(0, 1, n),
        torch.eye,
        np.arange,
        lambda n: list(range(n)),
        lambda n: dict(enumerate(range(n))),
    ],
    ids=["tensor", "square", "array", "list", "dict"],
)
def test_what_has_other_than_the_streams_entries_is_never_cut(make, entries):
    _, wide, places = samples((1, 4, 6))
    criterion = Keeps(make(entries))
    TaskLoss(criterion, (1, 4, 6), STREAM)(wide, torch.tensor([1, 4, 6])[places])
    assert criterion.lengths == {entries}


@pytest.mark.parametrize("kept", [tuple(range(STREAM)), ["a name"] * STREAM, torch.ones(STREAM, 2)])
def test_what_is_no_entry_of_a_class_is_never_cut(kept):
    _, wide, places = samples((3, 4, 5))
    criterion = Keeps(kept)
    TaskLoss(criterion, (3, 4, 5), STREAM)(wide, places + 3)
    assert criterion.lengths == {STREAM}


@pytest.mark.parametrize("width", [None, STREAM, 20])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize(
    "build",
    [
        lambda w: nn.CrossEntropyLoss(weight=w),
        lambda w: partial(F.cross_entropy, weight=w),
        Binary,
    ],
    ids=["a loss", "a partial", "positives"],
)
def test_weights_of_torchs_losses_may_be_of_more_classes(build, classes, width):
    weight = torch.rand(STREAM + 3) + 0.5
    narrow_logits, wide, places = samples(classes)
    loss = TaskLoss(build(weight), classes, width)(wide, torch.tensor(classes)[places])
    torch.testing.assert_close(loss, build(weight[list(classes)])(narrow_logits, places))


@pytest.mark.parametrize("entries", [2, 5])
def test_entries_that_end_before_the_tasks_classes_are_taken_as_they_are(entries):
    _, wide, places = samples((3, 4, 5))
    for width in (None, entries, STREAM):
        criterion = Keeps(torch.ones(entries))
        TaskLoss(criterion, (3, 4, 5), width)(wide, places + 3)
        assert criterion.lengths == {entries}
        with pytest.raises(UnsupportedPluginError, match="weight tensor"):
            TaskLoss(nn.CrossEntropyLoss(weight=torch.ones(entries)), (3, 4, 5), width)(
                wide, places + 3
            )


def test_entries_of_a_stream_with_gaps_in_its_classes_are_found_by_class_number():
    parts = [(torch.randn(4, 3), torch.arange(4) % 2 + first) for first in (0, 5)]
    stream = tensors_benchmark(parts, parts, task_labels=[0, 1]).train_stream
    assert width_of_stream(stream[0]) == width_of_stream(stream[1]) == 7
    narrow_logits = torch.randn(4, 2, requires_grad=True)
    wide = F.pad(narrow_logits, (5, 0), value=-1000.0)
    for alpha in (torch.arange(1.0, 8), [*range(1, 8)], {0: 1, 1: 2, 5: 6, 6: 7}):
        criterion = Focal(alpha, True) if isinstance(alpha, torch.Tensor) else Listed(alpha)
        plain = type(criterion)(*([torch.tensor([6.0, 7.0])] + [True] * (type(criterion) is Focal)))
        loss = TaskLoss(criterion, (5, 6), stream_width(criterion, stream[0]))
        assert_same(loss(wide, parts[1][1]), plain(narrow_logits, parts[0][1]), narrow_logits)


@pytest.mark.parametrize("kept", [torch.ones(11), np.ones(11), torch.eye(11)])
def test_what_may_be_of_a_stream_of_unknown_width_is_refused_by_name(kept):
    with pytest.raises(UnsupportedPluginError, match=r"keeps edges, whose 11 entries"):
        TaskLoss(Keeps(kept), (3, 4)).check()
    TaskLoss(Keeps(kept), (3, 4), STREAM).check()
    TaskLoss(Keeps((1.0,) * 11), (3, 4)).check()
    TaskLoss(nn.CrossEntropyLoss(weight=torch.ones(11)), (3, 4)).check()


def count_in_place(criterion, places):
    for place in places.tolist():
        criterion.counts[place] += 1


class Counts(nn.Module):
    """Cross-entropy of logits that are adjusted by how often each class has been seen so far."""

    def __init__(self, counts, count=count_in_place):
        super().__init__()
        if isinstance(counts, torch.Tensor):
            self.register_buffer("counts", counts)
        else:
            self.counts = counts
        self._count = count

    def forward(self, logits, targets):
        self._count(self, targets)
        seen = [float(self.counts[place]) for place in range(logits.shape[-1])]
        return F.cross_entropy(logits + torch.tensor(seen).add(1).log(), targets)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("how", ["in place", "anew"])
@pytest.mark.parametrize("kind", ["tensor", "list", "array", "dict", "counter"])
def test_what_a_criterion_writes_into_its_entries_is_kept(kind, how, classes):
    make = {
        "tensor": lambda zeros: torch.tensor(zeros),
        "list": lambda zeros: zeros,
        "array": np.array,
        "dict": lambda zeros: dict(enumerate(zeros)),
        "counter": lambda zeros: Counter(dict(enumerate(zeros))),
    }[kind]

    def count(criterion, places):
        assert type(criterion.counts) is type(before)
        if how == "in place":
            count_in_place(criterion, places)
            return
        criterion.counts = copy.deepcopy(criterion.counts)
        count_in_place(criterion, places)

    before = make([0.0] * STREAM)
    criterion, plain = Counts(before, count), Counts(torch.zeros(len(classes)))
    for _ in range(2):
        narrow_logits, wide, places = samples(classes)
        targets = torch.tensor(classes)[places]
        loss = TaskLoss(criterion, classes, STREAM)(wide, targets)
        assert_same(loss, plain(narrow_logits, places), narrow_logits)
    assert type(criterion.counts) is type(before)
    assert (criterion.counts is before) == (how == "in place")
    expected = torch.zeros(STREAM)
    expected[list(classes)] = plain.counts
    assert [float(criterion.counts[number]) for number in range(STREAM)] == expected.tolist()


def test_what_a_criterion_writes_into_costs_of_confusion_is_kept():
    class Confusions(Costs):
        def forward(self, logits, targets):
            self.costs.index_put_((targets, logits.argmax(1)), torch.ones(()), accumulate=True)
            return super().forward(logits, targets)

    classes, costs = (1, 4, 6), torch.rand(STREAM, STREAM)
    criterion, narrow = Confusions(costs.clone()), Confusions(costs[[1, 4, 6]][:, [1, 4, 6]])
    narrow_logits, wide, places = samples(classes)
    TaskLoss(criterion, classes, STREAM)(wide, torch.tensor(classes)[places])
    narrow(narrow_logits, places)
    expected = costs.clone()
    for row, number in enumerate(classes):
        for column, other in enumerate(classes):
            expected[number, other] = narrow.costs[row, column]
    assert torch.equal(criterion.costs, expected)


def test_a_list_of_weights_that_a_criterion_turns_into_a_tensor_stays_one():
    class Turns(Listed):
        def forward(self, logits, targets):
            self.weights = torch.as_tensor(self.weights, dtype=torch.float64)
            return super().forward(logits, targets)

    criterion = Turns(WEIGHT.tolist())
    for classes in CLASSES:
        narrow_logits, wide, places = samples(classes)
        loss = TaskLoss(criterion, classes, STREAM)(wide, torch.tensor(classes)[places])
        assert_same(loss, Listed(WEIGHT[list(classes)])(narrow_logits, places), narrow_logits)
    assert torch.equal(criterion.weights, WEIGHT.double())


def test_a_record_that_has_as_many_entries_by_chance_loses_none():
    _, wide, places = samples((3, 4, 5))
    criterion = Listed(WEIGHT.tolist())
    for _ in range(STREAM + 4):
        TaskLoss(criterion, (3, 4, 5), STREAM)(wide, places + 3)
    assert len(criterion.losses) == STREAM + 4
    assert len(set(criterion.losses)) == 1


@pytest.mark.parametrize(
    ("before", "change"),
    [
        (WEIGHT.clone(), lambda kept: kept[:1]),
        (WEIGHT.clone(), lambda kept: None),
        (WEIGHT.clone(), lambda kept: kept.sum()),
        (WEIGHT.clone(), lambda kept: kept.numpy()),
        (WEIGHT.tolist(), lambda kept: kept[:1]),
        (dict(enumerate(WEIGHT.tolist())), lambda kept: {**kept, 9: 0.0}),
    ],
)
def test_entries_that_become_something_else_are_refused_by_name(before, change):
    class Changes(Keeps):
        def forward(self, logits, targets):
            self.edges = change(self.edges)
            return F.cross_entropy(logits, targets)

    criterion, copied = Changes(None), copy.deepcopy(before)
    criterion.edges = before  # a plain attribute, which may become anything
    _, wide, places = samples((3, 4, 5))
    with pytest.raises(UnsupportedPluginError, match=r"in the place of edges.* 3 classes"):
        TaskLoss(criterion, (3, 4, 5), STREAM)(wide, places + 3)
    assert criterion.edges is before
    assert all(float(before[number]) == float(copied[number]) for number in range(STREAM))


def test_what_is_written_where_samples_are_vectorised_is_no_state():
    class Average(Keeps):
        def forward(self, logits, targets):
            loss = F.cross_entropy(logits, targets)
            self.edges = 0.9 * self.edges + 0.1 * loss.detach()
            return loss

    before = torch.ones(STREAM)
    criterion = Average(before)
    narrow_logits, wide, places = samples((3, 4, 5))
    loss = TaskLoss(criterion, (3, 4, 5), STREAM)
    each = torch.func.vmap(lambda row, target: loss(row[None], target[None]))(wide, places + 3)
    assert torch.allclose(each, F.cross_entropy(narrow_logits, places, reduction="none"))
    assert criterion.edges is before


def test_tuples_of_targets_are_renumbered_one_by_one():
    def mixup(logits, targets):
        first, second, part = targets
        return part * F.cross_entropy(logits, first) + (1 - part) * F.cross_entropy(logits, second)

    narrow_logits, wide, places = samples((3, 4, 5))
    loss, known = TaskLoss(mixup, (3, 4, 5)).checked(wide, (places + 3, places.flip(0) + 3, 0.3))
    assert bool(known)
    assert_same(loss, mixup(narrow_logits, (places, places.flip(0), 0.3)), narrow_logits)


@pytest.mark.parametrize("classes", [(2, 4, 5), (2, 3, 4)])  # renumbered, 4 is 1 or 2
@pytest.mark.parametrize("ignored", [-100, -1, 1, 2, 4, 255])
def test_ignored_targets_stay_ignored(ignored, classes):
    narrow_logits, wide, places = samples(classes)
    targets = torch.tensor(classes)[places]
    targets[::4] = ignored
    criterion = nn.CrossEntropyLoss(ignore_index=ignored)
    loss, known = TaskLoss(criterion, classes).checked(wide, targets)
    assert bool(known)
    assert criterion.ignore_index == ignored
    counted = targets != ignored
    assert torch.allclose(loss, F.cross_entropy(narrow_logits[counted], places[counted]))


@pytest.mark.parametrize("classes", [(2, 4, 5), (2, 3, 4)])
def test_a_sample_may_come_by_itself(classes):
    narrow_logits, wide, places = samples(classes)
    loss = TaskLoss(nn.CrossEntropyLoss(), classes)(wide[0], torch.tensor(classes)[places[0]])
    assert torch.equal(loss, F.cross_entropy(narrow_logits[0], places[0]))


def test_targets_may_have_any_shape():
    narrow_logits = torch.randn(2, 5, 3, requires_grad=True)
    wide = torch.full((2, 5, STREAM), -1000.0)
    wide[..., [1, 4, 6]] = narrow_logits
    places = torch.randint(0, 3, (2, 5))

    def tokens(logits, targets):
        return F.cross_entropy(logits.transpose(1, 2), targets)

    loss = TaskLoss(tokens, (1, 4, 6))(wide, torch.tensor([1, 4, 6])[places])
    assert_same(loss, tokens(narrow_logits, places), narrow_logits)


@pytest.mark.parametrize("classes", [(2, 3, 4), (2, 4, 6)])
@pytest.mark.parametrize("foreign", [0, 5, 7, 99])
def test_targets_of_other_classes_are_noticed(classes, foreign):
    _, wide, places = samples(classes)
    targets = torch.tensor(classes)[places]
    targets[3] = foreign
    loss = TaskLoss(nn.CrossEntropyLoss(), classes)
    assert not loss.knows(wide, targets)
    value, known = loss.checked(wide, targets)
    assert not bool(known)
    assert loss.foreign(wide, (targets, 0.3, places + 8)) == sorted({foreign, 8, 9, 10})
    assert bool(value.isfinite())
    soft = torch.zeros(len(places), STREAM)
    soft[:, 0] = 1
    assert not loss.knows(wide, soft)


def test_a_criterion_is_as_it_was_afterwards_even_if_it_fails():
    weight = WEIGHT.clone()
    criterion = nn.CrossEntropyLoss(weight=weight, ignore_index=3)
    _, wide, places = samples((2, 4, 5))
    TaskLoss(criterion, (2, 4, 5))(wide, places + 2)
    assert criterion.weight is weight
    assert criterion.ignore_index == 3

    class Fails(nn.CrossEntropyLoss):
        def forward(self, logits, targets):
            raise RuntimeError("no")

    failing = Fails(weight=weight)
    with pytest.raises(UnsupportedPluginError, match="no"):
        TaskLoss(failing, (2, 4, 5))(wide, places + 2)
    assert failing.weight is weight


def test_a_function_that_reads_class_weights_from_outside_is_refused_by_name():
    weights = WEIGHT

    def weighted(logits, targets):
        return (weights[targets] * F.cross_entropy(logits, targets, reduction="none")).mean()

    with pytest.raises(UnsupportedPluginError, match=r"weighted reads weights, whose 8 entr"):
        TaskLoss(weighted, (2, 3)).check()
    TaskLoss(squared, (2, 3)).check()


@pytest.mark.parametrize(
    ("values", "refused"),
    [([1.0] * STREAM, True), (["a name"] * STREAM, False), ((1.0,) * 8, False)],
)
def test_a_function_that_reads_a_list_of_class_weights_is_refused_and_no_other(values, refused):
    def listed(logits, targets):
        return len(values) * F.cross_entropy(logits, targets)

    parts = [(torch.randn(STREAM, 3), torch.arange(STREAM))]
    stream = tensors_benchmark(parts, parts, task_labels=[0]).train_stream
    loss = TaskLoss(listed, (2, 3), stream_width(listed, stream[0]))
    if not refused:
        loss.check()
        return
    with pytest.raises(UnsupportedPluginError, match=r"listed reads values, whose 8 entries"):
        loss.check()


def test_a_criterion_that_expects_the_streams_columns_is_named():
    def fixed(logits, targets):
        return F.mse_loss(logits, F.one_hot(targets, STREAM).float())

    _, wide, places = samples((3, 4, 5))
    with pytest.raises(UnsupportedPluginError, match=r"\(9, 3\).*classes \[3, 4, 5\]") as caught:
        TaskLoss(fixed, (3, 4, 5))(wide, places + 3)
    assert "F.one_hot(targets, logits.shape[-1])" in str(caught.value)


# ------------------------------------------------------------------ in a strategy


def build(method, criterion, **arguments):
    torch.manual_seed(3)
    model = mlp()
    return OURS[method](
        model=model, optimizer=torch.optim.Adam(model.parameters(), lr=5e-3), criterion=criterion,
        train_mb_size=16, eval_mb_size=32, train_epochs=3, **{"evaluator": None, **arguments},
    )  # fmt: skip


def numbered_from(stream, offset):
    """The first two tasks, the second of which has its classes numbered from ``offset`` on."""
    from avalanche.benchmarks import tensors_benchmark

    parts = []
    for task, experience in enumerate(stream.train_stream):
        x = torch.stack([x for x, *_ in experience.dataset])
        y = torch.tensor([int(y) for _, y, *_ in experience.dataset])
        parts.append((x, y - y.min() + task * offset))
    return tensors_benchmark(parts, parts, task_labels=[0, 1]).train_stream


@pytest.mark.parametrize("method", OURS)
def test_how_classes_are_numbered_makes_no_difference(method):
    stream, logits = make_stream(2, samples=48), []
    x = torch.randn(6, 1, 8, 8)
    for offset in (0, 2, 5):
        criterion = nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.tensor([1.0, 2.0]))
        strategy = build(method, criterion)
        torch.manual_seed(4)
        for experience in numbered_from(stream, offset):
            strategy.train(experience)
        strategy.network.eval()
        with torch.no_grad():
            logits.append([strategy.network.own_logits(x, task) for task in (0, 1)])
    for others in logits[1:]:
        assert all(torch.equal(*pair) for pair in zip(logits[0], others))


class Look(SupervisedPlugin):
    """Keeps what the last step's loss was computed from."""

    def before_backward(self, strategy, **kwargs):
        self.output = strategy.mb_output.detach()
        self.targets, self.labels = strategy.mb_y, strategy.mb_task_id
        self.loss = float(strategy.loss)


def test_replayed_samples_do_not_count_and_metrics_see_the_streams_columns():
    look = Look()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    strategy = build("packnet", criterion, plugins=[ReplayPlugin(mem_size=20), look])
    for experience in numbered_from(make_stream(2, samples=48), 2):
        strategy.train(experience)
    of_task = look.labels == 1
    assert 0 < int(of_task.sum()) < len(of_task)
    assert look.output.shape[1] == 4
    expected = criterion(look.output[of_task][:, 2:], look.targets[of_task] - 2)
    assert look.loss == pytest.approx(float(expected))


def test_a_mini_batch_of_replayed_samples_alone_changes_nothing():
    class OldOnly(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            if strategy.network.tasks:
                strategy.mbatch[1] = torch.zeros_like(strategy.mbatch[1])
                strategy.mbatch[2] = torch.zeros_like(strategy.mbatch[2])

    strategy = build("packnet", nn.CrossEntropyLoss(), plugins=[OldOnly()])
    tasks = numbered_from(make_stream(2, samples=48), 2)
    strategy.train(tasks[0])
    weights = []

    class Keep(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            weights.append([p.detach().clone() for p in strategy.model.parameters()])

    strategy.plugins.append(Keep())
    strategy.train(tasks[1])
    for others in weights[1:]:
        assert all(torch.equal(*pair) for pair in zip(weights[0], others))


@pytest.mark.parametrize("foreign", [0, 1, 3, 9])
def test_a_target_between_the_tasks_classes_is_refused(foreign):
    class Wrong(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            if strategy.network.tasks:
                strategy.mbatch[1][0] = foreign

    strategy = build("packnet", nn.CrossEntropyLoss(), plugins=[Wrong()])
    x, y = torch.randn(32, 1, 8, 8), torch.arange(32) % 2
    from avalanche.benchmarks import tensors_benchmark

    parts = [(x, y), (x, 2 + 2 * y)]
    tasks = tensors_benchmark(parts, parts, task_labels=[0, 1]).train_stream
    strategy.train(tasks[0])
    with pytest.raises(TrainingDataError, match=r"of task 1 are \[2, 4\]"):
        strategy.train(tasks[1])


def test_the_loss_in_evaluation_is_over_each_tasks_columns():
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    evaluator = EvaluationPlugin(loss_metrics(experience=True), loggers=[])
    strategy = build("packnet", criterion, evaluator=evaluator)
    tasks = numbered_from(make_stream(2, samples=48), 2)
    for experience in tasks:
        strategy.train(experience)
    results = strategy.eval(tasks)
    for task, experience in enumerate(tasks):
        x = torch.stack([x for x, *_ in experience.dataset])
        y = torch.tensor([int(y) for _, y, *_ in experience.dataset]) - 2 * task
        with torch.no_grad():
            expected = criterion(strategy.network.own_logits(x, task), y)
        name = f"Loss_Exp/eval_phase/train_stream/Task00{task}/Exp00{task}"
        assert results[name] == pytest.approx(float(expected), rel=1e-5)


class LossesOfEvaluation(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.found = []

    def after_eval_iteration(self, strategy, **kwargs):
        self.found.append(float(strategy.loss))


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_the_loss_of_a_task_that_was_never_trained_is_finite(weight):
    strategy = build("packnet", nn.CrossEntropyLoss(weight=weight))
    tasks = numbered_from(make_stream(2, samples=48), 2)
    strategy.eval(tasks)
    strategy.train(tasks[0])
    losses = LossesOfEvaluation()
    strategy.plugins.append(losses)
    strategy.eval(tasks[1])
    assert all(900 < loss < 1100 for loss in losses.found)
    assert losses.found


def test_the_loss_of_a_class_that_no_task_was_trained_on_is_finite():
    x, y = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
    tasks = tensors_benchmark([(x[:6], y[:6] % 2)], [(x, y)], task_labels=[0])
    strategy = build("packnet", nn.CrossEntropyLoss())
    strategy.train(tasks.train_stream)
    network, losses = strategy.network.eval(), LossesOfEvaluation()
    strategy.plugins.append(losses)
    strategy.eval(tasks.test_stream)
    own = network.own_logits(x, 0).detach()
    wide = torch.cat([own, torch.full((12, 1), -1000.0)], dim=1)
    assert sum(losses.found) == pytest.approx(float(F.cross_entropy(wide, y)), rel=1e-5)


@pytest.mark.parametrize("method", OURS)
def test_what_a_criterion_counts_in_training_is_of_the_tasks_classes(method):
    criterion, seen = Counts(torch.zeros(4)), []
    strategy = build(method, criterion)
    for experience in numbered_from(make_stream(2, samples=48), 2):
        strategy.train(experience)
        seen.append(criterion.counts.clone())
    first, second = seen
    assert (first[:2] > 30).all()
    assert not first[2:].any()
    assert torch.equal(second[:2], first[:2])
    assert (second[2:] > 30).all()


def test_the_check_before_training_is_no_sample_that_a_criterion_counts():
    criterion = Counts(torch.zeros(4))
    network = TaskNetwork(mlp())
    strategy = Naive(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        criterion=criterion,
        train_mb_size=16,
        plugins=[MaskingPlugin(0.5)],
        evaluator=None,
    )
    strategy.train(numbered_from(make_stream(2, samples=48), 2)[0])
    assert criterion.counts.tolist() == [24, 24, 0, 0]


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("tasks_learned", [0, 1])
def test_the_loss_of_one_hot_targets_in_evaluation_is_that_of_class_numbers(method, tasks_learned):
    class OneHot(SupervisedPlugin):
        def before_eval_iteration(self, strategy, **kwargs):
            strategy.mbatch[1] = F.one_hot(strategy.mbatch[1], 4).float()

    losses, tasks = LossesOfEvaluation(), numbered_from(make_stream(2, samples=48), 2)
    strategy = build(method, nn.CrossEntropyLoss(), plugins=[losses])
    for experience in tasks[:tasks_learned]:
        strategy.train(experience)
    losses.found.clear()
    strategy.eval(tasks)
    numbers = list(losses.found)
    strategy.plugins.insert(0, OneHot())
    strategy.eval(tasks)
    assert losses.found[len(numbers) :] == pytest.approx(numbers, rel=1e-5)
    assert len(numbers) == 4


def test_entries_of_the_stream_are_restricted_before_any_training():
    losses = LossesOfEvaluation()
    costs = torch.rand(4, 4)
    strategy = build("packnet", Costs(costs), plugins=[losses])
    task = numbered_from(make_stream(2, samples=48), 2)[0]
    strategy.eval([task])
    x = torch.stack([x for x, *_ in task.dataset])
    y = torch.tensor([int(y) for _, y, *_ in task.dataset])
    with torch.no_grad():
        probabilities = strategy.network.eval()(x, 0)[:, :2].softmax(1)
    each = (probabilities * costs[y, :2]).sum(1)
    assert losses.found == pytest.approx([float(part.mean()) for part in each.split(32)])


def test_samples_of_several_tasks_have_the_mean_of_their_losses():
    network = TaskNetwork(mlp(), FactoredStore)
    for task, classes in ((0, [0, 1]), (1, [2, 3])):
        network.open(task, classes)
        network.commit()
    x, labels = torch.randn(9, 1, 8, 8), torch.tensor([0, 1, 1] * 3)
    targets = 2 * labels + torch.arange(9) % 2
    network.eval()
    for reduction in ("mean", "sum"):
        criterion = nn.CrossEntropyLoss(label_smoothing=0.1, reduction=reduction)
        with torch.no_grad():
            loss = loss_by_task(criterion, network, network(x, labels), targets, labels)
            each = [
                F.cross_entropy(
                    network.own_logits(x[i : i + 1], int(labels[i])),
                    targets[i : i + 1] - 2 * labels[i],
                    label_smoothing=0.1,
                )
                for i in range(9)
            ]
        expected = torch.stack(each).mean() if reduction == "mean" else torch.stack(each).sum()
        assert torch.allclose(loss, expected)


def test_validation_is_by_the_same_loss():
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    validation, found = ValidationPlugin(0.25), []

    class Compare(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            network = strategy.network
            network.eval()
            with torch.no_grad():
                sums = [
                    float(criterion(network.own_logits(x, 1), y - 2)) * len(y)
                    for x, y in validation.batches
                ]
            network.train()
            found.append((validation.loss(strategy), sum(sums) / 12))

    strategy = build("packnet", criterion, plugins=[validation])
    tasks = numbered_from(make_stream(2, samples=48), 2)
    strategy.train(tasks[0])
    strategy.plugins.append(Compare())
    strategy.train(tasks[1])
    assert found
    assert all(ours == pytest.approx(plain) for ours, plain in found)


def test_the_loss_is_of_the_task_that_is_open():
    strategy = build("packnet", nn.CrossEntropyLoss())
    strategy.network.open(0, [4, 9])
    assert task_loss(strategy).classes == (4, 9)


def one_hot_bce(logits, targets):
    wanted = nn.functional.one_hot(targets, logits.shape[-1]).float()
    return nn.functional.binary_cross_entropy_with_logits(logits, wanted)


@pytest.mark.parametrize(
    ("criterion", "refused"),
    [
        (nn.CrossEntropyLoss(), False),
        (nn.CrossEntropyLoss(weight=torch.arange(1.0, 5.0)), False),
        (nn.CrossEntropyLoss(label_smoothing=0.1), True),
        (one_hot_bce, True),
    ],
    ids=["plain", "weighted", "smoothed", "binary"],
)
def test_on_avalanches_strategies_a_criterion_that_reads_other_columns_is_refused(
    criterion, refused
):
    network = TaskNetwork(mlp())
    strategy = Naive(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        criterion=criterion,
        train_mb_size=20,
        plugins=[MaskingPlugin(0.5)],
        evaluator=None,
    )
    tasks = [(torch.randn(40, 1, 8, 8), torch.arange(40) % 2 + 2 * task) for task in range(3)]
    stream = tensors_benchmark(tasks, tasks, task_labels=[0, 1, 2]).train_stream
    if refused:
        with pytest.raises(UnsupportedPluginError, match="columns of other classes"):
            strategy.train(stream[1])
    else:
        strategy.train(stream[1])
        assert network.tasks == [1]
