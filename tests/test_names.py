"""`make lint` finds a name that a search_path could take, in migrations and in the library."""

from pathlib import Path

import pytest

from dev import names
from tests.deploy import ROOT

TOOLKIT, CHANGE, STATEMENT = (
    "sql/migrations/0012.fold.sql",
    "sql/migrations/0020.marketplace-job-stats.sql",
    "stats_lib/update_job_stats.sql",
)

# In a file: what is replaced, by what, and what is said of it.
PLANTED = {
    "operator in a tenant": (CHANGE, "marketplace::text IN", "marketplace IN", "operator ="),
    "function in a tenant": (CHANGE, "DEFAULT 'vinted'", "DEFAULT lower('vinted')", "function lower"),
    "query in a tenant": (CHANGE, "CALL job_stats.unfold_marketplaces(", "SELECT (", "SelectStmt"),
    "update in a tenant": (CHANGE, "CALL tenancy.rename_parts(", "UPDATE x SET y = (", "UpdateStmt"),
    "check of the rows that are there": (
        CHANGE,
        "UNIQUE (action_type_id,",
        "CHECK (true), ADD UNIQUE (id,",
        "NOT VALID",
    ),
    "call of a tenant's": (CHANGE, "CALL tenancy.rename_parts(", "CALL rename_parts(", "only routines of ours"),
    "routine without a path": (TOOLKIT, "plpgsql\nSET search_path = pg_catalog, pg_temp", "plpgsql", "PS005"),
    "path that a tenant is in": (
        TOOLKIT,
        "SET search_path = pg_catalog, pg_temp\nAS",
        "SET search_path = public\nAS",
        "PS0",
    ),
    "file without a path": (TOOLKIT, "SET LOCAL search_path", "SET LOCAL work_mem", "PS0"),
    "BEGIN ATOMIC": (TOOLKIT, "AS $function$", "BEGIN ATOMIC", "BEGIN ATOMIC"),
    "function of the library": (STATEMENT, "pg_catalog.now()", "now()", "function now"),
    "type of the library": (STATEMENT, "::pg_catalog.date", "::date", "type date"),
    "comparison of the library": (STATEMENT, "marketplace::pg_catalog.text =", "marketplace =", "a varchar"),
}


@pytest.mark.parametrize(("file", "safe", "unsafe", "said"), PLANTED.values(), ids=PLANTED)
def test_a_planted_name_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, safe: str, unsafe: str, said: str
) -> None:
    """Each kind is named, and fails the lint."""
    text = (ROOT / file).read_text("utf-8")
    assert safe in text
    planted = tmp_path / file
    planted.parent.mkdir(parents=True)
    planted.write_text(text.replace(safe, unsafe))
    assert names.main([str(planted)]) == 1
    assert said in capsys.readouterr().out


def test_our_own_files_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """What is there now has nothing to take; no file at all is an error."""
    files = [str(file) for folder in ["sql", "stats_lib"] for file in (ROOT / folder).rglob("*.sql")]
    assert names.main(files) == 0
    assert capsys.readouterr().out == ""
    assert names.main([]) == 1
