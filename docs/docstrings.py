"""Docstrings as Markdown: roles become code, examples become blocks of it."""

from __future__ import annotations

import re
from typing import Any

import griffe


class AsMarkdown(griffe.Extension):
    """Converts what is read, before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Convert the docstring of a class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """The docstring for a page.

    :param text: with roles of Sphinx and examples.
    """
    text = re.sub(r":[a-z]+:`~?(?:[\w.]*\.)?([^`.]+)`", r"`\1`", text)
    return re.sub(r"^( *)(>>> .*\n?(?:(?!\s*\n).*\n?)*)", _fenced, text, flags=re.MULTILINE)


def _fenced(found: re.Match[str]) -> str:
    return f"{found[1]}```python\n{found[1]}{found[2].rstrip()}\n{found[1]}```\n"
