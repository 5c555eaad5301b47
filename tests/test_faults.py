"""Whatever dies, every tenant is whole, and the same command run again finishes the job.

On a server of its own, with the programs of JOB_STATS_TEST_BIN or else the wheel's, since some tests crash it. In `make
test-all` every fault strikes every command at every moment; else a few do.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dev.server import Server, throwaway_server
from tests.deploy import ROOT, connect, psql, yoyo
from tests.faults import (
    MOMENTS,
    Fault,
    cancel_backend,
    crash_server,
    interrupt_yoyo,
    kill_yoyo,
    pg_ctl,
    stopped,
    terminate_backend,
    terminate_first_connection,
    terminate_yoyo,
)
from tests.tenants import Connection, clone, column, definitions, ok, states, tenants, wait_until

TOOLKIT = [
    path.stem for path in sorted((ROOT / "sql/migrations").glob("00[01]*.sql")) if not path.stem.endswith(".rollback")
]
ALL = [*TOOLKIT, "0020.marketplace-job-stats", "0021.exact-averages"]
BOTH = ["sql/migrations", "sql/contract"]

FAULTS = [
    interrupt_yoyo,
    terminate_yoyo,
    kill_yoyo,
    terminate_backend,
    cancel_backend,
    terminate_first_connection,
    crash_server,
]

# For each command: in which of the databases it is given, what it makes of a tenant at first, and in the end.
COMMANDS = {
    ("apply",): ("toolkit", "upgraded", "migrated"),
    ("rollback", "--revision", "0020"): ("upgraded", "toolkit", "toolkit"),
    ("apply", *BOTH): ("migrated", "contracted", "contracted"),
    ("rollback", "--revision", "0900", *BOTH): ("contracted", "migrated", "migrated"),
}
APPLY, ROLLBACK, CONTRACT, CONTRACT_ROLLBACK = COMMANDS

SOME = [
    (APPLY, "before the first tenant", terminate_yoyo),
    (APPLY, "inside a tenant", crash_server),
    (APPLY, "before the mark", kill_yoyo),
    (ROLLBACK, "between two tenants", kill_yoyo),
    (ROLLBACK, "inside a tenant", terminate_backend),
    (ROLLBACK, "after the last tenant", cancel_backend),
    (CONTRACT, "before the first tenant", terminate_first_connection),
    (CONTRACT, "between two tenants", interrupt_yoyo),
    (CONTRACT_ROLLBACK, "before the mark", crash_server),
]
CELLS = [
    pytest.param(
        command,
        moment,
        fault,
        id=f"{' '.join(command)}-{moment}-{fault.__name__}",
        marks=[pytest.mark.slow] * ((command, moment, fault) not in SOME),
    )
    for command, moment, fault in product(COMMANDS, MOMENTS, FAULTS)
]


# Databases to clone, and what undisturbed runs have made of their tenants.


def contents(conn: Connection) -> dict[str, tuple[str, list[str]]]:
    """Of each tenant: its definitions, by pg_dump, and all rows, archived ones included."""
    described = definitions(conn, tenants(conn))
    tables = """
        SELECT relname FROM pg_class
        WHERE relnamespace = %s::regnamespace AND relkind = 'r' AND relname ~ 'job_stats'
        ORDER BY relname
    """
    found = {}
    for schema in described:
        rows: list[str] = []
        for table in column(conn, tables, sql.Identifier(schema).as_string()):
            query = sql.SQL("SELECT row_to_json(t)::text FROM {} AS t ORDER BY 1").format(sql.Identifier(schema, table))
            rows += [row for (row,) in conn.execute(query)]
        found[schema] = described[schema], rows
    return found


def marks(conn: Connection) -> list[str]:
    """What yoyo believes to be applied."""
    return column(conn, "SELECT migration_id FROM _yoyo_migration ORDER BY migration_id")


@dataclass
class Lab:
    """A server that may be crashed, and of each of its databases: contents and marks."""

    server: Server
    contents: dict[str, dict[str, tuple[str, list[str]]]]
    marks: dict[str, list[str]]


@pytest.fixture(scope="module")
def lab(_no_libpq_variables: None) -> Iterator[Lab]:
    """The databases that COMMANDS names: each is made of the one before it."""
    bin_dir = os.environ.get("JOB_STATS_TEST_BIN")
    with throwaway_server(Path(bin_dir) if bin_dir else None) as server:
        lab = Lab(server, {}, {})
        template = "template1"
        for name, *command in [
            ("toolkit", "rollback", "--revision", "0020"),
            ("upgraded", "apply", "--revision", "0020"),
            ("migrated", *APPLY),
            ("contracted", *CONTRACT),
        ]:
            with psycopg.connect(server.url(), autocommit=True) as conn:
                conn.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
            with psycopg.connect(server.url(name), autocommit=True) as conn:
                if name == "toolkit":
                    ok(psql(conn, "-f", "dev/legacy.sql"))
                    ok(yoyo(conn, "apply"))
                    count_on_ebay(conn)
                ok(yoyo(conn, *command))
                lab.contents[name], lab.marks[name] = contents(conn), marks(conn)
            template = name
        assert (lab.marks["toolkit"], lab.marks["migrated"]) == (TOOLKIT, ALL)
        try:
            yield lab
        finally:
            pg_ctl(Path(server.host), "stop")


def count_on_ebay(conn: Connection) -> None:
    """Rows that a rollback has to fold, and others of eBay's only."""
    for schema in ["user_1", "user_2", "user_foreign_keys"]:
        for query in [
            "INSERT INTO {} (action_type_id, date, marketplace, total_jobs, success_count)"
            " SELECT action_type_id, date, 'ebay', total_jobs, total_jobs FROM {} WHERE id % 3 = 0",
            "UPDATE {} SET marketplace = 'etsy' WHERE id % 3 = 1",
        ]:
            conn.execute(sql.SQL(query.replace("{}", "{0}")).format(sql.Identifier(schema, "marketplace_job_stats")))


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
def toolkit(lab: Lab) -> Iterator[Connection]:
    """A connection to legacy tenants, where an upgrade has been rolled back."""
    with clone_of(lab.server, "toolkit") as conn:
        yield conn


# What must hold.


def until_nobody_is_at_work(conn: Connection) -> None:
    """A run goes on without its client."""
    wait_until(conn, "SELECT count(*) = 0 FROM tenancy.progress WHERE state = 'running'")


def break_lock_if_needed(conn: Connection) -> bool:
    """Run `yoyo break-lock` if yoyo would ask for it, after ten seconds."""
    needed = column(conn, "SELECT count(*) FROM yoyo_lock") == [1]
    if needed:
        ok(yoyo(conn, "break-lock"))
    return needed


@pytest.mark.parametrize(("command", "moment", "fault"), CELLS)
def test_a_run_that_dies(lab: Lab, command: tuple[str, ...], moment: str, fault: Fault) -> None:
    """Each tenant is as before or as after; the same command, perhaps after break-lock, makes all as if undisturbed."""
    before, first, last = COMMANDS[command]
    with clone_of(lab.server, before) as conn, stopped(conn, moment, *command) as run:
        fault(run, conn)
    assert run.process.returncode != 0
    with psycopg.connect(lab.server.url("clone"), autocommit=True) as conn:
        until_nobody_is_at_work(conn)
        for schema, content in contents(conn).items():
            assert content in (lab.contents[before][schema], lab.contents[first][schema]), schema
        assert "drifted" not in states(conn).values()
        assert marks(conn) == lab.marks[before]

        break_lock_if_needed(conn)
        ok(yoyo(conn, *command))
        assert contents(conn) == lab.contents[last]
        assert "drifted" not in states(conn).values()
        assert marks(conn) == lab.marks[last]


def test_the_server_goes_on_when_yoyo_is_killed(lab: Lab, toolkit: Connection) -> None:
    """Until the run ends, `yoyo apply` is refused, even after break-lock, with its pid; then it has only to mark."""
    with stopped(toolkit, "inside a tenant", "apply") as run:
        kill_yoyo(run, toolkit)
        assert break_lock_if_needed(toolkit)
        refused = yoyo(toolkit, "apply")
        assert refused.returncode != 0
        assert f"migrated already, by pid {run.pid}" in refused.stderr
        assert marks(toolkit) == TOOLKIT
    until_nobody_is_at_work(toolkit)
    assert contents(toolkit) == lab.contents["upgraded"]
    done = "SELECT count(*) FROM tenancy.journal WHERE migration = '0020.marketplace-job-stats'"
    before = column(toolkit, done)
    ok(yoyo(toolkit, "apply"))
    assert column(toolkit, done) == before
    assert marks(toolkit) == ALL


def test_a_second_yoyo(lab: Lab, toolkit: Connection) -> None:
    """It waits, changes nothing, and names the process that holds yoyo's lock and the command to break it."""
    with stopped(toolkit, "inside a tenant", "apply") as run:
        before = states(toolkit)
        second = yoyo(toolkit, "apply")
        assert second.returncode != 0
        assert f"Process {run.process.pid} has locked this database (run yoyo break-lock" in second.stderr
        assert states(toolkit) == before
    assert run.process.returncode == 0
    assert contents(toolkit) == lab.contents["migrated"]


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
        assert {schema for schema, state in states(legacy).items() if state == "legacy"} == set(refused)
        hand_over(refused)
        assert "| 2    | 18 " in ok(yoyo(migrator, "apply"))
    assert set(states(legacy).values()) == {"migrated", "missing"}
    assert marks(legacy) == ALL


def only_is_left(conn: Connection, tenant: str, failed: str, why: str) -> None:
    """It has failed by name, and all others are done, those after it included."""
    assert re.search(rf"^(DETAIL: +)?{tenant}: .*{why}", failed, re.MULTILINE), failed
    assert {schema for schema, state in states(conn).items() if state == "legacy"} == {tenant}


def finishes(lab: Lab, conn: Connection) -> None:
    """With `yoyo apply` again."""
    ok(yoyo(conn, "apply"))
    assert set(states(conn).values()) == {"migrated", "missing"}
    assert lab.contents["migrated"].items() <= contents(conn).items()
    assert marks(conn) == ALL


def test_a_full_lock_table(lab: Lab, toolkit: Connection) -> None:
    """The tenant that needs more locks than are free is named, the others are done; with room, it finishes."""
    clone(toolkit, "user_many", "user_2.vinted_job_stats")
    toolkit.execute(
        "DO $$ BEGIN FOR i IN 1..400 LOOP"
        " EXECUTE format('CREATE INDEX vinted_job_stats_%s ON user_many.vinted_job_stats (id)', i);"
        " END LOOP; END $$"
    )
    with connect(toolkit) as hoarder:
        with pytest.raises(psycopg.errors.OutOfMemory):
            hoarder.execute("SELECT count(pg_advisory_lock(i)) FROM generate_series(1, 10000000) AS i")
        hoarder.execute("SELECT count(pg_advisory_unlock(i)) FROM generate_series(1, 300) AS i")
        failed = yoyo(toolkit, "apply")
        assert failed.returncode != 0
        only_is_left(toolkit, "user_many", failed.stderr, "out of shared memory")
    finishes(lab, toolkit)


def test_a_disk_that_takes_no_more_of_a_tenant(lab: Lab, toolkit: Connection) -> None:
    """Where a tenant's index cannot grow, it is named, and the others are done; when it can, it finishes.

    By a limit to the size of files, which an ordinary user can set, too.
    """
    clone(toolkit, "user_big", "user_2.vinted_job_stats")
    toolkit.execute(
        "INSERT INTO user_big.vinted_job_stats (action_type_id, date, total_jobs)"
        " SELECT i / 1000, '2000-01-01'::date + i % 1000, 1 FROM generate_series(1, 600000) AS i"
    )
    toolkit.execute("VACUUM user_big.vinted_job_stats")
    toolkit.execute("CHECKPOINT")  # what is larger already is on disk, and need not be written again
    pg_ctl(Path(lab.server.host), "restart", limit="ulimit -S -f 32768")  # 16 MiB, which the log's files have
    with psycopg.connect(lab.server.url("clone"), autocommit=True) as conn:
        failed = yoyo(conn, "apply")
        assert failed.returncode != 0
        only_is_left(conn, "user_big", failed.stderr, "File too large")
    pg_ctl(Path(lab.server.host), "restart")
    with psycopg.connect(lab.server.url("clone"), autocommit=True) as conn:
        finishes(lab, conn)


def test_a_full_disk(lab: Lab) -> None:
    """Tenants for which there is no room are named, and stay as they were; with room, the same command finishes."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = Path(lab.server.host, "small_disk")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], stderr=subprocess.PIPE, text=True
    )
    if mounted.returncode:
        pytest.skip(f"root may not mount a small disk here: {mounted.stderr}")
    try:
        owner = folder.parent.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        with psycopg.connect(lab.server.url(), autocommit=True) as conn:
            conn.execute(f"CREATE TABLESPACE small LOCATION '{folder}'".encode())
        with clone_of(lab.server, "toolkit", tablespace="small") as conn:
            with (folder / "rubbish").open("wb") as rubbish:
                os.posix_fallocate(rubbish.fileno(), 0, shutil.disk_usage(folder).free - 600_000)
            failed = yoyo(conn, "apply")
            assert failed.returncode != 0
            left = {schema for schema, state in states(conn).items() if state == "legacy"}
            named = re.findall(r"^(?:DETAIL: +)?(user_[^:]*): .*No space left on device", failed.stderr, re.MULTILINE)
            assert left == set(named)
            assert 0 < len(left) < 20
            for schema, content in contents(conn).items():
                assert content in (lab.contents["toolkit"][schema], lab.contents["upgraded"][schema]), schema
            (folder / "rubbish").unlink()
            ok(yoyo(conn, "apply"))
            assert contents(conn) == lab.contents["migrated"]
        with psycopg.connect(lab.server.url(), autocommit=True) as conn:
            conn.execute("DROP DATABASE clone")
            conn.execute("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
