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
TENANT = "user_1"
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
            print(run(server, *YOYO, "apply").stdout.strip())
            counts = conn.execute("SELECT state, count(*) FROM job_stats.tenant_status GROUP BY state")
            states: dict[str, int] = dict(counts.fetchall())
            show(**states)
            check(states.get("migrated") == len(legacy), "every tenant is migrated")
            check(read_rows(conn, "marketplace_job_stats") == legacy, "every row is as it was, and Vinted's")

            title(f"stats_lib: jobs of {TENANT}, each marketplace on its own")
            record_jobs(conn)
            show_statistics(conn)
            counted = read_rows(conn, "marketplace_job_stats")
            check({name for name in legacy if legacy[name] != counted[name]} == {TENANT}, "no other tenant has changed")

            title("yoyo rollback")
            roll_back(server, conn)
            check(read_rows(conn, "vinted_job_stats") == counted, "every row of Vinted's is as it was")
            check(dump_definitions(server) == definitions, "pg_dump describes every schema as before, byte for byte")


def lay_out(conn: Connection) -> None:
    """Make every shape of tenant in legacy.sql, and 200 clones more with a month's rows each."""
    conn.execute((ROOT / "dev" / "legacy.sql").read_bytes())
    template = sql.Identifier("template_tenant", "vinted_job_stats")
    original = sql.Identifier(TENANT, "vinted_job_stats")
    with conn.transaction():
        for number in range(4, 204):
            schema = sql.Identifier(f"user_{number}")
            table = sql.Identifier(f"user_{number}", "vinted_job_stats")
            conn.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
            conn.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(table, template))
            conn.execute(
                sql.SQL("INSERT INTO {} SELECT * FROM {} WHERE date > current_date - 30").format(table, original)
            )


def record_jobs(conn: Connection) -> None:
    """Count today's jobs of all three marketplaces; number 1 is a like on Vinted and something else on eBay."""
    for marketplace, action_type_id, milliseconds in [
        (Marketplace.VINTED, 1, [310, 350, 290]),
        (Marketplace.EBAY, 1, [1900, 2200, 2000]),
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


def roll_back(server: Server, conn: Connection) -> None:
    """Show that the rollback refuses to mix the marketplaces up again; delete what is not Vinted's; roll back."""
    refused = run(server, *YOYO, "rollback", status=1)
    print(refused.stderr[refused.stderr.index("psycopg.errors.") :].strip())
    conn.execute(
        sql.SQL("DELETE FROM {} WHERE marketplace <> 'vinted'").format(sql.Identifier(TENANT, "marketplace_job_stats"))
    )
    title(f"yoyo rollback, now that {TENANT} has no rows of eBay and Etsy")
    print(run(server, *YOYO, "rollback").stdout.strip())


def read_rows(conn: Connection, table: str) -> Rows:
    """Vinted's rows of every tenant that has such a table, without their marketplace."""
    tenants = conn.execute(
        "SELECT nspname FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace"
        " WHERE relname = %s AND relkind = 'r' AND (nspname = 'template_tenant' OR nspname ~ '^user_')",
        [table],
    ).fetchall()
    rows = sql.SQL("""
        SELECT count(*), md5(string_agg((to_jsonb(t) - 'marketplace')::text, ' ' ORDER BY id))
        FROM {} AS t
        WHERE coalesce(to_jsonb(t) ->> 'marketplace', 'vinted') = 'vinted'
    """)
    return {name: conn.execute(rows.format(sql.Identifier(name, table))).fetchall()[0] for (name,) in tenants}


def dump_definitions(server: Server) -> str:
    """What pg_dump says of all schemas but yoyo's (public) and the toolkit's (job_stats)."""
    others = ["--exclude-schema=public", "--exclude-schema=job_stats"]
    return run(server, "pg_dump", "--schema-only", "--restrict-key=demo", *others).stdout


def title(text: str) -> None:
    """Print what the next step is."""
    print(f"\n== {text}")


def show(**numbers: int) -> None:
    """Print numbers with their names."""
    for name, number in sorted(numbers.items()):
        print(f"   {name:<12} {number:>6}")


def run(server: Server, *command: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run a command on the demo's database; end the demo if it ends with another status."""
    result = subprocess.run(command, cwd=ROOT, env=server.env(DATABASE), capture_output=True, text=True)
    if result.returncode != status:
        sys.exit(f"{result.stdout}{result.stderr}FAILED: {' '.join(command)}: status {result.returncode}, not {status}")
    return result


def check(holds: bool, promise: str) -> None:
    """End the demo if a promise does not hold."""
    if not holds:
        sys.exit(f"   FAILED: {promise}")
    print(f"   ok: {promise}")


if __name__ == "__main__":
    main()
