"""Whatever dies, the same command finishes the job.

On a server of its own, with the programs of JOB_STATS_TEST_BIN or else the wheel's, since some tests crash it.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dev.server import Server, throwaway_server
from tests.deploy import ROOT, connect, libpq_env, psql, yoyo
from tests.tenants import Connection, column, ok, states, tenants


# A database per test: legacy tenants and the toolkit, or tenants that are upgraded.


@pytest.fixture(scope="module")
def own_server(_no_libpq_variables: None) -> Iterator[Server]:
    """A server that may be crashed, with databases `toolkit` and `upgraded` to clone."""
    bin_dir = os.environ.get("JOB_STATS_TEST_BIN")
    with throwaway_server(Path(bin_dir) if bin_dir else None) as server:
        with psycopg.connect(server.url(), autocommit=True) as conn:
            conn.execute("CREATE DATABASE toolkit")
            with psycopg.connect(server.url("toolkit")) as toolkit:
                ok(psql(toolkit, "-f", "dev/legacy.sql"))
                ok(yoyo(toolkit, "apply", "--revision", "0001"))
            conn.execute("CREATE DATABASE upgraded TEMPLATE toolkit")
            with psycopg.connect(server.url("upgraded")) as upgraded:
                ok(yoyo(upgraded, "apply"))
        yield server


@contextmanager
def clone_of(server: Server, template: str) -> Iterator[Connection]:
    with psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute("DROP DATABASE IF EXISTS clone WITH (FORCE)")
        conn.execute(sql.SQL("CREATE DATABASE clone TEMPLATE {}").format(sql.Identifier(template)))
    with psycopg.connect(server.url("clone"), autocommit=True) as conn:
        yield conn


@pytest.fixture
def toolkit(own_server: Server) -> Iterator[Connection]:
    """A connection to the database of `dev/legacy.sql` after `yoyo apply --revision 0001`."""
    with clone_of(own_server, "toolkit") as conn:
        yield conn


@pytest.fixture
def upgraded(own_server: Server) -> Iterator[Connection]:
    """A connection to the database of `dev/legacy.sql` after `yoyo apply`."""
    with clone_of(own_server, "upgraded") as conn:
        yield conn


# Where a run is when something dies. A lock stops it there, at a query that returns the pid of its backend.

SLEEPS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep' AND pid <> %s"
WAITS = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = to_regclass(%s)"


@dataclass
class Run:
    """A run of yoyo that has been stopped at a point. When the block ends, the lock goes, and the run ends in its way."""

    process: subprocess.Popen[str]
    pid: int  # of its backend that is at work
    stderr: str = ""  # known after the block


@contextmanager
def stopped(conn: Connection, point: str, *command: str) -> Iterator[Run]:
    """Start yoyo, and wait until it has got to this point."""
    table = "marketplace_job_stats" if command[0] == "rollback" else "vinted_job_stats"
    sequence = f"user_named_key.{table}_id_seq"
    lock, stopped_at, whom = {
        "before the first": ("LOCK TABLE job_stats.runs IN SHARE MODE", WAITS, "job_stats.runs"),
        # The run puts the tenant off, does the others, and then sleeps a while.
        "between tenants": (f"LOCK TABLE user_2.{table} IN ACCESS SHARE MODE", SLEEPS, conn.info.backend_pid),
        "inside a tenant": (f"SELECT nextval('{sequence}')", WAITS, sequence),  # which is renamed late in its script
        "before yoyo's mark": ("LOCK TABLE _yoyo_migration IN SHARE MODE", WAITS, "_yoyo_migration"),
    }[point]
    yoyo = [sys.executable, "-m", "yoyo", *command]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with (
        connect(conn, autocommit=False) as blocker,
        subprocess.Popen(yoyo, cwd=ROOT, env=libpq_env(conn), text=True, **pipes) as process,
    ):
        try:
            blocker.execute(lock.encode())
            while not (pids := column(conn, stopped_at, whom)):
                assert process.poll() is None, process.communicate()
                conn.execute("SELECT pg_sleep(0.001)")
            run = Run(process, pids[0])
            yield run
            with suppress(psycopg.OperationalError):  # it may have died with the server
                blocker.rollback()
            run.stderr = process.communicate()[1]
        finally:
            process.kill()


# What dies. Each returns when yoyo has ended, with the lock still held.


def interrupt_yoyo(run: Run, _: Connection) -> None:
    """Ctrl-C."""
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait() != 0


def terminate_yoyo(run: Run, _: Connection) -> None:
    """What a pipeline does to a job that is cancelled."""
    run.process.terminate()
    assert run.process.wait() != 0


def kill_yoyo(run: Run, _: Connection) -> None:
    """What no program can see coming."""
    run.process.kill()
    assert run.process.wait() != 0


def terminate_backend(run: Run, conn: Connection) -> None:
    """What a DBA does."""
    conn.execute("SELECT pg_terminate_backend(%s)", [run.pid])
    assert run.process.wait() != 0


def crash_server(run: Run, conn: Connection) -> None:
    """What the kernel does when memory is short: the server drops all sessions, and recovers from its log."""
    os.kill(run.pid, signal.SIGKILL)
    with suppress(psycopg.OperationalError):
        while True:
            conn.execute("SELECT pg_sleep(0.01)")
    assert run.process.wait() != 0


Fault = Callable[[Run, Connection], None]


def shapes(conn: Connection) -> dict[str, str]:
    """What the catalogs, not job_stats, say of each tenant: legacy, migrated, or else what it consists of."""
    facts = """
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
    migrated = ["column marketplace", "key action_type_id date marketplace", "r marketplace_job_stats"]
    known = {
        ("key action_type_id date", "r vinted_job_stats"): "legacy",
        (*migrated, "v vinted_job_stats"): "migrated",
    }
    return {
        schema: known.get(tuple(found), str(found))
        for schema, found in conn.execute(facts, [tenants(conn)])
    }
