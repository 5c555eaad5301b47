"""How many jobs a second are counted: by `stats_lib`, by the bare statement, and by what people write instead.

- A commit each: BEGIN, the call, and COMMIT, which waits for the disk.
- One transaction for all calls of a run: where a call is cheapest, and what is added to it shows most.

One writer is this process. It gives each way 10 ms, again and again, to and fro, so that whatever else the machine does
hits all of them; each counts in 60 rows of its own, as many as a tenant has a day. Eight writers are processes, and
each way has a run to itself. With a commit each they count in the same 60 rows, and what these say afterwards is
compared with the calls made: the difference was lost. In one transaction each writer has rows of its own, since
otherwise it would wait for the end of another's.

What is to be counted is made beforehand, and all rows are at zero when a run begins.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from time import monotonic
from typing import Any, Self

import psycopg
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from dev.bench.figures import Figure, Report, Target, say, side_by_side, table
from dev.bench.tenant import Connection, jobs_counted, lay_rows, migrated_database
from dev.bench.ways import PSYCOPG, SQLALCHEMY, jobs, pgbench
from dev.server import Server

DATABASE = "bench_writing"
WRITERS = 8
TURN = 0.01  # seconds that one writer gives each way
WARM_UP = 10  # calls: psycopg prepares what it has executed five times, and PostgreSQL keeps a plan after five more
OURS, BARE, UPSERT, ORM_UPSERT, ORM = IN_PYTHON = *PSYCOPG, *SQLALCHEMY
PGBENCH = "pgbench, the same statement"
WAYS = OURS, BARE, PGBENCH, UPSERT, ORM_UPSERT, ORM
ENDS = {"a commit each": True, "one transaction": False}


class Writer:
    """Makes calls of one way, on a connection of its own."""

    def __init__(self, url: str, way: str, number: int, *, apart: bool, commits: bool) -> None:
        """Connect, and make what it is to count, in the same rows as others or `apart`."""
        outcomes = jobs(1000, writer=number, apart=apart)
        self.commits, self.conn = commits, psycopg.connect(url)
        if way in PSYCOPG:
            self.calls, self.commit = cycle(PSYCOPG[way](self.conn, outcomes)), self.conn.commit
        else:
            session = Session(create_engine("postgresql+psycopg://", creator=lambda: self.conn))
            self.calls, self.commit = cycle(SQLALCHEMY[way](session, outcomes)), session.commit

    def __enter__(self) -> Self:
        """Disconnect at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect."""
        self.conn.close()

    def warm_up(self) -> None:
        """Make some calls, with a commit each."""
        for _ in range(WARM_UP):
            next(self.calls)()
            self.commit()

    def work(self, seconds: float) -> int:
        """Make calls for so long; return how many."""
        made, end = 0, monotonic() + seconds
        while monotonic() < end:
            next(self.calls)()
            if self.commits:
                self.commit()
            made += 1
        return made


def run(server: Server, *, quick: bool) -> Report:
    """Measure all of it in a tenant of its own, within 2.5 minutes, or half a minute if `quick`."""
    runs, seconds = (2, 0.15) if quick else (7, 0.4)
    report = Report()
    lost: dict[str, list[tuple[int, int]]] = {way: [] for way in WAYS}
    spawn = multiprocessing.get_context("spawn")  # a forked process would keep the server alive if we are killed
    with (
        migrated_database(server, DATABASE) as url,
        psycopg.connect(url, autocommit=True) as dba,
        ProcessPoolExecutor(WRITERS, spawn, _meet_at, (spawn.Barrier(WRITERS),)) as pool,
    ):
        for end, commits in ENDS.items():
            say(f"calls a second, 1 writer, {end}")
            report.bars[f"1 writer, {end}"] = _one_writer(server, dba, url, runs, seconds, commits=commits)
        for end, commits in ENDS.items():
            say(f"calls a second, {WRITERS} writers, {end}")
            turns = {
                way: partial(_writers, server, dba, url, pool, way, seconds, lost[way], commits=commits) for way in WAYS
            }
            report.bars[f"{WRITERS} writers, {end}"] = side_by_side(turns, runs=runs)
    _fill_in(report, lost)
    return report


def _one_writer(
    server: Server, dba: Connection, url: str, runs: int, seconds: float, *, commits: bool
) -> dict[str, Figure]:
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        writers = {
            way: stack.enter_context(Writer(url, way, number, apart=True, commits=commits))
            for number, way in enumerate(IN_PYTHON)
        }
        for _ in range(runs):
            lay_rows(dba, len(writers))
            for writer in writers.values():
                writer.warm_up()
            made, spent = dict.fromkeys(writers, 0), dict.fromkeys(writers, 0.0)
            for turn in range(int(seconds / TURN)):
                for way in IN_PYTHON[:: 1 if turn % 2 else -1]:
                    start = monotonic()
                    made[way] += writers[way].work(TURN)
                    spent[way] += monotonic() - start
            for writer in writers.values():
                writer.commit()
            for way in writers:
                found[way].append(made[way] / spent[way])
            lay_rows(dba)
            calls, time = pgbench(server, DATABASE, calls=made[BARE], writers=1, commits=commits)
            found[PGBENCH].append(calls / time)
            say(", ".join(f"{way}: {rates[-1]:,.0f}" for way, rates in found.items()))
    return {way: Figure(tuple(rates)) for way, rates in found.items()}


def _writers(
    server: Server,
    dba: Connection,
    url: str,
    pool: ProcessPoolExecutor,
    way: str,
    seconds: float,
    lost: list[tuple[int, int]],
    *,
    commits: bool,
) -> float:
    lay_rows(dba, 1 if commits else WRITERS)
    if way == PGBENCH:  # which is told how many calls, not for how long
        made, time = pgbench(
            server, DATABASE, calls=int(seconds * (1500 if commits else 6000)), writers=WRITERS, commits=commits
        )
        warm_up = 0
    else:
        work = partial(_work, url, way, seconds, commits)
        calls, starts, ends = zip(*pool.map(work, range(WRITERS)), strict=True)
        made, time, warm_up = sum(calls), max(ends) - min(starts), WRITERS * WARM_UP
    if commits:
        lost.append((made + warm_up, made + warm_up - jobs_counted(dba)))
    return made / time


def _fill_in(report: Report, lost: dict[str, list[tuple[int, int]]]) -> None:
    bars = report.bars
    report.blocks["calls"] = table(
        ["calls a second", *bars], [[way, *(figures[way] for figures in bars.values())] for way in WAYS]
    )
    report.blocks["ratios"] = table(
        [f"{OURS}, as a multiple of", *bars],
        [[way, *(figures[OURS] / figures[way] for figures in bars.values())] for way in WAYS if way != OURS],
    )
    report.blocks["lost"] = table(
        [f"{WRITERS} writers, a commit each", "calls made", "lost"],
        [[way, *(f"{sum(counts):,}" for counts in zip(*of_way, strict=True))] for way, of_way in lost.items()],
    )
    for setting in bars:
        for other, at_least in {UPSERT: 1 / 1.15, ORM: 3}.items():
            ratio = bars[setting][OURS] / bars[setting][other]
            name = f"{OURS}, {setting}: calls a second, as a multiple of {other}"
            report.targets.append(Target(name, ratio, at_least=at_least))
    losses = Figure(tuple(float(count) for _, count in lost[OURS]))
    report.targets.append(Target(f"{OURS}, {WRITERS} writers: calls lost", losses, at_most=0))


# In a writer's process

_barrier: Any = None  # where the writers meet before they start


def _meet_at(barrier: Any) -> None:
    global _barrier  # what a pool's process is given once
    _barrier = barrier


def _work(url: str, way: str, seconds: float, commits: bool, number: int) -> tuple[int, float, float]:
    """Return how many calls were made, when the first began, and when the last ended."""
    with Writer(url, way, number, apart=not commits, commits=commits) as writer:
        writer.warm_up()
        _barrier.wait(timeout=60)
        start = monotonic()
        made = writer.work(seconds)
        writer.commit()
        return made, start, monotonic()
