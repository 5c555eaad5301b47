"""`make bench` says which figures did not repeat those that docs/benchmarks.md had."""

from itertools import pairwise
from pathlib import Path

import pytest

from dev.bench.repeat import apart, not_repeated

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def page(head: str, row: str, *cells: str) -> str:
    """A page with one table of one row."""
    rows = f"| {head} | found | promised |\n| --- | ---: | ---: |\n| {row} | {' | '.join(cells)} |\n"
    return f"# Text, 1 | 2\n\n{rows}\nText.\n"


@pytest.mark.parametrize(
    ("head", "before", "now", "gap"),
    [
        ("seconds", "2 (1 to 3)", "2.5 (2.1 to 3.5)", 0),
        ("seconds", "2 (1 to 3)", "2 (1.5 to 2)", 0),  # within the other
        ("seconds", "1,000 (900 to 1,100)", "1,500 (1,375 to 1,600)", 0.25),
        ("seconds", "1,500 (1,375 to 1,600)", "1,000 (900 to 1,100)", 0.25),  # either way round
        ("seconds", "1,000", "1,000", 0),
        ("seconds", "100", "125", 0.25),
        ("calls lost", "0", "0", 0),
        ("calls lost", "0", "1", float("inf")),
    ],
)
def test_ranges_that_miss_each_other_are_so_far_apart(head: str, before: str, now: str, gap: float) -> None:
    found = apart(page(head, "ours", before, "at most 1"), page(head, "ours", now, "at most 2"))
    assert found == {(head, "ours", "found"): pytest.approx(gap)}


@pytest.mark.parametrize(
    ("head", "row", "now", "repeated"),
    [
        ("seconds", "ours", "158", True),
        ("seconds", "ours", "162", False),
        ("seconds", "ours", "62", False),
        ("what", "ours, as a multiple of psql's", "114", True),
        ("what", "ours, as a multiple of psql's", "116", False),
        ("kB a tenant", "catalogs", "116", False),
        ("calls lost", "ours", "0", False),
    ],
)
def test_ratios_and_sizes_repeat_more_closely_than_times(head: str, row: str, now: str, repeated: bool) -> None:
    missed = not_repeated(page(head, row, "100"), page(head, row, now))
    assert missed == [] if repeated else missed[0].startswith(f"{head}, {row}, found: ")


def test_the_page_is_read_whole() -> None:
    text = PAGE.read_text("utf-8")
    found = apart(text, text)
    assert len(found) > 150
    assert {table for table, _, _ in found} == {line.split("|")[1].strip() for line in _heads(text)}
    assert not_repeated(text, text) == []


def _heads(text: str) -> list[str]:
    return [head for head, rule in pairwise(text.splitlines()) if rule.startswith("| ---")]
