"""The form of the files in sql/: what yoyo makes of them, and what keeps a failed rollback from being half undone."""

import re
from pathlib import Path

import pytest
from yoyo.migrations import read_sql_migration

from tests.deploy import ROOT

FILES = sorted((ROOT / "sql").glob("*/*.sql"))
CHANGES = [
    path for path in FILES if "for_each_tenant(" in path.read_text() and "CREATE PROCEDURE" not in path.read_text()
]


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def statements(path: Path) -> list[str]:
    return list(read_sql_migration(str(path))[2])


def test_names_and_pairs() -> None:
    """A migration is NNNN.what-it-is.sql with its rollback beside it, and no number is used twice."""
    names = [path.name for path in FILES if not path.name.startswith("post-apply")]
    stems = {found[1] for file in names if (found := re.fullmatch(r"(\d{4}\.[a-z-]+)(\.rollback)?\.sql", file))}
    assert sorted(names) == sorted([f"{stem}.sql" for stem in stems] + [f"{stem}.rollback.sql" for stem in stems])
    assert len({stem[:4] for stem in stems}) == len(stems)


@pytest.mark.parametrize("path", CHANGES, ids=name)
def test_a_change_is_one_call_between_harmless_partners(path: Path) -> None:
    """What yoyo runs of a change is SET, CALL, RESET: if it fails, yoyo runs the partners of what it has done.

    yoyo pairs the first statement of a file with the last of its rollback file, and so on.
    """
    first, call, last = statements(path)
    assert first.split("--")[0].strip() == "SET statement_timeout = 0;"
    assert call.startswith("CALL job_stats.for_each_tenant(")
    assert last == "RESET statement_timeout;"
    assert f"migration => '{path.name.removesuffix('.sql')}'" in call


@pytest.mark.parametrize("path", [path for path in CHANGES if ".rollback." not in path.name], ids=name)
def test_a_change_runs_outside_a_transaction(path: Path) -> None:
    """yoyo reads the directives, so that the CALL may commit after each tenant."""
    directives = read_sql_migration(str(path))[0]
    assert directives["transactional"] == "false"
    assert directives["depends"]


@pytest.mark.parametrize("path", CHANGES, ids=name)
def test_lock_waits_are_in_the_file(path: Path) -> None:
    """How long and how often a lock is waited for can be read, and changed, in each file."""
    assert re.search(r"^    lock_timeout_ms => \d+,\n    attempts => \d+,$", path.read_text(), re.MULTILINE)


def test_the_rollback_of_the_toolkit_drops_all_it_created() -> None:
    """Every object that 0001 creates is dropped by its rollback, in reverse order."""
    pattern = re.compile(r"^(?:CREATE|DROP) (SCHEMA|VIEW|TABLE|PROCEDURE|FUNCTION) ([\w.]+)", re.MULTILINE)
    created = pattern.findall((ROOT / "sql/migrations/0001.tenant-toolkit.sql").read_text())
    dropped = pattern.findall((ROOT / "sql/migrations/0001.tenant-toolkit.rollback.sql").read_text())
    assert dropped == created[::-1]
