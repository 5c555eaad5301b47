"""What may be given as `conn`, what to say of what may not, and when one has to be closed."""

from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor, Pipeline
from psycopg.pq import PipelineStatus

if not Pipeline.is_supported():  # without, executemany() is no transaction
    raise ImportError("stats_lib needs libpq 14 or newer: pip install 'psycopg[binary]' brings one")

_ELSEWHERE = {  # by the beginning of the name of a class, or of one that it is derived from
    "sqlalchemy.ext.asyncio": "its own is (await (await session.connection()).get_raw_connection()).driver_connection",
    "sqlalchemy": "its own is session.connection().connection.driver_connection",
    "django": "its own is django.db.connection.connection, after django.db.connection.ensure_connection()",
    "psycopg2": "that is another driver: pip install psycopg, and psycopg.connect()",
    "psycopg_pool": "take one from the pool: with pool.connection() as conn",
}


def check(conn: object, wanted: type[Connection[Any]] | type[AsyncConnection[Any]]) -> None:
    """Raise TypeError unless `conn` is what is wanted, saying where that is."""
    if not isinstance(conn, wanted):
        raise TypeError(f"conn must be a psycopg.{wanted.__name__}; got {conn!r:.200}{_where(conn)}")


@contextmanager
def closed_unless_out_of_pipeline(conn: Connection[Any] | AsyncConnection[Any]) -> Iterator[None]:
    """Close `conn` if it was in no pipeline, and is in one after an error: nothing would ever be committed there.

    psycopg 3.3.9 does not come out of a pipeline if it is interrupted on the way in, and then fails an assertion of its
    own. What is raised is the interruption.
    """
    was_out = conn.pgconn.pipeline_status == PipelineStatus.OFF
    try:
        yield
    except BaseException as error:
        if was_out and conn.pgconn.pipeline_status != PipelineStatus.OFF:
            conn.pgconn.finish()
            if isinstance(error.__context__, CancelledError):
                raise error.__context__ from None
        raise


def _where(conn: object) -> str:
    if isinstance(conn, AsyncConnection):
        return ": await the same function of stats_lib.aio"
    if isinstance(conn, Connection):
        return ": call the same function of stats_lib, which is not to be awaited"
    if isinstance(conn, Cursor | AsyncCursor):
        return ": its own is cursor.connection"
    names = [f"{cls.__module__}." for cls in type(conn).__mro__]
    return next(
        (f": {text}" for start, text in _ELSEWHERE.items() if any(name.startswith(f"{start}.") for name in names)), ""
    )
