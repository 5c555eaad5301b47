"""Each block of docs/recipes.md and docs/counting.md runs as it stands, does what it says, and has right types."""

import asyncio
import datetime
import json
import re
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import django
import psycopg
import pytest
import sqlalchemy
from django.conf import settings
from django.db import connections
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from stats_lib import Marketplace, get_stats, get_summary
from tests.deploy import bash, connect, libpq_env, psql
from tests.tenants import VERIFY, Connection, column, ok
from tests.test_docs import blocks
from tests.test_typing import CHECKERS, errors

TODAY = datetime.datetime.now(datetime.UTC).date


@pytest.fixture
def conn(migrated: Connection, monkeypatch: pytest.MonkeyPatch) -> Connection:
    """A connection, in autocommit, to where PG… variables point, and where user_1 has counted nothing yet."""
    for name, value in libpq_env(migrated).items():
        if name.startswith("PG"):
            monkeypatch.setenv(name, value)
    migrated.execute("DELETE FROM user_1.marketplace_job_stats")
    return migrated


def recipe(document: str, language: str, mark: str) -> ModuleType:
    """The block that has `mark` in it, as a module."""
    (code,) = blocks(document, language, mark)
    module = ModuleType("recipe")
    exec(compile(code, f"{document}: {mark}", "exec"), vars(module))  # noqa: S102
    return module


def counted(conn: Connection) -> dict[str, int]:
    """The jobs of each marketplace in user_1."""
    return {row.marketplace.value: row.total_jobs for row in get_summary(conn, schema="user_1")}


@pytest.mark.parametrize("checker", CHECKERS)
def test_types(checker: str, tmp_path: Path) -> None:
    """Type checkers accept every block."""
    files = []
    for document in ("docs/recipes.md", "docs/counting.md", "README.md"):
        for number, code in enumerate(blocks(document, "python")):
            files.append(tmp_path / f"{Path(document).stem}_{number}.py")
            files[-1].write_text(code)
    assert not errors(checker, *map(str, files))


async def request(app: Any, method: str, path: str, query: str = "") -> tuple[int, Any]:
    """What an ASGI application answers, whatever becomes of it then."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    with suppress(psycopg.Error):
        await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body) if sent[0]["status"] == 200 else None


def test_fastapi(conn: Connection) -> None:
    """A job is counted by one request, and read by the next, with its rates; one that is refused is answered so."""
    module = recipe("docs/recipes.md", "python", "FastAPI(")

    async def main() -> Any:
        async with module.lifespan(module.app):
            assert (200, None) == await request(module.app, "POST", "/alice/jobs/7/ebay", "seconds=1.5")
            assert (404, None) == await request(module.app, "POST", "/eve/jobs/7/ebay", "seconds=1.5")
            for job in ("amazon?seconds=1.5", *(f"ebay?seconds={seconds}" for seconds in ("-1", "nan", "inf", "1e9"))):
                path, query = f"/alice/jobs/7/{job}".split("?")
                assert (422, None) == await request(module.app, "POST", path, query)
            assert (422, None) == await request(module.app, "POST", f"/alice/jobs/{2**31}/ebay", "seconds=1.5")
            assert (422, None) == await request(module.app, "GET", "/alice/summary", "days=0")
            conn.execute(_REFUSAL)
            assert (500, None) == await request(module.app, "POST", "/alice/jobs/7/ebay", "seconds=1.5")
            return await request(module.app, "GET", "/alice/summary", "days=1")

    assert asyncio.run(main()) == (
        200,
        [
            {"marketplace": "ebay", "total_jobs": 1, "failure_rate": 0.0, "avg_duration_ms": 1500},
            {"marketplace": "etsy", "total_jobs": 0, "failure_rate": 0.0, "avg_duration_ms": None},
            {"marketplace": "vinted", "total_jobs": 0, "failure_rate": 0.0, "avg_duration_ms": None},
        ],
    )


_REFUSAL = """
    CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END';
    CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON user_1.marketplace_job_stats
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.refuse();
"""


def test_sqlalchemy(conn: Connection) -> None:
    """A session, and an asynchronous one, count in their transactions, and end them."""
    module = recipe("docs/recipes.md", "python", "AsyncSession")
    engine = sqlalchemy.create_engine("postgresql+psycopg://")
    with Session(engine) as session:
        module.relisted(session)
        session.commit()
        module.relisted(session)
        session.rollback()
    engine.dispose()

    async def main() -> None:
        async_engine = create_async_engine("postgresql+psycopg://")
        async with AsyncSession(async_engine) as session:
            await module.relisted_async(session)
            await session.commit()
            await module.relisted_async(session)
            await session.rollback()
        await async_engine.dispose()

    asyncio.run(main())
    assert 2 == counted(conn)["vinted"]


def test_django(conn: Connection) -> None:
    """A job is counted in Django's transaction."""
    if not settings.configured:
        settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}})
        django.setup()
    info = conn.info
    connections["default"].settings_dict.update(
        NAME=info.dbname, HOST=info.host, PORT=str(info.port), USER=info.user, PASSWORD=info.password
    )
    module = recipe("docs/recipes.md", "python", "django")
    try:
        module.relisted()
        with module.transaction.atomic():
            module.relisted()
            module.transaction.set_rollback(True)
    finally:
        connections["default"].close()
    assert 1 == counted(conn)["vinted"]


def test_timed(conn: Connection) -> None:
    """What the block does is timed; what it raises makes a failure, and passes through."""
    timed = recipe("docs/recipes.md", "python", "def timed(").timed
    with timed(conn, "user_1", 7, Marketplace.EBAY):
        pass
    with pytest.raises(ZeroDivisionError), timed(conn, "user_1", 7, Marketplace.EBAY):
        raise ZeroDivisionError
    (row,) = get_stats(conn, schema="user_1")
    assert (2, 1) == (row.total_jobs, row.failure_count)
    assert row.avg_duration_ms is not None


def test_timed_without_statistics(conn: Connection, caplog: pytest.LogCaptureFixture) -> None:
    """Where a job cannot be counted, that is logged, and the job ends as it has ended."""
    timed = recipe("docs/recipes.md", "python", "def timed(").timed
    conn.close()
    with timed(conn, "user_1", 7, Marketplace.EBAY):
        pass
    with pytest.raises(ZeroDivisionError), timed(conn, "user_1", 7, Marketplace.EBAY):
        raise ZeroDivisionError
    assert ["a job of user_1 is not in the statistics"] * 2 == caplog.messages


def test_a_day_each(conn: Connection) -> None:
    """Every day is there, oldest first, those without jobs too."""
    conn.execute(
        "INSERT INTO user_1.marketplace_job_stats (action_type_id, marketplace, date, total_jobs)"
        " VALUES (1, 'ebay', %(day)s, 2), (2, 'ebay', %(day)s, 3), (2, 'etsy', %(day)s, 4)",
        {"day": TODAY() - datetime.timedelta(days=2)},
    )
    series = recipe("docs/recipes.md", "python", "jobs_a_day").jobs_a_day(conn, "user_1", Marketplace.EBAY, 4)
    assert [0, 5, 0, 0] == [jobs for _, jobs in series]
    assert [3, 2, 1, 0] == [(TODAY() - day).days for day, _ in series]


def test_legacy_service(conn: Connection) -> None:
    """One day more, percents, and names."""
    conn.execute(
        "INSERT INTO user_1.marketplace_job_stats (action_type_id, marketplace, date, total_jobs, success_count)"
        " VALUES (4, 'vinted', %s, 3, 2), (99, 'vinted', %s, 3, 3), (99, 'ebay', %s, 3, 3)",
        [TODAY() - datetime.timedelta(days=1)] * 3,
    )
    rows = recipe("docs/recipes.md", "python", "legacy_stats").legacy_stats(conn, "user_1", 1)
    assert [("relist", 66.7), ("99", 100.0)] == [(row["action"], row["success_rate"]) for row in rows]


def test_a_savepoint(conn: Connection) -> None:
    """A job that cannot be counted is done nevertheless; one that can is done and counted."""
    finish = recipe("docs/counting.md", "python", "def finish(").finish
    conn.execute("CREATE TABLE public.jobs (id integer, done boolean DEFAULT false); INSERT INTO jobs VALUES (1), (2)")
    with connect(conn, autocommit=False) as own:
        finish(own, 1)
        own.execute("ALTER TABLE user_1.marketplace_job_stats RENAME TO aside")
        finish(own, 2)
        own.execute("ALTER TABLE user_1.aside RENAME TO marketplace_job_stats")
    assert [True, True] == column(conn, "SELECT done FROM public.jobs")
    assert 1 == counted(conn)["ebay"]


def test_exporter(conn: Connection) -> None:
    """The grants are enough for the exporter's query and the panel's, and for no more; who is skipped is named."""
    grants, queries, skipped = blocks("docs/recipes.md", "sql")
    (each,) = blocks("docs/recipes.md", "sh", "TO exporter")
    conn.execute(
        "INSERT INTO user_1.marketplace_job_stats (action_type_id, marketplace, date, total_jobs, failure_count)"
        " VALUES (4, 'ebay', (now() AT TIME ZONE interval '0')::date, 4, 1)"
    )
    assert "CREATE ROLE exporter LOGIN;" in grants
    made = grants.replace("CREATE ROLE exporter LOGIN;", _ROLE).replace(" exporter", " legacy_dashboard")
    conn.execute(made.encode())
    bash(each.replace(" exporter", " legacy_dashboard"), libpq_env(conn))
    with connect(conn, user="legacy_dashboard", password="legacy_dashboard") as reader:  # noqa: S106
        asked = psql(reader, "-At", stdin=queries)
        found = ok(asked).splitlines()
        silent = ok(psql(reader, "-At", stdin=skipped)).splitlines()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("SELECT FROM vinted.action_types")
    assert "ebay|4|1||1" in found[0]
    assert 3 + 7 * 3 == len(found)
    warned = set(re.findall(r"WARNING:  (\S+) is skipped: ", asked.stderr))
    assert silent
    assert not warned & set(silent)
    assert found[0].endswith(f"|{len(silent) + len(warned)}")
    assert any(line.startswith("ebay|") and line.endswith("|4|25.0") for line in found[3:])
    ok(psql(conn, "-f", VERIFY))


_ROLE = """
    DO $$ BEGIN
        IF to_regrole('legacy_dashboard') IS NULL THEN CREATE ROLE legacy_dashboard LOGIN; END IF;
        ALTER ROLE legacy_dashboard PASSWORD 'legacy_dashboard';
    END $$;
"""
