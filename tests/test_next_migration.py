"""The worked examples of docs/next-migration.md, run as they stand there."""

import re
from pathlib import Path

import pytest

from tests.deploy import connect, psql, schema_dump, yoyo
from tests.tenants import Connection, clone, column, ok, running, wait_until
from tests.test_docs import blocks, named


@pytest.fixture
def orders(migrated: Connection, tmp_path: Path) -> list[Path]:
    """Tenants with `orders`, but for one, and the two files of the example."""
    files = []
    for sql in blocks("docs/next-migration.md", "sql", "0022.orders-priority"):
        files.append(tmp_path / named(sql))
        files[-1].write_text(sql)
    migrated.execute("DROP TABLE user_without_table.orders")
    for tenant in ["template_tenant", "user_1", "user_2", "user_3"]:
        migrated.execute(f"CREATE TABLE {tenant}.orders (id integer PRIMARY KEY, total numeric)".encode())
        migrated.execute(f"INSERT INTO {tenant}.orders SELECT generate_series(1, 3)".encode())
    return files


def test_a_migration_of_another_table(migrated: Connection, orders: list[Path]) -> None:
    """By the toolkit alone, a table that it knows nothing of is rehearsed, tried, changed, watched and changed back."""
    up, down = map(str, orders)
    tenants = ["template_tenant", "user_1", "user_2", "user_3"]
    before = {tenant: schema_dump(migrated, tenant) for tenant in tenants}

    rehearsed = ok(psql(migrated, "-f", up, env={"PGOPTIONS": "-c tenancy.dry_run=on"}))
    assert re.search(r"0022.orders-priority \| +4 \| +0 \| +0 \|", rehearsed)
    assert {tenant: schema_dump(migrated, tenant) for tenant in tenants} == before
    canary = ok(psql(migrated, "-f", up, env={"PGOPTIONS": "-c tenancy.tenants=user_2"}))
    assert re.search(r"0022.orders-priority \| +1 \| +0 \| +0 \|", canary)

    with connect(migrated, autocommit=False, application_name="report") as reader:
        reader.execute("SELECT FROM user_1.orders")
        with running(psql, migrated, "-f", up) as results:
            locked = "SELECT count(*) > 0 FROM tenancy.journal WHERE migration ~ '0022' AND outcome = 'locked'"
            wait_until(migrated, locked)
            problem = "SELECT problem FROM tenancy.journal WHERE outcome = 'locked' ORDER BY id LIMIT 1"
            assert f"locked by pid {reader.info.backend_pid} (report" in column(migrated, problem)[0]
            watched = "SELECT migration, done, still_to_do, locked FROM tenancy.progress LIMIT 1"
            assert migrated.execute(watched).fetchall() == [("0022.orders-priority", 2, 1, 1)]
            reader.rollback()
    assert re.search(r"0022.orders-priority \| +3 \| +1 \| +0 \|", ok(results[0]))
    assert re.search(r"0022.orders-priority \| +0 \| +4 \| +0 \|", ok(psql(migrated, "-f", up)))

    migrated.execute("CREATE TABLE user_grants.orders (id integer PRIMARY KEY, total numeric)")
    swept = ok(psql(migrated, "-c", "CALL tenancy.sweep()"))
    assert re.search(r"^ +1$", swept, re.MULTILINE)
    assert column(migrated, "SELECT sum(priority) FROM user_grants.orders") == [None]
    migrated.execute("DROP TABLE user_grants.orders")
    assert re.search(r"0022.orders-priority.rollback \| +4 \| +0 \| +0 \|", ok(psql(migrated, "-f", down)))
    assert {tenant: schema_dump(migrated, tenant) for tenant in tenants} == before
    assert re.search(r"^ +0$", ok(psql(migrated, "-c", "CALL tenancy.sweep()")), re.MULTILINE)


def test_a_tenant_with_such_a_column_of_its_own(migrated: Connection, orders: list[Path]) -> None:
    """It is refused by name, and keeps its column through the rollback; a clone of the changed template goes along."""
    up, down = map(str, orders)
    migrated.execute("ALTER TABLE user_2.orders ADD COLUMN priority integer NOT NULL DEFAULT 7")
    refused = psql(migrated, "-f", up)
    assert "3 done, 0 done before, 1 FAILED" in refused.stderr
    assert 'user_2: column "priority" of relation "orders" already exists' in refused.stderr
    clone(migrated, "user_new", "template_tenant.orders")
    assert "0 done, 4 done before, 1 FAILED" in psql(migrated, "-f", up).stderr
    assert re.search(r"0022.orders-priority.rollback \| +4 \| +1 \| +0 \|", ok(psql(migrated, "-f", down)))
    assert column(migrated, "SELECT sum(priority) FROM user_2.orders") == [21]
    assert schema_dump(migrated, "user_new").count("priority") == 0


def test_the_example_is_yoyos_too(migrated: Connection, orders: list[Path]) -> None:
    """yoyo applies and rolls back the two files from their folder, beside those that are there."""
    sources = ["sql/migrations", str(orders[0].parent)]
    assert "0022.orders-priority" in ok(yoyo(migrated, "apply", *sources))
    ok(yoyo(migrated, "rollback", "--revision", "0022", *sources))


def test_stragglers_of_every_migration_are_swept_by_one_call(migrated: Connection) -> None:
    """A legacy tenant goes through all that is applied, the contract too, whoever's search_path it is."""
    ok(yoyo(migrated, "apply", "sql/migrations", "sql/contract"))
    migrated.execute("CREATE SCHEMA user_restored")
    migrated.execute("CREATE TABLE user_restored.vinted_job_stats (LIKE users.vinted_job_stats INCLUDING ALL)")
    swept = psql(migrated, "-c", "CALL tenancy.sweep()", env={"PGOPTIONS": "-c search_path=user_restored"})
    assert re.search(r"^ +3$", ok(swept), re.MULTILINE)
    ok(psql(migrated, "-c", "CALL job_stats.verify(expected => 'contracted')"))
    names = ["0020.marketplace-job-stats", "0021.exact-averages", "0900.drop-legacy-view"]
    assert column(migrated, "SELECT name FROM tenancy.migrations ORDER BY name") == names
