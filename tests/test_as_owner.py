"""Rows are changed with the rights of their table's owner: what honest tenants have goes on; and who may migrate."""

import psycopg
import pytest

from tests.deploy import schema_dump
from tests.hostile import Migrator, lay_out, unharmed
from tests.tenants import DOWN, UP, UPGRADE, Connection, column, ok, states

HONEST = {
    "owner without rights in its schema": """
        ALTER SCHEMA user_victim OWNER TO legacy_platform;
        GRANT SELECT ON user_victim.vinted_job_stats TO legacy_backend WITH GRANT OPTION
    """,
    "forced row-level security": """
        ALTER TABLE user_victim.vinted_job_stats ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
        CREATE POLICY recent ON user_victim.vinted_job_stats USING (date = current_date)
    """,
    "foreign key to Vinted's action types": """
        ALTER TABLE user_victim.vinted_job_stats ADD FOREIGN KEY (action_type_id) REFERENCES vinted.action_types (id)
    """,
    "deferred constraints": """
        CREATE TABLE user_victim.days (day date PRIMARY KEY);
        INSERT INTO user_victim.days SELECT DISTINCT date FROM user_victim.vinted_job_stats;
        ALTER TABLE user_victim.days OWNER TO legacy_victim;
        ALTER TABLE user_victim.vinted_job_stats
            ADD FOREIGN KEY (date) REFERENCES user_victim.days DEFERRABLE INITIALLY DEFERRED,
            ADD EXCLUDE USING btree (id WITH =) DEFERRABLE INITIALLY DEFERRED
    """,
    "triggers that name what is in their schema": """
        CREATE TABLE user_victim.history (id integer, total_jobs integer, who name);
        ALTER TABLE user_victim.history OWNER TO legacy_victim;
        CREATE FUNCTION user_victim.keep() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO history VALUES (OLD.id, OLD.total_jobs, current_user);
            RETURN coalesce(NEW, OLD);
        END $$;
        CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON user_victim.vinted_job_stats
        FOR EACH ROW EXECUTE FUNCTION user_victim.keep()
    """,
}


@pytest.mark.parametrize("shape", HONEST.values(), ids=HONEST)
def test_honest_tenants_go_up_and_down(migrator: Migrator, shape: str) -> None:
    """Byte for byte as before without eBay's rows; with them every count comes back, and later ones are Vinted's."""
    conn = migrator.superuser
    conn.execute(shape.encode())
    before = schema_dump(conn, "user_victim")
    counted = "SELECT ARRAY[marketplace, count(*)::text, sum(total_jobs)::text] FROM user_victim.marketplace_job_stats"
    ok(migrator.psql(*UP))
    ok(migrator.psql(*DOWN))
    assert schema_dump(conn, "user_victim") == before
    ok(migrator.psql(*UP))
    conn.execute(
        """
        INSERT INTO user_victim.marketplace_job_stats (action_type_id, date, marketplace, total_jobs, success_count)
        SELECT action_type_id + 2, date, 'ebay', 5, 5 FROM user_victim.marketplace_job_stats
        """
    )
    per_marketplace = column(conn, f"{counted} GROUP BY marketplace ORDER BY 1")
    assert per_marketplace == [["ebay", "15", "75"], ["vinted", "15", "150"]]
    for _ in range(2):
        ok(migrator.psql(*DOWN))
        assert states(conn)["user_victim"] == "legacy"
        assert column(conn, "SELECT sum(total_jobs) FROM user_victim.vinted_job_stats") == [75 + 150]
        ok(migrator.psql(*UP))
        assert column(conn, f"{counted} GROUP BY marketplace ORDER BY 1") == per_marketplace
    ok(migrator.psql(*DOWN))
    conn.execute("SET search_path = user_victim")
    conn.execute("UPDATE vinted_job_stats SET total_jobs = total_jobs + 1, success_count = success_count + 1")
    conn.execute("RESET search_path")
    ok(migrator.psql(*UP))
    assert column(conn, f"{counted} GROUP BY marketplace ORDER BY 1") == [
        ["ebay", "15", "75"],
        ["vinted", "25", "175"],  # 10 days and action types had no row of Vinted's
    ]
    if "history" in shape:
        wrote = "SELECT DISTINCT who::text FROM user_victim.history WHERE who <> session_user"
        assert column(conn, wrote) == ["legacy_victim"]
    unharmed(conn)


def test_an_owner_that_may_take_no_ids_is_named(migrator: Migrator) -> None:
    """Where restoring needs a new row, and its owner may not use the sequence, the error says whose right it is."""
    conn = migrator.superuser
    ok(migrator.psql(*UP))
    conn.execute(
        "INSERT INTO user_victim.marketplace_job_stats (action_type_id, date, marketplace)"
        " VALUES (9, '2026-01-01', 'ebay')"
    )
    ok(migrator.psql(*DOWN))
    conn.execute("UPDATE user_victim.vinted_job_stats SET total_jobs = 1, failure_count = 1 WHERE action_type_id = 9")
    sequence = "template_tenant.vinted_job_stats_id_seq"
    conn.execute(f"REVOKE USAGE ON SEQUENCE {sequence} FROM legacy_victim".encode())
    refused = migrator.psql("-f", UPGRADE)
    assert "user_victim: permission denied for sequence" in refused.stderr
    assert "(with the rights of the table's owner, legacy_victim)" in refused.stderr
    conn.execute("GRANT USAGE ON SEQUENCE template_tenant.marketplace_job_stats_id_seq TO legacy_victim")
    ok(migrator.psql("-f", UPGRADE))
    assert states(conn)["user_victim"] == "migrated"


# What is taken away from the role of docs/grants.sql: what the error of the upgrade, or of the toolkit, says then.
WITHOUT = {
    "REVOKE legacy_victim FROM legacy_member": "user_victim: permission denied for schema user_victim",
    "REVOKE legacy_evil FROM legacy_member": "user_evil: must be owner of table vinted_job_stats",
    "REVOKE legacy_platform FROM legacy_member": "template_tenant: must be owner of table vinted_job_stats",
    "REVOKE USAGE ON SCHEMA vinted FROM legacy_member": "permission denied for schema vinted",
    "REVOKE REFERENCES ON vinted.action_types FROM legacy_member": "GRANT REFERENCES ON vinted.action_types",
    "ALTER ROLE legacy_member NOINHERIT; REVOKE legacy_platform FROM legacy_member; GRANT legacy_platform TO"
    " legacy_member": "template_tenant: ",
    "GRANT legacy_victim TO legacy_member WITH SET FALSE": "user_victim: must be able to SET ROLE",
}
WITHOUT_AT_FIRST = {
    "DROP SCHEMA yoyo": 'relation "yoyo_lock" does not exist',
    'REVOKE CREATE ON DATABASE "{}" FROM legacy_member': "permission denied for database",
}


@pytest.mark.parametrize("migrator", ["member"], indirect=True)
@pytest.mark.parametrize(("less", "said"), WITHOUT.items())
def test_each_grant_is_needed(migrator: Migrator, less: str, said: str) -> None:
    """Without any one of docs/grants.sql the role is told what it lacks, before the tenant is changed."""
    conn = migrator.superuser
    if "SET FALSE" in less and conn.info.server_version < 160000:
        pytest.skip("before PostgreSQL 16 a membership has no SET option")
    conn.execute(less.encode())
    refused = migrator.psql(*UP)
    assert refused.returncode != 0
    assert said in refused.stderr
    if said.startswith(("user_", "template_")):
        assert "(as role legacy_member: docs/grants.sql)" in refused.stderr
    named = said.partition(":")[0] if ": " in said else "template_tenant"
    assert column(conn, "SELECT to_regclass(%s) IS NOT NULL", f"{named}.vinted_job_stats") == [True]


@pytest.mark.parametrize(("less", "said"), WITHOUT_AT_FIRST.items())
def test_each_grant_is_needed_for_the_toolkit(empty: Connection, less: str, said: str) -> None:
    """So it is where the role is to make the toolkit."""
    migrator = lay_out(empty, "member")
    empty.execute(less.format(empty.info.dbname).encode())
    refused = migrator.yoyo("apply")
    assert refused.returncode != 0
    assert said in refused.stderr
    assert column(empty, "SELECT to_regclass('template_tenant.vinted_job_stats') IS NOT NULL") == [True]


@pytest.mark.parametrize("migrator", ["member"], indirect=True)
def test_the_grants_are_enough(migrator: Migrator) -> None:
    """The role of docs/grants.sql does everything, without CREATE on the database once the toolkit is there."""
    empty = migrator.superuser
    empty.execute(f'REVOKE CREATE ON DATABASE "{empty.info.dbname}" FROM legacy_member'.encode())
    both = ["sql/migrations", "sql/contract"]
    for command in [
        ["apply"],
        ["apply", *both],
        ["rollback", "--revision", "0900", *both],
        ["rollback", "--all", *both],
    ]:
        ok(migrator.yoyo(*command))
    assert column(empty, "SELECT to_regnamespace('job_stats')") == [None]
    with pytest.raises(psycopg.errors.InsufficientPrivilege), migrator.connect() as conn:
        conn.execute("CREATE SCHEMA more")
