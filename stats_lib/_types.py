"""What the library takes and gives."""

import datetime
from dataclasses import dataclass
from enum import StrEnum


class Marketplace(StrEnum):
    """Where a job ran; the value is what the database stores."""

    VINTED = "vinted"
    EBAY = "ebay"
    ETSY = "etsy"


@dataclass(frozen=True, slots=True)
class JobStats:
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
    """Running average, in milliseconds; None while no job of the row had a duration."""
    created_at: datetime.datetime
    """When the row was inserted; always aware, in the time zone of the session that read it."""

    @property
    def success_rate(self) -> float:
        """Successes per job, from 0.0 to 1.0; 0.0 for a row without jobs."""
        return self.success_count / self.total_jobs if self.total_jobs else 0.0
