"""From legacy tenants to statistics per marketplace and all the way back, on a server of its own; checked at each step.

Ends with status 1 as soon as something is not as promised.
"""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from dev.server import Server, throwaway_server
from stats_lib import Marketplace, get_stats, update_job_stats

ROOT = Path(__file__).resolve().parent.parent
DATABASE = "platform"
TENANT = "user_1"  # a clone: no foreign key, which other action types than Vinted's would make NOT VALID
ARCHIVE = "marketplace_job_stats_archive"  # of a legacy tenant that has had jobs of eBay or Etsy
LIKE = 1  # on Vinted; on eBay the same number is something else
TODAYS_LIKES = f"WHERE action_type_id = {LIKE} AND date = (now() AT TIME ZONE interval '0')::date"
YOYO = [sys.executable, "-m", "yoyo"]

Connection = psycopg.Connection[tuple[Any, ...]]
Rows = dict[str, tuple[int, str]]  # of each tenant: how many, and a hash of what they say


def main() -> None:
    """Run all steps."""
    with throwaway_server() as server:
        run(server, "createdb", DATABASE)
        with psycopg.connect(server.url(DATABASE), autocommit=True) as conn:
            lay_out(conn)
            definitions, legacy = dump_definitions(server), read_rows(conn, "vinted_job_stats")
            title("Legacy: one vinted_job_stats per tenant, which says Vinted and means any marketplace")
            show(tenants=len(legacy), rows=sum(count for count, _ in legacy.values()))

            title("yoyo apply")
            print(run(server, *YOYO, "apply"))
            counts = conn.execute("SELECT state, count(*) FROM job_stats.tenant_status GROUP BY state")
            states: dict[str, int] = dict(counts.fetchall())
            show(**states)
            check(states.get("migrated") == len(legacy), "every tenant is migrated")
            check(read_rows(conn, "marketplace_job_stats") == legacy, "every row is as it was, and Vinted's")

            title(f"stats_lib: jobs of {TENANT}, each marketplace on its own; old code counts on through a view")
            record_jobs(conn)
            check(old_code_counts(conn) == 1, "old code has counted a job through the view vinted_job_stats")
            show_statistics(conn)
            today = jobs_today(conn)

            title("yoyo rollback --revision 0020: legacy rows again, which mix the marketplaces up")
            print(run(server, *YOYO, "rollback", "--revision", "0020"))
            check_legacy(server, conn, definitions, legacy)
            mixed = conn.execute(f"SELECT total_jobs FROM {TENANT}.vinted_job_stats {TODAYS_LIKES}").fetchall()
            check(mixed == [(today["vinted", LIKE] + today["ebay", LIKE],)], "Vinted's and eBay's jobs are in one row")
            check(old_code_counts(conn) == 1, "old code has counted one more")

            title("yoyo apply: every marketplace has its own back, and Vinted what old code has counted meanwhile")
            print(run(server, *YOYO, "apply"))
            show_statistics(conn)
            today["vinted", LIKE] += 1
            check(jobs_today(conn) == today, "every job is counted where it ran")

            title("yoyo rollback --all: the way we came")
            print(run(server, *YOYO, "rollback", "--all"))
            check_legacy(server, conn, definitions, legacy)


def lay_out(conn: Connection) -> None:
    """Make every shape of tenant in legacy.sql, and 100 clones more with a month's rows each."""
    conn.execute((ROOT / "dev" / "legacy.sql").read_bytes())
    template = sql.Identifier("template_tenant", "vinted_job_stats")
    original = sql.Identifier(TENANT, "vinted_job_stats")
    with conn.transaction():
        for number in range(4, 104):
            schema = sql.Identifier(f"user_{number}")
            table = sql.Identifier(f"user_{number}", "vinted_job_stats")
            conn.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
            conn.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(table, template))
            conn.execute(
                sql.SQL("INSERT INTO {} SELECT * FROM {} WHERE date > current_date - 30").format(table, original)
            )


def record_jobs(conn: Connection) -> None:
    """Count today's jobs of all three marketplaces."""
    for marketplace, action_type_id, milliseconds in [
        (Marketplace.VINTED, LIKE, [310, 350, 290]),
        (Marketplace.EBAY, LIKE, [1900, 2200, 2000]),
        (Marketplace.EBAY, 40, [800]),
        (Marketplace.ETSY, 70, [1100, 1300]),
    ]:
        for duration in milliseconds:
            update_job_stats(
                conn,
                schema=TENANT,
                action_type_id=action_type_id,
                marketplace=marketplace,
                success=duration < 2000,
                duration=timedelta(milliseconds=duration),
            )


def show_statistics(conn: Connection) -> None:
    """Print today's rows of each marketplace."""
    line = "   {:<12} {:>6} {:>6} {:>10} {:>8}".format
    print(line("marketplace", "action", "jobs", "succeeded", "avg ms"))
    for marketplace in Marketplace:
        for row in get_stats(conn, schema=TENANT, marketplace=marketplace, days=1):
            average = "" if row.avg_duration_ms is None else row.avg_duration_ms
            print(line(row.marketplace, row.action_type_id, row.total_jobs, f"{row.success_rate:.0%}", average))


def old_code_counts(conn: Connection) -> int:
    """Count one more job as code from before the migrations does; return how many rows that changed."""
    count = "SET total_jobs = total_jobs + 1, success_count = success_count + 1"
    return conn.execute(f"UPDATE {TENANT}.vinted_job_stats {count} {TODAYS_LIKES}").rowcount


def jobs_today(conn: Connection) -> dict[tuple[str, int], int]:
    """How many jobs each marketplace and action type has had today."""
    return {(row.marketplace, row.action_type_id): row.total_jobs for row in get_stats(conn, schema=TENANT, days=1)}


def check_legacy(server: Server, conn: Connection, definitions: str, legacy: Rows) -> None:
    """Check that all is as it was, but for what has been counted, and the archive of its split."""
    check(dump_definitions(server) == definitions, "pg_dump describes every schema as before, byte for byte,")
    archives = conn.execute("SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = %s", [ARCHIVE])
    check(archives.fetchall() == [(TENANT,)], f"but for {TENANT}.{ARCHIVE}, from which the split comes back")
    counted = read_rows(conn, "vinted_job_stats")
    changed = {name for name in legacy if legacy[name] != counted[name]}
    check(changed == {TENANT}, "every row of the other tenants is as it was")


def read_rows(conn: Connection, table: str) -> Rows:
    """Vinted's rows of every tenant that has such a table, in their legacy columns."""
    tenants = conn.execute(
        "SELECT nspname FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace"
        " WHERE relname = %s AND relkind = 'r' AND (nspname = 'template_tenant' OR nspname ~ '^user_')",
        [table],
    ).fetchall()
    rows = sql.SQL("""
        SELECT count(*), md5(string_agg((to_jsonb(t) - %s::text[])::text, ' ' ORDER BY id))
        FROM {} AS t
        WHERE coalesce(to_jsonb(t) ->> 'marketplace', 'vinted') = 'vinted'
    """)
    new = [["marketplace", "untimed_jobs", "total_duration_ms"]]
    return {name: conn.execute(rows.format(sql.Identifier(name, table)), new).fetchall()[0] for (name,) in tenants}


def dump_definitions(server: Server) -> str:
    """What pg_dump says of all schemas but yoyo's (public) and ours, without archives."""
    others = [f"--exclude-schema={name}" for name in ("public", "tenancy", "job_stats")]
    others.append(f"--exclude-table=*.{ARCHIVE}")
    return run(server, "pg_dump", "--schema-only", "--restrict-key=demo", *others)


def title(text: str) -> None:
    """Print what the next step is."""
    print(f"\n== {text}")


def show(**numbers: int) -> None:
    """Print numbers with their names."""
    for name, number in sorted(numbers.items()):
        print(f"   {name:<12} {number:>6}")


def run(server: Server, *command: str) -> str:
    """Run a command on the demo's database and return what it printed; end the demo if it fails."""
    result = subprocess.run(command, cwd=ROOT, env=server.env(DATABASE), capture_output=True, encoding="utf-8")
    if result.returncode:
        sys.exit(f"{result.stdout}{result.stderr}FAILED: {' '.join(command)}: status {result.returncode}")
    return result.stdout.strip("\n")


def check(holds: bool, promise: str) -> None:
    """End the demo if a promise does not hold."""
    if not holds:
        sys.exit(f"   FAILED: {promise}")
    print(f"   ok: {promise}")


if __name__ == "__main__":
    main()
