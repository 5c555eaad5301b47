"""Seeing what is wrong: `job_stats.tenant_status`, the verification after every apply, and progress."""

import re

import pytest

from tests.deploy import connect, psql, yoyo
from tests.tenants import (
    DOWNGRADE,
    EXACT,
    UP,
    UPGRADE,
    VERIFY,
    Connection,
    clone,
    clones,
    column,
    ok,
    running,
    states,
    wait_until,
)

NOT_AS_CREATED = "view vinted_job_stats is not as it was created: drop it, and sweep"
DRIFTS = {
    "DROP VIEW user_1.vinted_job_stats": "no view vinted_job_stats",
    "CREATE OR REPLACE VIEW user_1.vinted_job_stats AS TABLE user_2.vinted_job_stats": (NOT_AS_CREATED),
    """
    DO $$
    BEGIN
        EXECUTE 'CREATE OR REPLACE VIEW user_1.vinted_job_stats WITH (security_invoker, check_option = cascaded) AS '
            || replace(pg_get_viewdef('user_1.vinted_job_stats'), '''vinted''', '''ebay''');
    END
    $$
    """: NOT_AS_CREATED,
    """
    DROP VIEW user_1.vinted_job_stats;
    CREATE VIEW user_1.vinted_job_stats AS SELECT id, action_type_id, date, total_jobs
    FROM user_1.marketplace_job_stats WHERE marketplace::text = 'vinted' WITH CASCADED CHECK OPTION
    """: NOT_AS_CREATED,
    """
    DO $$
    BEGIN
        EXECUTE 'CREATE OR REPLACE VIEW user_1.vinted_job_stats WITH (security_invoker, check_option = cascaded) AS '
            || replace(pg_get_viewdef('user_1.vinted_job_stats'), ';', ' AND date > date ''2026-01-01''');
    END
    $$
    """: NOT_AS_CREATED,
    "CREATE RULE none AS ON INSERT TO user_1.vinted_job_stats DO INSTEAD NOTHING": (NOT_AS_CREATED),
    "ALTER VIEW user_1.vinted_job_stats RENAME COLUMN avg_duration_ms TO avg_ms": NOT_AS_CREATED,
    """
    CREATE TRIGGER swallow INSTEAD OF UPDATE ON user_1.vinted_job_stats
        FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()
    """: NOT_AS_CREATED,
    "ALTER TABLE user_1.marketplace_job_stats OWNER TO legacy_owner": (
        "view vinted_job_stats is not its table's owner's: drop it, and sweep"
    ),
    """
    DROP VIEW user_1.vinted_job_stats;
    CREATE TABLE user_1.copy (LIKE user_1.marketplace_job_stats INCLUDING ALL);
    DROP TABLE user_1.marketplace_job_stats;
    ALTER TABLE user_1.copy RENAME TO marketplace_job_stats;
    CALL job_stats.add_tenant('user_1')
    """: "is another table than was migrated, and tenancy.undo says what that one was before",
    "DROP VIEW user_1.vinted_job_stats; CREATE TABLE user_1.vinted_job_stats ()": (
        "vinted_job_stats and marketplace_job_stats are both there"
    ),
    "ALTER TABLE user_1.marketplace_job_stats DROP CONSTRAINT ck_marketplace_job_stats_marketplace": (
        "no check of marketplace: ebay, etsy, vinted"
    ),
    """
    ALTER TABLE user_1.marketplace_job_stats
        DROP CONSTRAINT ck_marketplace_job_stats_marketplace,
        ADD CONSTRAINT ck_marketplace_job_stats_marketplace CHECK (marketplace IN ('vinted', 'ebay'))
    """: "no check of marketplace: ebay, etsy, vinted",
    """
    ALTER TABLE user_1.marketplace_job_stats
        DROP CONSTRAINT ck_marketplace_job_stats_marketplace,
        ADD CONSTRAINT ck_marketplace_job_stats_marketplace CHECK (marketplace IN ('vinted', 'ebay', 'etsy')) NOT VALID
    """: "no check of marketplace: ebay, etsy, vinted",
    """
    ALTER TABLE user_1.marketplace_job_stats
        DROP CONSTRAINT ck_marketplace_job_stats_marketplace, ADD CHECK (length(marketplace) > 0)
    """: "no check of marketplace: ebay, etsy, vinted",
    "ALTER TABLE user_1.marketplace_job_stats ALTER marketplace SET DEFAULT 'ebay'": (
        "no default of marketplace: vinted; view vinted_job_stats without a default of marketplace"
    ),
    "ALTER TABLE user_1.marketplace_job_stats ALTER marketplace DROP DEFAULT": (
        "no default of marketplace: vinted; view vinted_job_stats without a default of marketplace"
    ),
    """
    ALTER TABLE user_1.marketplace_job_stats
        DROP CONSTRAINT uq_marketplace_job_stats_action_marketplace_date,
        ADD CONSTRAINT uq_marketplace_job_stats_action_marketplace_date UNIQUE (action_type_id, date)
    """: "has unique key on (action_type_id, date); no unique key on (action_type_id, marketplace, date); "
    "user_1.uq_marketplace_job_stats_action_marketplace_date admits one marketplace only",
    "DROP INDEX user_1.ix_marketplace_job_stats_marketplace_created_at": "no index on (marketplace, created_at)",
    """
    UPDATE pg_index SET indisvalid = false
    WHERE indexrelid = 'user_1.ix_marketplace_job_stats_marketplace_created_at'::regclass
    """: "no index on (marketplace, created_at)",
    """
    DROP VIEW user_1.vinted_job_stats;
    ALTER TABLE user_1.marketplace_job_stats
        DROP marketplace,
        ADD marketplace varchar(20) NOT NULL GENERATED ALWAYS AS (CASE WHEN id > 0 THEN 'vinted' END) STORED
            CHECK (marketplace IN ('vinted', 'ebay', 'etsy')),
        ADD UNIQUE (action_type_id, marketplace, date);
    CREATE INDEX ON user_1.marketplace_job_stats (marketplace, created_at)
    """: "no default of marketplace: vinted; no index on (date, marketplace); column marketplace is generated",
    "ALTER TABLE user_1.marketplace_job_stats ALTER success_count DROP NOT NULL": ("column success_count may be NULL"),
    "ALTER TABLE user_1.marketplace_job_stats ALTER id DROP DEFAULT": "column id is NOT NULL without a default",
    """
    DROP VIEW user_1.vinted_job_stats;
    ALTER TABLE user_1.marketplace_job_stats ALTER avg_duration_ms TYPE real;
    CALL job_stats.create_legacy_view('user_1.marketplace_job_stats')
    """: "column avg_duration_ms is real and should be integer",
    "ALTER TABLE user_1.marketplace_job_stats DROP total_duration_ms": "no column total_duration_ms bigint",
    "CREATE TABLE user_1.marketplace_job_stats_archive ()": "marketplace_job_stats_archive is left",
}


@pytest.mark.parametrize(("change", "problem"), DRIFTS.items())
def test_drift_is_named_and_fails_the_verification(migrated: Connection, change: str, problem: str) -> None:
    """A tenant changed by hand shows in status, with the problem in words, and fails the verification by name."""
    ok(psql(migrated, "-f", VERIFY))
    migrated.execute(change.encode())
    found = migrated.execute("SELECT * FROM job_stats.tenant_status WHERE problem IS NOT NULL").fetchall()
    assert found == [("user_1", "drifted", problem)]
    failed = psql(migrated, "-f", VERIFY)
    assert failed.returncode != 0
    assert f"user_1: {problem}" in failed.stderr


def test_a_table_that_is_gone_is_named(migrated: Connection) -> None:
    """Of a tenant that was migrated, unless what is kept for its rollback is deleted; the others are verified."""
    gone = "user_1: its table is gone, and tenancy.undo says what it was before"
    migrated.execute("DROP TABLE user_1.marketplace_job_stats CASCADE")
    assert gone in psql(migrated, "-f", VERIFY).stderr
    migrated.execute("DELETE FROM tenancy.undo WHERE schema_name = 'user_1'")
    assert re.search(r"^ +19 \| +2 \| +0$", ok(psql(migrated, "-f", VERIFY)), re.MULTILINE)


def test_extra_columns_and_indexes_are_no_drift(migrated: Connection) -> None:
    """A tenant may have more than it should."""
    migrated.execute("ALTER TABLE user_1.marketplace_job_stats ADD COLUMN note text")
    migrated.execute("CREATE INDEX ON user_1.marketplace_job_stats (date)")
    ok(psql(migrated, "-f", VERIFY))


@pytest.mark.parametrize("extra", [24, 25, 100])
def test_wide_tenants_are_no_drift(toolkit: Connection, extra: int) -> None:
    """The new column may come after any number of others: pg_class, whose names stand in for them, has 33 or more."""
    more = ", ".join(f"ADD COLUMN extra_{number} text" for number in range(extra))
    toolkit.execute(f"ALTER TABLE user_1.vinted_job_stats {more}".encode())
    ok(psql(toolkit, *UP))
    assert states(toolkit)["user_1"] == "migrated"


def test_a_tenant_that_is_left_out_is_not_swept(migrated: Connection) -> None:
    """Whatever it lacks."""
    migrated.execute("DROP VIEW user_1.vinted_job_stats; INSERT INTO tenancy.left_out VALUES ('user_1', 'x')")
    ok(psql(migrated, "-c", "CALL job_stats.sweep()"))
    assert column(migrated, "SELECT to_regclass('user_1.vinted_job_stats')") == [None]


def test_a_database_without_what_the_migrations_made(migrated: Connection) -> None:
    """As where tenants were moved to, and tenancy.effects was not: each is named."""
    migrated.execute("DELETE FROM tenancy.effects")
    (problem,) = column(migrated, "SELECT problem FROM job_stats.tenant_status WHERE schema_name = 'user_1'")
    assert "no migration that was run here has made it" in problem


def test_a_straggler_is_found_and_swept(migrated: Connection) -> None:
    """A tenant restored from an old backup fails the verification until 0020 and 0021 have been run again."""
    clone(migrated, "user_restored", "users.vinted_job_stats")
    assert states(migrated)["user_restored"] == "legacy"
    failed = psql(migrated, "-f", VERIFY)
    assert failed.returncode != 0
    assert "user_restored: is legacy" in failed.stderr
    for file in [UPGRADE, EXACT]:
        assert psql(migrated, "-f", VERIFY).returncode != 0
        assert re.search(r"\| +1 \| +20 \| +0 \|", ok(psql(migrated, "-f", file)), re.MULTILINE)
    ok(psql(migrated, "-f", VERIFY))


def test_apply_ends_with_the_verification(legacy: Connection) -> None:
    """yoyo prints how many tenants were verified; with job_stats.verify=off it looks only for what is expected."""
    legacy.execute("CREATE TABLE user_1.marketplace_job_stats_archive ()")
    legacy.execute("ALTER TABLE user_1.vinted_job_stats RENAME TO marketplace_job_stats")
    failed = yoyo(legacy, "apply")
    assert failed.returncode != 0
    assert "user_1: has not had 0020.marketplace-job-stats" in failed.stderr
    ok(yoyo(legacy, "unmark", "--revision", "0020"))
    ok(yoyo(legacy, "apply", env={"PGOPTIONS": "-c job_stats.verify=off"}))
    expect = ["-c", "SET job_stats.verify = off", "-c", "CALL job_stats.verify(expected => 'migrated')"]
    assert "user_1: " in psql(legacy, *expect).stderr


def test_a_rollback_that_yoyo_did_not_mark(legacy: Connection) -> None:
    """Its client was killed, it is done in the server: `yoyo apply`, which has 0020's mark, ends with an error."""
    ok(yoyo(legacy, "apply"))
    ok(yoyo(legacy, "rollback", "--revision", "0021"))
    ok(psql(legacy, "-f", DOWNGRADE))
    refused = yoyo(legacy, "apply")
    assert 'template_tenant: relation "marketplace_job_stats" does not exist' in refused.stderr
    ok(psql(legacy, "-c", "CALL job_stats.verify(expected => 'legacy')"))
    ok(yoyo(legacy, "unmark", "--revision", "0020"))
    ok(yoyo(legacy, "apply"))
    ok(psql(legacy, "-c", "CALL job_stats.verify(expected => 'migrated')"))


def test_before_the_change_there_is_nothing_to_verify(toolkit: Connection) -> None:
    """With the toolkit alone applied all tenants are toolkit, and that is no error."""
    assert re.search(r"^ +20 \| +1 \| +0$", ok(psql(toolkit, "-f", VERIFY)), re.MULTILINE)


def test_progress_shows_what_is_done_left_and_waiting(legacy: Connection) -> None:
    """While a run goes on, another session sees the tenants done, still to do and locked; afterwards, how it ended."""
    query = "SELECT state, done, still_to_do, failed, locked FROM tenancy.progress LIMIT 1"
    with connect(legacy, autocommit=False) as blocker:
        blocker.execute("LOCK TABLE user_1.vinted_job_stats IN ACCESS SHARE MODE")
        with running(yoyo, legacy, "apply") as results:
            wait_until(legacy, "SELECT to_regclass('tenancy.progress') IS NOT NULL")
            wait_until(legacy, "SELECT bool_or(locked = 1 AND done = 19) IS TRUE FROM tenancy.progress")
            assert legacy.execute(query).fetchall() == [("running", 19, 1, 0, 1)]
            blocker.rollback()
    ok(results[0])
    assert legacy.execute(query).fetchall() == [("ended", 20, 0, 0, 0)]


def test_status_does_not_lock_tenants(migrated: Connection) -> None:
    """Looking at all tenants takes no lock on any, nor waits for one: writers, DDL and the lock table do not notice."""
    with connect(migrated, autocommit=False) as blocker, connect(migrated, autocommit=False) as watcher:
        blocker.execute("LOCK TABLE user_1.vinted_job_stats, user_2.marketplace_job_stats")
        watcher.execute("SET lock_timeout = '1s'")
        watcher.execute("SELECT * FROM job_stats.tenant_status").fetchall()
        locked = """
            SELECT count(*) FROM pg_locks JOIN pg_class AS c ON c.oid = relation
            WHERE pid = %s AND relname LIKE '%%job_stats%%' AND relnamespace <> 'job_stats'::regnamespace
        """
        assert column(migrated, locked, watcher.info.backend_pid) == [0]


def test_work_grows_with_the_tenants_not_with_their_square(migrated: Connection) -> None:
    """Three times the tenants are three times the work for status, verification and a run with nothing to do.

    Counted in index entries and rows of the catalogs that are read, before anything is known about their contents.
    """
    read = """
        SELECT sum(idx_tup_read)::integer + (
            SELECT sum(seq_tup_read) FROM pg_stat_sys_tables WHERE relname IN ('pg_namespace', 'pg_class')
        )::integer
        FROM pg_stat_sys_indexes
        WHERE relname IN ('pg_namespace', 'pg_class', 'pg_attribute', 'pg_constraint')
    """
    status = "SELECT count(*) FROM job_stats.tenant_status; SELECT pg_stat_force_next_flush()"
    again = [f"--file={UPGRADE}", f"--file={EXACT}", "--command=SELECT pg_stat_force_next_flush()"]

    def work(*args: str) -> int:
        migrated.execute("SELECT pg_stat_force_next_flush()")  # or what the cloning has read counts, too
        (before,) = column(migrated, read)
        ok(psql(migrated, *args))
        (after,) = column(migrated, read)
        return int(after - before)

    clones(migrated, "user_a", 100)
    few = work(f"--command={status}"), work(*again)
    clones(migrated, "user_b", 200)
    many = work(f"--command={status}"), work(*again)
    assert 0 < many[0] < 5 * few[0]
    assert 0 < many[1] < 5 * few[1]
