"""What the baselines of the comparison keep, and what they are given."""

import dataclasses

import pytest

from benchmarks.data.splits import StreamRequest
from benchmarks.data.streams import STREAMS, build_stream
from benchmarks.runs.baselines import ewc
from benchmarks.runs.recipe import build
from benchmarks.runs.settings import RunSettings
from benchmarks.runs.strategies import STRATEGIES

BODY = 64 * 100 + 100 * 100
HEAD = 2 * 100 + 2


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    stream = build_stream(
        StreamRequest("split_digits", tmp_path_factory.getbasetemp(), held_out=0.1)
    )
    budget = dataclasses.replace(STREAMS["split_digits"].budget, epochs=2, train_mb_size=128)
    return RunSettings(stream, "mlp", budget, seed=0)


def train(name, settings, tasks):
    learner = build(name, settings)
    benchmark = settings.stream.benchmark
    for experience in benchmark.train_stream[:tasks]:
        learner.train(experience)
    return learner, learner.eval(benchmark.test_stream[:tasks])


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("naive", 4 * (BODY + 2 * HEAD)),
        # Importances and old weights of both tasks; the first ones knew one head only.
        ("ewc", 4 * (BODY + 2 * HEAD) + 4 * 2 * (BODY + HEAD) + 4 * 2 * (BODY + 2 * HEAD)),
        # The network, old weights and importances.
        ("ewc_online", 3 * 4 * (BODY + 2 * HEAD)),
        ("si", 3 * 4 * (BODY + 2 * HEAD)),
        ("mas", 3 * 4 * (BODY + 2 * HEAD)),
        ("lwf", 2 * 4 * (BODY + 2 * HEAD)),
        # Both tasks have fewer than 500 examples left in training: they are all kept.
        ("replay", 4 * (BODY + 2 * HEAD) + 453 * (64 + 1)),
        ("er_ace", 4 * (BODY + 2 * HEAD) + 453 * (64 + 1)),
        # Logits of two classes are kept with each.
        ("der", 4 * (BODY + 2 * HEAD) + 453 * (64 + 1 + 2 * 4)),
        # A fifth of the memory is the share of each of five tasks.
        ("agem", 4 * (BODY + 2 * HEAD) + 2 * 100 * (64 + 1)),
        # Its backbone has biases and a shared head; one byte of ownership per weight.
        ("avalanche_packnet", 4 * (BODY + 200 + HEAD) + BODY + 200),
        ("independent", 2 * 4 * (BODY + 200)),
        ("independent_warm", 2 * 4 * (BODY + 200)),
    ],
)
def test_stored_bytes_after_two_tasks(name, stored, settings, tmp_path):
    learner, metrics = train(name, settings, tasks=2)
    sizes = learner.sizes(tmp_path / "archive")
    assert (sizes.stored, sizes.archive) == (stored, None)
    assert sum("Top1_Acc_Exp" in key for key in metrics) == 2


def test_online_ewc_keeps_one_penalty_however_many_tasks(settings, tmp_path):
    learner = ewc(settings, decay_factor=1.0)
    for experience in settings.stream.benchmark.train_stream[:3]:
        learner.train(experience)
    assert learner.sizes(tmp_path / "archive").stored == 3 * 4 * (BODY + 3 * HEAD)


def test_joint_waits_for_all_tasks(settings, tmp_path):
    learner, metrics = train("joint", settings, tasks=4)
    assert metrics == {}
    benchmark = settings.stream.benchmark
    learner.train(benchmark.train_stream[4])
    assert len(learner.eval(benchmark.test_stream)) >= 5
    assert learner.sizes(tmp_path / "archive").stored == 4 * (BODY + 5 * HEAD)


def test_independent_bytes_are_plain_networks_with_heads_of_their_tasks(settings):
    assert settings.independent_bytes() == 5 * 4 * (BODY + 200)


def test_avalanche_packnet_says_that_it_needs_two_epochs(settings):
    budget = dataclasses.replace(settings.budget, epochs=1)
    with pytest.raises(ValueError, match="at least 2 epochs"):
        build("avalanche_packnet", dataclasses.replace(settings, budget=budget))


LABELLED = [name for name, entry in STRATEGIES.items() if "task" in entry.scenarios]


@pytest.mark.parametrize("name", LABELLED)
def test_every_strategy_calls_the_watching_plugins(name, settings, tmp_path):
    from benchmarks.runs.display import EpochWatcher

    epochs = []
    watched = dataclasses.replace(settings, plugins=[EpochWatcher(epochs.append)])
    tasks = 5 if name == "joint" else 1
    train(name, watched, tasks)
    assert epochs == [1, 2]
