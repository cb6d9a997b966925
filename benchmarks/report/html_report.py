"""A comparison as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Mapping, Sequence

import jinja2

from benchmarks.report.drawing import panels_of, svg_of
from benchmarks.report.pictures import PICTURES, Picture
from benchmarks.report.tables import (
    Table,
    difference_table,
    layer_table,
    order_table,
    result_table,
    run_table,
    scenario_table,
)
from benchmarks.runs.results import (
    RunResult,
    by_scenario,
    by_strategy,
    by_stream,
    count_orders,
    title_of,
)

_TEMPLATES = Path(__file__).parent / "templates"
# a longer table is folded away until somebody wants to see it
_LONG = 30


@dataclass(frozen=True)
class Figure:
    """A picture inside the page.

    :param title: what it shows, in a few words.
    :param caption: how to read it.
    :param source: the SVG as a ``data:`` address.
    """

    title: str
    caption: str
    source: str


@dataclass(frozen=True)
class Block:
    """Tables and figures on one subject.

    :param id: where links lead to.
    :param title: the subject.
    :param tables: come first.
    :param figures: come next.
    """

    id: str
    title: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """The runs that may stand in one table, and all there is to say of them.

    :param id: where links lead to.
    :param title: which they are.
    :param blocks: by subject.
    :param is_quick: whether they had but a tenth of the epochs.
    :param notes: what a reader must not overlook.
    :param command: repeats them.
    """

    id: str
    title: str
    blocks: list[Block]
    is_quick: bool = False
    notes: list[str] = field(default_factory=list)
    command: str = ""


def html_report(
    results: Sequence[RunResult], failures: Mapping[str, str], drawn: Mapping[str, str]
) -> str:
    """The page.

    :param results: all runs.
    :param failures: by the run's slug, why it did not finish.
    :param drawn: the SVGs of all runs together, by name of the picture; they are not drawn a
        second time where all runs stand in one section.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(_TEMPLATES)),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html").render(
        facts=_facts(results),
        failures=failures,
        sections=sections_of(results, drawn),
        origins=origins_of(results),
        long=_LONG,
    )


def sections_of(results: Sequence[RunResult], drawn: Mapping[str, str]) -> list[Section]:
    """A section for each stream and scenario, and one for both scenarios of a stream.

    :param results: all runs.
    :param drawn: see :func:`html_report`.
    """
    known = drawn if len(panels_of(results)) == 1 else {}
    sections = []
    for number, (stream, runs) in enumerate(by_stream(results), start=1):
        for scenario, same in by_scenario(runs).items():
            sections.append(_section(f"s{number}-{scenario}", stream, same, known))
        if len(by_scenario(runs)) > 1:
            both = f"s{number}-both"
            table = scenario_table(runs, stream)
            blocks = [Block(f"{both}-results", "Results", [table])]
            sections.append(Section(both, table.title, blocks, is_quick=runs[0].quick))
    return sections


def _section(
    place: str, stream: str, runs: Sequence[RunResult], drawn: Mapping[str, str]
) -> Section:
    figures = {
        picture.name: _figure(picture, drawn.get(picture.name) or svg_of(picture.draw(runs)))
        for picture in PICTURES
        if picture.groups(runs)
    }
    differences, layers = difference_table(runs, stream), layer_table(runs, stream)
    orders = [order_table(runs, stream)] if count_orders(runs) > 1 else []

    def block(name: str, title: str, tables: Sequence[Table], *drawn: str) -> Block:
        shown = [figures[own] for own in drawn if own in figures]
        return Block(f"{place}-{name}", title, list(tables), shown)

    blocks = [
        block("results", "Results", [result_table(runs, stream)]),
        block("differences", "Paired differences", [differences] if differences.rows else []),
        block("curves", "Accuracy over tasks", [], "accuracy_over_tasks"),
        block("matrices", "Accuracy matrices", [], "accuracy_matrices"),
        block("bytes", "Accuracy against bytes", [], "accuracy_against_bytes"),
        block("orders", "Order robustness", orders, "order_robustness"),
        block("layers", "Layers", [layers] if layers.rows else [], "ranks", "densities", "bits"),
        block("time", "Time", [], "time"),
        block("runs", "All runs", [run_table(runs, stream)]),
    ]
    return Section(
        place,
        title_of(runs, stream),
        [own for own in blocks if own.tables or own.figures],
        runs[0].quick,
        notes_of(runs),
        command_of(runs),
    )


def _figure(picture: Picture, svg: str) -> Figure:
    coded = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return Figure(picture.title, picture.caption, f"data:image/svg+xml;base64,{coded}")


def notes_of(runs: Sequence[RunResult]) -> list[str]:
    """What a reader must not overlook: runs that are missing, and runs that do not compare.

    :param runs: of one stream in one scenario.
    """
    everybody = sorted({(run.order_index, run.seed) for run in runs})
    notes = []
    for label, own in by_strategy(runs).items():
        done = {(run.order_index, run.seed) for run in own}
        missing = [pair for pair in everybody if pair not in done]
        lacking = [f"seed {seed}, order {order}" for order, seed in missing]
        if lacking:
            counts = f"{len(lacking)} of {len(everybody)} runs that others have"
            notes.append(f"{label} lacks {counts}: {'; '.join(lacking)}.")
        recipes = len({run.recipe for run in own})
        if recipes > 1:
            notes.append(f"{label} was run with {recipes} recipes, which are averaged here.")
    if len({run.seed for run in runs}) == 1:
        notes.append("There is one seed only, which says nothing of chance.")
    if len({(run.device, run.hardware) for run in runs}) > 1:
        notes.append("Runs had several kinds of hardware: their seconds do not compare.")
    return notes


def command_of(runs: Sequence[RunResult]) -> str:
    """A command that repeats these runs, and those that are missing among them.

    :param runs: of one stream in one scenario.
    """
    first = runs[0]
    words = ["python", "-m", "benchmarks.compare", "--streams", first.stream, "--strategies"]
    words += dict.fromkeys(run.strategy for run in runs)
    words += ["--seeds", *map(str, sorted({run.seed for run in runs}))]
    if first.scenario != "task":
        words += ["--scenario", first.scenario]
        rules = dict.fromkeys(run.task_inference for run in runs if run.task_inference)
        words += ["--inference", *rules] if rules else []
    orders = 1 + max(run.order_index for run in runs)
    words += ["--orders", str(orders)] if orders > 1 else []
    words += ["--quick"] if first.quick else ["--epochs", str(first.epochs)]
    words += ["--bf16"] if first.bf16 else []
    words += [] if first.own_backbone else ["--backbone", first.backbone]
    words += ["--device", first.device] if first.device != "cpu" else []
    return shlex.join(words)


def origins_of(results: Sequence[RunResult]) -> list[tuple[str, list[str]]]:
    """Versions and hardware, each with how many runs had them where not all had the same."""
    found: dict[str, Counter[str]] = {}
    for run in results:
        own = {**run.versions, "device": run.device, "hardware": run.hardware or "not recorded"}
        for name, value in own.items():
            found.setdefault(name, Counter())[value] += 1
    return [(name, _counted(values, len(results))) for name, values in found.items()]


def _counted(values: Counter[str], runs: int) -> list[str]:
    if list(values.values()) == [runs]:
        return list(values)
    return [f"{value} ({count} of {runs} runs)" for value, count in values.items()]


def _facts(results: Sequence[RunResult]) -> list[tuple[str, str]]:
    """What was run, in short."""
    return [
        ("runs", str(len(results))),
        ("streams", _listed(run.stream for run in results)),
        ("strategies", _listed(run.strategy for run in results)),
        ("seeds", _listed(str(seed) for seed in sorted({run.seed for run in results}))),
        ("task orders", str(count_orders(results))),
    ]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
