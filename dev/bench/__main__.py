"""Measures what docs/benchmarks.md says, on a server of its own that syncs to disk, and writes it there.

python -m dev.bench                        # all of it, and the page and its plots anew
python -m dev.bench --quick                # the same figures from shorter and fewer runs, printed only
python -m dev.bench --quick upgrade        # one section: upgrade, blocking, writing, batches, reading or platform
"""

import argparse
import os
import platform
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import psutil
import psycopg

from dev.bench import all_tenants, batches, blocking, plot, reading, repeat, upgrade, writing
from dev.bench.figures import Report, say, table
from dev.server import Server, throwaway_server

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "benchmarks.md"
SECTIONS = {
    "upgrade": upgrade,
    "blocking": blocking,
    "writing": writing,
    "batches": batches,
    "reading": reading,
    "platform": all_tenants,
}
SETTINGS = [
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "shared_buffers",
    "max_wal_size",
    "max_connections",
    "max_locks_per_transaction",
]
PACKAGES = ["psycopg", "yoyo-migrations", "alembic", "SQLAlchemy"]


def main() -> None:
    """Run the sections that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m dev.bench", description="Measure what docs/benchmarks.md says.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs; print, and write nothing")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; all if none is given")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(unknown)}")
    chosen = options.sections or list(SECTIONS)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    start = perf_counter()
    with throwaway_server(durable=True) as server:
        blocks = {"machine": _machine(server)}
        reports: dict[str, Report] = {}
        for name in chosen:
            say(f"== {name}")
            report = reports[name] = SECTIONS[name].run(server, quick=options.quick)
            blocks |= report.blocks
            for block in report.blocks.values():
                print(block, end="\n\n", flush=True)
    say(f"{perf_counter() - start:.0f} seconds in all")

    blocks["targets"] = table(
        ["what", "found", "promised", ""],
        [
            [target.name, target.figure, target.bound, "holds" if target.holds else "**does not hold**"]
            for report in reports.values()
            for target in report.targets
        ],
    )
    print(blocks["targets"], blocks["machine"], sep="\n\n")
    if not options.quick and chosen == list(SECTIONS):
        page = before = PAGE.read_text("utf-8")
        for name, block in blocks.items():
            page = _filled(page, name, block)
        PAGE.write_text(page, "utf-8")
        missed = repeat.not_repeated(before, page)
        compared = len(repeat.apart(before, page))
        print(f"\n{len(missed)} of {compared} figures did not repeat those of {PAGE.name}.", *missed, sep="\n")
        plot.lines(PAGE.with_name("upgrade"), "Upgrading all tenants", ("tenants", "seconds"), reports["upgrade"].lines)
        plot.bars(PAGE.with_name("writing"), "Counting jobs", "calls a second", reports["writing"].bars)


def _filled(page: str, name: str, block: str) -> str:
    before, mark, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- / -->\n")
    if not end:
        sys.exit(f"{PAGE.name} has no place for {name}")
    return f"{before}{mark}\n{block}\n\n{end}{after}"


def _machine(server: Server) -> str:
    with psycopg.connect(server.url()) as conn:
        shown = {name: conn.execute(f"SHOW {name}".encode()).fetchall()[0][0] for name in SETTINGS}
        released = conn.execute("SHOW server_version").fetchall()[0][0]
    memory = psutil.virtual_memory().total / 2**30
    return "\n".join(
        [
            f"- {os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB of memory, {platform.system()}"
            f" {platform.release().split('-')[0]}, Python {platform.python_version()}",
            f"- PostgreSQL {released}: " + ", ".join(f"{name} {value}" for name, value in shown.items()),
            "- " + ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        ]
    )


if __name__ == "__main__":
    main()
