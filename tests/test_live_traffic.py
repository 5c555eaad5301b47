"""Old code at work in 200 tenants while they are upgraded, downgraded and upgraded again: no error, and no count lost.

Old code, which knows `vinted_job_stats` only, runs all the time. New code runs as the deploy order has it: started
after an upgrade, stopped before a downgrade.
"""

import datetime
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from threading import Condition, Event, Thread
from typing import Any

import psycopg
import pytest
from psycopg import sql

from stats_lib import Marketplace, get_stats, update_job_stats
from tests.deploy import connect, yoyo
from tests.tenants import Connection, clones, ok

TENANTS = [f"user_live_{i}" for i in range(1, 201)]
DAY = datetime.date(2026, 1, 1)
ACTIONS = [1, 2, 3]  # each tenant has rows of these from the start, and everybody counts in them
JOBS_BEFORE = 100 * len(ACTIONS)
FIRST_ON_EBAY = range(500, 505)  # of these, new code's rows may come first
STEPS = 30  # of each worker, between a migration and the next

Counts = Counter[tuple[str, str]]  # jobs by tenant and marketplace


class Worker:
    """A connection of old or new code. Its statements are prepared, with generic plans, in every other step."""

    def __init__(self, number: int, conn: Connection) -> None:
        self.conn = conn
        conn.prepared_max = None
        conn.execute("SET plan_cache_mode = force_generic_plan")
        self.number = number
        self.random = random.Random(number)  # noqa: S311
        self.steps = 0

    def execute(self, query: str, tenant: str, *params: object) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run a statement on {}, which is the tenant's `vinted_job_stats`."""
        table = sql.Identifier(tenant, "vinted_job_stats")
        return self.conn.execute(sql.SQL(query).format(table), params, prepare=self.steps % 2 == 1)

    def returning(self, query: str, tenant: str, *params: object) -> tuple[Any, ...]:
        """Run a statement that returns one row."""
        (row,) = self.execute(query, tenant, *params).fetchall()
        return row


Step = Callable[[Worker], Counts]  # returns what it has committed


# What old code does.


def count_in_place(worker: Worker) -> Counts:
    """Add to the row, or else insert it: each its own transaction."""
    tenant, action = worker.random.choice(TENANTS), worker.random.choice([*ACTIONS, 100 + worker.number])
    changed = worker.execute(
        """
        UPDATE {} SET total_jobs = total_jobs + 1, success_count = success_count + 1
        WHERE action_type_id = %s AND date = %s
        """,
        tenant,
        action,
        DAY,
    ).rowcount
    if not changed:
        assert action not in ACTIONS, "a row was not seen"
        insert = "INSERT INTO {} (action_type_id, date, total_jobs, success_count) VALUES (%s, %s, 1, 1)"
        changed = worker.execute(insert, tenant, action, DAY).rowcount
    return Counter({(tenant, "vinted"): changed})


def count_like_an_orm(worker: Worker) -> Counts:
    """Select every column for update, count in the program, update by id; two tenants in one transaction."""
    both = sorted(worker.random.sample(TENANTS, 2))
    action = worker.random.choice([*ACTIONS, FIRST_ON_EBAY[worker.number % len(FIRST_ON_EBAY)]])
    with worker.conn.transaction():
        for tenant in both:
            select = "SELECT * FROM {} WHERE action_type_id = %s AND date = %s FOR UPDATE"
            row = worker.execute(select, tenant, action, DAY).fetchone()
            if row is None:
                assert action not in ACTIONS, "a row was not seen"
                insert = "INSERT INTO {} (action_type_id, date) VALUES (%s, %s) RETURNING *"
                row = worker.returning(insert, tenant, action, DAY)
            key, _, _, total, success, _, _, _ = row
            time.sleep(0.005)  # as if it had something to compute, while a migration waits for it
            update = "UPDATE {} SET total_jobs = %s, success_count = %s WHERE id = %s"
            assert worker.execute(update, tenant, total + 1, success + 1, key).rowcount == 1
    return Counter((tenant, "vinted") for tenant in both)


def insert_a_row(worker: Worker) -> Counts:
    """Insert a row for one job, on a day of its own, and find it by the id that was returned."""
    tenant, day = worker.random.choice(TENANTS), DAY + datetime.timedelta(days=1 + worker.steps)
    insert = "INSERT INTO {} (action_type_id, date, total_jobs, success_count) VALUES (%s, %s, 1, 1) RETURNING id"
    (key,) = worker.returning(insert, tenant, 200 + worker.number, day)
    assert worker.returning("SELECT date FROM {} WHERE id = %s", tenant, key) == (day,)
    return Counter({(tenant, "vinted"): 1})


def insert_and_delete(worker: Worker) -> Counts:
    """Insert a row, and delete it again by the id that was returned."""
    tenant = worker.random.choice(TENANTS)
    insert = "INSERT INTO {} (action_type_id, date, total_jobs) VALUES (%s, %s, 1000) RETURNING id"
    (key,) = worker.returning(insert, tenant, 300 + worker.number, DAY)
    assert worker.execute("DELETE FROM {} WHERE id = %s", tenant, key).rowcount == 1
    return Counter()


def read(worker: Worker) -> Counts:
    """Sum up three tenants in one transaction: never less than there was at the start."""
    with worker.conn.transaction():
        for tenant in worker.random.sample(TENANTS, 3):
            assert worker.returning("SELECT sum(total_jobs) FROM {}", tenant)[0] >= JOBS_BEFORE
    return Counter()


OLD_CODE = [count_in_place, count_like_an_orm, insert_a_row, insert_and_delete, read]


# What new code does.


def count_by_marketplace(worker: Worker) -> Counts:
    """Count a job of any marketplace."""
    tenant, marketplace = worker.random.choice(TENANTS), worker.random.choice(list(Marketplace))
    action = worker.random.choice(ACTIONS if marketplace == Marketplace.VINTED else [*ACTIONS, *FIRST_ON_EBAY])
    update_job_stats(worker.conn, schema=tenant, action_type_id=action, marketplace=marketplace, success=True, date=DAY)
    return Counter({(tenant, str(marketplace)): 1})


def read_by_marketplace(worker: Worker) -> Counts:
    """Read the rows of a tenant and marketplace."""
    stats = get_stats(worker.conn, schema=worker.random.choice(TENANTS), marketplace=Marketplace.VINTED, days=5000)
    assert {(DAY, action) for action in ACTIONS} <= {(row.date, row.action_type_id) for row in stats}
    return Counter()


NEW_CODE = [count_by_marketplace, read_by_marketplace]


class Traffic:
    """Workers in threads, and what all of them have committed."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._numbers = count()
        self._workers: list[Worker] = []
        self._errors: list[Exception] = []
        self._stepped = Condition()  # also guards what is below
        self.counts: Counts = Counter()
        self.longest = (0.0, "")

    @contextmanager
    def of(self, steps: Sequence[Step]) -> Iterator[None]:
        """While the block runs, repeat each of these on a connection of its own.

        All are well under way when the block begins; an error in any of them is raised when it ends.
        """
        stop, threads = Event(), []
        workers = [Worker(next(self._numbers), connect(self._conn)) for _ in steps]
        for step, worker in zip(steps, workers, strict=True):
            threads.append(Thread(target=self._repeat, args=(step, worker, stop)))
            threads[-1].start()
        self._workers += workers
        try:
            self.goes_on()
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            self._workers = [worker for worker in self._workers if worker not in workers]
        self.goes_on()

    def goes_on(self) -> None:
        """Wait until each worker has done some more steps; raise if one has failed."""
        goals = [(worker, worker.steps + STEPS) for worker in self._workers]
        with self._stepped:
            self._stepped.wait_for(lambda: self._errors or all(worker.steps >= goal for worker, goal in goals))
            if self._errors:
                raise ExceptionGroup("errors in live traffic", self._errors)

    def _repeat(self, step: Step, worker: Worker, stop: Event) -> None:
        with worker.conn:
            while not stop.is_set():
                stop.wait(0.005)  # leaves the migration its share of a small machine
                start, error = time.perf_counter(), None
                try:
                    counts = step(worker)
                except Exception as exception:
                    error = exception
                    stop.set()
                with self._stepped:
                    if error:
                        self._errors.append(error)
                    else:
                        worker.steps += 1
                        self.counts.update(counts)
                        self.longest = max(self.longest, (time.perf_counter() - start, step.__name__))
                    self._stepped.notify_all()


def counted(conn: Connection, columns: str) -> Counts:
    """The jobs in the database, by tenant and marketplace; `columns` are an expression for the latter, and a number."""
    query = " UNION ALL ".join(
        f"SELECT '{tenant}', {columns} FROM {tenant}.marketplace_job_stats GROUP BY marketplace" for tenant in TENANTS
    )
    return Counter({(tenant, marketplace): jobs for tenant, marketplace, jobs in conn.execute(query.encode())})


def test_live_traffic(legacy: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    """Under load, apply, rollback and apply again cause no error in old or new code, and no count is lost."""
    clones(legacy, "user_live_", len(TENANTS))
    for tenant in TENANTS:
        legacy.execute(
            f"""
            INSERT INTO {tenant}.vinted_job_stats (action_type_id, date, total_jobs, success_count)
            SELECT action, %s, 100, 100 FROM unnest(%s::integer[]) AS action
            """.encode(),
            [DAY, ACTIONS],
        )

    traffic = Traffic(legacy)
    with traffic.of(OLD_CODE):
        ok(yoyo(legacy, "apply"))
        with traffic.of(NEW_CODE):
            traffic.goes_on()
        ok(yoyo(legacy, "rollback", "--revision", "0020"))
        traffic.goes_on()
        ok(yoyo(legacy, "apply"))
        with traffic.of(NEW_CODE):
            traffic.goes_on()

    expected = traffic.counts + Counter({(tenant, "vinted"): JOBS_BEFORE for tenant in TENANTS})
    assert {marketplace for _, marketplace in expected} == set(Marketplace)
    assert counted(legacy, "marketplace, sum(total_jobs)") == expected
    assert counted(legacy, "marketplace, sum(success_count)") == expected

    seconds, step = traffic.longest
    with capsys.disabled():
        print(f" {traffic.counts.total()} jobs counted; longest step {seconds * 1000:.0f} ms, in {step}")
