"""What the library takes and gives."""

import datetime
from dataclasses import dataclass
from enum import StrEnum


class Marketplace(StrEnum):
    """Where a job ran; the value is what the database stores."""

    VINTED = "vinted"
    EBAY = "ebay"
    ETSY = "etsy"


class _Rates:
    """What follows from the counts of whoever has them."""

    __slots__ = ()
    total_jobs: int
    success_count: int
    failure_count: int

    @property
    def success_rate(self) -> float:
        """Successes per job, from 0.0 to 1.0; 0.0 if there were no jobs."""
        return self.success_count / self.total_jobs if self.total_jobs else 0.0

    @property
    def failure_rate(self) -> float:
        """Failures per job, from 0.0 to 1.0; 0.0 if there were no jobs."""
        return self.failure_count / self.total_jobs if self.total_jobs else 0.0


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """One finished job, for `update_job_stats_batch`; `update_job_stats` tells what each field may be."""

    action_type_id: int
    marketplace: Marketplace | str
    success: bool
    duration: datetime.timedelta | None = None
    date: datetime.date | None = None


@dataclass(frozen=True, slots=True)
class JobStats(_Rates):
    """One row of `marketplace_job_stats`: the jobs of one action type on one marketplace and day.

    - `date`: the day counted, in UTC unless the writer said otherwise.
    - `avg_duration_ms`: the mean of the durations, in whole milliseconds, at most 2^31 - 1; None while no job of the
      row had one.
    - `created_at`: when the row was inserted; always aware, in the time zone of the session that read it (UTC if
      Python does not know that). What it cannot hold, such as infinity, is read as the first or last day that it can.
    - `success_rate`, `failure_rate`: per job, from 0.0 to 1.0. Without jobs, both are 0.0: so alert on
      `failure_rate > …`, which an idle tenant does not fire. They are properties: `dataclasses.asdict`, and what builds
      on fields as pydantic does, leave them out.
    """

    id: int
    action_type_id: int
    marketplace: Marketplace
    date: datetime.date
    total_jobs: int
    success_count: int
    failure_count: int
    avg_duration_ms: int | None
    created_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class MarketplaceSummary(_Rates):
    """The jobs of one marketplace over some days; rates and the average are those of `JobStats`, but without limit."""

    marketplace: Marketplace
    total_jobs: int
    success_count: int
    failure_count: int
    avg_duration_ms: int | None


@dataclass(frozen=True, slots=True)
class PlatformSummary(_Rates):
    """The jobs of one marketplace in all tenants over some days; rates and the average: see `MarketplaceSummary`.

    - `tenants`: how many had jobs there.
    - `tenants_skipped`: how many could not be read, and so are in no sum; the same in each row.
    """

    marketplace: Marketplace
    tenants: int
    total_jobs: int
    success_count: int
    failure_count: int
    avg_duration_ms: int | None
    tenants_skipped: int
