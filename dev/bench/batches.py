"""How many jobs a second are counted when 1,000 are counted in one transaction: as a batch, in a pipeline, one by one.

Once in a day's 60 rows of a tenant, as by a worker that has finished many jobs; once in 1,000 rows that are new, as by
a back-fill. What is to be counted is made beforehand; COMMIT is part of what is measured.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from time import perf_counter

import psycopg

from dev.bench.figures import Report, Target, say, side_by_side, table
from dev.bench.tenant import ROWS_A_DAY, SCHEMA, Connection, lay_rows, migrated_database
from dev.bench.ways import jobs, stats_lib_calls
from dev.server import Server
from stats_lib import JobOutcome, update_job_stats_batch

JOBS = 1000
WARM_UP = 10  # psycopg prepares what it has executed five times, and PostgreSQL keeps a plan after five more
DAYS_ROWS, NEW_ROWS = f"{JOBS:,} jobs in {ROWS_A_DAY} rows", f"{JOBS:,} jobs in as many new rows"


def run(server: Server, *, quick: bool) -> Report:
    """Measure all of it in a tenant of its own, within 30 seconds, or 10 if `quick`."""
    today = jobs(JOBS)
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    earlier = [replace(job, date=yesterday - timedelta(days=age)) for age, job in enumerate(today)]
    report = Report()
    with (
        migrated_database(server, "bench_batches") as url,
        psycopg.connect(url, autocommit=True) as dba,
        psycopg.connect(url) as conn,
    ):

        def jobs_per_second(work: Callable[[], None]) -> float:
            lay_rows(dba)
            start = perf_counter()
            work()
            conn.commit()
            return JOBS / (perf_counter() - start)

        for _ in range(WARM_UP):
            for way in WAYS.values():
                way(conn, today[:10])()
            conn.commit()
        for mix, outcomes in {DAYS_ROWS: today, NEW_ROWS: earlier}.items():
            say(f"jobs a second, {mix}")
            turns = {name: partial(jobs_per_second, way(conn, outcomes)) for name, way in WAYS.items()}
            report.bars[mix] = side_by_side(turns, runs=3 if quick else 15)
    report.blocks["batches"] = table(
        ["jobs a second", *report.bars], [[way, *(bars[way] for bars in report.bars.values())] for way in WAYS]
    )
    batch, _, each = report.bars[DAYS_ROWS].values()
    report.targets.append(Target(f"a batch of {DAYS_ROWS}: jobs a second, of single calls'", batch / each, at_least=20))
    return report


def _batch(conn: Connection, outcomes: list[JobOutcome]) -> Callable[[], None]:
    return partial(update_job_stats_batch, conn, schema=SCHEMA, outcomes=outcomes)


def _pipeline(conn: Connection, outcomes: list[JobOutcome]) -> Callable[[], None]:
    calls = stats_lib_calls(conn, outcomes)

    def work() -> None:
        with conn.pipeline():
            for call in calls:
                call()

    return work


def _one_by_one(conn: Connection, outcomes: list[JobOutcome]) -> Callable[[], None]:
    calls = stats_lib_calls(conn, outcomes)

    def work() -> None:
        for call in calls:
            call()

    return work


WAYS = {
    "`update_job_stats_batch`": _batch,
    "`update_job_stats`, in a pipeline": _pipeline,
    "`update_job_stats`, one by one": _one_by_one,
}
