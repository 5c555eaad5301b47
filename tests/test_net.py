"""Whatever a search_path could take is not called: the whole life passes under a net (tests/net.sql) that raises."""

import asyncio
import datetime
import re
import shlex
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from pglast import ast, parse_sql, split
from pytest_postgresql import factories

from stats_lib import JobOutcome, Marketplace, aio, get_stats, get_summary, update_job_stats, update_job_stats_batch
from tests.conftest import _name
from tests.deploy import ROOT, connect, psql, yoyo
from tests.tenants import DOWNGRADE, EXACT, UPGRADE, VERIFY, Connection, column, ok
from tests.test_docs import DOCUMENTS, blocks

SCHEMA = "user_owner"  # whose owner, a role without rights, has the rows changed in its name
PATH = f"-c search_path={SCHEMA},public"


def _cast_net(*, host: str, port: int, user: str, dbname: str, password: str | None, **_: object) -> None:
    with psycopg.connect(host=host, port=port, user=user, dbname=dbname, password=password) as conn:
        conn.execute("SELECT set_config('net.schema', %s, false)", [SCHEMA])
        conn.execute((ROOT / "tests/net.sql").read_bytes())


netted_template = factories.postgresql_noproc(dbname=f"{_name}_net", depends_on="legacy_template", load=[_cast_net])
netted_clone = factories.postgresql("netted_template")


@pytest.fixture
def netted(netted_clone: Connection) -> Connection:
    """A connection, in autocommit, to the database of `dev/legacy.sql` with the net in one tenant's schema."""
    netted_clone.autocommit = True
    return netted_clone


def test_the_net_catches(netted: Connection) -> None:
    """It has tens of thousands of meshes, catches what is unsafe, and lets through what is PostgreSQL's own."""
    made = "SELECT (SELECT count(*) FROM pg_operator WHERE oprnamespace = 'user_owner'::regnamespace)"
    assert netted.execute(f"{made} > 10000".encode()).fetchone() == (True,)
    with connect(netted, options=PATH) as caller:
        for unsafe in [
            "SELECT 'a'::varchar = 'a'::varchar",
            "SELECT marketplace IN ('ebay') FROM (VALUES ('ebay'::varchar)) AS m (marketplace)",
            "SELECT cardinality('{a}'::name[])",
            "SELECT '{a}'::text[] <> '{}'",
            "SELECT nullif(1.5, 0)",
            "SELECT format('%s', 1)",
            "SELECT array_agg('a'::text)",
            "SELECT concat_ws(',', 'a'::text, 'b'::text)",
            "SELECT unnest('{1}'::integer[])",
        ]:
            with pytest.raises(psycopg.errors.RaiseException, match="caught in the net"):
                caller.execute(unsafe.encode())
        with pytest.raises(psycopg.errors.WrongObjectType, match="is not a window function"):
            caller.execute("SELECT first_value(1) OVER ()")
        caller.execute("SELECT 'a'::varchar::text = 'a', now(), count(*), 1 + 1, sum(1), nullif(1, 0)")


def test_a_planted_unsafe_name_is_caught(netted: Connection) -> None:
    """The change as it was, with `marketplace IN (…)` in the tenant's path, does not get through; nor does a helper."""
    ok(yoyo(netted, "apply", "--revision", "0019"))
    with open(UPGRADE) as file:
        unsafe = file.read().replace("marketplace::text IN", "marketplace IN")
    refused = psql(netted, stdin=unsafe)
    assert "user_owner: caught in the net" in refused.stderr
    helper = netted.execute("SELECT pg_get_functiondef('job_stats.fold_rows'::regproc)").fetchone()
    assert helper is not None
    netted.execute(helper[0].replace("s.marketplace::text <>", "s.marketplace <>").encode())
    ok(yoyo(netted, "apply"))
    update_job_stats(netted, schema=SCHEMA, action_type_id=7, marketplace="ebay", success=True)
    refused = psql(netted, "-f", DOWNGRADE)
    assert "user_owner: caught in the net" in refused.stderr


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("", id="in the tenant's schema", marks=pytest.mark.slow),
        pytest.param(PATH, id="in the caller's path"),
    ],
)
def test_the_whole_life(netted: Connection, options: str) -> None:
    """Rehearsal, apply, verification, status, fold, rollback, contract and back call nothing that is in the net."""

    def deploy(*argv: str) -> None:
        ok(yoyo(netted, *argv, env={"PGOPTIONS": options}))

    def look(*args: str, more: str = "") -> str:
        return ok(psql(netted, *args, env={"PGOPTIONS": f"{options} {more}"}))

    deploy("apply", "--revision", "0019")
    for file in [UPGRADE, DOWNGRADE]:
        look("-f", file, more="-c tenancy.dry_run=on")
    look("-f", UPGRADE, more="-c tenancy.tenants=template_tenant|user_1")
    deploy("apply")
    look("-f", VERIFY)
    look("-c", "CALL job_stats.verify(expected => 'migrated')")
    assert re.search(r"user_owner +\| migrated +\|", look("-c", "TABLE job_stats.tenant_status"))
    look("-c", "TABLE tenancy.progress")
    look("-c", "SELECT tenancy.lock_holders('user_owner')")
    netted.execute("GRANT USAGE ON SEQUENCE template_tenant.marketplace_job_stats_id_seq TO legacy_owner")
    for _ in range(2):
        with connect(netted, options=options) as caller:
            update_job_stats(caller, schema=SCHEMA, action_type_id=7, marketplace="ebay", success=True)
        look("-f", DOWNGRADE, more="-c tenancy.dry_run=on")
        deploy("rollback", "--revision", "0020")
        look("-c", "CALL job_stats.verify(expected => 'legacy')")
        look(
            "-c", f"UPDATE {SCHEMA}.vinted_job_stats SET total_jobs = total_jobs + 1, failure_count = failure_count + 1"
        )
        deploy("apply")
    look("-f", EXACT)
    deploy("apply", "sql/migrations", "sql/contract")
    deploy("rollback", "--revision", "0900", "sql/migrations", "sql/contract")
    deploy("rollback", "--all")


def test_the_library(netted: Connection) -> None:
    """No function of stats_lib, sync or async, calls what is in its caller's path, even if types are in pg_temp."""
    ok(yoyo(netted, "apply"))
    day, second = datetime.date(2026, 1, 2), datetime.timedelta(seconds=1)
    with connect(netted, options=PATH) as caller:
        for name in ["text", "date", "name", "timestamptz"]:
            caller.execute(f"CREATE DOMAIN pg_temp.{name} AS pg_catalog.{name} CHECK (false)".encode())
        variants: list[dict[str, Any]] = [{}, {"duration": second}, {"date": day}, {"duration": second, "date": day}]
        for more in variants:
            for _ in range(2):  # inserts the row, then updates it
                update_job_stats(caller, schema=SCHEMA, action_type_id=7, marketplace="ebay", success=True, **more)
        outcomes = [JobOutcome(8, "etsy", True, second), JobOutcome(8, "etsy", False, None, day)]
        for _ in range(2):
            update_job_stats_batch(caller, schema=SCHEMA, outcomes=outcomes)
        assert len(get_stats(caller, schema=SCHEMA, days=10_000)) > 4
        assert [row.total_jobs for row in get_stats(caller, schema=SCHEMA, marketplace="ebay", action_type_id=7)] == [4]
        assert {row.marketplace: row.total_jobs for row in get_summary(caller, schema=SCHEMA, days=1)}[
            Marketplace.ETSY
        ] == 2

    async def count() -> int:
        info = netted.info
        async with await psycopg.AsyncConnection.connect(
            host=info.host,
            port=info.port,
            user=info.user,
            password=info.password,
            dbname=info.dbname,
            options=PATH,
            autocommit=True,
        ) as caller:
            await aio.update_job_stats(caller, schema=SCHEMA, action_type_id=7, marketplace="ebay", success=True)
            await aio.update_job_stats_batch(caller, schema=SCHEMA, outcomes=outcomes)
            await aio.get_summary(caller, schema=SCHEMA)
            return sum(row.total_jobs for row in await aio.get_stats(caller, schema=SCHEMA, marketplace="ebay"))

    assert asyncio.run(count()) == 5


def documented(document: str) -> list[str]:
    """The statements of a document that do not begin with a search_path of their own: psql's, SQL's, and the text's."""
    shell = "\n".join(blocks(document, "sh"))
    scripts = [*re.findall(r"<<'SQL'[ &]*\n(.*?)^SQL$", shell, re.DOTALL | re.MULTILINE), *blocks(document, "sql")]
    words = shlex.split(re.sub(r"<<'SQL'[ &]*\n.*?^SQL$", "", shell, flags=re.DOTALL | re.MULTILINE), comments=True)
    scripts += [after for word, after in pairwise(words) if re.fullmatch("-(At)?c", word)]
    text = re.sub(r"^ *```.*?^ *```", "", (ROOT / document).read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    scripts += re.findall(
        r"`((?:SELECT|INSERT|UPDATE|DELETE) [^`…\d][^`…]+)`", text.replace("backend(pid)", "backend(1)")
    )
    scripts = [re.sub(r"^\\copy (\((.*)\) TO STDOUT|.* FROM STDIN)$", r"\2", script) for script in scripts]
    return [one for script in scripts if not script.startswith(PINNED) for one in map(str, split(script))]


PINNED = "SET search_path = pg_catalog, pg_temp;\n"
WRITTEN_BY_HAND = [document for document in [*DOCUMENTS, "SECURITY.md"] if document != "docs/next-migration.md"]


def test_what_is_documented(netted: Connection) -> None:
    """What a DBA, an exporter or a pipeline is told to run means PostgreSQL's own or ours, or pins its path."""
    ok(yoyo(netted, "apply"))
    netted.execute(
        """
        CREATE SCHEMA user_7;
        CREATE TABLE user_7.vinted_job_stats (LIKE users.vinted_job_stats INCLUDING ALL);
        CREATE TABLE user_7.marketplace_job_stats (LIKE user_2.marketplace_job_stats INCLUDING ALL);
        CREATE TABLE user_7.marketplace_job_stats_archive ();
        -- What Citus has.
        CREATE FUNCTION public.recover_prepared_transactions() RETURNS integer LANGUAGE sql RETURN 0;
        CREATE TABLE public.citus_locks (relation_name text, granted boolean, global_pid bigint);
        CREATE TABLE public.citus_stat_activity (
            global_pid bigint, usename name, application_name text, xact_start timestamptz
        )
        """
    )
    taken = f"""
        SELECT pg_describe_object(refclassid, refobjid, 0) FROM pg_depend
        WHERE objid = 'public.documented'::regproc AND (pg_identify_object(refclassid, refobjid, 0)).schema = '{SCHEMA}'
    """
    unsafe = {}
    seen = 0
    for document in WRITTEN_BY_HAND:
        for statement in documented(document):
            (raw,) = parse_sql(statement)
            if isinstance(raw.stmt, (ast.SelectStmt, ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt)):
                body = f"CREATE FUNCTION public.documented() RETURNS void BEGIN ATOMIC {statement}; END"
                with connect(netted, options=PATH, autocommit=False) as caller:
                    caller.execute(body.encode())
                    unsafe[statement] = column(caller, taken)
                    caller.rollback()
                seen += 1
            elif isinstance(raw.stmt, ast.CallStmt):
                unsafe[statement] = [] if raw.stmt.funccall.funcname[0].sval in ("tenancy", "job_stats") else [document]
            elif isinstance(raw.stmt, ast.DoStmt):
                unsafe[statement] = [f"{document}: DO without a search_path"]
    assert {statement: names for statement, names in unsafe.items() if names} == {}
    assert seen > 30
    for file in ROOT.glob("docs/*.sql"):
        assert re.sub("^(--.*|)\n", "", file.read_text("utf-8"), flags=re.MULTILINE).startswith(PINNED)
