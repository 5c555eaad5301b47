"""What a DBA looks at, before and after: tenants, their rows, their definitions, and what goes on."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from tests.deploy import ROOT, Result, schema_dump

Connection = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")

UPGRADE = str(ROOT / "sql/migrations/0020.marketplace-job-stats.sql")
DOWNGRADE = str(ROOT / "sql/migrations/0020.marketplace-job-stats.rollback.sql")
EXACT = str(ROOT / "sql/migrations/0021.exact-averages.sql")
UNEXACT = str(ROOT / "sql/migrations/0021.exact-averages.rollback.sql")
VERIFY = str(ROOT / "sql/migrations/post-apply.verify.sql")
UP = "-f", UPGRADE, "-f", EXACT, "-f", VERIFY
DOWN = "-f", UNEXACT, "-f", DOWNGRADE

# What a tenant may do to its table after the change.
PARTITION = """
    ALTER TABLE user_1.marketplace_job_stats RENAME TO rows_until_now;
    CREATE TABLE user_1.marketplace_job_stats (LIKE user_1.rows_until_now INCLUDING DEFAULTS) PARTITION BY RANGE (date);
    ALTER TABLE user_1.marketplace_job_stats ATTACH PARTITION user_1.rows_until_now DEFAULT
"""


def tenants(conn: Connection) -> list[str]:
    """Every tenant of `dev/legacy.sql` that has the table."""
    return column(
        conn,
        """
        SELECT nspname
        FROM pg_namespace
        JOIN pg_class ON relnamespace = pg_namespace.oid
        WHERE (starts_with(nspname, 'user_') OR nspname = 'template_tenant')
        AND relname IN ('vinted_job_stats', 'marketplace_job_stats') AND relkind = 'r'
        ORDER BY nspname
        """,
    )


def column(conn: Connection, query: str, *params: object) -> list[Any]:
    """The first column of a query's rows."""
    return [row[0] for row in conn.execute(query.encode(), params or None)]


def rows(conn: Connection, schema: str, table: str) -> list[tuple[Any, ...]]:
    """All rows of a tenant's table in its legacy columns."""
    columns = "id, action_type_id, date, total_jobs, success_count, failure_count, avg_duration_ms, created_at"
    query = sql.SQL("SELECT {} FROM {} ORDER BY id").format(sql.SQL(columns), sql.Identifier(schema, table))
    return conn.execute(query).fetchall()


def definitions(conn: Connection, schemas: Iterable[str]) -> dict[str, str]:
    """What pg_dump says of each schema, whatever the name of the sequence that clones share with the template."""
    shared = "template_tenant.marketplace_job_stats_id_seq", "template_tenant.vinted_job_stats_id_seq"
    dump = schema_dump(conn, *schemas).replace(*shared)
    parts = re.findall(
        r"^-- Name: (.*?); Type: .*?; Schema: (.*?); .*?\n(.*?)(?=^-- Name: |\Z)", dump, re.DOTALL | re.MULTILINE
    )
    assert {"-", *schemas} == {schema for _, schema, _ in parts}
    between = re.compile(
        r"^(--.*|\\.*|SET default_tablespace = '';|SET default_table_access_method = heap;|)\n", re.MULTILINE
    )
    return {schema: between.sub("", "".join(p for *names, p in parts if schema in names)) for schema in schemas}


def states(conn: Connection) -> dict[str, str]:
    """The state of each tenant, by job_stats.tenant_status."""
    return dict(conn.execute("SELECT schema_name, state FROM job_stats.tenant_status").fetchall())


def clone(conn: Connection, schema: str, like: str) -> None:
    """Create a tenant as the platform does: from an existing one's table, which has the same name in both."""
    table = like.partition(".")[2]
    conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    conn.execute(
        sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(
            sql.Identifier(schema, table), sql.Identifier(*like.split("."))
        )
    )


def clones(conn: Connection, prefix: str, count: int) -> None:
    """Create as many tenants, cloned from the template of whichever name its table has now."""
    conn.execute(
        sql.SQL(
            """
            DO $$
            DECLARE
                stats name := (
                    SELECT relname FROM pg_class
                    WHERE relnamespace = 'template_tenant'::regnamespace AND relkind = 'r'
                );
            BEGIN
                FOR i IN 1..{count} LOOP
                    EXECUTE format('CREATE SCHEMA %I', {prefix} || i);
                    EXECUTE format(
                        'CREATE TABLE %I.%I (LIKE template_tenant.%2$I INCLUDING ALL)', {prefix} || i, stats
                    );
                    IF i % 100 = 0 THEN
                        COMMIT; -- the lock table has no room for all of them
                    END IF;
                END LOOP;
            END
            $$
            """
        ).format(count=count, prefix=prefix)
    )


def ok(result: Result) -> str:
    """What a command printed; it must have succeeded."""
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@contextmanager
def running(target: Callable[..., T], *args: Any) -> Iterator[list[T]]:
    """Call a function in a thread; its result is in the list once the block has ended."""
    results: list[T] = []
    thread = Thread(target=lambda: results.append(target(*args)))
    thread.start()
    try:
        yield results
    finally:
        thread.join()


def wait_until(conn: Connection, query: str, *params: object) -> None:
    """Poll until the query's only value is true."""
    while not column(conn, query, *params)[0]:
        conn.execute("SELECT pg_sleep(0.01)")
