"""LoRA as an Avalanche strategy."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from streams_for_tests import check_old_logits_stay, conv_net, logits, make_stream, mlp
from torch import nn

from avalanche_compress import (
    AdaptationPlugin,
    LoRA,
    QuantizationPlugin,
    TaskStateError,
    load_archive,
    load_checkpoint,
    save_archive,
    save_checkpoint,
)

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": partial(torch.optim.AdamW, lr=5e-3, weight_decay=0.1),
}
VARIANTS = {"first": {}, "given": {"base": "given"}, "4 bits": {"bits": 4}}


class Text(nn.Module):
    """An embedding, and a grouped convolution over it; images are read as words."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(16, 8)
        self.mix = nn.Conv1d(8, 8, 3, groups=2)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        words = (4 * x.flatten(1)).round().long().clamp(-8, 7) + 8
        return self.head(torch.relu(self.mix(self.words(words).transpose(1, 2))).mean(2))


def build(model=None, optimizer="adamw", epochs=3, bits=None, plugins=(), **arguments):
    model = mlp() if model is None else model
    quantisation = [] if bits is None else [QuantizationPlugin(bits)]
    return LoRA(
        model=model,
        optimizer=OPTIMIZERS[optimizer](model.parameters()),
        train_mb_size=16,
        train_epochs=epochs,
        eval_mb_size=64,
        plugins=[*plugins, *quantisation],
        **{"evaluator": None, **arguments},
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model", [mlp, conv_net, Text])
def test_old_logits_stay_bit_identical(variant, optimizer, model, tmp_path):
    torch.manual_seed(0)
    make = partial(build, optimizer=optimizer, **VARIANTS[variant])
    check_old_logits_stay(lambda: make(model()), make_stream(tasks=3), model, tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_task_is_learned(variant):
    torch.manual_seed(0)
    stream = make_stream(tasks=3)
    strategy = build(epochs=8, **VARIANTS[variant])
    for experience in stream.train_stream:
        strategy.train(experience)
    outputs = logits(strategy.model, stream.test_stream, range(3))
    for out, experience in zip(outputs, stream.test_stream):
        y = torch.tensor([int(target) for _, target, *_ in experience.dataset])
        assert float((out.argmax(1) == y).float().mean()) > 0.85


@pytest.mark.parametrize("variant", ["first", "given"])
def test_the_base_is_bit_identical_after_every_task_and_norms_start_from_it(variant):
    stream, starts = make_stream(3), []
    model = conv_net()
    given = copy.deepcopy(model.state_dict())
    strategy = build(model, **VARIANTS[variant])
    before = type(strategy)._before_training_exp

    def watched(self, **kwargs):
        before(self, **kwargs)
        starts.append({n: t.clone() for n, t in model.state_dict().items() if n.startswith("1.")})

    type(strategy)._before_training_exp = watched
    try:
        bases = []
        for experience in stream.train_stream:
            strategy.train(experience)
            bases.append([store.base.clone() for store in strategy.network.weight_stores])
    finally:
        type(strategy)._before_training_exp = before
    assert all(torch.equal(a, b) for a, b in zip(bases[0] + bases[0], bases[1] + bases[2]))
    if variant == "given":
        assert torch.equal(bases[0][0], given["0.weight"])
        assert all(torch.equal(tensor, given[name]) for s in starts for name, tensor in s.items())
        return
    places = strategy.network.private
    first = dict(zip(places.names, places.committed(0)))
    for start in starts[1:]:
        assert torch.equal(start["1.running_mean"], first["1.running_mean"])
        assert torch.equal(start["1.weight"], first["1.weight"])


def test_a_given_base_costs_no_task_a_byte(tmp_path):
    strategy = build(base="given", rank=1)
    for experience in make_stream(3).train_stream:
        strategy.train(experience)
    sections = [[len(s.sections[t]) for s in strategy.network.weight_stores] for t in range(3)]
    assert sections == [[4 * (24 + 64) + 3, 4 * (24 + 24) + 3]] * 3
    size = save_archive(strategy.network, tmp_path / "archive")
    weights = sum(store.shape.numel() for store in strategy.network.weight_stores)
    assert 4 * weights < size < 4 * weights + 3 * sum(sections[0]) + 2500


@pytest.mark.parametrize("arguments", [{"rank": 0}, {"rank": 1.5}])
def test_arguments_outside_their_range_are_refused_by_name(arguments):
    with pytest.raises(TaskStateError, match=next(iter(arguments))):
        AdaptationPlugin(**arguments)


@pytest.mark.parametrize("variant", ["first", "given"])
def test_a_resumed_run_gives_the_numbers_of_one_that_went_on(variant, tmp_path):
    stream, final = make_stream(3), []
    for resumed in (False, True):
        torch.manual_seed(0)
        strategy = build(conv_net(), **VARIANTS[variant])
        for task, experience in enumerate(stream.train_stream):
            strategy.train(experience)
            if resumed and task == 1:
                save_checkpoint(strategy, tmp_path / "checkpoint")
                fresh = build(conv_net(), **VARIANTS[variant])
                strategy, _ = load_checkpoint(fresh, tmp_path / "checkpoint", trusted=True)
        final.append(logits(strategy.model, stream.test_stream, range(3)))
    assert all(torch.equal(a, b) for a, b in zip(*final))


def test_a_loaded_archive_learns_on(tmp_path):
    stream = make_stream(4)
    strategy = build(base="given", alpha=4.0)
    for experience in stream.train_stream[:2]:
        strategy.train(experience)
    save_archive(strategy.network, tmp_path / "archive")
    network = load_archive(tmp_path / "archive", mlp)
    further = build(network, base="given", alpha=4.0)
    before = logits(network, stream.test_stream, range(2))
    for experience in stream.train_stream[2:]:
        further.train(experience)
    after = logits(network, stream.test_stream, range(2))
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_a_higher_alpha_moves_the_weight_further():
    moved = []
    for alpha in (2.0, 16.0):
        torch.manual_seed(0)
        strategy = build(epochs=1, base="given", alpha=alpha)
        strategy.train(make_stream(1).train_stream[0])
        store = strategy.network.weight_stores[0]
        moved.append(float((store.committed(0) - store.base).norm()))
    assert moved[1] > 3 * moved[0]
