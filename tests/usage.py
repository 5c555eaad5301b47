"""How users call the library, for type checkers alone: each `type: ignore` is a mistake that they must report."""

# mypy: warn-unused-ignores
# pyright: reportUnnecessaryTypeIgnoreComment=true

import datetime
from typing import Any, assert_type

import psycopg

from stats_lib import (
    JobStats,
    Marketplace,
    MarketplaceSummary,
    PlatformSummary,
    aio,
    get_platform_summary,
    get_stats,
    get_summary,
    update_job_stats,
)

HOUR = datetime.timedelta(hours=1)
TODAY = datetime.date(2026, 1, 31)


def right(conn: psycopg.Connection, rows_are_dicts: psycopg.Connection[dict[str, Any]]) -> None:
    """What is allowed, and what comes back."""
    update_job_stats(conn, schema="user_1", action_type_id=1, marketplace="ebay", success=True)
    update_job_stats(
        rows_are_dicts,
        schema="user_1",
        action_type_id=1,
        marketplace=Marketplace.ETSY,
        success=False,
        duration=HOUR,
        date=TODAY,
    )
    rows = get_stats(rows_are_dicts, schema="user_1", marketplace=Marketplace.VINTED, action_type_id=1, days=30)
    assert_type(rows, list[JobStats])
    assert_type(rows[0].success_rate, float)
    assert_type(rows[0].marketplace, Marketplace)
    assert_type(rows[0].avg_duration_ms, int | None)
    summary = get_summary(conn, schema="user_1", days=30)
    assert_type(summary, list[MarketplaceSummary])
    assert_type(summary[0].failure_rate, float)
    get_summary(conn, schema="user_1", marketplace="ebay", action_type_id=1, until=TODAY)
    assert_type(get_platform_summary(conn, days=30, until=TODAY), list[PlatformSummary])


async def right_async(conn: psycopg.AsyncConnection, rows_are_dicts: psycopg.AsyncConnection[dict[str, Any]]) -> None:
    """The same, awaited."""
    await aio.update_job_stats(
        rows_are_dicts,
        schema="user_1",
        action_type_id=1,
        marketplace=Marketplace.ETSY,
        success=False,
        duration=HOUR,
        date=TODAY,
    )
    assert_type(await aio.get_stats(conn, schema="user_1", marketplace="ebay", action_type_id=1), list[JobStats])
    assert_type(await aio.get_summary(conn, schema="user_1"), list[MarketplaceSummary])
    assert_type(await aio.get_platform_summary(conn), list[PlatformSummary])


def wrong(conn: psycopg.Connection, row: JobStats, aconn: psycopg.AsyncConnection) -> None:
    """What they report."""
    update_job_stats(conn, schema="user_1", action_type_id=1, success=True)  # type: ignore[call-arg]  # where?
    update_job_stats(conn, "user_1", 1, "ebay", True)  # type: ignore[call-arg]  # by keyword only
    update_job_stats(
        conn,
        schema=1,  # type: ignore[arg-type]
        action_type_id="1",  # type: ignore[arg-type]
        marketplace=None,  # type: ignore[arg-type]
        success=None,  # type: ignore[arg-type]
        duration=1500,  # type: ignore[arg-type]  # milliseconds or seconds?
        date="2026-01-31",  # type: ignore[arg-type]
    )
    get_stats(aconn, schema="user_1")  # type: ignore[arg-type]
    get_stats(conn, schema="user_1", days=HOUR)  # type: ignore[arg-type]
    get_stats(conn, schema="user_1", marketplace=["ebay"])  # type: ignore[arg-type]
    get_stats(conn, schema="user_1", until="2026-01-31")  # type: ignore[arg-type]
    get_platform_summary(conn, schema="user_1")  # type: ignore[call-arg]  # it has all of them
    row.total_jobs = 2  # type: ignore[misc]  # frozen
    row["total_jobs"]  # type: ignore[index]
    row.avg_duration_ms + 1  # type: ignore[operator]  # may be None


async def wrong_async(conn: psycopg.Connection, aconn: psycopg.AsyncConnection) -> None:
    """What they report."""
    await aio.get_stats(conn, schema="user_1")  # type: ignore[arg-type]
    aio.get_summary(aconn, schema="user_1")  # type: ignore[unused-coroutine]
    for _ in aio.get_stats(aconn, schema="user_1"):  # type: ignore[attr-defined]
        pass
