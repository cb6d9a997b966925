"""A table as text and as Markdown; as HTML it is rendered by ``templates/table.html``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from benchmarks.report.tables import Table


def as_text(table: Table) -> RichTable:
    """A table for the terminal."""
    drawn = RichTable(
        title=table.title,
        title_justify="left",
        caption=table.caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for place, column in enumerate(table.columns):
        justify: Literal["left", "right"] = "right" if place else "left"
        drawn.add_column(f"{column.name}\n{column.unit}", justify=justify, no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(Text(cell.text, "bold" if cell.is_bold else "") for cell in row))
    return drawn


def as_markdown(table: Table) -> str:
    """A table in Markdown, under a heading.

    >>> from benchmarks.report.tables import Cell, Column
    >>> table = Table("One", [Column("name"), Column("size", "m")], [[Cell("a"), Cell("1")]])
    >>> print(as_markdown(table), end="")
    ### One
    <BLANKLINE>
    | name | size m |
    | :-- | --: |
    | a | 1 |
    """
    lines = [
        f"### {table.title}",
        "",
        _line([str(column) for column in table.columns]),
        _line([":--", *["--:"] * (len(table.columns) - 1)]),
        *(_line([f"**{c.text}**" if c.is_bold else c.text for c in row]) for row in table.rows),
    ]
    if table.notes:
        lines += ["", f"*{table.caption}*"]
    return "\n".join([*lines, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
