"""`docs/replication.md`, by two servers: every command as it stands there, and writes on the publisher in between.

On servers of its own, with the programs of JOB_STATS_TEST_BIN or else the wheel's, since a publisher has settings.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from dev.server import Server, throwaway_server
from stats_lib import update_job_stats
from tests.deploy import ROOT, bash, libpq_env, psql, services, yoyo
from tests.tenants import DOWNGRADE, UPGRADE, Connection, column, ok, tenants
from tests.test_docs import blocks

DAY = date(2020, 1, 1)
WRITTEN = ["user_1", "user_2", "user_extra_columns"]
EBAY = "SELECT concat_ws(' ', id, date, total_jobs) FROM user_1.marketplace_job_stats WHERE marketplace = 'ebay'"
EBAY_ARCHIVED = EBAY.replace("stats WHERE", "stats_archive WHERE")
NARROW = "id, action_type_id, date, total_jobs, success_count, failure_count"


@dataclass
class Pair:
    """A publisher and its subscriber, which has had all rows, and an environment that says where they are."""

    publisher: Connection
    subscriber: Connection
    env: dict[str, str]
    _day: date = DAY

    def follow(self, *commands: str, then: Callable[[], object] = lambda: None) -> None:
        """Run commands of the page one by one, and something after each."""
        for command in commands:
            bash(command, self.env)
            then()

    def old_code(self) -> None:
        """Count a day of Vinted's by the old name, then change and delete."""
        self._day += timedelta(days=1)
        for tenant in WRITTEN:
            for query in [
                "INSERT INTO {} (action_type_id, date, total_jobs, success_count) VALUES (1, %s, 3, 3), (2, %s, 5, 5)",
                "UPDATE {} SET total_jobs = total_jobs + 1, success_count = success_count + 1"
                " WHERE action_type_id = 1 AND date IN (%s, %s - 1)",
                "DELETE FROM {} WHERE action_type_id = 2 AND date IN (%s, %s)",
            ]:
                table = sql.Identifier(tenant, "vinted_job_stats")
                self.publisher.execute(sql.SQL(query).format(table), [self._day, self._day])

    def new_code(self) -> None:
        """Count for three marketplaces on a day, for eBay on another; old code is still there, too."""
        self.old_code()
        for tenant in WRITTEN:
            for marketplace in ["vinted", "ebay", "etsy"]:
                update_job_stats(
                    self.publisher,
                    schema=tenant,
                    action_type_id=1,
                    marketplace=marketplace,
                    success=True,
                    date=self._day,
                )
            update_job_stats(
                self.publisher, schema=tenant, action_type_id=3, marketplace="ebay", success=False, date=self._day
            )

    def drain(self) -> None:
        """Wait until the subscriber has everything."""
        ok(psql(self.publisher, "-f", "docs/wait-for-subscriber.sql"))

    def stops(self, why: str) -> None:
        """Wait until the subscriber's worker has failed for this reason, and failed again."""
        log, until = Path(self.subscriber.info.host, "log"), time.monotonic() + 60
        before = log.stat().st_size
        while (said := log.read_bytes()[before:]).count(why.encode()) < 2:
            assert time.monotonic() < until, said[-2000:]
            self.subscriber.execute("SELECT pg_sleep(0.01)")

    def equal(self, columns: str = "*") -> dict[str, list[Any]]:
        """All rows by tenant, once the subscriber has them; they are the same on both sides."""
        self.drain()
        there, here = contents(self.publisher, columns), contents(self.subscriber, columns)
        assert there == here
        return there


def contents(conn: Connection, columns: str = "*") -> dict[str, list[Any]]:
    """The rows of each tenant."""
    found = {}
    for tenant in tenants(conn):
        table = (
            "SELECT relname FROM pg_class WHERE relnamespace::regnamespace = %s::regnamespace"
            " AND relname ~ '_job_stats$' AND relkind = 'r'"
        )
        (name,) = column(conn, table, sql.Identifier(tenant).as_string())
        query = sql.SQL("SELECT row_to_json(r)::text FROM (SELECT {} FROM {}) AS r ORDER BY 1")
        rows = conn.execute(query.format(sql.SQL(columns), sql.Identifier(tenant, name)))
        found[tenant] = [row[0] for row in rows]
    return found


def section(number: int) -> list[str]:
    """The commands of a section of the page."""
    text = (ROOT / "docs/replication.md").read_text("utf-8").partition(f"\n## {number}. ")[2].partition("\n## ")[0]
    places = {block: text.find(f"```sh\n{block}```") for block in blocks("docs/replication.md", "sh")}
    return sorted((block for block in places if places[block] >= 0), key=places.__getitem__)


# Two servers, each with a database `legacy` to clone.


@pytest.fixture(scope="module")
def servers(_no_libpq_variables: None) -> Iterator[tuple[Server, Server]]:
    """A publisher and a subscriber, whose worker tries again at once."""
    bin_dir = os.environ.get("JOB_STATS_TEST_BIN")
    settings = [{"wal_level": "logical"}, {"wal_retrieve_retry_interval": "50ms"}]
    with ExitStack() as stack:
        publisher, subscriber = (
            stack.enter_context(throwaway_server(Path(bin_dir) if bin_dir else None, settings=more))
            for more in settings
        )
        for server in [publisher, subscriber]:
            with psycopg.connect(server.url(), autocommit=True) as conn:
                conn.execute("CREATE DATABASE legacy")
        with psycopg.connect(publisher.url("legacy")) as there, psycopg.connect(subscriber.url("legacy")) as here:
            ok(psql(there, "-f", "dev/legacy.sql"))
            here.execute("CREATE ROLE legacy_owner; CREATE ROLE legacy_reader")
            here.commit()
            dump = subprocess.run(["pg_dump"], env=libpq_env(there), capture_output=True, text=True, check=True)
            ok(psql(here, "--quiet", stdin=dump.stdout.replace("SET transaction_timeout = 0;", "")))  # 15 has none
        yield publisher, subscriber


@pytest.fixture
def pair(servers: tuple[Server, Server], tmp_path: Path) -> Iterator[Pair]:
    """Two databases with the same rows."""
    clone = "CREATE DATABASE stats TEMPLATE legacy"
    with ExitStack() as stack:
        for server in servers:
            maintenance = stack.enter_context(psycopg.connect(server.url(), autocommit=True))
            maintenance.execute(clone)
            stack.callback(maintenance.execute, "DROP DATABASE stats WITH (FORCE)")
        publisher, subscriber = (
            stack.enter_context(psycopg.connect(server.url("stats"), autocommit=True)) for server in servers
        )
        yield Pair(publisher, subscriber, services(tmp_path / "services", publisher=publisher, subscriber=subscriber))
        with psycopg.connect(servers[1].url("stats"), autocommit=True) as conn:
            conn.execute("DROP SUBSCRIPTION IF EXISTS stats")


def subscribe(pair: Pair, publication: str) -> None:
    """Begin to replicate."""
    pair.publisher.execute(f"CREATE PUBLICATION stats {publication}".encode())
    info = pair.publisher.info
    pair.subscriber.execute(
        sql.SQL("CREATE SUBSCRIPTION stats CONNECTION {} PUBLICATION stats WITH (copy_data = false)").format(
            f"host={info.host} port={info.port} user={info.user} dbname={info.dbname}"
        )
    )


def all_tables(pair: Pair, columns: str = "") -> str:
    """A publication's list of all tenants' tables."""
    return "FOR TABLE " + ", ".join(
        sql.Identifier(tenant, "vinted_job_stats").as_string() + columns for tenant in tenants(pair.publisher)
    )


def all_schemas(pair: Pair) -> str:
    """The same, by schema."""
    return "FOR TABLES IN SCHEMA " + sql.SQL(", ").join(map(sql.Identifier, tenants(pair.publisher))).as_string()


def up_and_waiting(pair: Pair) -> None:
    """Section 2, with old code's writes before, and new code's as soon as they are allowed."""
    pair.old_code()
    publisher, subscriber, wait = section(2)
    pair.follow(publisher)
    pair.new_code()
    pair.stops('"user_1.marketplace_job_stats" does not exist')
    pair.follow(subscriber, then=pair.new_code)
    pair.follow(wait)


def down_and_waiting(pair: Pair) -> None:
    """Section 3, in the same way."""
    publisher, *subscriber, wait = section(3)
    pair.follow(publisher)
    pair.old_code()
    pair.stops('"user_1.vinted_job_stats"')
    pair.follow(*subscriber, then=pair.old_code)
    pair.follow(wait)


def test_a_publication_of_tables(pair: Pair) -> None:
    """Publisher first, up, down and up: the subscriber waits, catches up by itself, and has the same rows."""
    subscribe(pair, all_tables(pair))
    pair.follow(section(1)[-1], then=pair.old_code)
    up_and_waiting(pair)
    pair.equal()
    pair.new_code()
    down_and_waiting(pair)
    pair.equal()
    assert column(pair.publisher, "SELECT count(*) FROM job_stats.archives") == [len(WRITTEN)]
    assert column(pair.subscriber, "SELECT count(*) FROM job_stats.archives") == [0]
    before = column(pair.publisher, EBAY_ARCHIVED)
    up_and_waiting(pair)
    pair.equal()
    assert before
    assert set(before) < set(column(pair.publisher, EBAY))


@pytest.mark.slow
@pytest.mark.parametrize("publication", ["FOR ALL TABLES", "FOR TABLES IN SCHEMA"])
def test_a_publication_of_schemas(pair: Pair, publication: str) -> None:
    """A publication of the same tables takes its place without a gap; then all is as with one from the start."""
    subscribe(pair, publication if publication == "FOR ALL TABLES" else all_schemas(pair))
    *instead, toolkit = section(1)
    pair.old_code()
    pair.follow(*instead, then=pair.old_code)
    pair.follow(toolkit, then=pair.old_code)
    up_and_waiting(pair)
    pair.equal()
    down_and_waiting(pair)
    assert column(pair.publisher, "SELECT count(*) FROM job_stats.archives") == [len(WRITTEN)]
    pair.equal()


@pytest.mark.slow
def test_a_column_list(pair: Pair) -> None:
    """It gets the column after the publisher's upgrade, before eBay's first row; gives it back before a rollback."""
    subscribe(pair, all_tables(pair, f" ({NARROW})"))
    extend, shorten = section(4)
    publisher, subscriber, wait = section(2)
    pair.follow(publisher)
    pair.old_code()
    pair.follow(extend)
    pair.new_code()
    pair.follow(subscriber, wait)
    pair.new_code()
    assert any('"ebay"' in row for row in pair.equal(f"{NARROW}, marketplace")["user_1"])

    refused = yoyo(pair.publisher, "rollback", "--revision", "0020")
    assert refused.returncode != 0
    assert "template_tenant: cannot drop column marketplace of table marketplace_job_stats" in refused.stderr
    pair.follow(shorten)
    pair.old_code()
    down_and_waiting(pair)
    pair.equal(NARROW)
    assert column(pair.subscriber, "SELECT count(*) FROM pg_class WHERE relname ~ '_job_stats_archive$'") == [0]

    take_out, migrate, put_back, copied = section(5)
    pair.follow(take_out, migrate)
    pair.new_code()
    pair.follow(put_back.replace("ADD TABLE %I.%I'", f"ADD TABLE %I.%I ({NARROW}, marketplace)'"))
    pair.new_code()
    pair.follow(copied)
    assert any('"ebay"' in row for row in pair.equal(f"{NARROW}, marketplace")["user_1"])


@pytest.mark.slow
def test_a_column_list_that_is_left_as_it_is(pair: Pair) -> None:
    """Then eBay's rows do arrive as Vinted's: the step is needed."""
    subscribe(pair, all_tables(pair, f" ({NARROW})"))
    publisher, subscriber, wait = section(2)
    pair.follow(publisher, subscriber)
    update_job_stats(pair.publisher, schema="user_1", action_type_id=9, marketplace="ebay", success=True)
    pair.follow(wait)
    arrived = "SELECT marketplace FROM user_1.marketplace_job_stats WHERE action_type_id = 9"
    assert (column(pair.publisher, arrived), column(pair.subscriber, arrived)) == (["ebay"], ["vinted"])


def in_the_midst(pair: Pair, file: str) -> None:
    """A run on the publisher, with old code's writes when a tenant is done and others are not."""
    ok(psql(pair.publisher, "-f", file, env={"PGOPTIONS": "-c tenancy.tenants=user_1"}))
    with pair.publisher.transaction():
        pair.old_code()
    ok(psql(pair.publisher, "-f", file))


def test_writers_that_cannot_stop(pair: Pair) -> None:
    """Tables that are out of the publication meanwhile go up and down, the subscriber first, and are copied anew."""
    subscribe(pair, all_tables(pair))
    take_out, up, put_back, copied = section(5)
    pair.follow(section(1)[-1], then=pair.old_code)
    down = up.replace("apply", "rollback --revision 0020")
    for commands, file, writers in [(up, UPGRADE, pair.new_code), (down, DOWNGRADE, pair.old_code)]:
        pair.follow(take_out, then=pair.old_code)
        if file == DOWNGRADE:
            pair.follow("PGSERVICE=publisher yoyo rollback --revision 0021")
        in_the_midst(pair, file)
        pair.follow(commands, put_back, then=writers)
        pair.follow(copied)
        writers()
        rows = pair.equal()["user_1"]
        assert any('"ebay"' in row for row in rows) == (file == UPGRADE)


def test_a_table_with_a_child_is_not_emptied(pair: Pair) -> None:
    """TRUNCATE would go on to the child, and fire its trigger: the table is named, and sections 5 and 6 do the same."""
    subscribe(pair, all_tables(pair))
    ok(yoyo(pair.subscriber, "apply", "--revision", "0019"))
    pair.subscriber.execute(
        """
        CREATE TABLE user_1.child () INHERITS (user_1.vinted_job_stats);
        CREATE SEQUENCE user_1.struck;
        CREATE FUNCTION user_1.strike() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM nextval(''user_1.struck''); RETURN NULL; END';
        CREATE TRIGGER strike BEFORE TRUNCATE ON user_1.child EXECUTE FUNCTION user_1.strike();
        ALTER TABLE user_1.child ENABLE ALWAYS TRIGGER strike
        """
    )
    put_back, anew = section(5)[2], section(6)[3]
    with pytest.raises(AssertionError, match=r"user_1\.vinted_job_stats has a child"):
        pair.follow(put_back)
    assert column(pair.subscriber, "SELECT is_called FROM user_1.struck") == [False]
    assert anew.partition("SELECT format('DO")[2].partition("WHERE c.relname")[0] in put_back


@pytest.mark.parametrize("publisher", ["legacy", pytest.param("upgraded", marks=pytest.mark.slow)])
def test_the_subscriber_was_upgraded_first(pair: Pair, publisher: str) -> None:
    """It fails, even when the publisher follows; rolled back, drained and upgraded again, it is equal."""
    subscribe(pair, all_tables(pair))
    ok(yoyo(pair.subscriber, "apply"))
    pair.old_code()
    pair.stops('cannot use relation "user_1.vinted_job_stats" as logical replication target')
    if publisher == "upgraded":
        ok(yoyo(pair.publisher, "apply"))
        pair.new_code()
        pair.stops('cannot use relation "user_1.vinted_job_stats" as logical replication target')
    back, forth, _, _ = section(6)
    pair.follow(back)
    if publisher == "upgraded":
        pair.stops('target relation "user_1.marketplace_job_stats" does not exist')
    else:
        pair.old_code()
        pair.equal()
    pair.follow(forth)
    pair.new_code()
    pair.equal()


@pytest.mark.slow
def test_rows_under_both_names_are_mixed(pair: Pair) -> None:
    """If old code wrote during the publisher's run, the worker fails either way; the subscription is made anew."""
    subscribe(pair, all_tables(pair))
    pair.follow(section(1)[-1])
    in_the_midst(pair, UPGRADE)
    ok(yoyo(pair.subscriber, "apply"))
    pair.stops('cannot use relation "user_2.vinted_job_stats" as logical replication target')
    ok(yoyo(pair.subscriber, "rollback", "--revision", "0020"))
    pair.stops('target relation "user_1.marketplace_job_stats" does not exist')
    pair.old_code()
    _, _, _, anew = section(6)
    pair.follow(anew)
    pair.new_code()
    pair.follow(section(5)[-1])
    pair.equal()


@pytest.mark.slow
def test_an_archive_was_published(pair: Pair) -> None:
    """A rollback with the schemas published stops the worker for good; tables take their place, and are copied anew."""
    subscribe(pair, all_schemas(pair))
    pair.follow(*section(2), then=pair.old_code)
    pair.new_code()
    pair.equal()
    ok(yoyo(pair.publisher, "rollback", "--revision", "0020"))
    pair.stops('"user_1.marketplace_job_stats_archive" does not exist')
    ok(yoyo(pair.subscriber, "rollback", "--revision", "0020"))
    pair.old_code()
    pair.stops("does not exist")
    _, _, switch, anew = section(6)
    pair.follow(section(1)[0], switch, anew)
    pair.new_code()
    pair.follow(section(5)[-1])
    assert any('"ebay"' in row for row in pair.equal()["user_1"])
