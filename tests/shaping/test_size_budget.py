"""A budget in bytes: each task adds no more to the archive, and at most one percent less."""

from __future__ import annotations

import io
import re
import warnings
from contextlib import suppress
from functools import partial

import pytest
import torch
from streams_for_tests import OURS, Stop, make_stream, mlp
from torch import nn

from avalanche_compress import (
    ArchiveBudget,
    CapacityExhaustedError,
    LoRA,
    PackNet,
    QuantizationPlugin,
    SizeBudgetPlugin,
    TaskStateError,
    TrainingStatePlugin,
    load_archive,
    load_training_state,
    save_archive,
)
from avalanche_compress.archive import archive_bytes
from avalanche_compress.shaping.plugin import shape_and_commit

WIDTH, BUDGET = 32, 1500
BASED = ("halrp", "lora")
"""Their first task is the base of the others and has no budget, unless a base is given."""
OPTIONS = {name: {"base": "given"} for name in BASED}
OPTIONS["lora"]["rank"] = 40
OPTIONS["packnet"] = {"prune_proportion": 0.6}
OPTIONS["wsn"] = {"density": 0.9}
OPTIONS["tinysubnets"] = {"density": 0.9, "bits": "auto"}
OPTIONS["ada_qpacknet"] = {"bits": "auto"}


def build(method, budget, model=None, **options):
    model = mlp(WIDTH) if model is None else model
    with warnings.catch_warnings():  # of how many tasks find room
        warnings.simplefilter("ignore")
        return OURS[method](
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=5e-3),
            train_mb_size=16,
            eval_mb_size=64,
            evaluator=None,
            size_budget=budget,
            **{"train_epochs": 1, **OPTIONS.get(method, {}), **options},
        )


def section_bytes(strategy, task):
    stores = [strategy.network.private, *strategy.network.weight_stores]
    return sum(len(store.sections[task]) for store in stores)


@pytest.mark.parametrize("method", OURS)
def test_a_task_takes_its_budget_and_at_most_one_percent_less(method):
    torch.manual_seed(0)
    strategy, file = build(method, BUDGET), io.BytesIO()
    stream = make_stream(1)
    strategy.train(stream.train_stream[0])
    assert 0.98 * BUDGET <= section_bytes(strategy, 0) <= BUDGET  # its label and classes come to it
    save_archive(strategy.network, file)
    file.seek(0)
    loaded, x = load_archive(file, partial(mlp, WIDTH)), torch.randn(20, 1, 8, 8)
    loaded.verify()
    assert torch.equal(loaded(x, 0), strategy.network.eval()(x, 0))


def test_the_archive_grows_by_the_budget_and_at_most_one_percent_less():
    """A later task reads earlier ones' weights, and its mask is coded given theirs."""
    torch.manual_seed(0)
    strategy, lengths = build("wsn", 1200), []
    for experience in make_stream(2).train_stream:
        strategy.train(experience)
        lengths.append(save_archive(strategy.network, io.BytesIO()))
    assert 0.99 * 1200 <= lengths[1] - lengths[0] <= 1200


@pytest.mark.parametrize("method", OURS)
def test_a_budget_of_the_archive_is_met_by_all_tasks_together(method):
    """Base included; what tasks have left unspent is for those to come."""
    torch.manual_seed(0)
    tasks, based = 2, {"base": "first"} if method in BASED else {}
    total = 14_000 if based else 2900
    strategy = build(method, ArchiveBudget(total, tasks), **based)
    for experience in make_stream(tasks).train_stream:
        strategy.train(experience)
    assert 0.99 * total <= save_archive(strategy.network, io.BytesIO()) <= total
    with pytest.raises(TaskStateError, match="is for 2 tasks"):
        strategy.train(make_stream(tasks + 1).train_stream[tasks])


def test_a_task_that_goes_on_keeps_its_part_of_the_archives_budget(tmp_path):
    archives, stream = [], make_stream(2).train_stream
    in_second_epoch_of_second_task = 3 * 4 + 1
    for name, step in (("whole", -1), ("cut", in_second_epoch_of_second_task), ("cut", -1)):
        torch.manual_seed(0)
        plugins = [TrainingStatePlugin(tmp_path / name, every_seconds=0), Stop(step)]
        strategy = build("wsn", ArchiveBudget(2900, 2), train_epochs=2, plugins=plugins)
        position = load_training_state(strategy, tmp_path / name)
        with suppress(KeyboardInterrupt):
            for experience in stream[len(strategy.network.tasks) :]:
                strategy.train(experience)
        archives.append(archive_bytes(strategy.network))
    assert position == (1, 1)
    assert len(archives[1]) < len(archives[0])
    assert archives[2] == archives[0]


def test_a_budget_of_the_archive_that_is_too_small_says_by_how_much():
    stream, tasks = make_stream(1).train_stream, 4
    with pytest.raises(CapacityExhaustedError, match=r"ArchiveBudget\(total=900") as error:
        build("packnet", ArchiveBudget(900, tasks)).train(stream[0])
    more = int(re.search(r"give (\d+) bytes more for each", str(error.value)).group(1))
    build("packnet", ArchiveBudget(900 + tasks * (more + 1), tasks)).train(stream[0])
    for total in (0, 1.5, True):
        with pytest.raises(TaskStateError, match="total="):
            ArchiveBudget(total, tasks)


@pytest.mark.parametrize("method", ["packnet", "cacl", "halrp"])
def test_a_budget_that_is_too_small_names_one_that_is_enough(method):
    stream = make_stream(1)
    strategy = build(method, 40)
    with pytest.raises(CapacityExhaustedError, match="size_budget=40 bytes is less") as error:
        strategy.train(stream.train_stream[0])
    assert strategy.network.tasks == []
    least = int(re.search(r"give size_budget=(\d+) at least", str(error.value)).group(1))
    strategy = build(method, least)
    strategy.train(stream.train_stream[0])
    assert section_bytes(strategy, 0) <= least


def test_what_is_found_too_small_after_training_leaves_the_task_open():
    stream = make_stream(1)
    strategy = build("packnet", 1000)
    network = strategy.network
    before_commit = type(strategy).task_ends
    before = []

    def too_late(self):
        plugin = next(p for p in self.plugins if isinstance(p, SizeBudgetPlugin))
        before.extend(tensor.clone() for tensor in network.backbone.state_dict().values())
        plugin.size_budget = 60
        with pytest.raises(CapacityExhaustedError) as error:
            before_commit(self)
        assert network.open_task == 0
        after = network.backbone.state_dict().values()
        assert all(torch.equal(a, b) for a, b in zip(before, after))
        plugin.size_budget = int(re.search(r"size_budget=(\d+) at", str(error.value)).group(1))
        least, plugin.size_budget = plugin.size_budget, plugin.size_budget - 1
        with pytest.raises(CapacityExhaustedError):
            shape_and_commit(self)
        plugin.size_budget = least
        before_commit(self)

    type(strategy).task_ends = too_late
    try:
        strategy.train(stream.train_stream[0])
    finally:
        type(strategy).task_ends = before_commit
    assert network.tasks == [0]


class Switched(nn.Module):
    """Two layers of the same size, of which the output of one does not count."""

    def __init__(self):
        super().__init__()
        self.counts = nn.Linear(64, 16, bias=False)
        self.is_ignored = nn.Linear(64, 16, bias=False)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(torch.relu(self.counts(x) + 1e-4 * self.is_ignored(x)))


@pytest.mark.parametrize("method", ["ada_qpacknet", "lora"])
def test_bytes_go_to_the_layer_that_the_loss_depends_on(method):
    torch.manual_seed(0)
    strategy = build(method, 400, Switched())
    strategy.train(make_stream(1).train_stream[0])
    counts, ignored = (len(store.sections[0]) for store in strategy.network.weight_stores)
    assert counts > 1.5 * ignored


def test_a_budget_with_nothing_to_spend_it_on_says_so_and_keeps_floats():
    strategy = build("lora", 50_000)
    with pytest.warns(UserWarning, match="has nothing left to spend"):
        strategy.train(make_stream(1).train_stream[0])
    for store in strategy.network.weight_stores:
        assert store.value_bits(0) == 32 * store.stored_values(0)


def test_who_chooses_bits_is_the_budget_alone():
    model = mlp()
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(TaskStateError, match="leave QuantizationPlugin out"):
        PackNet(model=model, optimizer=adam, size_budget=1000, plugins=[QuantizationPlugin(bits=4)])
    with pytest.raises(TaskStateError, match="size_budget=0"):
        LoRA(model=model, optimizer=adam, size_budget=0)
    with pytest.raises(TaskStateError, match="private_bits=1"):
        SizeBudgetPlugin(1000, private_bits=1)


@pytest.mark.parametrize("method", OURS)
def test_a_thinner_task_keeps_what_matters_most(method):
    """Of masks the largest own weights; of terms the best approximation of that rank."""
    torch.manual_seed(0)
    strategy = build(method, None)
    network = strategy.network
    for task in range(2):
        network.open(task, [0, 1])
        store = network.weight_stores[0]
        if task == 0 and method in BASED:
            network.commit()
            continue
        break
    base = torch.zeros_like(store.weight())
    if method == "halrp":
        r, s = torch.ones(1, WIDTH), torch.ones(1, 64)
        store.perturb(r, s, torch.randn(1, WIDTH, 8), torch.randn(1, 8, 64))
    if method == "lora":
        with torch.no_grad():
            store.left.normal_()
    if method in BASED:
        base = store.base
    if store.kind in ("masked", "slotted"):
        store.fix_mask(store.mask)
    before = (store.weight() - base).detach().clone()
    store.thin(0.5)
    after = (store.weight() - base).detach()
    if store.kind in ("masked", "slotted"):
        kept = after != 0
        assert int(kept.sum()) == round(0.5 * int((before != 0).sum()))
        assert float(before[kept].abs().min()) >= float(before[~kept].abs().max())
        assert torch.equal(after[kept], before[kept])
        return
    u, s, vh = torch.linalg.svd(before)
    rank = round(0.5 * int((s > 1e-4 * s[0]).sum()))
    best = u[:, :rank] * s[:rank] @ vh[:rank]
    assert torch.allclose(after, best, atol=1e-4 * float(s[0]))
