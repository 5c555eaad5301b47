"""The index of dev/ names all that is there, and the benchmark finds its places on its page."""

import re
import subprocess
import sys

import pytest

from dev.bench.__main__ import PAGE, filled
from dev.bench.report import Figure, Report, table
from dev.bench.tenants import ROOT


def test_the_index_names_every_file() -> None:
    """Whoever adds a tool says in a line what it does; whoever removes one removes its line."""
    named = re.findall(r"^\| \[\S+\]\((\S+)\) \| \S", (ROOT / "dev" / "README.md").read_text("utf-8"), re.MULTILINE)
    here = {path.name for path in (ROOT / "dev").iterdir() if not path.name.startswith(("_", "."))}
    assert sorted(here - {"README.md"}) == named


@pytest.mark.slow
def test_lock_times_are_those_of_every_statement() -> None:
    """The runbook's tables come from it: it times each file of the change, up and down."""
    command = [sys.executable, "-m", "dev.lock_times"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert re.findall(r"^(0\S+)\.sql$", printed, re.MULTILINE) == [
        "0020.marketplace-job-stats",
        "0021.exact-averages",
        "0021.exact-averages.rollback",
        "0020.marketplace-job-stats.rollback",
    ]
    assert len(re.findall(r"^ +[\d.]+ +[\d.]+ +all$", printed, re.MULTILINE)) == 4


def test_the_ratio_is_of_what_ran_one_after_the_other() -> None:
    """A noisy spell hits both sides of a run, and so leaves its ratio alone."""
    assert str(Figure([1, 2, 30]) / Figure([2, 4, 60])) == "0.5"
    assert str(Figure([1000, 3000, 2000]) / 1000) == "2 (1 to 3)"


@pytest.mark.parametrize(
    ("runs", "bounds", "said"),
    [
        pytest.param([1, 2, 9], {"at_most": 2}, ["2 (1 to 9)", "at most 2", "holds"], id="at most, kept"),
        pytest.param([1, 3, 9], {"at_most": 2}, ["3 (1 to 9)", "at most 2", "**does not hold**"], id="at most, broken"),
        pytest.param(
            [1, 3, 9], {"at_least": 4}, ["3 (1 to 9)", "at least 4", "**does not hold**"], id="at least, broken"
        ),
        pytest.param([0], {"at_most": 0}, ["0", "at most 0", "holds"], id="nothing lost"),
    ],
)
def test_a_promise_is_kept_by_the_median(runs: list[float], bounds: dict[str, float], said: list[str]) -> None:
    """The page says what was found, what is promised, and whether it holds."""
    report = Report()
    report.promise("this", Figure(runs), **bounds)
    ((what, *found),) = report.promises
    assert (what, [str(cell) for cell in found]) == ("this", said)


def test_tables_replace_those_on_the_page() -> None:
    """Every place is filled, and nothing around it is touched; a table without a place is an error."""
    before = PAGE.read_text("utf-8")
    places = dict.fromkeys(re.findall(r"<!-- (\w+) -->", before), table(["what", "found"], [["this", Figure([1, 2])]]))
    page = filled(before, places)
    assert page.count("| this | 1.5 (1 to 2) |") == len(places) > 5
    assert filled(page, places) == page
    assert re.sub(r"(?s)-->\n.*?<!--", "", page) == re.sub(r"(?s)-->\n.*?<!--", "", before)
    with pytest.raises(KeyError, match="another"):
        filled(before, {**places, "another": ""})
