"""A database per test: cloned in some 40 ms from a template that was laid out, and migrated by yoyo, once per run.

The server is a throwaway one: the wheel's, or with JOB_STATS_TEST_BIN=/usr/lib/postgresql/15/bin another PostgreSQL. Or
it is the one at JOB_STATS_TEST_URL, a superuser's: nothing is left on it if tests call their roles `legacy_…`.
"""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from psycopg import sql
from pytest_postgresql import factories

from dev.server import Server, throwaway_server, wheel_bin_dir
from tests.deploy import ROOT, yoyo
from tests.hostile import Migrator, lay_out, take_over
from tests.tenants import Connection, ok


def pytest_configure() -> None:
    """Let Ctrl-C end what the tests start, even if a script started them in the background, where it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, since some tests wait; none on a given server, which they would share."""
    given = os.environ.get("JOB_STATS_TEST_URL") or os.environ.get("JOB_STATS_TEST_CITUS_URL")
    return 0 if given else 1 + (os.cpu_count() or 1)


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


def _apply(*more: str, host: str, port: int, user: str, dbname: str, password: str | None, **_: object) -> None:
    with psycopg.connect(host=host, port=port, user=user, dbname=dbname, password=password) as conn:
        ok(yoyo(conn, "apply", *more))


def _toolkit(migrator: str, *, host: str, port: int, user: str, dbname: str, password: str | None, **_: object) -> None:
    with psycopg.connect(host=host, port=port, user=user, dbname=dbname, password=password, autocommit=True) as conn:
        ok(lay_out(conn, migrator).yoyo("apply", "--revision", "0019"))


_name = f"job_stats_{os.getpid()}"
empty_template = factories.postgresql_noproc(dbname=f"{_name}_empty", depends_on="_server_for_templates")
legacy_template = factories.postgresql_noproc(
    dbname=f"{_name}_legacy", depends_on="empty_template", load=[ROOT / "dev" / "legacy.sql"]
)
toolkit_template = factories.postgresql_noproc(
    dbname=f"{_name}_toolkit", depends_on="legacy_template", load=[partial(_apply, "--revision", "0019")]
)
migrated_template = factories.postgresql_noproc(
    dbname=f"{_name}_migrated", depends_on="toolkit_template", load=[_apply]
)
superuser_template, member_template = (
    factories.postgresql_noproc(
        dbname=f"{_name}_{migrator}", depends_on="empty_template", load=[partial(_toolkit, migrator)]
    )
    for migrator in ["superuser", "member"]
)
empty_clone = factories.postgresql("empty_template")
legacy_clone = factories.postgresql("legacy_template")
toolkit_clone = factories.postgresql("toolkit_template")
migrated_clone = factories.postgresql("migrated_template")
superuser_clone = factories.postgresql("superuser_template")
member_clone = factories.postgresql("member_template")


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
def toolkit(toolkit_clone: Connection) -> Connection:
    """A connection, in autocommit, to the database of `dev/legacy.sql` with 0001 to 0019, before any change."""
    toolkit_clone.autocommit = True
    return toolkit_clone


@pytest.fixture
def migrated(migrated_clone: Connection) -> Connection:
    """A connection, in autocommit, to the database of `dev/legacy.sql` after `yoyo apply`."""
    migrated_clone.autocommit = True
    return migrated_clone


@pytest.fixture(params=["superuser", pytest.param("member", marks=pytest.mark.slow)])
def migrator(request: pytest.FixtureRequest) -> Iterator[Migrator]:
    """The toolkit, and two tenants that do not trust each other, to migrate as a superuser or as a member of both."""
    conn = request.getfixturevalue(f"{request.param}_clone")
    conn.autocommit = True
    yield take_over(conn, request.param)
    conn.execute("ALTER ROLE legacy_evil NOSUPERUSER")  # others' tests find it so, whatever has come of it
