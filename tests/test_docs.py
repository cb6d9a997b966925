"""What the documentation shows is run; the site is built without a warning, and fits a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from browser_for_tests import phone

ROOT = Path(__file__).parent.parent
BLOCKS = {
    path.stem: re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    for path in sorted((ROOT / "docs").glob("*.md"))
}
TESTED_ELSEWHERE = {"misuse", "transformers"}
PAGES = [page for page, blocks in BLOCKS.items() if blocks and page not in TESTED_ELSEWHERE]
"""Pages with examples."""


@pytest.mark.parametrize("page", PAGES)
def test_every_example_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page}
    for block in BLOCKS[page]:
        exec(block, names)
    assert list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if shutil.which("mkdocs") is None:
        pytest.skip("the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = ["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_is_built_without_a_warning(site):
    reference = (site / "reference" / "index.html").read_text(encoding="utf-8")
    assert "highlight" in reference
    assert not re.search(r":(class|func|meth|data):", reference)


def test_pages_fit_a_phone(site):
    with phone(width=390) as browser:
        for page in sorted(site.rglob("index.html")):
            browser.open(page.as_uri())
            width = browser.run("return document.documentElement.scrollWidth")
            assert width <= 390, page
