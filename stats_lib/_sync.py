"""The statements, executed on a `psycopg.Connection`.

Each makes a plain `Cursor` of its own, so that the connection's `cursor_factory` and `row_factory` do not matter, and
reads in binary, so that neither does its DateStyle.
"""

import datetime
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from psycopg import Connection, Cursor
from psycopg.rows import args_row

from stats_lib import _queries
from stats_lib._types import JobOutcome, JobStats, Marketplace, MarketplaceSummary


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

    One statement, no result: it can be pipelined (`with conn.pipeline():`), and concurrent updates are all counted.
    The row is locked until the caller's transaction ends. Only a job that finds no row takes an id from the sequence.

    - `schema`: the tenant's schema, 1 to 63 bytes, used as it is (never parsed, folded or looked up in `search_path`).
    - `action_type_id`: a 32-bit integer; the same id means another thing on another marketplace.
    - `marketplace`: a `Marketplace` or its value, in lower case.
    - `success`: True counts a success, False a failure.
    - `duration`: 0 to 2^32 ms (about 49.7 days), rounded to the millisecond. None counts the job and leaves the average
      as it is.
    - `date`: the day to count the job on; None for today in UTC by the server's clock, as of the transaction's start.

    `avg_duration_ms` becomes the mean of all durations of the row, computed from their sum and rounded half up; a mean
    beyond 2^31 - 1 ms (about 24.8 days) is kept, and shown as that. Where code from before `marketplace_job_stats`
    counts in the same row, the mean starts from the average that it left.

    Raises ValueError, before anything is sent, if an argument is none of the above; psycopg's errors pass through.
    """
    query, params = _queries.update_job_stats(
        schema=schema,
        action_type_id=action_type_id,
        marketplace=marketplace,
        success=success,
        duration=duration,
        date=date,
    )
    Cursor(conn).execute(query, params)


def update_job_stats_batch(conn: Connection[Any], *, schema: str, outcomes: Iterable[JobOutcome]) -> None:
    """Count many finished jobs in the tenant's `marketplace_job_stats`, all or none of them.

    The result is that of `update_job_stats` for each, in two statements, however many they are: for workers that finish
    many jobs, and for back-fills. Only rows that are new take ids from the sequence.

    The rows are locked until the caller's transaction ends, always in the same order, so that no two batches wait for
    each other in a circle; unless their transactions have locked rows before, as by another batch. An autocommit
    connection gets a transaction for the two statements, whose end is waited for, in a pipeline too.

    - `schema`: as for `update_job_stats`.
    - `outcomes`: any iterable of `JobOutcome`, which is consumed before anything is sent; if it is empty, nothing is.

    Raises ValueError, before anything is sent, if an argument is none of the above; it names the first bad outcome by
    its index, from 0. psycopg's errors pass through.
    """
    statements = _queries.update_job_stats_batch(schema=schema, outcomes=outcomes)
    if not statements:
        return
    with conn.transaction() if conn.autocommit else nullcontext():
        for query, params in statements:
            Cursor(conn).execute(query, params)


def get_stats(
    conn: Connection[Any],
    *,
    schema: str,
    marketplace: Marketplace | str | None = None,
    action_type_id: int | None = None,
    days: int = 7,
) -> list[JobStats]:
    """Read the last days of the tenant's `marketplace_job_stats`.

    - `schema`: as for `update_job_stats`.
    - `marketplace`: a `Marketplace` or its value, in lower case; None for each member of `Marketplace`.
    - `action_type_id`: a 32-bit integer; None for all.
    - `days`: 1 to 1,000,000 calendar days, ending with today in UTC by the server's clock, as of the transaction's
      start. Rows dated later than today are left out.

    Returns one `JobStats` a row: newest day first, then by marketplace (alphabetically), then by action type.

    Raises ValueError, before anything is sent, if an argument is none of the above; psycopg's errors pass through.
    """
    query, params = _queries.get_stats(schema=schema, marketplace=marketplace, action_type_id=action_type_id, days=days)
    return Cursor(conn, row_factory=args_row(_queries.job_stats)).execute(query, params, binary=True).fetchall()


def get_summary(conn: Connection[Any], *, schema: str, days: int = 7) -> list[MarketplaceSummary]:
    """Add up the last days of the tenant's `marketplace_job_stats`, marketplace by marketplace.

    - `schema`: as for `update_job_stats`.
    - `days`: as for `get_stats`.

    Returns one `MarketplaceSummary` for each member of `Marketplace`, those without jobs too, in alphabetical order.

    `avg_duration_ms` is the mean of all durations of the rows, computed from their sums and rounded half up; None if
    there are none. A row that code from before counted in last is taken as average times jobs (see `update_job_stats`).

    Raises ValueError, before anything is sent, if an argument is none of the above; psycopg's errors pass through.
    """
    query, params = _queries.get_summary(schema=schema, days=days)
    return (
        Cursor(conn, row_factory=args_row(_queries.marketplace_summary)).execute(query, params, binary=True).fetchall()
    )
