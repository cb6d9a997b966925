"""How a task is judged on held-out samples, and in batches of what size."""

from __future__ import annotations

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, task_incremental_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from streams_for_tests import OURS, make_stream, mlp
from torch import nn
from torch.nn import functional as F

from avalanche_compress import PackNet, QuantizationPlugin, ValidationDataError, ValidationPlugin
from avalanche_compress.shaping.validation import right_answers


class Judge(SupervisedPlugin):
    """Asks how good the open task is, and computes it by hand, before the first epoch ends."""

    def __init__(self, validation):
        super().__init__()
        self.validation = validation
        self.asked, self.by_hand, self.sizes = [], [], []

    def before_training_epoch(self, strategy, *args, **kwargs):
        network, held_out = strategy.network, self.validation.batches
        quality = self.validation.quality(strategy)
        alone = self.validation.accuracy(network), self.validation.loss(strategy)
        self.asked.append((*quality, *alone))
        self.sizes.append([len(y) for _, y in held_out])
        network.eval()
        with torch.no_grad():
            new = self._columns(network, *map(torch.cat, zip(*held_out)))
            data = strategy.adapted_dataset.eval()
            x = torch.stack([data[i][0] for i in range(len(data))])
            y = torch.tensor([int(data[i][1]) for i in range(len(data))])
            familiar = self._columns(network, x, y)
        network.train()
        summed = [nn.functional.cross_entropy(*part, reduction="sum") for part in (new, familiar)]
        accuracy = 100 * float((new[0].argmax(1) == new[1]).float().mean())
        samples = len(new[1]) + len(y)
        loss = float(sum(summed)) / samples
        self.by_hand.append((accuracy, loss, accuracy, float(summed[0]) / len(new[1])))

    def _columns(self, network, x, y):
        classes = network.classes_of(network.open_task)
        return network.own_logits(x, network.open_task), y - classes[0]


@pytest.mark.parametrize("eval_mb_size", [None, 1, 7])
def test_the_quality_of_a_task_is_that_of_all_samples_in_one_batch(eval_mb_size):
    stream = make_stream()
    validation = ValidationPlugin(0.3)
    judge = Judge(validation)
    model = mlp()
    sizes = {} if eval_mb_size is None else {"eval_mb_size": eval_mb_size}
    strategy = PackNet(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=5,
        plugins=[validation, judge],
        evaluator=None,
        **sizes,
    )
    strategy.train(stream.train_stream[0])
    for asked, by_hand in zip(judge.asked, judge.by_hand, strict=True):
        assert asked == pytest.approx(by_hand, rel=1e-5)
    # samples one by one, Avalanche's eval_mb_size if none is given, would take many times as long
    assert max(judge.sizes[0]) == max(5, eval_mb_size or 1)


# ------------------------------------------------------------------ targets of any kind

STREAM = 6


def spread(columns, classes):
    """Logits of a task at the stream's columns."""
    logits = torch.full((*columns.shape[:-1], STREAM), -1000.0)
    logits[..., list(classes)] = columns
    return logits


@pytest.mark.parametrize("classes", [(0, 1), (1, 4), (2, 3, 4)])
@pytest.mark.parametrize("inner", [(), (2,), (3,), (STREAM,), (2, 3)])
def test_answers_are_compared_target_by_target_along_the_last_dimension(inner, classes):
    columns = torch.randn(7, *inner, len(classes))
    targets = torch.tensor(classes)[torch.randint(len(classes), (7, *inner))]
    targets[0] = -100
    targets[-1] = 5  # the one that the criterion ignores is of no task
    right, judged = right_answers(spread(columns, classes), targets, classes)
    rows = columns.reshape(-1, len(classes)).tolist()
    hits = [classes[row.index(max(row))] == y for row, y in zip(rows, targets.flatten().tolist())]
    assert right.flatten().tolist() == hits
    assert torch.equal(judged, (targets != -100) & (targets != 5))
    again = right_answers(spread(columns, classes), (targets, targets.flip(0)), classes)
    assert torch.equal(again[0], right)


@pytest.mark.parametrize("inner", [(), (2,), (3,)])
@pytest.mark.parametrize("own", [True, False])
def test_the_largest_entry_of_one_hot_and_mixed_targets_is_right(inner, own):
    classes = (1, 4)
    columns = torch.randn(9, *inner, 2)
    places = torch.randint(2, (9, *inner))
    for mixed in (0.0, 0.3):
        entries = (1 - mixed) * F.one_hot(places, 2) + mixed * F.one_hot(1 - places, 2)
        targets = entries if own else spread(entries, classes).clamp_min(0)
        right, judged = right_answers(spread(columns, classes), targets, classes)
        assert torch.equal(right, columns[..., 1].gt(columns[..., 0]) == places.bool())
        assert judged.all()
    assert judged.shape == places.shape


def test_one_of_several_classes_is_right():
    several = torch.tensor([[1, 0, 1], [0, 1, 0]])
    right, _ = right_answers(torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), several, (0, 1, 2))
    assert right.tolist() == [True, False]


@pytest.mark.parametrize("samples", [4, 5])
def test_targets_that_do_not_say_which_answer_is_right_are_refused_by_name(samples):
    logits = torch.randn(samples, 4, 2)
    with pytest.raises(ValidationDataError, match=r"\(\d,\).*\(\d, 4, 2\)"):
        right_answers(logits, torch.zeros(samples, dtype=torch.int64), (0, 1))


class Sequences(torch.utils.data.Dataset):
    """Sequences of inputs of which each has a class that can be told, and targets of any kind."""

    def __init__(self, task, length, kind):
        generator = torch.Generator().manual_seed(task)
        self.kind, self.targets = kind, [2 * task, 2 * task + 1] * 12
        self.y = torch.randint(2, (24, length) if length else (24,), generator=generator)
        noise = torch.randn(*self.y.shape, 6, generator=generator)
        self.x = noise + 3 * (2 * self.y[..., None] - 1)
        self.y += 2 * task

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        y = self.y[index]
        if self.kind == "one-hot":
            return self.x[index], F.one_hot(y, 4).float()
        return self.x[index], (y, y, 0.25) if self.kind == "tuple" else y


def each_alike(logits, targets):
    """Cross-entropy of each row of logits; of a tuple, of two targets mixed."""
    if isinstance(targets, (list, tuple)):
        one, two, part = targets
        return part.mean() * F.cross_entropy(logits, one) + (1 - part.mean()) * F.cross_entropy(
            logits, two
        )
    rows = logits.flatten(0, -2)
    return F.cross_entropy(rows, targets.reshape(-1, *targets.shape[logits.dim() - 1 :]))


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize(
    ("length", "kind"),
    [(2, "numbers"), (5, "numbers"), (None, "one-hot"), (2, "one-hot"), (None, "tuple")],
)
def test_a_task_is_judged_by_targets_of_any_kind(method, length, kind):
    class JudgeAll(SupervisedPlugin):
        def after_training_epoch(self, strategy, *args, **kwargs):
            asked = validation.accuracy(strategy.network), validation.loss(strategy)
            found.append((asked, self.by_hand(strategy.network)))

        def by_hand(self, network):
            hits, losses = [], []
            own = list(network.classes_of(network.open_task))
            with torch.no_grad():
                for x, y in validation.batches:
                    numbers = y[0] if kind == "tuple" else y.argmax(-1) if kind == "one-hot" else y
                    network.eval()
                    logits = network(x, network.open_task)
                    network.train()
                    hits.append((logits.argmax(-1) == numbers).flatten())
                    rows = logits[..., own].flatten(0, -2), (numbers - own[0]).flatten()
                    losses += [F.cross_entropy(*rows)] * len(x)
            return 100 * float(torch.cat(hits).float().mean()), float(torch.stack(losses).mean())

    torch.manual_seed(0)
    sets = [as_classification_dataset(Sequences(task, length, kind)) for task in range(2)]
    stream = task_incremental_benchmark(benchmark_from_datasets(train=sets)).train_stream
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2))
    validation, found = ValidationPlugin(0.3), []
    plugins = [validation, JudgeAll()]
    if method == "packnet":
        plugins.append(QuantizationPlugin(bits=3, codebook_finetune_epochs=1))
    strategy = OURS[method](
        model=model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-2), criterion=each_alike,
        train_mb_size=5, train_epochs=4, plugins=plugins, evaluator=None,
    )  # fmt: skip
    for experience in stream:
        strategy.train(experience)
    strategy.eval(stream)
    assert all(asked == pytest.approx(by_hand, rel=1e-5) for asked, by_hand in found)
    assert found[-1][0][0] > 60
