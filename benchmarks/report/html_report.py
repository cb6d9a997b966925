"""A comparison as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from benchmarks.report.advice import Advice, advice_on
from benchmarks.report.drawing import svg_of
from benchmarks.report.groups import Group, Runs, by_order, by_stream, groups_of
from benchmarks.report.pictures import PICTURES, Picture
from benchmarks.report.tables import TABLES, Table, scenario_table

Links = dict[str, str]
"""Title to address."""

_TEMPLATES = Path(__file__).parent / "templates"
# a longer table is folded away until somebody wants to see it
_LONG = 30

_SUBJECTS = {
    "results": "Results",
    "differences": "Paired differences",
    "curves": "Accuracy over tasks",
    "matrices": "Accuracy matrices",
    "bytes": "Accuracy against bytes",
    "orders": "Order robustness",
    "layers": "Layers",
    "runs": "All runs",
}
"""What a section has blocks on, in this order."""


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
    :param advice: which method is for whom.
    :param links: of each run its slug, and the titles and addresses of what there is of it.
    """

    id: str
    title: str
    blocks: list[Block]
    is_quick: bool = False
    notes: list[str] = field(default_factory=list)
    command: str = ""
    advice: list[Advice] = field(default_factory=list)
    links: list[tuple[str, Links]] = field(default_factory=list)


def html_report(
    results: Runs,
    failures: Mapping[str, str],
    drawn: Mapping[str, str],
    links: Mapping[str, Links] = MappingProxyType({}),
) -> str:
    """The page.

    :param results: all runs.
    :param failures: by the run's slug, why it did not finish.
    :param drawn: the SVGs of all runs together, by name of the picture; they are not drawn a
        second time where all runs stand in one section.
    :param links: by the run's slug, titles and addresses of its archive and its page at W&B.
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
        sections=sections_of(results, drawn, links),
        origins=origins_of(results),
        long=_LONG,
    )


def sections_of(
    results: Runs, drawn: Mapping[str, str], links: Mapping[str, Links] = MappingProxyType({})
) -> list[Section]:
    """A section for each stream and scenario, and one for both scenarios of a stream.

    :param results: all runs.
    :param drawn: see :func:`html_report`.
    :param links: see :func:`html_report`.
    """
    known = drawn if len(groups_of(results)) == 1 else {}
    sections = []
    for number, groups in enumerate(by_stream(results), start=1):
        sections += [_section(f"s{number}-{g.runs[0].scenario}", g, known, links) for g in groups]
        if len(groups) > 1:
            place, table = f"s{number}-both", scenario_table(groups)
            blocks = [Block(f"{place}-results", _SUBJECTS["results"], [table])]
            quick = groups[0].runs[0].quick
            sections.append(Section(place, table.title, blocks, is_quick=quick))
    return sections


def _section(
    place: str, group: Group, drawn: Mapping[str, str], links: Mapping[str, Links]
) -> Section:
    blocks = []
    for subject, title in _SUBJECTS.items():
        tables = [TABLES[subject](group)] if subject in TABLES else []
        shown = [picture for picture in PICTURES if picture.subject == subject]
        found = [(picture, picture.groups(group.runs)) for picture in shown]
        figures = [
            _figure(picture, drawn.get(picture.name) or svg_of(picture.draw(groups)))
            for picture, groups in found
            if groups
        ]
        block = Block(f"{place}-{subject}", title, [t for t in tables if t.rows], figures)
        blocks += [block] if block.tables or figures else []
    first = group.runs[0]
    slugs = [run.key.slug for run in group.runs]
    return Section(
        place,
        group.title,
        blocks,
        first.quick,
        notes_of(group),
        command_of(group.runs),
        advice_on(group),
        [(slug, links[slug]) for slug in slugs if slug in links],
    )


def _figure(picture: Picture, svg: str) -> Figure:
    return Figure(picture.title, picture.caption, address_of(svg))


def address_of(svg: str) -> Markup:
    """An SVG as a ``data:`` address for an attribute in double quotes, shorter than in base64.

    :param svg: with attributes in double quotes.
    """
    text = svg.replace("'", "&apos;").replace('"', "'")
    for character in "%&#\n":
        text = text.replace(character, quote(character))
    return Markup("data:image/svg+xml," + text)


def notes_of(group: Group) -> list[str]:
    """What a reader must not overlook: runs that are missing, and runs that do not compare.

    :param group: runs of one stream and scenario.
    """
    everybody = sorted({(run.order_index, run.seed) for run in group.runs})
    notes = []
    for label, runs in group.strategies.items():
        done = {(run.order_index, run.seed) for run in runs}
        lacking = [f"seed {s}, order {order}" for order, s in everybody if (order, s) not in done]
        if lacking:
            counts = f"{len(lacking)} of {len(everybody)} runs that others have"
            notes.append(f"{label} lacks {counts}: {'; '.join(lacking)}.")
        recipes = len({run.recipe for run in runs})
        if recipes > 1:
            notes.append(f"{label} was run with {recipes} recipes, which are averaged here.")
    if len({run.seed for run in group.runs}) == 1:
        notes.append("There is one seed only, which says nothing of chance.")
    return notes


def command_of(runs: Runs) -> str:
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


def origins_of(results: Runs) -> list[tuple[str, list[str]]]:
    """Versions and hardware, each with how many runs had them where not all had the same."""
    found: dict[str, Counter[str]] = {}
    for run in results:
        hardware = {"device": run.device, "hardware": run.hardware or "not recorded"}
        for name, value in {**run.versions, **hardware}.items():
            found.setdefault(name, Counter())[value] += 1
    return [(name, _counted(values, len(results))) for name, values in found.items()]


def _counted(values: Counter[str], runs: int) -> list[str]:
    if list(values.values()) == [runs]:
        return list(values)
    return [f"{value} ({count} of {runs} runs)" for value, count in values.items()]


def _facts(results: Runs) -> list[tuple[str, str]]:
    """What was run, in short."""
    return [
        ("runs", str(len(results))),
        ("streams", _listed(run.stream for run in results)),
        ("strategies", _listed(run.strategy for run in results)),
        ("seeds", _listed(str(seed) for seed in sorted({run.seed for run in results}))),
        ("task orders", str(len(by_order(results)))),
    ]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
