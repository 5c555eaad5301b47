"""Ways to die for a run of yoyo, and moments at which it can be stopped for that.

A moment is reached by means of a lock that another session holds.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.deploy import ROOT, connect, libpq_env
from tests.tenants import Connection, column

LOCK_TENANT = "LOCK TABLE {} IN ACCESS SHARE MODE"

# By an event trigger, since whatever else a tenant's script waits for, it waits for a moment only.
STOP_INSIDE = """
    CREATE FUNCTION public.stop_inside() RETURNS event_trigger LANGUAGE plpgsql
    SET search_path = pg_catalog SET lock_timeout = 0 AS $$
    BEGIN
        IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity ~ '^user_2[.].*_job_stats$') THEN
            PERFORM pg_advisory_xact_lock_shared(1);
        END IF;
    END
    $$;
    CREATE EVENT TRIGGER stop_inside ON ddl_command_end WHEN TAG IN ('ALTER TABLE')
    EXECUTE FUNCTION public.stop_inside();
"""

# By a trigger on what the end of a run updates, and nothing else does.
STOP_AT_END = """
    CREATE FUNCTION public.stop_at_end() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock_shared(1);
        RETURN NEW;
    END
    $$;
    CREATE TRIGGER stop_at_end BEFORE UPDATE OF finished_at ON tenancy.runs
    FOR EACH ROW EXECUTE FUNCTION public.stop_at_end();
"""

# For each moment: the lock by which it is reached, and how many of 20 tenants are done by then.
MOMENTS = {
    "before the first tenant": (LOCK_TENANT.format("template_tenant.{}"), 0),
    # The run puts the tenant off, does the others, and then sleeps a while.
    "between two tenants": (LOCK_TENANT.format("user_2.{}"), 19),
    "inside a tenant": ("SELECT pg_advisory_xact_lock(1)", 2),
    "after the last tenant": ("SELECT pg_advisory_xact_lock(1)", 20),
    "before the mark": ("LOCK TABLE _yoyo_migration IN SHARE MODE", 20),
}


@dataclass
class Run:
    """A run of yoyo. When the block ends, the lock goes, and the run ends in its way."""

    process: subprocess.Popen[str]
    pid: int  # of its backend that is at work
    first_pid: int  # of its first connection: the one that waits while a migration runs, and marks it then


@contextmanager
def stopped(conn: Connection, moment: str, *command: str) -> Iterator[Run]:
    """Start yoyo, and wait until it has got to this moment."""
    (table,) = column(
        conn,
        "SELECT relname FROM pg_class WHERE relname ~ 'job_stats$' AND relkind = 'r'"
        " AND relnamespace = 'template_tenant'::regnamespace",
    )
    lock, done = MOMENTS[moment]
    stops = "SELECT pid FROM pg_stat_activity WHERE application_name = 'yoyo' AND %s = ANY (pg_blocking_pids(pid))"
    if moment == "between two tenants":
        stops = (
            "SELECT a.pid FROM pg_stat_activity AS a, (SELECT done FROM tenancy.progress LIMIT 1) AS p"
            f" WHERE a.application_name = 'yoyo' AND a.wait_event = 'PgSleep' AND p.done = {done} AND a.pid <> %s"
        )
    elif moment == "inside a tenant":
        conn.execute(STOP_INSIDE.encode())
    elif moment == "after the last tenant":
        conn.execute(STOP_AT_END.encode())
    with ExitStack() as stack:
        blocker = stack.enter_context(connect(conn, autocommit=False))
        blocker.execute(lock.format(table).encode())
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "yoyo", *command],
                cwd=ROOT,
                env={**libpq_env(conn), "PGAPPNAME": "yoyo"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(process.kill)

        while not (pids := column(conn, stops, blocker.info.backend_pid)):
            assert process.poll() is None, process.communicate()
            conn.execute("SELECT pg_sleep(0.001)")
        assert column(conn, "SELECT done FROM tenancy.progress LIMIT 1") == [done]
        first = "SELECT pid FROM pg_stat_activity WHERE application_name = 'yoyo' ORDER BY backend_start LIMIT 1"
        yield Run(process, int(pids[0]), column(conn, first)[0])
        with suppress(psycopg.OperationalError):  # it may have died with the server
            blocker.rollback()
        process.communicate()


Fault = Callable[[Run, Connection], None]


# What dies. All but the last of these return when yoyo has ended, while the lock is still held.


def interrupt_yoyo(run: Run, _: Connection) -> None:
    """Ctrl-C."""
    run.process.send_signal(signal.SIGINT)
    run.process.wait()


def terminate_yoyo(run: Run, _: Connection) -> None:
    """A pipeline cancels the job: the server does not notice, and goes on."""
    run.process.terminate()
    run.process.wait()


def kill_yoyo(run: Run, _: Connection) -> None:
    """A container is removed: the server does not notice, and goes on."""
    run.process.kill()
    run.process.wait()


def terminate_backend(run: Run, conn: Connection) -> None:
    """A DBA ends the session."""
    conn.execute("SELECT pg_terminate_backend(%s)", [run.pid])
    run.process.wait()


def cancel_backend(run: Run, conn: Connection) -> None:
    """A DBA, or a watchdog, ends the statement."""
    conn.execute("SELECT pg_cancel_backend(%s)", [run.pid])
    run.process.wait()


def crash_server(run: Run, conn: Connection) -> None:
    """The server stops at once, as if its machine did, and starts: it recovers from its log."""
    pg_ctl(Path(conn.info.host), "restart")
    run.process.wait()


def terminate_first_connection(run: Run, conn: Connection) -> None:
    """A firewall drops yoyo's idle connection: the run goes on, and yoyo learns of it in the end."""
    conn.execute("SELECT pg_terminate_backend(%s)", [run.first_pid])


def pg_ctl(folder: Path, action: str, *, limit: str = "true") -> None:
    """Stop the throwaway server in `folder` at once, and perhaps start it, with the options that it was started with.

    Whoever has restarted one must stop it in the end: its keeper knows of the first only. `limit` is an `ulimit` to
    start it under.
    """
    data = folder / "data"
    owner = data.stat()
    as_owner = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    program = Path((data / "postmaster.opts").read_text().split()[0]).with_name("pg_ctl")
    log = ["-l", data / "log"] if action == "restart" else []
    subprocess.run(
        ["sh", "-c", f'{limit} && exec "$@"', "sh", program, action, "-w", "-m", "immediate", "-D", data, *log],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
        **as_owner,  # type: ignore[call-overload]
    )
