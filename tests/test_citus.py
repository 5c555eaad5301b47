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
from tests.deploy import ROOT, connect, psql, yoyo
from tests.tenants import UPGRADE, Connection, clone, column, ok, rows, running, states, wait_until
from tests.test_docs import blocks

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
    WHERE nspname IN ('job_stats', 'tenancy', 'template_tenant', 'vinted', 'yoyo') OR starts_with(nspname, 'user_')
    UNION ALL
    SELECT format('TABLE public.%I', relname) FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname ~ '^_?yoyo_'
    ORDER BY 1
"""
# As by a crash of the workers, in the middle of the script of user_1: once, so that the same command goes on.
LOSE_THE_WORKERS = """
    IF current_schema() = 'user_1' AND NOT EXISTS (SELECT FROM tenancy.journal WHERE outcome = 'failed') THEN
        PERFORM run_command_on_workers(
            'SELECT count(pg_terminate_backend(pid, 9000)) FROM pg_stat_activity WHERE datname = current_database()
            AND application_name LIKE ''citus_internal%'' AND pid <> pg_backend_pid()'
        );
    END IF;
"""
OWNER = "legacy_citus_owner"


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
            drop_ours(conn)


def drop_ours(conn: Connection) -> None:
    """Leave the database as it was found."""
    for ours in sorted(column(conn, OURS), key=lambda it: (it == "SCHEMA template_tenant", it == "SCHEMA vinted")):
        conn.execute(f"DROP {ours} CASCADE".encode())


@pytest.fixture
def owner(citus: Connection) -> Iterator[Connection]:
    """A connection of a role without attributes, which owns the tenants."""
    for statement in [
        f"CREATE ROLE {OWNER} LOGIN",
        f"CREATE SCHEMA yoyo AUTHORIZATION {OWNER}",
        f"GRANT CREATE ON DATABASE {citus.info.dbname} TO {OWNER}",
        f"GRANT USAGE ON SCHEMA vinted TO {OWNER}",
        f"GRANT SELECT, REFERENCES ON vinted.action_types TO {OWNER}",
        *(f"ALTER SCHEMA {tenant} OWNER TO {OWNER}" for tenant in TENANTS),
        *(f"ALTER TABLE {tenant}.vinted_job_stats OWNER TO {OWNER}" for tenant in TENANTS),
    ]:
        citus.execute(statement.encode())
    try:
        with connect(citus, user=OWNER) as conn:
            yield conn
    finally:
        drop_ours(citus)
        citus.execute(f"DROP OWNED BY {OWNER}".encode())
        citus.execute(f"DROP ROLE {OWNER}".encode())


def for_each_tenant(conn: Connection, run: str) -> None:
    """A migration of its own: it is pending in a tenant until its last run there was done."""
    conn.execute(
        """
        CALL tenancy.for_each_tenant(
            migration => 'probe', lock_timeout_ms => 100, attempts => 1, run => %s,
            pending => 'SELECT t.schema_oid, t.schema_name NOT IN (
                SELECT j.schema_name FROM tenancy.journal AS j WHERE j.migration = ''probe'' AND j.outcome = ''done''
            ) FROM tenancy.tenants AS t'
        )
        """,
        [run],
    )


def on_workers(conn: Connection, query: str) -> set[str]:
    """The value that a query has on each worker."""
    return set(column(conn, "SELECT result FROM run_command_on_workers(%s)", query))


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
            (holders,) = blocks("docs/ecosystem.md", "sql", "citus_locks")
            assert reader.info.backend_pid in {pid % 10_000_000_000 for pid in column(citus, holders)}
            reader.rollback()
    ok(results[0])
    assert states(citus) == dict.fromkeys(TENANTS, "migrated")
    assert set(column(citus, "SELECT schema_name FROM tenancy.journal WHERE outcome <> 'done'")) == {"user_1"}


def test_nothing_of_ours_is_on_the_workers(owner: Connection, citus: Connection) -> None:
    """A role that owns the tenants, and nothing else, goes up, counts and goes down; workers have tables only."""
    marks = "--database=postgresql+psycopg://?schema=yoyo"
    ok(yoyo(owner, "apply", marks, env=SHARDING))
    assert states(owner) == dict.fromkeys(TENANTS, "migrated")
    update_job_stats(owner, schema="user_1", action_type_id=1, marketplace=Marketplace.EBAY, success=True)
    ok(yoyo(owner, "rollback", "--revision", "0020", marks, env=SHARDING))
    assert states(owner) == dict.fromkeys(TENANTS, "legacy")
    assert on_workers(citus, "SELECT count(*) FROM pg_namespace WHERE nspname IN ('job_stats', 'tenancy')") == {"0"}
    ok(yoyo(owner, "rollback", "--all", marks, env=SHARDING))


@pytest.mark.parametrize(
    "next_statement",
    [
        "",
        "ALTER TABLE marketplace_job_stats ADD COLUMN second integer;",
        "CALL tenancy.rename_sequence('template_tenant.marketplace_job_stats_id_seq', 'any');",
        "CALL tenancy.validate_foreign_key('marketplace_job_stats', 'fk_any');",
    ],
)
def test_a_lost_worker_is_an_error_of_one_tenant(citus: Connection, next_statement: str) -> None:
    """The tenant whose turn it is is named, all others are done; the same command does it when the worker is back."""
    ok(yoyo(citus, "apply", env=SHARDING))
    script = f"""
        ALTER TABLE marketplace_job_stats ADD COLUMN first integer;
        ALTER TABLE marketplace_job_stats
            ADD CONSTRAINT fk_any FOREIGN KEY (action_type_id) REFERENCES vinted.action_types (id) NOT VALID;
        {LOSE_THE_WORKERS}
        IF current_schema() = 'user_1' THEN
            NULL; {next_statement}
        END IF;
    """
    with pytest.raises(psycopg.errors.RaiseException, match=r"3 done, 0 done before, 1 FAILED") as raised:
        for_each_tenant(citus, script)
    assert (raised.value.diag.message_detail or "").startswith("user_1: ")
    columns = "SELECT attrelid::regclass::text FROM pg_attribute WHERE attname = 'first' ORDER BY 1"
    done = [f"{tenant}.marketplace_job_stats" for tenant in TENANTS]
    assert column(citus, columns) == [table for table in done if not table.startswith("user_1.")]
    for_each_tenant(citus, script)
    assert column(citus, columns) == done


def test_a_commit_is_as_durable_as_the_workers(citus: Connection) -> None:
    """A crash of the coordinator must not lose what the workers have committed: none of its commits is put off."""
    ok(yoyo(citus, "apply", env=SHARDING))
    for_each_tenant(citus, "ASSERT current_setting('synchronous_commit') = 'on';")


def test_a_foreign_key_is_valid_again_where_no_row_is_against_it(citus: Connection) -> None:
    """After the rollback, one that eBay's action types violate is enforced for new rows only."""
    for tenant in ["user_1", "user_2"]:
        citus.execute(
            f"ALTER TABLE {tenant}.vinted_job_stats"
            " ADD CONSTRAINT fk_any FOREIGN KEY (action_type_id) REFERENCES vinted.action_types (id)".encode()
        )
    ok(yoyo(citus, "apply", env=SHARDING))
    update_job_stats(citus, schema="user_1", action_type_id=7, marketplace=Marketplace.EBAY, success=True)
    ok(yoyo(citus, "rollback", "--revision", "0020", env=SHARDING))
    keys = citus.execute("SELECT conrelid::regclass::text, convalidated FROM pg_constraint WHERE contype = 'f'")
    tables = {f"{tenant}.vinted_job_stats": tenant != "user_1" for tenant in TENANTS[:3]}
    assert {table: valid for table, valid in keys if table in tables} == tables


def test_a_sequence_that_is_in_use_is_renamed_later(citus: Connection) -> None:
    """An open transaction that has drawn from the template's holds up nobody; the end of the next run renames it."""
    ok(yoyo(citus, "apply", "--revision", "0019", env=SHARDING))
    with connect(citus, autocommit=False) as writer:
        writer.execute("SELECT nextval('template_tenant.vinted_job_stats_id_seq')")
        ok(psql(citus, "-f", UPGRADE))
        name = "SELECT relname FROM pg_class WHERE relkind = 'S' AND relnamespace = 'template_tenant'::regnamespace"
        assert column(citus, name) == ["vinted_job_stats_id_seq"]
    citus.execute("CALL tenancy.sweep()")
    assert column(citus, name) == ["marketplace_job_stats_id_seq"]


def test_a_new_tenant_and_the_contract(citus: Connection) -> None:
    """A tenant that is added is a distributed schema, too; and all of them lose their view, and get it back."""
    ok(yoyo(citus, "apply", env=SHARDING))
    citus.execute("CALL job_stats.add_tenant('user_4')")
    assert distributed(citus) == [f"{tenant}.marketplace_job_stats" for tenant in [*TENANTS, "user_4"]]
    update_job_stats(citus, schema="user_4", action_type_id=1, marketplace=Marketplace.VINTED, success=True)
    assert column(citus, "SELECT total_jobs FROM user_4.vinted_job_stats") == [1]
    contract = str(ROOT / "sql/contract/0900.drop-legacy-view")
    for file, state in [(f"{contract}.sql", "contracted"), (f"{contract}.rollback.sql", "migrated")]:
        ok(psql(citus, "-f", file))
        assert set(states(citus).values()) == {state}


def test_a_rehearsal_changes_nothing(citus: Connection) -> None:
    """Neither the coordinator nor a worker keeps anything of a script that was only tried."""
    ok(yoyo(citus, "apply", "--revision", "0019", env=SHARDING))
    rehearsed = ok(psql(citus, "-c", "SET tenancy.dry_run = on", "-f", UPGRADE))
    assert "|    4 |" in rehearsed
    assert states(citus) == dict.fromkeys(TENANTS, "legacy")
    assert on_workers(citus, "SELECT count(*) FROM pg_class WHERE relname ~ '^marketplace_job_stats'") == {"0"}
