"""Takes pages of the repository's root into the site, turns their links round, inlines drawings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = ("SECURITY.md", "RESULTS.md", "CHANGELOG.md")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Links lead within the site; of what is no part of it the text stays."""
    markdown = re.sub(r"\]\(\.\./(SECURITY|RESULTS|CHANGELOG)\.md", r"](\1.md", markdown)
    markdown = re.sub(r"\]\(docs/", "](", markdown)
    markdown = re.sub(r"\[(?:docs/)?(\w+\.md)\]", _titled, markdown)
    markdown = re.sub(r"(?<!!)\[([^\]]*)\]\((?:benchmarks/|\.\./)[^)]*\)", r"\1", markdown)
    return re.sub(r"!\[[^\]]*\]\((pictures/\w+\.svg)\)", _inlined, markdown)


def _titled(found: re.Match[str]) -> str:
    """The name of a page as the text of a link, where the repository has that of its file."""
    page = next(path for path in (ROOT / "docs" / found[1], ROOT / found[1]) if path.exists())
    return f"[{page.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}]"


def _inlined(found: re.Match[str]) -> str:
    """A drawing as part of the page, whose colours it then has, in the dark, too."""
    drawing = (ROOT / "docs" / found[1]).read_text(encoding="utf-8")
    return re.sub(r"<style>.*?</style>\n", "", drawing)
