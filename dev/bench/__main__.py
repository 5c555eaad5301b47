"""Measures what docs/benchmarks.md says, on a server of its own that syncs to disk, and writes it there.

python -m dev.bench                        # all of it, and the page anew
python -m dev.bench --quick                # the same figures from shorter and fewer runs, printed only
python -m dev.bench --quick upgrade        # one section: upgrade, blocking, counting or reading
"""

import os
import platform
import re
import signal
import sys
from importlib.metadata import version

import psutil
import psycopg

from dev.bench import blocking, counting, reading, upgrade
from dev.bench.report import Report, say, table
from dev.bench.tenants import ROOT
from dev.server import Server, throwaway_server

PAGE = ROOT / "docs" / "benchmarks.md"
SECTIONS = {"upgrade": upgrade, "blocking": blocking, "counting": counting, "reading": reading}
SETTINGS = """
    SELECT string_agg(name || ' ' || current_setting(name), ', ' ORDER BY name), current_setting('server_version')
    FROM pg_settings WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes', 'wal_level', 'shared_buffers',
        'max_wal_size', 'max_connections', 'max_locks_per_transaction')
"""


def main(quick: bool, sections: list[str]) -> None:
    """Run the sections; write the page if they are all, and not quick."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    report = Report()
    with throwaway_server(durable=True) as server:
        report.blocks["machine"] = _machine(server)
        for name in sections or SECTIONS:
            say(f"== {name}")
            SECTIONS[name].run(server, report, quick=quick)
    report.blocks["targets"] = table(["what", "found", "promised", ""], report.promises)
    print(*report.blocks.values(), sep="\n\n")
    if not quick and not sections:
        PAGE.write_text(filled(PAGE.read_text("utf-8"), report.blocks), "utf-8")


def filled(page: str, blocks: dict[str, str]) -> str:
    """The page with each block in its place; KeyError if a block has none, or a place no block."""
    places = re.findall(r"<!-- (\w+) -->\n", page)
    if set(places) != set(blocks):
        raise KeyError(set(places) ^ set(blocks))
    return re.sub(
        r"(?s)<!-- (\w+) -->\n.*?<!-- / -->", lambda m: f"<!-- {m[1]} -->\n\n{blocks[m[1]]}\n\n<!-- / -->", page
    )


def _machine(server: Server) -> str:
    with psycopg.connect(server.url()) as conn:
        settings, released = conn.execute(SETTINGS).fetchall()[0]
    memory, system = psutil.virtual_memory().total / 2**30, f"{platform.system()} {platform.release().split('-')[0]}"
    cores = f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB of memory"
    packages = [f"{name} {version(name)}" for name in ("psycopg", "yoyo-migrations", "alembic", "SQLAlchemy")]
    lines = f"{cores}, {system}, Python {platform.python_version()}", f"PostgreSQL {released}: {settings}"
    return "\n".join(f"- {line}" for line in (*lines, ", ".join(packages)))


if __name__ == "__main__":
    main("--quick" in sys.argv, [word for word in sys.argv[1:] if word != "--quick"])
