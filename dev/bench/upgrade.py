"""How long the upgrade of many tenants takes: ours, and other ways to run the same DDL in each schema.

Each run has a fresh copy of a database of legacy tenants, clones of the template with 30 rows each. All ways must end
with the same definition of a tenant, to the byte of pg_dump, or the benchmark ends.

- psql: a generated script, a transaction per tenant, with everything known beforehand: the floor.
- Alembic: its cookbook's recipe for a schema per tenant, in a loop over the schemas, in one process.
- yoyo once per schema: `yoyo apply` with search_path set, and a table of marks in each schema. Run for ten of them,
  and multiplied.
- One transaction for all: the same script without the transaction per tenant.

Ours and psql's turn synchronous_commit off: what a crash undoes, the next run does. While a way runs, its server
process is looked at ten times a second: the most memory that it has for itself, and the most locks that it holds.
"""

import math
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import perf_counter

import psutil
import psycopg

from dev.bench.figures import Figure, Report, Target, say, side_by_side, table
from dev.server import Server

ROOT = Path(__file__).resolve().parent.parent.parent
OURS, FLOOR, ALL_AT_ONCE = "`yoyo apply`, ours", "psql, a generated script", "psql, one transaction for all"
ALEMBIC, PER_SCHEMA = "Alembic, looping over schemas", "yoyo once per schema"
SIZES = WAL, CATALOGS, JOURNAL, DATABASE = "WAL", "catalogs", "journal", "database"
BEFORE = "catalogs before"
MIGRATING, VERIFYING = f"{OURS}: kilobytes", f"{OURS}: kilobytes, verifying"
IN_TENANTS, DIES_AT = "of which in tenants, not yoyo, the toolkit, verification", "dies at"
AGAIN, SWEEP = "`yoyo apply` again, nothing to do", "both migrations again by psql, nothing to do"
WAYS = [OURS, FLOOR, ALEMBIC, PER_SCHEMA, ALL_AT_ONCE]
SCHEMAS = 10  # that yoyo is run for: as a process for each, it takes as long for each, however many there are
YOYO = [sys.executable, "-m", "yoyo", "apply", "--batch"]
PSQL = ["psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
CHANGES = [f"--file=sql/migrations/{name}.sql" for name in ("0020.marketplace-job-stats", "0021.exact-averages")]

LEGACY = """
    CREATE SCHEMA vinted;
    CREATE TABLE vinted.action_types (id integer PRIMARY KEY);
    CREATE SCHEMA template_tenant;
    CREATE TABLE template_tenant.vinted_job_stats (
        id serial PRIMARY KEY,
        action_type_id integer NOT NULL,
        date date NOT NULL,
        total_jobs integer NOT NULL DEFAULT 0,
        success_count integer NOT NULL DEFAULT 0,
        failure_count integer NOT NULL DEFAULT 0,
        avg_duration_ms integer,
        created_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (action_type_id, date)
    );
"""
TENANT = """
    CREATE SCHEMA user_{number};
    CREATE TABLE user_{number}.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);
    INSERT INTO user_{number}.vinted_job_stats (action_type_id, date, total_jobs, success_count)
    SELECT a, date '2026-01-01' - d, 10, 10 FROM generate_series(1, 10) AS a, generate_series(1, {rows} / 10) AS d;
"""
# What 0020 and 0021 come down to in a clone of the template, whose names are known.
CHANGE_0002 = """
    ALTER TABLE vinted_job_stats RENAME TO marketplace_job_stats;
    ALTER TABLE marketplace_job_stats ADD COLUMN marketplace varchar(20) NOT NULL DEFAULT 'vinted'
        CONSTRAINT ck_marketplace_job_stats_marketplace CHECK (marketplace::text IN ('vinted', 'ebay', 'etsy'));
    ALTER TABLE marketplace_job_stats DROP CONSTRAINT vinted_job_stats_action_type_id_date_key;
    ALTER TABLE marketplace_job_stats ADD CONSTRAINT uq_marketplace_job_stats_action_marketplace_date
        UNIQUE (action_type_id, marketplace, date);
    CREATE INDEX ix_marketplace_job_stats_marketplace_created_at ON marketplace_job_stats (marketplace, created_at);
    ALTER INDEX vinted_job_stats_pkey RENAME TO marketplace_job_stats_pkey;
    {renames}
    CREATE VIEW vinted_job_stats WITH (security_invoker = true) AS
        SELECT id, action_type_id, date, total_jobs, success_count, failure_count, avg_duration_ms, created_at
        FROM marketplace_job_stats WHERE marketplace::text = 'vinted' WITH CASCADED CHECK OPTION;
"""
CHANGE_0003 = "ALTER TABLE marketplace_job_stats ADD COLUMN untimed_jobs integer, ADD COLUMN total_duration_ms bigint;"


def run(server: Server, *, quick: bool) -> Report:
    """Measure every way at every number of tenants: with `quick` once, and fewer."""
    runs = 1 if quick else 3
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for tenants in (100, 300) if quick else (100, 1_000, 10_000):
            bench = found[tenants] = _Bench(server, tenants, Path(folder))
            say(f"seconds for {tenants:,} tenants")
            turns = {way: partial(bench.run, way) for way in WAYS}
            for way, seconds in side_by_side(turns, runs=runs).items():
                bench.notes[way] = list(seconds.runs)
    return _report(found)


def lay_out(server: Server, database: str, *, tenants: int, rows: int) -> None:
    """Make a database of so many legacy tenants with so many rows each."""
    with psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {database}")
    with psycopg.connect(server.url(database), autocommit=True) as conn:
        conn.execute(LEGACY)
        for first in range(1, tenants + 1, 100):
            numbers = range(first, min(first + 100, tenants + 1))
            conn.execute("".join(TENANT.format(number=number, rows=rows) for number in numbers).encode())


def copy(server: Server, database: str, name: str) -> None:
    """Make a copy of a database, with nothing left to be written to disk."""
    with psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE {database} STRATEGY file_copy")
        conn.execute("CHECKPOINT")


class _Bench:
    """So many tenants, and what was measured with them, run by run: seconds if the name is a way's."""

    def __init__(self, server: Server, tenants: int, folder: Path) -> None:
        """Lay them out."""
        self.server, self.tenants, self.folder = server, tenants, folder
        self.notes: dict[str, list[float]] = {}
        self.copies = 0
        self.definition = ""  # of a tenant in the end, as pg_dump has it
        self.legacy = f"legacy_{tenants}"
        say(f"laying {tenants:,} tenants out")
        lay_out(server, self.legacy, tenants=tenants, rows=30)
        with psycopg.connect(server.url(self.legacy)) as conn:
            named = conn.execute(
                "SELECT conname FROM pg_constraint WHERE conrelid = 'user_1.vinted_job_stats'::regclass"
                " AND contype = 'n'"  # since PostgreSQL 18
            ).fetchall()
        renames = " ".join(
            f"ALTER TABLE marketplace_job_stats RENAME CONSTRAINT {name} TO {name.replace('vinted', 'marketplace', 1)};"
            for (name,) in named
        )
        self.changes = [" ".join(ddl.format(renames=renames).split()) for ddl in (CHANGE_0002, CHANGE_0003)]

    def run(self, way: str) -> float:
        """Upgrade a copy in this way and return the seconds; nan if it dies."""
        self.copies += 1  # none is dropped before the end: files are made more slowly where others were just deleted
        database = f"bench_{self.tenants}_{self.copies}"
        copy(self.server, self.legacy, database)
        go = {
            OURS: self.ours,
            FLOOR: self.floor,
            ALEMBIC: self.alembic,
            PER_SCHEMA: self.per_schema,
            ALL_AT_ONCE: self.all_at_once,
        }
        before = self.kilobytes(database)
        with self.watched(database, way):
            start = perf_counter()
            done = go[way](database)
            seconds = perf_counter() - start
        for what, after in self.kilobytes(database).items():
            self.note(f"{way}: {what}", after - before[what])
        if way == OURS:
            self.note(BEFORE, before[CATALOGS])
            self.run_again(database)
        if done and self.tenants == 100:
            self.compare(database)
        if way == PER_SCHEMA:
            seconds *= self.tenants / SCHEMAS
        return seconds if done else math.nan

    def ours(self, database: str) -> bool:
        """The deploy path."""
        printed = self.command(*YOYO, database=database).stdout
        in_tenants = re.findall(r"seconds *\n[-+]+\n.* ([\d.]+) *\n", printed)
        self.note(IN_TENANTS, sum(map(float, in_tenants)))
        return True

    def run_again(self, database: str) -> None:
        """Repeat our own way, with nothing left to do."""
        for name, command in (AGAIN, YOYO), (SWEEP, [*PSQL, *CHANGES]):
            start = perf_counter()
            self.command(*command, database=database)
            self.note(name, perf_counter() - start)

    def floor(self, database: str) -> bool:
        """psql, a transaction per tenant."""
        script = "".join(
            f"BEGIN; SET LOCAL synchronous_commit = off; SET LOCAL search_path = user_{number}; {change} COMMIT;\n"
            for change in self.changes
            for number in range(1, self.tenants + 1)
        )
        self.command(*PSQL, stdin=script, database=database)
        return True

    def all_at_once(self, database: str) -> bool:
        """psql, one transaction."""
        lines = [f"SET search_path = user_{number}; {' '.join(self.changes)}" for number in range(1, self.tenants + 1)]
        script = "BEGIN; " + "\n".join(lines) + " COMMIT;\n"
        result = self.command(*PSQL, "--file=-", stdin=script, database=database, may_fail=True)  # which counts lines
        if result.returncode:
            (line,) = re.findall(r":(\d+): ERROR: +out of shared memory", result.stderr)
            self.note(DIES_AT, int(line))
        return result.returncode == 0

    def alembic(self, database: str) -> bool:
        """Alembic."""
        alembic = [sys.executable, "-m", "alembic", "--config=dev/bench/alembic.ini", "upgrade", "head"]
        self.command(*alembic, database=database)
        return True

    def per_schema(self, database: str) -> bool:
        """yoyo, a process for each of some schemas."""
        (self.folder / "0020.sql").write_text("\n".join(self.changes))
        command = [*YOYO, "--no-config-file", "--database=postgresql+psycopg://", str(self.folder)]
        for number in range(1, SCHEMAS + 1):
            self.command(*command, database=database, PGOPTIONS=f"-c search_path=user_{number}")
        return True

    def command(
        self, *command: str, database: str, stdin: str = "", may_fail: bool = False, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a database; end the benchmark if it fails and may not."""
        where = self.server.env(database) | env
        result = subprocess.run(command, cwd=ROOT, env=where, input=stdin, capture_output=True, text=True)
        if result.returncode and not may_fail:
            sys.exit(f"{result.stdout}{result.stderr[-5000:]}FAILED: {' '.join(command)}")
        return result

    def kilobytes(self, database: str) -> dict[str, float]:
        """What the server has written so far, and what the database holds."""
        sizes = """
            SELECT
                pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0'),
                (SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace
                    AND relkind = 'r' AND NOT relisshared),
                coalesce(pg_total_relation_size(to_regclass('tenancy.journal')), 0),
                pg_database_size(current_database())
        """
        with psycopg.connect(self.server.url(database)) as conn:
            row = conn.execute(sizes.encode()).fetchall()[0]
        return {what: float(size) / 1000 for what, size in zip(SIZES, row, strict=True)}

    def compare(self, database: str) -> None:
        """End the benchmark unless a tenant is defined as the first way has left it."""
        dump = ["pg_dump", "--schema-only", "--restrict-key=bench", "--table=user_1.*_job_stats"]
        definition = self.command(*dump, database=database).stdout
        definition = definition.replace("template_tenant.vinted", "template_tenant.marketplace")  # the shared sequence
        self.definition = self.definition or definition
        if definition != self.definition:
            sys.exit(f"{self.definition}\n{definition}\nFAILED: {database}: the second definition is not the first")

    @contextmanager
    def watched(self, database: str, way: str) -> Iterator[None]:
        """Note the most kilobytes and locks that a server process of the database has meanwhile."""
        kilobytes, verifying, locks, ended = [0.0], [0.0], [0], threading.Event()
        backends = """
            SELECT pid, (SELECT count(*) FROM pg_locks AS l WHERE l.pid = a.pid), query LIKE '%%verify()%%'
            FROM pg_stat_activity AS a WHERE datname = %s
        """

        def watch() -> None:
            with psycopg.connect(self.server.url(), autocommit=True) as conn:
                while not ended.wait(0.1):
                    found = []
                    with suppress(psycopg.errors.OutOfMemory):  # one transaction for all leaves no lock for us either
                        found = conn.execute(backends, [database]).fetchall()
                    for pid, held, verifies in found:
                        locks.append(held)
                        with suppress(psutil.NoSuchProcess):
                            memory = psutil.Process(pid).memory_info()  # shared: with others, or with files
                            (verifying if verifies else kilobytes).append((memory.rss - memory.shared) / 1000)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            self.note(f"{way}: kilobytes", max(kilobytes))
            self.note(f"{way}: kilobytes, verifying", max(verifying))
            self.note(f"{way}: locks", max(locks))

    def note(self, name: str, value: float) -> None:
        """Keep what a run has shown."""
        self.notes.setdefault(name, []).append(value)

    def figure(self, name: str) -> Figure:
        """What was noted under a name."""
        return Figure(tuple(self.notes[name]))

    def cell(self, way: str) -> object:
        """Its seconds, for the table."""
        if way == ALL_AT_ONCE and DIES_AT in self.notes:
            return f"dies at tenant {self.figure(DIES_AT)}"
        return self.figure(way)


def _report(found: dict[int, _Bench]) -> Report:
    *_, fewer, most = found.values()
    rows = [OURS, IN_TENANTS, FLOOR, ALEMBIC, PER_SCHEMA, ALL_AT_ONCE, AGAIN, SWEEP]
    report = Report()
    report.blocks["upgrade"] = table(
        ["seconds", *(f"{tenants:,} tenants" for tenants in found)],
        [[way, *(bench.cell(way) for bench in found.values())] for way in rows],
    )
    report.blocks["each"] = table(
        [f"at {most.tenants:,} tenants", "ms a tenant", "kB of server memory a tenant", "locks at once"],
        [
            [
                way,
                most.figure(way).scaled(1000 / most.tenants),
                most.figure(f"{way}: kilobytes").scaled(1 / most.tenants),
                most.figure(f"{way}: locks"),
            ]
            for way in (OURS, FLOOR, ALEMBIC)
        ],
    )
    growth = {
        "WAL that the upgrade writes": f"{OURS}: {WAL}",
        "catalogs before": BEFORE,
        "catalogs, what the upgrade adds": f"{OURS}: {CATALOGS}",
        "journal": f"{OURS}: {JOURNAL}",
        "whole database, what the upgrade adds": f"{OURS}: {DATABASE}",
        "server memory while it migrates": MIGRATING,
        "server memory while it verifies": VERIFYING,
    }
    report.blocks["growth"] = table(
        ["kB a tenant", *(f"{tenants:,} tenants" for tenants in found)],
        [
            [what, *(bench.figure(name).scaled(1 / bench.tenants) for bench in found.values())]
            for what, name in growth.items()
        ],
    )
    report.lines = {
        way: {tenants: bench.figure(way) for tenants, bench in found.items() if not math.isnan(bench.notes[way][0])}
        for way in WAYS
    }
    ours, at = most.figure(OURS), f"{most.tenants:,} tenants"
    slower = (ours / fewer.figure(OURS)).scaled(fewer.tenants / most.tenants)
    report.targets = [
        Target(f"{at}: our time in them, as a multiple of psql's", most.figure(IN_TENANTS) / most.figure(FLOOR), 1.15),
        Target(f"{at}: all of `yoyo apply`, as a multiple of psql's", ours / most.figure(FLOOR), 1.15),
        Target(f"{at}: Alembic's time, as a multiple of ours", most.figure(ALEMBIC) / ours, at_least=4),
        Target(f"{at}: time a tenant, as a multiple of that at {fewer.tenants:,}", slower, 1.3),
        *(
            Target(f"{at}: server memory a tenant, {when}, kB", most.figure(name).scaled(1 / most.tenants), 10)
            for when, name in {"migrating": MIGRATING, "verifying": VERIFYING}.items()
        ),
        Target(f"{at}: `yoyo apply` again, as a share of the first", most.figure(AGAIN) / ours, 1 / 50),
        Target(f"{at}: both migrations by psql again, as a share", most.figure(SWEEP) / ours, 1 / 50),
    ]
    return report
