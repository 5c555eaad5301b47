"""Daily job counters per marketplace, kept in one PostgreSQL schema per tenant.

The caller owns the connection and its transaction: nothing here commits, rolls back or touches `search_path`.
Arguments that can never be right raise `ValueError` before anything is sent; psycopg's errors pass through unchanged.

`stats_lib.aio` has the same functions for a `psycopg.AsyncConnection`.
"""

from stats_lib._sync import get_stats, get_summary, update_job_stats, update_job_stats_batch
from stats_lib._types import JobOutcome, JobStats, Marketplace, MarketplaceSummary

__all__ = [
    "JobOutcome",
    "JobStats",
    "Marketplace",
    "MarketplaceSummary",
    "get_stats",
    "get_summary",
    "update_job_stats",
    "update_job_stats_batch",
]
