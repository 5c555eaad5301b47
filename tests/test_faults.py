"""Whatever dies, every tenant is whole, and the same command run again finishes the job.

On a server of its own, with the programs of JOB_STATS_TEST_BIN or else the wheel's, since some tests crash it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dev.server import Server, throwaway_server
from tests.deploy import ROOT, connect, psql, yoyo
from tests.faults import (
    Fault,
    crash_server,
    interrupt_yoyo,
    kill_yoyo,
    stopped,
    terminate_backend,
    terminate_yoyo,
)
from tests.tenants import Connection, column, ok, states, tenants, wait_until

TOOLKIT = [
    path.stem for path in sorted((ROOT / "sql/migrations").glob("00[01]*.sql")) if not path.stem.endswith(".rollback")
]
ALL = [*TOOLKIT, "0020.marketplace-job-stats", "0021.exact-averages"]


# Databases to clone: legacy tenants and the toolkit; the same, upgraded.


@pytest.fixture(scope="module")
def server_to_crash(_no_libpq_variables: None) -> Iterator[Server]:
    """A server with the databases `toolkit` and `upgraded`."""
    bin_dir = os.environ.get("JOB_STATS_TEST_BIN")
    with throwaway_server(Path(bin_dir) if bin_dir else None) as server:
        with psycopg.connect(server.url(), autocommit=True) as conn:
            conn.execute("CREATE DATABASE toolkit")
            with psycopg.connect(server.url("toolkit")) as toolkit:
                ok(psql(toolkit, "-f", "dev/legacy.sql"))
                ok(yoyo(toolkit, "apply", "--revision", "0019"))
            conn.execute("CREATE DATABASE upgraded TEMPLATE toolkit")
            with psycopg.connect(server.url("upgraded")) as upgraded:
                ok(yoyo(upgraded, "apply", "--revision", "0020"))
        yield server


@contextmanager
def clone_of(server: Server, template: str, tablespace: str = "pg_default") -> Iterator[Connection]:
    """Yield a connection, in autocommit, to a new database `clone`."""
    with psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute("DROP DATABASE IF EXISTS clone WITH (FORCE)")
        # FILE_COPY, since a crash soon after WAL_LOG sets sequences back.
        clone = f"CREATE DATABASE clone TEMPLATE {template} TABLESPACE {tablespace} STRATEGY file_copy"
        conn.execute(clone.encode())
    with psycopg.connect(server.url("clone"), autocommit=True) as conn:
        yield conn


@pytest.fixture
def toolkit(server_to_crash: Server) -> Iterator[Connection]:
    """A connection to the database of `dev/legacy.sql` after `yoyo apply --revision 0019`."""
    with clone_of(server_to_crash, "toolkit") as conn:
        yield conn


@pytest.fixture
def upgraded(server_to_crash: Server) -> Iterator[Connection]:
    """A connection to the database of `dev/legacy.sql` after `yoyo apply --revision 0020`."""
    with clone_of(server_to_crash, "upgraded") as conn:
        yield conn


# What must hold then.


def shapes(conn: Connection) -> dict[str, str]:
    """What the catalogs say of each tenant, without job_stats: legacy, migrated, or else what it consists of."""
    query = """
        SELECT n.nspname, array_agg(f.fact ORDER BY f.fact)
        FROM pg_namespace AS n
        JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname IN ('vinted_job_stats', 'marketplace_job_stats')
        CROSS JOIN LATERAL (
            SELECT concat(c.relkind, ' ', c.relname)
            UNION ALL
            SELECT 'column marketplace' FROM pg_attribute WHERE attrelid = c.oid AND attname = 'marketplace'
            UNION ALL
            SELECT 'key ' || string_agg(attname, ' ' ORDER BY attname)
            FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)
            WHERE indrelid = c.oid AND indisunique AND NOT indisprimary
            GROUP BY indexrelid
            HAVING 'action_type_id' = ANY (array_agg(attname))
        ) AS f (fact)
        WHERE n.nspname = ANY (%s)
        GROUP BY n.nspname
    """
    found = {}
    for schema, facts in conn.execute(query, [tenants(conn)]):
        view = [] if schema == "template_tenant" else ["v vinted_job_stats"]
        known = {
            ("key action_type_id date", "r vinted_job_stats"): "legacy",
            ("column marketplace", "key action_type_id date marketplace", "r marketplace_job_stats", *view): "migrated",
        }
        found[schema] = known.get(tuple(facts), str(facts))
    return found


def whole(conn: Connection) -> dict[str, str]:
    """Whether each tenant is legacy or migrated, once nobody is at work; it is nothing else, and job_stats agrees."""
    wait_until(conn, "SELECT count(*) = 0 FROM tenancy.progress WHERE state = 'running'")
    found = shapes(conn)
    assert set(found.values()) <= {"legacy", "migrated"}
    assert {schema: state for schema, state in states(conn).items() if state != "missing"} == found
    return found


def jobs(conn: Connection) -> dict[str, int]:
    """All jobs counted in each tenant's table."""
    tables = {"legacy": "vinted_job_stats", "migrated": "marketplace_job_stats"}
    total = "SELECT coalesce(sum(total_jobs), 0) FROM {}"
    return {
        schema: conn.execute(sql.SQL(total).format(sql.Identifier(schema, tables[shape]))).fetchall()[0][0]
        for schema, shape in shapes(conn).items()
    }


def marks(conn: Connection) -> list[str]:
    """What yoyo believes to be applied."""
    return column(conn, "SELECT migration_id FROM _yoyo_migration ORDER BY migration_id")


def break_lock_if(expected: bool | None, conn: Connection) -> None:
    """Run `yoyo break-lock` if it is needed, which is checked; None: that is left to chance."""
    (needed,) = column(conn, "SELECT count(*) = 1 FROM yoyo_lock")
    assert expected in {None, needed}
    if needed:
        ok(yoyo(conn, "break-lock"))


@contextmanager
def reconnected(server: Server) -> Iterator[Connection]:
    """Yield a new connection to `clone`, as soon as the server, which may have to recover first, accepts it."""
    while True:
        with suppress(psycopg.OperationalError):
            conn = psycopg.connect(server.url("clone"), autocommit=True)
            break
    with conn:
        yield conn


def dies_and_is_repeated(
    server: Server,
    conn: Connection,
    command: str,
    point: str,
    fault: Fault,
    done: int | None,
    *,
    lock_left: bool | None,
) -> None:
    """Let a command die; then see that all is whole, that the same command finishes, and that no count was lost."""
    counted, marked, target = jobs(conn), marks(conn), "legacy" if command == "rollback" else "migrated"
    with stopped(conn, point, command) as run:
        fault(run, conn)
    with reconnected(server) as conn:
        shape = whole(conn)
        assert done in {None, list(shape.values()).count(target)}
        assert (jobs(conn), marks(conn)) == (counted, marked)
        break_lock_if(lock_left, conn)
        ok(yoyo(conn, command))
        assert set(whole(conn).values()) == {target}
        assert jobs(conn) == counted
        assert marks(conn) == (TOOLKIT if command == "rollback" else ALL)


@pytest.mark.parametrize(
    ("point", "fault", "done", "lock_left"),
    [
        ("before the first", terminate_backend, 0, False),
        ("between tenants", interrupt_yoyo, 19, False),
        ("between tenants", kill_yoyo, 20, True),
        ("inside a tenant", terminate_yoyo, 20, True),
        ("inside a tenant", terminate_backend, None, False),
        ("inside a tenant", crash_server, None, None),
        ("before the mark", kill_yoyo, 20, True),
        ("before the mark", crash_server, None, None),
    ],
)
def test_an_upgrade_that_dies(
    server_to_crash: Server, toolkit: Connection, point: str, fault: Fault, done: int | None, lock_left: bool | None
) -> None:
    """Whatever ends `yoyo apply`: no tenant is half done, and `yoyo apply` finishes, at most after break-lock."""
    dies_and_is_repeated(server_to_crash, toolkit, "apply", point, fault, done, lock_left=lock_left)


@pytest.mark.parametrize(
    ("point", "fault", "done", "lock_left"),
    [
        ("inside a tenant", crash_server, None, None),
        ("before the mark", kill_yoyo, 20, True),
    ],
)
def test_a_downgrade_that_dies(
    server_to_crash: Server, upgraded: Connection, point: str, fault: Fault, done: int | None, lock_left: bool | None
) -> None:
    """Whatever ends `yoyo rollback`: no tenant is half done, and `yoyo rollback` finishes, at most after break-lock."""
    upgraded.execute("UPDATE user_1.marketplace_job_stats SET marketplace = 'ebay' WHERE id % 3 = 0")
    dies_and_is_repeated(server_to_crash, upgraded, "rollback", point, fault, done, lock_left=lock_left)


def test_the_server_goes_on_when_yoyo_is_killed(toolkit: Connection) -> None:
    """Until the run ends, `yoyo apply` is refused, even after break-lock, with its pid; then it has only to mark."""
    with stopped(toolkit, "before the first", "apply") as run:
        kill_yoyo(run, toolkit)
        break_lock_if(True, toolkit)
        refused = yoyo(toolkit, "apply")
        assert refused.returncode != 0
        assert f"migrated already, by pid {run.pid}" in refused.stderr
        assert marks(toolkit) == TOOLKIT
    assert set(whole(toolkit).values()) == {"migrated"}
    assert "| 0    | 20 " in ok(yoyo(toolkit, "apply"))
    assert marks(toolkit) == ALL


def test_yoyo_loses_its_idle_connection(toolkit: Connection) -> None:
    """All tenants are upgraded all the same; yoyo fails and marks nothing, and after break-lock has only to mark."""
    with stopped(toolkit, "between tenants", "apply") as run:
        idle = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'"
        assert column(toolkit, f"SELECT pg_terminate_backend(pid) FROM ({idle}) AS yoyo") == [True]
    assert "OperationalError" in run.stderr
    assert set(whole(toolkit).values()) == {"migrated"}
    assert marks(toolkit) == TOOLKIT
    break_lock_if(True, toolkit)
    assert "| 0    | 20 " in ok(yoyo(toolkit, "apply"))
    assert marks(toolkit) == ALL


def test_a_second_yoyo(toolkit: Connection) -> None:
    """It waits, changes nothing, and names the process that holds yoyo's lock and the command to break it."""
    with stopped(toolkit, "before the first", "apply") as run:
        second = yoyo(toolkit, "apply")
        assert second.returncode != 0
        assert f"Process {run.process.pid} has locked this database (run yoyo break-lock" in second.stderr
        assert set(shapes(toolkit).values()) == {"legacy"}
    assert run.process.returncode == 0
    assert set(whole(toolkit).values()) == {"migrated"}


def test_a_role_without_rights_on_some_tenants(legacy: Connection) -> None:
    """Tenants that the migrating role does not own are refused by name, the others done; owning them, it finishes."""
    legacy.execute("CREATE ROLE legacy_migrator LOGIN")
    legacy.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO legacy_migrator").format(sql.Identifier(legacy.info.dbname)))
    legacy.execute("GRANT CREATE ON SCHEMA public TO legacy_migrator")
    legacy.execute("GRANT USAGE ON SCHEMA vinted TO legacy_migrator")
    legacy.execute("GRANT REFERENCES ON vinted.action_types TO legacy_migrator")

    def hand_over(schemas: list[str]) -> None:
        for schema in schemas:
            for change in [
                "ALTER SCHEMA {} OWNER TO legacy_migrator",
                "ALTER TABLE {}.vinted_job_stats OWNER TO legacy_migrator",
            ]:
                legacy.execute(sql.SQL(change).format(sql.Identifier(schema)))

    refused = ["user_2", "user_3"]
    legacy.execute("GRANT USAGE ON SCHEMA user_2 TO legacy_migrator")
    hand_over([schema for schema in tenants(legacy) if schema not in refused])
    with connect(legacy, user="legacy_migrator") as migrator:
        failed = yoyo(migrator, "apply")
        assert failed.returncode != 0
        assert "18 done, 0 done before, 2 FAILED" in failed.stderr
        assert "user_2: must be owner of table vinted_job_stats" in failed.stderr
        assert "user_3: " in failed.stderr
        assert {schema for schema, shape in whole(legacy).items() if shape == "legacy"} == set(refused)
        hand_over(refused)
        assert "| 2    | 18 " in ok(yoyo(migrator, "apply"))
    assert set(whole(legacy).values()) == {"migrated"}
    assert marks(legacy) == ALL


def test_a_full_disk(server_to_crash: Server) -> None:
    """Tenants for which there is no room stay as they were; once there is, the same command finishes."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = Path(server_to_crash.host, "small_disk")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], stderr=subprocess.PIPE, text=True
    )
    if mounted.returncode:
        pytest.skip(f"root may not mount a small disk here: {mounted.stderr}")
    try:
        owner = folder.parent.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        with psycopg.connect(server_to_crash.url(), autocommit=True) as conn:
            conn.execute(f"CREATE TABLESPACE small LOCATION '{folder}'".encode())
        with clone_of(server_to_crash, "toolkit", tablespace="small") as conn:
            counted = jobs(conn)
            with (folder / "rubbish").open("wb") as rubbish:
                os.posix_fallocate(rubbish.fileno(), 0, shutil.disk_usage(folder).free - 600_000)
            failed = yoyo(conn, "apply")
            assert failed.returncode != 0
            assert "No space left on device" in failed.stderr
            assert set(whole(conn).values()) == {"legacy", "migrated"}
            assert jobs(conn) == counted
            (folder / "rubbish").unlink()
            ok(yoyo(conn, "apply"))
            assert set(whole(conn).values()) == {"migrated"}
            assert jobs(conn) == counted
    finally:
        with psycopg.connect(server_to_crash.url(), autocommit=True) as conn:
            conn.execute("DROP DATABASE IF EXISTS clone")
            conn.execute("DROP TABLESPACE IF EXISTS small")
        subprocess.run(["umount", folder], check=True)
