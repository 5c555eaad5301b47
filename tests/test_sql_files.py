"""The form of the files in sql/: what yoyo makes of them, and what keeps a failed rollback from being half undone."""

import re
from pathlib import Path

import pytest
from yoyo.migrations import read_sql_migration

from tests.deploy import ROOT

FILES = sorted((ROOT / "sql").glob("*/*.sql"))
CHANGES = [path for path in FILES if "for_each_tenant(" in path.read_text() and "PROCEDURE" not in path.read_text()]

ROOMS = [path for path in FILES if path.name[:4] < "0020" and ".rollback." not in path.name]


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def statements(path: Path) -> list[str]:
    return list(read_sql_migration(str(path))[2])


def test_names_and_pairs() -> None:
    """A migration is NNNN.what-it-is.sql with its rollback beside it, and no number is used twice."""
    names = [path.name for path in FILES if not path.name.startswith("post-apply")]
    stems = {found[1] for file in names if (found := re.fullmatch(r"(\d{4}\.[a-z0-9.-]+?)(\.rollback)?\.sql", file))}
    assert sorted(names) == sorted([f"{stem}.sql" for stem in stems] + [f"{stem}.rollback.sql" for stem in stems])
    assert len({stem[:4] for stem in stems}) == len(stems)


def test_every_encoding_has_the_characters() -> None:
    """A database may be of LATIN1, say, or a client."""
    assert [str(path) for path in (ROOT / "sql").rglob("*.sql") if not path.read_bytes().isascii()] == []


@pytest.mark.parametrize("path", CHANGES, ids=name)
def test_a_change_is_one_call_between_harmless_partners(path: Path) -> None:
    """What yoyo runs of a change is SET, CALL, RESET: if it fails, yoyo runs the partners of what it has done.

    yoyo pairs the first statement of a file with the last of its rollback file, and so on.
    """
    first, call, last = statements(path)
    assert first.split("--")[0].strip() == "SET statement_timeout = 0;"
    assert call.startswith("CALL tenancy.for_each_tenant(")
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


@pytest.mark.parametrize("path", ROOMS, ids=name)
def test_the_rollback_of_a_room_drops_all_it_created(path: Path) -> None:
    """Every object that a file of the toolkit creates is dropped by its rollback, in reverse, if nobody needs it."""
    pattern = re.compile(
        r"^(?:CREATE|CREATE OR REPLACE|DROP) (SCHEMA|VIEW|TABLE|PROCEDURE|FUNCTION) ([\w.]+)", re.MULTILINE
    )
    rollback = path.with_suffix(".rollback.sql").read_text()
    assert pattern.findall(rollback) == pattern.findall(path.read_text())[::-1]
    assert "CALL tenancy.refuse_while_needed();" in rollback.partition("DROP")[0]


@pytest.mark.parametrize("path", ROOMS, ids=name)
def test_a_room_is_small_pinned_and_private(path: Path) -> None:
    """300 lines at most, no routine over 100; names are PostgreSQL's own; default privileges are taken back.

    And Citus does not send it to workers.
    """
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    routines = re.findall(r"^CREATE (?:OR REPLACE )?(?:PROCEDURE|FUNCTION).*?^\$\w+\$;", text, re.MULTILINE | re.DOTALL)
    assert max([routine.count("\n") + 1 for routine in routines], default=0) <= 100
    assert statements(path)[0] == "SET LOCAL search_path = pg_catalog, pg_temp;"
    assert statements(path)[1].startswith("SET LOCAL citus.enable_ddl_propagation = off;")
    assert re.search(r"^CALL tenancy\.make_private\(", text, re.MULTILINE)


@pytest.mark.parametrize("path", ROOMS, ids=name)
def test_a_room_can_be_replaced(path: Path) -> None:
    """What a later release may mend is in files without tables, replaced by the same file under another name."""
    text = path.read_text()
    if "CREATE TABLE" not in text:
        assert not re.search(r"^CREATE (?!OR REPLACE )", text, re.MULTILINE)


def test_the_tenancy_knows_nothing_of_job_statistics() -> None:
    """The generic half has no name of the other half's in it: it is for any table."""
    for path in ROOMS:
        if path.name < "0010":
            assert not re.search(r"job_stats|marketplace|vinted", path.read_text()), path.name
