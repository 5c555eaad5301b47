"""How long each statement of a change holds its locks in one tenant, at 2,000 and 100,000 rows.

    python -m dev.lock_times

Runs on a private server that syncs to disk. Each statement is timed where for_each_tenant runs it, in the tenant's own
transaction, which is then rolled back; the figure is the median of seven.
"""

import os
import platform
from pathlib import Path
from statistics import median
from time import perf_counter

import psycopg
import sqlparse

from dev.server import throwaway_server
from dev.tenant_ddl import tenant_ddl

MIGRATIONS = Path(__file__).resolve().parent.parent / "sql" / "migrations"
SIZES = 2_000, 100_000
REPETITIONS = 7


def statements(file: str) -> list[str]:
    """What a file runs in each tenant."""
    text = sqlparse.format(tenant_ddl((MIGRATIONS / file).read_text("utf-8")), strip_comments=True)
    return [statement.strip() for statement in sqlparse.split(text) if statement.strip()]


def lay_out(conn: psycopg.Connection[tuple[object, ...]], rows: int) -> None:
    """Make a tenant named after its number of rows, with a foreign key to Vinted's action types."""
    conn.execute(
        f"""
        CREATE SCHEMA user_{rows};
        CREATE TABLE user_{rows}.vinted_job_stats (
            id serial PRIMARY KEY,
            action_type_id integer NOT NULL REFERENCES vinted.action_types (id),
            date date NOT NULL,
            total_jobs integer NOT NULL DEFAULT 0,
            success_count integer NOT NULL DEFAULT 0,
            failure_count integer NOT NULL DEFAULT 0,
            avg_duration_ms integer,
            created_at timestamptz NOT NULL DEFAULT now(),
            UNIQUE (action_type_id, date)
        );
        INSERT INTO user_{rows}.vinted_job_stats (action_type_id, date, total_jobs, success_count, avg_duration_ms)
        SELECT i % 20, date '2000-01-01' + i / 20, 10, 10, 500 FROM generate_series(0, {rows - 1}) AS i;
        ANALYZE user_{rows}.vinted_job_stats;
        """
    )


def measure(conn: psycopg.Connection[tuple[object, ...]], rows: int, file: str) -> list[float]:
    """Milliseconds of each statement, and of all together."""
    runs = []
    for _ in range(REPETITIONS):
        times = []
        with conn.transaction(force_rollback=True):
            conn.execute(f"SET LOCAL search_path = user_{rows}")
            for statement in statements(file):
                start = perf_counter()
                conn.execute(statement.encode())
                times.append((perf_counter() - start) * 1000)
        runs.append([*times, sum(times)])
    return [median(column) for column in zip(*runs, strict=True)]


def main() -> None:
    """Print a table per file."""
    with throwaway_server(durable=True) as server, psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute("SET max_parallel_maintenance_workers = 0")  # as tenancy.run_script does
        print(f"PostgreSQL {conn.info.server_version // 10000}, {os.cpu_count()} cores, {platform.platform()}")
        for file in sorted(MIGRATIONS.glob("00[01]*.sql")):
            if not file.stem.endswith(".rollback"):
                conn.execute(file.read_bytes())
        conn.execute("CREATE SCHEMA vinted; CREATE TABLE vinted.action_types (id integer PRIMARY KEY)")
        conn.execute("INSERT INTO vinted.action_types SELECT generate_series(0, 19)")
        for rows in SIZES:
            lay_out(conn, rows)
        for up in ["0020.marketplace-job-stats.sql", "0021.exact-averages.sql"]:
            begin_run = (
                "INSERT INTO tenancy.runs (migration, pid, to_do, already_done) VALUES (%s, pg_backend_pid(), 0, 0)"
            )
            conn.execute(begin_run, [up.removesuffix(".sql")])
            report(conn, up)
            for rows in SIZES:
                with conn.transaction():
                    conn.execute(f"SET LOCAL search_path = user_{rows}")
                    for statement in statements(up):
                        conn.execute(statement.encode())
        for rows in SIZES:
            conn.execute(f"""
                INSERT INTO user_{rows}.marketplace_job_stats (action_type_id, marketplace, date, total_jobs)
                SELECT action_type_id, 'ebay', date, 5 FROM user_{rows}.vinted_job_stats LIMIT {rows // 10}
            """)
        for down in ["0021.exact-averages.rollback.sql", "0020.marketplace-job-stats.rollback.sql"]:
            report(conn, down)


def report(conn: psycopg.Connection[tuple[object, ...]], file: str) -> None:
    """Print the milliseconds of each statement of a file, per size."""
    print(f"\n{file}\n{'ms at ' + ' and '.join(f'{rows:,}' for rows in SIZES) + ' rows':>24}")
    columns = [measure(conn, rows, file) for rows in SIZES]
    for name, *times in zip([*statements(file), "all"], *columns, strict=True):
        print("  ".join(f"{time:10.1f}" for time in times), " ", " ".join(name.split())[:80])


if __name__ == "__main__":
    main()
