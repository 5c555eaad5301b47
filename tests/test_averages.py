"""`avg_duration_ms` is the rounded true mean; where old code counts too, it is no further off than old code alone.

hypothesis makes up the jobs, the same ones in every run, and shortens a list that fails to its cause.
"""

import asyncio
import datetime
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from math import floor
from threading import Barrier
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import AsyncConnection

from stats_lib import JobOutcome, aio, get_stats, update_job_stats, update_job_stats_batch
from tests.deploy import connect, psql, yoyo
from tests.tenants import EXACT, UNEXACT, VERIFY, Connection, column, ok

DAY = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)  # over: no test can see it change
TABLE = "user_1.marketplace_job_stats"
LONGEST = 2**32  # milliseconds
repeatable = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def rounded(mean: Fraction) -> int:
    """Half away from zero, as PostgreSQL's round(numeric), and no more than an integer holds."""
    return min(floor(mean + Fraction(1, 2)), 2**31 - 1)


@pytest.fixture
def conn(migrated: Connection) -> Connection:
    """A connection, in autocommit, to a database where user_1 has counted nothing yet."""
    migrated.execute(f"DELETE FROM {TABLE}")
    return migrated


def count(conn: Connection, milliseconds: int | None, **job: Any) -> None:
    """Count a job with the library: on eBay, unless told otherwise."""
    duration = None if milliseconds is None else datetime.timedelta(milliseconds=milliseconds)
    job = (
        dict[str, Any]({"schema": "user_1", "action_type_id": 1, "marketplace": "ebay", "success": True, "date": DAY})
        | job
    )
    update_job_stats(conn, duration=duration, **job)


def count_as_old_code(conn: Connection, milliseconds: int) -> None:
    """Count a job as code from before 0020 does: read, compute and write, through the legacy view."""
    where = f"WHERE action_type_id = 1 AND date = '{DAY}'"
    found = conn.execute(f"SELECT total_jobs, avg_duration_ms FROM user_1.vinted_job_stats {where}").fetchone()
    if found is None:
        conn.execute(
            "INSERT INTO user_1.vinted_job_stats (action_type_id, date, total_jobs, success_count, avg_duration_ms)"
            f" VALUES (1, '{DAY}', 1, 1, %s)",
            [milliseconds],
        )
        return
    jobs, average = found[0] + 1, found[1]
    average = milliseconds if average is None else (average * (jobs - 1) + milliseconds) // jobs  # int(… / n)
    change = "SET total_jobs = %s, success_count = success_count + 1, avg_duration_ms = %s"
    conn.execute(f"UPDATE user_1.vinted_job_stats {change} {where}".encode(), [jobs, average])


def average(conn: Connection) -> int | None:
    """Of the only row."""
    (row,) = get_stats(conn, schema="user_1")
    return row.avg_duration_ms


durations = st.none() | st.integers(0, 20) | st.integers(0, 10_000) | st.integers(LONGEST - 10, LONGEST)


@dataclass(frozen=True)
class Job:
    """What the library is told."""

    action_type_id: int
    marketplace: str
    date: datetime.date
    success: bool
    milliseconds: int | None


jobs = st.builds(
    Job,
    st.integers(1, 2),
    st.sampled_from(["vinted", "ebay", "etsy"]),
    st.sampled_from([DAY, DAY - datetime.timedelta(days=1)]),
    st.booleans(),
    durations,
)


def outcome(job: Job) -> JobOutcome:
    """The same, for a batch."""
    duration = None if job.milliseconds is None else datetime.timedelta(milliseconds=job.milliseconds)
    return JobOutcome(job.action_type_id, job.marketplace, job.success, duration, job.date)


def expected_rows(counted: list[Job]) -> dict[tuple[object, ...], tuple[object, ...]]:
    """The counts and the rounded mean of each key."""
    by_key = defaultdict(list)
    for job in counted:
        by_key[job.action_type_id, job.marketplace, job.date].append(job)
    expected: dict[tuple[object, ...], tuple[object, ...]] = {}
    for key, of_key in by_key.items():
        timed = [job.milliseconds for job in of_key if job.milliseconds is not None]
        mean = rounded(Fraction(sum(timed), len(timed))) if timed else None
        successes = sum(job.success for job in of_key)
        expected[key] = len(of_key), successes, len(of_key) - successes, mean
    return expected


def rows(conn: Connection) -> dict[tuple[object, ...], tuple[object, ...]]:
    """What the library reads back."""
    return {
        (row.action_type_id, row.marketplace, row.date): (
            row.total_jobs,
            row.success_count,
            row.failure_count,
            row.avg_duration_ms,
        )
        for row in get_stats(conn, schema="user_1", days=9)
    }


# Only the library writes


def test_the_mean_is_exact_for_any_jobs(conn: Connection) -> None:
    """Two writers take turns, over several marketplaces, days and action types: counts and means are exact."""
    with connect(conn) as other:

        @repeatable
        @given(st.lists(st.tuples(jobs, st.booleans()), max_size=40))
        def check(turns: list[tuple[Job, bool]]) -> None:
            conn.execute(f"DELETE FROM {TABLE}")
            for job, by_the_other in turns:
                count(
                    other if by_the_other else conn,
                    job.milliseconds,
                    action_type_id=job.action_type_id,
                    marketplace=job.marketplace,
                    date=job.date,
                    success=job.success,
                )
            assert expected_rows([job for job, _ in turns]) == rows(conn)

        check()


def test_every_way_of_counting_mixed(conn: Connection) -> None:
    """Single calls, batches, asynchronous calls and old code, in any order, count in the same rows: no count is lost.

    Where old code has not counted, the mean is exact; it counts in one row of Vinted's.
    """
    ways = st.sampled_from(["single", "batch", "async", "old code"])
    old = Job(1, "vinted", DAY, success=True, milliseconds=0)

    with asyncio.Runner() as runner:
        other = runner.run(AsyncConnection.connect(conn.info.dsn, password=conn.info.password or None, autocommit=True))

        @repeatable
        @given(st.lists(st.tuples(ways, st.lists(jobs, max_size=6)), max_size=6))
        def check(steps: list[tuple[str, list[Job]]]) -> None:
            conn.execute(f"DELETE FROM {TABLE}")
            for way, batch in steps:
                if way == "batch":
                    update_job_stats_batch(conn, schema="user_1", outcomes=map(outcome, batch))
                    continue
                for job in batch:
                    if way == "single":
                        update_job_stats(conn, schema="user_1", **asdict(outcome(job)))
                    elif way == "async":
                        runner.run(aio.update_job_stats(other, schema="user_1", **asdict(outcome(job))))
                    else:
                        count_as_old_code(conn, min(job.milliseconds or 0, 10_000))
            ways_and_jobs = [(way, job) for way, batch in steps for job in batch]
            expected = expected_rows([old if way == "old code" else job for way, job in ways_and_jobs])
            found = rows(conn)
            if any(way == "old code" for way, _ in ways_and_jobs):
                key = old.action_type_id, old.marketplace, old.date
                assert expected.pop(key)[:3] == found.pop(key)[:3]
            assert expected == found

        check()
        runner.run(other.close())


def test_the_mean_follows_a_shift(conn: Connection) -> None:
    """10,000 jobs, 1.5 s at first and 1.9 s later, have a mean of 1.7 s; old code's formula and rounding miss it."""
    milliseconds = [1500] * 5000 + [1900] * 5000
    truncated = frozen = milliseconds[0]
    for n, each in enumerate(milliseconds[1:], start=2):
        truncated = int((truncated * (n - 1) + each) / n)
        frozen = round((frozen * (n - 1) + each) / n)
    assert (1500, 1500) == (truncated, frozen)  # no job is far enough from the average to move it

    with conn.pipeline():
        for each in milliseconds:
            count(conn, each)
    assert 1700 == average(conn)


def test_no_duration_is_lost_in_a_race(conn: Connection) -> None:
    """16 connections that count 200 jobs each on one new key at once, a quarter untimed: the mean is exact."""
    barrier = Barrier(16, timeout=300)

    def milliseconds(worker: int) -> Iterator[int | None]:
        for job in range(200):
            yield None if job % 4 == 0 else 1000 * worker + job

    def work(worker: int) -> None:
        with connect(conn) as own:
            barrier.wait()
            for each in milliseconds(worker):
                count(own, each)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    timed = [each for worker in range(16) for each in milliseconds(worker) if each is not None]
    (row,) = get_stats(conn, schema="user_1")
    assert (3200, rounded(Fraction(sum(timed), len(timed)))) == (row.total_jobs, row.avg_duration_ms)
    stored = conn.execute(f"SELECT untimed_jobs, total_duration_ms FROM {TABLE}").fetchall()
    assert [(800, sum(timed))] == stored


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        ([1, 2], 2),  # half up
        ([1, 1, 2], 1),
        ([2**31], 2**31 - 1),  # more than the column holds
        ([2**31, 0], 2**30),  # but not than the sum does
        ([LONGEST] * 3, 2**31 - 1),
        ([LONGEST, *[0] * 7], 2**29),
    ],
)
def test_long_jobs(conn: Connection, milliseconds: list[int], expected: int) -> None:
    """24.8 days and more in a job or a day: the sum is kept, and a mean too long for the column shows as its end."""
    for each in milliseconds:
        count(conn, each)
    assert expected == average(conn)


def test_the_most_and_longest_jobs(conn: Connection) -> None:
    """As many of the longest jobs as a row can count do not overflow the sum."""
    count(conn, LONGEST)
    most = 2**31 - 2
    total = most * LONGEST
    conn.execute(
        f"UPDATE {TABLE} SET total_jobs = {most}, success_count = {most}, total_duration_ms = {total}".encode()
    )
    count(conn, LONGEST)
    assert [((most + 1) * LONGEST, 2**31 - 1)] == conn.execute(
        f"SELECT total_duration_ms, avg_duration_ms FROM {TABLE}"
    ).fetchall()


# Old code writes, too


@dataclass
class Reference:
    """What the mean would be if old code did not truncate, and how far off the library may be.

    Old code's average after n jobs is less than 1 ms low for each of its steps, weighted by the jobs it was the average
    of: n * error grows by less than n. Over n jobs that is an error of up to (n - 1) / 2 ms. The library rounds to
    within 1/2 ms what old code then goes on from, and takes what old code left to within another 1/2 ms: at most 1 ms a
    turn, where old code would have lost as much for the library's jobs of that turn.
    """

    jobs: int = 0
    timed: int = 0
    mean: Fraction = Fraction(0)
    error: Fraction = Fraction(0)  # of the mean that the library believes in, at most
    by_library: bool = field(default=False)  # the last job

    def library(self, milliseconds: int | None) -> None:
        """Add a job that the library counts; old code's average has just been taken for the mean."""
        if not self.by_library:
            self.error += Fraction(1, 2)
        self.by_library = True
        self.jobs += 1
        if milliseconds is not None:
            self.mean = (self.mean * self.timed + milliseconds) / (self.timed + 1)
            self.error *= Fraction(self.timed, self.timed + 1)
            self.timed += 1

    def old_code(self, milliseconds: int) -> None:
        """Add a job that old code counts, to which jobs without a duration are of average duration."""
        if self.by_library:
            self.error += Fraction(1, 2)  # the stored average is rounded
        self.by_library = False
        self.jobs += 1
        self.timed += 1
        weight = Fraction(self.jobs - 1 if self.timed > 1 else 0, self.jobs if self.timed > 1 else 1)
        self.mean = self.mean * weight + milliseconds * (1 - weight)
        self.error = self.error * weight + (1 if self.timed > 1 else 0)


def check_mixed(conn: Connection, turns: list[tuple[bool, int | None]]) -> Reference:
    """Count jobs with the library (True) and with old code; compare the average with the reference after each."""
    conn.execute(f"DELETE FROM {TABLE}")
    reference = Reference()
    for by_library, milliseconds in turns:
        if by_library:
            count(conn, milliseconds, marketplace="vinted")
            reference.library(milliseconds)
        else:
            count_as_old_code(conn, milliseconds or 0)
            reference.old_code(milliseconds or 0)
        found = average(conn)
        assert (found is None) == (reference.timed == 0)
        if found is not None:
            assert abs(found - reference.mean) <= reference.error + Fraction(1, 2)
    assert [len(turns)] == column(conn, f"SELECT coalesce(sum(total_jobs), 0) FROM {TABLE}")
    return reference


def test_old_code_in_between(conn: Connection) -> None:
    """Jobs of both in any order: the average is off by what old code's truncation and the turns account for."""
    milliseconds = st.integers(0, 20) | st.integers(0, 10_000)

    @repeatable
    @given(st.lists(st.tuples(st.just(True), st.none() | milliseconds) | st.tuples(st.just(False), milliseconds)))
    def check(turns: list[tuple[bool, int | None]]) -> None:
        check_mixed(conn, turns)

    check()


def test_never_worse_than_old_code_alone(conn: Connection) -> None:
    """With durations throughout, the error is within the bound of old code's own, (n - 1) / 2 ms, and 1/2 ms more."""

    @repeatable
    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 10_000)), min_size=1))
    def check(turns: list[tuple[bool, int | None]]) -> None:
        check_mixed(conn, turns)
        true_mean = Fraction(sum(milliseconds or 0 for _, milliseconds in turns), len(turns))
        found = average(conn)
        assert found is not None
        assert abs(found - true_mean) <= Fraction(len(turns) - 1, 2) + Fraction(1, 2)

    check()


def test_half_of_the_truncation_is_gone(conn: Connection) -> None:
    """Of 2,000 jobs by turns, the library's half costs nothing: the average is far closer than old code's would be."""
    milliseconds = [1000 + n * 7919 % 1000 for n in range(2000)]
    alone = milliseconds[0]
    for n, each in enumerate(milliseconds[1:], start=2):
        alone = int((alone * (n - 1) + each) / n)
    check_mixed(conn, [(n % 10 > 0, each) for n, each in enumerate(milliseconds)])
    found, true_mean = average(conn), Fraction(sum(milliseconds), len(milliseconds))
    assert found is not None
    assert abs(found - true_mean) * 5 < abs(alone - true_mean)


def test_rows_from_before(conn: Connection) -> None:
    """A row that has only legacy columns goes on from average times jobs; without an average, from nothing."""
    for action, jobs_before, mean_before in [(1, 3, 1000), (2, 3, None), (3, 0, None)]:
        conn.execute(
            f"INSERT INTO {TABLE} (action_type_id, date, marketplace, total_jobs, success_count, avg_duration_ms)"
            " VALUES (%s, %s, 'ebay', %s, %s, %s)",
            [action, DAY, jobs_before, jobs_before, mean_before],
        )
        count(conn, None, action_type_id=action)
        count(conn, 2000, action_type_id=action)
    assert [(5, 1250), (5, 2000), (2, 2000)] == [
        (row.total_jobs, row.avg_duration_ms) for row in get_stats(conn, schema="user_1")
    ]


@pytest.mark.parametrize(
    ("repair", "expected"),
    [
        ("avg_duration_ms = 500", 600),  # of 4 timed jobs, and one of 1000
        ("avg_duration_ms = NULL", 1000),
        ("total_jobs = 0, success_count = 0, avg_duration_ms = NULL", 1000),
        ("total_jobs = 1, success_count = 1, avg_duration_ms = 500", 750),
        ("untimed_jobs = NULL, total_duration_ms = NULL", 1750),  # 6 jobs of 1875: as if from before 0021
    ],
)
def test_repairs_by_hand(conn: Connection, repair: str, expected: int) -> None:
    """Who changes a row's average or jobs by hand is believed."""
    for milliseconds in [None, None, 1500, 1500, 1500, 3000]:
        count(conn, milliseconds)
    conn.execute(f"UPDATE {TABLE} SET {repair}".encode())
    count(conn, 1000)
    assert expected == average(conn)


@pytest.mark.parametrize("old_code", ["inserts", "inserts and the library counts"])
def test_a_first_job_that_races_old_code(conn: Connection, old_code: str) -> None:
    """A job that finds no row, as another transaction is about to commit one of old code's, is added to that."""
    with connect(conn, autocommit=False) as other:
        count_as_old_code(other, 1000)
        if old_code != "inserts":
            count(other, 1000, marketplace="vinted")
            count_as_old_code(other, 1000)
        with conn.pipeline():
            count(conn, 3000, marketplace="vinted")
            while other.execute("SELECT pg_blocking_pids(%s)", [conn.info.backend_pid]).fetchone() == ([],):
                pass
            other.commit()
    (row,) = get_stats(conn, schema="user_1")
    expected = (2, 2000) if old_code == "inserts" else (4, 1500)
    assert expected == (row.total_jobs, row.avg_duration_ms)


# The migration


def test_up_and_down_with_data(conn: Connection) -> None:
    """Up, down and up again keep every row's average; the legacy view never shows the columns."""
    for milliseconds in [1000, 2000, 2001, None]:
        count(conn, milliseconds, marketplace="vinted")
    columns = """
        SELECT string_agg(attname, ' ' ORDER BY attnum)
        FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
    """
    view, table = column(conn, columns, "user_1.vinted_job_stats"), column(conn, columns, TABLE)
    ok(yoyo(conn, "rollback", "--revision", "0021"))
    assert table == [f"{column(conn, columns, TABLE)[0]} untimed_jobs total_duration_ms"]
    assert (1667, view) == (average(conn), column(conn, columns, "user_1.vinted_job_stats"))
    ok(psql(conn, "-f", VERIFY))
    ok(yoyo(conn, "apply"))
    assert (1667, view) == (average(conn), column(conn, columns, "user_1.vinted_job_stats"))
    count(conn, 3332, marketplace="vinted")
    assert 2000 == average(conn)  # 4 jobs of 1667: what the row said


def test_no_row_is_rewritten(conn: Connection) -> None:
    """The columns come and go as changes of the catalog."""
    files = "SELECT array_agg(relfilenode ORDER BY oid) FROM pg_class WHERE relname = 'marketplace_job_stats'"
    before = column(conn, files)
    ok(psql(conn, "-f", UNEXACT))
    ok(psql(conn, "-f", EXACT))
    assert before == column(conn, files)


def test_a_tenant_that_has_not_had_it_is_named(conn: Connection) -> None:
    """Once it is applied to all, a tenant that has not had 0021 is named, until it is run again."""
    conn.execute("CALL job_stats.add_tenant('user_restored')")
    conn.execute("ALTER TABLE user_restored.marketplace_job_stats DROP total_duration_ms, DROP untimed_jobs")
    conn.execute("DROP INDEX user_restored.marketplace_job_stats_date_marketplace_idx")
    failed = psql(conn, "-f", VERIFY)
    assert "user_restored: has not had 0021.exact-averages" in failed.stderr
    ok(psql(conn, "-f", EXACT))
    ok(psql(conn, "-f", VERIFY))
