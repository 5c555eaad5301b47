"""How long reading takes, in tenants that are a month, a year and ten years old, by `stats_lib`, psycopg and the ORM.

Each tenant has a row for every marketplace, action type and day. Beside `get_stats` is the plain query through psycopg,
to tuples, and what people write with SQLAlchemy's ORM: the objects of the last days, in the same order; beside
`get_summary`, the sums of the same rows by marketplace. Each call has a transaction of its own, and the ORM's a
session. All must find the same.
"""

import datetime
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import psycopg
from sqlalchemy import BigInteger, Engine, Select, cast, create_engine, func, select
from sqlalchemy.orm import Session

from dev.bench.report import Figure, Report, say, seconds, side_by_side, table
from dev.bench.tenants import SCHEMA, TABLE, Connection, Row, fill, migrated
from dev.server import Server
from stats_lib import get_stats, get_summary

TENANTS = {30: "30 days", 365: "1 year", 3650: "10 years"}  # by their age in days
SPANS = 7, 30, 365, 3650  # days that are read
OURS, PLAIN, ORM = WAYS = "`stats_lib`", "plain SQL, psycopg", "SQLAlchemy ORM"
HEADS = ["milliseconds", *WAYS, "ours, as a multiple of plain SQL's", "the ORM's, as a multiple of ours"]
DAYS = "date > (now() AT TIME ZONE 'UTC')::date - %(days)s::integer AND date <= (now() AT TIME ZONE 'UTC')::date"
PLAIN_STATS = f"""
    SELECT total_jobs, id, action_type_id, marketplace, date, success_count, failure_count, avg_duration_ms, created_at
    FROM {TABLE} WHERE {DAYS} ORDER BY date DESC, marketplace, action_type_id
"""
PLAIN_SUMMARY = f"""
    SELECT sum(total_jobs), marketplace, sum(success_count), sum(failure_count),
        round(sum(avg_duration_ms::bigint * total_jobs) / nullif(sum(total_jobs), 0))::bigint
    FROM {TABLE} WHERE {DAYS} GROUP BY marketplace ORDER BY marketplace
"""
JOBS, MS = func.sum(Row.total_jobs), func.sum(cast(Row.avg_duration_ms, BigInteger) * Row.total_jobs)
ORM_STATS = select(Row).order_by(Row.date.desc(), Row.marketplace, Row.action_type_id)
ORM_SUMMARY = (
    select(
        Row.marketplace,
        JOBS.label("total_jobs"),
        func.sum(Row.success_count).label("success_count"),
        func.sum(Row.failure_count).label("failure_count"),
        func.round(MS / func.nullif(JOBS, 0)).label("avg_duration_ms"),
    )
    .group_by(Row.marketplace)
    .order_by(Row.marketplace)
)
READS = (get_stats, PLAIN_STATS, ORM_STATS), (get_summary, PLAIN_SUMMARY, ORM_SUMMARY)


def run(server: Server, report: Report, *, quick: bool) -> None:
    """Measure all of it in a tenant of its own."""
    runs, least = (1, 0.06) if quick else (9, 0.3)
    lines: list[list[object]] = []
    of_plain, of_orm = defaultdict[str, list[Figure]](list), list[Figure]()
    url = migrated(server, "bench_reading")
    for age, tenant in TENANTS.items():
        # A new engine and connection: statements prepared for a table of another size may keep being planned anew.
        engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
        with psycopg.connect(url, autocommit=True) as conn:
            fill(conn, jobs=10, days=age, action_types=20)
            for days, (read, plain, orm) in product([days for days in SPANS if days <= age], READS):
                what = f"`{read.__name__}`, {days:,} days of {tenant}"
                say(f"seconds, {what}")
                ours, plainly = partial(_library, conn, read, days), partial(_plain, conn, plain, days)
                calls = ours, plainly, partial(_orm, engine, orm, days)
                found = [row[0] for row in plainly()]
                assert all(found == [row.total_jobs for row in call()] for call in calls if call is not plainly), what
                for call in calls * (10 if days <= 365 else 0):  # until psycopg and PostgreSQL have prepared it
                    call()
                turns = {way: partial(seconds, call, least) for way, call in zip(WAYS, calls, strict=True)}
                figures = side_by_side(turns, runs=runs)
                ratios = figures[OURS] / figures[PLAIN], figures[ORM] / figures[OURS]
                lines.append([what, *(figure / 0.001 for figure in figures.values()), *ratios])
                of_plain[f"`{read.__name__}`{', ten years' * (days > 365)}"].append(ratios[0])
                of_orm.append(ratios[1])
        engine.dispose()
    report.blocks["reading"] = table(HEADS, lines)
    for kind, ratio in of_plain.items():
        at_most = 1.5 if kind == "`get_summary`" else 2
        report.promise(f"{kind}: as a multiple of {PLAIN}, at worst", max(ratio, key=median), at_most=at_most)
    report.promise("reading: the ORM's time, as a multiple of ours, at worst", min(of_orm, key=median), at_least=1)


def _library(conn: Connection, read: Callable[..., Sequence[Any]], days: int) -> Sequence[Any]:
    with conn.transaction():
        return read(conn, schema=SCHEMA, days=days)


def _plain(conn: Connection, query: str, days: int) -> Sequence[Any]:
    with conn.transaction():
        return conn.execute(query.encode(), {"days": days}).fetchall()


def _orm(engine: Engine, query: Select[Any], days: int) -> Sequence[Any]:
    today = datetime.datetime.now(datetime.UTC).date()
    with Session(engine) as session:
        found = session.execute(query.where(Row.date > today - datetime.timedelta(days), Row.date <= today))
        return found.scalars().all() if query is ORM_STATS else found.all()
