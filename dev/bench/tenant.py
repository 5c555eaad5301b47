"""The tenant that writing and reading are measured in, and what people would write to reach it with SQLAlchemy."""

import datetime
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from dev.server import Server
from stats_lib import Marketplace

ROOT = Path(__file__).resolve().parent.parent.parent
SCHEMA = "user_1"
ACTION_TYPES = 20
ROWS_A_DAY = 3 * ACTION_TYPES  # one for each marketplace and action type

Connection = psycopg.Connection[tuple[Any, ...]]


class Base(DeclarativeBase):
    """What SQLAlchemy wants models to have in common."""


class Row(Base):
    """The model of a tenant's `marketplace_job_stats`, as code that does not know `stats_lib` has it."""

    __tablename__ = "marketplace_job_stats"
    __table_args__ = {"schema": SCHEMA}  # noqa: RUF012  SQLAlchemy's idiom

    id: Mapped[int] = mapped_column(primary_key=True)
    action_type_id: Mapped[int]
    marketplace: Mapped[str]
    date: Mapped[datetime.date]
    total_jobs: Mapped[int]
    success_count: Mapped[int]
    failure_count: Mapped[int]
    avg_duration_ms: Mapped[int | None]
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


@contextmanager
def migrated_database(server: Server, name: str) -> Iterator[str]:
    """Make a database of dev/legacy.sql, migrated by yoyo; give its URL, and drop it on the way out."""
    database = sql.Identifier(name)
    with psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(database))
        try:
            with psycopg.connect(server.url(name)) as own:
                own.execute((ROOT / "dev" / "legacy.sql").read_bytes())
            yoyo = [sys.executable, "-m", "yoyo", "apply"]
            subprocess.run(yoyo, check=True, cwd=ROOT, env=server.env(name), stdout=subprocess.DEVNULL)
            yield server.url(name)
        finally:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))


def lay_rows(conn: Connection, writers: int = 1) -> None:
    """Have today's rows of each writer, and no others, at zero, as the library leaves them."""
    conn.execute(f"TRUNCATE {SCHEMA}.marketplace_job_stats")
    conn.execute(
        f"INSERT INTO {SCHEMA}.marketplace_job_stats"
        " (action_type_id, marketplace, date, untimed_jobs, total_duration_ms)"
        " SELECT action, marketplace, (now() AT TIME ZONE 'UTC')::date, 0, 0"
        " FROM generate_series(0, %s) AS action, unnest(%s::text[]) AS marketplace",
        [writers * ACTION_TYPES - 1, list(Marketplace)],
    )
    conn.execute(f"VACUUM ANALYZE {SCHEMA}.marketplace_job_stats")


def jobs_counted(conn: Connection) -> int:
    """What the rows say."""
    return int(conn.execute(f"SELECT sum(total_jobs) FROM {SCHEMA}.marketplace_job_stats").fetchall()[0][0])
