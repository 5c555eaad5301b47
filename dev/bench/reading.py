"""How long reading takes, in tenants that are a month, a year and ten years old, by `stats_lib`, psycopg and the ORM.

Each tenant has a row for every marketplace, action type and day. Beside `get_stats` is the plain query through psycopg,
to tuples, and what people write with SQLAlchemy's ORM: the objects of the last days, in the same order; beside
`get_summary`, the sums of the same rows by marketplace. Each call has a transaction of its own, and the ORM's a
session. All must find the same.
"""

import datetime
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import Session

from dev.bench.figures import Report, Target, say, side_by_side, table
from dev.bench.tenant import ACTION_TYPES, SCHEMA, Connection, Row, migrated_database
from dev.server import Server
from stats_lib import JobStats, Marketplace, MarketplaceSummary, get_stats, get_summary

TENANTS = {  # age in days, and the days that are read
    "30 days": (30, [7, 30]),
    "1 year": (365, [7, 30, 365]),
    "10 years": (3650, [7, 30, 365, 3650]),
}
WARM_UP = 10  # calls: psycopg prepares what it has executed five times, and PostgreSQL keeps a plan after five more
OURS, PLAIN, ORM = WAYS = "`stats_lib`", "plain SQL, psycopg", "SQLAlchemy ORM"

DAYS = "date > (now() AT TIME ZONE 'UTC')::date - %(days)s::integer AND date <= (now() AT TIME ZONE 'UTC')::date"
PLAIN_STATS = f"""
    SELECT
        id, action_type_id, marketplace, date, total_jobs, success_count, failure_count, avg_duration_ms, created_at
    FROM {SCHEMA}.marketplace_job_stats WHERE {DAYS} ORDER BY date DESC, marketplace, action_type_id
"""
PLAIN_SUMMARY = f"""
    SELECT
        marketplace, sum(total_jobs), sum(success_count), sum(failure_count),
        round(sum(avg_duration_ms::bigint * total_jobs) / nullif(sum(total_jobs), 0))::bigint
    FROM {SCHEMA}.marketplace_job_stats WHERE {DAYS} GROUP BY marketplace ORDER BY marketplace
"""


def run(server: Server, *, quick: bool) -> Report:
    """Measure all of it in a tenant of its own, within some 1.5 minutes, or 20 seconds if `quick`."""
    runs, seconds = (2, 0.05) if quick else (7, 0.1)
    report = Report()
    lines: list[list[object]] = []
    with migrated_database(server, "bench_reading") as url, psycopg.connect(url) as conn:
        engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
        for tenant, (age, spans) in TENANTS.items():
            lay_days(url, age)
            for days in spans:
                for name, ours, plain, orm, at_most in (
                    ("get_stats", stats, PLAIN_STATS, orm_stats, 2),
                    ("get_summary", summary, PLAIN_SUMMARY, orm_summary, 2 if days > 365 else 1.5),
                ):
                    what = f"`{name}`, {days:,} days of {tenant}"
                    say(f"milliseconds, {what}")
                    reads = (
                        Read(partial(ours, conn, days)),
                        Read(partial(rows, conn, plain, days)),
                        Read(partial(orm, engine, days)),
                    )
                    for _ in range(WARM_UP if days <= 365 else 1):
                        for read in reads:
                            read.milliseconds(0)
                    ways = {way: partial(read.milliseconds, seconds) for way, read in zip(WAYS, reads, strict=True)}
                    figures = side_by_side(ways, runs=runs)
                    assert reads[0].fields() == reads[2].fields(), what
                    assert len(reads[0].found) == len(reads[1].found), what
                    of_plain, of_orm = figures[OURS] / figures[PLAIN], figures[ORM] / figures[OURS]
                    lines.append([what, *figures.values(), of_plain, of_orm])
                    report.targets += [
                        Target(f"{what}: as a multiple of {PLAIN}", of_plain, at_most=at_most),
                        Target(f"{what}: the ORM's time, as a multiple", of_orm, at_least=1),
                    ]
        engine.dispose()
    report.blocks["reading"] = table(
        ["milliseconds", *WAYS, "ours, as a multiple of plain SQL's", "the ORM's, as a multiple of ours"], lines
    )
    return report


def lay_days(url: str, age: int) -> None:
    """Have a row for each marketplace, action type and day, the last being today, as the library leaves them."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"TRUNCATE {SCHEMA}.marketplace_job_stats")
        conn.execute(
            f"""
            INSERT INTO {SCHEMA}.marketplace_job_stats (
                date, action_type_id, marketplace, total_jobs, success_count, failure_count, avg_duration_ms,
                untimed_jobs, total_duration_ms, created_at
            )
            SELECT day, action, marketplace, 10, 9, 1, 100 * action, 0, 1000 * action, day::timestamp AT TIME ZONE 'UTC'
            FROM
                (SELECT (now() AT TIME ZONE 'UTC')::date - ago AS day FROM generate_series(0, %s) AS ago) AS days,
                generate_series(1, %s) AS action,
                unnest(%s::text[]) AS marketplace
            ORDER BY day
            """,
            [age - 1, ACTION_TYPES, list(Marketplace)],
        )
        conn.execute(f"VACUUM ANALYZE {SCHEMA}.marketplace_job_stats")


class Read:
    """One way to read, and what it has found last."""

    def __init__(self, call: Callable[[], Sequence[Any]]) -> None:
        """Read nothing yet."""
        self.call = call
        self.found: Sequence[Any] = []

    def milliseconds(self, seconds: float) -> float:
        """Read for so long, and at least once; return how long one call takes."""
        calls, start = 0, perf_counter()
        while calls == 0 or perf_counter() - start < seconds:
            self.found = self.call()
            calls += 1
        return (perf_counter() - start) * 1000 / calls

    def fields(self) -> list[tuple[object, ...]]:
        """What was found, whatever it is made of."""
        names = [name for name in Row.__annotations__ if hasattr(self.found[0], name)]
        return [tuple(getattr(row, name) for name in names) for row in self.found]


def stats(conn: Connection, days: int) -> list[JobStats]:
    """The library's way to read rows."""
    with conn.transaction():
        return get_stats(conn, schema=SCHEMA, days=days)


def orm_stats(engine: Engine, days: int) -> Sequence[Row]:
    """The ORM's."""
    query = select(Row).where(Row.date > _today() - datetime.timedelta(days))
    with Session(engine) as session:
        return session.scalars(query.order_by(Row.date.desc(), Row.marketplace, Row.action_type_id)).all()


def rows(conn: Connection, query: str, days: int) -> Sequence[Any]:
    """The plain way."""
    with conn.transaction():
        return conn.execute(query.encode(), {"days": days}).fetchall()


def summary(conn: Connection, days: int) -> list[MarketplaceSummary]:
    """The library's way to add rows up."""
    with conn.transaction():
        return get_summary(conn, schema=SCHEMA, days=days)


def orm_summary(engine: Engine, days: int) -> Sequence[Any]:
    """The ORM's."""
    jobs = func.sum(Row.total_jobs)
    average = func.round(func.sum(Row.avg_duration_ms * Row.total_jobs) / func.nullif(jobs, 0))
    query = select(
        Row.marketplace,
        jobs.label("total_jobs"),
        func.sum(Row.success_count).label("success_count"),
        func.sum(Row.failure_count).label("failure_count"),
        average.label("avg_duration_ms"),
    ).where(Row.date > _today() - datetime.timedelta(days))
    with Session(engine) as session:
        return session.execute(query.group_by(Row.marketplace).order_by(Row.marketplace)).all()


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()
