"""How long old code waits while its tenants are upgraded.

Four processes count jobs as old code does, an UPDATE each, going round all tenants without a pause, before, while and
after `yoyo apply` runs. The longest that any of them took is told for the time of the upgrade, and for the time before
it, which shows what the machine does by itself. Commits are not waited for: it is locks that are measured.
"""

import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import psycopg

from dev.bench.figures import Figure, Report, Target, say, table
from dev.bench.upgrade import ROOT, YOYO, copy, lay_out
from dev.server import Server

TENANTS = {2_000: 50, 100_000: 5}  # by their rows
WRITERS = 4
SECONDS_BEFORE = 1.5
WARM_UP = 200  # writes, until caches are filled
COUNT = """
    UPDATE user_{}.vinted_job_stats SET total_jobs = total_jobs + 1, success_count = success_count + 1
    WHERE action_type_id = 1 AND date = date '2026-01-01' - {}
"""

Write = tuple[float, float]  # when it ended, and the milliseconds it took


def run(server: Server, *, quick: bool) -> Report:
    """Measure it for small and large tenants."""
    lines: list[list[object]] = []
    report = Report()
    for rows, tenants in TENANTS.items():
        lay_out(server, f"blocking_{rows}", tenants=tenants, rows=rows)
        runs = []
        for number in range(1 if quick else 5):
            database = f"blocking_{rows}_{number}"
            copy(server, f"blocking_{rows}", database)
            runs.append(_upgrade(server, database, tenants))
            say(f"{rows:,} rows: {runs[-1]}")
        before, meanwhile, longest, writes = (Figure(column) for column in zip(*runs, strict=True))
        lines.append([f"{rows:,}", tenants, writes, meanwhile, before, longest])
        if rows == min(TENANTS):
            report.targets = [Target(f"{rows:,} rows a tenant: a writer's longest wait, ms", meanwhile, at_most=50)]
    heads = ["rows a tenant", "tenants", "writes meanwhile", "longest wait, ms", "before, ms", "slowest tenant, ms"]
    report.blocks["blocking"] = table(heads, lines)
    return report


def _upgrade(server: Server, database: str, tenants: int) -> tuple[float, float, float, float]:
    """Return the longest write before and during the upgrade, the longest that a tenant took, and how many writes."""
    with _writers(server.url(database), tenants) as writes:
        sleep(SECONDS_BEFORE)
        start = monotonic()
        applied = subprocess.run(YOYO, cwd=ROOT, env=server.env(database), capture_output=True, text=True)
        end = monotonic()
    if applied.returncode:
        sys.exit(applied.stdout + applied.stderr)
    slowest = max(map(float, re.findall(r"^ *\S+ +\| +\d+ .*\| ([\d.]+) +\| [\d.]+ *$", applied.stdout, re.MULTILINE)))
    meanwhile = [milliseconds for at, milliseconds in writes if start < at < end]
    return max(milliseconds for at, milliseconds in writes if at < start), max(meanwhile), slowest, len(meanwhile)


@contextmanager
def _writers(url: str, tenants: int) -> Iterator[list[Write]]:
    """Write while the block runs; what was written is in the list afterwards."""
    writes: list[Write] = []
    spawn = multiprocessing.get_context("spawn")  # a forked process would keep the server alive if we are killed
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(WRITERS, spawn) as pool:
        stop = Path(folder, "stop")
        futures = [pool.submit(_write, url, tenants, number, stop) for number in range(WRITERS)]
        try:
            while not all(stop.with_name(str(number)).exists() for number in range(WRITERS)):
                sleep(0.01)
            yield writes
        finally:
            stop.touch()
        writes += [write for future in futures for write in future.result()]


def _write(url: str, tenants: int, number: int, stop: Path) -> list[Write]:
    """Write until the file `stop` is there, in rows of our own."""
    writes = []
    with psycopg.connect(url, autocommit=True, options="-c synchronous_commit=off", prepare_threshold=None) as conn:
        tenant = number
        while not stop.exists():
            tenant = tenant % tenants + 1
            start = monotonic()
            updated = conn.execute(COUNT.format(tenant, number + 1).encode()).rowcount
            end = monotonic()
            if updated != 1:
                raise RuntimeError(f"user_{tenant}: {updated} rows were updated")
            writes.append((end, (end - start) * 1000))
            if len(writes) == WARM_UP:
                stop.with_name(str(number)).touch()
    return writes[WARM_UP:]
