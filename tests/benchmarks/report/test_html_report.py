"""The page: well-formed, complete in itself, and with the numbers of the tables."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import product
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from benchmarks_for_tests import make_result, reordered

from benchmarks import compare
from benchmarks.report.command import write_report
from benchmarks.report.groups import Group
from benchmarks.report.html_report import address_of, command_of, html_report, notes_of, origins_of
from benchmarks.report.pictures import draw_comparison
from benchmarks.report.tables import difference_table, result_table, run_table
from benchmarks.runs.results import PAGES

VOID = {"meta", "img", "br", "hr", "link"}


class Page(HTMLParser):
    """Elements with their attributes, the text of each table, and whether all is closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.tables, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes)
        self.elements.append((tag, dict(attributes)))
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def body_of(self, number):
        return self.tables[number][1:]


def grid(**changes):
    """Two strategies, seeds and orders."""
    made = product((make_result, reordered), ("naive", "wsn"), (0, 1))
    return [make(name, seed=seed, recipe="r", **changes) for make, name, seed in made]


@pytest.fixture(scope="module")
def runs():
    layers = {"densities": {"body.1.weight": [0.5, 0.25]}, "bits": {"body.1.weight": [8.0, None]}}
    labels = {"scenario": "class", "task_inference": "energy", "task_id_accuracy": 0.5}
    found = [*grid(), make_result("cacl", ranks={"body.1.weight": [4, 1]}, **layers)]
    found += [make_result("wsn", accuracy=0.6, **labels), make_result(scenario="class")]
    return [*found, make_result(quick=True, epochs=2)]


@pytest.fixture(scope="module")
def text(runs):
    return html_report(runs, {"split_digits-<b>-seed0": 'ValueError: 1 < 2 & "so on"'}, {})


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_names_are_used_once_and_every_link_leads_somewhere(page):
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(names)) == len(names)
    links = [attributes["href"] for attributes in page.all("a")]
    assert links
    assert all(link[0] == "#" and link[1:] in names for link in links)
    assert {name for name in names if name.endswith("results")} == {
        f"s{place}-results" for place in ("1-task", "1-class", "1-both", "2-task")
    }


def test_nothing_is_fetched_from_anywhere(page, text):
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "poster")
    ]
    assert all(address.startswith(("#", "data:image/svg+xml,")) for address in addresses)
    assert not page.all("link")
    assert "@import" not in text
    assert re.findall(r"url\((?!%23)", text) == []
    policies = [element["content"] for element in page.all("meta") if "http-equiv" in element]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; img-src data:;")


def test_every_figure_is_an_svg_with_words_for_who_cannot_see_it(page):
    assert len(page.all("figure")) == len(page.all("figcaption")) == len(page.all("img"))
    for image in page.all("img"):
        assert image["alt"].strip()
        drawn = unquote(image["src"].partition(",")[2])
        assert ElementTree.fromstring(drawn).tag.endswith("svg")
        links = re.findall(r"(?:href|src)='([^']*)'", drawn)
        assert all(link.startswith(("#", "data:")) for link in links)


def test_numbers_are_those_of_the_tables(page, runs):
    first = Group([run for run in runs if run.scenario == "task" and not run.quick])
    results = result_table(first)
    assert page.body_of(0) == results.texts()
    assert page.tables[0][0] == [str(column) for column in results.columns]
    assert page.body_of(1) == difference_table(first).texts()
    assert run_table(first).texts() in [table[1:] for table in page.tables]


def test_columns_sort_by_buttons_on_numbers_that_are_exact(page, runs):
    heads = [element for element in page.all("th") if element.get("scope") == "col"]
    assert {element["aria-sort"] for element in heads} == {"none"}
    assert len(page.all("button")) == len(heads)
    values = [element["data-value"] for element in page.all("td") if "data-value" in element]
    assert str(100 * runs[0].accuracy) in values
    numbers = [
        element for element in page.all("td") if "data-value" in element and "class" not in element
    ]
    assert numbers
    assert all(float(element["data-value"]) is not None for element in numbers)


def test_whatever_was_given_is_shown_as_text(text, page):
    assert "<b>-seed0" not in text
    assert "split_digits-<b>-seed0" in page.text
    assert any('ValueError: 1 < 2 & "so on"' in data for data in page.text)


def test_quick_runs_and_failures_are_told(text, page):
    assert text.count('<span class="badge">quick</span>') == 1
    assert "Runs that failed (1)" in page.text
    assert "Runs that failed" not in html_report([make_result()], {}, {})


def test_long_tables_are_folded_away():
    many = [make_result(f"method {number}", seed=seed) for number in range(9) for seed in (0, 1)]
    page = Page(html_report(many, {}, {}))
    assert len(page.all("details")) == 1  # 36 pairs, and 18 runs


def test_the_same_runs_make_the_same_page_whether_or_not_their_pictures_are_drawn(tmp_path):
    drawn = draw_comparison(grid(), tmp_path)
    assert html_report(grid(), {}, drawn) == html_report(grid(), {}, {})


def test_pictures_of_several_sections_are_drawn_for_each(runs, tmp_path):
    drawn = draw_comparison(runs, tmp_path)
    assert html_report(runs, {}, drawn) == html_report(runs, {}, {})


def test_what_is_missing_or_does_not_compare_is_noted():
    assert notes_of(Group(grid())) == []
    (lacking,) = notes_of(Group(grid()[:-1]))
    assert lacking == "wsn lacks 1 of 4 runs that others have: seed 1, order 1."
    assert notes_of(Group([*grid()[:3], make_result("wsn", seed=1, recipe="other")])) == [
        "wsn was run with 2 recipes, which are averaged here."
    ]
    assert notes_of(Group([make_result()])) == [
        "There is one seed only, which says nothing of chance.",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--strategies", "naive", "wsn", "--seeds", "0", "3", "--epochs", "7", "--orders", "2"],
        ["--strategies", "naive", "wsn", "--scenario", "class", "--inference", "energy", "--quick"],
        ["--strategies", "joint", "--backbone", "lenet", "--epochs", "1", "--bf16"],
    ],
)
def test_the_command_repeats_the_runs(arguments):
    jobs = compare.parse([*arguments, "--device", "cpu"]).jobs()
    runs = [
        make_result(
            job.key.strategy,
            stream=job.key.stream,
            seed=job.key.seed,
            scenario=job.key.scenario,
            task_inference=job.key.inference,
            order_index=job.key.order_index,
            quick=job.key.quick,
            epochs=job.budget.epochs,
            backbone=job.backbone,
            own_backbone=job.key.backbone is None,
            bf16=job.key.bf16,
        )
        for job in jobs
    ]
    words = command_of(runs).split()
    assert words[:3] == ["python", "-m", "benchmarks.compare"]
    again = compare.parse(words[3:]).jobs()
    assert [(job.key, job.budget) for job in again] == [(job.key, job.budget) for job in jobs]


def test_versions_are_counted_where_they_differ():
    versions = [{"python": "3.8", "torch": "2.1"}, {"python": "3.8", "torch": "2.4"}]
    runs = [make_result(versions=found, hardware="a processor") for found in versions]
    assert origins_of(runs) == [
        ("python", ["3.8"]),
        ("torch", ["2.1 (1 of 2 runs)", "2.4 (1 of 2 runs)"]),
        ("device", ["cpu"]),
        ("hardware", ["a processor"]),
    ]
    assert ("hardware", ["not recorded"]) in origins_of([make_result()])


def test_a_picture_that_says_anything_cannot_leave_its_attribute():
    text = """<text x="1">50 % of "it's" &lt;b> #1</text>"""
    svg = f'<svg xmlns="http://www.w3.org/2000/svg">{text}</svg>'
    (image,) = Page(f'<p><img src="{address_of(svg)}" alt="x"></p>').all("img")
    drawn = unquote(image["src"].partition(",")[2])
    assert ElementTree.fromstring(drawn)[0].text == "50 % of 'it's' <b> #1"


def test_archives_and_pages_of_runs_are_linked(tmp_path):
    runs = [make_result(seed=0), make_result(seed=1)]
    slugs = [run.key.slug for run in runs]
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / slugs[0]).write_bytes(b"")
    (tmp_path / PAGES).mkdir()
    (tmp_path / PAGES / f"{slugs[0]}.txt").write_text("https://wandb.example/run")
    (tmp_path / PAGES / f"{slugs[1]}.txt").write_text("javascript:alert(1)")
    write_report(runs, tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    links = [each["href"] for each in page.all("a") if each["href"][0] != "#"]
    assert links == [f"archives/{slugs[0]}", "https://wandb.example/run"]


def test_the_page_says_first_which_method_is_for_whom(page, text):
    assert text.index("Which method for me") < text.index("Results")
    assert {each["id"] for each in page.all("h3") if "id" in each} >= {"s1-task-advice"}
