"""How many jobs a second are counted: by `stats_lib`, and by what people write instead.

- A commit each: BEGIN, the call, and COMMIT, which waits for the disk.
- One transaction for all calls of a run: where a call is cheapest, and what is added to it shows most.

A writer is a process. With a commit each all count in the same 60 rows, as many as a tenant has a day; in one
transaction each has 60 of its own, since otherwise it would wait for the end of another's. The tenant is 30 days old.
All rows are at zero when a run begins, and what they say at its end is compared with the calls made: the difference was
lost. A batch is of a thousand jobs.

The plain upsert and the ORM keep a running average, as old code does; `stats_lib` an exact one.
"""

import datetime
import multiprocessing
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle, islice
from time import monotonic
from typing import Any

import psycopg
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from dev.bench.report import Figure, Report, say, side_by_side, table
from dev.bench.tenants import SCHEMA, TABLE, Connection, Row, fill, migrated
from dev.server import Server
from stats_lib import JobOutcome, Marketplace, update_job_stats, update_job_stats_batch

OURS, UPSERT, ORM = "`update_job_stats`", "psycopg, a plain upsert", "SQLAlchemy ORM, read, change, write"
BATCH, ALONE = "`update_job_stats_batch`, 1,000 jobs", "1 writer, one transaction"
ENDS = {"a commit each": True, "one transaction": False}
ACTION_TYPES = 20  # of a writer's; for each marketplace one row a day
WARM_UP = 10  # calls: psycopg prepares what it has executed five times, and PostgreSQL keeps a plan after five more
MILLISECOND = datetime.timedelta(milliseconds=1)
COUNTED = f"SELECT sum(total_jobs)::integer, (SELECT sum(last_value)::integer FROM pg_sequences) FROM {TABLE}"
PLAIN_UPSERT = f"""
    INSERT INTO {TABLE} AS stats
        (action_type_id, marketplace, date, total_jobs, success_count, failure_count, avg_duration_ms)
    VALUES (
        %(action_type_id)s, %(marketplace)s, (now() AT TIME ZONE 'UTC')::date,
        1, %(success)s::integer, (NOT %(success)s)::integer, %(milliseconds)s
    )
    ON CONFLICT (action_type_id, marketplace, date) DO UPDATE SET
        total_jobs = stats.total_jobs + 1,
        success_count = stats.success_count + excluded.success_count,
        failure_count = stats.failure_count + excluded.failure_count,
        avg_duration_ms = (coalesce(stats.avg_duration_ms, 0) * stats.total_jobs + excluded.avg_duration_ms)
            / (stats.total_jobs + 1)
""".encode()

Job = dict[str, Any]
Way = tuple[Callable[[Job], object], Callable[[], None]]  # counts a job; commits


def _jobs(first_action_type: int = 0) -> list[Job]:
    """What a writer counts, again and again: nine of ten succeed, and all take up to five seconds."""
    rng = random.Random(first_action_type)  # noqa: S311
    return [
        {
            "action_type_id": first_action_type + rng.randrange(ACTION_TYPES),
            "marketplace": str(rng.choice(list(Marketplace))),
            "success": rng.random() < 0.9,
            "duration": rng.randrange(5000) * MILLISECOND,
        }
        for _ in range(1000)
    ]


def _library(conn: Connection) -> Way:
    return lambda job: update_job_stats(conn, schema=SCHEMA, **job), conn.commit


def _plain_upsert(conn: Connection) -> Way:
    return lambda job: conn.execute(PLAIN_UPSERT, {**job, "milliseconds": job["duration"] // MILLISECOND}), conn.commit


def _orm(conn: Connection) -> Way:
    session = Session(create_engine("postgresql+psycopg://", creator=lambda: conn))

    def count(job: Job) -> None:
        today = datetime.datetime.now(datetime.UTC).date()
        key = {"action_type_id": job["action_type_id"], "marketplace": job["marketplace"], "date": today}
        row = session.scalars(select(Row).filter_by(**key)).one()
        milliseconds = (row.avg_duration_ms or 0) * row.total_jobs + job["duration"] // MILLISECOND
        row.total_jobs += 1
        row.avg_duration_ms = milliseconds // row.total_jobs
        row.success_count += job["success"]
        row.failure_count += not job["success"]

    return count, session.commit


WAYS = {OURS: _library, UPSERT: _plain_upsert, ORM: _orm}


def run(server: Server, report: Report, *, quick: bool) -> None:
    """Measure all of it in a tenant of its own."""
    runs, seconds = (2, 0.15) if quick else (15, 0.2)
    rates: dict[str, dict[str, Figure]] = {}
    tally = {way: [0, 0, 0] for way in WAYS}
    spawn = multiprocessing.get_context("spawn")  # a forked process would keep the server alive if we are killed
    url = migrated(server, "bench_counting")
    with psycopg.connect(url, autocommit=True) as dba:

        def count(pool: ProcessPoolExecutor, writers: int, commits: bool, way: str) -> float:
            fill(dba, jobs=0, days=30, action_types=ACTION_TYPES * (1 if commits else writers))
            _, ids = dba.execute(COUNTED).fetchall()[0]
            work = partial(_work, url, way, seconds, commits)
            calls, starts, ends = zip(*pool.map(work, range(writers)), strict=True)
            counted, now_ids = dba.execute(COUNTED).fetchall()[0]
            made = sum(calls) + writers * WARM_UP
            tally[way] = [a + b for a, b in zip(tally[way], (made, made - counted, now_ids - ids), strict=True)]
            return float(sum(calls) / (max(ends) - min(starts)))

        for writers in 1, 8:
            with ProcessPoolExecutor(writers, spawn, _meet_at, (spawn.Barrier(writers),)) as pool:
                for end, commits in ENDS.items():
                    setting = f"{writers} writer{'s' * (writers > 1)}, {end}"
                    say(f"calls a second, {setting}")
                    turns = {way: partial(count, pool, writers, commits, way) for way in WAYS}
                    rates[setting] = side_by_side(turns, runs=runs)
        jobs = [JobOutcome(**job) for job in _jobs()]
        rates[ALONE] |= side_by_side({BATCH: partial(_batch, dba, url, jobs)}, runs=runs)
    lines = [[way, *(figures.get(way, "not run") for figures in rates.values())] for way in (*WAYS, BATCH)]
    report.blocks["calls"] = table(["jobs a second", *rates], lines)
    lost = [[way, *(f"{number:,}" for number in numbers)] for way, numbers in tally.items()]
    report.blocks["lost"] = table(["in all", "calls made", "lost", "ids taken"], lost)
    for setting, figures in rates.items():
        for other, at_least in {UPSERT: 1 / 1.15, ORM: 3}.items():
            what = f"{OURS}, {setting}: calls a second, as a multiple of {other}"
            report.promise(what, figures[OURS] / figures[other], at_least=at_least)
    report.promise(f"{OURS}: calls lost", Figure([tally[OURS][1]]), at_most=0)
    report.promise(f"{OURS}: ids taken", Figure([tally[OURS][2]]), at_most=0)
    ratio = rates[ALONE][BATCH] / rates[ALONE][OURS]
    report.promise("a batch of 1,000 jobs in 60 rows: jobs a second, of single calls'", ratio, at_least=10)


def _batch(dba: Connection, url: str, outcomes: list[JobOutcome]) -> float:
    """Count them at once; return how many jobs a second that is, COMMIT included."""
    fill(dba, jobs=0, days=30, action_types=ACTION_TYPES)
    with psycopg.connect(url) as conn:
        for counted in outcomes[:WARM_UP], outcomes:
            start = monotonic()
            update_job_stats_batch(conn, schema=SCHEMA, outcomes=counted)
            conn.commit()
        return len(outcomes) / (monotonic() - start)


# In a writer's process

_barrier: Any = None  # where the writers meet before they start


def _meet_at(barrier: Any) -> None:
    global _barrier  # what a pool's process is given once
    _barrier = barrier


def _work(url: str, way: str, seconds: float, commits: bool, number: int) -> tuple[int, float, float]:
    """Return how many calls were made after the first few, when these began, and when the last ended."""
    with psycopg.connect(url) as conn:
        count, commit = WAYS[way](conn)
        jobs = cycle(_jobs(0 if commits else number * ACTION_TYPES))
        for job in islice(jobs, WARM_UP):
            count(job)
            commit()
        _barrier.wait(timeout=60)
        made, start = 0, monotonic()
        while monotonic() < start + seconds:
            count(next(jobs))
            if commits:
                commit()
            made += 1
        commit()
        return made, start, monotonic()
