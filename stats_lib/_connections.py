"""What may be given as `conn`, and what to say of what may not."""

from typing import Any

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor, Pipeline

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
