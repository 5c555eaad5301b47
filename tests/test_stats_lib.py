"""`stats_lib`: what is counted, what is read back, what is refused, and that the caller's connection stays theirs."""

import datetime
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from enum import IntEnum
from functools import partial
from threading import Barrier
from typing import Any

import psycopg
import pytest
from psycopg import Connection, Cursor, sql
from psycopg.pq import TransactionStatus
from psycopg.rows import RowFactory, RowMaker, dict_row, namedtuple_row, scalar_row

from stats_lib import (
    JobOutcome,
    JobStats,
    Marketplace,
    MarketplaceSummary,
    get_platform_summary,
    get_stats,
    get_summary,
    update_job_stats,
    update_job_stats_batch,
)
from tests.deploy import connect

# A day that is over: no test can see the date change under it.
DAY = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)
MAX_DURATION = datetime.timedelta(milliseconds=2**32)

count = partial(update_job_stats, schema="user_1", action_type_id=1, marketplace="ebay", success=True, date=DAY)
read = partial(get_stats, schema="user_1")
add_up = partial(get_summary, schema="user_1")


def ms(milliseconds: float) -> datetime.timedelta:
    return datetime.timedelta(milliseconds=milliseconds)


@pytest.fixture
def conn(migrated: Connection) -> Connection:
    """An autocommit connection to a database whose tenants have counted nothing yet."""
    migrated.execute("DELETE FROM user_1.marketplace_job_stats")
    migrated.execute("DELETE FROM user_2.marketplace_job_stats")
    return migrated


@pytest.fixture
def other(conn: Connection) -> Iterator[Connection]:
    """A second connection to the database of `conn`, whose transactions stay open until told otherwise."""
    with connect(conn, autocommit=False) as other:
        yield other


# What is counted


def test_first_job_makes_the_row(conn: Connection) -> None:
    """The first job of a key inserts its row, and every column of it is read back."""
    count(conn, marketplace=Marketplace.ETSY, duration=ms(1500))

    id_, created_at = conn.execute("SELECT id, created_at FROM user_1.marketplace_job_stats").fetchall()[0]
    expected = JobStats(
        id=id_,
        action_type_id=1,
        marketplace=Marketplace.ETSY,
        date=DAY,
        total_jobs=1,
        success_count=1,
        failure_count=0,
        avg_duration_ms=1500,
        created_at=created_at,
    )
    (actual,) = read(conn)
    assert expected == actual
    assert Marketplace.ETSY is actual.marketplace
    assert actual.created_at.tzinfo is not None


def test_further_jobs_add_up(conn: Connection) -> None:
    """Successes and failures of a key are added to its one row, which keeps its id and time of creation."""
    count(conn)
    (first,) = read(conn)
    for success in (True, False, False, True):
        count(conn, success=success)

    (row,) = read(conn)
    assert (5, 3, 2) == (row.total_jobs, row.success_count, row.failure_count)
    assert (first.id, first.created_at) == (row.id, row.created_at)


def test_first_job_may_fail(conn: Connection) -> None:
    """A failure counts as one from the first job on."""
    count(conn, success=False)

    (row,) = read(conn)
    assert (1, 0, 1) == (row.total_jobs, row.success_count, row.failure_count)


def test_keys_are_apart(conn: Connection) -> None:
    """Marketplaces, action types and days share no counter."""
    earlier = DAY - datetime.timedelta(days=1)
    keys = [
        (DAY, Marketplace.EBAY, 1),
        (DAY, Marketplace.EBAY, 2),
        (DAY, Marketplace.ETSY, 1),
        (DAY, Marketplace.VINTED, 1),
        (earlier, Marketplace.EBAY, 1),
    ]
    for jobs, (date, marketplace, action_type_id) in enumerate(keys, start=1):
        for _ in range(jobs):
            count(conn, date=date, marketplace=marketplace, action_type_id=action_type_id)

    expected = [(*key, jobs) for jobs, key in enumerate(keys, start=1)]
    assert expected == [(row.date, row.marketplace, row.action_type_id, row.total_jobs) for row in read(conn)]


def test_tenants_are_apart(conn: Connection) -> None:
    """Counting for one tenant changes nothing for its neighbour."""
    count(conn, schema="user_1")
    before = get_stats(conn, schema="user_1")
    count(conn, schema="user_2", success=False)

    assert before == get_stats(conn, schema="user_1")
    assert [(1, 0, 1)] == [
        (row.total_jobs, row.success_count, row.failure_count) for row in get_stats(conn, schema="user_2")
    ]


def test_no_update_is_lost(conn: Connection) -> None:
    """16 connections that count 200 jobs each on one new key at once are counted exactly, taking 16 ids at most."""
    barrier = Barrier(16, timeout=300)

    def work(_: int) -> None:
        with connect(conn) as own:
            barrier.wait()
            for job in range(200):
                count(own, success=job % 4 > 0, duration=ms(1500))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    count(conn, action_type_id=2)

    row, next_row = read(conn)
    assert (3200, 2400, 800, 1500) == (row.total_jobs, row.success_count, row.failure_count, row.avg_duration_ms)
    assert next_row.id - row.id <= 16


@contextmanager
def waiting(conn: Connection, blocker: Connection, **job: Any) -> Iterator[None]:
    """Send a job on `conn`; run the block when it waits for a row that `blocker` has locked; then see it counted."""
    with conn.pipeline():
        count(conn, **job)
        while blocker.execute("SELECT pg_blocking_pids(%s)", [conn.info.backend_pid]).fetchone() == ([],):
            pass
        yield


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(None, None, None), (ms(100), None, 100), (None, ms(100), 100), (ms(100), ms(400), 250), (ms(100), ms(99), 100)],
)
def test_two_first_jobs(
    conn: Connection,
    other: Connection,
    first: datetime.timedelta | None,
    second: datetime.timedelta | None,
    expected: int | None,
) -> None:
    """A job that finds no row, as the transaction that inserts it is still open, waits and is added to that row."""
    count(other, duration=first)
    with waiting(conn, other, duration=second, success=False):
        other.commit()

    (row,) = read(conn)
    assert (2, 1, 1, expected) == (row.total_jobs, row.success_count, row.failure_count, row.avg_duration_ms)


def test_first_job_is_rolled_back(conn: Connection, other: Connection) -> None:
    """A job that waits for a row whose insertion is rolled back is counted in a row of its own."""
    count(other)
    with waiting(conn, other, success=False):
        other.rollback()

    assert [(1, 1)] == [(row.total_jobs, row.failure_count) for row in read(conn)]


def test_row_is_deleted_meanwhile(conn: Connection, other: Connection) -> None:
    """A job that was to be added to a row which another transaction deletes is counted in a new row."""
    count(conn)
    (deleted,) = read(conn)
    other.execute("DELETE FROM user_1.marketplace_job_stats")
    with waiting(conn, other, success=False):
        other.commit()

    (row,) = read(conn)
    assert (1, 0, 1) == (row.total_jobs, row.success_count, row.failure_count)
    assert deleted.id < row.id


def test_row_is_replaced_meanwhile(conn: Connection, other: Connection) -> None:
    """A job that was to be added to a row which another transaction deletes and makes anew is added to the new one."""
    for _ in range(5):
        count(conn)
    other.execute("DELETE FROM user_1.marketplace_job_stats")
    count(other)
    (new,) = read(other)
    with waiting(conn, other, success=False):
        other.commit()

    assert [(new.id, 2, 1, 1)] == [(row.id, row.total_jobs, row.success_count, row.failure_count) for row in read(conn)]


def test_deletion_is_rolled_back(conn: Connection, other: Connection) -> None:
    """A job waits for a deletion of its row, and is added to the row if that is rolled back."""
    count(conn)
    other.execute("DELETE FROM user_1.marketplace_job_stats")
    with waiting(conn, other):
        other.rollback()

    assert [2] == [row.total_jobs for row in read(conn)]


def test_only_rows_take_ids(conn: Connection) -> None:
    """A row takes one id however many jobs it counts, so tenants that share a sequence do not use it up in months."""
    with conn.pipeline():
        for _ in range(8000):
            count(conn)
    count(conn, action_type_id=2)

    row, next_row = read(conn)
    assert 8000 == row.total_jobs
    assert row.id + 1 == next_row.id


@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
def test_the_key_finds_the_row(conn: Connection, plan: str) -> None:
    """Of 10,000 rows just the one that counts the job is read, whether or not the statement is planned anew."""
    conn.execute(
        "INSERT INTO user_1.marketplace_job_stats (action_type_id, marketplace, date, untimed_jobs, total_duration_ms)"
        " SELECT action, 'ebay', %s::date - age, 0, 0"
        " FROM generate_series(1, 100) AS action, generate_series(0, 99) AS age",
        [DAY],
    )
    conn.execute("ANALYZE user_1.marketplace_job_stats")

    with connect(conn, options=f"-c plan_cache_mode={plan}") as own, own.transaction():
        own.prepare_threshold = 0
        count(own)
        reads = own.execute("SELECT seq_scan, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE schemaname = 'user_1'")
        assert [(0, 1)] == reads.fetchall()


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ([None], None),
        ([None, None], None),
        ([None, ms(100)], 100),
        ([ms(100), None], 100),
        ([ms(100), None, ms(400)], 250),
        ([ms(100), ms(200)], 150),
        ([ms(200), ms(100)], 150),
        ([ms(100), ms(101), ms(102)], 101),
        ([ms(100), ms(99)], 100),
        ([ms(0)], 0),
        ([ms(0.4)], 0),
        ([ms(1.6)], 2),
        ([ms(0), MAX_DURATION, ms(0)], 1431655765),
        ([MAX_DURATION, MAX_DURATION, MAX_DURATION], 2**31 - 1),
    ],
)
def test_average(conn: Connection, durations: list[datetime.timedelta | None], expected: int | None) -> None:
    """The average is that of the jobs with a duration, rounded half up; other jobs leave it as it is."""
    for duration in durations:
        count(conn, duration=duration)

    assert [expected] == [row.avg_duration_ms for row in read(conn)]


def test_average_does_not_overflow(conn: Connection) -> None:
    """The longest average of the most jobs that old code's columns can hold is still computed."""
    count(conn, duration=MAX_DURATION)
    conn.execute("UPDATE user_1.marketplace_job_stats SET total_jobs = 2147483646, total_duration_ms = NULL")
    count(conn, duration=ms(0))

    (row,) = read(conn)
    assert (2**31 - 1, 2**31 - 2) == (row.total_jobs, row.avg_duration_ms)


# At any time, one of each two is not at UTC's date. PostgreSQL 18 takes 'UTC' for what the latter two call themselves.
@pytest.mark.parametrize("time_zone", ["Pacific/Kiritimati", "Etc/GMT+12", "UTC-14", "UTC+12"])
def test_today_is_utc(conn: Connection, time_zone: str) -> None:
    """Today, when a job counts by default and where `days` ends, is UTC's, whatever the session's time zone."""
    conn.execute(sql.SQL("SET TimeZone = {}").format(time_zone))
    with conn.transaction():
        (today,) = conn.execute("SELECT (now() AT TIME ZONE interval '0')::date").fetchall()[0]
        for date in (today - datetime.timedelta(days=1), today + datetime.timedelta(days=1), None, None):
            count(conn, date=date)
        rows = read(conn, days=1)
        everywhere = get_platform_summary(conn, days=1)

    assert [2, 0] == [row.total_jobs for row in everywhere if row.marketplace != "vinted"]
    assert [(today, 2)] == [(row.date, row.total_jobs) for row in rows]


def test_enumerated_action_type(conn: Connection) -> None:
    """An action type may be a member of the caller's IntEnum."""
    action = IntEnum("action", {"RELIST": 40})
    count(conn, action_type_id=action.RELIST)

    assert [40] == [row.action_type_id for row in read(conn)]


def test_types_of_the_application(conn: Connection) -> None:
    """A value of a derived class is taken as what it is: no comparison or division of its own counts elsewhere."""
    count(conn, schema=Text("user_1"), marketplace=Text("ebay"), action_type_id=Number(7), duration=Duration(0, 1))
    with pytest.raises(psycopg.errors.UndefinedTable):
        count(conn, schema=Text("USER_1"))
    (row,) = read(conn, schema=Text("user_1"))
    assert (7, 1, 1000) == (row.action_type_id, row.total_jobs, row.avg_duration_ms)


# What is read back


def test_order(conn: Connection) -> None:
    """Rows come newest day first, then by marketplace, then by action type."""
    days = [DAY - datetime.timedelta(days=n) for n in range(2)]
    expected = [(day, marketplace, n) for day in days for marketplace in ("ebay", "etsy", "vinted") for n in (1, 2, 10)]
    for day, marketplace, n in sorted(expected, key=lambda key: (key[2], key[1], key[0])):
        count(conn, date=day, marketplace=marketplace, action_type_id=n)

    assert expected == [(row.date, row.marketplace, row.action_type_id) for row in read(conn)]


@pytest.mark.parametrize(
    ("days", "expected"), [(1, [0]), (6, [0]), (7, [0, 6]), (8, [0, 6, 7]), (10**6, [0, 6, 7, 9999])]
)
def test_days(conn: Connection, days: int, expected: list[int]) -> None:
    """`days` counts calendar days up to and including today; rows of later days are not read."""
    with conn.transaction():
        (today,) = conn.execute("SELECT (now() AT TIME ZONE interval '0')::date").fetchall()[0]
        for age in (-1, 0, 6, 7, 9999):
            count(conn, date=today - datetime.timedelta(days=age))
        rows = read(conn, days=days)

    assert expected == [(today - row.date).days for row in rows]


def test_days_before_christ(conn: Connection) -> None:
    """What Python has no date for is not read, and keeps nothing else from being read."""
    count(conn, date=datetime.date.min)
    conn.execute(
        "INSERT INTO user_1.marketplace_job_stats (action_type_id, date, total_jobs) VALUES (7, '0044-03-15 BC', 5)"
    )
    assert [datetime.date.min] == [row.date for row in read(conn, days=10**6)]
    assert 1 == sum(row.total_jobs for row in get_summary(conn, schema="user_1", days=10**6))


def test_a_week_by_default(conn: Connection) -> None:
    """Without `days`, the last seven calendar days are read."""
    with conn.transaction():
        (today,) = conn.execute("SELECT (now() AT TIME ZONE interval '0')::date").fetchall()[0]
        for age in range(10):
            count(conn, date=today - datetime.timedelta(days=age))
        rows = read(conn)

    assert list(range(7)) == [(today - row.date).days for row in rows]


@pytest.mark.parametrize("marketplace", [*Marketplace, "vinted", "ebay", "etsy"], ids=repr)
def test_one_marketplace(conn: Connection, marketplace: str) -> None:
    """A marketplace, or its value, limits the rows to it."""
    for each in Marketplace:
        count(conn, marketplace=each)

    assert [marketplace] == [row.marketplace for row in read(conn, marketplace=marketplace)]


@pytest.mark.parametrize("action_type_id", [-(2**31), -1, 0, 7, 2**31 - 1])
def test_one_action_type(conn: Connection, action_type_id: int) -> None:
    """An action type limits the rows to it, the first and the last that there can be too; without, all are read."""
    ids = [-(2**31), -1, 0, 1, 7, 2**31 - 1]
    for each in ids:
        count(conn, action_type_id=each)

    assert [action_type_id] == [row.action_type_id for row in read(conn, action_type_id=action_type_id)]
    assert [] == read(conn, action_type_id=3)
    assert [] == read(conn, action_type_id=action_type_id, marketplace="etsy")
    assert ids == [row.action_type_id for row in read(conn)]


def test_unknown_marketplace_is_left_out(conn: Connection) -> None:
    """A row of a marketplace that a later release added does not keep this one from reading the others."""
    count(conn)
    conn.execute("ALTER TABLE user_1.marketplace_job_stats DROP CONSTRAINT ck_marketplace_job_stats_marketplace")
    conn.execute(
        "INSERT INTO user_1.marketplace_job_stats (action_type_id, marketplace, date) VALUES (1, 'later', %s)", [DAY]
    )

    assert [Marketplace.EBAY] == [row.marketplace for row in read(conn)]
    assert 1 == sum(row.total_jobs for row in add_up(conn))


@pytest.mark.parametrize(("successes", "failures", "expected"), [(0, 0, 0.0), (0, 2, 0.0), (3, 1, 0.75), (2, 0, 1.0)])
def test_success_rate(conn: Connection, successes: int, failures: int, expected: float) -> None:
    """The success rate goes from 0.0 to 1.0, and is 0.0 for a row without jobs."""
    count(conn)
    conn.execute(
        "UPDATE user_1.marketplace_job_stats SET total_jobs = %s, success_count = %s, failure_count = %s",
        [successes + failures, successes, failures],
    )

    assert [expected] == [row.success_rate for row in read(conn)]


def test_rows_are_frozen(conn: Connection) -> None:
    """What was read cannot be changed by mistake."""
    count(conn)
    (row,) = read(conn)

    with pytest.raises(FrozenInstanceError):
        row.total_jobs = 2  # type: ignore[misc]  # what the test is about


# What is added up


def test_summary(conn: Connection) -> None:
    """Each marketplace has its sums over action types and days, alphabetically; one without jobs has zeros."""
    for action_type_id, marketplace, success, seconds in [
        (1, "vinted", True, 1),
        (1, "vinted", False, 1),
        (2, "vinted", True, 4),
        (1, "ebay", True, None),
        (2, "ebay", True, 3),
    ]:
        duration = None if seconds is None else datetime.timedelta(seconds=seconds)
        count(conn, action_type_id=action_type_id, marketplace=marketplace, success=success, duration=duration)
    count(conn, marketplace="vinted", date=DAY - datetime.timedelta(days=1), duration=ms(1001))
    count(conn, schema="user_2", marketplace="etsy")

    ebay = MarketplaceSummary(Marketplace.EBAY, total_jobs=2, success_count=2, failure_count=0, avg_duration_ms=3000)
    etsy = MarketplaceSummary(Marketplace.ETSY, total_jobs=0, success_count=0, failure_count=0, avg_duration_ms=None)
    vinted = MarketplaceSummary(
        Marketplace.VINTED, total_jobs=4, success_count=3, failure_count=1, avg_duration_ms=1750
    )
    actual = add_up(conn)
    assert [ebay, etsy, vinted] == actual
    assert [1.0, 0.0, 0.75] == [row.success_rate for row in actual]
    assert [Marketplace.EBAY, Marketplace.ETSY, Marketplace.VINTED] == [row.marketplace for row in actual]
    assert all(isinstance(row.marketplace, Marketplace) for row in actual)
    assert all(type(row.total_jobs) is int for row in actual)


def test_summary_of_nothing(conn: Connection) -> None:
    """A tenant without a row has zeros for every marketplace."""
    expected = [MarketplaceSummary(marketplace, 0, 0, 0, None) for marketplace in sorted(Marketplace)]
    assert expected == add_up(conn)


@pytest.mark.parametrize(("days", "expected"), [(1, 1), (6, 1), (7, 2), (8, 3), (10**6, 4)])
def test_summary_days(conn: Connection, days: int, expected: int) -> None:
    """`days` are those of `get_stats`, and seven by default."""
    with conn.transaction():
        (today,) = conn.execute("SELECT (now() AT TIME ZONE interval '0')::date").fetchall()[0]
        for age in (-1, 0, 6, 7, 9999):
            count(conn, date=today - datetime.timedelta(days=age))
        assert [expected, 0, 0] == [row.total_jobs for row in add_up(conn, days=days)]
        assert add_up(conn, days=7) == add_up(conn)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(100, 1), (200, 3)], 175),
        ([(100, 1), (None, 1000)], 100),
        ([(100, 1), (101, 1)], 101),
        ([(100, 0), (900, 2)], 900),
        ([(100, 0)], None),
        ([(None, 5)], None),
        ([(2**31 - 1, 2**31 - 1)] * 3, 2**31 - 1),
    ],
)
def test_summary_average(conn: Connection, rows: list[tuple[int | None, int]], expected: int | None) -> None:
    """Averages are weighted by their rows' jobs, rounded; rows without one do not weigh; nothing overflows."""
    for action_type_id, (average, jobs) in enumerate(rows):
        conn.execute(
            "INSERT INTO user_1.marketplace_job_stats"
            " (action_type_id, marketplace, date, total_jobs, failure_count, avg_duration_ms)"
            " VALUES (%s, 'ebay', %s, %s, %s, %s)",
            [action_type_id, DAY, jobs, jobs, average],
        )

    ebay = add_up(conn)[0]
    jobs = sum(jobs for _, jobs in rows)
    assert (jobs, 0, jobs, expected) == (
        ebay.total_jobs,
        ebay.success_count,
        ebay.failure_count,
        ebay.avg_duration_ms,
    )


def test_summary_average_is_exact(conn: Connection) -> None:
    """Over action types, too, the average is the rounded true mean of all durations; untimed jobs do not weigh."""
    durations = [1, 2, 2, 1000, 3, 4, 4]
    for number, milliseconds in enumerate(durations):
        count(conn, action_type_id=number % 3, duration=ms(milliseconds))
    for _ in range(5):
        count(conn, duration=None)
    averages = [row.avg_duration_ms for row in read(conn)]

    assert round(sum(durations) / len(durations)) == add_up(conn)[0].avg_duration_ms
    assert None not in averages


@pytest.mark.parametrize(
    "setting", ["DateStyle = 'German, DMY'", "IntervalStyle = 'iso_8601'", "client_encoding = 'sql_ascii'"]
)
def test_settings_of_the_session_do_not_matter(conn: Connection, setting: str) -> None:
    """What is read does not depend on how the session would have it printed."""
    count(conn, duration=ms(5))
    before = read(conn), add_up(conn)
    conn.execute(f"SET {setting}".encode())

    assert before == (read(conn), add_up(conn))


# What is refused


class Text(str):
    """The application's own, which knows no upper case."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        """Compare in lower case."""
        return self.lower() == str(other).lower()

    def __hash__(self) -> int:
        """Return the same for what is equal."""
        return hash(self.lower())


class Number(int):
    """The application's own, which is in any range."""

    def __le__(self, other: object) -> bool:
        """Say yes."""
        return True

    __ge__ = __le__


class Duration(datetime.timedelta):
    """The application's own, which is in any range, and divided in a way of its own, as pendulum's is."""

    def __le__(self, other: object) -> bool:
        """Say yes."""
        return True

    __ge__ = __le__

    def __truediv__(self, other: Any) -> Any:
        """Return what cannot be rounded."""
        return self


class Liar(str):
    """What says that it is another."""

    __slots__ = ()

    def __str__(self) -> str:
        """Lie."""
        return "user_2"


class LyingNumber(int):
    """The same."""

    def __int__(self) -> int:
        """Lie."""
        return 8


class LyingDate(datetime.date):
    """The same."""

    def isoformat(self) -> str:
        """Lie."""
        return "2001-01-01"


def test_what_is_checked_is_sent(conn: Connection) -> None:
    """Whatever a derived class says that it is."""
    count(conn, schema=Liar("user_1"), action_type_id=LyingNumber(9), date=LyingDate(2025, 1, 31))
    query = "SELECT date FROM user_1.marketplace_job_stats WHERE action_type_id = 9"
    assert conn.execute(query).fetchall() == [(datetime.date(2025, 1, 31),)]


BAD_SCHEMAS = [None, "", "user_1\0", "user_\udc80", b"user_1", 1, "x" * 64, "é" * 32]
BAD_MARKETPLACES = ["", "EBAY", Text("EBAY"), "Vinted", "amazon", " ebay", b"ebay", 1, ["ebay"]]


BAD_ARGUMENTS: list[tuple[partial[Any], str, object]] = [
    *((count, "schema", value) for value in BAD_SCHEMAS),
    *((count, "action_type_id", value) for value in (None, True, "1", 1.0, 2**31, -(2**31) - 1, Number(2**40))),
    *((count, "marketplace", value) for value in (None, *BAD_MARKETPLACES)),
    *((count, "success", value) for value in (None, 1, "true")),
    *((count, "duration", value) for value in (1500, 1.5, "1s", ms(-0.001), MAX_DURATION + ms(0.001))),
    *((count, "duration", value) for value in (datetime.timedelta.min, datetime.timedelta.max, Duration(50))),
    *(
        (count, "date", value)
        for value in ("2025-01-31", 20250131, datetime.datetime(2025, 1, 31, tzinfo=datetime.UTC))
    ),
    *((read, "schema", value) for value in BAD_SCHEMAS),
    *((read, "marketplace", value) for value in BAD_MARKETPLACES),
    *((read, "action_type_id", value) for value in (True, "1", 1.0, 2**31, -(2**31) - 1)),
    *((add_up, "schema", value) for value in BAD_SCHEMAS),
    *(
        (call, "days", value)
        for call in (read, add_up)
        for value in (None, True, "7", 7.0, 0, -1, 1_000_001, 2**31, 2**63)
    ),
]


def test_bad_arguments(conn: Connection, subtests: pytest.Subtests) -> None:
    """A bad argument is a ValueError that says what is allowed; nothing is sent, and an open transaction goes on."""
    conn.autocommit = False
    for call, argument, value in BAD_ARGUMENTS:
        with subtests.test(call=call.func.__name__, argument=argument, value=ascii(value)):
            with pytest.raises(ValueError, match=f"^{argument} must be "):
                call(conn, **{argument: value})
            assert TransactionStatus.IDLE == conn.info.transaction_status

            count(conn)
            with pytest.raises(ValueError, match=f"^{argument} must be "):
                call(conn, **{argument: value})
            count(conn)
            assert [2] == [row.total_jobs for row in read(conn)]
            conn.rollback()


@pytest.mark.parametrize(
    ("call", "argument", "value", "message"),
    [
        (count, "schema", "", "schema must be a name of 1 to 63 bytes in UTF-8, none of them NUL; got ''"),
        (count, "action_type_id", "1", "action_type_id must be an integer from -2147483648 to 2147483647; got '1'"),
        (count, "marketplace", "EBAY", "marketplace must be 'vinted' or 'ebay' or 'etsy'; got 'EBAY'"),
        (count, "success", 1, "success must be True or False; got 1"),
        (
            count,
            "duration",
            5,
            "duration must be a datetime.timedelta from 0 to 49 days, 17:02:47.296000, or None; got 5",
        ),
        (count, "date", "", "date must be a datetime.date without a time, or None for today in UTC; got ''"),
        (read, "days", 0, "days must be an integer from 1 to 1000000; got 0"),
    ],
)
def test_refusal(conn: Connection, call: Callable[..., object], argument: str, value: object, message: str) -> None:
    """A refusal names the argument, what is allowed, and what was given instead."""
    with pytest.raises(ValueError, match=argument) as refusal:
        call(conn, **{argument: value})

    assert message == str(refusal.value)


def test_a_refusal_is_short(conn: Connection) -> None:
    """Of a value that is a megabyte, the message has the beginning."""
    with pytest.raises(ValueError, match=r"got 'x{199}$"):
        count(conn, marketplace="x" * 10**6)
    with pytest.raises(ValueError, match=r"^action_type_id must be .*; got <int object at"):
        count(conn, action_type_id=10**5000)


@pytest.mark.parametrize("marketplace", [{}, {"marketplace": None}], ids=["missing", "None"])
def test_marketplace_is_never_guessed(conn: Connection, marketplace: dict[str, Any]) -> None:
    """A writer that forgets the marketplace is refused, and nothing is counted."""
    with pytest.raises((TypeError, ValueError), match="marketplace"):
        update_job_stats(conn, schema="user_1", action_type_id=1, success=True, **marketplace)

    assert [] == read(conn)


@pytest.mark.parametrize("action_type_id", [-(2**31), 0, 2**31 - 1])
@pytest.mark.parametrize("date", [datetime.date.min, datetime.date.max])
def test_extremes_are_stored(conn: Connection, action_type_id: int, date: datetime.date) -> None:
    """What is not refused fits: the widest ids and dates are stored as given."""
    count(conn, action_type_id=action_type_id, date=date)

    stored = conn.execute("SELECT action_type_id, date FROM user_1.marketplace_job_stats").fetchall()
    assert [(action_type_id, date)] == stored


def test_a_schema_that_the_encoding_cannot_spell(conn: Connection) -> None:
    """It is a ValueError of psycopg's, and an open transaction goes on."""
    with connect(conn, autocommit=False, client_encoding="LATIN1") as own:
        for call in (count, read, add_up):
            with pytest.raises(UnicodeEncodeError):
                call(own, schema="user_€")
        count(own)
    assert [1] == [row.total_jobs for row in read(conn)]


@pytest.mark.parametrize("call", [count, read, add_up])
def test_driver_errors_pass_through(conn: Connection, call: Callable[..., object]) -> None:
    """A schema without the table is psycopg's UndefinedTable, not an error of ours."""
    with pytest.raises(psycopg.errors.UndefinedTable):
        call(conn, schema="user_404")


@pytest.mark.parametrize(
    "schema",
    [
        'user_1"; DROP TABLE user_2.marketplace_job_stats; --',
        "user_1'; DROP TABLE user_2.marketplace_job_stats; --",
        "user_1.marketplace_job_stats",
        "USER_1",
        "%s %(days)s %",
        "{table} {}",
        "\\ $1 $$ é\n",
        "x" * 63,
    ],
)
def test_schema_is_only_ever_a_name(conn: Connection, schema: str) -> None:
    """Whatever a schema is called, it is a schema: missing, it is not found; present, it is counted in."""
    count(conn)
    for call in (count, read, add_up):
        with pytest.raises(psycopg.errors.UndefinedTable):
            call(conn, schema=schema)

    conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    conn.execute(
        sql.SQL("CREATE TABLE {} (LIKE user_1.marketplace_job_stats INCLUDING ALL)").format(
            sql.Identifier(schema, "marketplace_job_stats")
        )
    )
    count(conn, schema=schema, success=False)
    assert [0.0] == [row.success_rate for row in read(conn, schema=schema)]
    assert [1, 0, 0] == [row.failure_count for row in add_up(conn, schema=schema)]
    assert [1.0] == [row.success_rate for row in read(conn)]
    assert [] == read(conn, schema="user_2")


# The caller's connection


def capitals(cursor: Cursor[Any]) -> RowMaker[dict[str, Any]]:
    """A row factory of an application's own, which takes each statement for a SELECT."""
    names = [column.name.upper() for column in cursor.description]  # type: ignore[union-attr]
    return lambda values: dict(zip(names, values, strict=True))


@pytest.mark.parametrize("row_factory", [dict_row, namedtuple_row, scalar_row, capitals])
def test_any_row_factory(conn: Connection, row_factory: RowFactory[Any]) -> None:
    """Rows are `JobStats` whatever the connection's row factory, which stays."""
    count(conn)
    expected = read(conn), add_up(conn)
    conn.row_factory = row_factory
    for _ in range(2):
        count(conn, schema="user_2")
    update_job_stats_batch(conn, schema="user_2", outcomes=[JobOutcome(1, "ebay", success=True)] * 2)

    assert expected == (read(conn), add_up(conn))
    assert row_factory is conn.row_factory


@pytest.mark.parametrize("cursor_factory", [psycopg.ClientCursor, psycopg.RawCursor])
def test_any_cursor_factory(conn: Connection, cursor_factory: type[psycopg.Cursor[Any]]) -> None:
    """Parameters are bound whatever the connection's cursor factory."""
    conn.cursor_factory = cursor_factory
    count(conn, duration=ms(1500))

    assert [1500] == [row.avg_duration_ms for row in read(conn, marketplace="ebay", action_type_id=1)]
    assert [1500, None, None] == [row.avg_duration_ms for row in add_up(conn)]


def test_the_caller_rolls_back(conn: Connection) -> None:
    """Nothing is committed here: the caller's rollback undoes what was counted."""
    conn.autocommit = False
    count(conn)
    assert [1] == [row.total_jobs for row in read(conn)]
    assert TransactionStatus.INTRANS == conn.info.transaction_status
    conn.rollback()

    assert [] == read(conn)


def test_autocommit(conn: Connection) -> None:
    """On an autocommit connection a job is counted for all to see, and no transaction is left open."""
    count(conn)
    read(conn)

    assert TransactionStatus.IDLE == conn.info.transaction_status
    with connect(conn) as other:
        assert [1] == [row.total_jobs for row in read(other)]


def test_pipeline(conn: Connection) -> None:
    """Updates are queued in a pipeline: none waits for the server, and a later read sees them all."""
    with conn.pipeline():
        for _ in range(100):
            count(conn)
        assert [100] == [row.total_jobs for row in read(conn)]

    with conn.pipeline() as pipeline:
        count(conn, schema="user_404")
        with pytest.raises(psycopg.errors.UndefinedTable):
            pipeline.sync()


def test_search_path(conn: Connection) -> None:
    """The search path is neither used nor changed: a table of the same name ahead in it stays empty."""
    conn.execute("CREATE TEMPORARY TABLE marketplace_job_stats (LIKE user_1.marketplace_job_stats INCLUDING ALL)")
    conn.execute("SET search_path = pg_temp, user_2")
    count(conn)

    assert [1] == [row.total_jobs for row in read(conn)]
    assert [] == conn.execute("SELECT * FROM pg_temp.marketplace_job_stats").fetchall()
    assert [] == conn.execute("SELECT * FROM user_2.marketplace_job_stats").fetchall()
    assert ("pg_temp, user_2",) == conn.execute("SHOW search_path").fetchone()


def test_prepared_statements(conn: Connection) -> None:
    """The statements are prepared, once for each tenant, and never count for the wrong one."""
    for _ in range(10):
        count(conn, schema="user_1")
        count(conn, schema="user_2", success=False)
        read(conn, schema="user_1")

    assert [1.0] == [row.success_rate for row in read(conn, schema="user_1")]
    assert [0.0] == [row.success_rate for row in read(conn, schema="user_2")]
    prepared = conn.execute(
        "SELECT count(*) FILTER (WHERE statement ~ 'UPDATE .user_1'),"
        " count(*) FILTER (WHERE statement ~ 'UPDATE .user_2'),"
        " count(*) FILTER (WHERE statement ~ 'FROM .user_1') FROM pg_prepared_statements"
    ).fetchone()
    assert (1, 1, 1) == prepared


def test_extra_columns(conn: Connection) -> None:
    """A column that a tenant has more than others is ignored, even if it comes between two calls."""
    conn.prepare_threshold = 0
    count(conn)
    expected = read(conn)
    conn.execute("ALTER TABLE user_1.marketplace_job_stats ADD COLUMN note text NOT NULL DEFAULT 'seen'")

    assert expected == read(conn)
    count(conn)
    assert [2] == [row.total_jobs for row in read(conn)]
