"""Customers sign up while migrations go on, some lack what they should have, and some are left out for good."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import Event, Thread

import psycopg
import pytest

from stats_lib import update_job_stats
from tests.deploy import bash, connect, libpq_env, psql, schema_dump, yoyo
from tests.tenants import DOWN, UPGRADE, VERIFY, Connection, clone, column, ok, running, states, wait_until
from tests.test_docs import blocks

BOTH = ["sql/migrations", "sql/contract"]
SEQUENCE = re.compile(r"template_tenant\.\w+_id_seq")


def add(conn: Connection, tenant: str) -> None:
    """Sign a customer up."""
    conn.execute("CALL job_stats.add_tenant(%s)", [tenant])


def test_a_new_tenant_is_what_the_template_is(toolkit: Connection) -> None:
    """Before and after the change, and after the contract; again, it does nothing; a schema may be there already."""
    legacy_clone = schema_dump(toolkit, "user_1").replace("user_1", "user_new")
    for command, state in [
        (["apply", "--revision", "0019"], "legacy"),
        (["apply"], "migrated"),
        (["apply", *BOTH], "contracted"),
        (["rollback", "--revision", "0900", *BOTH], "migrated"),
        (["rollback", "--revision", "0020"], "legacy"),
    ]:
        ok(yoyo(toolkit, *command))
        for prepare in ["SELECT 1", "CREATE SCHEMA user_new"]:
            toolkit.execute(prepare.encode())
            add(toolkit, "user_new")
            made = schema_dump(toolkit, "user_new")
            add(toolkit, "user_new")
            assert schema_dump(toolkit, "user_new") == made
            assert states(toolkit)["user_new"] == state
            ok(psql(toolkit, "-f", VERIFY))
            if state == "legacy":
                assert SEQUENCE.sub("", made) == SEQUENCE.sub("", legacy_clone)
            if state == "migrated":
                toolkit.execute("INSERT INTO user_new.vinted_job_stats (action_type_id, date) VALUES (1, '2026-01-01')")
                update_job_stats(toolkit, schema="user_new", action_type_id=1, marketplace="ebay", success=True)
            toolkit.execute("DROP SCHEMA user_new CASCADE")


@contextmanager
def sign_ups(conn: Connection) -> Iterator[list[str]]:
    """Sign customers up, one after the other, from another session; those that are there are in the list."""
    over, added = Event(), list[str]()
    failed: list[BaseException] = []

    def sign_up() -> None:
        try:
            with connect(conn, autocommit=False) as session:
                for number in count(1):
                    if over.wait(0.1):  # ten a second
                        return
                    add(session, f"user_{number:04}")
                    session.commit()
                    added.append(f"user_{number:04}")
        except psycopg.Error as error:
            failed.append(error)

    thread = Thread(target=sign_up)
    thread.start()
    try:
        yield added
    finally:
        over.set()
        thread.join()
    assert failed == []


def test_sign_ups_through_the_whole_life(toolkit: Connection) -> None:
    """Through apply, rollback, apply and contract: no error, no tenant without its table, and verify is green."""
    with sign_ups(toolkit) as added:
        for command, state in [
            (["apply"], "migrated"),
            (["rollback", "--revision", "0020"], "legacy"),
            (["apply"], "migrated"),
            (["apply", *BOTH], "contracted"),
        ]:
            before = len(added)
            ok(yoyo(toolkit, *command))
            assert len(added) > before
            ok(psql(toolkit, "-c", f"CALL job_stats.verify(expected => '{state}')"))
    assert {state for name, state in states(toolkit).items() if name in added} == {"contracted"}


def test_sign_ups_by_a_fixed_list(legacy: Connection) -> None:
    """Code that clones a list of tables, leaving out what the template has not: named by apply, healed by one call."""
    legacy.execute("DROP SCHEMA user_without_table CASCADE")
    legacy.execute("CREATE TABLE template_tenant.orders (id integer PRIMARY KEY)")
    ok(yoyo(legacy, "apply", "--revision", "0019"))
    with connect(legacy, autocommit=False) as blocker:
        blocker.execute("LOCK TABLE user_1.vinted_job_stats IN ACCESS SHARE MODE")
        with running(yoyo, legacy, "apply") as results:
            wait_until(legacy, "SELECT to_regclass('user_2.marketplace_job_stats') IS NOT NULL")
            for tenant in ["user_4", "user_5"]:
                clone(legacy, tenant, "template_tenant.orders")
            blocker.rollback()
    assert results[0].returncode != 0
    for tenant in ["user_4", "user_5"]:
        assert f"{tenant}: has no table for job statistics, though others of the template's" in results[0].stderr
    assert "CALL job_stats.sweep()" in results[0].stderr
    assert re.search(r"^ +2$", ok(psql(legacy, "-c", "CALL job_stats.sweep()")), re.MULTILINE)
    ok(psql(legacy, "-c", "CALL job_stats.verify(expected => 'migrated')"))
    assert re.search(r"^ +0$", ok(psql(legacy, "-c", "CALL job_stats.sweep()")), re.MULTILINE)
    ok(yoyo(legacy, "apply"))  # and mark what is done
    ok(yoyo(legacy, "rollback", "--revision", "0020"))


def test_a_tenant_that_fails_keeps_no_other_from_being_swept(migrated: Connection) -> None:
    """What comes after it is done, and all that failed is named at the end."""
    migrated.execute("CREATE SCHEMA user_old; CREATE TABLE user_old.vinted_job_stats (id integer, marketplace text)")
    clone(migrated, "user_odd", "user_1.marketplace_job_stats")
    migrated.execute("ALTER TABLE user_odd.marketplace_job_stats DROP COLUMN untimed_jobs")  # one is in the way
    migrated.execute("DROP VIEW user_1.vinted_job_stats")
    migrated.execute("ALTER TABLE user_2.marketplace_job_stats DROP COLUMN untimed_jobs, DROP COLUMN total_duration_ms")
    migrated.execute("DROP INDEX user_2.ix_stats_lib_date_marketplace")
    swept = psql(migrated, "-c", "CALL job_stats.sweep()")
    assert "sweep: 3 done, " in swept.stderr
    assert " 2 FAILED" in swept.stderr
    assert "0020.marketplace-job-stats: user_old: " in swept.stderr
    assert "0021.exact-averages: user_odd: " in swept.stderr
    assert {states(migrated)[tenant] for tenant in ["user_1", "user_2"]} == {"migrated"}


def test_a_name_of_any_characters(migrated: Connection) -> None:
    """Who failed is named whatever a migration is called."""
    user_1 = "SELECT oid, true FROM pg_namespace WHERE nspname = 'user_1'"
    failed = psql(migrated, "-c", f"CALL tenancy.for_each_tenant('*(', $${user_1}$$, 'ASSERT false;', 100, 1)")
    assert "ERROR:  *(: 0 done, 0 done before, 1 FAILED" in failed.stderr
    assert "DETAIL:  user_1: assertion failed" in failed.stderr


@pytest.mark.parametrize("change", ["DELETE FROM tenancy.journal", "ALTER SCHEMA user_old RENAME TO user_renamed"])
def test_who_failed_is_named_whatever_happens_during_the_sweep(migrated: Connection, change: str) -> None:
    """A log may be pruned and a tenant renamed between the failure and the end, where it is named."""
    migrated.execute("CREATE SCHEMA user_old; CREATE TABLE user_old.vinted_job_stats (id integer, marketplace text)")
    migrated.execute("ALTER TABLE user_2.marketplace_job_stats DROP COLUMN untimed_jobs, DROP COLUMN total_duration_ms")
    migrated.execute("DROP INDEX user_2.ix_stats_lib_date_marketplace")
    with connect(migrated, autocommit=False) as reader:
        reader.execute("LOCK TABLE user_2.marketplace_job_stats IN ACCESS SHARE MODE")
        with running(psql, migrated, "-c", "CALL job_stats.sweep()") as results:
            wait_until(migrated, "SELECT EXISTS (SELECT FROM tenancy.journal WHERE migration ~ '0021' AND attempt > 1)")
            migrated.execute(change.encode())
            reader.rollback()
    assert "0020.marketplace-job-stats: user_old: " in results[0].stderr


def test_a_clone_without_a_view_is_named_and_healed(migrated: Connection) -> None:
    """Made after the change by code that copies the table only, it stops old code; not so after the contract."""
    clone(migrated, "user_New 1", "template_tenant.marketplace_job_stats")
    failed = psql(migrated, "-f", VERIFY)
    assert "user_New 1: no view vinted_job_stats" in failed.stderr
    migrated.execute("SET search_path = 'user_New 1'")
    ok(psql(migrated, "-c", "CALL job_stats.sweep()"))
    migrated.execute('INSERT INTO "user_New 1".vinted_job_stats (action_type_id, date) VALUES (1, current_date)')
    ok(psql(migrated, "-f", VERIFY))
    ok(yoyo(migrated, "apply", *BOTH))
    clone(migrated, "user_2026", "template_tenant.marketplace_job_stats")
    ok(psql(migrated, "-c", "CALL job_stats.verify(expected => 'contracted')"))


REFUSED = {
    "a name that is no tenant's": ("SELECT 1", "customer_7", "customer_7 would be no tenant"),
    "a name that is too long": ("SELECT 1", "user_" + "x" * 59, "has at most 63 bytes: user_x"),
    "one that is left out": (
        "INSERT INTO tenancy.left_out VALUES ('user_7', 'broken')",
        "user_7",
        "user_7 is left out of every run",
    ),
    "a template without the table": (
        "DROP TABLE template_tenant.vinted_job_stats CASCADE",
        "user_7",
        "template_tenant has neither",
    ),
    "a template with both": (
        "CREATE TABLE template_tenant.marketplace_job_stats ()",
        "user_7",
        "template_tenant has vinted_job_stats and marketplace_job_stats",
    ),
}


@pytest.mark.parametrize(("change", "tenant", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_a_guess_is_refused(toolkit: Connection, change: str, tenant: str, reason: str) -> None:
    """Nothing is made then, the schema neither."""
    toolkit.execute(change.encode())
    with pytest.raises(psycopg.errors.RaiseException, match=reason):
        add(toolkit, tenant)
    assert column(toolkit, "SELECT to_regnamespace(%s)", tenant) == [None]


def test_by_a_role_that_only_signs_up(migrated: Connection) -> None:
    """With the rights that docs/runbook.md gives it, the role of the sign-up code owns what it makes."""
    migrated.execute("CREATE ROLE legacy_sign_up LOGIN")
    migrated.execute(f"GRANT CREATE ON DATABASE {migrated.info.dbname} TO legacy_sign_up".encode())
    migrated.execute("GRANT USAGE ON SCHEMA template_tenant TO legacy_sign_up")
    migrated.execute("GRANT SELECT ON template_tenant.marketplace_job_stats TO legacy_sign_up")
    migrated.execute("GRANT USAGE ON SEQUENCE template_tenant.marketplace_job_stats_id_seq TO legacy_sign_up")
    (grants,) = blocks("docs/runbook.md", "sql", "sign_up;")
    migrated.execute(grants.replace(" sign_up;", " legacy_sign_up;").encode())
    with connect(migrated, user="legacy_sign_up") as session:
        add(session, "user_new")
        session.execute("INSERT INTO user_new.vinted_job_stats (action_type_id, date) VALUES (1, current_date)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SELECT FROM tenancy.undo")
    ok(psql(migrated, "-f", VERIFY))
    migrated.execute("DROP SCHEMA user_new CASCADE")
    migrated.execute("DROP OWNED BY legacy_sign_up")


def test_a_tenant_is_left_out(legacy: Connection) -> None:
    """One that can never be migrated stops nothing: 0020 is marked, status and verification count it apart."""
    legacy.execute("ALTER TABLE user_1.vinted_job_stats ADD marketplace text")
    before = schema_dump(legacy, "user_1")
    failed = yoyo(legacy, "apply")
    assert "1 FAILED" in failed.stderr
    legacy.execute("INSERT INTO tenancy.left_out VALUES ('user_1', 'has a marketplace of its own')")
    applied = ok(yoyo(legacy, "apply"))
    assert re.search(r"^ 19 +\| 1 +\| 1 +$", applied, re.MULTILINE)
    assert states(legacy)["user_1"] == "left out"
    ok(psql(legacy, "-c", "CALL job_stats.verify(expected => 'migrated')"))
    ok(yoyo(legacy, "rollback", "--revision", "0020"))
    ok(psql(legacy, "-c", "CALL job_stats.verify(expected => 'legacy')"))
    assert schema_dump(legacy, "user_1") == before
    legacy.execute("ALTER TABLE user_1.vinted_job_stats DROP marketplace; DELETE FROM tenancy.left_out")
    ok(psql(legacy, "-f", UPGRADE))
    assert states(legacy)["user_1"] == "migrated"


def test_the_toolkit_stays_for_a_tenant_that_no_run_has_reached(migrated: Connection) -> None:
    """One that was born migrated, and is left out, would have nothing to come back by: it is named."""
    migrated.execute("CALL job_stats.add_tenant('user_new')")
    migrated.execute("INSERT INTO tenancy.left_out VALUES ('user_new', 'stays as it is')")
    refused = yoyo(migrated, "rollback", "--all")
    assert "the toolkit is still needed for user_new.marketplace_job_stats" in refused.stderr
    assert column(migrated, "SELECT count(*) FROM job_stats.tenant_status WHERE state = 'legacy'") == [20]
    migrated.execute("DELETE FROM tenancy.left_out")
    ok(psql(migrated, *DOWN))
    ok(yoyo(migrated, "rollback", "--all"))
    assert column(migrated, "SELECT to_regnamespace('tenancy')") == [None]


def test_the_schemas_owner_gets_the_table(migrated: Connection) -> None:
    """Not the role that signs the customer up."""
    migrated.execute("CREATE SCHEMA user_new AUTHORIZATION legacy_owner; CALL job_stats.add_tenant('user_new')")
    owner = "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'user_new.marketplace_job_stats'::regclass"
    assert column(migrated, owner) == ["legacy_owner"]


def test_a_partitioned_template_is_not_cloned(migrated: Connection) -> None:
    """A clone of it would be no partitioned table."""
    migrated.execute("ALTER TABLE template_tenant.marketplace_job_stats RENAME TO whole")
    migrated.execute(
        "CREATE TABLE template_tenant.marketplace_job_stats (LIKE template_tenant.whole) PARTITION BY RANGE (date)"
    )
    with pytest.raises(psycopg.Error, match="template_tenant has neither"):
        migrated.execute("CALL job_stats.add_tenant('user_new')")


def test_an_empty_template(empty: Connection) -> None:
    """Where tenants are not cloned from it, it stops nothing, up and down, and takes the name from others."""
    empty.execute(
        """
        CREATE SCHEMA template_tenant;
        CREATE SCHEMA user_1;
        CREATE TABLE user_1.vinted_job_stats (
            id serial PRIMARY KEY, action_type_id integer NOT NULL, date date NOT NULL,
            total_jobs integer NOT NULL DEFAULT 0, success_count integer NOT NULL DEFAULT 0,
            failure_count integer NOT NULL DEFAULT 0, avg_duration_ms integer,
            created_at timestamptz NOT NULL DEFAULT now(), UNIQUE (action_type_id, date)
        )
        """
    )
    before = schema_dump(empty, "template_tenant", "user_1")
    ok(yoyo(empty, "apply"))
    ok(psql(empty, "-c", "CALL job_stats.verify(expected => 'migrated')"))
    assert states(empty) == {"template_tenant": "missing", "user_1": "migrated"}
    assert column(empty, "SELECT kind FROM job_stats.preflight WHERE schema_name = 'template_tenant'") == []
    ok(psql(empty, "-c", "CALL job_stats.sweep()"))
    ok(yoyo(empty, "apply", *BOTH))
    assert states(empty) == {"template_tenant": "missing", "user_1": "contracted"}
    ok(yoyo(empty, "rollback", "--all", *BOTH))
    assert schema_dump(empty, "template_tenant", "user_1") == before


def test_archives_that_outlive_the_toolkit(migrated: Connection) -> None:
    """The next toolkit does not know them; made known as the runbook says, they restore the split."""
    for marketplace in ("vinted", "ebay"):
        update_job_stats(migrated, schema="user_1", action_type_id=1, marketplace=marketplace, success=True)
    query = "SELECT marketplace, sum(total_jobs) FROM user_1.marketplace_job_stats GROUP BY 1 ORDER BY 1"
    before = migrated.execute(query).fetchall()
    ok(yoyo(migrated, "rollback", "--all"))
    assert (
        "user_1.marketplace_job_stats_archive is none that a rollback here has made" in yoyo(migrated, "apply").stderr
    )
    (known,) = blocks("docs/runbook.md", "sh", "INSERT INTO job_stats.archives")
    bash(known, libpq_env(migrated))
    ok(yoyo(migrated, "apply"))
    assert migrated.execute(query).fetchall() == before
