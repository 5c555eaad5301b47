"""Ways to die for a run of yoyo, and points at which it can be stopped for that.

A point is reached by means of a lock that another session holds.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg

from tests.deploy import ROOT, connect, libpq_env
from tests.tenants import Connection, column


@dataclass
class Run:
    """A run of yoyo. When the block ends, the lock goes, and the run ends in its way."""

    process: subprocess.Popen[str]
    pid: int  # of its backend that is at work
    stderr: str = ""  # known after the block


@contextmanager
def stopped(conn: Connection, point: str, command: str) -> Iterator[Run]:
    """Start yoyo, and wait until it has got to this point."""
    table = "marketplace_job_stats" if command == "rollback" else "vinted_job_stats"
    template = f"template_tenant.{table}"
    sequence = f"user_named_key.{table}_id_seq"
    sleeps = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep' AND pid <> %s"
    )
    waits = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = to_regclass(%s)"
    lock, is_stopped, whom = {
        "before the first": (f"LOCK TABLE {template} IN ACCESS SHARE MODE", waits, template),
        # The run puts the tenant off, does the others, and then sleeps a while.
        "between tenants": (f"LOCK TABLE user_2.{table} IN ACCESS SHARE MODE", sleeps, conn.info.backend_pid),
        "inside a tenant": (f"SELECT nextval('{sequence}')", waits, sequence),  # renamed at the end of its script
        "before the mark": ("LOCK TABLE _yoyo_migration IN SHARE MODE", waits, "_yoyo_migration"),
    }[point]
    with (
        connect(conn, autocommit=False) as blocker,
        subprocess.Popen(
            [sys.executable, "-m", "yoyo", command],
            cwd=ROOT,
            env=libpq_env(conn),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            blocker.execute(lock.encode())
            while not (pids := column(conn, is_stopped, whom)):
                assert process.poll() is None, process.communicate()
                conn.execute("SELECT pg_sleep(0.001)")
            run = Run(process, pids[0])
            yield run
            with suppress(psycopg.OperationalError):  # it may have died with the server
                blocker.rollback()
            run.stderr = process.communicate()[1]
        finally:
            process.kill()


Fault = Callable[[Run, Connection], None]


# What dies. Each of these returns when yoyo has ended, while the lock is still held.


def interrupt_yoyo(run: Run, _: Connection) -> None:
    """Ctrl-C."""
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait() != 0


def terminate_yoyo(run: Run, _: Connection) -> None:
    """A pipeline cancels the job: the server does not notice, and goes on."""
    run.process.terminate()
    assert run.process.wait() != 0


def kill_yoyo(run: Run, _: Connection) -> None:
    """A container is removed: the server does not notice, and goes on."""
    run.process.kill()
    assert run.process.wait() != 0


def terminate_backend(run: Run, conn: Connection) -> None:
    """A DBA ends the session."""
    conn.execute("SELECT pg_terminate_backend(%s)", [run.pid])
    assert run.process.wait() != 0


def crash_server(run: Run, conn: Connection) -> None:
    """The kernel runs out of memory: the server drops every session, and recovers from its log."""
    os.kill(run.pid, signal.SIGKILL)
    with suppress(psycopg.OperationalError):
        while True:
            conn.execute("SELECT pg_sleep(0.01)")
    assert run.process.wait() != 0
