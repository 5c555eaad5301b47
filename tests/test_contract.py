"""`sql/contract`, run when no old code is left: views and default marketplace go, and come back by a rollback."""

import psycopg
import pytest
from psycopg import sql

from stats_lib import Marketplace, get_stats, update_job_stats
from tests.deploy import ROOT, bash, connect, libpq_env, psql, schema_dump, yoyo
from tests.tenants import (
    DOWNGRADE,
    EXACT,
    PARTITION,
    UPGRADE,
    VERIFY,
    Connection,
    clone,
    column,
    ok,
    rows,
    states,
    tenants,
)
from tests.test_docs import blocks

CONTRACT = str(ROOT / "sql/contract/0900.drop-legacy-view.sql")
BOTH = ["sql/migrations", "sql/contract"]  # what it depends on must be given, too
INSERT = "INSERT INTO {}.{} (action_type_id, date) VALUES (7, '2026-01-01')"


def insert(conn: Connection, schema: str, table: str) -> None:
    """Write a row that names no marketplace, as old code does."""
    conn.execute(sql.SQL(INSERT).format(sql.Identifier(schema), sql.Identifier(table)))


def definitions(conn: Connection, *, but: str = "") -> str:
    """What pg_dump says of every tenant but one."""
    return schema_dump(conn, *(schema for schema in tenants(conn) if schema != but))


def views(conn: Connection) -> list[str]:
    """The tenants that have a legacy view."""
    return column(
        conn,
        "SELECT nspname FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace"
        " WHERE relname = 'vinted_job_stats' AND relkind = 'v' ORDER BY nspname",
    )


def test_contract_drops_the_views_and_the_default(migrated: Connection) -> None:
    """In every tenant: the state is contracted, a writer that names no marketplace is refused, the library works."""
    contents = {schema: rows(migrated, schema, "marketplace_job_stats") for schema in tenants(migrated)}
    ok(yoyo(migrated, "apply", *BOTH))
    assert set(states(migrated).values()) == {"contracted", "missing"}
    assert views(migrated) == []
    assert {schema: rows(migrated, schema, "marketplace_job_stats") for schema in tenants(migrated)} == contents
    for schema in tenants(migrated):
        with pytest.raises(psycopg.errors.UndefinedTable):
            insert(migrated, schema, "vinted_job_stats")
        with pytest.raises(psycopg.errors.NotNullViolation, match="marketplace"):
            insert(migrated, schema, "marketplace_job_stats")
        for marketplace in Marketplace:
            update_job_stats(migrated, schema=schema, action_type_id=7, marketplace=marketplace, success=True)
        counted = [row for row in get_stats(migrated, schema=schema, days=1) if row.action_type_id == 7]
        assert [(row.marketplace, row.total_jobs) for row in counted] == [("ebay", 1), ("etsy", 1), ("vinted", 1)]


def test_a_rollback_brings_views_and_default_back(migrated: Connection) -> None:
    """`yoyo rollback` undoes the contraction and nothing else: every tenant's definitions are what they were."""
    before = definitions(migrated)
    ok(yoyo(migrated, "apply", *BOTH))
    assert definitions(migrated) != before
    ok(yoyo(migrated, "rollback", *BOTH))
    assert definitions(migrated) == before
    assert set(states(migrated).values()) == {"migrated", "missing"}
    for schema in views(migrated):
        insert(migrated, schema, "vinted_job_stats")
    ok(yoyo(migrated, "apply", *BOTH))  # and again
    assert set(states(migrated).values()) == {"contracted", "missing"}


def test_a_table_that_is_partitioned_since(migrated: Connection) -> None:
    """The contract and its rollback change it as they do the others."""
    migrated.execute(PARTITION)
    rollback = CONTRACT.replace(".sql", ".rollback.sql")
    for script, has_view in [(CONTRACT, False), (rollback, True), (CONTRACT, False)]:
        ok(psql(migrated, "-f", script))
        assert ("user_1" in views(migrated)) == has_view
        if not has_view:
            with pytest.raises(psycopg.errors.NotNullViolation, match="marketplace"):
                insert(migrated, "user_1", "marketplace_job_stats")
    ok(psql(migrated, "-f", rollback))
    insert(migrated, "user_1", "vinted_job_stats")


def test_a_view_of_somebody_elses_is_not_dropped(migrated: Connection) -> None:
    """The contract takes away what 0020 has made: another view of that name is refused by name, and stays."""
    own = "SELECT 1 AS mine"
    migrated.execute(f"DROP VIEW user_1.vinted_job_stats; CREATE VIEW user_1.vinted_job_stats AS {own}".encode())
    refused = psql(migrated, "-f", CONTRACT)
    assert "user_1: user_1.vinted_job_stats is not as it was created (Look at it" in refused.stderr
    assert "1 FAILED" in refused.stderr
    assert column(migrated, "SELECT mine FROM user_1.vinted_job_stats") == [1]
    migrated.execute("DROP VIEW user_1.vinted_job_stats")
    ok(psql(migrated, "-f", CONTRACT))


def test_a_contraction_that_failed_half_way_is_taken_back(migrated: Connection) -> None:
    """yoyo has no mark of it, so that its rollback does nothing; the runbook's command brings every tenant back."""
    before = definitions(migrated)
    migrated.execute("CREATE VIEW public.report AS TABLE user_2.vinted_job_stats")
    assert "19 done, 0 done before, 1 FAILED" in yoyo(migrated, "apply", *BOTH).stderr
    ok(yoyo(migrated, "rollback", "--revision", "0900", *BOTH))
    assert set(states(migrated).values()) == {"contracted", "migrated", "missing"}
    (command,) = blocks("docs/runbook.md", "sh", "0900.drop-legacy-view.rollback")
    bash(command, libpq_env(migrated))
    migrated.execute("DROP VIEW public.report")
    assert definitions(migrated) == before


def test_the_contraction_is_not_applied_without_the_migrations(empty: Connection, migrated: Connection) -> None:
    """`yoyo apply sql/contract` alone fails, before 0020 and after it, and changes nothing."""
    before = definitions(migrated)
    for conn in [empty, migrated]:
        refused = yoyo(conn, "apply", "sql/contract")
        assert refused.returncode != 0
        assert "Could not resolve dependencies in sql/contract/0900.drop-legacy-view.sql" in refused.stderr
    assert column(empty, "SELECT count(*) FROM pg_class WHERE relname ~ 'job_stats'") == [0]
    assert definitions(migrated) == before


def test_all_the_way_up_and_down(legacy: Connection) -> None:
    """`yoyo rollback --all` of both folders leads back to the beginning, byte for byte."""
    before = definitions(legacy)
    contents = {schema: rows(legacy, schema, "vinted_job_stats") for schema in tenants(legacy)}
    ok(yoyo(legacy, "apply", *BOTH))
    assert set(states(legacy).values()) == {"contracted", "missing"}
    ok(yoyo(legacy, "rollback", "--all", *BOTH))
    assert definitions(legacy) == before
    assert {schema: rows(legacy, schema, "vinted_job_stats") for schema in contents} == contents
    assert column(legacy, "SELECT count(*) FROM pg_namespace WHERE nspname = 'job_stats'") == [0]


def test_contracted_tenants_can_be_rolled_back_to_legacy(legacy: Connection) -> None:
    """Rolling 0020 back without 0900 loses nothing; as 0900 stays marked, its file is then run by psql."""
    before = definitions(legacy, but="user_1")
    ok(yoyo(legacy, "apply", *BOTH))
    for marketplace in Marketplace:
        for _ in range(5):
            update_job_stats(legacy, schema="user_1", action_type_id=7, marketplace=marketplace, success=True)
    counted = get_stats(legacy, schema="user_1")

    ok(yoyo(legacy, "rollback", "--revision", "0020"))
    assert column(legacy, "SELECT total_jobs FROM user_1.vinted_job_stats WHERE action_type_id = 7") == [15]
    assert definitions(legacy, but="user_1") == before  # which has an archive of the split, too
    for schema in tenants(legacy):
        if schema != "template_tenant":
            legacy.execute(sql.SQL("UPDATE {} SET id = id").format(sql.Identifier(schema, "vinted_job_stats")))

    ok(yoyo(legacy, "apply", *BOTH))
    assert get_stats(legacy, schema="user_1") == counted
    assert set(states(legacy).values()) == {"migrated", "missing"}  # old code may be back
    ok(psql(legacy, "-f", CONTRACT))
    assert set(states(legacy).values()) == {"contracted", "missing"}


def test_a_straggler_among_contracted_tenants(legacy: Connection) -> None:
    """A legacy tenant restored from a backup: verify tells, the three files sweep it, and touch no other."""
    ok(yoyo(legacy, "apply", *BOTH))
    before = definitions(legacy)
    clone(legacy, "user_restored", "users.vinted_job_stats")
    told = psql(legacy, "-f", VERIFY)
    assert told.returncode != 0
    assert "user_restored: is legacy" in told.stderr
    ok(psql(legacy, "-f", UPGRADE))
    ok(psql(legacy, "-f", EXACT))
    assert states(legacy)["user_restored"] == "migrated"
    assert "user_restored: has not had 0900" in psql(legacy, "-f", VERIFY).stderr
    ok(psql(legacy, "-f", CONTRACT))
    assert states(legacy)["user_restored"] == "contracted"
    ok(psql(legacy, "-f", VERIFY))
    assert definitions(legacy, but="user_restored") == before


def test_a_contract_that_no_tenant_has_had_is_not_swept(migrated: Connection) -> None:
    """Begun in vain, since the template was locked, it is nothing that a tenant could lack."""
    with connect(migrated, autocommit=False) as reader:
        reader.execute("LOCK TABLE template_tenant.marketplace_job_stats IN ACCESS SHARE MODE")
        refused = yoyo(migrated, "apply", *BOTH, env={"PGOPTIONS": "-c tenancy.give_up_after=0s"})
    assert "No tenant is touched before template_tenant" in refused.stderr
    ok(psql(migrated, "-c", "CALL job_stats.sweep()"))
    ok(psql(migrated, "-c", "CALL job_stats.verify(expected => 'migrated')"))


def test_a_tenant_born_contracted(migrated: Connection) -> None:
    """A clone of the contracted template takes the library's writes, and goes all the way down with the others."""
    ok(yoyo(migrated, "apply", *BOTH))
    clone(migrated, "user_new", "template_tenant.marketplace_job_stats")
    assert states(migrated)["user_new"] == "contracted"
    update_job_stats(migrated, schema="user_new", action_type_id=7, marketplace="vinted", success=True)
    ok(yoyo(migrated, "rollback", *BOTH))
    assert states(migrated)["user_new"] == "migrated"
    insert(migrated, "user_new", "vinted_job_stats")
    ok(psql(migrated, "-f", DOWNGRADE))
    assert len(rows(migrated, "user_new", "vinted_job_stats")) == 2


def test_a_rollback_that_fails_can_be_taken_back(legacy: Connection) -> None:
    """Until it has left the migration nowhere, that is expected of every tenant, and sweep() brings it back."""
    ok(yoyo(legacy, "apply"))
    legacy.execute("CREATE VIEW user_2.uses AS SELECT marketplace FROM user_2.marketplace_job_stats")
    assert "user_2: cannot drop column marketplace" in yoyo(legacy, "rollback", "--revision", "0020").stderr
    assert "user_1: is legacy" in yoyo(legacy, "apply").stderr
    ok(psql(legacy, "-c", "CALL job_stats.sweep()"))
    ok(psql(legacy, "-c", "CALL job_stats.verify(expected => 'migrated')"))

    ok(yoyo(legacy, "apply", *BOTH))
    legacy.execute("CREATE TABLE user_2.vinted_job_stats ()")
    assert "1 FAILED" in yoyo(legacy, "rollback", "--revision", "0900", *BOTH).stderr
    legacy.execute("DROP TABLE user_2.vinted_job_stats")
    ok(yoyo(legacy, "apply", *BOTH))
    assert "user_1: has not had 0900.drop-legacy-view" in psql(legacy, "-f", VERIFY).stderr
    ok(psql(legacy, "-c", "CALL job_stats.sweep()"))
    ok(psql(legacy, "-c", "CALL job_stats.verify(expected => 'contracted')"))
