"""How long old code waits while its tenants are upgraded.

Four clients of pgbench count jobs as old code does, an UPDATE each in a tenant at random, without a pause, before and
while `yoyo apply` runs. The longest that any UPDATE took is told for the time of the upgrade, and for the time before
it, which shows what the machine does by itself. Commits are not waited for: it is locks that are measured.
"""

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep, time

import psycopg

from dev.bench.report import Figure, Report, say, table
from dev.bench.tenants import YOYO, command, copy, lay_out
from dev.server import Server

TENANTS = {2_000: 50, 100_000: 5}  # by their rows
SECONDS_BEFORE, WARM_UP = 2.0, 0.5  # of which caches are filled
COUNT = r"""
\set tenant random(1, {})
UPDATE user_:tenant.vinted_job_stats SET total_jobs = total_jobs + 1, success_count = success_count + 1
WHERE action_type_id = 1 AND date = date '2025-12-31' - :client_id;
"""
HEADS = ["rows a tenant", "tenants", "writes meanwhile", "longest wait, ms", "before, ms", "slowest tenant, ms"]


def run(server: Server, report: Report, *, quick: bool) -> None:
    """Measure it for small and large tenants."""
    lines: list[list[object]] = []
    for rows, tenants in TENANTS.items():
        lay_out(server, f"blocking_{rows}", tenants=tenants, rows=rows)
        runs = []
        for _ in range(1 if quick else 3):
            runs.append(_upgrade(server, copy(server, f"blocking_{rows}"), tenants))
            say(f"{rows:,} rows: {runs[-1]}")
        writes, meanwhile, before, slowest = map(Figure, zip(*runs, strict=True))
        lines.append([f"{rows:,}", tenants, writes, meanwhile, before, slowest])
        if rows == min(TENANTS):
            report.promise(f"{rows:,} rows a tenant: a writer's longest wait, ms", meanwhile, at_most=50)
    report.blocks["blocking"] = table(HEADS, lines)


def _upgrade(server: Server, database: str, tenants: int) -> tuple[float, float, float, float]:
    """Return the writes during the upgrade, the longest, the longest before, and the longest that a tenant took."""
    with TemporaryDirectory() as folder:
        Path(folder, "count.sql").write_text(COUNT.format(tenants))
        pgbench = ["pgbench", "--client=4", "--jobs=4", "--no-vacuum", "--time=600", "--log", "--file=count.sql"]
        env = server.env(database) | {"PGOPTIONS": "-c synchronous_commit=off"}
        with subprocess.Popen(["/usr/bin/env", *pgbench], cwd=folder, env=env, stdout=subprocess.DEVNULL) as writers:
            sleep(SECONDS_BEFORE)
            start = time()
            command(server, database, *YOYO)
            end = time()
            sleep(1)  # pgbench writes its logs by the block, of which the last is lost
            assert writers.poll() is None
            writers.terminate()
        logs = [log.read_text().split("\n")[:-1] for log in Path(folder).glob("pgbench_log.*")]
    # A line has the client, a number, microseconds, the script, and when it ended, in seconds and microseconds.
    lines = [line.split() for log in logs for line in log]
    writes = sorted((int(line[4]) + int(line[5]) / 1e6, int(line[2]) / 1000) for line in lines)
    before = [milliseconds for at, milliseconds in writes if writes[0][0] + WARM_UP < at < start]
    meanwhile = [milliseconds for at, milliseconds in writes if start < at < end]
    with psycopg.connect(server.url(database)) as conn:
        ((slowest,),) = conn.execute("SELECT max(milliseconds)::float FROM tenancy.journal").fetchall()
    return len(meanwhile), max(meanwhile), max(before), slowest
