"""Settings of roles and databases, and others' locks: a run does what it says, or says why not."""

import os
import re
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dev.server import throwaway_server
from tests.deploy import connect, psql, yoyo
from tests.faults import kill_yoyo, stopped
from tests.tenants import DOWN, DOWNGRADE, UP, UPGRADE, Connection, column, ok, running, states, wait_until
from tests.test_docs import blocks

SEEN = """
    SET statement_timeout = 0;
    CALL tenancy.for_each_tenant(
        migration => 'look',
        pending => $$
            SELECT t.schema_oid, to_regclass(format('%%I.seen', t.schema_name)) IS NULL FROM tenancy.tenants AS t
            WHERE t.schema_name ~ '^user_[12]$'
        $$,
        lock_timeout_ms => 100,
        attempts => 3,
        run => $tenant$
            CREATE TABLE seen AS SELECT name, setting FROM pg_catalog.pg_settings;
        $tenant$
    );
"""


def alter_database(conn: Connection, setting: str) -> None:
    """Set something for every session to come."""
    conn.execute(sql.SQL(f"ALTER DATABASE {{}} SET {setting}").format(sql.Identifier(conn.info.dbname)))


def test_the_settings_that_a_script_sees(toolkit: Connection) -> None:
    """The first attempt waits 100 ms for a lock; the run is the victim of a deadlock; rows unseen are an error."""
    alter_database(toolkit, "row_security = on")
    ok(psql(toolkit, stdin=SEEN.replace("%%", "%")))
    for tenant in ["user_1", "user_2"]:
        seen: dict[str, str] = dict(toolkit.execute(f"SELECT name, setting FROM {tenant}.seen".encode()).fetchall())
        expected = {
            "lock_timeout": "100",
            "deadlock_timeout": "10",
            "row_security": "off",
            "search_path": f"{tenant}, pg_temp",
            "client_min_messages": "error",
            "synchronous_commit": "off",
            "statement_timeout": "0",
            "transaction_timeout": "0",
            "default_tablespace": "",
            "DateStyle": "ISO, YMD",
        }
        assert {name: seen.get(name, "0") for name in expected} == expected


def test_every_check_of_plpgsql(legacy: Connection) -> None:
    """That a developer has switched on for all: none is an error in our routines."""
    alter_database(legacy, "plpgsql.extra_errors = 'all'")
    ok(yoyo(legacy, "apply"))
    ok(yoyo(legacy, "rollback", "--all"))


def test_a_run_leaves_the_session_as_it_was(toolkit: Connection) -> None:
    """Afterwards the caller's own settings are back, its search_path first."""
    with connect(toolkit) as session:
        session.execute("SET search_path = user_3; SET statement_timeout = 0")
        before = dict(session.execute("SELECT name, setting FROM pg_settings").fetchall())
        call = Path(UPGRADE).read_text("utf-8").partition("\nCALL")[2].partition("\nRESET")[0]
        session.execute(f"CALL{call}".encode())
        after = dict(session.execute("SELECT name, setting FROM pg_settings").fetchall())
        assert {name: after[name] for name in before} == before


def test_what_undoes_is_gone_once_it_has_run(migrated: Connection) -> None:
    """After the rollback nothing is kept that a later one could run again."""
    assert column(migrated, "SELECT count(*) > 0 FROM tenancy.undo") == [True]
    ok(psql(migrated, "-f", DOWNGRADE))
    assert column(migrated, "SELECT count(*) FROM tenancy.undo") == [0]


def test_a_transaction_timeout(toolkit: Connection) -> None:
    """It does not end a run, whose transactions may be longer (PostgreSQL 17 and newer have it)."""
    if toolkit.info.server_version < 170000:
        pytest.skip("this PostgreSQL has no transaction_timeout")
    alter_database(toolkit, "transaction_timeout = '200ms'")
    slow = """
        CREATE FUNCTION public.wait() RETURNS event_trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_catalog.pg_sleep(0.03); END';
        CREATE EVENT TRIGGER wait ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION public.wait()
    """
    with connect(toolkit) as conn:
        conn.execute("SET transaction_timeout = 0")
        conn.execute(slow.encode())
    ok(psql(toolkit, *UP))
    with connect(toolkit) as conn:
        longest = "SELECT max(milliseconds) > 200 FROM tenancy.journal"
        assert column(conn, longest) == [True]
    ok(psql(toolkit, *DOWN))


def test_a_statement_timeout_that_was_not_lifted(toolkit: Connection) -> None:
    """By hand, or through a pooler that takes another session for the SET: refused before anything is done."""
    refused = psql(toolkit, "-c", "SET statement_timeout = '1h'", "-c", "CALL job_stats.sweep()")
    assert refused.returncode != 0
    assert "statement_timeout is 1h, and would count for all tenants together" in refused.stderr
    assert "SET statement_timeout = 0 first" in refused.stderr


@pytest.mark.parametrize("command", ["apply", "rollback"])
def test_a_run_goes_on_when_its_client_has_died(toolkit: Connection, command: str) -> None:
    """Up and down, it needs nobody to listen, though each tenant's code says something."""
    if command == "rollback":
        ok(yoyo(toolkit, "apply", "--revision", "0020"))
    toolkit.execute(
        """
        CREATE FUNCTION public.chat() RETURNS event_trigger LANGUAGE plpgsql AS
            'BEGIN RAISE NOTICE ''%%'', repeat(''x'', 10000); RAISE WARNING ''x''; END';
        CREATE EVENT TRIGGER chat ON ddl_command_end EXECUTE FUNCTION public.chat()
        """.replace("%%", "%").encode()
    )
    with stopped(toolkit, "before the first tenant", command) as run:
        kill_yoyo(run, toolkit)
    wait_until(toolkit, "SELECT count(*) = 0 FROM tenancy.progress WHERE state = 'running'")
    expected = {"apply": "migrated", "rollback": "legacy"}[command]
    assert set(states(toolkit).values()) == {expected, "missing"}


def test_psql_prints_the_row_alone(migrated: Connection) -> None:
    """No NOTICE for each of thousands of tenants, up or down."""
    for file in [DOWNGRADE, UPGRADE]:
        result = psql(migrated, "-f", file)
        ok(result)
        assert result.stderr == ""


def test_a_database_whose_search_path_moves(toolkit: Connection) -> None:
    """yoyo goes on with its tables in public, and finds what it has applied."""
    alter_database(toolkit, "search_path = user_1")
    ok(yoyo(toolkit, "apply"))
    assert column(toolkit, "SELECT count(*) FROM pg_class WHERE relname = '_yoyo_migration'") == [1]


def test_rehearse_and_apply(toolkit: Connection) -> None:
    """A rehearsal in which a tenant fails ends with an error, as the runbook writes it: && does not go on."""
    toolkit.execute("CREATE TABLE user_1.marketplace_job_stats ()")
    rehearsal = psql(toolkit, "-v", "ON_ERROR_STOP=1", "-c", "SET tenancy.dry_run = on", "-f", UPGRADE)
    assert rehearsal.returncode != 0
    assert "19 rehearsed, 0 done before, 1 FAILED" in rehearsal.stderr


def test_an_encoding_that_yoyo_cannot_read(toolkit: Connection) -> None:
    """With SQL_ASCII, a database's or a client's, yoyo fails until it is told another."""
    alter_database(toolkit, "client_encoding = 'SQL_ASCII'")
    failed = yoyo(toolkit, "apply")
    assert failed.returncode
    assert "operator does not exist: information_schema.sql_identifier = bytea" in failed.stderr
    ok(yoyo(toolkit, "apply", env={"PGCLIENTENCODING": "UTF8"}))


def test_progress_tells_the_truth(toolkit: Connection) -> None:
    """Of a run that has ended nothing is left to do, though tenants were dropped; another process is not the run's."""
    with connect(toolkit, autocommit=False) as blocker:
        blocker.execute("LOCK TABLE user_1.vinted_job_stats IN ACCESS SHARE MODE")
        with running(psql, toolkit, "-f", UPGRADE) as results:
            wait_until(toolkit, "SELECT bool_or(locked = 1) IS TRUE FROM tenancy.progress")
            blocker.rollback()
            blocker.execute("DROP SCHEMA user_1 CASCADE")
            blocker.commit()
    ok(results[0])
    query = "SELECT state, still_to_do FROM tenancy.progress LIMIT 1"
    assert toolkit.execute(query).fetchall() == [("ended", 0)]
    with connect(toolkit) as other:
        other.execute("SELECT pg_advisory_lock(1)")
        toolkit.execute(
            "INSERT INTO tenancy.runs (migration, pid, to_do, already_done, started_at) "
            "VALUES ('x', %s, 1, 0, '2026-01-01')",
            [other.info.backend_pid],
        )
        assert toolkit.execute(query).fetchall() == [("killed", 1)]
        toolkit.execute(
            "GRANT USAGE ON SCHEMA tenancy TO legacy_owner; GRANT SELECT ON tenancy.progress TO legacy_owner"
        )
        with connect(toolkit, options="-c role=legacy_owner") as who_sees_no_starts:
            assert who_sees_no_starts.execute(query).fetchall() == [("killed", 1)]


HOLDERS = {
    "a reader of a child's child": (
        "CREATE TABLE user_3.child () INHERITS (user_1.vinted_job_stats);"
        "CREATE TABLE user_3.grandchild () INHERITS (user_3.child)",
        "SELECT FROM user_3.grandchild",
    ),
    "a reader of what a foreign key points at": (
        "ALTER TABLE user_1.vinted_job_stats ADD FOREIGN KEY (action_type_id) REFERENCES vinted.action_types",
        "LOCK TABLE vinted.action_types IN ROW EXCLUSIVE MODE",
    ),
}


@pytest.mark.parametrize(("change", "lock"), HOLDERS.values(), ids=HOLDERS)
def test_who_holds_a_lock_is_named(toolkit: Connection, change: str, lock: str) -> None:
    """Wherever it is that the tenant's script has to wait."""
    toolkit.execute(change.encode())
    only = ["-c", "SET tenancy.tenants = 'user_1'", "-c", "SET tenancy.give_up_after = '1ms'"]
    with connect(toolkit, autocommit=False, application_name="report") as holder:
        holder.execute(lock.encode())
        failed = psql(toolkit, *only, "-f", UPGRADE)
        assert f"user_1: locked by pid {holder.info.backend_pid} (report, in a transaction since 2" in failed.stderr


@pytest.mark.usefixtures("_no_libpq_variables")
def test_a_prepared_transaction_is_named() -> None:
    """With its owner and time, and the statement that ends it."""
    bin_dir = os.environ.get("JOB_STATS_TEST_BIN")
    settings = {"max_prepared_transactions": "2"}
    with (
        throwaway_server(Path(bin_dir) if bin_dir else None, settings=settings) as server,
        psycopg.connect(server.url(), autocommit=True) as conn,
    ):
        ok(psql(conn, "-f", "dev/legacy.sql"))
        ok(yoyo(conn, "apply", "--revision", "0019"))
        conn.execute("BEGIN; SELECT FROM user_1.vinted_job_stats; PREPARE TRANSACTION 'it''s'")
        only = ["-c", "SET tenancy.tenants = 'user_1'", "-c", "SET tenancy.give_up_after = '1ms'"]
        failed = psql(conn, *only, "-f", UPGRADE)
        assert re.search(
            r"user_1: locked by a prepared transaction \(of postgres, since 2[^;]*; "
            r"to end it: ROLLBACK PREPARED 'it''s'\)",
            failed.stderr,
        )
        found = column(conn, "SELECT finding FROM job_stats.preflight WHERE kind = 'in the way'")
        assert "ROLLBACK PREPARED 'it''s'" in found[0]
        conn.execute("ROLLBACK PREPARED 'it''s'")
        ok(psql(conn, "-f", UPGRADE))


def test_a_runs_own_statements_wait(toolkit: Connection) -> None:
    """An index that is built on the journal holds the run up, and ends nothing."""
    with connect(toolkit, autocommit=False) as builder:
        builder.execute("LOCK TABLE tenancy.journal IN SHARE MODE")
        with running(psql, toolkit, "-f", UPGRADE) as results:
            waits = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = 'tenancy.journal'::regclass"
            wait_until(toolkit, waits)
            builder.execute("SELECT pg_sleep(0.3)")  # longer than the tenant's own waits may be
            builder.rollback()
    ok(results[0])
    assert set(states(toolkit).values()) == {"migrated", "missing"}


def test_a_backup_that_holds_every_tenant(toolkit: Connection) -> None:
    """After a pass in which nothing went, some are tried before the others; all are named when the run gives up."""
    with connect(toolkit, autocommit=False, application_name="backup") as backup:
        for tenant in column(backup, "SELECT nspname FROM pg_namespace WHERE nspname ~ '^user_'"):
            if tenant != "user_without_table":
                name = sql.Identifier(tenant, "vinted_job_stats")
                backup.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(name))
        impatient = Path(UPGRADE).read_text("utf-8").replace("lock_timeout_ms => 100", "lock_timeout_ms => 20")
        failed = psql(toolkit, stdin=impatient)
        assert "1 done, 0 done before, 19 FAILED" in failed.stderr
        assert failed.stderr.count("locked by pid") == 19
    tried = "SELECT attempt, count(*) FROM tenancy.journal WHERE outcome = 'locked' GROUP BY 1 ORDER BY 1"
    assert toolkit.execute(tried).fetchall() == [(1, 19), *[(attempt, 10) for attempt in range(2, 10)]]
    assert re.search(r"\| +19 \| +1 \| +0 \|", ok(psql(toolkit, "-f", UPGRADE)))


def test_some_of_many_locked_tenants_are_set_free(toolkit: Connection) -> None:
    """Those that are tried have not been for the longest time, so none that is free is left for those that are not."""
    tenants = column(
        toolkit,
        "SELECT n.nspname FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace "
        "WHERE relname = 'vinted_job_stats' AND n.nspname ~ '^user_' ORDER BY 1",
    )
    with connect(toolkit, autocommit=False) as free_soon, connect(toolkit, autocommit=False) as holder:
        for number, tenant in enumerate(tenants):
            lock = sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.Identifier(tenant, "vinted_job_stats"))
            (holder if number < 11 else free_soon).execute(lock)
        with running(psql, toolkit, "-f", UPGRADE) as results:
            wait_until(toolkit, "SELECT coalesce(max(attempt), 1) > 1 FROM tenancy.journal")
            free_soon.rollback()
            wait_until(toolkit, "SELECT count(*) = %s FROM tenancy.journal WHERE outcome = 'done'", len(tenants) - 10)
            holder.rollback()
    assert results[0].returncode == 0


def test_a_monitoring_role(migrated: Connection) -> None:
    """With the rights that docs/runbook.md gives it, it can watch, and read nothing else."""
    migrated.execute("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM public")
    ok(yoyo(migrated, "rollback", "--all"))
    ok(yoyo(migrated, "apply"))
    (grants,) = blocks("docs/runbook.md", "sql", "monitor;")
    migrated.execute("CREATE ROLE legacy_monitor LOGIN")
    migrated.execute(grants.replace(" monitor;", " legacy_monitor;").encode())
    with connect(migrated, user="legacy_monitor") as monitor:
        for view in ["tenancy.progress", "tenancy.journal", "job_stats.tenant_status", "job_stats.preflight"]:
            monitor.execute(f"SELECT count(*) FROM {view}".encode())
        for query in ["TABLE tenancy.undo", "TABLE user_1.marketplace_job_stats", "CALL tenancy.remember('pg_class')"]:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                monitor.execute(query.encode())
    migrated.execute("DROP OWNED BY legacy_monitor")
