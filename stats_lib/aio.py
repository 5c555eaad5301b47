"""The functions of `stats_lib` for a `psycopg.AsyncConnection`: the same names and arguments, to be awaited."""

import datetime
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from psycopg import AsyncConnection, AsyncRawCursor, ProgrammingError
from psycopg.adapt import AdaptersMap
from psycopg.pq import PipelineStatus
from psycopg.rows import Row, tuple_row

from stats_lib import _queries, _sync
from stats_lib._connections import check, closed_if_left_in_pipeline
from stats_lib._types import JobOutcome, JobStats, Marketplace, MarketplaceSummary, PlatformSummary

__all__ = ["get_platform_summary", "get_stats", "get_summary", "update_job_stats", "update_job_stats_batch"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _like(sync: Callable[..., object]) -> Callable[[_Function], _Function]:
    """Have `help()` say of a function what it says of `sync`, after the function's own docstring."""

    def document(function: _Function) -> _Function:
        function.__doc__ = f"{inspect.getdoc(function) or ''}\n\n{inspect.getdoc(sync) or ''}"
        return function

    return document


class _Cursor(AsyncRawCursor[Row]):
    """A cursor that knows the types of the library, and no others."""

    __slots__ = ()
    adapters: AdaptersMap = _queries.ADAPTERS  # otherwise the connection's


@_like(_sync.update_job_stats)
async def update_job_stats(
    conn: AsyncConnection[Any],
    *,
    schema: str,
    action_type_id: int,
    marketplace: Marketplace | str,
    success: bool,
    duration: datetime.timedelta | None = None,
    date: datetime.date | None = None,
) -> None:
    """`stats_lib.update_job_stats`, to be awaited."""
    check(conn, AsyncConnection)
    update, upsert, params = _queries.update_job_stats(
        schema=schema,
        action_type_id=action_type_id,
        marketplace=marketplace,
        success=success,
        duration=duration,
        date=date,
    )
    cursor = _Cursor(conn, row_factory=tuple_row)
    if conn.pgconn.pipeline_status == PipelineStatus.OFF:
        await cursor.execute(update, params)
        if cursor.rowcount < 0:  # in a pipeline, which somebody began meanwhile: wait for the result, which has no rows
            try:
                await cursor.fetchone()
            except ProgrammingError as error:
                if error.sqlstate:  # it is the server's
                    raise
        if cursor.rowcount == 1:
            return
    await cursor.execute(upsert, params)


@_like(_sync.update_job_stats_batch)
async def update_job_stats_batch(conn: AsyncConnection[Any], *, schema: str, outcomes: Iterable[JobOutcome]) -> None:
    """`stats_lib.update_job_stats_batch`, to be awaited."""
    check(conn, AsyncConnection)
    upsert, rows = _queries.update_job_stats_batch(schema=schema, outcomes=outcomes)
    if rows:
        with closed_if_left_in_pipeline(conn):
            await _Cursor(conn, row_factory=tuple_row).executemany(upsert, rows)


@_like(_sync.get_stats)
async def get_stats(
    conn: AsyncConnection[Any],
    *,
    schema: str,
    marketplace: Marketplace | str | None = None,
    action_type_id: int | None = None,
    days: int = 7,
    until: datetime.date | None = None,
) -> list[JobStats]:
    """`stats_lib.get_stats`, to be awaited."""
    check(conn, AsyncConnection)
    query, params = _queries.get_stats(
        schema=schema, marketplace=marketplace, action_type_id=action_type_id, days=days, until=until
    )
    cursor = await _Cursor(conn, row_factory=_queries.JOB_STATS).execute(query, params, binary=True)
    return _queries.known(await cursor.fetchall())


@_like(_sync.get_summary)
async def get_summary(
    conn: AsyncConnection[Any],
    *,
    schema: str,
    marketplace: Marketplace | str | None = None,
    action_type_id: int | None = None,
    days: int = 7,
    until: datetime.date | None = None,
) -> list[MarketplaceSummary]:
    """`stats_lib.get_summary`, to be awaited."""
    check(conn, AsyncConnection)
    query, params = _queries.get_summary(
        schema=schema, marketplace=marketplace, action_type_id=action_type_id, days=days, until=until
    )
    cursor = await _Cursor(conn, row_factory=_queries.MARKETPLACE_SUMMARY).execute(query, params, binary=True)
    return _queries.each_marketplace(await cursor.fetchall(), marketplace)


@_like(_sync.get_platform_summary)
async def get_platform_summary(
    conn: AsyncConnection[Any], *, days: int = 7, until: datetime.date | None = None
) -> list[PlatformSummary]:
    """`stats_lib.get_platform_summary`, to be awaited."""
    check(conn, AsyncConnection)
    query, params = _queries.get_platform_summary(days=days, until=until)
    cursor = await _Cursor(conn, row_factory=_queries.PLATFORM_SUMMARY).execute(query, params, binary=True)
    return _queries.each_on_platform(await cursor.fetchall())
