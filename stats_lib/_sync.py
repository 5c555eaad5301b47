"""The statements, executed on a `psycopg.Connection`.

Each makes a cursor of its own, so that the connection's `cursor_factory`, `row_factory` and `adapters` do not matter,
and reads in binary, so that neither does its DateStyle.
"""

import datetime
from collections.abc import Iterable
from typing import Any

from psycopg import Connection, ProgrammingError, RawCursor
from psycopg.adapt import AdaptersMap
from psycopg.pq import PipelineStatus
from psycopg.rows import Row, tuple_row

from stats_lib import _queries
from stats_lib._connections import check, closed_if_left_in_pipeline
from stats_lib._types import JobOutcome, JobStats, Marketplace, MarketplaceSummary, PlatformSummary


class _Cursor(RawCursor[Row]):
    """A cursor that knows the types of the library, and no others."""

    __slots__ = ()
    adapters: AdaptersMap = _queries.ADAPTERS  # otherwise the connection's


def update_job_stats(
    conn: Connection[Any],
    *,
    schema: str,
    action_type_id: int,
    marketplace: Marketplace | str,
    success: bool,
    duration: datetime.timedelta | None = None,
    date: datetime.date | None = None,
) -> None:
    """Count one finished job in the tenant's `marketplace_job_stats`.

    It sends one statement, or two if there is no row yet or old code has changed it, each complete in itself. It has
    no transaction of its own (outside autocommit, psycopg's begins, as before any statement), and loses no concurrent
    update, on a shared connection neither. In a pipeline (`with conn.pipeline():`) it waits for nothing. The row is
    locked until the caller's transaction ends. An update takes no id from the sequence.

    - `schema`: the tenant's schema, 1 to 63 bytes of UTF-8, used as it is (never parsed, folded or looked up in
      `search_path`). If `client_encoding` cannot spell it, psycopg raises UnicodeEncodeError, a ValueError, but may
      have sent a BEGIN.
    - `action_type_id`: a 32-bit integer; the same id means another thing on another marketplace.
    - `marketplace`: a `Marketplace` or its value, in lower case.
    - `success`: True counts a success, False a failure.
    - `duration`: 0 to 2^32 ms (about 49.7 days), rounded to the millisecond. None counts the job and leaves the average
      as it is.
    - `date`: the day to count the job on; None for today in UTC by the server's clock, as of the transaction's start.

    `avg_duration_ms` becomes the mean of all durations of the row, computed from their sum and rounded half up; a mean
    beyond 2^31 - 1 ms (about 24.8 days) is kept, and shown as that. Where old code, from before the migration, counts
    in the same row, the mean starts from the average that it left.

    Raises TypeError for a wrong `conn`, and ValueError for any other bad argument, before anything is sent.
    """
    check(conn, Connection)
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
        cursor.execute(update, params)
        if cursor.rowcount < 0:  # in a pipeline, which somebody began meanwhile: wait for the result, which has no rows
            try:
                cursor.fetchone()
            except ProgrammingError as error:
                if error.sqlstate:  # it is the server's
                    raise
        if cursor.rowcount == 1:
            return
    cursor.execute(upsert, params)


def update_job_stats_batch(conn: Connection[Any], *, schema: str, outcomes: Iterable[JobOutcome]) -> None:
    """Count many finished jobs in the tenant's `marketplace_job_stats`, all or none of them.

    The result is that of `update_job_stats` for each. It is for workers that finish many jobs, and for back-fills (see
    docs/counting.md). The outcomes of each row are added up, then one statement a row is sent, by psycopg's
    `executemany`, in one pipeline, after one that counts nothing if there are several. That is a transaction of its own
    unless one is open, and nobody who shares the connection can fall into it.

    A task of asyncio's that is cancelled meanwhile counts all or none. So does a thread in which a signal handler
    raises (Ctrl-C, a task queue's time limit), or a greenlet that is killed, if the batch is in `with
    conn.transaction():`; close the connection then. The library does so itself where psycopg does not come out of its
    pipeline.

    Rows are taken in the order of action type, marketplace and day, and locked until the transaction ends. So no two
    transactions of a batch each wait for each other in a circle, nor does one that counts one by one in that order. One
    that counts in several tenants must take these in the same order everywhere, too. Only where
    the dates are both None and given, and the client's day is not the server's, may PostgreSQL have to end one of two.

    - `schema`: as for `update_job_stats`.
    - `outcomes`: an iterable of `JobOutcome`, no set or mapping, since these hold no two equal ones. It is consumed
      before anything is sent; if it is empty, nothing is.

    Raises TypeError for a wrong `conn`, and ValueError for any other bad argument, before anything is sent. It names
    the first bad outcome by its index, from 0.
    """
    check(conn, Connection)
    upsert, rows = _queries.update_job_stats_batch(schema=schema, outcomes=outcomes)
    if rows:
        with closed_if_left_in_pipeline(conn):
            _Cursor(conn, row_factory=tuple_row).executemany(upsert, rows)


def get_stats(
    conn: Connection[Any],
    *,
    schema: str,
    marketplace: Marketplace | str | None = None,
    action_type_id: int | None = None,
    days: int = 7,
    until: datetime.date | None = None,
) -> list[JobStats]:
    """Read the last days of the tenant's `marketplace_job_stats`.

    - `schema`: as for `update_job_stats`.
    - `marketplace`: a `Marketplace` or its value, in lower case; None for each member of `Marketplace`.
    - `action_type_id`: a 32-bit integer; None for all.
    - `days`: 1 to 1,000,000 calendar days, ending with `until`. Rows dated later are left out, and those before year 1.
    - `until`: the last day; None for today in UTC by the server's clock, as of the transaction's start.

    Returns one `JobStats` a row: newest day first, then by marketplace (alphabetically), then by action type.

    Raises TypeError for a wrong `conn`, and ValueError for any other bad argument, before anything is sent.
    """
    check(conn, Connection)
    query, params = _queries.get_stats(
        schema=schema, marketplace=marketplace, action_type_id=action_type_id, days=days, until=until
    )
    cursor = _Cursor(conn, row_factory=_queries.JOB_STATS).execute(query, params, binary=True)
    return _queries.known(cursor.fetchall())


def get_summary(
    conn: Connection[Any],
    *,
    schema: str,
    marketplace: Marketplace | str | None = None,
    action_type_id: int | None = None,
    days: int = 7,
    until: datetime.date | None = None,
) -> list[MarketplaceSummary]:
    """Add up the last days of the tenant's `marketplace_job_stats`, marketplace by marketplace.

    - `schema`, `marketplace`, `action_type_id`, `days`, `until`: as for `get_stats`.

    Returns one `MarketplaceSummary` for each marketplace asked for, those without jobs too, in alphabetical order.

    `avg_duration_ms` is the mean of all durations of the rows, computed from their sums and rounded half up; None if
    there are none. A row that old code counted in last is taken as average times jobs (see `update_job_stats`).

    Raises TypeError for a wrong `conn`, and ValueError for any other bad argument, before anything is sent.
    """
    check(conn, Connection)
    query, params = _queries.get_summary(
        schema=schema, marketplace=marketplace, action_type_id=action_type_id, days=days, until=until
    )
    cursor = _Cursor(conn, row_factory=_queries.MARKETPLACE_SUMMARY).execute(query, params, binary=True)
    return _queries.each_marketplace(cursor.fetchall(), marketplace)


def get_platform_summary(
    conn: Connection[Any], *, days: int = 7, until: datetime.date | None = None
) -> list[PlatformSummary]:
    """Add up the last days of all tenants, marketplace by marketplace.

    - `days`, `until`: as for `get_stats`.

    Returns one `PlatformSummary` for each member of `Marketplace`, those without jobs too, in alphabetical order.
    It skips and counts tenants that cannot be read: those that are not migrated yet, that have no such table, that the
    role may not read, or not all rows of, whose table has a child or negative numbers, or may run code of its owner's
    when it is read. For a role that may do more than read, that is each table whose owner could do less than it; a
    warning says so, which psycopg gives to `conn.add_notice_handler` only.

    This is one SELECT of `job_stats.platform_summary`, for which docs/recipes.md has the grants.

    Raises TypeError for a wrong `conn`, and ValueError for any other bad argument, before anything is sent.
    """
    check(conn, Connection)
    query, params = _queries.get_platform_summary(days=days, until=until)
    cursor = _Cursor(conn, row_factory=_queries.PLATFORM_SUMMARY).execute(query, params, binary=True)
    return _queries.each_on_platform(cursor.fetchall())
