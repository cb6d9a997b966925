"""Takes pages of the repository's root into the site, and turns links to them round."""

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
    return re.sub(r"(?<!!)\[([^\]]*)\]\((?:benchmarks/|\.\./)[^)]*\)", r"\1", markdown)
