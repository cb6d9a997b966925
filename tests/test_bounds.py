"""What an archive of anybody may cost: the bounds that SECURITY.md gives."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from avalanche_compress import ArchiveError, TaskLabelError, TaskNetwork, load_archive, save_archive
from avalanche_compress.core.heads import ANY_CLASSES, MOST_CLASSES, ROOM_FOR_CLASSES

ROOT = Path(__file__).parents[1]


def model():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def network_with(classes):
    network = TaskNetwork(model())
    network.open(0, classes)
    network.commit()
    return network


@pytest.mark.parametrize(
    ("classes", "fits"),
    [
        ([0, ANY_CLASSES - 1], True),
        ([0, ANY_CLASSES], False),
        ([0, MOST_CLASSES - 1], False),
        ([*range(ANY_CLASSES // ROOM_FOR_CLASSES), ANY_CLASSES], True),
        ([*range(8000), ROOM_FOR_CLASSES * 8001 - 1], True),
        ([*range(8000), ROOM_FOR_CLASSES * 8001], False),
    ],
    ids=str,
)
def test_a_row_of_logits_is_bounded_by_the_classes_that_a_file_has(classes, fits, tmp_path):
    if fits:
        network = network_with(classes)
        save_archive(network, tmp_path / "file")
        loaded = load_archive(tmp_path / "file", model)
        x = torch.randn(2, 4)
        assert torch.equal(loaded(x, 0), network.eval()(x, 0))
    else:
        with pytest.raises(TaskLabelError, match=r"class number \d+ and \d+ classes in all"):
            network_with(classes)  # before anything is trained


def test_a_sealed_file_cannot_have_what_no_archive_is_written_with(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("avalanche_compress.core.heads.ANY_CLASSES", MOST_CLASSES)
        network = network_with([0, MOST_CLASSES - 1])
        save_archive(network, tmp_path / "file")
    assert os.path.getsize(tmp_path / "file") < 2000
    with pytest.raises(ArchiveError, match=rf"class number {MOST_CLASSES - 1} and 2 classes"):
        load_archive(tmp_path / "file", model)


SCRIPT = """
    import sys
    import torch
    from torch import nn
    from avalanche_compress import SlottedStore, TaskNetwork, load_archive, save_archive
    torch.set_num_threads(1)
    path, kind = sys.argv[1:]
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(20, 700), nn.ReLU(), nn.Linear(700, 700), nn.Linear(700, 2))
    classes = [0, {any_classes} - 1] if kind == "class" else [0, 1]
    network = TaskNetwork(model(), lambda *place: SlottedStore(*place, policy="reuse_frozen"))
    network.open(0, classes)
    for store in network.weight_stores:
        store.fix_mask(torch.zeros_like(store.mask))
    network.commit()
    for store in [network.private, *network.weight_stores] if kind == "tasks" else []:
        section = store.sections[0]
        store.sections = {{task: section for task in range(400)}}
    if kind == "tasks":
        network.classes = {{task: (0, 1) for task in range(400)}}
    save_archive(network, path)
    def peak():
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) // 1000 for line in lines if line.startswith("VmHWM"))
    del network, store
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    loaded = load_archive(path, model)
    with torch.no_grad():
        loaded(torch.randn(256, 20), loaded.tasks[-1])
    print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="memory is read on Linux")
@pytest.mark.parametrize(("kind", "megabytes"), [("tasks", 50), ("class", 150)])
def test_a_small_file_takes_no_more_memory_than_is_said(kind, megabytes, tmp_path):
    script = textwrap.dedent(SCRIPT).format(any_classes=ANY_CLASSES)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "file"), kind],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < megabytes


def test_security_names_the_bounds():
    text = (ROOT / "SECURITY.md").read_text()
    assert f"{ANY_CLASSES:,}" in text
    assert f"{ROOM_FOR_CLASSES} times" in text
