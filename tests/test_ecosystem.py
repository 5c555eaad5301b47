"""`stats_lib` with what psycopg is used with: pipelines, pools, SQLAlchemy, PgBouncer. docs/ecosystem.md says how."""

import asyncio
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy.orm import Session

from stats_lib import aio, get_stats, get_summary, update_job_stats
from tests.deploy import connect
from tests.tenants import Connection, clones

# A day that is over: no test can see the date change under it.
DAY = datetime.now(UTC).date() - timedelta(days=1)

count = partial(update_job_stats, schema="user_1", action_type_id=1, marketplace="ebay", success=True, date=DAY)
acount = partial(aio.update_job_stats, schema="user_1", action_type_id=1, marketplace="ebay", success=True, date=DAY)


@pytest.fixture
def conn(migrated: Connection) -> Connection:
    """An autocommit connection to a database whose user_1 has counted nothing yet."""
    migrated.execute("DELETE FROM user_1.marketplace_job_stats")
    return migrated


def options(conn: Connection) -> dict[str, Any]:
    """What to connect with to the database of `conn`."""
    return {**conn.info.get_parameters(), "password": conn.info.password or None}


def jobs(conn: Connection) -> int:
    """How many jobs user_1 has counted."""
    return sum(row.total_jobs for row in get_summary(conn, schema="user_1"))


# Pipelines


def test_pipeline(conn: Connection) -> None:
    """Counting and reading work in a pipeline, in a transaction too; the sums are those of the jobs before."""
    with conn.pipeline(), conn.transaction():
        for _ in range(20):
            count(conn)
        assert [20] == [row.total_jobs for row in get_stats(conn, schema="user_1")]
        assert 20 == jobs(conn)


def test_async_pipeline(conn: Connection) -> None:
    """The same in an asynchronous pipeline."""

    async def main() -> list[int]:
        async with await psycopg.AsyncConnection.connect(**options(conn)) as own, own.pipeline():
            for _ in range(20):
                await acount(own)
            return [row.total_jobs for row in await aio.get_stats(own, schema="user_1")]

    assert [20] == asyncio.run(main())
    assert 20 == jobs(conn)


# Pools


def test_pool(conn: Connection) -> None:
    """Threads share a pool; a refused job leaves its connection as it was, and no connection remembers a tenant."""
    with ConnectionPool(kwargs=options(conn), min_size=2, max_size=2) as pool:

        def work(job: int) -> None:
            with pool.connection() as own:
                count(own)
                if job % 10 == 0:
                    with pytest.raises(ValueError, match="marketplace"):
                        count(own, marketplace="amazon")

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(work, range(100)))

        def fail() -> None:
            with pool.connection() as own:
                count(own)
                count(own, schema="user_404")

        with pytest.raises(psycopg.errors.UndefinedTable):
            fail()
        for _ in range(2):
            with pool.connection() as own:
                assert ('"$user", public',) == own.execute("SHOW search_path").fetchone()
    assert 100 == jobs(conn)


def test_async_pool(conn: Connection) -> None:
    """Tasks share an asynchronous pool."""

    async def main() -> None:
        async with AsyncConnectionPool(kwargs=options(conn), min_size=2, max_size=2, open=False) as pool:

            async def work() -> None:
                async with pool.connection() as own:
                    await acount(own)

            await asyncio.gather(*(work() for _ in range(100)))

    asyncio.run(main())
    assert 100 == jobs(conn)


# SQLAlchemy


@pytest.fixture
def engine(conn: Connection) -> Iterator[sqlalchemy.Engine]:
    """An engine for the database of `conn`."""
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(**options(conn)))
    yield engine
    engine.dispose()


def connection_of(session: Session) -> Connection:
    """The session's psycopg connection, on which the session has now begun its transaction or savepoint."""
    own = session.connection().connection.driver_connection
    assert isinstance(own, psycopg.Connection)
    return own


@pytest.mark.parametrize(("end", "expected"), [("commit", 1), ("rollback", 0)])
def test_sqlalchemy_session(conn: Connection, engine: sqlalchemy.Engine, end: str, expected: int) -> None:
    """A job is counted in the session's transaction: it sees what the session wrote, and ends as the session does."""
    conn.execute("CREATE TABLE relisted (id integer)")
    with Session(engine) as session:
        session.execute(sqlalchemy.text("INSERT INTO relisted VALUES (1)"))
        own = connection_of(session)
        count(own)
        assert [1] == [row.total_jobs for row in get_stats(own, schema="user_1")]
        assert 1 == session.scalar(sqlalchemy.text("SELECT sum(total_jobs) FROM user_1.marketplace_job_stats"))
        assert 0 == jobs(conn)
        getattr(session, end)()

    assert expected == jobs(conn)
    assert (expected,) == conn.execute("SELECT count(*) FROM relisted").fetchone()


def test_sqlalchemy_savepoint(conn: Connection, engine: sqlalchemy.Engine) -> None:
    """A rollback to a savepoint of the session undoes what was counted since, and no more."""
    with Session(engine) as session, session.begin():
        own = connection_of(session)
        count(own)
        with suppress(psycopg.errors.UndefinedTable), session.begin_nested():
            own = connection_of(session)
            count(own)
            count(own, schema="user_404")

    assert 1 == jobs(conn)


# PgBouncer

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
VERSION: tuple[int, ...] = (0, 0)
if PGBOUNCER:
    _version = subprocess.run([PGBOUNCER, "--version"], check=True, capture_output=True, text=True).stdout
    VERSION = tuple(int(number) for number in re.findall(r"\d+", _version)[:2])
needs_pgbouncer = pytest.mark.skipif(not PGBOUNCER, reason="no pgbouncer in PATH or /usr/sbin")


@pytest.fixture
def bouncer(conn: Connection) -> Iterator[dict[str, Any]]:
    """What to connect with to a PgBouncer, in transaction mode with two server connections, before that database."""
    assert PGBOUNCER
    info = conn.info
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # a short path, which another user can reach
        folder = Path(name)
        as_user: dict[str, Any] = {}
        if os.geteuid() == 0:  # as which it refuses to run
            # A throwaway server's socket is for the server's user.
            uid = os.stat(info.host).st_uid if os.path.isabs(info.host) else pwd.getpwnam("nobody").pw_uid
            os.chown(folder, uid, -1)
            as_user = {"user": uid, "extra_groups": []}
        settings = [
            "[databases]",
            f"* = host={info.host} port={info.port} user={info.user} password={info.password or 'none'}",
            "[pgbouncer]",
            f"unix_socket_dir = {folder}",
            "auth_type = any",
            "pool_mode = transaction",
            "default_pool_size = 2",
        ]
        if VERSION >= (1, 22):
            settings.append("max_prepared_statements = 100")
        config = folder / "pgbouncer.ini"
        config.write_text("\n".join(settings))
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(
                [PGBOUNCER, "--quiet", config], stdin=subprocess.DEVNULL, stderr=log, **as_user
            ) as process,
        ):
            try:
                _wait_until_it_listens(process, folder)
                yield {"host": name, "port": 6432, "user": info.user, "dbname": info.dbname}
            finally:
                process.kill()


def _wait_until_it_listens(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = monotonic() + 30
    while monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(folder / ".s.PGSQL.6432"))
            return
    raise RuntimeError((folder / "log").read_text())


@needs_pgbouncer
@pytest.mark.parametrize(
    "prepare_threshold",
    [
        pytest.param(None, id="never-prepared"),
        pytest.param(
            0,
            id="prepared",
            marks=pytest.mark.skipif(VERSION < (1, 22), reason="PgBouncer before 1.22 loses prepared statements"),
        ),
    ],
)
def test_pgbouncer(conn: Connection, bouncer: dict[str, Any], prepare_threshold: int | None) -> None:
    """Clients that are handed from one server connection to another, by each transaction, are counted exactly."""

    def work(client: int) -> set[int]:
        with psycopg.connect(**bouncer, prepare_threshold=prepare_threshold, autocommit=True) as own:
            backends = set()
            for job in range(40):
                with own.transaction():
                    count(own, action_type_id=job % 7, success=client > 0, duration=timedelta(seconds=job))
                    backends |= {row[0] for row in own.execute("SELECT pg_backend_pid()")}
                get_summary(own, schema="user_1")
                assert get_stats(own, schema="user_1", days=2)
            return backends

    with ThreadPoolExecutor(6) as threads:
        backends = list(threads.map(work, range(6)))

    assert any(len(of_client) > 1 for of_client in backends)
    assert 6 * 40 == jobs(conn)
    assert 40 == sum(row.failure_count for row in get_stats(conn, schema="user_1"))


# Prepared statements


def test_one_statement_per_tenant(conn: Connection) -> None:
    """However large ids and durations are, or missing, a tenant's jobs are counted by one prepared statement."""
    with connect(conn, prepare_threshold=0) as own:
        for action_type_id in (1, 2**15, 2**31 - 1):
            count(own, action_type_id=action_type_id)  # inserts the row by the other statement
            for milliseconds in (1, 2**15, 2**31 - 1):
                count(own, action_type_id=action_type_id, duration=timedelta(milliseconds=milliseconds))
        updates = "SELECT name FROM pg_prepared_statements WHERE statement LIKE 'UPDATE%'"
        prepared = own.execute(updates.encode(), prepare=False).fetchall()

    assert 1 == len(prepared)


def test_prepared_statements_are_bounded(conn: Connection) -> None:
    """A connection that serves 300 tenants keeps psycopg's `prepared_max` statements; the older ones are dropped."""
    clones(conn, "user_many_", 300)
    with connect(conn, prepare_threshold=0) as own:
        assert own.prepared_max == 100
        kept = []
        for tenant in range(1, 301):
            count(own, schema=f"user_many_{tenant}")
            get_summary(own, schema=f"user_many_{tenant}")
            statements = own.execute("SELECT statement FROM pg_prepared_statements", prepare=False).fetchall()
            kept.append(len(statements))
        assert 100 == max(kept)
        assert 3 == sum("user_many_300" in statement for (statement,) in statements)
