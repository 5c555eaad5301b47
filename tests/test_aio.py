"""`stats_lib.aio`: what the synchronous functions do, awaited; `test_stats_lib` has what that is."""

import ast
import asyncio
import datetime
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

import stats_lib
from stats_lib import Marketplace, _sync, aio
from tests.tenants import Connection

# A day that is over: no test can see the date change under it.
DAY = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)

Result = TypeVar("Result")

count = partial(aio.update_job_stats, schema="user_1", action_type_id=1, marketplace="ebay", success=True, date=DAY)
read = partial(aio.get_stats, schema="user_1")
add_up = partial(aio.get_summary, schema="user_1")


def run(
    conn: Connection, test: Callable[[AsyncConnection[Any]], Awaitable[Result]], *, autocommit: bool = True
) -> Result:
    """Run a coroutine on an asynchronous connection to the database of `conn`, whose user_1 has counted nothing."""

    async def main() -> Result:
        async with await connect(conn, autocommit=autocommit) as own:
            return await test(own)

    conn.execute("DELETE FROM user_1.marketplace_job_stats")
    return asyncio.run(main())


async def connect(conn: Connection, *, autocommit: bool = True) -> AsyncConnection[Any]:
    return await AsyncConnection.connect(conn.info.dsn, password=conn.info.password or None, autocommit=autocommit)


class _Synchronous(ast.NodeTransformer):
    """Takes out of a module what makes it asynchronous, the decorators and the docstrings."""

    def visit_Await(self, node: ast.Await) -> ast.expr:
        expression: ast.expr = self.visit(node.value)
        return expression

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.With:
        self.generic_visit(node)
        return ast.With(node.items, node.body, lineno=0)

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(node.id.removeprefix("Async"))

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.stmt:
        node.decorator_list = []
        return self.visit_FunctionDef(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.stmt:
        self.generic_visit(node)
        return ast.FunctionDef(node.name, node.args, node.body[1:], [], node.returns, lineno=0)


def _functions(module: ModuleType) -> dict[str, str]:
    """The code of each public function of a module, less what makes it asynchronous."""
    return {
        node.name: ast.unparse(_Synchronous().visit(node))
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    }


def test_only_await_differs() -> None:
    """Each function has an asynchronous twin: without `async`, `await` and `Async…`, the same code, word for word."""
    functions = _functions(_sync)

    assert functions == _functions(aio)
    assert sorted(functions) == sorted(aio.__all__) == sorted(name for name in stats_lib.__all__ if name.islower())


@pytest.mark.parametrize("name", aio.__all__)
def test_help(name: str) -> None:
    """`help()` of an asynchronous function has units, ranges, order and errors too, in the words of its twin."""
    twin, function = getattr(stats_lib, name), getattr(aio, name)

    assert inspect.iscoroutinefunction(function)
    expected = f"`stats_lib.{name}`, to be awaited.\n\n{inspect.getdoc(twin)}"
    assert expected == inspect.getdoc(function)


def test_count_and_read(migrated: Connection) -> None:
    """Jobs are counted and read back, whatever the connection's row factory."""

    async def test(conn: AsyncConnection[Any]) -> list[stats_lib.JobStats]:
        conn.row_factory = dict_row
        await count(conn, duration=datetime.timedelta(seconds=1))
        await count(conn, duration=datetime.timedelta(seconds=2), success=False)
        await count(conn, marketplace=Marketplace.ETSY)
        return await read(conn)

    ebay, etsy = run(migrated, test)
    assert (Marketplace.EBAY, 2, 1, 1, 1500) == (
        ebay.marketplace,
        ebay.total_jobs,
        ebay.success_count,
        ebay.failure_count,
        ebay.avg_duration_ms,
    )
    assert (Marketplace.ETSY, 1, None) == (etsy.marketplace, etsy.total_jobs, etsy.avg_duration_ms)
    assert [ebay, etsy] == stats_lib.get_stats(migrated, schema="user_1")


def test_summary(migrated: Connection) -> None:
    """Sums per marketplace are what the synchronous function says."""

    async def test(conn: AsyncConnection[Any]) -> list[stats_lib.MarketplaceSummary]:
        await count(conn, duration=datetime.timedelta(seconds=1))
        return await add_up(conn)

    summary = run(migrated, test)
    assert [(Marketplace.EBAY, 1, 1000), (Marketplace.ETSY, 0, None), (Marketplace.VINTED, 0, None)] == [
        (row.marketplace, row.total_jobs, row.avg_duration_ms) for row in summary
    ]
    assert summary == stats_lib.get_summary(migrated, schema="user_1")


def test_no_update_is_lost(migrated: Connection) -> None:
    """Eight connections in one event loop, with 50 jobs each on one new key, are counted exactly."""

    async def work() -> None:
        async with await connect(migrated) as own:
            for _ in range(50):
                await count(own)

    async def test(conn: AsyncConnection[Any]) -> list[int]:
        await asyncio.gather(*(work() for _ in range(8)))
        return [row.total_jobs for row in await read(conn)]

    assert [400] == run(migrated, test)


def test_the_caller_rolls_back(migrated: Connection) -> None:
    """Nothing is committed: the caller's rollback undoes what was counted."""

    async def test(conn: AsyncConnection[Any]) -> None:
        await count(conn)
        assert [1] == [row.total_jobs for row in await read(conn)]
        assert TransactionStatus.INTRANS == conn.info.transaction_status
        await conn.rollback()
        assert [] == await read(conn)

    run(migrated, test, autocommit=False)


def test_bad_argument(migrated: Connection) -> None:
    """A bad argument raises ValueError when awaited; nothing is sent, and an open transaction goes on."""

    async def test(conn: AsyncConnection[Any]) -> None:
        with pytest.raises(ValueError, match=r"^marketplace must be "):
            await count(conn, marketplace="EBAY")
        with pytest.raises(ValueError, match=r"^days must be "):
            await read(conn, days=0)
        assert TransactionStatus.IDLE == conn.info.transaction_status
        await count(conn)
        with pytest.raises(ValueError, match=r"^schema must be "):
            await count(conn, schema="")
        assert [1] == [row.total_jobs for row in await read(conn)]

    run(migrated, test, autocommit=False)


def test_driver_errors_pass_through(migrated: Connection) -> None:
    """A schema without the table is psycopg's UndefinedTable."""

    async def test(conn: AsyncConnection[Any]) -> None:
        for call in (count, read, add_up):
            with pytest.raises(psycopg.errors.UndefinedTable):
                await call(conn, schema="user_404")

    run(migrated, test)


def test_cancelled_task(migrated: Connection) -> None:
    """A task that is cancelled while it waits for a locked row has counted nothing, and its connection goes on."""

    async def test(conn: AsyncConnection[Any]) -> list[int]:
        await count(conn)
        async with await connect(migrated, autocommit=False) as blocker:
            await count(blocker)
            task = asyncio.create_task(count(conn))
            while True:
                waits = await blocker.execute("SELECT pg_blocking_pids(%s) <> '{}'", [conn.info.backend_pid])
                if await waits.fetchone() == (True,):
                    break
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await blocker.rollback()
        await count(conn)
        return [row.total_jobs for row in await read(conn)]

    assert [2] == run(migrated, test)
