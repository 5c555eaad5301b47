"""How long the upgrade of many tenants takes: ours, and other ways to run the same DDL in each schema.

Each run has a fresh copy of a database of legacy tenants, clones of the template with 30 rows each. All ways must end
with the same definition of a tenant, to the byte of pg_dump, or the benchmark ends.

- psql: a generated script, a transaction per tenant, with everything known beforehand: the floor. Like ours, it turns
  synchronous_commit off: what a crash undoes, the next run does.
- Alembic: its cookbook's recipe for a schema per tenant. Of 10,000 tenants it does 1,000, and its time is multiplied.
- yoyo once per schema, for ten of them: `yoyo apply` with search_path set, and a table of marks in each schema.

While a way runs, its server process is looked at ten times a second: the most memory that it has for itself, and the
most locks that it holds. Then the sums of all tenants are read twice on a connection, whose server process opens each
table the first time, and knows it the second.
"""

import datetime
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
import psycopg

from dev.bench.report import Figure, Report, say, seconds, side_by_side, table
from dev.bench.tenants import YOYO, command, copy, lay_out
from dev.server import Server
from stats_lib import get_platform_summary

OURS, FLOOR, ALEMBIC = PROMISED = "`yoyo apply`, ours", "psql, a generated script", "Alembic, looping over schemas"
PER_SCHEMA = "yoyo once per schema"
IN_TENANTS = "of which in tenants, not yoyo, the toolkit, verification"
AGAIN, SWEEP = "`yoyo apply` again, nothing to do", "both migrations again by psql, nothing to do"
FIRST, SECOND = "`get_platform_summary`, the first time", "`get_platform_summary`, again"
SECONDS = OURS, IN_TENANTS, FLOOR, ALEMBIC, PER_SCHEMA, AGAIN, SWEEP, FIRST, SECOND
WAL, JOURNAL = "WAL that the upgrade writes", "journal"
BEFORE, ADDED = "catalogs before", "catalogs, what the upgrade adds"
MIGRATING, READING = "server memory, at most", "server memory while all sums are read"
KILOBYTES = WAL, BEFORE, ADDED, JOURNAL, MIGRATING, READING
PSQL = ["psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
FILES = [f"--file=sql/migrations/{name}.sql" for name in ("0020.marketplace-job-stats", "0021.exact-averages")]
SEQUENCE = "nextval('template_tenant.marketplace"  # ours renames what all share
DUMP = ["pg_dump", "--schema-only", "--restrict-key=bench", "--table=user_1.*_job_stats"]
RUN_ALEMBIC = [sys.executable, "-m", "alembic", "--config=dev/bench/alembic.ini", "upgrade", "head"]
SIZES = """
    SELECT
        pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float / 1000,
        (SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace
            AND relkind = 'r' AND NOT relisshared)::float / 1000,
        coalesce(pg_total_relation_size(to_regclass('tenancy.journal')), 0)::float / 1000
"""
BACKENDS = """
    SELECT pid, (SELECT count(*) FROM pg_locks AS l WHERE l.pid = a.pid)
    FROM pg_stat_activity AS a WHERE datname = %s
"""
# What 0020 and 0021 come down to in a clone of the template, whose names are known. PostgreSQL 18 names NOT NULL, too.
NOT_NULL = "id", "action_type_id", "date", "total_jobs", "success_count", "failure_count", "created_at"
RENAME = "ALTER TABLE {0} RENAME CONSTRAINT vinted_job_stats_{1}_not_null TO {0}_{1}_not_null;"
CHANGES = [
    """
    ALTER TABLE vinted_job_stats RENAME TO marketplace_job_stats;
    ALTER TABLE marketplace_job_stats ADD COLUMN marketplace varchar(20) NOT NULL DEFAULT 'vinted'
        CONSTRAINT ck_marketplace_job_stats_marketplace CHECK (marketplace::text IN ('vinted', 'ebay', 'etsy'));
    ALTER TABLE marketplace_job_stats DROP CONSTRAINT vinted_job_stats_action_type_id_date_key;
    ALTER TABLE marketplace_job_stats ADD CONSTRAINT uq_marketplace_job_stats_action_marketplace_date
        UNIQUE (action_type_id, marketplace, date);
    CREATE INDEX ix_marketplace_job_stats_marketplace_created_at ON marketplace_job_stats (marketplace, created_at);
    ALTER INDEX vinted_job_stats_pkey RENAME TO marketplace_job_stats_pkey;
    CREATE VIEW vinted_job_stats WITH (security_invoker = true) AS
        SELECT id, action_type_id, date, total_jobs, success_count, failure_count, avg_duration_ms, created_at
        FROM marketplace_job_stats WHERE marketplace::text = 'vinted' WITH CASCADED CHECK OPTION;
    """
    + "".join(RENAME.format("marketplace_job_stats", column) for column in NOT_NULL),
    """
    ALTER TABLE marketplace_job_stats ADD COLUMN untimed_jobs integer, ADD COLUMN total_duration_ms bigint;
    CREATE INDEX ix_stats_lib_date_marketplace ON marketplace_job_stats (date, marketplace);
    """,
]
Notes = defaultdict[str, list[float]]  # run by run: seconds, kilobytes, locks


def run(server: Server, report: Report, *, quick: bool) -> None:
    """Measure the ways: at 10,000 tenants once, and only those of which something is promised there."""
    found: dict[int, Notes] = {}
    definitions: set[str] = set()
    for tenants, runs in ((100, 1), (300, 1)) if quick else ((100, 3), (1_000, 2), (10_000, 1)):
        say(f"laying {tenants:,} tenants out, then seconds")
        lay_out(server, f"legacy_{tenants}", tenants=tenants)
        ways = PROMISED if tenants > 1_000 else (*PROMISED, PER_SCHEMA)
        notes = found[tenants] = defaultdict(list)
        turns = {way: partial(_run, server, tenants, way, notes, definitions) for way in ways}
        notes |= {way: list(figure) for way, figure in side_by_side(turns, runs=runs).items()}
    for name, unit, rows in ("upgrade", "seconds", SECONDS), ("growth", "kB a tenant", KILOBYTES):
        heads = [unit, *(f"{tenants:,} tenants" for tenants in found)]
        each = {tenants: tenants if rows is KILOBYTES else 1 for tenants in found}
        cell = {(row, n): Figure(found[n][row]) / each[n] for row in rows for n in found if row in found[n]}
        report.blocks[name] = table(heads, [[row, *(cell.get((row, n), "not run") for n in found)] for row in rows])
    *_, fewer, most = found
    at = f"{most:,} tenants"
    last = {name: Figure(values) for name, values in found[most].items()}
    ours, floor = last[OURS], last[FLOOR]
    slower = ours / most / (median(found[fewer][OURS]) / fewer)
    report.promise(f"{at}: our time in them, as a multiple of psql's", last[IN_TENANTS] / floor, at_most=1.15)
    report.promise(f"{at}: all of `yoyo apply`, as a multiple of psql's", ours / floor, at_most=1.15)
    report.promise(f"{at}: Alembic's time, as a multiple of ours", last[ALEMBIC] / ours, at_least=4)
    report.promise(f"{at}: time a tenant, as a multiple of that at {fewer:,}", slower, at_most=1.3)
    report.promise(f"{at}: server memory a tenant, at most, kB", last[MIGRATING] / most, at_most=10)
    report.promise(f"{at}: locks at once", last[f"{MIGRATING}: locks"], at_most=100)
    report.promise(f"{at}: `yoyo apply` again, as a share of the first", last[AGAIN] / ours, at_most=0.02)
    report.promise(f"{at}: both migrations by psql again, as a share", last[SWEEP] / ours, at_most=0.02)
    report.promise(f"{at}: {FIRST}, seconds", last[FIRST], at_most=10)
    report.promise(f"{at}: {SECOND}, seconds", last[SECOND], at_most=3)
    report.promise(f"{at}: `get_platform_summary`, locks at once", last[f"{READING}: locks"], at_most=1000)


def _run(server: Server, tenants: int, way: str, notes: Notes, definitions: set[str]) -> float:
    """Upgrade a copy in this way and return the seconds."""
    database = copy(server, f"legacy_{tenants}")
    done = min(tenants, {ALEMBIC: 1_000, PER_SCHEMA: 10}.get(way, tenants))
    if way == OURS:
        taken = _run_ours(server, tenants, database, notes)
    else:
        with _watched(server, database, notes, f"{way}: memory"):  # since ours is, which takes some time
            taken = seconds(partial(_run_other, server, database, way, range(1, done + 1)))
    if tenants == 100:
        definition = command(server, database, *DUMP).replace("nextval('template_tenant.vinted", SEQUENCE)
        if definitions and definition not in definitions:
            sys.exit(f"{definitions}\n{definition}\nFAILED: {way}: the second definition is not the first")
        definitions.add(definition)
    return taken * tenants / done


def _run_other(server: Server, database: str, way: str, numbers: range) -> None:
    call = partial(command, server, database)
    if way == ALEMBIC:
        call(*RUN_ALEMBIC)
    elif way == FLOOR:
        path = "SET LOCAL synchronous_commit = off; SET LOCAL search_path = user_"
        call(*PSQL, stdin="\n".join(f"BEGIN; {path}{n}; {change} COMMIT;" for change in CHANGES for n in numbers))
    else:
        with TemporaryDirectory() as folder:
            Path(folder, "0020.sql").write_text("".join(CHANGES))
            for n in numbers:
                yoyo = [*YOYO, "--no-config-file", "--database=postgresql+psycopg://", folder]
                call(*yoyo, PGOPTIONS=f"-c search_path=user_{n}")


def _run_ours(server: Server, tenants: int, database: str, notes: Notes) -> float:
    """The deploy path; and what it has left, how long it takes with nothing left to do, and how long all sums take."""
    with psycopg.connect(server.url(database), autocommit=True) as dba:
        before = dba.execute(SIZES).fetchall()[0]
        with _watched(server, database, notes, MIGRATING):
            taken = seconds(partial(command, server, database, *YOYO))
        for name, then, now in zip((WAL, ADDED, JOURNAL), before, dba.execute(SIZES).fetchall()[0], strict=True):
            notes[name].append(now - then)
        notes[BEFORE].append(before[1])
        runs = "SELECT sum(extract(epoch FROM finished_at - started_at))::float FROM tenancy.runs WHERE to_do > 0"
        notes[IN_TENANTS].append(dba.execute(runs).fetchall()[0][0])
        for name, again in (AGAIN, YOYO), (SWEEP, [*PSQL, *FILES]):
            notes[name].append(seconds(partial(command, server, database, *again)))
        dba.execute("VACUUM ANALYZE")
    with _watched(server, database, notes, READING), psycopg.connect(server.url(database)) as conn:
        read = partial(get_platform_summary, conn, until=datetime.date(2025, 12, 31))
        for name in FIRST, SECOND:
            notes[name].append(seconds(read))
        assert max(row.tenants for row in read()) == tenants
    return taken


@contextmanager
def _watched(server: Server, database: str, notes: Notes, what: str) -> Iterator[None]:
    """Note the most kilobytes and locks that a server process of the database has meanwhile."""
    kilobytes, locks, ended = [0.0], [0], threading.Event()

    def watch() -> None:
        with psycopg.connect(server.url(), autocommit=True) as conn:
            while not ended.wait(0.1):
                for pid, held in conn.execute(BACKENDS, [database]).fetchall():
                    with suppress(psutil.NoSuchProcess):
                        memory = psutil.Process(pid).memory_info()  # shared: with others, or with files
                        kilobytes.append((memory.rss - memory.shared) / 1000)
                        locks.append(held)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        notes[what].append(max(kilobytes))
        notes[f"{what}: locks"].append(max(locks))
