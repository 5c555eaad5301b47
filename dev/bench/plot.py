"""The plots of docs/benchmarks.md: SVG, each in colours for a light and for a dark page."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter

from dev.bench.figures import Figure

# Okabe and Ito's colours, which people with any colour vision can tell apart: https://jfly.uni-koeln.de/color/
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"]
PAGES = {"light": "#1f2328", "dark": "#d1d7e0"}  # the colour of text
OURS = "`yoyo apply`", "`update_job_stats`"


def lines(file: Path, title: str, axes: tuple[str, str], ways: dict[str, dict[int, Figure]]) -> None:
    """Draw a line for each way, both axes in powers of ten, and write FILE-light.svg and FILE-dark.svg."""
    for page, ink in PAGES.items():
        drawing = _drawing(ink, title, (7.2, 4.2))
        plot = drawing.axes[0]
        plot.set(xscale="log", yscale="log", xlabel=axes[0], ylabel=axes[1])
        plot.grid(which="major", color=ink, alpha=0.15)
        for colour, (way, points) in zip(COLOURS, ways.items(), strict=False):
            medians = [figure.median for figure in points.values()]
            lows = [figure.median - min(figure.runs) for figure in points.values()]
            highs = [max(figure.runs) - figure.median for figure in points.values()]
            width = 3 if way.startswith(OURS) else 1.6
            plot.errorbar(
                list(points),
                medians,
                [lows, highs],
                color=colour,
                linewidth=width,
                marker="o",
                capsize=3,
                label=_plain(way),
            )
        plot.set_xticks(sorted({number for points in ways.values() for number in points}))
        plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        plot.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        plot.minorticks_off()
        plot.legend(frameon=False, labelcolor=ink)
        _write(drawing, file, page)


def bars(file: Path, title: str, axis: str, groups: dict[str, dict[str, Figure]]) -> None:
    """Draw a panel for each group with a bar for each way, and write FILE-light.svg and FILE-dark.svg."""
    for page, ink in PAGES.items():
        drawing = _drawing(ink, title, (9.6, 4.6), panels=len(groups))
        ways = list(next(iter(groups.values())))
        for plot, (group, figures) in zip(drawing.axes, groups.items(), strict=True):
            places = range(len(ways))
            rates = [figures[way].median for way in ways]
            lows = [figures[way].median - min(figures[way].runs) for way in ways]
            highs = [max(figures[way].runs) - figures[way].median for way in ways]
            plot.barh(places, rates, xerr=[lows, highs], ecolor=ink, color=COLOURS, capsize=2)
            plot.set_title(group.replace(", ", ",\n", 1), color=ink, fontsize=10)
            plot.set_yticks(places, [_plain(way) for way in ways] if plot is drawing.axes[0] else [])
            plot.invert_yaxis()
            plot.set_xlabel(axis)
            plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            plot.tick_params(axis="y", length=0)
        _write(drawing, file, page)


def _drawing(ink: str, title: str, inches: tuple[float, float], panels: int = 1) -> Drawing:
    drawing = Drawing(figsize=inches, layout="constrained")
    drawing.suptitle(title, color=ink, fontsize=12, fontweight="bold")
    for plot in drawing.subplots(1, panels, squeeze=False)[0]:
        plot.tick_params(colors=ink, which="both", labelsize=9)
        plot.patch.set_alpha(0)
        for label in (plot.xaxis.label, plot.yaxis.label):
            label.set_color(ink)
        for side, spine in plot.spines.items():
            spine.set_color(ink)
            spine.set_visible(side in ("left", "bottom"))
    return drawing


def _plain(way: str) -> str:
    return way.replace("`", "")


def _write(drawing: Drawing, file: Path, page: str) -> None:
    with mpl.rc_context({"svg.hashsalt": "same", "svg.fonttype": "none", "font.family": "sans-serif"}):
        drawing.savefig(file.with_name(f"{file.name}-{page}.svg"), transparent=True, metadata={"Date": None})
