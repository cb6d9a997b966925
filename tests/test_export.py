"""A finished task becomes an ONNX model or a program of torch's that answers as the task does."""

from __future__ import annotations

import subprocess
import sys
from collections import UserDict

import numpy as np
import pytest
import torch
from avalanche.models import MultiTaskModule
from streams_for_tests import OURS, conv_net, make_stream
from torch import nn

import avalanche_compress.export
from avalanche_compress import (
    ExportError,
    TaskNetwork,
    TaskStateError,
    TrainingDataError,
    export_task,
)

SUFFIXES = (".onnx", ".pt2")


@pytest.fixture(params=SUFFIXES)
def suffix(request):
    if request.param == ".onnx":
        pytest.importorskip("onnx")
    return request.param


def trained(model, method="packnet", tasks=2, **arguments):
    """A network that has learned tasks on 8 x 8 images, two classes each."""
    strategy = OURS[method](
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        train_mb_size=20,
        evaluator=None,
        **arguments,
    )
    for experience in make_stream(tasks).train_stream:
        strategy.train(experience)
    return strategy.network.eval()


def finished(model, x, classes=(0, 1)):
    """A network with one finished task, of the model's own weights."""
    network = TaskNetwork(model, example=x)
    network.open(0, classes)
    network.commit()
    return network.eval()


def read(path):
    """What the file answers, as a function of tensors by name."""
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return lambda **inputs: program(**inputs) if len(inputs) > 1 else program(*inputs.values())
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda **inputs: torch.from_numpy(
        session.run(None, {name: np.asarray(value) for name, value in inputs.items()})[0]
    )


# ------------------------------------------------------------------ what is written


@pytest.mark.parametrize("method", list(OURS))
def test_each_task_answers_as_before_in_batches_of_any_size(method, suffix, tmp_path):
    network, x = trained(conv_net(), method), torch.randn(7, 1, 8, 8)
    for task in (0, 1):
        path = tmp_path / f"task{suffix}"
        size = export_task(network, task, path, x[:3])
        assert size == path.stat().st_size
        answer = read(path)
        for count in (1, 3, 7):
            with torch.no_grad():
                expected = network.own_logits(x[:count], task)
            torch.testing.assert_close(answer(input=x[:count]), expected, rtol=1e-4, atol=1e-5)


def test_layers_of_few_terms_are_written_as_two_thin_ones(suffix, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 99), nn.ReLU(), nn.Linear(99, 2))
    network, x = trained(model, "cacl", energy=0.05, train_epochs=2), torch.randn(4, 1, 8, 8)
    for form, layers in (("dense", 2), ("factored", 3)):
        path = tmp_path / f"{form}{suffix}"
        export_task(network, 1, path, x, form=form)
        with torch.no_grad():
            expected = network.own_logits(x, 1)
        torch.testing.assert_close(read(path)(input=x), expected, rtol=1e-3, atol=1e-4)
        assert products(path) == layers


def products(path):
    """How many matrix products the file computes."""
    if path.suffix == ".pt2":
        graph = torch.export.load(path).graph
        return sum(node.target is torch.ops.aten.linear.default for node in graph.nodes)
    onnx = pytest.importorskip("onnx")
    return sum(node.op_type in ("Gemm", "MatMul") for node in onnx.load(path).graph.node)


class Text(nn.Module):
    """Averages the embeddings of the tokens that a mask leaves."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 6), nn.Linear(6, 2)

    def forward(self, tokens, *, attention_mask):
        weights = attention_mask.unsqueeze(-1)
        return {"logits": self.head((self.embedding(tokens) * weights).sum(1) / weights.sum(1))}


def texts(count):
    mask = (torch.arange(5) < torch.randint(1, 6, (count, 1))).float()
    return {"attention_mask": mask, "tokens": torch.randint(0, 20, (count, 5))}


def test_inputs_that_have_names_keep_them(suffix, tmp_path):
    network = finished(Text(), texts(3))
    export_task(network, 0, tmp_path / f"task{suffix}", texts(3))
    x = texts(5)
    answered = read(tmp_path / f"task{suffix}")(**x)
    torch.testing.assert_close(answered, network.own_logits(x, 0).detach())


class Whole(nn.Module):
    """Takes the mapping itself."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, batch):
        return self.head(torch.relu(self.body(batch["rows"])))


def test_a_mapping_of_another_class_is_example_enough(tmp_path):
    network = finished(Whole(), {"rows": torch.randn(3, 4)})
    export_task(network, 0, tmp_path / "task.pt2", UserDict(rows=torch.randn(1, 4)))
    x = {"rows": torch.randn(5, 4)}
    answered = torch.export.load(tmp_path / "task.pt2").module()(x)
    torch.testing.assert_close(answered, network.own_logits(x, 0).detach())


class Labelled(MultiTaskModule):
    """Takes the task's label, as Avalanche's models do."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x, task_labels):
        return self.head(torch.relu(self.body(x)))


def test_a_model_that_takes_task_labels_is_asked_for_the_one(suffix, tmp_path):
    x = torch.randn(4, 6)
    network = finished(Labelled(), x)
    export_task(network, 0, tmp_path / f"task{suffix}", x)
    answered = read(tmp_path / f"task{suffix}")(x=x)
    torch.testing.assert_close(answered, network.own_logits(x, 0).detach())


def test_one_sample_is_example_enough(suffix, tmp_path):
    network = finished(conv_net(), torch.zeros(1, 1, 8, 8))
    export_task(network, 0, tmp_path / f"task{suffix}", torch.randn(1, 1, 8, 8))
    x = torch.randn(6, 1, 8, 8)
    answered = read(tmp_path / f"task{suffix}")(input=x)
    torch.testing.assert_close(answered, network.own_logits(x, 0).detach(), rtol=1e-4, atol=1e-5)


def test_the_network_is_left_as_it_was(suffix, tmp_path):
    network, x = trained(conv_net()), torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        before = [network.own_logits(x, task) for task in (0, 1)]
        export_task(network, 0, tmp_path / f"task{suffix}", x)
        after = [network.own_logits(x, task) for task in (0, 1)]
    assert all(map(torch.equal, before, after))
    network.train()
    network.open(2, [0, 1])
    network(x, 2).sum().backward()


def test_a_program_runs_where_this_package_is_not(tmp_path):
    network = finished(Text(), texts(3))
    export_task(network, 0, tmp_path / "task.pt2", texts(3))
    script = (
        "import sys; sys.modules['avalanche_compress'] = sys.modules['avalanche'] = None\n"
        "import torch\n"
        f"program = torch.export.load({str(tmp_path / 'task.pt2')!r}).module()\n"
        "tokens = torch.zeros(2, 5, dtype=torch.int64)\n"
        "print(*program(attention_mask=torch.ones(2, 5), tokens=tokens).shape)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["2", "2"]


def test_no_sample_and_no_path_of_the_machine_is_in_the_file(suffix, tmp_path):
    x = torch.randn(3, 1, 8, 8)
    export_task(finished(conv_net(), x), 0, tmp_path / f"task{suffix}", x)
    content = (tmp_path / f"task{suffix}").read_bytes()
    assert x.numpy().tobytes()[:64] not in content
    for part in (torch.__file__.rpartition("/")[0], __file__.rpartition("/")[0]):
        assert part.encode() not in content


# ------------------------------------------------------------------ what is refused


class CountsSamples(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        rows = torch.stack([self.body(x[i]) * (i + 1) for i in range(len(x))])
        return self.head(rows)


class Branches(CountsSamples):
    def forward(self, x):
        hidden = self.body(x)
        return self.head(hidden if float(hidden.sum()) > 0 else -hidden)


class InverseOf(CountsSamples):
    """Uses what ONNX has no operation for."""

    def forward(self, x):
        return self.head(torch.linalg.eigvalsh(self.body(x).unsqueeze(2) @ torch.ones(1, 8)))


def refused(tmp_path, message, network, x, suffix=".pt2", kind=ExportError, task=0, **options):
    path = tmp_path / f"task{suffix}"
    with pytest.raises(kind, match=message):
        export_task(network, task, path, x, **options)
    assert not path.exists()


def test_a_model_that_counts_its_samples_is_exported_for_a_fixed_number(suffix, tmp_path):
    x = torch.randn(3, 6)
    network = finished(CountsSamples(), x)
    message = r"CountsSamples depends on the number of samples.*any_batch_size=False"
    refused(tmp_path, message, network, x, suffix)
    export_task(network, 0, tmp_path / f"task{suffix}", x, any_batch_size=False)
    answered = read(tmp_path / f"task{suffix}")(x=x)
    torch.testing.assert_close(answered, network.own_logits(x, 0).detach())


def test_a_model_that_reads_values_is_refused_by_name(suffix, tmp_path):
    x = torch.randn(3, 6)
    refused(tmp_path, "cannot trace the forward pass of Branches", finished(Branches(), x), x)


def test_what_onnx_cannot_say_is_refused_and_exported_as_a_program(tmp_path):
    pytest.importorskip("onnx")
    x = torch.randn(3, 6)
    network = finished(InverseOf(), x)
    refused(tmp_path, "InverseOf cannot be converted to ONNX.*task.pt2", network, x, ".onnx")
    export_task(network, 0, tmp_path / "task.pt2", x)


def test_wrong_arguments_are_refused_by_name(tmp_path):
    x = torch.randn(3, 1, 8, 8)
    network = finished(conv_net(), x)
    refused(tmp_path, r"'task.pth' ends neither in '.onnx' nor in '.pt2'", network, x, ".pth")
    refused(tmp_path, "form='thin' must be one of", network, x, kind=TaskStateError, form="thin")
    refused(tmp_path, "task 4", network, x, kind=TaskStateError, task=4)
    network = finished(Text(), texts(3))
    named = {**texts(3), "labels": torch.zeros(3)}
    refused(tmp_path, "none called 'labels'", network, named, kind=TrainingDataError)


def test_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    x = torch.randn(3, 1, 8, 8)
    network = finished(conv_net(), x)
    monkeypatch.setattr(avalanche_compress.export, "find_spec", lambda name: None)
    refused(tmp_path, r"'onnxruntime'.*avalanche-compress\[export\]", network, x, ".onnx")


def test_a_file_that_would_answer_otherwise_is_not_written(suffix, tmp_path, monkeypatch):
    x = torch.randn(3, 1, 8, 8)
    network, traced = finished(conv_net(), x), avalanche_compress.export._traced

    def wrong(model, any_batch_size):
        program = traced(model, any_batch_size)
        bias = program.state_dict["model.9.bias"] + 0.01
        program.state_dict["model.9.bias"] = nn.Parameter(bias)
        return program

    monkeypatch.setattr(avalanche_compress.export, "_traced", wrong)
    refused(tmp_path, r"answers 3 samples otherwise than the task does", network, x, suffix)
