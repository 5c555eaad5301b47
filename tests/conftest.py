"""A database per test: cloned in some 40 ms from a template that was laid out, and migrated by yoyo, once per run.

The server is a throwaway one: the wheel's, or with JOB_STATS_TEST_BIN=/usr/lib/postgresql/15/bin another PostgreSQL. Or
it is the one at JOB_STATS_TEST_URL, a superuser's: nothing is left on it if tests call their roles `legacy_…`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import sql
from pytest_postgresql import factories

from dev.server import Server, throwaway_server, wheel_bin_dir
from tests.deploy import ROOT, yoyo

Connection = psycopg.Connection[tuple[Any, ...]]


def pytest_make_parametrize_id(val: object, argname: str) -> str:
    """Name a case by its values, never by its number in the list."""
    val = getattr(val, "func", val)  # of a partial
    text = val if isinstance(val, str) else getattr(val, "__name__", "") or f"{argname}={val}"
    return ascii(" ".join(text.split())[:100])[1:-1]


@pytest.fixture(scope="session", autouse=True)
def _no_libpq_variables() -> Iterator[None]:
    """Whatever server the developer's PG… variables point at is none of our business."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PG")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def server(_no_libpq_variables: None) -> Iterator[Server]:
    """The server under test."""
    url, bin_dir = os.environ.get("JOB_STATS_TEST_URL"), os.environ.get("JOB_STATS_TEST_BIN")
    if not url:
        with throwaway_server(Path(bin_dir) if bin_dir else None) as throwaway:
            yield throwaway
        return
    with psycopg.connect(url, autocommit=True) as conn:
        info, roles = conn.info, "SELECT rolname FROM pg_catalog.pg_roles WHERE starts_with(rolname, 'legacy_')"
        before = conn.execute(roles).fetchall()
        yield Server(info.host, info.port, info.user, wheel_bin_dir(), info.password or None)
        for (role,) in set(conn.execute(roles).fetchall()) - set(before):
            conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


# pytest-postgresql does the cloning: each "…_template" makes a template database once, from the one it depends on, and
# each "…_clone" a copy of it for one test. The names carry our process id: they clash with nobody's on a shared server.


@pytest.fixture(scope="session")
def _server_for_templates(server: Server) -> SimpleNamespace:
    return SimpleNamespace(
        host=server.host,
        port=server.port,
        user=server.user,
        password=server.password,
        options="",
        maintenance_dbname="postgres",
        template_dbname=None,
    )


def _apply(*, host: str, port: int, user: str, dbname: str, password: str | None, **_: object) -> None:
    with psycopg.connect(host=host, port=port, user=user, dbname=dbname, password=password) as conn:
        applied = yoyo(conn, "apply")
        assert applied.returncode == 0, applied.stdout + applied.stderr


_name = f"job_stats_{os.getpid()}"
empty_template = factories.postgresql_noproc(dbname=f"{_name}_empty", depends_on="_server_for_templates")
legacy_template = factories.postgresql_noproc(
    dbname=f"{_name}_legacy", depends_on="empty_template", load=[ROOT / "dev" / "legacy.sql"]
)
migrated_template = factories.postgresql_noproc(dbname=f"{_name}_migrated", depends_on="legacy_template", load=[_apply])
empty_clone = factories.postgresql("empty_template")
legacy_clone = factories.postgresql("legacy_template")
migrated_clone = factories.postgresql("migrated_template")


@pytest.fixture
def empty(empty_clone: Connection) -> Connection:
    """A connection, in autocommit, to a database with nothing in it."""
    empty_clone.autocommit = True
    return empty_clone


@pytest.fixture
def legacy(legacy_clone: Connection) -> Connection:
    """A connection, in autocommit, to the database of `dev/legacy.sql`, before any migration."""
    legacy_clone.autocommit = True
    return legacy_clone


@pytest.fixture
def migrated(migrated_clone: Connection) -> Connection:
    """A connection, in autocommit, to the database of `dev/legacy.sql` after `yoyo apply`."""
    migrated_clone.autocommit = True
    return migrated_clone
