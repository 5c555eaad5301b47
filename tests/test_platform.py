"""`job_stats.platform_summary`, `get_platform_summary`: all tenants in one SELECT, and nothing taken by any of them."""

import asyncio
import datetime
from typing import Any

import psycopg
import pytest

from stats_lib import (
    Marketplace,
    PlatformSummary,
    _queries,
    aio,
    get_platform_summary,
    get_summary,
    update_job_stats,
)
from tests import hostile
from tests.deploy import ROOT, connect, psql
from tests.hostile import as_role, lay_out, take_over
from tests.tenants import UNEXACT, UP, Connection, clones, column, ok, running, tenants, wait_until

DAY = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)  # over: no test can see it change
SECOND = datetime.timedelta(seconds=1)
READER = """
    DO $$ BEGIN
        IF to_regrole('legacy_exporter') IS NULL THEN
            CREATE ROLE legacy_exporter LOGIN PASSWORD 'legacy_exporter';
        END IF;
    END $$;
    GRANT USAGE ON SCHEMA tenancy, job_stats TO legacy_exporter;
    GRANT SELECT ON tenancy.tenants TO legacy_exporter;
"""


@pytest.fixture
def conn(migrated: Connection) -> Connection:
    """An autocommit connection to a database whose tenants have counted nothing yet."""
    for tenant in tenants(migrated):
        migrated.execute(psycopg.sql.SQL("TRUNCATE {}").format(psycopg.sql.Identifier(tenant, "marketplace_job_stats")))
    return migrated


def count(conn: Connection, schema: str, marketplace: str, *, success: bool = True, **more: Any) -> None:
    """Count a job of yesterday's, unless told otherwise."""
    more = dict[str, Any](date=DAY, duration=SECOND) | more
    update_job_stats(conn, schema=schema, action_type_id=1, marketplace=marketplace, success=success, **more)


def customers(conn: Connection) -> list[str]:
    """Every schema that is a customer's, with the table or without."""
    return column(conn, "SELECT schema_name::text FROM tenancy.tenants WHERE schema_name <> 'template_tenant'")


def trusted(conn: Connection) -> None:
    """Have one role own all tenants: then a superuser reads them all."""
    conn.execute("REASSIGN OWNED BY legacy_owner TO current_user")


def test_the_sums_of_all_tenants(conn: Connection) -> None:
    """Each marketplace has its tenants, sums and exact mean; the tenant without the table is skipped, and counted."""
    trusted(conn)
    count(conn, "user_1", "ebay")
    count(conn, "user_1", "ebay", success=False, duration=4 * SECOND)
    count(conn, "user_2", "ebay", duration=2 * SECOND)
    count(conn, 'user_a"b', "vinted", duration=None)
    count(conn, "user_2", "vinted", date=DAY - datetime.timedelta(days=10))
    insert = "INSERT INTO user_2.marketplace_job_stats (action_type_id, marketplace, date) VALUES (7, 'etsy', %s)"
    conn.execute(insert, [DAY])  # no job

    expected = [
        PlatformSummary(Marketplace.EBAY, 2, 3, 2, 1, 2333, 1),
        PlatformSummary(Marketplace.ETSY, 0, 0, 0, 0, None, 1),
        PlatformSummary(Marketplace.VINTED, 1, 1, 1, 0, None, 1),
    ]
    assert expected == get_platform_summary(conn)
    assert [2, 0, 2] == [row.tenants for row in get_platform_summary(conn, days=30)]
    earlier = get_platform_summary(conn, days=1, until=DAY - datetime.timedelta(days=10))
    assert [(0, None), (0, None), (1, 1000)] == [(row.total_jobs, row.avg_duration_ms) for row in earlier]
    assert [1 / 3, 0.0, 0.0] == [row.failure_rate for row in expected]

    async def main() -> list[PlatformSummary]:
        info = conn.info
        async with await psycopg.AsyncConnection.connect(info.dsn, password=info.password or None) as own:
            return await aio.get_platform_summary(own)

    assert expected == asyncio.run(main())


def test_the_same_as_adding_up_each(migrated: Connection) -> None:
    """Over the rows of old code and of the library, it says what `get_summary` of each tenant adds up to."""
    trusted(migrated)
    migrated.execute("GRANT ALL ON ALL TABLES IN SCHEMA user_1 TO CURRENT_USER")
    for tenant in ["user_1", "user_2"]:
        count(migrated, tenant, "vinted", duration=SECOND)
        migrated.execute(f"UPDATE {tenant}.vinted_job_stats SET avg_duration_ms = 7 WHERE date = '{DAY}'".encode())
        count(migrated, tenant, "vinted", duration=None)
    each = [get_summary(migrated, schema=tenant, days=90) for tenant in tenants(migrated)]
    for row in get_platform_summary(migrated, days=90):
        of_each = [total for totals in each for total in totals if total.marketplace == row.marketplace]
        assert row.total_jobs == sum(total.total_jobs for total in of_each)
        assert row.success_count == sum(total.success_count for total in of_each)
        assert row.failure_count == sum(total.failure_count for total in of_each)
        assert row.tenants == sum(total.total_jobs > 0 for total in of_each)


def test_what_is_believed_is_the_same_in_both() -> None:
    """The rule by which a stored sum is believed is the library's, word for word."""
    text = (ROOT / "sql/migrations/0017.platform-summary.sql").read_text("utf-8").split("$durations$")[1]
    as_read = " ".join(line.partition("--")[0] for line in text.splitlines()).split()
    assert " ".join(as_read).replace("( ", "(").replace(" )", ")") == _queries._DURATIONS


def test_in_any_transaction(conn: Connection) -> None:
    """It is a SELECT: in a transaction that is read only, or has written, too; which goes on, with few locks."""
    trusted(conn)
    clones(conn, "user_many_", 60)
    with connect(conn, autocommit=False) as own:
        count(own, "user_1", "ebay")
        assert [1, 0, 0] == [row.total_jobs for row in get_platform_summary(own)]
        locks = "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND relation::regclass::text ~ 'user_many'"
        assert own.execute(locks.encode()).fetchone() == (0,)
        own.commit()
        own.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        assert [1, 0, 0] == [row.total_jobs for row in get_platform_summary(own)]


def test_tenants_that_are_not_ready_are_skipped(conn: Connection) -> None:
    """Legacy, missing and mid-way tenants are in no sum, and counted; so is one whose table is locked."""
    trusted(conn)
    for tenant in ["user_1", "user_2", "user_3"]:
        count(conn, tenant, "ebay")
    ok(psql(conn, "-f", UNEXACT, env={"PGOPTIONS": "-c tenancy.tenants=user_2"}))
    conn.execute("DROP VIEW user_3.vinted_job_stats")
    conn.execute("ALTER TABLE user_3.marketplace_job_stats RENAME TO vinted_job_stats")
    (ebay, *_) = get_platform_summary(conn)
    assert (1, 1, 3) == (ebay.tenants, ebay.total_jobs, ebay.tenants_skipped)  # one never had the table
    with connect(conn, autocommit=False) as other:
        other.execute("LOCK TABLE user_1.marketplace_job_stats")
        (ebay, *_) = get_platform_summary(conn)
    assert (0, 0, 4) == (ebay.tenants, ebay.total_jobs, ebay.tenants_skipped)


def test_a_role_that_may_read_some(conn: Connection) -> None:
    """A reader gets the sums of what it may read, all columns of it, and the number of the others."""
    conn.execute(READER)
    for tenant in ["user_1", "user_2", "user_3", "user_owner"]:
        count(conn, tenant, "ebay")
        conn.execute(f"GRANT USAGE ON SCHEMA {tenant} TO legacy_exporter".encode())
    conn.execute("GRANT SELECT ON user_1.marketplace_job_stats, user_owner.marketplace_job_stats TO legacy_exporter")
    conn.execute("GRANT SELECT (date, total_jobs) ON user_3.marketplace_job_stats TO legacy_exporter")
    with as_role(conn, "legacy_exporter") as reader:
        (ebay, *_) = get_platform_summary(reader)
    assert (2, 2, len(customers(conn)) - 2) == (ebay.tenants, ebay.total_jobs, ebay.tenants_skipped)


def test_rows_that_a_policy_hides(conn: Connection) -> None:
    """A tenant of which the reader would see some rows only is skipped, and named, be it the reader's own."""
    conn.execute(READER)
    for tenant in ["user_1", "user_2", "user_3", "user_owner"]:
        count(conn, tenant, "ebay")
        conn.execute(f"ALTER TABLE {tenant}.marketplace_job_stats ENABLE ROW LEVEL SECURITY".encode())
        conn.execute(f"GRANT USAGE ON SCHEMA {tenant} TO legacy_exporter".encode())
        conn.execute(f"GRANT SELECT ON {tenant}.marketplace_job_stats TO legacy_exporter".encode())
    trusted(conn)
    conn.execute("ALTER TABLE user_2.marketplace_job_stats OWNER TO legacy_exporter")
    conn.execute("ALTER TABLE user_3.marketplace_job_stats OWNER TO legacy_exporter, FORCE ROW LEVEL SECURITY")
    with as_role(conn, "legacy_exporter") as reader:
        warnings: list[str | None] = []
        reader.add_notice_handler(lambda notice: warnings.append(notice.message_primary))
        (ebay, *_) = get_platform_summary(reader)
    assert (1, 1, len(customers(conn)) - 1) == (ebay.tenants, ebay.total_jobs, ebay.tenants_skipped)
    said = "is skipped: query would be affected by row-level security policy for table"
    assert {f'{tenant} {said} "marketplace_job_stats"' for tenant in ["user_1", "user_3", "user_owner"]} == set(
        warnings
    )


def test_a_child_of_the_table(conn: Connection) -> None:
    """A tenant whose rows are in a child of the table, too, which may be anybody's, is skipped and counted."""
    trusted(conn)
    for tenant in ["user_1", "user_2"]:
        count(conn, tenant, "ebay")
    conn.execute("CREATE TABLE user_2.child () INHERITS (user_2.marketplace_job_stats)")
    (ebay, *_) = get_platform_summary(conn)
    assert (1, 1, 2) == (ebay.tenants, ebay.total_jobs, ebay.tenants_skipped)
    conn.execute("DROP TABLE user_2.child")
    (ebay, *_) = get_platform_summary(conn)
    assert (2, 2, 1) == (ebay.tenants, ebay.total_jobs, ebay.tenants_skipped)


@pytest.mark.parametrize("days", [0, -1, 1_000_001])
def test_bad_days(conn: Connection, days: int) -> None:
    """The library refuses before anything is sent, the function by name."""
    with pytest.raises(ValueError, match=r"^days must be "):
        get_platform_summary(conn, days=days)
    with pytest.raises(psycopg.errors.RaiseException, match="days must be"):
        conn.execute("SELECT * FROM job_stats.platform_summary(%s)", [days])


NO_MERE_READERS = {
    "a mere reader": ("GRANT pg_monitor TO legacy_exporter", None),
    "a group": ("GRANT {group} TO legacy_exporter", "it is a member of {group}"),
    "a predefined role": ("GRANT pg_write_all_data TO legacy_exporter", "it is a member of pg_write_all_data"),
    "an owner": ("CREATE SCHEMA dashboard AUTHORIZATION legacy_exporter", "it owns something"),
    "who makes roles": ("ALTER ROLE legacy_exporter CREATEROLE", "it makes roles"),
    "a superuser": ("ALTER ROLE legacy_exporter SUPERUSER", "it is a superuser"),
    "an old snapshot": (
        "ALTER ROLE legacy_exporter SET default_transaction_isolation = 'repeatable read'",
        "its transaction is repeatable read",
    ),
}


@pytest.mark.parametrize(("script", "reason"), list(NO_MERE_READERS.values()), ids=list(NO_MERE_READERS))
def test_a_reader_is_told_why_it_reads_so_little(conn: Connection, script: str, reason: str | None) -> None:
    """Who may do more than read gets none of the strangers' sums, and one warning that says why."""
    conn.execute(READER)
    count(conn, "user_1", "ebay")
    conn.execute("ALTER TABLE user_1.marketplace_job_stats OWNER TO legacy_owner")
    group = f"legacy_group_{conn.info.backend_pid}"
    conn.execute(f"CREATE ROLE {group}; GRANT pg_read_all_data TO legacy_exporter".encode())
    warnings: list[str] = []
    try:
        conn.execute(script.format(group=group).encode())
        with as_role(conn, "legacy_exporter") as reader:
            reader.add_notice_handler(lambda notice: warnings.append(str(notice.message_primary)))
            (ebay, *_) = get_platform_summary(reader)
    finally:  # roles are the server's, not the database's
        conn.execute(
            f"""
            DROP OWNED BY legacy_exporter, {group};
            DROP ROLE {group};
            REVOKE pg_read_all_data, pg_monitor, pg_write_all_data FROM legacy_exporter;
            ALTER ROLE legacy_exporter NOSUPERUSER NOCREATEROLE;
            ALTER ROLE legacy_exporter RESET ALL
            """.encode()
        )
    assert (reason is None) == ebay.tenants
    said = f"tenants are skipped whose owner could do less than legacy_exporter: {reason}".format(group=group)
    assert ([said] if reason else []) == [warning for warning in warnings if warning.startswith("tenants")]


# A tenant that means harm


def test_names_without_end(conn: Connection) -> None:
    """A tenant that invents marketplaces without end is skipped, and named; others are summed up, and their new one."""
    trusted(conn)
    for tenant, marketplaces in {"user_1": "'x' || i", "user_2": "'y' || i", "user_3": "'depop'"}.items():
        count(conn, tenant, "ebay")
        conn.execute(
            f"""
            ALTER TABLE {tenant}.marketplace_job_stats DROP CONSTRAINT ck_marketplace_job_stats_marketplace;
            INSERT INTO {tenant}.marketplace_job_stats (action_type_id, date, marketplace, total_jobs)
            SELECT i, '{DAY}', {marketplaces}, 1 FROM generate_series(1, 97) AS i
            """.encode()
        )
    warnings: list[str | None] = []
    conn.add_notice_handler(lambda notice: warnings.append(notice.message_primary))
    (depop, ebay, *_) = conn.execute("SELECT * FROM job_stats.platform_summary()").fetchall()
    assert (("depop", 1, 97), ("ebay", 1, 1, 3)) == (depop[:3], (*ebay[:3], ebay[-1]))
    reason = "it has negative numbers, or more than 20 marketplaces that no tenant before it has"
    assert [f"user_1 is skipped: {reason}", f"user_2 is skipped: {reason}"] == warnings


def test_a_name_without_end(conn: Connection) -> None:
    """A table whose marketplace may be of any length is skipped: one name could fill what all are summed up in."""
    trusted(conn)
    for tenant in ["user_1", "user_2"]:
        count(conn, tenant, "ebay")
    conn.execute("DROP VIEW user_2.vinted_job_stats")
    conn.execute("ALTER TABLE user_2.marketplace_job_stats ALTER marketplace TYPE varchar")
    (ebay, *_) = get_platform_summary(conn)
    assert (1, 1, 2) == (ebay.tenants, ebay.total_jobs, ebay.tenants_skipped)


@pytest.mark.parametrize(
    ("counts", "share"),
    [
        ("(1, 1, 0, 0, 1, 0, 0), (2, -1, 0, 0, NULL, NULL, NULL)", None),
        ("(1, 1, -1, 0, NULL, NULL, NULL)", None),
        ("(1, 1, 1, 0, -5, 0, -5)", None),
        ("(1, 1, 1, 0, 0, -2147483646, 0)", None),
        (
            "(1, 2147483647, 0, 0, 2147483647, 0, 9223372035781033984),"
            "(2, -2147483646, 0, 0, 0, NULL, NULL), (3, 2147483647, 0, 0, 2147483647, 0, 9223372035781033984),"
            "(4, -2147483646, 0, 0, 0, NULL, NULL)",
            None,
        ),
        ("(1, 9223372036854775807, 0, 0, NULL, NULL, NULL)", 2**63 - 1),
        (
            "(1, 9223372036854775807, 0, 0, NULL, NULL, NULL), (2, 9223372036854775807, 0, 0, NULL, NULL, NULL)",
            2**63 - 1,
        ),
        ("(1, 9223372036854775807, 0, 0, 9223372036854775807, NULL, NULL)", None),
        ("(1, 1, 0, 0, 9223372036854775807, NULL, NULL), (2, 1, 0, 0, 9223372036854775807, NULL, NULL)", 2),
    ],
    ids=[
        "jobs",
        "successes",
        "durations",
        "untimed jobs",
        "a mean of 2^63",
        "2^63 jobs",
        "2^64 jobs",
        "2^126 ms",
        "2^64 ms",
    ],
)
def test_impossible_counts(conn: Connection, counts: str, share: int | None) -> None:
    """A tenant's counts make it fail for nobody, and take nothing away from others': if negative, it is skipped."""
    trusted(conn)
    for tenant in ["user_1", "user_3"]:
        count(conn, tenant, "ebay")
    conn.execute("DROP VIEW user_2.vinted_job_stats")
    conn.execute(
        "ALTER TABLE user_2.marketplace_job_stats ALTER total_jobs TYPE bigint, ALTER avg_duration_ms TYPE bigint"
    )
    columns = "total_jobs, success_count, failure_count, avg_duration_ms, untimed_jobs, total_duration_ms"
    conn.execute(
        f"""
        INSERT INTO user_2.marketplace_job_stats (action_type_id, marketplace, date, {columns})
        SELECT a, 'ebay', '{DAY}', b, c, d, e::bigint, f::integer, g::bigint
        FROM (VALUES {counts}) AS v (a, b, c, d, e, f, g)
        """.encode()
    )
    warnings: list[str | None] = []
    conn.add_notice_handler(lambda notice: warnings.append(notice.message_primary))
    (ebay, *_) = get_platform_summary(conn)
    if share:
        assert (3, min(share + 2, 2**63 - 1), 1) == (ebay.tenants, ebay.total_jobs, ebay.tenants_skipped)
    else:
        assert (2, 2, 1000, 2) == (ebay.tenants, ebay.total_jobs, ebay.avg_duration_ms, ebay.tenants_skipped)
        assert [True] == [str(warning).startswith("user_2 is skipped: ") for warning in warnings]


TRAPS = {
    "index": "CREATE INDEX ix ON user_evil.marketplace_job_stats ((user_evil.is_fine(1)))",
    "partial index": "CREATE INDEX ix ON user_evil.marketplace_job_stats (id) WHERE user_evil.is_fine(1)",
    "statistics": "CREATE STATISTICS user_evil.st ON (user_evil.is_fine(1)), id FROM user_evil.marketplace_job_stats",
    "check": "ALTER TABLE user_evil.marketplace_job_stats ADD CHECK (user_evil.is_fine(1))",
    "policy": """
        ALTER TABLE user_evil.marketplace_job_stats ENABLE ROW LEVEL SECURITY;
        CREATE POLICY p ON user_evil.marketplace_job_stats USING (user_evil.strike())
    """,
    "view": """
        DROP VIEW user_evil.vinted_job_stats;
        ALTER TABLE user_evil.marketplace_job_stats RENAME TO aside;
        CREATE VIEW user_evil.marketplace_job_stats AS SELECT * FROM user_evil.aside WHERE user_evil.strike()
    """,
    "type": """
        DROP VIEW user_evil.vinted_job_stats;
        CREATE DOMAIN user_evil.counter AS integer CHECK (user_evil.is_fine(VALUE));
        ALTER TABLE user_evil.marketplace_job_stats ALTER total_jobs TYPE user_evil.counter
    """,
    "child": """
        CREATE TABLE user_evil.child () INHERITS (user_evil.marketplace_job_stats);
        CREATE INDEX ix ON user_evil.child ((user_evil.is_fine(1)))
    """,
    "operator": """
        CREATE FUNCTION user_evil.equal(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT user_evil.strike()';
        CREATE OPERATOR user_evil.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = user_evil.equal)
    """,
}


@pytest.fixture(params=list(TRAPS.values()), ids=list(TRAPS))
def trapped(member_clone: Connection, request: pytest.FixtureRequest) -> Connection:
    """Two migrated tenants of two owners, of which one has hung its code on its table, and has called it itself."""
    member_clone.autocommit = True
    ok(take_over(member_clone, "member").psql(*UP))
    with as_role(member_clone, "legacy_evil", options="-c search_path=user_evil") as evil:
        evil.execute(request.param)
        evil.execute(
            "GRANT USAGE ON SCHEMA user_evil TO PUBLIC; GRANT SELECT ON ALL TABLES IN SCHEMA user_evil TO PUBLIC"
        )
    member_clone.execute("ALTER SEQUENCE user_evil.struck RESTART; ALTER SEQUENCE user_evil.escaped RESTART")
    return member_clone


def test_a_hostile_tenant_is_not_called(trapped: Connection) -> None:
    """Whoever asks, a tenant's code is not called, planning included, and what is harmless is summed up."""
    trapped.execute(READER)
    trapped.execute(
        "GRANT USAGE ON SCHEMA user_victim TO legacy_exporter;"
        " GRANT SELECT ON user_victim.marketplace_job_stats TO legacy_exporter"
    )
    options = "-c search_path=user_evil,public -c constraint_exclusion=on"
    for reader in ["superuser", "legacy_member", "legacy_exporter"]:
        own = connect(trapped, options=options) if reader == "superuser" else as_role(trapped, reader, options=options)
        with own:
            *_, vinted = get_platform_summary(own)
        assert column(trapped, "SELECT is_called FROM user_evil.struck") == [False], reader
        hostile.unharmed(trapped)
        if reader == "legacy_exporter":
            assert vinted.tenants >= 1
            assert vinted.total_jobs >= 150
        else:  # who could do more than the owners: they are not read at all
            assert (0, 2) == (vinted.tenants, vinted.tenants_skipped)


def test_a_trap_strikes_who_reads_carelessly(trapped: Connection, request: pytest.FixtureRequest) -> None:
    """A plain query that adds the columns up calls the code of each, but for those that need more than that."""
    trapped.execute(READER)
    harmless = {"operator", "type"} & {request.node.callspec.id}
    with as_role(trapped, "legacy_exporter", options="-c constraint_exclusion=on") as own:
        own.execute("SELECT sum(total_jobs) FROM user_evil.marketplace_job_stats WHERE total_jobs > 0")
    assert column(trapped, "SELECT is_called FROM user_evil.struck") == [not harmless]


@pytest.mark.parametrize("options", ["-c default_transaction_isolation=repeatable\\ read", ""])
def test_a_snapshot_that_hides_a_trap_reads_no_stranger(empty: Connection, options: str) -> None:
    """Under REPEATABLE READ a look at the catalogs is old: only tables of trusted owners are read."""
    ok(lay_out(empty, "member").yoyo("apply"))
    empty.execute(READER)
    empty.execute(
        "GRANT USAGE ON SCHEMA user_victim TO legacy_exporter;"
        " GRANT SELECT ON user_victim.marketplace_job_stats TO legacy_exporter"
    )
    with as_role(empty, "legacy_exporter", options=options) as reader:
        *_, vinted = get_platform_summary(reader)
    assert (0 if options else 1) == vinted.tenants


def test_a_schema_of_another_owner(empty: Connection) -> None:
    """Who owns the schema only could swap the table: by who may do more than read, it is not read either."""
    ok(lay_out(empty, "member").yoyo("apply"))
    empty.execute("ALTER TABLE user_evil.marketplace_job_stats OWNER TO CURRENT_USER")
    assert column(empty, "SELECT job_stats.readable(ARRAY['user_evil'::regnamespace::oid], false)") == []


@pytest.mark.parametrize("deed", ["PERFORM user_evil.strike()", "RAISE SQLSTATE 'JS000'", "ASSERT false"])
def test_a_table_that_is_swapped_while_the_reader_waits(empty: Connection, deed: str) -> None:
    """A view that takes the place of a tenant's table is not read, and takes nothing from the others' sums."""
    ok(lay_out(empty, "member").yoyo("apply"))
    empty.execute(READER)
    empty.execute(
        "GRANT USAGE ON SCHEMA user_victim, user_evil TO legacy_exporter;"
        " GRANT SELECT ON user_victim.marketplace_job_stats, user_evil.marketplace_job_stats TO legacy_exporter"
    )

    def read() -> int:
        with as_role(empty, "legacy_exporter") as reader:
            *_, vinted = get_platform_summary(reader)
        return vinted.total_jobs

    with as_role(empty, "legacy_evil", autocommit=False) as evil:
        evil.execute(
            f"""
            CREATE FUNCTION user_evil.spy() RETURNS date LANGUAGE plpgsql AS $$
            BEGIN
                {deed};
                RETURN current_date;
            END $$;
            LOCK TABLE user_evil.marketplace_job_stats
            """.encode()
        )
        with running(read) as results:
            wait_until(empty, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
            evil.execute(
                """
                ALTER TABLE user_evil.marketplace_job_stats RENAME TO away;
                CREATE VIEW user_evil.marketplace_job_stats AS
                SELECT
                    id, action_type_id, user_evil.spy() AS date, 1 AS total_jobs, 0 AS success_count,
                    0 AS failure_count, NULL::integer AS avg_duration_ms, NULL::integer AS untimed_jobs,
                    NULL::bigint AS total_duration_ms, 'vinted'::varchar AS marketplace
                FROM user_evil.away;
                GRANT SELECT ON user_evil.marketplace_job_stats TO PUBLIC
                """
            )
            evil.commit()
    assert results == [150]
    assert column(empty, "SELECT is_called FROM user_evil.struck") == [False]
