"""What `yoyo apply` and `yoyo rollback` do to tenants of every shape in `dev/legacy.sql`."""

import re

import psycopg
import pytest
from psycopg import sql

from tests.deploy import connect, psql, schema_dump, yoyo
from tests.tenants import (
    DOWN,
    DOWNGRADE,
    UP,
    UPGRADE,
    Connection,
    clone,
    clones,
    column,
    definitions,
    ok,
    rows,
    running,
    states,
    tenants,
    wait_until,
)

NEIGHBOURS = ["vinted", "users", "userland", "other_app", "user_without_table"]


def test_apply_rollback_and_apply_again(legacy: Connection) -> None:
    """Plain `yoyo apply` marks all migrations, `yoyo rollback --all` none, and up works again."""
    for command, mark in [(["apply"], "A"), (["rollback", "--all"], "U"), (["apply"], "A")]:
        ok(yoyo(legacy, *command))
        listed = re.findall(r"^([AU]) +(\S+)", ok(yoyo(legacy, "list")), re.MULTILINE)
        assert {listed_mark for listed_mark, _ in listed} == {mark}
        assert [name for _, name in listed[-2:]] == ["0020.marketplace-job-stats", "0021.exact-averages"]


def test_rollback_restores_every_definition_and_row(legacy: Connection) -> None:
    """Up and down, pg_dump says of every tenant byte for byte what it said before, and the rows are the same."""
    names = tenants(legacy)
    before = schema_dump(legacy, *names, *NEIGHBOURS)
    contents = {schema: rows(legacy, schema, "vinted_job_stats") for schema in names}
    ok(yoyo(legacy, "apply"))
    assert tenants(legacy) == names
    ok(yoyo(legacy, "rollback", "--all"))
    assert schema_dump(legacy, *names, *NEIGHBOURS) == before
    assert {schema: rows(legacy, schema, "vinted_job_stats") for schema in names} == contents
    assert column(legacy, "SELECT count(*) FROM pg_namespace WHERE nspname = 'job_stats'") == [0]


def test_every_row_is_kept_and_is_vinted(toolkit: Connection) -> None:
    """After the upgrade every tenant has the rows it had, ids and all, each with marketplace 'vinted'."""
    contents = {schema: rows(toolkit, schema, "vinted_job_stats") for schema in tenants(toolkit)}
    ok(psql(toolkit, *UP))
    assert {schema: rows(toolkit, schema, "marketplace_job_stats") for schema in tenants(toolkit)} == contents
    for schema in contents:
        query = sql.SQL("SELECT count(*) FROM {} WHERE marketplace <> 'vinted'")
        count = toolkit.execute(query.format(sql.Identifier(schema, "marketplace_job_stats"))).fetchone()
        assert count == (0,)


def test_neighbours_are_not_touched(toolkit: Connection) -> None:
    """Schemas that only look like tenants, or have no such table, are the same after the upgrade."""
    before = definitions(toolkit, NEIGHBOURS)
    ok(psql(toolkit, *UP))
    assert definitions(toolkit, NEIGHBOURS) == before
    assert states(toolkit)["user_without_table"] == "missing"
    assert not {"users", "userland", "other_app", "vinted"} & states(toolkit).keys()


def test_marketplaces_live_side_by_side(migrated: Connection) -> None:
    """In every tenant a day's action type has a row per marketplace, and no more; others are refused by name."""
    for schema in tenants(migrated):
        insert = sql.SQL(
            "INSERT INTO {} (action_type_id, date, marketplace) VALUES (4711, '2026-01-01', %s) ON CONFLICT DO NOTHING"
        ).format(sql.Identifier(schema, "marketplace_job_stats"))
        added = [migrated.execute(insert, [name]).rowcount for name in ["vinted", "ebay", "etsy", "ebay"]]
        assert added == [1, 1, 1, 0], schema
        with pytest.raises(psycopg.errors.CheckViolation, match="ck_marketplace_job_stats_marketplace"):
            migrated.execute(insert, ["amazon"])


def test_nothing_carries_the_old_name(migrated: Connection) -> None:
    """Keys, indexes, constraints and owned sequences are renamed with the table, in every tenant."""
    left = """
        SELECT n.nspname || '.' || o.name
        FROM (
            SELECT relnamespace AS schema_oid, relname AS name FROM pg_class WHERE relkind <> 'v'
            UNION ALL
            SELECT connamespace, conname FROM pg_constraint
        ) AS o
        JOIN pg_namespace AS n ON n.oid = o.schema_oid
        WHERE position('vinted_job_stats' IN o.name) > 0 AND nspname = ANY (%s)
    """
    assert column(migrated, left, tenants(migrated)) == []


def test_definitions_have_their_names(migrated: Connection) -> None:
    """Every tenant has the key, the check and the index under the names that are API."""
    names = """
        SELECT count(*) FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace
        WHERE relname = %s AND nspname = ANY (%s)
    """
    schemas = tenants(migrated)
    for name in [
        "uq_marketplace_job_stats_action_marketplace_date",
        "ix_marketplace_job_stats_marketplace_created_at",
    ]:
        assert column(migrated, names, name, schemas) == [len(schemas)]
    assert set(states(migrated).values()) == {"migrated", "missing"}


def test_only_foreign_keys_to_vinted_go(migrated: Connection) -> None:
    """eBay's action types are accepted, while a tenant's own foreign keys still hold."""
    table = "user_foreign_keys.marketplace_job_stats"
    migrated.execute(f"INSERT INTO {table} (action_type_id, date, marketplace) VALUES (4711, '2026-01-01', 'ebay')")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        migrated.execute(f"UPDATE {table} SET worker_id = 4711")


def test_owner_and_grants_stay(migrated: Connection) -> None:
    """Owners, grants and row-level security are those of the legacy table."""
    assert column(
        migrated,
        "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'user_owner.marketplace_job_stats'::regclass",
    ) == ["legacy_owner"]
    with connect(migrated) as reader:
        reader.execute("SET ROLE legacy_reader")
        reader.execute("INSERT INTO user_grants.marketplace_job_stats (action_type_id, date) VALUES (9, '2026-01-01')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("DELETE FROM user_grants.marketplace_job_stats")
        seen = column(
            reader, "SELECT count(*) FROM user_row_security.marketplace_job_stats WHERE date < current_date - 30"
        )
        assert seen == [0]
    assert column(migrated, "SELECT count(*) > 0 FROM user_row_security.marketplace_job_stats") == [True]


def test_a_clone_of_the_migrated_template_rolls_back_to_a_legacy_clone(toolkit: Connection) -> None:
    """A tenant born after the upgrade is, after the rollback, what a clone of the legacy template is."""
    as_born_legacy = schema_dump(toolkit, "user_1").replace("user_1", "user_new")
    ok(psql(toolkit, *UP))
    toolkit.execute("CALL job_stats.add_tenant('user_new')")
    assert states(toolkit)["user_new"] == "migrated"
    toolkit.execute("INSERT INTO user_new.marketplace_job_stats (action_type_id, date) VALUES (1, '2026-01-01')")
    ok(psql(toolkit, *DOWN))
    assert schema_dump(toolkit, "user_new") == as_born_legacy
    assert len(rows(toolkit, "user_new", "vinted_job_stats")) == 1


def test_a_tenant_upgraded_by_hand_is_left_alone(legacy: Connection) -> None:
    """A schema that has the new table already is not touched; what is wrong with it fails the verification."""
    legacy.execute("ALTER TABLE user_2.vinted_job_stats RENAME TO marketplace_job_stats")
    before = definitions(legacy, ["user_2"])
    applied = yoyo(legacy, "apply")
    assert definitions(legacy, ["user_2"]) == before
    assert applied.returncode != 0
    assert "user_2: has not had 0020.marketplace-job-stats" in applied.stderr
    assert re.search(r"^A +0020", ok(yoyo(legacy, "list")), re.MULTILINE)


def test_a_tenant_that_fails_leaves_the_others_done(legacy: Connection) -> None:
    """Both tables, or duplicates, in a tenant: refused by name, yoyo fails and marks nothing, a rerun does the rest."""
    legacy.execute("CREATE TABLE user_1.marketplace_job_stats ()")
    legacy.execute("ALTER TABLE user_2.vinted_job_stats DROP CONSTRAINT vinted_job_stats_action_type_id_date_key")
    legacy.execute(
        "INSERT INTO user_2.vinted_job_stats (action_type_id, date) VALUES (7, '2026-01-01'), (7, '2026-01-01')"
    )
    before = definitions(legacy, ["user_1", "user_2"])

    failed = yoyo(legacy, "apply")
    assert failed.returncode != 0
    assert "user_1: vinted_job_stats and marketplace_job_stats are both there" in failed.stderr
    assert "user_2: could not create unique index" in failed.stderr
    assert "(action_type_id, marketplace, date)=(7, vinted, 2026-01-01) is duplicated" in failed.stderr
    assert "run the same command again" in failed.stderr
    assert re.search(r"^U +0020", ok(yoyo(legacy, "list")), re.MULTILINE)
    assert definitions(legacy, ["user_1", "user_2"]) == before
    assert {name for name, state in states(legacy).items() if state != "migrated"} == {
        "user_1",
        "user_2",
        "user_without_table",
    }
    assert states(legacy)["user_1"] == "drifted"

    legacy.execute("DROP TABLE user_1.marketplace_job_stats")
    legacy.execute("DELETE FROM user_2.vinted_job_stats WHERE id = (SELECT max(id) FROM user_2.vinted_job_stats)")
    assert re.search(r"\| 2 +\| 18 ", ok(yoyo(legacy, "apply")), re.MULTILINE)
    assert set(states(legacy).values()) == {"migrated", "missing"}


def test_an_error_in_the_template_stops_the_run(legacy: Connection) -> None:
    """template_tenant goes first: if it fails, no other tenant has been touched."""
    legacy.execute("CREATE TABLE template_tenant.marketplace_job_stats ()")
    failed = yoyo(legacy, "apply")
    assert failed.returncode != 0
    assert "template_tenant: vinted_job_stats and marketplace_job_stats are both there" in failed.stderr
    assert "No tenant is touched before template_tenant" in failed.stderr
    assert "migrated" not in states(legacy).values()


def test_a_tenant_created_meanwhile_is_migrated_too(legacy: Connection) -> None:
    """The list is read again until no legacy tenant is left."""
    with connect(legacy, autocommit=False) as blocker:
        blocker.execute("LOCK TABLE user_1.vinted_job_stats IN ACCESS SHARE MODE")
        with running(yoyo, legacy, "apply") as results:
            wait_until(legacy, "SELECT to_regclass('user_2.marketplace_job_stats') IS NOT NULL")
            clone(legacy, "user_0_new", "users.vinted_job_stats")
            blocker.rollback()
    ok(results[0])
    assert states(legacy)["user_0_new"] == "migrated"


def test_one_run_at_a_time(legacy: Connection) -> None:
    """A second run, by whatever client, is refused and told the first one's pid."""
    with connect(legacy, autocommit=False) as blocker:
        blocker.execute("LOCK TABLE user_1.vinted_job_stats IN ACCESS SHARE MODE")
        with running(yoyo, legacy, "apply") as results:
            wait_until(legacy, "SELECT to_regclass('user_2.marketplace_job_stats') IS NOT NULL")
            second = psql(legacy, "-f", UPGRADE)
            pids = column(legacy, "SELECT pid FROM tenancy.runs WHERE finished_at IS NULL")
            blocker.rollback()
    assert second.returncode != 0
    assert f"migrated already, by pid {pids[0]}" in second.stderr
    ok(results[0])


def test_of_two_runs_that_begin_at_once_one_sees_the_other(toolkit: Connection) -> None:
    """A run begins under a lock: while another has it, it looks for none."""
    with connect(toolkit, autocommit=False) as other:
        other.execute("LOCK TABLE tenancy.runs IN SHARE ROW EXCLUSIVE MODE")
        with running(psql, toolkit, "-f", UPGRADE) as results:
            wait_until(
                toolkit,
                "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = 'tenancy.runs'::regclass"
                " AND mode = 'ShareRowExclusiveLock'",
            )
            other.execute(
                "INSERT INTO tenancy.runs (migration, pid, to_do, already_done) VALUES ('x', %s, 1, 0)",
                [other.info.backend_pid],
            )
            other.commit()
        pid = other.info.backend_pid
    assert f"migrated already, by pid {pid}" in results[0].stderr


def test_a_process_number_that_is_anothers_by_now(toolkit: Connection) -> None:
    """A run that was killed is not taken for one that goes on, whoever has its process's number since."""
    run = "INSERT INTO tenancy.runs (migration, pid, to_do, already_done, started_at) VALUES ('x', {}, 1, 0, {})"
    with connect(toolkit) as later, connect(toolkit, dbname="postgres") as elsewhere:
        earlier = "clock_timestamp() - '1 second'::interval"
        toolkit.execute("SELECT pg_sleep(1.1)")
        with connect(toolkit) as newest:
            toolkit.execute(run.format(newest.info.backend_pid, earlier).encode())
            toolkit.execute(run.format(elsewhere.info.backend_pid, "clock_timestamp()").encode())
            assert column(toolkit, "SELECT DISTINCT state FROM tenancy.progress") == ["killed"]
            toolkit.execute(run.format(later.info.backend_pid, "clock_timestamp()").encode())
            assert column(toolkit, "SELECT state FROM tenancy.progress LIMIT 1") == ["running"]


def test_a_rehearsal_is_no_migration_to_be_swept(toolkit: Connection) -> None:
    """It leaves nothing that the toolkit would take for applied."""
    ok(psql(toolkit, "-c", "SET tenancy.dry_run = on", "-f", UPGRADE))
    assert column(toolkit, "SELECT name FROM tenancy.migrations") == []
    toolkit.execute("CALL tenancy.refuse_while_needed()")


def test_what_only_a_run_may_do(toolkit: Connection) -> None:
    """Nothing is kept for a rollback outside of a run; and a run takes no primary key away."""
    with pytest.raises(psycopg.Error, match=r"only a script of tenancy\.for_each_tenant may drop"):
        toolkit.execute("CALL tenancy.remember('user_1.vinted_job_stats', 'SELECT 1')")
    keyless = psql(
        toolkit,
        "-c",
        "CALL tenancy.for_each_tenant('0099.keyless', $$SELECT oid, true FROM pg_namespace WHERE nspname = 'user_1'$$,"
        " $$CALL tenancy.drop_unique_keys('vinted_job_stats', '{id}', 'x');$$, 100, 1)",
    )
    assert "vinted_job_stats_pkey is the primary key: give the table another one first" in keyless.stderr


def test_many_that_failed(toolkit: Connection) -> None:
    """Fifty are named, and where all the others are."""
    toolkit.execute("ALTER TABLE template_tenant.vinted_job_stats ADD untimed_jobs integer")
    clones(toolkit, "user_many_", 51)
    toolkit.execute("ALTER TABLE template_tenant.vinted_job_stats DROP untimed_jobs")
    failed = psql(toolkit, "-f", UPGRADE).stderr
    assert "51 FAILED" in failed
    assert failed.count("user_many_") == 50
    assert "... all are in tenancy.journal" in failed


@pytest.mark.slow
def test_thousands_of_tenants_under_a_statement_timeout(legacy: Connection) -> None:
    """3,000 tenants go up and down, by a role whose statements may take a second, in a server with default settings."""
    clones(legacy, "user_many_", 3000)
    legacy.execute(
        sql.SQL("ALTER ROLE {} IN DATABASE {} SET statement_timeout = '1s'").format(
            sql.Identifier(legacy.info.user), sql.Identifier(legacy.info.dbname)
        )
    )
    count = len(tenants(legacy))
    assert re.search(rf"\| {count} +\| 0 +\| 0 ", ok(yoyo(legacy, "apply")), re.MULTILINE)
    assert list(states(legacy).values()).count("migrated") == count
    assert re.search(rf"\| {count} +\| 0 +\| 0 ", ok(yoyo(legacy, "rollback", "--all")), re.MULTILINE)


def test_the_files_run_under_psql_too(toolkit: Connection) -> None:
    """`psql -f` does what is left: all at first, nothing the second time, and the straggler restored from a backup."""
    assert re.search(r"\| +20 \| +0 \|", ok(psql(toolkit, "-f", UPGRADE)), re.MULTILINE)
    assert re.search(r"\| +0 \| +20 \|", ok(psql(toolkit, "-f", UPGRADE)), re.MULTILINE)
    clone(toolkit, "user_restored", "users.vinted_job_stats")
    assert re.search(r"\| +1 \| +20 \|", ok(psql(toolkit, "-f", UPGRADE)), re.MULTILINE)
    assert re.search(r"\| +21 \| +0 \|", ok(psql(toolkit, "-f", DOWNGRADE)), re.MULTILINE)


def test_in_a_transaction_block_nothing_is_begun(toolkit: Connection) -> None:
    """One transaction for all tenants is refused before the first."""
    refused = psql(toolkit, "-1", "-f", UPGRADE)
    assert refused.returncode != 0
    assert "invalid transaction termination" in refused.stderr
    assert "migrated" not in states(toolkit).values()


def test_rehearsal_changes_nothing(toolkit: Connection) -> None:
    """With tenancy.dry_run each tenant's DDL is run and rolled back; yoyo fails and marks nothing."""
    before = definitions(toolkit, tenants(toolkit))
    dry_run = {"PGOPTIONS": "-c tenancy.dry_run=on"}
    assert re.search(r"\| +20 \| +0 \| +0 \|", ok(psql(toolkit, "-f", UPGRADE, env=dry_run)), re.MULTILINE)
    assert column(toolkit, "SELECT DISTINCT outcome FROM tenancy.journal") == ["rehearsed"]
    under_yoyo = yoyo(toolkit, "apply", env=dry_run)
    assert under_yoyo.returncode != 0
    assert "20 rehearsed" in under_yoyo.stderr
    assert re.search(r"^U +0020", ok(yoyo(toolkit, "list")), re.MULTILINE)
    assert definitions(toolkit, tenants(toolkit)) == before


def test_rehearsal_names_what_would_fail(toolkit: Connection) -> None:
    """A tenant that would be refused is refused in the rehearsal too."""
    toolkit.execute("CREATE TABLE user_1.marketplace_job_stats ()")
    rehearsal = psql(toolkit, "-f", UPGRADE, env={"PGOPTIONS": "-c tenancy.dry_run=on"})
    assert rehearsal.returncode != 0
    assert "user_1: vinted_job_stats and marketplace_job_stats are both there" in rehearsal.stderr
    assert "migrated" not in states(toolkit).values()


def test_canary(toolkit: Connection) -> None:
    """tenancy.tenants limits a run to the tenants whose whole name matches; yoyo fails and marks nothing."""
    canary = {"PGOPTIONS": r"-c tenancy.tenants=user_[12]|user_a\"b".replace("\\", "")}
    assert re.search(r"\| +3 \| +0 \|", ok(psql(toolkit, "-f", UPGRADE, env=canary)), re.MULTILINE)
    assert {name for name, state in states(toolkit).items() if state == "migrated"} == {"user_1", "user_2", 'user_a"b'}
    under_yoyo = yoyo(toolkit, "apply", env={"PGOPTIONS": "-c tenancy.tenants=user_3"})
    assert under_yoyo.returncode != 0
    assert "1 done" in under_yoyo.stderr
    assert states(toolkit)["user_3"] == "migrated"
    assert re.search(r"^U +0020", ok(yoyo(toolkit, "list")), re.MULTILINE)


def test_without_any_tenant_there_is_nothing_to_do(empty: Connection) -> None:
    """A new database is migrated, and rolled back, like any other."""
    assert re.search(r"\| 0 +\| 0 +\| 0 ", ok(yoyo(empty, "apply")), re.MULTILINE)
    assert re.search(r"\| 0 +\| 0 +\| 0 ", ok(yoyo(empty, "rollback", "--all")), re.MULTILINE)


def test_a_pattern_that_matches_no_tenant_is_an_error(toolkit: Connection) -> None:
    """A mistyped canary is not taken for one that was done."""
    refused = psql(toolkit, "-f", UPGRADE, env={"PGOPTIONS": "-c tenancy.tenants=user"})
    assert refused.returncode != 0
    assert "no tenant matches ^(user)$" in refused.stderr


def test_an_invalid_index_is_nobodys(toolkit: Connection) -> None:
    """What a CREATE UNIQUE INDEX CONCURRENTLY that failed has left does not come back as a key that is valid."""
    toolkit.execute("CREATE UNIQUE INDEX failed ON user_1.vinted_job_stats (action_type_id, date)")
    toolkit.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'user_1.failed'::regclass")
    before = schema_dump(toolkit, "user_1")
    ok(psql(toolkit, *UP))
    ok(psql(toolkit, *DOWN))
    assert schema_dump(toolkit, "user_1") == before


def test_a_replicas_role_is_refused(migrated: Connection) -> None:
    """Where no foreign key is heeded, folding would leave rows that refer to what is gone."""
    refused = psql(migrated, "-f", DOWNGRADE, env={"PGOPTIONS": "-c session_replication_role=replica"})
    assert refused.returncode != 0
    assert "session_replication_role must be origin, not replica" in refused.stderr


def test_another_isolation_level_is_refused(migrated: Connection) -> None:
    """With a snapshot from before its lock, a rollback would overlook rows; the hint says how to go on."""
    options = "-c default_transaction_isolation=serializable"
    refused = psql(migrated, "-f", DOWNGRADE, env={"PGOPTIONS": options})
    assert refused.returncode != 0
    assert "the isolation level must be read committed, not serializable" in refused.stderr
    (hint,) = re.findall(r"PGOPTIONS='(.*)'", refused.stderr)
    ok(psql(migrated, "-f", DOWNGRADE, env={"PGOPTIONS": f"{options} {hint}"}))


def test_the_toolkit_stays_while_a_tenant_is_migrated(migrated: Connection) -> None:
    """Rolling the toolkit back would drop what a rollback needs, so it is refused."""
    ok(yoyo(migrated, "unmark", "--revision", "0020"))
    refused = yoyo(migrated, "rollback", "--all")
    assert refused.returncode != 0
    assert "migrations are still applied: 0020.marketplace-job-stats, " in refused.stderr
    assert "0020.marketplace-job-stats in template_tenant, " in refused.stderr
    assert states(migrated)["user_1"] == "migrated"


def test_the_journal_tells_what_was_done(legacy: Connection) -> None:
    """A row per tenant and attempt: which migration, the outcome, the problem. What restores is kept apart from it."""
    legacy.execute("CREATE TABLE user_1.marketplace_job_stats ()")
    yoyo(legacy, "apply")
    journal = {
        row[0]: row[1:]
        for row in legacy.execute("SELECT schema_name, migration, attempt, outcome, problem FROM tenancy.journal")
    }
    assert len(journal) == 20
    assert journal["user_1"][:3] == ("0020.marketplace-job-stats", 1, "failed")
    both = "vinted_job_stats and marketplace_job_stats are both there"
    assert journal["user_1"][3] == f'{both}: docs/runbook.md, "Both tables"'
    assert journal["user_schema_key"][:4] == ("0020.marketplace-job-stats", 1, "done", None)
    restore = "SELECT script FROM tenancy.undo WHERE target = 'user_schema_key.marketplace_job_stats'::regclass"
    (script,) = column(legacy, restore)
    assert "ADD CONSTRAINT uq_user_schema_key_job_stats_action_date UNIQUE" in script
    assert "user_schema_key." not in script


def test_a_primary_key_on_action_and_day_is_refused(legacy: Connection) -> None:
    """A tenant whose primary key admits one marketplace a day is refused by name; a partial unique index just goes."""
    legacy.execute(
        """
        ALTER TABLE user_1.vinted_job_stats
            DROP CONSTRAINT vinted_job_stats_pkey,
            ADD PRIMARY KEY (action_type_id, date);
        CREATE UNIQUE INDEX partly ON user_2.vinted_job_stats (action_type_id, date) WHERE total_jobs > 0;
        """
    )
    before = schema_dump(legacy, "user_2")
    failed = yoyo(legacy, "apply")
    assert "user_1: user_1.vinted_job_stats_pkey is the primary key" in failed.stderr
    assert states(legacy)["user_1"] == "legacy"
    assert states(legacy)["user_2"] == "migrated"
    assert column(legacy, "SELECT to_regclass('user_2.partly')") == [None]
    ok(psql(legacy, "-f", DOWNGRADE))
    assert schema_dump(legacy, "user_2") == before


def test_inheritance_children_are_migrated(legacy: Connection) -> None:
    """A table that inherits from a report over all tenants goes up and down like any other."""
    legacy.execute("CREATE TABLE report (LIKE user_1.vinted_job_stats INCLUDING DEFAULTS)")
    legacy.execute("ALTER TABLE report ADD CONSTRAINT ck_vinted_job_stats_total CHECK (total_jobs >= 0)")
    legacy.execute(
        "ALTER TABLE user_1.vinted_job_stats ADD CONSTRAINT ck_vinted_job_stats_total CHECK (total_jobs >= 0)"
    )
    legacy.execute("ALTER TABLE user_1.vinted_job_stats INHERIT report")
    before = schema_dump(legacy, "user_1")
    ok(yoyo(legacy, "apply"))
    ok(yoyo(legacy, "rollback", "--all"))
    assert schema_dump(legacy, "user_1") == before


def test_a_replica_identity_that_goes_with_the_column(toolkit: Connection) -> None:
    """One that was given after the change becomes the primary key at the rollback: old code can go on to UPDATE."""
    ok(psql(toolkit, *UP))
    toolkit.execute(
        "ALTER TABLE user_1.marketplace_job_stats"
        " REPLICA IDENTITY USING INDEX uq_marketplace_job_stats_action_marketplace_date"
    )
    ok(psql(toolkit, *DOWN))
    assert column(toolkit, "SELECT relreplident FROM pg_class WHERE oid = 'user_1.vinted_job_stats'::regclass") == ["d"]


def test_the_replica_identity_moves_to_the_new_key_and_back(toolkit: Connection) -> None:
    """A tenant whose old key is its replica identity is never without one, so that its updates are replicated."""
    toolkit.execute(
        "ALTER TABLE user_1.vinted_job_stats REPLICA IDENTITY USING INDEX vinted_job_stats_action_type_id_date_key"
    )
    before = schema_dump(toolkit, "user_1")
    ok(psql(toolkit, *UP))
    identity = "SELECT relname FROM pg_class JOIN pg_index ON oid = indexrelid WHERE indisreplident"
    assert column(toolkit, identity) == ["uq_marketplace_job_stats_action_marketplace_date"]
    ok(psql(toolkit, *DOWN))
    assert schema_dump(toolkit, "user_1") == before
