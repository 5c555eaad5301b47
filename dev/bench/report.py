"""What is measured, and how it is printed: figures with their spread, promises, tables."""

import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import perf_counter


class Figure(tuple[float, ...]):
    """One quantity, measured in each of several runs. It is printed as its median, with the lowest and the highest."""

    def __str__(self) -> str:
        """Like `4.1 (3.9 to 4.4)`; where all runs agree there is no spread."""
        low, middle, high = (_number(value) for value in (min(self), median(self), max(self)))
        return middle if low == high else f"{middle} ({low} to {high})"

    def __truediv__(self, other: "Figure | float") -> "Figure":
        """The ratio, run by run: of what was measured one after the other, so that a noisy spell hits both."""
        others = other if isinstance(other, Figure) else [other] * len(self)
        return Figure(a / b for a, b in zip(self, others, strict=True))


class Report:
    """What has been found: tables for the page, by the name of their place there, and rows for the promises."""

    def __init__(self) -> None:
        self.blocks: dict[str, str] = {}
        self.promises: list[list[object]] = []

    def promise(self, what: str, found: Figure, *, at_most: float = float("inf"), at_least: float = 0) -> None:
        """Say whether the median keeps what is promised of it."""
        bound = f"at least {_number(at_least)}" if at_least else f"at most {_number(at_most)}"
        holds = "holds" if at_least <= median(found) <= at_most else "**does not hold**"
        self.promises.append([what, found, bound, holds])


def seconds(work: Callable[[], object], at_least: float = 0) -> float:
    """Do it, again and again for so long, and at least once; return how long once takes."""
    times, start = 0, perf_counter()
    while times == 0 or perf_counter() - start < at_least:
        work()
        times += 1
    return (perf_counter() - start) / times


def side_by_side(ways: Mapping[str, Callable[[], float]], *, runs: int) -> dict[str, Figure]:
    """Run each way in turn, all of them `runs` times, and collect what they return."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs):
        for name, way in ways.items():
            found[name].append(way())
            say(f"{name}, run {run + 1} of {runs}: {_number(found[name][-1])}")
    return {name: Figure(values) for name, values in found.items()}


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are flush right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def say(progress: str) -> None:
    """Tell whoever waits what goes on."""
    print(f"  {progress}", file=sys.stderr, flush=True)


def _number(value: float) -> str:
    """Three digits that count: 12,345 and 123 and 12.3 and 1.23 and 0.0123."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
