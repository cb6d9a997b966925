"""The documents' commands can be given, and what they say of us is what the records say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from statistics import mean, stdev

import pytest

from benchmarks import ablations, compare
from benchmarks.records import read_records

ROOT = Path(__file__).parent.parent
CLAIMS = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
PUBLISHED = (ROOT / "docs" / "published.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"(?:`| {4})((?:python -m|pytest) [^`\n]+)", CLAIMS + PUBLISHED)))
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
]
DENSE_BYTES = 4 * (784 * 100 + 100 * 100 + 10 * 100 * 10)
"""Of one network of the permuted digits with the heads of ten tasks."""
ROWS = {
    "a network a task": "independent",
    "WSN, density .5": "wsn",
    "TinySubNets": "tinysubnets",
    "AdaQPackNet": "ada_qpacknet",
    "PackNet": "packnet",
    "HALRP": "halrp",
    "CACL": "cacl",
    "EWC": "ewc",
    "all tasks at once": "joint",
    "one network in turn": "naive",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_documents_can_be_given(command):
    program, *arguments = shlex.split(command)
    if program == "pytest":
        assert all((ROOT / path).exists() for path in arguments)
        return
    parse = {"benchmarks.compare": compare.parse, "benchmarks.ablations": ablations.parse}
    assert parse[arguments[1]](arguments[2:])


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_to_files_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize(("row", "strategy"), ROWS.items())
def test_our_column_beside_published_figures_is_that_of_the_records(row, strategy):
    runs = [
        run
        for run in read_records(ROOT / "benchmarks" / "records.jsonl")
        if (run.stream, run.strategy, run.scenario) == ("permuted_mnist", strategy, "task")
        and not run.variant
    ]
    accuracies = [100 * run.accuracy for run in runs]
    (cells,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", PUBLISHED, re.MULTILINE)
    *_, ours, size = (cell.strip() for cell in cells.split("|"))
    spread = f"{stdev(accuracies):.2f}".lstrip("0")
    assert ours == f"{mean(accuracies):.2f} ± {spread}"
    if size:
        percent = 100 * mean(run.compared_bytes for run in runs) / DENSE_BYTES
        assert float(size) == pytest.approx(percent, abs=0.5 if percent > 500 else 0.06)


@pytest.mark.parametrize("stream", ["permuted_mnist", "permuted_digits"])
def test_the_page_on_choosing_names_the_smallest_and_the_most_accurate(stream):
    """docs/choose.md says so; its tables are made from the same records."""
    ours = ("packnet", "wsn", "tinysubnets", "ada_qpacknet", "cacl", "halrp", "lora")
    runs = [
        run
        for run in read_records(ROOT / "benchmarks" / "records.jsonl")
        if (run.stream, run.scenario, run.variant) == (stream, "task", "") and run.strategy in ours
    ]
    names = {run.strategy for run in runs}
    size, accuracy = (
        {name: mean(getattr(run, of) for run in runs if run.strategy == name) for name in names}
        for of in ("archive_bytes", "accuracy")
    )
    assert min(size, key=size.get) == "tinysubnets"
    if stream == "permuted_mnist":
        best = [accuracy[name] for name in ("wsn", "tinysubnets", "ada_qpacknet")]
        assert max(accuracy.values()) == max(best) <= min(best) + 0.001
