"""The life of a task, and that nothing after its end changes a bit of its logits."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from avalanche_compress import (
    CapacityExhaustedError,
    NonFiniteError,
    TaskAlreadyLearnedError,
    TaskLabelError,
    TaskNetwork,
    TaskStateError,
    UnsupportedModuleError,
    load_archive,
    save_archive,
)
from avalanche_compress.codec import quantise_codebook
from avalanche_compress.core.experiences import classes_in, single_task_label
from avalanche_compress.methods.subnetworks.store import MaskedStore

MASKED = -1000.0
Scored = partial(MaskedStore, scored=True)


class ConvNet(nn.Module):
    def __init__(self, classes=2, width=6):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)
        self.middle = nn.Linear(width * 4, 12)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.head = nn.Linear(12, classes)

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.head(self.drop(torch.relu(self.middle(x.flatten(1)))) * self.scale)


def images(count=8):
    return torch.randn(count, 3, 6, 6)


def mlp(classes=2):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, classes))


def step(network, x, y, labels, optimizer=None, steps=2):
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x, labels), y).backward()
        optimizer.step()
    network.eval()


def targets(classes, count=8):
    return torch.tensor(sorted(classes))[torch.randint(len(classes), (count,))]


def start(network, x, task, classes=(0, 1), density=0.5, optimizer=None):
    for store in network.weight_stores:
        store.density = density
    network.open(task, classes)
    step(network, x, targets(classes, len(x)), task, optimizer)


def finish(network):
    for store in network.weight_stores:
        if not store.scored:
            store.prune(0.5)
    network.commit()


def learn(network, x, task, classes=(0, 1), **options):
    start(network, x, task, classes, **options)
    finish(network)


@torch.no_grad()
def logits_of(network, x, labels):
    return network.eval()(x, labels)


def everything(network):
    """All that a network is, as comparable bytes."""
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return buffer.getvalue()


def substituted(network):
    """Names in modules' ``__dict__`` that are Parameters or buffers too."""
    return [
        name
        for module in network.modules()
        for name in vars(module)
        if name in module._parameters or name in module._buffers
    ]


# ---------------------------------------------------------------- life of a task


def test_a_finished_task_cannot_be_opened():
    network = TaskNetwork(mlp())
    network.open(0, [0, 1])
    network.commit()
    before = everything(network)
    with pytest.raises(TaskAlreadyLearnedError, match="task 0 is finished"):
        network.open(0, [0, 1])
    assert everything(network) == before
    assert network.open_task is None


def test_another_open_task_is_in_the_way():
    network = TaskNetwork(mlp())
    network.open(0, [0, 1])
    with pytest.raises(TaskStateError, match=r"task 0 is still in training.*discard"):
        network.open(1, [0, 1])
    assert network.open_task == 0


def test_an_open_task_starts_anew():
    network, x = TaskNetwork(ConvNet()), images()
    network.open(0, [0, 1])
    network.weight_stores[0].prune(0.9)
    network.open(0, [3, 4, 5])
    assert bool(network.weight_stores[0].mask.all())
    assert logits_of(network, x, 0).shape == (8, 6)


def test_a_commit_needs_an_open_task():
    network = TaskNetwork(mlp())
    with pytest.raises(TaskStateError, match="no task is open"):
        network.commit()
    network.open(0, [0, 1])
    network.commit()
    with pytest.raises(TaskStateError, match="no task is open"):
        network.commit()


def test_a_discarded_task_leaves_finished_ones_and_its_label_free():
    network, x = TaskNetwork(ConvNet()), images()
    learn(network, x, 0)
    old, sections = logits_of(network, x, 0), dict(network.private.sections)
    start(network, x, 5, [0, 1, 2])
    network.discard()
    assert network.tasks == [0]
    assert network.private.sections == sections
    assert torch.equal(logits_of(network, x, 0), old)
    learn(network, x, 5, [0, 1, 2])
    assert network.tasks == [0, 5]
    assert torch.equal(logits_of(network, x, 0), old)


def test_labels_need_no_order():
    network, x = TaskNetwork(ConvNet()), images()
    for task in (9, -2, 1000, 3):
        learn(network, x, task)
    assert network.tasks == [9, -2, 1000, 3]


def test_an_unknown_task_cannot_be_materialised():
    network = TaskNetwork(mlp())
    with pytest.raises(TaskStateError, match="task 3 is not finished"):
        network.materialise(3)


def test_no_free_weights_are_named_and_nothing_changes():
    network = TaskNetwork(mlp())
    network.open(0, [0, 1])
    network.commit()
    before = everything(network)
    with pytest.raises(CapacityExhaustedError, match="no free weights"):
        network.open(1, [0, 1])
    assert everything(network) == before


def test_a_plan_of_reuse_holds_for_one_attempt():
    network, x = TaskNetwork(ConvNet(), Scored), images()
    for store in network.weight_stores:
        store.density = 1.0
    network.open(0, [0, 1])
    network(x, 0)
    network.commit()  # nothing is left that is not shared
    network.plan_reuse([])
    with pytest.raises(CapacityExhaustedError):
        network.open(1, [0, 1])
    network.open(1, [0, 1])


@pytest.mark.parametrize("classes", [[], [-1, 2]])
def test_classes_are_checked(classes):
    network = TaskNetwork(mlp())
    with pytest.raises(TaskLabelError, match="one class number or more"):
        network.open(0, classes)
    assert network.open_task is None


# ---------------------------------------------------------------- classes and columns


@pytest.mark.parametrize(
    "classes", [[7, 2, 4], {2, 4, 7}, (4, 7, 2, 2), torch.tensor([7, 4, 2]), range(2, 8, 2)]
)
def test_logits_lie_at_the_columns_of_their_classes(classes):
    network, x = TaskNetwork(mlp()), torch.randn(5, 4)
    network.open(1, classes)
    numbers = sorted({int(c) for c in classes})
    logits = logits_of(network, x, 1)
    assert network.classes_of(1) == tuple(numbers)
    assert logits.shape == (5, numbers[-1] + 1)
    network.commit()
    assert torch.equal(logits_of(network, x, 1), logits)
    with torch.no_grad():
        assert torch.equal(logits[:, numbers], network.materialise(1)(x))
    others = [c for c in range(logits.shape[1]) if c not in numbers]
    assert bool((logits[:, others] == MASKED).all())
    assert bool((logits[:, numbers] > MASKED).all())


def test_mixed_batches_answer_each_sample_by_its_task():
    network, x = TaskNetwork(ConvNet()), images(9)
    learn(network, x, 2, [0, 1])
    learn(network, x, 0, [5, 3])
    start(network, x, 1, [2])
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 2, 0, 0])
    logits = logits_of(network, x, labels)
    assert logits.shape == (9, 6)
    for task in (0, 1, 2):
        of_task = logits_of(network, x[labels == task], task)
        assert torch.equal(logits[labels == task, : of_task.shape[1]], of_task)
        assert bool((logits[labels == task, of_task.shape[1] :] == MASKED).all())


def test_labels_may_be_ints_tensors_or_none():
    network, x = TaskNetwork(mlp()), torch.randn(5, 4)
    for task in (3, 1):
        learn(network, x, task)
    expected = logits_of(network, x, 3)
    for labels in (torch.full((5,), 3), torch.tensor(3), [3] * 5):
        assert torch.equal(logits_of(network, x, labels), expected)
    found = logits_of(network, x, None)
    assert set(found) == {1, 3}
    assert torch.equal(found[3], expected)


def test_an_empty_batch_gives_no_logits():
    network = TaskNetwork(mlp())
    learn(network, torch.randn(5, 4), 0)
    assert logits_of(network, torch.zeros(0, 4), 0).shape == (0, 2)
    assert logits_of(network, torch.zeros(0, 4), torch.zeros(0).long()).shape[0] == 0


def test_logits_may_have_inner_dimensions():
    network, x = TaskNetwork(mlp()), torch.randn(6, 3, 4)
    for task, classes in ((0, [0, 2]), (1, [1])):
        network.open(task, classes)
        for store in network.weight_stores:
            store.prune(0.5)
        network.commit()
    labels = torch.tensor([0, 1, 1, 0, 0, 1])
    logits = logits_of(network, x, labels)
    assert logits.shape == (6, 3, 3)
    assert torch.equal(logits[labels == 0], logits_of(network, x[labels == 0], 0))


# ---------------------------------------------------------------- tasks that were never trained


def experience(classes, labels=(0,)):
    return SimpleNamespace(classes_in_this_experience=classes, task_labels=list(labels))


def test_unseen_tasks_create_nothing_and_the_newest_answers_wide_enough():
    network, x = TaskNetwork(ConvNet()), images()
    learn(network, x, 0, [0, 1])
    learn(network, x, 1, [2, 3])
    network.eval()
    shapes = {name: t.shape for name, t in network.named_parameters()}
    network.adaptation(experience([8, 9], [7]))
    logits = logits_of(network, x, 7)
    assert logits.shape == (8, 10)
    assert torch.equal(logits[:, :4], logits_of(network, x, 1))
    assert bool((logits[:, 4:] == MASKED).all())
    assert network.tasks == [0, 1]
    assert network.open_task is None
    assert {name: t.shape for name, t in network.named_parameters()} == shapes


def test_evaluation_before_any_training_answers_wide_enough():
    network, x = TaskNetwork(ConvNet()), images()
    network.eval()
    network.adaptation(experience({8, 9}, [4]))
    for labels in (4, torch.full((8,), 4), torch.tensor([4, 5] * 4)):
        logits = logits_of(network, x, labels)
        assert logits.shape == (8, 10)
        assert bool(torch.isfinite(nn.functional.cross_entropy(logits, targets([8, 9]))))
    assert network.tasks == []
    assert network.open_task is None


def test_an_unseen_task_in_the_first_training_is_answered_by_the_open_one():
    network, x = TaskNetwork(mlp()), torch.randn(5, 4)
    start(network, x, 0)
    assert torch.equal(logits_of(network, x, 5), logits_of(network, x, 0))


# ---------------------------------------------------------------- experiences


@pytest.mark.parametrize("classes", [[1, 0, 5], {5, 0, 1}, (0, 1, 5)])
def test_classes_of_old_and_new_experiences(classes):
    assert classes_in(SimpleNamespace(classes_in_this_experience=classes)) == [0, 1, 5]
    dataset = SimpleNamespace(targets=[5, 0, 1, 0, 5])
    assert classes_in(SimpleNamespace(dataset=dataset)) == [0, 1, 5]


def test_one_label_is_found_however_often_it_stands():
    assert single_task_label(SimpleNamespace(task_labels=[4])) == 4
    assert single_task_label(SimpleNamespace(task_labels=torch.tensor([4, 4, 4]))) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (SimpleNamespace(classes_in_this_experience=[0]), "no task labels.*return_task_id=True"),
        (experience([0], [1, 2, 1]), r"task labels \[1, 2\] and one was expected"),
        (experience([0], []), r"task labels \[\] and one was expected"),
    ],
)
def test_experiences_without_one_label_are_refused_in_training_only(given, message):
    network = TaskNetwork(mlp())
    network.eval().adaptation(given)
    with pytest.raises(TaskLabelError, match=message):
        network.train().adaptation(given)
    assert network.open_task is None


def test_adaptation_opens_the_task_in_training():
    network = TaskNetwork(mlp())
    network.train().adaptation(experience({6, 4}, [3]))
    assert network.open_task == 3
    assert network.classes_of(3) == (4, 6)


# ---------------------------------------------------------------- zero forgetting

OPTIMISERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": partial(torch.optim.Adam, lr=0.02),
    "adamw": partial(torch.optim.AdamW, lr=0.02, weight_decay=1e-1),
}


@pytest.mark.parametrize("store", [MaskedStore, Scored], ids=["pruned", "scored"])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_old_logits_stay_bit_identical(name, store, tmp_path):
    network, x, old = TaskNetwork(ConvNet(), store), images(), {}
    for task, classes in ((0, [0, 1]), (2, [0, 1, 2]), (1, [4, 3])):
        network.open(task, classes)
        optimizer = OPTIMISERS[name](network.parameters())  # one, so that its state carries on
        learn(network, x, task, classes, optimizer=optimizer)
        old[task] = logits_of(network, x, task)
        file = tmp_path / "file"
        save_archive(network, file)
        fresh = TaskNetwork(ConvNet(), store)
        fresh.load_state_dict(network.state_dict())
        pickled = pickle.loads(pickle.dumps(network))
        copied = copy.deepcopy(network)
        for other in (network, copied, pickled, fresh, load_archive(file, ConvNet)):
            for earlier, logits in old.items():
                assert torch.equal(logits_of(other, x, earlier), logits)
        network = copied
    assert not torch.equal(old[0], old[2][:, :2])


def test_one_optimiser_through_all_tasks_moves_nothing_old():
    """Momentum and weight decay from earlier tasks reach the scratch only."""
    network, x, old = TaskNetwork(ConvNet()), images(), {}
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05, weight_decay=0.1)
    for task in range(3):
        learn(network, x, task, optimizer=optimizer)
        old[task] = logits_of(network, x, task)
        for earlier, logits in old.items():
            assert torch.equal(logits_of(network, x, earlier), logits)


def test_a_replayed_finished_task_does_not_move_in_training():
    network, x = TaskNetwork(ConvNet()), images(12)
    learn(network, x, 0, [0, 1])
    old = logits_of(network, x, 0)
    statistics = [t.clone() for t in network.private.committed(0)]
    network.open(1, [2, 3])
    labels = torch.tensor([0, 1] * 6)
    y = torch.where(labels == 0, targets([0, 1], 12), targets([2, 3], 12))
    step(network, x, y, labels, torch.optim.AdamW(network.parameters(), weight_decay=0.1), 4)
    assert all(map(torch.equal, statistics, network.private.committed(0)))
    assert torch.equal(logits_of(network, x, 0), old)
    network.train()
    with torch.no_grad():
        assert torch.equal(network(x, 0), old), "dropout or batch statistics are at work"
    assert network.training
    assert network.backbone.norm.training
    finish(network)
    assert torch.equal(logits_of(network, x, 0), old)


def test_a_backbone_left_in_training_mode_does_not_move_a_finished_task():
    network, x = TaskNetwork(ConvNet()), images()
    learn(network, x, 0)
    old = logits_of(network, x, 0)
    network.backbone.train()
    network(x, 0)
    network.backbone.norm.train()
    assert torch.equal(network(x, 0), old)
    assert torch.equal(logits_of(network, x, 0), old)


def test_batch_norm_statistics_are_private():
    network = TaskNetwork(ConvNet())
    names = network.private.names
    position = names.index("norm.running_mean")
    means = []
    for task, offset in ((0, -3.0), (1, 3.0)):
        learn(network, images() + offset, task)
        means.append(network.private.committed(task)[position])
    assert not torch.allclose(means[0], means[1], atol=0.1)
    plain = network.materialise(0)
    assert torch.equal(plain.norm.running_mean, means[0])


def test_inference_mode_leaves_nothing_that_training_cannot_use():
    network, x = TaskNetwork(ConvNet()), images()
    learn(network, x, 0)
    with torch.inference_mode():
        network.eval()(x, 0)
    x.requires_grad_()
    network(x, 0).sum().backward()
    assert x.grad is not None


# ---------------------------------------------------------------- numbers of other types


def test_autocast_takes_single_and_mixed_batches():
    network, x = TaskNetwork(ConvNet()), images(10)
    learn(network, x, 0, [0, 1])
    network.open(1, [2, 3])
    labels = torch.tensor([0, 1] * 5)
    y = torch.where(labels == 0, targets([0, 1], 10), targets([2, 3], 10))
    with torch.autocast("cpu", torch.bfloat16):
        for batch, of_label in ((labels, y), (1, targets([2, 3], 10))):
            logits = network.train()(x, batch)
            assert logits.dtype == torch.bfloat16
            nn.functional.cross_entropy(logits, of_label).backward()
        finish(network)
        old = logits_of(network, x, 0)
        assert torch.equal(logits_of(network, x, 0), old)
    assert logits_of(network, x, labels).dtype == torch.float32


@pytest.mark.parametrize("store", [MaskedStore, Scored], ids=["pruned", "scored"])
def test_double_precision_works_from_open_to_archive(store, tmp_path):
    network, x = TaskNetwork(ConvNet().double(), store), images().double()
    old = {}
    for task in (0, 1):
        learn(network, x, task, [task, 3])
        old[task] = logits_of(network, x, task)
    mixed = logits_of(network, x, torch.tensor([0, 1] * 4))
    assert mixed.dtype == torch.float64
    save_archive(network, tmp_path / "file")
    loaded = load_archive(tmp_path / "file", lambda: ConvNet().double())
    assert all(torch.equal(logits_of(loaded, x, t), logits) for t, logits in old.items())


def test_the_number_type_may_change_before_the_first_task_only():
    network, x = TaskNetwork(WithBuffer()).double(), torch.randn(5, 4).double()
    learn(network, x, 0)
    old = logits_of(network, x, 0)
    with pytest.raises(TaskStateError, match=r"learned in torch\.float64"):
        network.float()
    assert torch.equal(logits_of(network.to("cpu"), x, 0), old)
    with torch.no_grad():
        assert network.materialise(0).float()(x.float()).dtype == torch.float32


# ---------------------------------------------------------------- copies


def quantised(network):
    for store in network.weight_stores:
        store.keep_values([quantise_codebook(values, 3) for values in store.kept_values()])


def pruned(network):
    for store in network.weight_stores:
        store.fix_mask(store.mask & (torch.rand(store.shape) < 0.5))


MOMENTS = {
    "before the first": lambda network, x: None,
    "opened": lambda network, x: network.open(0, [2, 5]),
    "trained": lambda network, x: start(network, x, 0, [2, 5]),
    "pruned": lambda network, x: (start(network, x, 0, [2, 5]), pruned(network)),
    "quantised": lambda network, x: (start(network, x, 0, [2, 5]), quantised(network)),
    "finished": lambda network, x: learn(network, x, 0, [2, 5]),
    "in the second": lambda network, x: (learn(network, x, 1), start(network, x, 0, [2, 4, 5])),
    "in the second, pruned": lambda network, x: (
        learn(network, x, 1),
        start(network, x, 0, [2, 4, 5]),
        pruned(network),
    ),
    "in the second, alone": lambda network, x: (
        learn(network, x, 1, density=0.2),
        network.plan_reuse([]),
        start(network, x, 0, [2, 4, 5], density=0.3),
    ),
}


def through_state_dict(network, store):
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    buffer.seek(0)
    fresh = TaskNetwork(WithBuffer(), store)
    start(fresh, torch.randn(8, 4), 77, range(7))  # what it knew before must not stay
    finish(fresh)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    return fresh


COPIES = {
    "deepcopy": lambda network, store: copy.deepcopy(network),
    "pickle": lambda network, store: pickle.loads(pickle.dumps(network)),
    "state_dict": through_state_dict,
}


class WithBuffer(nn.Module):
    """Its constant buffer differs from one object to the next."""

    def __init__(self):
        super().__init__()
        self.register_buffer("offset", torch.randn(4))
        self.frozen, self.layers = nn.Linear(4, 4).requires_grad_(False), mlp()

    def forward(self, x):
        return self.layers(self.frozen(x + self.offset))


@pytest.mark.parametrize("store", [MaskedStore, Scored], ids=["pruned", "scored"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_at_any_moment_goes_on_alike(how, moment, store):
    network, x = TaskNetwork(WithBuffer(), store), torch.randn(8, 4)
    MOMENTS[moment](network, x)
    logits_of(network, x, 0)  # activates, which must not be in the way
    copied = COPIES[how](network, store)
    assert copied.tasks == network.tasks
    assert copied.open_task == network.open_task
    for task in (0, 1, 2):
        assert torch.equal(logits_of(copied, x, task), logits_of(network, x, task))
    for other in (network, copied):
        if other.open_task is not None:
            open_logits = logits_of(other, x, 0)
            other.commit()
            assert torch.equal(logits_of(other, x, 0), open_logits)
    for first, second in zip(network.weight_stores, copied.weight_stores):
        assert torch.equal(first.free, second.free)
        assert torch.equal(first.value, second.value)
    old, finished = logits_of(network, x, 0), bool(network.tasks)
    if bool(copied.weight_stores[0].free.any()):
        learn(copied, x, 8, density=0.1)
    assert torch.equal(logits_of(copied, x, 0), old) or not finished
    assert torch.equal(logits_of(network, x, 0), old)


# ---------------------------------------------------------------- refused commits


class Refusing(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        if bool((x == 99).any()):
            raise RuntimeError("the model refuses 99")
        return self.head(self.body(x))


@pytest.mark.parametrize("finished", [False, True])
def test_nothing_is_left_in_the_modules_after_a_forward_that_raises(finished):
    network, x = TaskNetwork(Refusing()), torch.randn(5, 4)
    start(network, x, 0)
    if finished:
        finish(network)
    expected = logits_of(network, x, 0)
    network.end_substitution()
    assert substituted(network) == []
    with pytest.raises(RuntimeError, match="refuses 99"):
        network(torch.full((5, 4), 99.0), 0)
    assert substituted(network) == []
    assert torch.equal(logits_of(network, x, 0), expected)


class Drifting(nn.Module):
    def __init__(self, start, increment):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.drift = nn.Identity()
        self.drift.register_buffer("state", start)
        self.increment = increment

    def forward(self, x):
        if self.training:
            self.drift.state = self.drift.state + self.increment
        return self.head(self.body(x * self.drift.state))


DRIFTS = [
    (torch.ones(4), 0.5),
    (torch.ones((), dtype=torch.long), 1),
    (torch.ones(2, 1, 4, dtype=torch.bfloat16).squeeze(1)[:1], 0.5),
]


@pytest.mark.parametrize(("state", "increment"), DRIFTS, ids=["float", "int", "bfloat16"])
def test_a_shared_buffer_that_changes_is_refused_and_exclude_keeps_it(state, increment):
    x = torch.randn(8, 4)
    network = TaskNetwork(Drifting(state, increment))
    with pytest.raises(UnsupportedModuleError, match=r"changes 'drift\.state'.*'drift',\)"):
        start(network, x, 0)
    before = everything(network)
    with pytest.raises(TaskStateError, match=r"drift\.state changed.*exclude=\('drift',\)"):
        network.commit()
    assert everything(network) == before
    assert network.open_task == 0
    network = TaskNetwork(Drifting(state, increment), exclude=["drift"])
    learn(network, x, 0)
    old = logits_of(network, x, 0)
    learn(network, x, 1)
    assert torch.equal(logits_of(network, x, 0), old)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name",
    ["conv.weight", "middle.weight", "conv.bias", "head.weight", "norm.running_var", "scale"],
)
def test_what_is_not_finite_is_never_kept_and_nothing_changes(name, value):
    network, x = TaskNetwork(ConvNet()), images()
    learn(network, x, 0)
    old = logits_of(network, x, 0)
    start(network, x, 1)
    network.backbone.state_dict(keep_vars=True)[name].data.view(-1)[0] = value
    for store in network.weight_stores:
        store.fix_mask(torch.zeros_like(store.mask))  # also where it would be dropped
    before = everything(network)
    with pytest.raises(NonFiniteError, match=name):
        network.commit()
    assert everything(network) == before
    assert network.tasks == [0]
    assert network.open_task == 1
    assert torch.equal(logits_of(network, x, 0), old)


def test_a_batch_of_nan_does_not_spoil_the_next_attempt():
    network, x = TaskNetwork(ConvNet()), images()
    learn(network, x, 0)
    network.open(1, [0, 1])
    network.train()(images() * float("nan"), 1)
    network.discard()
    learn(network, x, 1)
    assert bool(torch.isfinite(logits_of(network, x, 1)).all())


def test_scores_that_are_not_finite_are_refused():
    network, x = TaskNetwork(ConvNet(), Scored), images()
    start(network, x, 0)
    network.weight_stores[1].scores.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"middle\.weight"):
        network.commit()


def test_weight_of_is_what_the_task_computes_with():
    network, x = TaskNetwork(ConvNet()), images()
    learn(network, x, 0)
    assert torch.equal(network.weight_of("conv.weight", 0), network.materialise(0).conv.weight)
