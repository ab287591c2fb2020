"""A report's charts, as SVG to stand in its page.

Drawn by matplotlib without its global state. Their text stays text, and colours are the page's: an
element has a class in place of a colour, and no style of its own, which the page's policy bars.
"""
# matplotlib's types are not complete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC
from typing import Any
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from jobs.report.documents import Breakdown, RunSummary, StageTimes
from jobs.report.units import Unit

WIDTH_IN = 6.6
MAX_BARS = 12
MAX_LABEL_CHARS = 20
MAX_POINTS = 400
INK, LINE, BAR, FAINT, SPAN = "#111111", "#222222", "#333333", "#444444", "#555555"
_CLASSES = {INK: "ink", LINE: "line", BAR: "bar", FAINT: "faint", SPAN: "span"}
_SVG = "http://www.w3.org/2000/svg"
_OURS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rushes",
    "text.parse_math": False,
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "grid.color": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def draw_commits(committed_at: NDArray[np.float64], runs: Sequence[RunSummary]) -> str:
    """Return how many clips were committed by when, with the times of runs behind.

    `committed_at` is in seconds since 1970, in order, and not empty. A run without an end is shown
    up to the next one's beginning.
    """

    def draw(axes: Axes) -> None:
        count = committed_at.size
        picked = np.unique(np.linspace(0, count - 1, min(count, MAX_POINTS)).round().astype(int))
        days = list(committed_at[picked] / 86400)  # as matplotlib counts dates
        starts = [float(date2num(run.started_at)) for run in runs]
        for place, (run, start) in enumerate(zip(runs, starts, strict=True)):
            until = run.ended_at or next((each.started_at for each in runs[place + 1 :]), None)
            end = float(date2num(until)) if until else max(start, days[-1])
            axes.axvspan(start, end, facecolor=SPAN, linewidth=0)
            axes.axvline(start, color=FAINT, linewidth=1)
        began = min([days[0], *starts])
        axes.step([began, *days], [0, *(picked + 1)], where="post", color=BAR, linewidth=1.8)
        axes.set_ylim(0, count * 1.08)
        axes.margins(x=0.01)
        locator = AutoDateLocator(tz=UTC, minticks=3, maxticks=9)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y", linewidth=0.6)

    title = "Clips committed over time, UTC" + ("; runs behind" if runs else "")
    return _draw(title, (11.6, 2.8), draw, left=0.045, bottom=0.15)


def draw_breakdown(breakdown: Breakdown, unit: Unit) -> str:
    """Return the device time of a label's values; of the first few, where there are many."""
    values = breakdown.values[:MAX_BARS]
    names = ["(none)" if each.value is None else each.value for each in values]
    amounts = [each.device_seconds / unit.seconds for each in values]

    def draw(axes: Axes) -> None:
        axes.barh(range(len(values)), amounts, color=BAR, height=0.62)
        _write_ends(axes, amounts, [unit.show(each.device_seconds) for each in values])
        _name_bars(axes, names)

    title = f"{unit.name} by {_shorten(breakdown.label)}"
    return _draw(title, (WIDTH_IN, 0.5 + 0.27 * len(values)), draw)


def draw_stages(stages: Sequence[StageTimes]) -> str:
    """Return the seconds that stages took for a clip: medians, and 95th percentiles behind."""

    def draw(axes: Axes) -> None:
        places, ends = range(len(stages)), [each.p95_s for each in stages]
        axes.barh(places, ends, color=FAINT, height=0.62)
        axes.barh(places, [each.median_s for each in stages], color=BAR, height=0.62)
        texts = [f"{each.median_s:,.2f} · {each.p95_s:,.2f}" for each in stages]
        _write_ends(axes, ends, texts)
        _name_bars(axes, [each.stage for each in stages])

    size_in = (WIDTH_IN, 0.5 + 0.27 * len(stages))
    return _draw("Seconds for a clip: median · 95th percentile", size_in, draw)


def _write_ends(axes: Axes, ends: Sequence[float], texts: Sequence[str]) -> None:
    most = max(ends, default=0.0) or 1.0
    axes.set_xlim(0, most * 1.3)
    for place, (end, text) in enumerate(zip(ends, texts, strict=True)):
        axes.text(end + most * 0.015, place, text, va="center_baseline", ha="left")


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_shorten(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _draw(
    title: str,
    size_in: tuple[float, float],
    draw: Callable[[Axes], None],
    left: float = 0.27,
    bottom: float = 0.02,
) -> str:
    """Return a chart of one pair of axes, which `draw` fills, as an SVG element."""
    sink, height_in = io.StringIO(), size_in[1]
    with rc_context(_OURS), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of glyphs that the browser will find
        figure = Figure(figsize=size_in)
        axes = figure.add_axes((left, bottom, 0.985 - left, 1 - bottom - 0.32 / height_in))
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        draw(axes)
        figure.text(0.004, 1 - 0.05 / height_in, title, va="top", ha="left", weight="bold")
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    return _fit_page(sink.getvalue(), title)


def _fit_page(svg: str, title: str) -> str:
    """Return an SVG document as an element for a page: classes in place of styles."""
    root = ElementTree.fromstring(svg.encode())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        if element.tag == f"{{{_SVG}}}g":
            element.attrib.pop("id", None)
        _restyle(element)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"class": "chart", "role": "img", "aria-label": title}
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return ElementTree.tostring(root, "unicode")


def _restyle(element: ElementTree.Element) -> None:
    """Turn an element's style into attributes, its colours into classes."""
    classes: list[str] = []
    for part in filter(None, element.attrib.pop("style", "").split(";")):
        name, _, value = (word.strip() for word in part.partition(":"))
        if value in _CLASSES:
            classes.append(f"{name}-{_CLASSES[value]}")
        elif name != "font-family":  # the page has its own
            element.set(name, value)
    if element.tag == f"{{{_SVG}}}text" and not classes:
        classes.append("fill-ink")
    if classes:
        element.set("class", " ".join(classes))


def _shorten(text: str) -> str:
    """Return a text that fits beside a bar, of characters that XML can hold."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return shown if len(shown) <= MAX_LABEL_CHARS else shown[: MAX_LABEL_CHARS - 1] + "…"
