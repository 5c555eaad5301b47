"""The migrations and the library on Citus, where each tenant's schema is a distributed one. Off unless asked for.

    JOB_STATS_TEST_CITUS_URL=postgresql://postgres@coordinator/empty make test ARGS=tests/test_citus.py

The URL is a superuser's, of a database with the extension citus, its nodes added, and nothing of ours; afterwards it is
so again. The nodes must reach each other; one test connects to a worker, and is skipped if it cannot.
"""

import datetime
import os
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from stats_lib import (
    JobOutcome,
    JobStats,
    Marketplace,
    get_platform_summary,
    get_stats,
    get_summary,
    update_job_stats,
    update_job_stats_batch,
)
from tests.deploy import connect, yoyo
from tests.tenants import Connection, clone, column, ok, rows, running, states, wait_until

URL = os.environ.get("JOB_STATS_TEST_CITUS_URL", "")
pytestmark = pytest.mark.skipif(not URL, reason="set JOB_STATS_TEST_CITUS_URL: tests/test_citus.py says how")

TENANTS = ["template_tenant", "user_1", "user_2", "user_3"]
SHARDING = {"PGOPTIONS": "-c citus.enable_schema_based_sharding=on"}  # as ALTER DATABASE ... SET would
TABLE = """
    CREATE TABLE template_tenant.vinted_job_stats (
        id serial PRIMARY KEY,
        action_type_id integer NOT NULL,
        date date NOT NULL,
        total_jobs integer NOT NULL DEFAULT 0,
        success_count integer NOT NULL DEFAULT 0,
        failure_count integer NOT NULL DEFAULT 0,
        avg_duration_ms integer,
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT uq_vinted_job_stats_action_date UNIQUE (action_type_id, date),
        CONSTRAINT fk_vinted_job_stats_action_type_id FOREIGN KEY (action_type_id) REFERENCES vinted.action_types (id)
    )
"""
ROWS = """
    INSERT INTO {}.vinted_job_stats (action_type_id, date, total_jobs, success_count, failure_count, avg_duration_ms)
    SELECT a, (now() AT TIME ZONE 'UTC')::date - ago, 3, 2, 1, 100 * a
    FROM generate_series(1, 2) AS a, generate_series(0, 4) AS ago
"""
OURS = """
    SELECT format('SCHEMA %I', nspname) FROM pg_namespace
    WHERE nspname IN ('job_stats', 'tenancy', 'template_tenant', 'vinted') OR starts_with(nspname, 'user_')
    UNION ALL
    SELECT format('TABLE public.%I', relname) FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname ~ '^_?yoyo_'
    ORDER BY 1
"""


@pytest.fixture
def citus() -> Iterator[Connection]:
    """A connection, in autocommit, to a coordinator with a template, three clones of it, and Vinted's rows in these."""
    with psycopg.connect(URL, autocommit=True) as conn:
        assert column(conn, OURS) == [], "the tests make these, and drop them: give them a database of their own"
        try:
            conn.execute("CREATE SCHEMA vinted")
            conn.execute("CREATE TABLE vinted.action_types (id integer PRIMARY KEY)")
            conn.execute("INSERT INTO vinted.action_types VALUES (1), (2)")
            conn.execute("SELECT create_reference_table('vinted.action_types')")
            conn.execute("SET citus.enable_schema_based_sharding = on")
            conn.execute("CREATE SCHEMA template_tenant")
            conn.execute(TABLE)
            for tenant in TENANTS[1:]:
                clone(conn, tenant, "template_tenant.vinted_job_stats")
                conn.execute(sql.SQL(ROWS).format(sql.Identifier(tenant)))
            yield conn
        finally:
            for ours in sorted(
                column(conn, OURS), key=lambda it: (it == "SCHEMA template_tenant", it == "SCHEMA vinted")
            ):
                conn.execute(f"DROP {ours} CASCADE".encode())


def distributed(conn: Connection) -> list[str]:
    """The tables that are the one shard of a distributed schema."""
    return column(
        conn,
        "SELECT logicalrelid::text FROM pg_dist_partition WHERE partmethod = 'n' AND repmodel = 's' ORDER BY 1",
    )


def today(conn: Connection, tenant: str) -> list[tuple[int, str, int, int, int | None]]:
    """What the library reads of today: action type, marketplace, jobs, successes, average."""
    return [
        (row.action_type_id, row.marketplace.value, row.total_jobs, row.success_count, row.avg_duration_ms)
        for row in get_stats(conn, schema=tenant, days=1)
    ]


def all_stats(conn: Connection) -> dict[str, list[JobStats]]:
    """What the library reads of each tenant."""
    return {tenant: get_stats(conn, schema=tenant, days=30) for tenant in TENANTS}


def test_all_the_way_up_and_down(citus: Connection) -> None:
    """Every tenant goes up, counts and reads each marketplace, goes down folded, and up again as it was.

    The legacy view can be read; writes through it are refused, which is why writers move in the tenant's cutover.
    """
    before = {tenant: rows(citus, tenant, "vinted_job_stats") for tenant in TENANTS}
    ok(yoyo(citus, "apply", env=SHARDING))
    assert states(citus) == dict.fromkeys(TENANTS, "migrated")
    assert distributed(citus) == [f"{tenant}.marketplace_job_stats" for tenant in TENANTS]

    assert {tenant: rows(citus, tenant, "vinted_job_stats") for tenant in TENANTS[1:]} == {
        tenant: before[tenant] for tenant in TENANTS[1:]
    }
    for write in [
        "INSERT INTO user_1.vinted_job_stats (action_type_id, date) VALUES (7, '2026-01-01')",
        "UPDATE user_1.vinted_job_stats SET total_jobs = 0",
        "DELETE FROM user_1.vinted_job_stats",
    ]:
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            citus.execute(write.encode())

    for marketplace in Marketplace:
        for duration in [None, datetime.timedelta(seconds=1), datetime.timedelta(seconds=4)]:
            update_job_stats(
                citus, schema="user_1", action_type_id=1, marketplace=marketplace, success=True, duration=duration
            )
    assert today(citus, "user_1") == [
        (1, "ebay", 3, 3, 2500),
        (1, "etsy", 3, 3, 2500),
        (1, "vinted", 6, 5, 1060),
        (2, "vinted", 3, 2, 200),
    ]
    totals = get_summary(citus, schema="user_1", days=1)
    assert [(total.marketplace.value, total.total_jobs) for total in totals] == [
        ("ebay", 3),
        ("etsy", 3),
        ("vinted", 9),
    ]

    (ebay, *_) = get_platform_summary(citus, days=1)
    assert (ebay.tenants, ebay.total_jobs, ebay.tenants_skipped) == (1, 3, 0)

    split = all_stats(citus)
    ok(yoyo(citus, "rollback", "--revision", "0020", env=SHARDING))
    assert states(citus) == dict.fromkeys(TENANTS, "legacy")
    assert rows(citus, "user_3", "vinted_job_stats") == before["user_3"]
    folded = "SELECT sum(total_jobs) FROM user_1.vinted_job_stats WHERE date = (now() AT TIME ZONE 'UTC')::date"
    assert column(citus, folded) == [15]

    ok(yoyo(citus, "apply", env=SHARDING))
    assert states(citus) == dict.fromkeys(TENANTS, "migrated")
    assert all_stats(citus) == split
    ok(yoyo(citus, "rollback", "--all", env=SHARDING))


def test_a_batch(citus: Connection) -> None:
    """A batch adds to rows that are there, and inserts the others."""
    ok(yoyo(citus, "apply", env=SHARDING))
    outcomes = [
        JobOutcome(
            action_type_id, marketplace, success=action_type_id < 3, duration=datetime.timedelta(seconds=seconds)
        )
        for marketplace in Marketplace
        for action_type_id, seconds in [(3, 1), (1, 1), (1, 4)]
    ]
    for _ in range(2):
        update_job_stats_batch(citus, schema="user_1", outcomes=outcomes)
    assert today(citus, "user_1") == [
        (1, "ebay", 4, 4, 2500),
        (3, "ebay", 2, 0, 1000),
        (1, "etsy", 4, 4, 2500),
        (3, "etsy", 2, 0, 1000),
        (1, "vinted", 7, 6, 1471),
        (2, "vinted", 3, 2, 200),
        (3, "vinted", 2, 0, 1000),
    ]


@pytest.mark.parametrize("node", ["coordinator", "worker"])
def test_a_tenant_that_is_locked_is_put_off(citus: Connection, node: str) -> None:
    """A reader, on the coordinator or the worker that has the shard, holds up that tenant only, which is done later."""
    host, port = citus.info.host, citus.info.port
    if node == "worker":
        place = citus.execute(
            "SELECT nodename, nodeport FROM pg_dist_node JOIN pg_dist_placement USING (groupid)"
            " JOIN pg_dist_shard USING (shardid) WHERE logicalrelid = 'user_1.vinted_job_stats'::regclass"
        ).fetchone()
        assert place
        host, port = place
    try:
        reader = connect(citus, host=host, port=port, autocommit=False)
    except psycopg.OperationalError as error:
        pytest.skip(f"no way to the worker: {error}")
    with reader:
        reader.execute("SELECT count(*) FROM user_1.vinted_job_stats")
        with running(yoyo, citus, "apply") as results:
            wait_until(citus, "SELECT to_regclass('tenancy.journal') IS NOT NULL")
            wait_until(citus, "SELECT count(*) > 0 FROM tenancy.journal WHERE outcome = 'locked'")
            reader.rollback()
    ok(results[0])
    assert states(citus) == dict.fromkeys(TENANTS, "migrated")
    assert set(column(citus, "SELECT schema_name FROM tenancy.journal WHERE outcome <> 'done'")) == {"user_1"}
