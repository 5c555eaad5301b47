"""What may be given as `conn`, what to say of what may not, and when one has to be closed."""

import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor, Error, Pipeline
from psycopg.pq import PipelineStatus

if not Pipeline.is_supported():  # without, executemany() is no transaction
    raise ImportError("stats_lib needs libpq 14 or newer: pip install 'psycopg[binary]' brings one")

_ELSEWHERE = {  # by the beginning of the name of a class, or of one that it is derived from
    "sqlalchemy.ext.asyncio": "its own is (await (await session.connection()).get_raw_connection()).driver_connection",
    "sqlalchemy": "its own is session.connection().connection.driver_connection",
    "django": "its own is django.db.connection.connection, after django.db.connection.ensure_connection()",
    "psycopg2": "that is another driver: pip install psycopg, and psycopg.connect()",
    "asyncpg": "that is another driver: pip install psycopg, and psycopg.AsyncConnection.connect()",
    "psycopg_pool": "take one from the pool: with pool.connection() as conn, or async with",
    "contextlib": "enter it: with ... as conn, or async with",
}


def check(conn: object, wanted: type[Connection[Any]] | type[AsyncConnection[Any]]) -> None:
    """Raise TypeError unless `conn` is what is wanted, saying where that is."""
    if not isinstance(conn, wanted):
        # Not conn itself, which may have a password in it.
        raise TypeError(f"conn must be a psycopg.{wanted.__name__}; got {type(conn)!r}{_where(conn)}")


@contextmanager
def closed_if_left_in_pipeline(conn: Connection[Any] | AsyncConnection[Any]) -> Iterator[None]:
    """Close `conn` if a batch that was interrupted has left it in its pipeline: nothing would ever be committed there.

    psycopg 3.3.9 does not come out of a pipeline if it is interrupted on the way in, or in vain on the way out, and
    raises an error of its own. What is raised here is the interruption, but never what the caller is handling.
    """
    handled = sys.exception()
    before = _pipeline(conn)  # that it is in one does not say whose: another task's batch may be at work
    try:
        yield
    except BaseException as error:
        refused_by_server = isinstance(error, Error) and error.sqlstate
        is_anothers = before and _pipeline(conn) is before
        if not refused_by_server and not is_anothers and _is_in_pipeline(conn):
            conn.pgconn.finish()
            if isinstance(error, AssertionError | Error) and error.__context__ not in (None, handled):
                raise error.__context__ from None
        raise


def _pipeline(conn: Connection[Any] | AsyncConnection[Any]) -> object:
    """Return the one that it is in. An attribute of psycopg's own: without it a batch works, but for this."""
    return getattr(conn, "_pipeline", None)


def _is_in_pipeline(conn: Connection[Any] | AsyncConnection[Any]) -> bool:
    """Whether it is, while nobody is at work: a batch of somebody else's holds the lock while it is in its pipeline."""
    return not conn.lock.locked() and conn.pgconn.pipeline_status != PipelineStatus.OFF


def _where(conn: object) -> str:
    if isinstance(conn, AsyncConnection):
        return ": await the same function of stats_lib.aio"
    if isinstance(conn, Connection):
        return ": call the same function of stats_lib, which is not to be awaited"
    if isinstance(conn, str | bytes):
        return ": make one by psycopg.connect(...)"
    if isinstance(conn, Coroutine):
        return ": await it first"
    if isinstance(conn, Cursor | AsyncCursor):
        return ": its own is cursor.connection"
    names = [f"{cls.__module__}." for cls in type(conn).__mro__]
    return next(
        (f": {text}" for start, text in _ELSEWHERE.items() if any(name.startswith(f"{start}.") for name in names)), ""
    )
