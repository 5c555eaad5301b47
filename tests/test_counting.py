"""What docs/counting.md says of transactions, isolation levels, pipelines, and old code in the same rows."""

import datetime
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus

from stats_lib import JobOutcome, get_stats, get_summary, update_job_stats, update_job_stats_batch
from tests.deploy import connect
from tests.tenants import Connection, column, wait_until

DAY = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)  # over: no test can see it change
TABLE = "user_1.marketplace_job_stats"
count = partial(update_job_stats, schema="user_1", action_type_id=1, marketplace="ebay", success=True, date=DAY)


@pytest.fixture
def conn(migrated: Connection) -> Connection:
    """A connection, in autocommit, to a database where user_1 has counted nothing yet."""
    migrated.execute(f"DELETE FROM {TABLE}")
    return migrated


def jobs(conn: Connection) -> int:
    """How many jobs user_1 has counted."""
    return sum(row.total_jobs for row in get_summary(conn, schema="user_1"))


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_conflict_counts_nothing(conn: Connection, level: IsolationLevel, batch: bool, is_there: bool) -> None:
    """Above READ COMMITTED, of two transactions that count in one row the second fails, and counts once when rerun."""
    if is_there:
        count(conn)
    with connect(conn, autocommit=False) as second:
        second.isolation_level = level
        for attempt in range(2):
            second.execute("SELECT 1")  # its snapshot
            if attempt == 0:
                count(conn)
            try:
                if batch:
                    outcomes = [JobOutcome(1, "ebay", success=True, date=DAY)]
                    update_job_stats_batch(second, schema="user_1", outcomes=outcomes)
                else:
                    count(second)
                assert attempt == 1
                second.commit()
            except psycopg.errors.SerializationFailure:
                assert attempt == 0
                second.rollback()
    assert is_there + 2 == jobs(conn)


def test_a_pipeline_is_undone_since_its_last_sync(conn: Connection) -> None:
    """In a pipeline, calls return before they are counted: an error undoes those since the last sync, and no others."""
    with pytest.raises(psycopg.errors.UndefinedTable), conn.pipeline() as pipeline:  # noqa: PT012  # at its end
        count(conn)
        count(conn)
        pipeline.sync()
        count(conn)
        count(conn, schema="user_404")
        count(conn)
    assert 2 == jobs(conn)


def test_a_swallowed_error_loses_the_transaction(conn: Connection) -> None:
    """Whoever goes on after an error without a savepoint commits nothing, what was counted before it included."""
    conn.autocommit = False
    count(conn)
    with pytest.raises(psycopg.errors.UndefinedTable):
        count(conn, schema="user_404")
    assert TransactionStatus.INERROR == conn.info.transaction_status
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        count(conn)
    conn.commit()
    assert 0 == jobs(conn)


def test_a_refusal_leaves_the_transaction(conn: Connection) -> None:
    """After a TypeError or ValueError the transaction goes on."""
    conn.autocommit = False
    count(conn)
    with pytest.raises(ValueError, match="marketplace"):
        count(conn, marketplace="amazon")
    with pytest.raises(TypeError, match="conn"):
        count(None)  # type: ignore[arg-type]
    conn.commit()
    assert 1 == jobs(conn)


def test_a_day_of_the_tenants_own(conn: Connection) -> None:
    """Jobs dated ahead of UTC are read with `until`, as is any month that is over, and nothing after it."""
    tomorrow = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=1)
    days = [tomorrow, DAY, DAY - datetime.timedelta(days=365), DAY - datetime.timedelta(days=366)]
    for action_type_id, day in enumerate(days):
        count(conn, date=day, action_type_id=action_type_id)
    assert [DAY] == [row.date for row in get_stats(conn, schema="user_1")]
    assert [tomorrow, DAY] == [row.date for row in get_stats(conn, schema="user_1", until=tomorrow)]
    assert [days[2]] == [row.date for row in get_stats(conn, schema="user_1", days=1, until=days[2])]
    read = partial(get_summary, conn, schema="user_1", until=days[2])
    for summary, expected in [
        (read(), [2, 0, 0]),
        (read(action_type_id=3), [1, 0, 0]),
        (read(marketplace="ebay"), [2]),
        (read(marketplace="etsy", action_type_id=3), [0]),
    ]:
        assert expected == [row.total_jobs for row in summary]


# Old code


def old_code_counts(conn: Connection, barrier: Barrier | None = None) -> None:
    """Count a success as old code does: read the row, add in the program, and write absolute numbers."""
    row = conn.execute(
        "SELECT total_jobs, success_count FROM user_1.vinted_job_stats WHERE action_type_id = 1 AND date = %s", [DAY]
    ).fetchone()
    assert row is not None
    if barrier:
        barrier.wait()  # others count now
        barrier.wait()
    conn.execute(
        "UPDATE user_1.vinted_job_stats SET total_jobs = %s, success_count = %s WHERE action_type_id = 1 AND date = %s",
        [row[0] + 1, row[1] + 1, DAY],
    )


def test_old_code_overwrites_what_others_count_in_its_row(conn: Connection) -> None:
    """Between old code's read and write, whatever is counted in that row is lost; other marketplaces' rows are safe."""
    count(conn, marketplace="vinted")
    barrier = Barrier(2, timeout=300)
    with connect(conn) as old, ThreadPoolExecutor(1) as pool:
        done = pool.submit(old_code_counts, old, barrier)
        barrier.wait()
        for marketplace in ["vinted", "ebay", "etsy"]:
            for _ in range(10):
                count(conn, marketplace=marketplace)
        barrier.wait()
        done.result()
    assert [10, 10, 2] == [row.total_jobs for row in get_summary(conn, schema="user_1")]


def test_old_workers_stop_first(conn: Connection) -> None:
    """In the order that is documented nothing is lost: eBay's beside old code, Vinted's after its last write."""
    count(conn, marketplace="vinted")
    with connect(conn) as old:
        for _ in range(10):
            old_code_counts(old)
            count(conn, marketplace="ebay")
    for _ in range(10):
        count(conn, marketplace="vinted")
    assert [10, 0, 21] == [row.total_jobs for row in get_summary(conn, schema="user_1")]


def test_a_job_waits_for_the_transaction_that_counts_in_its_row(conn: Connection) -> None:
    """In READ COMMITTED the second transaction waits for the first, then counts in what that left."""
    count(conn)
    with connect(conn, autocommit=False) as first, connect(conn) as second, ThreadPoolExecutor(1) as pool:
        count(first)
        done = pool.submit(count, second)
        wait_until(conn, "SELECT pg_blocking_pids(%s) <> '{}'", second.info.backend_pid)
        first.commit()
        done.result()
    assert [3] == column(conn, f"SELECT total_jobs FROM {TABLE}")
