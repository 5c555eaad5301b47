"""`update_job_stats_batch`: the same as one call each, all or nothing, without deadlocks, however many at once."""

import datetime
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.pq import TransactionStatus

from stats_lib import JobOutcome, Marketplace, _queries, get_stats, update_job_stats, update_job_stats_batch
from tests.deploy import connect
from tests.tenants import Connection, column, wait_until

TODAY = datetime.datetime.now(datetime.UTC).date()
DAY = TODAY - datetime.timedelta(days=1)  # over: no test can see it change
TABLE = "user_1.marketplace_job_stats"
SECOND = datetime.timedelta(seconds=1)


@pytest.fixture
def conn(migrated: Connection) -> Connection:
    """A connection, in autocommit, to a database where user_1 and user_2 have counted nothing yet."""
    migrated.execute("DELETE FROM user_1.marketplace_job_stats; DELETE FROM user_2.marketplace_job_stats")
    return migrated


def outcome(action_type_id: int = 1, *, date: datetime.date | None = DAY, **fields: Any) -> JobOutcome:
    """Make a success of a second on eBay, unless told otherwise."""
    fields = dict[str, Any](marketplace="ebay", success=True, duration=SECOND) | fields
    return JobOutcome(action_type_id, date=date, **fields)


def count(conn: psycopg.Connection[Any], *outcomes: JobOutcome) -> None:
    """Count for user_1."""
    update_job_stats_batch(conn, schema="user_1", outcomes=outcomes)


def totals(conn: Connection) -> dict[int, int]:
    """The jobs of each action type."""
    return dict(conn.execute(f"SELECT action_type_id, sum(total_jobs)::integer FROM {TABLE} GROUP BY 1").fetchall())


def stored(conn: Connection, schema: str) -> list[tuple[Any, ...]]:
    """Every row, but for its id and time."""
    query = f"""
        SELECT action_type_id, marketplace, date, total_jobs, success_count, failure_count,
            avg_duration_ms, untimed_jobs, total_duration_ms
        FROM {schema}.marketplace_job_stats ORDER BY 1, 2, 3
    """
    return conn.execute(query.encode()).fetchall()


outcomes = st.builds(
    JobOutcome,
    st.integers(1, 3),
    st.sampled_from([*Marketplace, "vinted", "ebay"]),
    st.booleans(),
    st.none() | st.timedeltas(datetime.timedelta(0), SECOND) | st.just(datetime.timedelta(milliseconds=2**32)),
    st.sampled_from([None, TODAY, DAY]),
)


def test_the_same_as_one_call_each(conn: Connection) -> None:
    """Whatever the outcomes, in however many batches: the rows are those that single calls make, to the millisecond."""

    @settings(
        max_examples=60,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(st.lists(st.lists(outcomes, max_size=12), max_size=4))
    def check(batches: list[list[JobOutcome]]) -> None:
        conn.execute("DELETE FROM user_1.marketplace_job_stats; DELETE FROM user_2.marketplace_job_stats")
        for batch in batches:
            update_job_stats_batch(conn, schema="user_1", outcomes=iter(batch))
            for job in batch:
                update_job_stats(
                    conn,
                    schema="user_2",
                    action_type_id=job.action_type_id,
                    marketplace=job.marketplace,
                    success=job.success,
                    duration=job.duration,
                    date=job.date,
                )
        assert stored(conn, "user_2") == stored(conn, "user_1")

    check()


def test_today_with_and_without_a_date(conn: Connection) -> None:
    """An outcome without a date and one of today are counted in the same row."""
    with conn.transaction():
        (today,) = column(conn, "SELECT (now() AT TIME ZONE interval '0')::date")
        count(conn, outcome(date=None), outcome(date=today), outcome(date=None, success=False))
    (row,) = get_stats(conn, schema="user_1")
    assert (today, 3, 2, 1, 1000) == (
        row.date,
        row.total_jobs,
        row.success_count,
        row.failure_count,
        row.avg_duration_ms,
    )


def test_nothing_to_count(conn: Connection) -> None:
    """An empty iterable sends nothing: an idle connection stays idle, whatever the schema."""
    conn.autocommit = False
    update_job_stats_batch(conn, schema="user_404", outcomes=iter([]))
    assert TransactionStatus.IDLE == conn.info.transaction_status


def test_a_generator_of_many(conn: Connection) -> None:
    """100,000 outcomes of 3,000 rows, from a generator, are one batch."""
    days = [DAY - datetime.timedelta(days=n) for n in range(500)]
    jobs = (outcome(n % 6, date=days[n % 500], duration=datetime.timedelta(milliseconds=n)) for n in range(100_000))
    update_job_stats_batch(conn, schema="user_1", outcomes=jobs)
    expected = [(1500, 100_000, sum(range(100_000)))]
    assert (
        expected
        == conn.execute(f"SELECT count(*), sum(total_jobs), sum(total_duration_ms) FROM {TABLE}".encode()).fetchall()
    )


def test_only_new_rows_take_ids(conn: Connection) -> None:
    """Rows that are there take no id from the sequence, however often a batch counts in them."""
    for _ in range(5):
        count(conn, outcome(1), outcome(2), outcome(2))
    count(conn, outcome(3), outcome(1))
    first, second, third = column(conn, f"SELECT id FROM {TABLE} ORDER BY action_type_id")
    assert (first + 1, first + 2) == (second, third)


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (outcome(marketplace="amazon"), "outcomes[2]: marketplace must be 'vinted' or 'ebay' or 'etsy'; got 'amazon'"),
        (outcome(2**31), "outcomes[2]: action_type_id must be an integer from -2147483648 to 2147483647"),
        (outcome(success=1), "outcomes[2]: success must be"),
        (outcome(duration=5), "outcomes[2]: duration must be"),
        (outcome(date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)), "outcomes[2]: date must be"),
        ({"action_type_id": 1}, "outcomes[2]: outcome must be a JobOutcome"),
    ],
)
def test_a_bad_outcome_stops_all(conn: Connection, autocommit: bool, bad: Any, message: str) -> None:
    """The first bad outcome is named by its index; nothing is sent, and an open transaction goes on."""
    conn.autocommit = autocommit
    with pytest.raises(ValueError, match="outcomes") as refusal:
        count(conn, outcome(), outcome(), bad, bad)
    assert str(refusal.value).startswith(message)
    assert TransactionStatus.IDLE == conn.info.transaction_status
    count(conn, outcome())
    assert {1: 1} == totals(conn)


def test_all_or_nothing(conn: Connection) -> None:
    """If the database refuses one row, nothing is counted: on an autocommit connection, or in a transaction."""
    count(conn, outcome(1))
    conn.execute(f"UPDATE {TABLE} SET total_jobs = 2147483647".encode())
    with pytest.raises(psycopg.errors.NumericValueOutOfRange):
        count(conn, outcome(0), outcome(1), outcome(2))
    assert {1: 2**31 - 1} == totals(conn)
    conn.autocommit = False
    with pytest.raises(psycopg.errors.NumericValueOutOfRange):
        count(conn, outcome(0), outcome(1))
    conn.rollback()
    assert {1: 2**31 - 1} == totals(conn)


def test_the_caller_commits(conn: Connection) -> None:
    """Outside autocommit nothing is committed here."""
    conn.autocommit = False
    count(conn, outcome())
    assert TransactionStatus.INTRANS == conn.info.transaction_status
    conn.rollback()
    assert {} == totals(conn)


@pytest.mark.parametrize("autocommit", [True, False])
def test_pipeline(conn: Connection, autocommit: bool) -> None:
    """Batches can be queued in a pipeline."""
    conn.autocommit = autocommit
    with conn.pipeline():
        for _ in range(20):
            count(conn, outcome(1), outcome(2))
    conn.execute("COMMIT")
    assert {1: 20, 2: 20} == totals(conn)


def shuffled(seed: int) -> Iterator[list[JobOutcome]]:
    """Batches over the same 12 action types, of which more and more days exist, each in an order of its own."""
    order = random.Random(seed)  # noqa: S311  # not for secrets
    for round_ in range(40):
        batch = [outcome(n, date=DAY - datetime.timedelta(days=round_ // 2)) for n in range(12)]
        order.shuffle(batch)
        yield batch[: order.randint(1, 12)]


def test_rows_are_taken_in_one_order() -> None:
    """By action type, marketplace and day, whatever the order of the outcomes, so that no two batches can deadlock."""
    keys = [
        (id_, name, DAY - n * datetime.timedelta(days=1)) for id_ in (-1, 2, 10) for name in Marketplace for n in (1, 0)
    ]
    outcomes = [outcome(id_, marketplace=name, date=day) for id_, name, day in keys]
    random.Random(1).shuffle(outcomes)  # noqa: S311  # not for secrets
    _, (_, *rows) = _queries.update_job_stats_batch(schema="user_1", outcomes=outcomes)
    taken = [(int(row[0] or 0), row[1], row[2]) for row in rows]
    assert taken == sorted((id_, name.value, day.isoformat()) for id_, name, day in keys)


def test_no_deadlock_and_no_count_lost(conn: Connection) -> None:
    """12 connections count over the same keys, new ones first, each in its own order, singles in between."""
    barrier = Barrier(12, timeout=300)

    def work(seed: int) -> int:
        jobs = 0
        with connect(conn, options="-c deadlock_timeout=20ms") as own:
            for batch in shuffled(seed):
                barrier.wait()  # all at the same, new keys
                count(own, *batch)
                update_job_stats(
                    own,
                    schema="user_1",
                    action_type_id=batch[0].action_type_id,
                    marketplace="ebay",
                    success=True,
                    date=batch[0].date,
                )
                jobs += len(batch) + 1
        return jobs

    with ThreadPoolExecutor(12) as pool:
        expected = sum(pool.map(work, range(12)))
    assert expected == sum(totals(conn).values())
    assert [1000] == column(conn, f"SELECT DISTINCT avg_duration_ms FROM {TABLE}")
    assert [0] == column(conn, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")


def test_a_row_that_another_batch_inserts_meanwhile(conn: Connection) -> None:
    """A row that exists, and one that is new to both batches: the second waits for the new one, and holds neither."""
    count(conn, outcome(3))
    conn.autocommit = False  # else a batch waits for its end, in a pipeline, too
    with connect(conn, autocommit=False) as other:
        count(other, outcome(1))  # new, and not committed
        with conn.pipeline():
            count(conn, outcome(1), outcome(3))
            wait_until(other, "SELECT pg_blocking_pids(%s) <> '{}'", conn.info.backend_pid)
            other.execute("SET LOCAL lock_timeout = '5s'")
            count(other, outcome(3))
            other.commit()
        conn.commit()
    assert {1: 2, 3: 3} == totals(conn)


def test_a_row_that_is_deleted_meanwhile(conn: Connection) -> None:
    """A row that is deleted while a batch waits for it is made anew."""
    count(conn, outcome(1), outcome(2))
    conn.autocommit = False  # else a batch waits for its end, in a pipeline, too
    with connect(conn, autocommit=False) as other:
        other.execute(f"DELETE FROM {TABLE} WHERE action_type_id = 2".encode())
        with conn.pipeline():
            count(conn, outcome(1), outcome(2))
            wait_until(other, "SELECT pg_blocking_pids(%s) <> '{}'", conn.info.backend_pid)
            other.commit()
        conn.commit()
    assert {1: 2, 2: 1} == totals(conn)
    assert [1000, 1000] == column(conn, f"SELECT avg_duration_ms FROM {TABLE}")


def test_old_code_counts_too(conn: Connection) -> None:
    """A batch takes what old code left in a row, as a single call does."""
    count(conn, outcome(marketplace="vinted"))
    conn.execute("UPDATE user_1.vinted_job_stats SET total_jobs = 2, success_count = 2, avg_duration_ms = 2000")
    count(conn, *[outcome(marketplace="vinted", duration=SECOND * 5)] * 2)
    (row,) = get_stats(conn, schema="user_1")
    assert (4, 3500) == (row.total_jobs, row.avg_duration_ms)
