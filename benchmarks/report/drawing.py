"""What all pictures have in common: colours, axes, groups of runs, and the two files of each."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, to_hex
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from benchmarks.choices import RULES
from benchmarks.report.groups import Group
from benchmarks.runs.strategies import STRATEGIES

Style = tuple[str, str]
"""Colour and marker."""

COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#ee7733",
    "#009988",
    "#555555",
    "#882255",
    "#117733",
    "#332288",
    "#999933",
    "#885533",
    "#bb88cc",
)
# no common divisor with the number of colours: the pairs repeat after 165 strategies, not after 15
_MARKERS = "osD^vPhX<>d"

# panels in a row
_ACROSS = 4

FEW_LAYERS = 8
"""Up to so many layers are named; more of them have colours by depth."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure.

    :param width: in inches.
    :param height: in inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> str:
    """Write a figure as PNG and, next to it, as SVG.

    :param path: of the PNG.
    :return: the SVG.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written = svg_of(figure)
    path.with_suffix(".svg").write_text(written, encoding="utf-8")
    figure.dpi = 150
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(path)
    return written


def svg_of(figure: Figure) -> str:
    """A figure as SVG, the same text for the same figure, in few bytes: letters are letters."""
    written = io.BytesIO()
    canvas: Any = FigureCanvasSVG(figure)
    with rc_context({"svg.hashsalt": "the same names every time", "svg.fonttype": "none"}):
        # the canvas draws once, with the layout; ``savefig`` draws twice, and would lay out before
        canvas.print_svg(written, metadata={"Date": None})
    figure.set_layout_engine("none")  # everything has its place, which another pass would move
    return compact(written.getvalue().decode("utf-8"))


def compact(svg: str) -> str:
    """The same picture in about half the bytes.

    Coordinates lose what is below a hundredth of a point, groups their names; what is said of the
    letters of each text is said once.

    :param svg: as matplotlib writes it.

    >>> compact('<svg><g id="axes_1"><path d="M 1.23456 250.00001"/></g></svg>')
    '<svg><g><path d="M 1.23 250"/></g></svg>'
    """
    for pattern, replacement in _SUPERFLUOUS:
        svg = pattern.sub(replacement, svg)
    svg = _FRACTION.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), svg)
    svg = _with_classes(svg)
    return svg.replace("<svg ", '<svg font-family="DejaVu Sans,Verdana,sans-serif" ', 1).strip()


def _with_classes(svg: str) -> str:
    """Styles that many elements have as classes, in the style sheet that matplotlib writes."""
    often = [style for style, count in Counter(_STYLE.findall(svg)).items() if count > 2]
    names = {style: f"c{number}" for number, style in enumerate(often)}

    def named(found: re.Match[str]) -> str:
        return f'class="{names[found[1]]}"' if found[1] in names else found[0]

    rules = "".join(f".{name}{{{style}}}" for style, name in names.items())
    return _STYLE.sub(named, svg).replace("</style>", f"{rules}</style>", 1)


_SUPERFLUOUS = [
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        (r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", ""),
        (r"(<g) id=\"[^\"]*\"", r"\1"),
        (r"font-family: [^;\"]*;? ?", ""),
        (r' transform="rotate\(-0 [^)]*\)"', ""),
        (r">\s+<", "><"),
        (r"\s*\n\s*", " "),
        (r"<g>(<text[^>]*>[^<]*</text>)</g>", r"\1"),
    )
]
_STYLE = re.compile(r'style="([^"]*)"')
_FRACTION = re.compile(r"\d+\.\d{2,}")


def stacked_figure(
    groups: Sequence[Group],
    height: Callable[[Group], float],
    draw: Callable[[Axes, Group], None],
) -> Figure:
    """A panel per group, one above the other.

    :param groups: what is drawn.
    :param height: of a group's panel, in inches.
    :param draw: draws a group.
    """
    heights = [height(group) for group in groups]
    figure = new_figure(8.6, sum(heights))
    grid = {"height_ratios": heights}
    panels = figure.subplots(len(groups), 1, squeeze=False, gridspec_kw=grid)[:, 0]
    for axes, group in zip(panels, groups):
        draw(axes, group)
        axes.set_title(group.title, size=11, loc="left")
    return figure


def strategy_figure(
    groups: Sequence[Group],
    title: Callable[[Group], str],
    draw: Callable[[SubFigure, np.ndarray, Group], None],
) -> Figure:
    """A part per group, one above the other, in it a panel per strategy, all on one scale.

    :param groups: what is drawn.
    :param title: what is said above a group's panels, behind its name.
    :param draw: draws a group on a grid of axes, of which the first are those of its strategies.
    """
    across = min(_ACROSS, max(len(group.strategies) for group in groups))
    rows = [-(-len(group.strategies) // across) for group in groups]
    heights = [1.1 + 2.1 * count for count in rows]
    figure = new_figure(max(6.4, 2.2 + 2.2 * across), sum(heights))
    parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)
    for part, count, group in zip(parts[:, 0], rows, groups):
        part.suptitle(f"{group.name}: {title(group)}", x=0.01, ha="left", size=10)
        panels = part.subplots(count, across, sharex=True, sharey=True, squeeze=False)
        for unused in panels.flat[len(group.strategies) :]:
            unused.set_visible(False)
        for axes, label in zip(panels.flat, group.strategies):
            axes.set_title(label, size=10, loc="left")
        draw(part, panels, group)
    return figure


def styles_of(groups: Sequence[Group]) -> dict[str, Style]:
    """Colour and marker by label, those of a registered strategy the same in every picture.

    The rules by which one strategy infers tasks share its colour.
    """
    runs = {label: same[0] for group in groups for label, same in group.strategies.items()}
    # a strategy that is not registered comes behind the last one
    names = dict.fromkeys([*STRATEGIES, *(run.strategy for run in runs.values())])
    places = {name: place for place, name in enumerate(names)}
    rules: list[str | None] = [None, *RULES, *(f"{rule}_batch" for rule in RULES)]
    styles = {}
    for label, run in runs.items():
        place = places[run.strategy]
        marker = place + (3 * rules.index(run.task_inference) if run.task_inference in rules else 0)
        styles[label] = (COLOURS[place % len(COLOURS)], _MARKERS[marker % len(_MARKERS)])
    return styles


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None of a single value."""
    return stdev(values) if len(values) > 1 else None


def keep_apart(places: Sequence[float], gap: float) -> list[float]:
    """Move places between 0 and 1 until no two are nearer than ``gap``, in the order they have.

    >>> [round(place, 2) for place in keep_apart([0.5, 0.98, 0.97, 0.0], 0.1)]
    [0.5, 1.0, 0.9, 0.0]
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for below, above in itertools.pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    ceiling = 1.0
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def whole_numbers() -> MaxNLocator:
    """Ticks at whole numbers."""
    return MaxNLocator(integer=True, steps=[1, 2, 5, 10])


def bare(axes: Axes, grid: str = "y") -> None:
    """Leave away what says nothing.

    :param grid: the axis whose ticks have lines across the panel, or ``"both"``.
    """
    axes.grid(True, axis=grid, which="major", color="0.92", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def layer_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each layer: few have distinct ones, many those of their depth."""
    if len(names) <= FEW_LAYERS:
        return dict(zip(names, COLOURS))
    return dict(zip(names, map(to_hex, _depth_map(len(names)).colors)))  # type: ignore[arg-type]


def layer_markers(names: Sequence[str]) -> dict[str, str]:
    """A shape for each layer, so that few are told apart without colours, too."""
    few = len(names) <= FEW_LAYERS
    return {name: _MARKERS[place] if few else "o" for place, name in enumerate(names)}


def _depth_map(layers: int) -> ListedColormap:
    """A colour per layer, dark at the input; without the palest end, which is lost on white."""
    return ListedColormap(colormaps["viridis"](np.linspace(0, 0.93, layers)))


def depth_bar(part: Figure | SubFigure, panels: np.ndarray, names: Sequence[str]) -> None:
    """A colour bar with the layers from the input up, some of them named."""
    layers = len(names)
    scale = ScalarMappable(BoundaryNorm(np.arange(layers + 1) - 0.5, layers), _depth_map(layers))
    named = np.unique(np.linspace(0, layers - 1, 6).round().astype(int))
    bar = part.colorbar(scale, ax=panels, pad=0.02, aspect=24, ticks=named)
    bar.ax.set_yticklabels([names[layer] for layer in named], size=8)
    bar.set_label(f"{layers} layers, by depth")
    bar.outline.set_visible(False)
    bar.ax.tick_params(which="both", length=0)
