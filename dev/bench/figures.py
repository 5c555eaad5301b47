"""What is measured, and how it is printed: figures with their spread, ratios, targets, tables."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Figure:
    """One quantity, measured several times. Printed as its median, with the lowest and highest."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle run."""
        return median(self.runs)

    def __str__(self) -> str:
        """Like `4.1 (3.9 to 4.4)`; one run has no spread."""
        low, middle, high = (_number(value) for value in (min(self.runs), self.median, max(self.runs)))
        return middle if low == high else f"{middle} ({low} to {high})"

    def __truediv__(self, other: "Figure") -> "Figure":
        """The ratio, run by run: of what was measured one after the other, so that a noisy spell hits both."""
        return Figure(tuple(a / b for a, b in zip(self.runs, other.runs, strict=True)))

    def scaled(self, factor: float) -> "Figure":
        """The same in another unit."""
        return Figure(tuple(run * factor for run in self.runs))


@dataclass(frozen=True)
class Target:
    """A ratio or quantity that is promised: at most, or at least, so much."""

    name: str
    figure: Figure
    at_most: float | None = None
    at_least: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the median keeps the promise."""
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= self.figure.median <= high

    @property
    def bound(self) -> str:
        """The promise in words."""
        return f"at {'least' if self.at_most is None else 'most'} {_number(self.at_most or self.at_least or 0)}"


@dataclass
class Report:
    """What a section found: blocks of Markdown by name, for the page, targets, and what to plot.

    Bars are by group and way, lines by way and number.
    """

    blocks: dict[str, str] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    bars: dict[str, dict[str, Figure]] = field(default_factory=dict)
    lines: dict[str, dict[int, Figure]] = field(default_factory=dict)


def side_by_side(ways: Mapping[str, Callable[[], float]], *, runs: int) -> dict[str, Figure]:
    """Run each way in turn, all of them `runs` times, and collect what they return."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs):
        for name, way in ways.items():
            found[name].append(way())
            say(f"{name}, run {run + 1} of {runs}: {_number(found[name][-1])}")
    return {name: Figure(tuple(values)) for name, values in found.items()}


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are flush right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def say(progress: str) -> None:
    """Tell who waits what goes on."""
    print(f"  {progress}", file=sys.stderr, flush=True)


def _number(value: float) -> str:
    """Three digits that count: 12,345 and 123 and 12.3 and 1.23 and 0.0123."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
