"""The page on a phone: nothing but tables scrolls sideways, and those in a box of their own."""

from __future__ import annotations

import pytest
from browser_for_tests import phone

from benchmarks.choices import FIRST_STREAMS
from benchmarks.data.streams import STREAMS
from benchmarks.records import RECORDS, read_records
from benchmarks.report.html_report import html_report
from benchmarks.runs.strategies import FIRST_LOOK


@pytest.fixture(scope="module")
def default_run():
    """What ``python -m benchmarks.compare`` shows, from the records."""
    kept = [
        run
        for run in read_records(RECORDS)
        if run.stream in FIRST_STREAMS
        and run.strategy in FIRST_LOOK
        and (run.seed, run.order_index, run.scenario) == (0, 0, "task")
        and run.epochs == STREAMS[run.stream].budget.epochs
        and run.own_backbone
        and not run.variant
    ]
    assert {run.stream for run in kept} == set(FIRST_STREAMS)
    return html_report(kept, {}, {})


def test_the_page_of_the_default_run_is_light(default_run):
    assert len(default_run.encode()) < 500_000


def test_on_a_phone_the_page_is_as_wide_as_the_screen(default_run, tmp_path):
    (tmp_path / "report.html").write_text(default_run, encoding="utf-8")
    with phone(width=390) as browser:
        browser.open((tmp_path / "report.html").as_uri())
        assert browser.run("return innerWidth") == 390
        assert browser.run("return document.documentElement.scrollWidth") <= 390
        browser.run("for (const each of document.querySelectorAll('details')) each.open = true")
        assert browser.run("return document.documentElement.scrollWidth") <= 390
        outside = """
          const scrolls = (e) => e.closest(".scroll");
          return [...document.querySelectorAll("body *")]
            .filter((e) => !scrolls(e) && e.getBoundingClientRect().right > innerWidth + 1)
            .map((e) => e.tagName);
        """
        assert browser.run(outside) == []
        wide = """
          return [...document.images].filter((image) =>
            !image.complete || image.naturalWidth === 0
            || image.getBoundingClientRect().right > innerWidth).length;
        """
        assert browser.run(wide) == 0
        scrolling = """
          return [...document.querySelectorAll(".scroll:has(table)")]
            .filter((box) => box.scrollWidth > box.clientWidth).length;
        """
        assert browser.run(scrolling) > 0
