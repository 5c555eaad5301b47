"""How long the sums of all tenants take, how many locks, and how much memory of the server process that reads them.

The tenants are clones of the migrated template, a row each for every marketplace, two action types and five days, owned
by whoever reads. The first time, the process opens each table; again, it knows them. Memory is what it keeps.
"""

from time import perf_counter

import psutil
import psycopg

from dev.bench.figures import Figure, Report, Target, say, table
from dev.bench.tenant import Connection, migrated_database
from dev.server import Server
from stats_lib import get_platform_summary

LAY_OUT = """
    DO $$ BEGIN
        FOR n IN 1..{tenants} LOOP
            EXECUTE format(
                'CREATE SCHEMA user_many_%1$s;
                CREATE TABLE user_many_%1$s.marketplace_job_stats
                    (LIKE template_tenant.marketplace_job_stats INCLUDING ALL);
                INSERT INTO user_many_%1$s.marketplace_job_stats (
                    action_type_id, marketplace, date, total_jobs, success_count, failure_count, avg_duration_ms,
                    untimed_jobs, total_duration_ms
                )
                SELECT action, marketplace, (now() AT TIME ZONE ''UTC'')::date - ago, 10, 9, 1, 100, 0, 1000
                FROM
                    generate_series(1, 2) AS action,
                    unnest(ARRAY[''ebay'', ''etsy'', ''vinted'']) AS marketplace,
                    generate_series(0, 4) AS ago', n
            );
            IF n % 100 = 0 THEN COMMIT; END IF;
        END LOOP;
    END $$
"""


def run(server: Server, *, quick: bool) -> Report:
    """Measure 10,000 tenants three times, within 3 minutes; or 1,000 once if `quick`."""
    tenants = 1_000 if quick else 10_000
    with migrated_database(server, "bench_platform") as url, psycopg.connect(url, autocommit=True) as dba:
        dba.execute(LAY_OUT.format(tenants=tenants).encode())
        dba.execute("REASSIGN OWNED BY legacy_owner TO CURRENT_USER")
        dba.execute("VACUUM ANALYZE")
        runs = [_read(url, tenants) for _ in range(1 if quick else 3)]
    first, again, locks, kilobytes = (Figure(column) for column in zip(*runs, strict=True))
    report = Report()
    heads = ["tenants", "the first time, seconds", "again, seconds", "locks at once, at most", "kB of memory a tenant"]
    report.blocks["platform"] = table(heads, [[f"{tenants:,}", first, again, locks, kilobytes]])
    report.targets = [
        Target(f"`get_platform_summary`, {tenants:,} tenants, the first time: seconds", first, at_most=10),
        Target(f"`get_platform_summary`, {tenants:,} tenants, again: seconds", again, at_most=3),
        Target(f"`get_platform_summary`, {tenants:,} tenants: locks at once", locks, at_most=1000),
    ]
    return report


def _read(url: str, tenants: int) -> tuple[float, float, float, float]:
    with psycopg.connect(url) as conn, psycopg.connect(url, autocommit=True) as other:
        process = psutil.Process(conn.info.backend_pid)
        before = process.memory_full_info().uss
        seconds = []
        for _ in range(2):
            start = perf_counter()
            (ebay, *_) = get_platform_summary(conn)
            seconds.append(perf_counter() - start)
            assert ebay.tenants == tenants, ebay
        kilobytes = (process.memory_full_info().uss - before) / 1024 / tenants
        locks = _locks_at_most(conn, other)
        say(f"{seconds[0]:.2f} s, {seconds[1]:.2f} s, {locks} locks, {kilobytes:.1f} kB")
        return seconds[0], seconds[1], locks, kilobytes


def _locks_at_most(conn: Connection, other: Connection) -> int:
    """Look at the locks, again and again, while it is read once more."""
    statement = b"SELECT count(*) FROM pg_locks WHERE pid = %s"
    most = 0
    conn.pgconn.send_query(b"SELECT * FROM job_stats.platform_summary()")
    conn.pgconn.flush()
    while conn.pgconn.is_busy():
        most = max(most, other.execute(statement, [conn.info.backend_pid]).fetchall()[0][0])
        conn.pgconn.consume_input()
    while conn.pgconn.get_result():
        pass
    return most
