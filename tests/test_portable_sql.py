"""The SQL keeps to what Citus takes, and the check of that finds what Citus refuses, and nothing else."""

import re
from pathlib import Path
from typing import Any

import pytest

from dev.portable_sql import main, problems
from stats_lib import _queries
from tests.deploy import ROOT
from tests.tenants import Connection, column

FILES = sorted([*(ROOT / "sql").rglob("*.sql"), *(ROOT / "stats_lib").glob("*.sql")])
JOB: dict[str, Any] = {"action_type_id": 1, "marketplace": "ebay", "success": True, "duration": None, "date": None}
READ: dict[str, Any] = {"schema": "user_1", "marketplace": None, "days": 7, "until": None}
_update, _upsert, _ = _queries.update_job_stats(schema="user_1", **JOB)
STATEMENTS: dict[str, str] = {
    name: statement.decode() if isinstance(statement, bytes) else statement.as_string(None)
    for name, statement in {
        "update": _update,
        "upsert": _upsert,
        "get_platform_summary": _queries.get_platform_summary(days=7, until=None)[0],
        **{
            f"{function.__name__}({only})": function(action_type_id=only, **READ)[0]
            for function in (_queries.get_stats, _queries.get_summary)
            for only in (None, 7)
        },
    }.items()
}
PROPAGATE = "SET LOCAL citus.propagate_set_commands = 'local';"
STAY = "SET LOCAL citus.enable_ddl_propagation = off;"
UPSERT = "INSERT INTO t AS s (a) SELECT 1 ON CONFLICT (a) DO UPDATE SET"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_portable(path: Path) -> None:
    """No file that a DBA applies, or that the library executes, has anything that Citus refuses."""
    assert problems(path.read_text("utf-8")) == []


@pytest.mark.parametrize("name", STATEMENTS)
def test_what_the_library_sends_is_portable(name: str) -> None:
    """The same goes for the library's statements as they are sent, with add_to_row.sql in its place."""
    assert problems(STATEMENTS[name]) == []


def test_every_statement_is_looked_at() -> None:
    """Two that count, one for the platform, and two for each other way to read."""
    assert len(STATEMENTS) == 7


def test_columns_are_set_in_the_order_of_the_table(migrated: Connection) -> None:
    """SET (columns) = (subquery) names them in the table's order; by that, Citus before 13.2 would reorder them."""
    order = column(
        migrated,
        "SELECT attname FROM pg_attribute WHERE attrelid = 'user_1.marketplace_job_stats'::regclass ORDER BY attnum",
    )
    lists = [found.split(", ") for query in STATEMENTS.values() for found in re.findall(r"SET \((.*?)\) =", query)]
    assert lists
    for columns in lists:
        assert columns == sorted(columns, key=order.index)


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE t RENAME CONSTRAINT a TO b",
        "SELECT format('alter table %s rename constraint %I TO b', t, a)",
        "SELECT 'ALTER TABLE ' || t || ' RENAME CONSTRAINT a TO b'",
        "ALTER TABLE t ADD CONSTRAINT a UNIQUE (b), DROP COLUMN c",
        "ALTER TABLE t ADD COLUMN b integer, ADD CHECK (b > 0)",
        "ALTER TABLE t ADD COLUMN b integer CHECK (b > 0)",
        "ALTER TABLE t ADD COLUMN b integer, ADD c integer DEFAULT 1 REFERENCES d (e)",
        f"{UPSERT} b = now()",
        f"{UPSERT} b = pg_catalog . now ( )",
        f"{UPSERT} b = CASE WHEN s.b > current_date THEN 1 END",
        f"{UPSERT} b = 1 WHERE s.b < clock_timestamp()",
        f"{UPSERT} b = nextval('c')",
        f"{UPSERT} (b, c) = (SELECT d, e FROM f)",
        "INSERT INTO t (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET b = (SELECT 1)",
        "CREATE TRIGGER a BEFORE INSERT ON t EXECUTE FUNCTION f()",
        "CREATE OR REPLACE CONSTRAINT TRIGGER a AFTER INSERT ON t EXECUTE FUNCTION f()",
        f"{PROPAGATE} SET lock_timeout = '1s'",
        f"{PROPAGATE} SET SESSION lock_timeout = '1s'",
        f"{PROPAGATE} SELECT set_config('lock_timeout', '1s', true)",
        "SET LOCAL lock_timeout = '1s'",
        f"SET LOCAL lock_timeout = '1s'; {PROPAGATE}",
        f"DO $$BEGIN {PROPAGATE} END$$; DO $$BEGIN SET LOCAL lock_timeout = '1s'; END$$",
        "DO $$BEGIN EXECUTE format('SET LOCAL lock_timeout = %s', 1); END$$",
        "DO $$BEGIN EXECUTE 'DROP TABLE a; DROP TABLE b'; END$$",
        "DO $$BEGIN EXECUTE format('DROP TABLE %I; ', a) || 'DROP TABLE b'; END$$",
        "DO $$BEGIN EXECUTE run; END$$",
        "CREATE SCHEMA a",
        "CREATE FUNCTION f() RETURNS trigger AS 'BEGIN RETURN NULL; END'",
        f"DO $$BEGIN {STAY} END$$; CREATE OR REPLACE PROCEDURE p() AS 'BEGIN NULL; END'",
        "DO $$BEGIN BEGIN PERFORM 1; EXCEPTION WHEN OTHERS THEN NULL; END; END$$",
        "UPDATE t SET a = 1 WHERE b = 2 AND date = coalesce(%(date)s, (pg_catalog.now() AT TIME ZONE 'UTC')::date)",
        "WITH u AS (UPDATE t SET a = 1 WHERE b = coalesce(%(b)s, now()) RETURNING 1) SELECT FROM u",
        "SELECT 1 WHERE NOT EXISTS (SELECT FROM {table} AS s WHERE s.a = 1)",
        "INSERT INTO t (a) SELECT j.a FROM unnest(%(a)s::integer[]) AS j (a) WHERE NOT EXISTS (SELECT 1 FROM t)",
        "MERGE INTO t USING j ON t.a = j.a WHEN MATCHED THEN UPDATE SET b = now()",
    ],
)
@pytest.mark.parametrize(
    "inside", ["{}", "CALL f($tenant$ {}; $tenant$)", STAY + "CREATE PROCEDURE p() AS $p$BEGIN {}; END$p$"]
)
def test_what_citus_refuses_is_found(inside: str, statement: str) -> None:
    """Each forbidden construct is found wherever it stands, on its line, unless a comment says why it may stay."""
    text = inside.format(f"\n\n{statement}\n")
    assert {line for line, _ in problems(text)} == {3}
    assert problems(inside.format(f"\n-- not on Citus: a reason\n{statement}\n")) == []
    assert problems(inside.format(f"\n-- on Citus: a reason\n{statement}\n")) == []
    assert {line for line, _ in problems(inside.format(f"\n-- not on Citus:\n{statement}\n"))} == {3}


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER INDEX a RENAME TO b",
        "ALTER TABLE t RENAME COLUMN a TO b",
        "-- ALTER TABLE t RENAME CONSTRAINT a TO b\nSELECT 1 /* CREATE TRIGGER a;\nCREATE SCHEMA a */",
        "DO $$BEGIN RAISE 'refused: ALTER TABLE t RENAME CONSTRAINT, CREATE TRIGGER, EXECUTE run'; END$$",
        "SELECT \"RENAME CONSTRAINT\", E'it\\'s; CREATE TRIGGER a'",
        "ALTER TABLE t ADD CONSTRAINT a CHECK (b IN (1, 2) AND f(b, c))",
        "ALTER TABLE t ADD COLUMN b integer CONSTRAINT a CHECK (b IN (1, 2)), DROP COLUMN c",
        "CREATE TABLE t (b integer CHECK (b > 0) UNIQUE, CONSTRAINT a CHECK (b < 9))",
        "INSERT INTO t AS s (a, b) SELECT 1, now() ON CONFLICT (a) DO UPDATE SET b = excluded.b; SELECT now()",
        f"{UPSERT} b = s.known + excluded.now",
        f"{UPSERT} (b, c) = (SELECT d, e FROM (SELECT s.b AS d, excluded.b AS e) AS f WHERE d IS DISTINCT FROM e)",
        "INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING; SELECT 1",
        "SELECT 1 FROM a FOR NO KEY UPDATE",
        f"{STAY} CREATE FUNCTION f() RETURNS trigger AS $$BEGIN RETURN NULL; END$$",
        "DO $$BEGIN RAISE EXCEPTION 'when'; END$$",
        f"{PROPAGATE} SET LOCAL lock_timeout = '1s'",
        f"DO $$BEGIN {PROPAGATE} EXECUTE format('SET LOCAL lock_timeout = %s', 1); END$$",
        "SELECT set_config('search_path', 'lock_timeout', true), current_setting('lock_timeout')",
        "SET statement_timeout = 0",
        "DO $$BEGIN EXECUTE 'DO ' || quote_literal('BEGIN ' || script || E'\\nEND'); END$$",
        "DO $$BEGIN EXECUTE 'DROP TABLE a;'; PERFORM f('DROP TABLE a; DROP TABLE b'); END$$",
        "SET LOCAL citus.enable_schema_based_sharding = off; CREATE SCHEMA a",
        f"{STAY} CREATE SCHEMA a",
        "UPDATE t SET a = 1 WHERE date = (SELECT coalesce(%(date)s, (now() AT TIME ZONE 'UTC')::date))",
        "WITH u AS (UPDATE t SET a = 1 WHERE b = 2 RETURNING 1) INSERT INTO t SELECT coalesce(%(b)s, now()) FROM u",
        "INSERT INTO t (a) SELECT j.a FROM unnest(%(a)s::integer[]) AS j (a) ORDER BY 1 ON CONFLICT DO NOTHING",
    ],
)
def test_what_citus_takes_is_not_found(statement: str) -> None:
    """What only looks like a forbidden construct is let through, in comments and literals too."""
    assert problems(statement) == []


def test_an_excuse_for_nothing_is_found() -> None:
    """A comment that says why something may stay goes when that does."""
    assert problems("SELECT 1; -- not on Citus: a reason") == [(1, "an excuse for nothing")]


def test_the_command_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make lint` fails, and says where and why."""
    good, bad = tmp_path / "good.sql", tmp_path / "bad.sql"
    good.write_text("SELECT 1;\n")
    bad.write_text("SELECT 1;\nCREATE TRIGGER a BEFORE INSERT ON t EXECUTE FUNCTION f();\n")
    assert (main([str(good)]), main([str(good), str(bad)]), main([])) == (0, 1, 1)
    assert capsys.readouterr().out == f"{bad}:2: distributed tables have no triggers\n"
