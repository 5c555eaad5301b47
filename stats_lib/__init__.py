"""Daily job counters per marketplace, kept in one PostgreSQL schema per tenant.

The caller owns the connection and its transaction: nothing here begins, commits, rolls back or touches `search_path`.
Arguments that can never be right raise `ValueError` before anything is sent, and a `conn` that is no psycopg connection
raises `TypeError`. psycopg's errors pass through unchanged.

`stats_lib.aio` has the same functions for a `psycopg.AsyncConnection`. [counting.md](counting.md) says what is counted
when.
"""

from stats_lib import aio as aio
from stats_lib._sync import get_platform_summary, get_stats, get_summary, update_job_stats, update_job_stats_batch
from stats_lib._types import JobOutcome, JobStats, Marketplace, MarketplaceSummary, PlatformSummary

__all__ = [
    "JobOutcome",
    "JobStats",
    "Marketplace",
    "MarketplaceSummary",
    "PlatformSummary",
    "get_platform_summary",
    "get_stats",
    "get_summary",
    "update_job_stats",
    "update_job_stats_batch",
]
