"""The legacy tenants that are measured, and how they are laid out, copied and migrated."""

import datetime
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from dev.server import Server

ROOT = Path(__file__).resolve().parent.parent.parent
YOYO = [sys.executable, "-m", "yoyo", "apply", "--batch"]
SCHEMA, TABLE = "user_1", "user_1.marketplace_job_stats"
LEGACY = """
    CREATE SCHEMA vinted;
    CREATE TABLE vinted.action_types (id integer PRIMARY KEY);
    CREATE SCHEMA template_tenant;
    CREATE TABLE template_tenant.vinted_job_stats (
        id serial PRIMARY KEY, action_type_id integer NOT NULL, date date NOT NULL,
        total_jobs integer NOT NULL DEFAULT 0, success_count integer NOT NULL DEFAULT 0,
        failure_count integer NOT NULL DEFAULT 0, avg_duration_ms integer,
        created_at timestamptz NOT NULL DEFAULT now(), UNIQUE (action_type_id, date)
    );
"""
TENANT = """
    CREATE SCHEMA user_{number};
    CREATE TABLE user_{number}.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);
    INSERT INTO user_{number}.vinted_job_stats (action_type_id, date, total_jobs, success_count)
    SELECT a, date '2026-01-01' - d, 10, 10 FROM generate_series(1, 10) AS a, generate_series(1, {rows} / 10) AS d;
"""

FILL = f"""
    INSERT INTO {TABLE} (
        date, action_type_id, marketplace, total_jobs, success_count, avg_duration_ms, untimed_jobs, total_duration_ms
    )
    SELECT (now() AT TIME ZONE 'UTC')::date - ago, action, name, jobs, jobs, 50 * jobs / nullif(jobs, 0), 0, 50 * jobs
    FROM (SELECT %s AS jobs) AS given, generate_series(0, %s - 1) AS ago, generate_series(0, %s - 1) AS action,
        unnest('{{vinted, ebay, etsy}}'::text[]) AS name
    ORDER BY ago DESC
"""

NUMBERS = count(1)

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
    created_at: Mapped[datetime.datetime]


def lay_out(server: Server, database: str, *, tenants: int, rows: int = 30) -> None:
    """Make a database of so many legacy tenants, clones of the template with so many rows each."""
    with psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {database}".encode())
    with psycopg.connect(server.url(database), autocommit=True) as conn:
        conn.execute(LEGACY)
        for first in range(1, tenants + 1, 100):
            numbers = range(first, min(first + 100, tenants + 1))
            conn.execute("".join(TENANT.format(number=number, rows=rows) for number in numbers).encode())


def copy(server: Server, database: str) -> str:
    """Make a copy of a database, with nothing left to be written to disk, and return its name.

    No copy is dropped: files are made more slowly where others were just deleted.
    """
    name = f"{database}_{next(NUMBERS)}"
    with psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE {database} STRATEGY file_copy".encode())
        conn.execute("CHECKPOINT")
    return name


def command(server: Server, database: str, *words: str, stdin: str = "", **env: str) -> str:
    """Run a command on a database and return what it printed; end the benchmark if it fails."""
    env = server.env(database) | env
    result = subprocess.run(words, cwd=ROOT, env=env, input=stdin, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{result.stdout}{result.stderr[-5000:]}FAILED: {' '.join(words)}")
    return result.stdout


def migrated(server: Server, database: str) -> str:
    """Make a database of one tenant, migrated by yoyo, and return its URL."""
    lay_out(server, database, tenants=1)
    command(server, database, *YOYO)
    return server.url(database)


def fill(conn: Connection, *, jobs: int, days: int, action_types: int) -> None:
    """Have a row of so many jobs for each day up to today, action type and marketplace, as the library leaves it."""
    conn.execute(f"TRUNCATE {TABLE}")
    conn.execute(FILL.encode(), [jobs, days, action_types])
    conn.execute(f"VACUUM ANALYZE {TABLE}")
