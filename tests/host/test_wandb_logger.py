"""What WandBLogger promises, checked on what really reached W&B's offline file."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap

import dill
import numpy as np
import pytest
import torch
import wandb
from avalanche.benchmarks import tensors_benchmark
from avalanche.evaluation.metric_results import AlternativeValues, MetricValue, TensorImage
from avalanche.evaluation.metrics import (
    WeightCheckpoint,
    accuracy_metrics,
    confusion_matrix_metrics,
    loss_metrics,
)
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from wandb_for_tests import offline_history, offline_records

from avalanche_compress.host.wandb_logger import WandBLogger
from avalanche_compress.host.wandb_values import heat_map, to_wandb


class FakeRun:
    """A run that remembers the calls of ``log``."""

    def __init__(self, id: str = "fake", resumed: bool = False, step: int = 0):
        self.id = id
        self.resumed = resumed
        self.step = step
        self.rows: list = []
        self._is_finished = False

    def log(self, row, step):
        assert not self._is_finished
        self.rows.append((step, row))

    def finish(self, exit_code=None):
        self.exit_code = exit_code
        self._is_finished = True


@pytest.fixture
def fake_init(monkeypatch):
    """Replace ``wandb.init`` by one that makes fake runs and remembers its arguments."""
    calls = []

    def init(**kwargs):
        calls.append(kwargs)
        return FakeRun(kwargs.get("id") or f"fake{len(calls)}")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "run", None)
    return calls


@pytest.fixture
def no_wandb_environment(monkeypatch):
    """Let neither the user's login nor another test's run reach an offline run."""
    for name in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")


def small_benchmark():
    streams = [
        [(torch.randn(12, 4), torch.randint(0, 3, (12,))) for _ in range(2)] for _ in range(2)
    ]
    return tensors_benchmark(train_tensors=streams[0], test_tensors=streams[1], task_labels=[0, 1])


def naive(*metrics, loggers=()):
    model = nn.Linear(4, 3)
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=4,
        train_epochs=2,
        eval_mb_size=4,
        evaluator=EvaluationPlugin(*metrics, loggers=list(loggers)),
    )


def test_a_real_run_reaches_the_offline_file(tmp_path, no_wandb_environment):
    torch.manual_seed(0)
    with WandBLogger(
        project_name="tests",
        run_name="offline",
        config={"learning_rate": 0.1},
        dir=tmp_path / "made if missing",
        save_code=False,
        params={"mode": "offline"},
        log_artifacts=True,
        path=tmp_path / "weights",
        host_names=True,
    ) as logger:
        assert wandb.config["learning_rate"] == 0.1
        strategy = naive(
            accuracy_metrics(minibatch=True, epoch=True, experience=True, stream=True),
            loss_metrics(minibatch=True, epoch=True, experience=True),
            confusion_matrix_metrics(num_classes=3, save_image=False, stream=True, wandb=True),
            WeightCheckpoint(),
            loggers=[logger],
        )
        benchmark = small_benchmark()
        results = []
        for experience in benchmark.train_stream:
            strategy.train(experience)
            results.append(strategy.eval(benchmark.test_stream))
        logger.log_accuracy_matrix(
            [
                [result[f"Top1_Acc_Exp/eval_phase/test_stream/Task00{t}/Exp00{t}"] for t in (0, 1)]
                for result in results
            ]
        )
        archive = tmp_path / "model.avc"
        archive.write_bytes(b"compressed")
        artifact = logger.log_archive(archive, "digits")
        assert artifact.metadata["bytes"] == 10
        run = logger.run
    assert wandb.run is None

    rows = offline_history(tmp_path)
    steps = [row["_step"] for row in rows]
    # 12 samples in batches of 4, two epochs, two experiences: W&B shows one row per iteration.
    assert steps == sorted(set(steps))
    assert max(steps) == 12
    merged = {key: value for row in rows for key, value in row.items()}
    accuracy = "Top1_Acc_Exp/eval_phase/test_stream/Task001/Exp001"
    assert merged[accuracy] == pytest.approx(results[-1][accuracy])
    assert isinstance(merged["Loss_Epoch/train_phase/train_stream/Task001"], float)
    assert merged["TrainingExperience"] == 1
    assert merged["ConfusionMatrix_Stream/eval_phase/test_stream/_type"] == "image-file"
    assert merged["AccuracyMatrix/table/nrows"] == 2
    assert merged["AccuracyMatrix/heat_map/_type"] == "image-file"
    assert any("W&BConfusionMatrix" in key for key in merged)
    artifacts = [r.artifact for r in offline_records(tmp_path) if r.HasField("artifact")]
    assert {"digits", "Model_0", "Model_1"} <= {artifact.name for artifact in artifacts}
    assert (tmp_path / "weights" / "Model_1.pth").stat().st_size > 0
    assert run._is_finished


def test_the_environment_variable_keeps_it_offline(tmp_path, no_wandb_environment, monkeypatch):
    wandb.teardown()  # wandb reads the environment once in the life of a process
    monkeypatch.setenv("WANDB_MODE", "offline")
    with WandBLogger(dir=tmp_path, save_code=False) as logger:
        logger.log_single_metric("a", 0.5, 3)
    (row,) = offline_history(tmp_path)
    assert (row["a"], row["_step"]) == (0.5, 3)


def test_a_loaded_logger_continues_the_run(tmp_path, no_wandb_environment):
    logger = WandBLogger(dir=tmp_path, save_code=False, params={"mode": "offline"})
    run_id = logger.run.id
    logger.log_single_metric("a", 1.0, 1)
    pickled = dill.dumps(logger)
    logger.finish()
    with wandb.init(mode="offline", dir=str(tmp_path), id="another") as other:
        loaded = dill.loads(pickled)
        loaded.log_single_metric("a", 2.0, 2)
        assert loaded.run.id == run_id != other.id
        loaded.finish()
    ids = {record.run.run_id for record in offline_records(tmp_path) if record.HasField("run")}
    assert ids == {run_id, "another"}
    assert [row["a"] for row in offline_history(tmp_path) if "a" in row] == [1.0, 2.0]


def test_a_copy_writes_to_the_same_open_run(fake_init):
    logger = WandBLogger()
    twin = copy.deepcopy(logger)
    twin.log_single_metric("a", 1.0, 1)
    logger.log_single_metric("a", 2.0, 2)
    assert twin.run is logger.run
    assert logger.run.rows == [(1, {"a": 1.0}), (2, {"a": 2.0})]
    assert len(fake_init) == 1


def test_unpickling_opens_no_run_before_a_metric_arrives(fake_init):
    logger = WandBLogger(params={"id": "mine"})
    pickled = dill.dumps(logger)
    logger.finish()
    loaded = dill.loads(pickled)
    assert len(fake_init) == 1
    loaded.log_single_metric("a", 1.0, 1)
    assert fake_init[1]["id"] == "mine"
    assert fake_init[1]["resume"] == "allow"


def test_a_metric_after_finish_resumes_the_run(fake_init):
    logger = WandBLogger(params={"id": "mine"})
    logger.finish()
    logger.finish()
    logger.log_single_metric("a", 1.0, 1)
    assert [call["id"] for call in fake_init] == ["mine", "mine"]


def test_a_failing_block_marks_the_run_as_failed(fake_init):
    runs = []

    def fail():
        with WandBLogger() as logger:
            runs.append(logger.run)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [run.exit_code for run in runs] == [1]


def metric(name, value, x_plot):
    return MetricValue(None, name, value, x_plot)  # type: ignore[arg-type]


def test_one_call_per_step_for_all_metrics(fake_init):
    logger = WandBLogger()
    logger.log_metrics(
        [
            metric("b", 2, 5),
            metric("a", torch.tensor(0.5), 4),
            metric("c", {"x": np.float32(1), "y": np.int64(2)}, 5),
            metric("nothing yet", None, 5),
        ]
    )
    logger.log_metrics([])
    assert logger.run.rows == [(4, {"a": 0.5}), (5, {"b": 2, "c/x": 1.0, "c/y": 2})]


def test_a_step_never_goes_back(fake_init, monkeypatch):
    logger = WandBLogger()
    logger.log_single_metric("a", 1, 7)
    logger.log_single_metric("a single value", 1, 0)
    assert [step for step, _ in logger.run.rows] == [7, 7]

    ahead = FakeRun("ahead", resumed=True, step=20)
    monkeypatch.setattr(wandb, "init", lambda **kwargs: ahead)
    resumed = WandBLogger(params={"id": "ahead", "resume": "allow"})
    resumed.log_single_metric("a", 1, 8)
    resumed.log_single_metric("a", 1, 21)
    assert [step for step, _ in ahead.rows] == [20, 21]


def test_what_cannot_be_shown_warns(fake_init):
    logger = WandBLogger()
    with pytest.warns(UserWarning, match="W&B cannot show odd, a object"):
        logger.log_single_metric("odd", object(), 1)
    assert logger.run.rows == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (True, True),
        (0.5, 0.5),
        ("text", "text"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.array([[2.0]]), 2.0),
        (torch.tensor(4), 4),
        (torch.tensor([0.5], requires_grad=True), 0.5),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.empty(0), None),
        (torch.tensor([float("nan"), float("inf")]), None),
        (AlternativeValues(object(), 0.5), 0.5),  # type: ignore[arg-type]
        (b"bytes", None),
    ],
)
def test_values_convert_to_plain_python(value, expected):
    converted = to_wandb(value)
    assert converted == expected
    assert type(converted) is type(expected)


def test_a_tensor_becomes_the_histogram_of_its_finite_elements():
    values = torch.cat([torch.randn(100), torch.tensor([float("nan")])])
    histogram = to_wandb(values.requires_grad_())
    counts, edges = np.histogram(values[:100].detach().double().numpy())
    assert histogram.histogram == counts.tolist()
    assert histogram.bins == edges.tolist()


def test_images_keep_their_pixels():
    pixels = torch.rand(3, 5, 7)
    shown = np.asarray(to_wandb(TensorImage(pixels)).image)
    assert np.array_equal(shown, (pixels * 255).round().byte().permute(1, 2, 0).numpy())
    grey = torch.randint(0, 256, (1, 5, 7), dtype=torch.uint8)
    assert np.array_equal(np.asarray(to_wandb(TensorImage(grey)).image), grey[0].numpy())
    assert to_wandb(Image.new("RGB", (4, 6))).image.size == (4, 6)
    figure = Figure()
    figure.subplots().plot([1, 2])
    assert isinstance(to_wandb(figure), wandb.Image)


def test_a_confusion_matrix_becomes_a_heat_map_by_its_name(fake_init):
    logger = WandBLogger()
    logger.log_single_metric("ConfusionMatrix_Stream/eval_phase", torch.eye(3), 1)
    logger.log_single_metric("Weights", torch.eye(3), 1)
    kinds = [type(value) for _, row in logger.run.rows for value in row.values()]
    assert kinds == [wandb.Image, wandb.Histogram]


def test_a_heat_map_opens_no_pyplot_figure():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    heat_map(np.array([[0.0, np.nan], [1.0, 0.5]]), "x", "y")
    assert plt.get_fignums() == before


@pytest.mark.parametrize(
    "matrix",
    [
        [[0.5], [0.25, 0.75]],
        torch.tensor([[0.5, float("nan")], [0.25, 0.75]]),
        np.array([[0.5, np.nan], [0.25, 0.75]]),
    ],
)
def test_an_accuracy_matrix_becomes_a_table_and_an_image(fake_init, matrix):
    logger = WandBLogger()
    logger.log_accuracy_matrix(matrix)
    ((_, row),) = logger.run.rows
    table = row["AccuracyMatrix/table"]
    assert table.columns == ["after task", "task 0", "task 1"]
    assert table.data == [[0, 0.5, None], [1, 0.25, 0.75]]
    assert isinstance(row["AccuracyMatrix/heat_map"], wandb.Image)


@pytest.mark.parametrize("matrix", [[], [[]], np.zeros((0, 2)), np.zeros((2, 2, 2))])
def test_an_accuracy_matrix_needs_two_dimensions(fake_init, matrix):
    with pytest.raises(ValueError, match="at least one row and one column"):
        WandBLogger().log_accuracy_matrix(matrix)


def test_a_missing_archive_is_named(fake_init, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.avc"):
        WandBLogger().log_archive(tmp_path / "none.avc", "none")


def test_the_artifact_of_the_weights_refers_to_the_external_storage(fake_init, tmp_path):
    logger = WandBLogger(
        log_artifacts=True, path=tmp_path / "new", uri=f"file://{tmp_path}/model.pth"
    )
    (tmp_path / "model.pth").write_bytes(b"weights")
    logged = []
    logger.run.log_artifact = logged.append
    logger.log_single_metric("WeightCheckpoint/train_phase/train_stream/Exp002", b"weights", 9)
    (artifact,) = logged
    assert set(artifact.manifest.entries) == {"Models/Model_2.pth", "model.pth"}
    assert artifact.metadata == {"experience": 2, "x_step": 9}
    assert (tmp_path / "new" / "Model_2.pth").read_bytes() == b"weights"


def test_importing_changes_no_module():
    script = """
        import wandb, avalanche.logging, torch
        modules = (wandb, wandb.util, wandb.plot, avalanche.logging, torch.optim)
        before = [dict(vars(module)) for module in modules]
        import avalanche_compress.host.wandb_logger, avalanche_compress.host.checkpoint
        for module, names in zip(modules, before):
            new = {n for n in vars(module) if n not in names and "avalanche_compress" not in n}
            assert all(type(vars(module)[n]) is type(wandb) for n in new), new
            assert all(vars(module)[n] is names[n] for n in names), module
        assert wandb.run is None
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120)
