"""The ways of counting a job that dev/bench/writing.py compares, as they are usually written.

The plain upsert and SQLAlchemy keep a running average, as old code does; `stats_lib`'s statement, which the bare one
and pgbench's are too, an exact one.
"""

import datetime
import random
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import psycopg
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from dev.bench.tenant import ACTION_TYPES, SCHEMA, Connection, Row
from dev.server import Server
from stats_lib import JobOutcome, Marketplace, _queries, update_job_stats

Calls = list[Callable[[], object]]

PLAIN_UPSERT = f"""
    INSERT INTO {SCHEMA}.marketplace_job_stats AS stats
        (action_type_id, marketplace, date, total_jobs, success_count, failure_count, avg_duration_ms)
    VALUES (
        %(action_type_id)s, %(marketplace)s, (now() AT TIME ZONE 'UTC')::date,
        1, %(success)s::integer, (NOT %(success)s)::integer, %(duration_ms)s
    )
    ON CONFLICT (action_type_id, marketplace, date) DO UPDATE SET
        total_jobs = stats.total_jobs + 1,
        success_count = stats.success_count + excluded.success_count,
        failure_count = stats.failure_count + excluded.failure_count,
        avg_duration_ms = (coalesce(stats.avg_duration_ms, 0) * stats.total_jobs + excluded.avg_duration_ms)
            / (stats.total_jobs + 1)
"""

PGBENCH_CALL = r"""
\set action_type_id random(0, {last}) + :client_id * {apart}
\set marketplace random(1, 3)
\set tenth random(1, 10)
\set duration_ms random(0, 5000)
{statement};
"""
PGBENCH_PARAMETERS = {  # of the statement's, in their order
    "$1": ":action_type_id",
    "$2": "(ARRAY['vinted', 'ebay', 'etsy'])[:marketplace]",
    "$3": "NULL",
    "$4": "1",
    "$5": "(:tenth > 1)",
    "$6": "1",
    "$7": ":duration_ms",
}


def jobs(count: int, *, writer: int = 0, apart: bool = False) -> list[JobOutcome]:
    """What a writer counts: nine of ten succeed, and all take up to five seconds. `apart`: in rows of its own."""
    rng = random.Random(writer)  # noqa: S311
    first = writer * ACTION_TYPES if apart else 0
    return [
        JobOutcome(
            action_type_id=first + rng.randrange(ACTION_TYPES),
            marketplace=rng.choice(list(Marketplace)),
            success=rng.random() < 0.9,
            duration=datetime.timedelta(milliseconds=rng.randrange(5000)),
        )
        for _ in range(count)
    ]


def milliseconds(job: JobOutcome) -> int:
    """How long a job took."""
    assert job.duration is not None
    return job.duration // datetime.timedelta(milliseconds=1)


# The ways. Each makes its calls, one a job, for a connection or a session.


def stats_lib_calls(conn: Connection, outcomes: list[JobOutcome]) -> Calls:
    """The library."""
    return [partial(update_job_stats, conn, schema=SCHEMA, **asdict(job)) for job in outcomes]


def bare_calls(conn: Connection, outcomes: list[JobOutcome]) -> Calls:
    """The library's statement and parameters, made beforehand, in psycopg's hands."""
    made = [_queries.update_job_stats(schema=SCHEMA, **asdict(job)) for job in outcomes]
    statement, cursor = made[0][0], psycopg.RawCursor(conn)
    return [partial(cursor.execute, statement, params) for _, _, params in made]


def plain_upsert_calls(conn: Connection, outcomes: list[JobOutcome]) -> Calls:
    """The usual upsert in psycopg's hands; it takes an id from the sequence at each call."""
    return [
        partial(
            conn.execute,
            PLAIN_UPSERT.encode(),
            {
                "action_type_id": job.action_type_id,
                "marketplace": str(job.marketplace),
                "success": job.success,
                "duration_ms": milliseconds(job),
            },
        )
        for job in outcomes
    ]


def orm_calls(session: Session, outcomes: list[JobOutcome]) -> Calls:
    """The ORM: read the row, change it, write it back."""

    def count(job: JobOutcome) -> None:
        today = datetime.datetime.now(datetime.UTC).date()
        key = {"action_type_id": job.action_type_id, "marketplace": str(job.marketplace), "date": today}
        row = session.scalars(select(Row).filter_by(**key)).one_or_none()
        if row is None:
            row = Row(**key, total_jobs=0, success_count=0, failure_count=0, avg_duration_ms=0)
            session.add(row)
        row.avg_duration_ms = ((row.avg_duration_ms or 0) * row.total_jobs + milliseconds(job)) // (row.total_jobs + 1)
        row.total_jobs += 1
        row.success_count += job.success
        row.failure_count += not job.success

    return [partial(count, job) for job in outcomes]


def orm_upsert_calls(session: Session, outcomes: list[JobOutcome]) -> Calls:
    """SQLAlchemy's `on_conflict_do_update`."""

    def count(job: JobOutcome) -> None:
        statement = insert(Row).values(
            action_type_id=job.action_type_id,
            marketplace=str(job.marketplace),
            date=datetime.datetime.now(datetime.UTC).date(),
            total_jobs=1,
            success_count=int(job.success),
            failure_count=int(not job.success),
            avg_duration_ms=milliseconds(job),
        )
        added = statement.excluded
        session.execute(
            statement.on_conflict_do_update(
                index_elements=[Row.action_type_id, Row.marketplace, Row.date],
                set_={
                    "total_jobs": Row.total_jobs + 1,
                    "success_count": Row.success_count + added.success_count,
                    "failure_count": Row.failure_count + added.failure_count,
                    "avg_duration_ms": (func.coalesce(Row.avg_duration_ms, 0) * Row.total_jobs + added.avg_duration_ms)
                    // (Row.total_jobs + 1),
                },
            )
        )

    return [partial(count, job) for job in outcomes]


PSYCOPG = {
    "`update_job_stats`": stats_lib_calls,
    "psycopg, the bare statement": bare_calls,
    "psycopg, a plain upsert": plain_upsert_calls,
}
SQLALCHEMY = {"SQLAlchemy, `on_conflict_do_update`": orm_upsert_calls, "SQLAlchemy ORM, read, change, write": orm_calls}


def pgbench(server: Server, database: str, *, calls: int, writers: int, commits: bool) -> tuple[int, float]:
    """Have pgbench make about so many calls, prepared; return how many, and the seconds.

    A script cannot leave its transaction open. So without `commits` each call is one, without BEGIN and COMMIT, whose
    end is not waited for.
    """
    statement, _, _ = _queries.update_job_stats(schema=SCHEMA, **asdict(jobs(1)[0]))
    assert isinstance(statement, bytes)
    call = PGBENCH_CALL.format(
        last=ACTION_TYPES - 1,
        apart=0 if commits else ACTION_TYPES,
        statement=re.sub(r"\$\d", lambda found: PGBENCH_PARAMETERS[found[0]], statement.decode()),
    )
    command: list[str | Path] = [server.bin_dir / "pgbench", "--no-vacuum", "--protocol=prepared", "--file=-", database]
    each = max(1, calls // writers)
    result = subprocess.run(
        [*command, f"--client={writers}", f"--jobs={min(writers, 2)}", f"--transactions={each}"],
        env=server.env() | ({} if commits else {"PGOPTIONS": "-c synchronous_commit=off"}),
        input=f"BEGIN;\n{call}COMMIT;\n" if commits else call,
        capture_output=True,
        text=True,
        check=True,
    )
    (rate,) = re.findall(r"^tps = ([\d.]+)", result.stdout, re.MULTILINE)
    return each * writers, each * writers / float(rate)
