"""What the library takes and gives."""

import datetime
from dataclasses import dataclass
from enum import StrEnum


class Marketplace(StrEnum):
    """Where a job ran; the value is what the database stores."""

    VINTED = "vinted"
    EBAY = "ebay"
    ETSY = "etsy"


class _SuccessRate:
    """What follows from the counts of whoever has them."""

    __slots__ = ()
    total_jobs: int
    success_count: int

    @property
    def success_rate(self) -> float:
        """Successes per job, from 0.0 to 1.0; 0.0 if there were no jobs."""
        return self.success_count / self.total_jobs if self.total_jobs else 0.0


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """One finished job, for `update_job_stats_batch`; `update_job_stats` tells what each field may be."""

    action_type_id: int
    marketplace: Marketplace | str
    success: bool
    duration: datetime.timedelta | None = None
    date: datetime.date | None = None


@dataclass(frozen=True, slots=True)
class JobStats(_SuccessRate):
    """One row of `marketplace_job_stats`: the jobs of one action type on one marketplace and day."""

    id: int
    action_type_id: int
    marketplace: Marketplace
    date: datetime.date
    """The day counted, in UTC unless the writer said otherwise."""
    total_jobs: int
    success_count: int
    failure_count: int
    avg_duration_ms: int | None
    """Mean of the durations, in whole milliseconds, at most 2^31 - 1; None while no job of the row had one."""
    created_at: datetime.datetime
    """When the row was inserted; always aware, in the time zone of the session that read it."""


@dataclass(frozen=True, slots=True)
class MarketplaceSummary(_SuccessRate):
    """The jobs of one marketplace, of all action types, over some days."""

    marketplace: Marketplace
    total_jobs: int
    success_count: int
    failure_count: int
    avg_duration_ms: int | None
    """Mean of the durations, in whole milliseconds; None if no job had one."""
