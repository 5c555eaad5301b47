"""Holds figures measured again against those on the page: which differ by more than the page says runs may."""

import re
from collections.abc import Iterator

Cell = tuple[str, str, str]
FIGURE = re.compile(r"([\d.,]+)(?: \(([\d.,]+) to ([\d.,]+)\))?")
RELATIVE = re.compile("multiple|share|kB")  # ratios and sizes; anything else is as fast as the machine is in that hour
APART_RELATIVE = 0.15
APART_ABSOLUTE = 0.6


def apart(page: str, anew: str) -> dict[Cell, float]:
    """By what share the ranges of each figure, named by table, row and column, miss each other; 0 where they meet."""
    before, now = dict(_ranges(page)), dict(_ranges(anew))
    return {cell: _gap(before[cell], now[cell]) for cell in before if cell in now}


def not_repeated(page: str, anew: str) -> list[str]:
    """Name the figures whose ranges are further apart than the page says, and by how much."""
    return [
        f"{', '.join(cell)}: {gap:.0%} apart"
        for cell, gap in apart(page, anew).items()
        if gap > (APART_RELATIVE if RELATIVE.search(" ".join(cell)) else APART_ABSOLUTE)
    ]


def _ranges(page: str) -> Iterator[tuple[Cell, tuple[float, float]]]:
    heads: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        heads = cells and (heads or cells)
        for head, cell in zip(heads[1:], cells[1:], strict=False):
            if figure := FIGURE.fullmatch(cell):
                middle, *ends = (float((digits or figure[1]).replace(",", "")) for digits in figure.groups())
                yield (heads[0], cells[0], head), (min(middle, *ends), max(middle, *ends))


def _gap(one: tuple[float, float], other: tuple[float, float]) -> float:
    (_, low), (high, _) = sorted([one, other])
    return 0 if high <= low else high / low - 1 if low else float("inf")
