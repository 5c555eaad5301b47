"""What grown applications do to `stats_lib`: shared connections, adapters of their own, wrong objects, stray tasks."""

import asyncio
import datetime
import importlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import asdict
from enum import Enum, StrEnum
from functools import partial
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg import AsyncConnection
from psycopg.adapt import Dumper, Loader
from psycopg.pq import Format, PipelineStatus, TransactionStatus
from psycopg.types.json import JsonbDumper
from psycopg_pool import ConnectionPool
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

import stats_lib._connections
from stats_lib import (
    JobOutcome,
    Marketplace,
    aio,
    get_platform_summary,
    get_stats,
    get_summary,
    update_job_stats,
    update_job_stats_batch,
)
from tests.deploy import connect
from tests.tenants import Connection, column

DAY = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)  # over: no test can see it change
TABLE = "user_1.marketplace_job_stats"
SECOND = datetime.timedelta(seconds=1)
JOB = JobOutcome(1, "ebay", success=True)

KEY: dict[str, Any] = {"schema": "user_1", "action_type_id": 1, "marketplace": "ebay", "success": True}
count: Callable[..., None] = partial(update_job_stats, **KEY, date=DAY)
acount: Callable[..., Coroutine[Any, Any, None]] = partial(aio.update_job_stats, **KEY, date=DAY)


@pytest.fixture
def conn(migrated: Connection) -> Connection:
    """A connection, in autocommit, to a database where user_1 has counted nothing yet."""
    migrated.execute(f"DELETE FROM {TABLE}")
    return migrated


def outcomes(count: int, **fields: Any) -> list[JobOutcome]:
    """As many jobs, of as many action types, unless told otherwise."""
    fields = dict[str, Any](marketplace="ebay", success=True, duration=SECOND, date=DAY) | fields
    return [JobOutcome(**{"action_type_id": n, **fields}) for n in range(count)]


def jobs(conn: Connection) -> int:
    """How many jobs user_1 has counted, as another session sees it."""
    with connect(conn) as other:
        return int(column(other, f"SELECT coalesce(sum(total_jobs), 0) FROM {TABLE}")[0])


def jobs_of(conn: Connection, action_type_id: int) -> int:
    """How many jobs of an action type user_1 has counted, as another session sees it."""
    with connect(conn) as other:
        query = f"SELECT coalesce(sum(total_jobs), 0) FROM {TABLE} WHERE action_type_id = %s"
        return int(column(other, query, action_type_id)[0])


async def aconnect(conn: Connection, **options: Any) -> AsyncConnection[Any]:
    """Open an asynchronous connection to the database of `conn`, in autocommit."""
    return await AsyncConnection.connect(
        conn.info.dsn, password=conn.info.password or None, **{"autocommit": True, **options}
    )


async def until_it_waits(own: AsyncConnection[Any], blocker: AsyncConnection[Any]) -> None:
    """Return when `own` waits for a lock."""
    blocked = "SELECT pg_blocking_pids(%s) <> '{}'"
    while (await (await blocker.execute(blocked, [own.info.backend_pid])).fetchone()) != (True,):
        pass


# One connection for all


def test_tasks_share_a_connection(conn: Connection) -> None:
    """What tasks count at once on one autocommit connection, singly or by batches, is counted when it returns."""

    async def main() -> TransactionStatus:
        async with await aconnect(conn) as own:
            singles = [acount(own, action_type_id=n % 3) for n in range(90)]
            batches = [aio.update_job_stats_batch(own, schema="user_1", outcomes=outcomes(3)) for _ in range(10)]
            await asyncio.gather(*(task for pair in zip(singles[:10], batches, strict=True) for task in pair))
            await asyncio.gather(*singles[10:])
            return own.info.transaction_status

    assert TransactionStatus.IDLE == asyncio.run(main())
    assert 90 + 30 == jobs(conn)


def test_threads_share_a_connection(conn: Connection) -> None:
    """The same with threads; a batch that is refused meanwhile takes nothing of the others' with it."""

    def work(n: int) -> None:
        if n % 10 == 0:
            with pytest.raises(psycopg.errors.UndefinedTable):
                update_job_stats_batch(conn, schema="user_404", outcomes=outcomes(3))
        elif n % 2:
            update_job_stats_batch(conn, schema="user_1", outcomes=outcomes(3))
        else:
            count(conn)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(100)))
    assert TransactionStatus.IDLE == conn.info.transaction_status
    assert 50 * 3 + 40 == jobs(conn)


def test_a_transaction_on_a_shared_connection(conn: Connection) -> None:
    """What others count meanwhile falls into it, and is lost with it."""

    async def main() -> None:
        async with await aconnect(conn) as own, own.transaction(force_rollback=True):
            await asyncio.gather(acount(own), aio.update_job_stats_batch(own, schema="user_1", outcomes=outcomes(3)))

    asyncio.run(main())
    assert 0 == jobs(conn)


def test_a_handler_of_notifications_that_raises(conn: Connection) -> None:
    """The job is counted nevertheless, and the connection has to be closed."""

    def handler(_: psycopg.Notify) -> None:
        raise ZeroDivisionError

    count(conn)
    with connect(conn) as own:
        own.execute("LISTEN jobs")
        own.add_notify_handler(handler)
        conn.execute("NOTIFY jobs")
        with pytest.raises(ZeroDivisionError):
            count(own)
        assert TransactionStatus.ACTIVE == own.info.transaction_status
        own.close()
    assert 2 == jobs(conn)


def test_a_batch_is_all_or_nothing_in_autocommit(conn: Connection) -> None:
    """A batch that fails at its last row leaves nothing, no row at zero either."""
    count(conn, action_type_id=9)
    conn.execute(f"UPDATE {TABLE} SET total_jobs = 2147483647")
    for pipeline in (False, True):
        with pytest.raises(psycopg.errors.NumericValueOutOfRange):  # noqa: PT012  # raised at the pipeline's end
            if pipeline:
                with conn.pipeline():
                    update_job_stats_batch(conn, schema="user_1", outcomes=outcomes(10))
            else:
                update_job_stats_batch(conn, schema="user_1", outcomes=outcomes(10))
    assert [9] == column(conn, f"SELECT action_type_id FROM {TABLE}")


def test_a_cancelled_batch_leaves_nothing(conn: Connection) -> None:
    """A task that is cancelled while its batch waits for a row has counted none of it; the connection goes on."""

    async def main() -> None:
        async with await aconnect(conn) as own, await aconnect(conn, autocommit=False) as blocker:
            await acount(blocker, action_type_id=5)
            task = asyncio.create_task(aio.update_job_stats_batch(own, schema="user_1", outcomes=outcomes(10)))
            await until_it_waits(own, blocker)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await blocker.rollback()
            await acount(own)

    asyncio.run(main())
    assert 1 == jobs(conn)


@pytest.mark.parametrize(
    ("made", "others", "autocommit"), [(1, 0, True), (10, 0, True), (10, 0, False), (1, 3, True), (10, 3, True)]
)
def test_cancelled_at_any_step(
    conn: Connection, monkeypatch: pytest.MonkeyPatch, *, made: int, others: int, autocommit: bool
) -> None:
    """A batch that is cancelled is counted whole or not at all; its connection goes on, or is closed.

    Also after another task's batch, for which it has waited, and where another error is being handled. Where psycopg
    gives way to other tasks if the loop has been busy for 5 ms, it does so each time here.
    """
    monkeypatch.setattr("psycopg.waiting.MAX_BUSY_TIME", 0, raising=False)

    async def batch(own: AsyncConnection[Any], number: int) -> None:
        try:
            raise KeyError
        except KeyError:
            await aio.update_job_stats_batch(own, schema="user_1", outcomes=outcomes(number))

    async def is_cancelled(own: AsyncConnection[Any], turns: int) -> bool:
        other, task = (asyncio.create_task(batch(own, number)) for number in [others, made])
        if others:
            await other
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return True
        return False

    async def main() -> None:
        cancelled, turns = True, 0
        while cancelled:
            conn.execute(f"DELETE FROM {TABLE}")
            async with await aconnect(conn, autocommit=autocommit) as own:
                cancelled = await is_cancelled(own, turns)
                if went_on := not own.closed:
                    await own.commit()
                    assert jobs(conn) - others in ({0, made} if cancelled else {made})
                    await aio.update_job_stats_batch(own, schema="user_1", outcomes=outcomes(3))
                    await acount(own)
            assert jobs(conn) - others in {4 * went_on, made + 4 * went_on}
            turns += 1 + turns // 10

    asyncio.run(main())


def test_a_batch_that_is_cancelled_while_it_waits_for_another(conn: Connection) -> None:
    """The other one, of another task on the same connection, is counted, and the connection goes on."""

    async def main() -> None:
        async with await aconnect(conn) as own, await aconnect(conn, autocommit=False) as blocker:
            await acount(blocker, action_type_id=1)
            single, other, cancelled = [
                asyncio.create_task(call)
                for call in [
                    acount(own, action_type_id=9),
                    aio.update_job_stats_batch(own, schema="user_1", outcomes=outcomes(5)),
                    aio.update_job_stats_batch(own, schema="user_1", outcomes=outcomes(7)),
                ]
            ]
            await until_it_waits(own, blocker)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            await blocker.rollback()
            await asyncio.gather(single, other)
            await acount(own)

    asyncio.run(main())
    assert 1 + 5 + 1 == jobs(conn)


def test_a_batch_that_is_cancelled_in_a_pipeline_of_another_task(conn: Connection) -> None:
    """Where it has waited until the other is not at work: the pipeline is the other's, and the connection goes on."""

    async def main() -> None:
        async with await aconnect(conn) as own, own.pipeline():
            async with own.lock:  # as psycopg does while it is at work
                cancelled = asyncio.create_task(aio.update_job_stats_batch(own, schema="user_1", outcomes=outcomes(7)))
                await asyncio.sleep(0)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            await acount(own)

    asyncio.run(main())
    assert 1 == jobs(conn)


@pytest.mark.parametrize("made", [1, 3])
def test_a_connection_that_is_dead(conn: Connection, made: int) -> None:
    """A batch says so, and never raises again what the caller is already handling."""
    terminate = "SELECT pg_terminate_backend(%s, 10000)"
    with connect(conn) as own:
        column(conn, terminate, own.info.backend_pid)
        try:
            raise KeyError
        except KeyError:
            with pytest.raises(psycopg.OperationalError):
                update_job_stats_batch(own, schema="user_1", outcomes=outcomes(made))

    async def main() -> None:
        async with await aconnect(conn) as own:
            column(conn, terminate, own.info.backend_pid)
            try:
                raise KeyError
            except KeyError:
                with pytest.raises(psycopg.OperationalError):
                    await aio.update_job_stats_batch(own, schema="user_1", outcomes=outcomes(made))

    asyncio.run(main())


def test_an_old_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where libpq has no pipelines, a batch would not be all or nothing: the import says what is needed."""
    monkeypatch.setattr("psycopg.Pipeline.is_supported", lambda: False)
    with pytest.raises(ImportError, match="needs libpq 14 or newer"):
        importlib.reload(stats_lib._connections)


def test_ids_of_racing_batches(conn: Connection) -> None:
    """Of batches that meet on new rows each takes one id beside the rows', at most; once they are there, none."""
    barrier = Barrier(12, timeout=300)

    def work(_: int) -> None:
        with connect(conn) as own:
            for day in range(10):
                barrier.wait()
                day_before = DAY - datetime.timedelta(days=day)
                update_job_stats_batch(own, schema="user_1", outcomes=outcomes(20, date=day_before))

    first = column(conn, "SELECT nextval('template_tenant.marketplace_job_stats_id_seq')")[0]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))
    last = column(conn, "SELECT nextval('template_tenant.marketplace_job_stats_id_seq')")[0]
    assert 12 * 200 == jobs(conn)
    assert 200 <= last - first - 1 <= 200 + 12 * 10
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))
    assert 2 * 12 * 200 == jobs(conn)
    assert [last + 1] == column(conn, "SELECT nextval('template_tenant.marketplace_job_stats_id_seq')")


# Adapters of the application's


class Name(Dumper):
    """Sends a member's name, as ORMs do."""

    def dump(self, obj: Any) -> bytes:
        """Return it."""
        return str(getattr(obj, "name", obj)).encode()


class Letter(Dumper):
    """Sends Y or N, as for a char(1)."""

    def dump(self, obj: Any) -> bytes:
        """Return it."""
        return b"Y" if obj else b"N"


class Refusal(Dumper):
    """Sends nothing at all."""

    def dump(self, obj: Any) -> bytes:
        """Raise."""
        raise NotImplementedError(type(obj))


class Nonsense(Loader):
    """Reads everything as one thing."""

    def load(self, data: Any) -> str:
        """Return it."""
        return f"nonsense: {bytes(data)!r}"


class BinaryNonsense(Nonsense):
    """The same of what is read in binary."""

    format = Format.BINARY


def hostile_adapters(conn: psycopg.Connection[Any] | AsyncConnection[Any]) -> None:
    """Register for every type what nobody expects."""
    dumpers: dict[type, type[Any]] = {
        list: JsonbDumper,
        tuple: JsonbDumper,
        dict: JsonbDumper,
        Enum: Name,
        StrEnum: Name,
        Marketplace: Name,
        bool: Letter,
        str: Refusal,
        int: Refusal,
        datetime.date: Refusal,
        type(None): Refusal,
    }
    for cls, dumper in dumpers.items():
        conn.adapters.register_dumper(cls, dumper)
    for name in ["int4", "int8", "text", "varchar", "date", "timestamptz", "numeric", "bool"]:
        for loader in (Nonsense, BinaryNonsense):
            conn.adapters.register_loader(name, loader)


@pytest.mark.parametrize("threshold", [None, 0, 5])
def test_adapters_of_the_application(conn: Connection, threshold: int | None) -> None:
    """Whatever is registered for whichever type, values are sent and read as they are."""
    conn.execute("REASSIGN OWNED BY legacy_owner TO current_user")
    with connect(conn, prepare_threshold=threshold) as own:
        hostile_adapters(own)
        for marketplace in ["ebay", Marketplace.EBAY]:
            count(own, marketplace=marketplace, duration=SECOND)
            count(own, marketplace=marketplace, success=False)
            update_job_stats_batch(own, schema="user_1", outcomes=outcomes(2, marketplace=marketplace))
            update_job_stats(own, **{**KEY, "marketplace": marketplace})
        for read in (conn, own):
            (today, *rows) = get_stats(read, schema="user_1", marketplace=Marketplace.EBAY)
            assert (2, Marketplace.EBAY) == (today.total_jobs, today.marketplace)
            assert [(2, 1000), (6, 1000)] == [(row.total_jobs, row.avg_duration_ms) for row in rows]
        for each in (get_stats, get_summary):
            assert each(conn, schema="user_1") == each(own, schema="user_1")
        assert get_platform_summary(conn) == get_platform_summary(own)

    async def main() -> Any:
        async with await aconnect(conn, prepare_threshold=threshold) as own:
            hostile_adapters(own)
            await aio.update_job_stats_batch(own, schema="user_1", outcomes=outcomes(2))
            return await aio.get_summary(own, schema="user_1")

    assert asyncio.run(main()) == get_summary(conn, schema="user_1")


def test_global_adapters_of_the_application(conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where they are registered for all connections."""
    monkeypatch.setattr(psycopg.adapters, "_dumpers", {k: v.copy() for k, v in psycopg.adapters._dumpers.items()})
    psycopg.adapters.register_dumper(list, JsonbDumper)
    psycopg.adapters.register_dumper(StrEnum, Name)
    with connect(conn) as own:
        count(own, marketplace=Marketplace.ETSY)
        assert [1] == [row.total_jobs for row in get_stats(own, schema="user_1", marketplace=Marketplace.ETSY)]


@pytest.mark.parametrize("column_name", ["id", "action_type_id", "total_jobs", "avg_duration_ms"])
def test_a_column_becomes_wider(conn: Connection, column_name: str) -> None:
    """Prepared statements go on when a column becomes a bigint, as a sequence that runs out demands."""
    with connect(conn, prepare_threshold=0) as own:
        for _ in range(2):
            count(own, duration=SECOND)
            update_job_stats_batch(own, schema="user_1", outcomes=outcomes(2))
            expected = get_stats(own, schema="user_1"), get_summary(own, schema="user_1")
            conn.execute("DROP VIEW IF EXISTS user_1.vinted_job_stats")
            conn.execute(f"ALTER TABLE {TABLE} ALTER {column_name} TYPE bigint".encode())
            assert expected == (get_stats(own, schema="user_1"), get_summary(own, schema="user_1"))


def test_a_pipeline_that_begins_between_the_look_and_the_statement(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server says of the statement is raised, not taken for an answer without rows."""
    monkeypatch.setattr("stats_lib._sync.PipelineStatus", SimpleNamespace(OFF=PipelineStatus.ON))  # as if it began then
    with pytest.raises(psycopg.errors.UndefinedTable), conn.pipeline():
        count(conn, schema="user_without_any")


def test_a_pipeline_that_begins_then_counts_once(conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement that finds the row has counted, though the cursor does not say so at once."""
    count(conn)
    monkeypatch.setattr("stats_lib._sync.PipelineStatus", SimpleNamespace(OFF=PipelineStatus.ON))  # as if it began then
    with conn.pipeline():
        count(conn)
    assert column(conn, f"SELECT total_jobs FROM {TABLE}") == [2]


# What is no connection, and no outcomes


def test_what_is_no_connection(conn: Connection) -> None:
    """It is a TypeError that says what is wanted, and, of what is known, where that is."""
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: connect(conn))
    async_engine = create_async_engine("postgresql+psycopg://")
    pool = ConnectionPool(conn.info.dsn, open=False)
    aconn = asyncio.run(aconnect(conn))
    django = type("ConnectionProxy", (), {"__module__": "django.utils.connection"})()
    psycopg2 = type("connection", (), {"__module__": "psycopg2.extensions"})()
    forgotten = aconnect(conn)
    cases: list[tuple[Any, str]] = [
        (None, "<class 'NoneType'>$"),
        ({"password": "secret"}, "<class 'dict'>$"),
        (pool.connection(), "enter it: with"),
        ("dbname=stats password=secret", r"<class 'str'>: make one by psycopg.connect\(\.\.\.\)$"),
        (engine, "connection.driver_connection"),
        (Session(engine), "connection.driver_connection"),
        (type("Ours", (Session,), {})(engine), "connection.driver_connection"),
        (async_engine, "get_raw_connection"),
        (django, "ensure_connection"),
        (psycopg2, "another driver"),
        (pool, "with pool.connection"),
        (conn.cursor(), "cursor.connection"),
        (forgotten, "await it first"),
    ]
    sync: list[Callable[..., Any]] = [
        count,
        partial(update_job_stats_batch, schema="user_1", outcomes=[]),
        partial(get_stats, schema="user_1"),
        partial(get_summary, schema="user_1"),
        get_platform_summary,
    ]
    for function, (wrong, said) in itertools.product(sync, [*cases, (aconn, "stats_lib.aio")]):
        with pytest.raises(TypeError, match=rf"^conn must be a psycopg.Connection; got (.|\n)*{said}"):
            function(wrong)
    for wrong, said in [*cases, (conn, "not to be awaited")]:
        with pytest.raises(TypeError, match=rf"^conn must be a psycopg.AsyncConnection; got (.|\n)*{said}"):
            asyncio.run(acount(wrong))
    asyncio.run(aconn.close())
    forgotten.close()


@pytest.mark.parametrize(
    "wrong",
    [None, 5, JOB, {JOB}, Counter([JOB, JOB]), object()],
    ids=["None", "5", "job", "set", "Counter", "object"],
)
def test_what_are_no_outcomes(conn: Connection, wrong: Any) -> None:
    """It is said in words, before anything is sent."""
    with pytest.raises(ValueError, match=r"^outcomes must be an iterable of JobOutcome that can hold equal ones; got "):
        update_job_stats_batch(conn, schema="user_1", outcomes=wrong)
    with pytest.raises(ValueError, match=r"^outcomes\[0\]: outcome must be a JobOutcome; got "):
        update_job_stats_batch(conn, schema="user_1", outcomes="ebay")  # type: ignore[arg-type]


def test_any_time_of_creation(conn: Connection) -> None:
    """A row whose created_at is infinite, or too far away for Python, is read as the last or first day there is."""
    for n, created_at in enumerate(["infinity", "-infinity", "20000-01-01", "4000-01-01 BC", "9999-12-31 23:59:59"]):
        count(conn, action_type_id=n)
        conn.execute(f"UPDATE {TABLE} SET created_at = %s WHERE action_type_id = %s", [created_at, n])
    for zone in ["UTC", "Pacific/Kiritimati", "Etc/GMT+12"]:
        conn.execute(f"SET TimeZone = '{zone}'".encode())
        years = [row.created_at.astimezone(datetime.UTC).year for row in get_stats(conn, schema="user_1")]
        assert [9999, 1, 9999, 1, 9999] == years


# All of it at once


def test_a_stress_of_mixed_writers(conn: Connection) -> None:
    """Thirty writers of every kind, with hostile adapters, cancellations and terminations: every job is accounted for.

    What returned is counted once; what raised, once or not at all: it has an action type of its own, from 1,000 on.
    """
    unknown: list[tuple[int, int]] = []  # an action type, and the jobs of it
    with connect(conn) as shared, ThreadPoolExecutor(20) as pool:
        hostile_adapters(shared)
        tasks: list[Any] = []
        tasks += [pool.submit(_sync_writer, conn, seed, shared=None, unknown=unknown) for seed in range(8)]
        tasks += [pool.submit(_sync_writer, conn, seed, shared=shared, unknown=unknown) for seed in range(8, 14)]
        tasks += [pool.submit(_pipeline_writer, conn, seed) for seed in range(14, 18)]
        tasks += [pool.submit(_terminator, conn)]
        tasks += [pool.submit(lambda: asyncio.run(_async_writers(conn, 12, unknown)))]
        returned = [task.result() for task in tasks]
    stored: dict[int, int] = dict(
        conn.execute(f"SELECT action_type_id, sum(total_jobs)::integer FROM {TABLE} GROUP BY 1").fetchall()
    )
    for action_type_id, made in unknown:
        assert stored.pop(action_type_id, 0) in (0, made)
    assert sum(returned) == sum(stored.values())
    assert [True] == column(conn, f"SELECT bool_and(total_jobs = success_count + failure_count) FROM {TABLE}")
    assert [True] == column(
        conn,
        f"SELECT bool_and(total_duration_ms = 1000 * (total_jobs - untimed_jobs)"
        f" AND avg_duration_ms IS NOT DISTINCT FROM CASE WHEN total_jobs > untimed_jobs THEN 1000 END) FROM {TABLE}",
    )


_UNKNOWN = itertools.count(1000)


def _job(order: random.Random) -> dict[str, Any]:
    return {
        "marketplace": order.choice(list(Marketplace)),
        "success": order.random() < 0.7,
        "duration": order.choice([None, SECOND]),
        "date": DAY - datetime.timedelta(days=order.randrange(2)),
    }


def _batch(order: random.Random, *, action_type_id: int | None = None) -> list[JobOutcome]:
    return [
        JobOutcome(action_type_id=order.randrange(5) if action_type_id is None else action_type_id, **_job(order))
        for _ in range(order.randrange(1, 9))
    ]


def _sync_writer(conn: Connection, seed: int, *, shared: Connection | None, unknown: list[tuple[int, int]]) -> int:
    """Count singly and by batches, in autocommit, on a connection that others share, or that may be terminated."""
    order, made = random.Random(seed), 0  # noqa: S311
    own = shared or connect(conn, application_name="victim")
    for _ in range(40):
        action_type_id = order.randrange(5) if shared else next(_UNKNOWN)
        batch = _batch(order, action_type_id=action_type_id)[: order.choice([1, 9])]
        try:
            if len(batch) == 1:
                update_job_stats(own, schema="user_1", **asdict(batch[0]))
            else:
                update_job_stats_batch(own, schema="user_1", outcomes=batch)
            made += len(batch)
            assert shared or jobs_of(conn, action_type_id) == len(batch)
        except psycopg.OperationalError:
            unknown.append((action_type_id, len(batch)))
            own.close()  # psycopg does not know yet that it is dead if the end came as the result of a statement
            own = connect(conn, application_name="victim")
    if not shared:
        own.close()
    return made


def _pipeline_writer(conn: Connection, seed: int) -> int:
    """Count in pipelines, each of which is a transaction: in the order of the keys, as transactions should."""
    order, made = random.Random(seed), 0  # noqa: S311
    with connect(conn) as own:
        hostile_adapters(own)
        for _ in range(10):
            with own.pipeline():
                for job in sorted(_batch(order), key=lambda job: (job.action_type_id, job.marketplace, job.date)):
                    update_job_stats(own, schema="user_1", **asdict(job))
                    made += 1
    return made


def _terminator(conn: Connection) -> int:
    with connect(conn) as own:
        for _ in range(20):
            own.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'victim'"
                " AND datname = current_database() AND state = 'active' ORDER BY random() LIMIT 1"
            )
    return 0


async def _async_writers(conn: Connection, writers: int, unknown: list[tuple[int, int]]) -> int:
    """Tasks that share two connections, of which every fifth call is cancelled."""
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(await aconnect(conn)) for _ in range(2)]
        hostile_adapters(second)

        async def work(seed: int) -> int:
            order, made = random.Random(seed), 0  # noqa: S311
            own = (first, second)[seed % 2]
            for n in range(20):
                cancelled = n % 5 == 4
                action_type_id = next(_UNKNOWN) if cancelled else order.randrange(5)
                batch = _batch(order, action_type_id=action_type_id)
                task = asyncio.create_task(aio.update_job_stats_batch(own, schema="user_1", outcomes=batch))
                if cancelled:
                    for _ in range(order.randrange(1, 400)):
                        await asyncio.sleep(0)
                    task.cancel()
                try:
                    await task
                    made += len(batch)
                except asyncio.CancelledError:
                    unknown.append((action_type_id, len(batch)))
                except psycopg.OperationalError:  # somebody was cancelled when psycopg could not go on
                    assert own.closed
                    own = await stack.enter_async_context(await aconnect(conn))
            return made

        return sum(await asyncio.gather(*(work(seed) for seed in range(100, 100 + writers))))
