"""The functions of `stats_lib` for a `psycopg.AsyncConnection`: the same names and arguments, to be awaited."""

import datetime
import inspect
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, TypeVar

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import args_row

from stats_lib import _queries, _sync
from stats_lib._types import JobOutcome, JobStats, Marketplace, MarketplaceSummary

__all__ = ["get_stats", "get_summary", "update_job_stats", "update_job_stats_batch"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _like(sync: Callable[..., object]) -> Callable[[_Function], _Function]:
    """Have `help()` say of a function what it says of `sync`, after the function's own docstring."""

    def document(function: _Function) -> _Function:
        function.__doc__ = f"{inspect.getdoc(function)}\n\n{inspect.getdoc(sync)}"
        return function

    return document


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
    query, params = _queries.update_job_stats(
        schema=schema,
        action_type_id=action_type_id,
        marketplace=marketplace,
        success=success,
        duration=duration,
        date=date,
    )
    await AsyncCursor(conn).execute(query, params)


@_like(_sync.update_job_stats_batch)
async def update_job_stats_batch(conn: AsyncConnection[Any], *, schema: str, outcomes: Iterable[JobOutcome]) -> None:
    """`stats_lib.update_job_stats_batch`, to be awaited."""
    statements = _queries.update_job_stats_batch(schema=schema, outcomes=outcomes)
    if not statements:
        return
    async with conn.transaction() if conn.autocommit else nullcontext():
        for query, params in statements:
            await AsyncCursor(conn).execute(query, params)


@_like(_sync.get_stats)
async def get_stats(
    conn: AsyncConnection[Any],
    *,
    schema: str,
    marketplace: Marketplace | str | None = None,
    action_type_id: int | None = None,
    days: int = 7,
) -> list[JobStats]:
    """`stats_lib.get_stats`, to be awaited."""
    query, params = _queries.get_stats(schema=schema, marketplace=marketplace, action_type_id=action_type_id, days=days)
    return await (
        await AsyncCursor(conn, row_factory=args_row(_queries.job_stats)).execute(query, params, binary=True)
    ).fetchall()


@_like(_sync.get_summary)
async def get_summary(conn: AsyncConnection[Any], *, schema: str, days: int = 7) -> list[MarketplaceSummary]:
    """`stats_lib.get_summary`, to be awaited."""
    query, params = _queries.get_summary(schema=schema, days=days)
    return await (
        await AsyncCursor(conn, row_factory=args_row(_queries.marketplace_summary)).execute(query, params, binary=True)
    ).fetchall()
