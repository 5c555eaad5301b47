"""What the statements read of a tenant that has ten years of rows, by EXPLAIN: indexes, rows and pages, never times."""

import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from pytest_postgresql import factories

from stats_lib import Marketplace, _queries, _sync
from tests.deploy import connect
from tests.tenants import Connection

ACTION_TYPES, DAYS = 20, 3650
BY_DAY = "ix_stats_lib_date_marketplace"
KEY = "uq_marketplace_job_stats_action_marketplace_date"
PAGES = 5  # what one look-up reads, at most: the levels of the index, the next leaf, a page of the table

Query = tuple[_queries.Query, _queries.Params]
Node = dict[str, Any]


def _ten_years(*, host: str, port: int, user: str, dbname: str, password: str | None, **_: object) -> None:
    """Have user_1 count every action type on every marketplace and day; all of it in the order of days."""
    with psycopg.connect(host=host, port=port, user=user, dbname=dbname, password=password) as conn:
        conn.execute("TRUNCATE user_1.marketplace_job_stats")
        conn.execute(
            """
            INSERT INTO user_1.marketplace_job_stats
                (
                    date, action_type_id, marketplace, total_jobs, success_count, avg_duration_ms, created_at,
                    untimed_jobs, total_duration_ms
                )
            SELECT day, action_type_id, marketplace, 10, 10, 500, day::timestamp AT TIME ZONE 'UTC', 0, 5000
            FROM
                (SELECT (now() AT TIME ZONE 'UTC')::date - %s + n AS day FROM generate_series(1, %s) AS n) AS days,
                generate_series(1, %s) AS action_type_id,
                unnest(%s::text[]) AS marketplace
            ORDER BY day
            """,
            [DAYS, DAYS, ACTION_TYPES, list(Marketplace)],
        )
        conn.execute("SET LOCAL default_statistics_target = 10000")  # of all rows: plans do not hang on a sample's luck
        conn.execute("ANALYZE user_1.marketplace_job_stats")


ten_years_template = factories.postgresql_noproc(
    dbname=f"job_stats_{os.getpid()}_ten_years", depends_on="migrated_template", load=[_ten_years]
)
ten_years_clone = factories.postgresql("ten_years_template")


@pytest.fixture(params=["force_custom_plan", "force_generic_plan"])
def ten_years(ten_years_clone: Connection, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A connection whose prepared statements are planned for each execution, or once for all."""
    with connect(ten_years_clone, options=f"-c plan_cache_mode={request.param}") as conn:
        yield conn


def explain(conn: Connection, query: Query, **others: str) -> list[Node]:
    """Execute a statement that psycopg has prepared; return the nodes of its plan, the topmost first."""
    statement, params = query
    _sync._Cursor(conn).execute(statement, params, prepare=True)
    ((name,),) = conn.execute("SELECT name FROM pg_prepared_statements", prepare=False)
    ((document,),) = conn.execute(
        sql.SQL("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE {} ({})").format(
            sql.Identifier(name), sql.SQL(", ").join(others.get(f"_{n}", param) for n, param in enumerate(params))
        ),
        prepare=False,
    )
    nodes = [document[0]["Plan"]]
    for node in nodes:
        nodes.extend(node.get("Plans", []))
    return nodes


def scans(nodes: list[Node]) -> list[Node]:
    """The nodes that read the table or an index of it."""
    return [node for node in nodes if "Scan" in node["Node Type"] and {"Relation Name", "Index Name"} & node.keys()]


def pages(nodes: list[Node]) -> int:
    """How many pages are read, each as often as it is."""
    return int(nodes[0]["Shared Hit Blocks"] + nodes[0]["Shared Read Blocks"])


def in_row_of(age: int) -> tuple[Query, Query]:
    """What counts a job of so many days ago: what is tried first, and what else."""
    update, upsert, params = _queries.update_job_stats(
        schema="user_1",
        action_type_id=7,
        marketplace="ebay",
        success=True,
        duration=datetime.timedelta(seconds=1),
        date=datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=age),
    )
    return (update, params), (upsert, params)


@pytest.mark.parametrize(("age", "found"), [(-1, 0), (1, 1)], ids=["insert", "update"])
def test_update_job_stats(ten_years: Connection, age: int, found: int) -> None:
    """A job's row is found by the unique key, in one look-up, whether or not it is there."""
    for query in in_row_of(age):
        ten_years.execute("DEALLOCATE ALL", prepare=False)
        nodes = explain(ten_years, query, _0=str(ACTION_TYPES))
        read = [(scan["Node Type"], scan.get("Index Name"), scan["Actual Rows"]) for scan in scans(nodes)]
        bitmap = [("Bitmap Heap Scan", None, found), ("Bitmap Index Scan", KEY, found)]  # for a row or two, as good
        assert read in ([("Index Scan", KEY, found)], bitmap)
        assert pages(nodes) <= 6 * PAGES  # the look-up, the new version of the row, an entry in each of four indexes
    assert [[KEY]] == [node["Conflict Arbiter Indexes"] for node in nodes if "Conflict Arbiter Indexes" in node]


@pytest.mark.parametrize("read", [_queries.get_stats, _queries.get_summary])
@pytest.mark.parametrize(
    ("action_type_id", "marketplace"), [(None, None), (None, "ebay"), (7, None), (7, "ebay")], ids=repr
)
def test_reading(
    ten_years: Connection,
    read: Callable[..., Query],
    action_type_id: int | None,
    marketplace: str | None,
) -> None:
    """Of ten years, the days asked for are read: all of them by the index by day, an action type's by the unique key.

    A marketplace's days are found among all marketplaces' of these days, or by themselves.
    """
    for days in [1, 7, 30]:
        query = read(schema="user_1", marketplace=marketplace, action_type_id=action_type_id, days=days, until=None)
        nodes = explain(ten_years, query)

        action_types = ACTION_TYPES if action_type_id is None else 1
        marketplaces = len(Marketplace) if marketplace is None else 1
        rows = action_types * marketplaces * days
        assert (rows if read is _queries.get_stats else marketplaces) == nodes[0]["Actual Rows"]
        table = [node for node in scans(nodes) if node["Node Type"] != "Bitmap Heap Scan"]  # its index is below it
        assert {BY_DAY if action_type_id is None else KEY} == {node.get("Index Name") for node in table}
        passed_over = sum(node.get("Rows Removed by Filter", 0) for node in scans(nodes))
        assert passed_over <= action_types * (len(Marketplace) - marketplaces) * days
        assert pages(nodes) <= PAGES * marketplaces + rows + passed_over
