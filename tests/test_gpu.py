"""What holds to the bit on a CPU does so on a GPU: old tasks, archives, training states."""

from __future__ import annotations

import pytest
import torch
from streams_for_tests import OURS, conv_net, make_stream, mlp

from avalanche_compress import (
    AutocastPlugin,
    TrainingStatePlugin,
    load_archive,
    load_training_state,
    save_archive,
)
from avalanche_compress.archive import archive_bytes

pytestmark = pytest.mark.gpu
STREAM = make_stream(3, samples=40)
ALL = pytest.mark.parametrize("method", OURS)


def build(method, device, model=conv_net, plugins=(), seed=0):
    torch.manual_seed(seed)
    network = model().to(device)
    return OURS[method](
        model=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=5e-3),
        train_mb_size=16,
        eval_mb_size=64,
        train_epochs=3,
        device=torch.device(device),
        evaluator=None,
        plugins=list(plugins),
    )


@torch.no_grad()
def answers(network, x):
    network.eval()
    return [network(x, task).clone() for task in network.tasks]


@ALL
def test_old_tasks_and_an_archive_keep_their_bits(method, device, tmp_path):
    strategy, x = build(method, device), torch.randn(64, 1, 8, 8, device=device)
    known = []
    for experience in STREAM.train_stream:
        strategy.train(experience)
        now = answers(strategy.network, x)
        assert all(map(torch.equal, known, now))
        known = now
    save_archive(strategy.network, tmp_path / "archive")
    loaded = load_archive(tmp_path / "archive", conv_net).to(device)
    assert all(map(torch.equal, known, answers(loaded, x)))


@ALL
def test_a_stopped_training_ends_with_the_same_bytes(method, device, tmp_path):
    class Stop(TrainingStatePlugin):
        def epoch_boundary(self, strategy):
            super().epoch_boundary(strategy)
            if (strategy.clock.train_exp_counter, strategy.clock.train_exp_epochs) == (1, 2):
                raise KeyboardInterrupt

    def finish(strategy, first=0):
        for experience in STREAM.train_stream[first:]:
            strategy.train(experience)
        return archive_bytes(strategy.network)

    expected = finish(build(method, device, mlp))
    with pytest.raises(KeyboardInterrupt):
        finish(build(method, device, mlp, [Stop(tmp_path)]))
    strategy = build(method, device, mlp, [TrainingStatePlugin(tmp_path)], seed=5)
    assert load_training_state(strategy, tmp_path) == (1, 2)
    assert finish(strategy, 1) == expected


@ALL
def test_bfloat16_learns(method, device):
    strategy = build(method, device, mlp, [AutocastPlugin()])
    strategy.train(STREAM.train_stream[0])
    x, y = zip(*((x, y) for x, y, *_ in STREAM.train_stream[0].dataset))
    (logits,) = answers(strategy.network, torch.stack(x).to(device))
    right = (logits.argmax(dim=1).cpu() == torch.tensor(y)).float().mean()
    assert right > 0.8
