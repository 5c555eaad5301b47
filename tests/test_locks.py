"""What the migration does when somebody holds a lock, and what its own locks do to others."""

import re
from threading import Event, Thread

import psycopg

from tests.deploy import connect, psql, yoyo
from tests.tenants import UPGRADE, Connection, column, ok, running, states, wait_until


def test_a_locked_tenant_delays_nobody_else(legacy: Connection) -> None:
    """A tenant locked for the whole run is named with its blocker; the others are done; a later run does the rest.

    While we wait for the lock, that tenant's queries wait no longer than the longest timeout of the ladder, 0.9 s.
    """
    refused: list[psycopg.Error] = []
    over = Event()

    def read() -> None:
        with connect(legacy, options="-c lock_timeout=2s") as reader:
            while not over.is_set():
                try:
                    reader.execute("SELECT count(*) FROM user_1.vinted_job_stats")
                except psycopg.Error as error:
                    refused.append(error)

    with connect(legacy, autocommit=False, application_name="long report") as blocker:
        blocker.execute("SELECT count(*) FROM user_1.vinted_job_stats")
        reader = Thread(target=read)
        reader.start()
        failed = yoyo(legacy, "apply")
        over.set()
        reader.join()
        assert failed.returncode != 0
        assert re.search(
            rf"user_1: locked by pid {blocker.info.backend_pid} \(long report, in a transaction since \d", failed.stderr
        )
        assert {name for name, state in states(legacy).items() if state == "legacy"} == {"user_1"}
        attempts = "SELECT attempt FROM tenancy.journal WHERE outcome = 'locked' ORDER BY id"
        assert column(legacy, attempts) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert refused == []
    assert re.search(r"\| 1 +\| 19 ", ok(yoyo(legacy, "apply")), re.MULTILINE)


def test_a_lock_that_goes_away_is_waited_for(legacy: Connection) -> None:
    """A tenant is put off while it is locked, and done in the same run when it is not any more."""
    with connect(legacy, autocommit=False) as blocker:
        blocker.execute("LOCK TABLE user_1.vinted_job_stats IN ACCESS SHARE MODE")
        with running(yoyo, legacy, "apply") as results:
            wait_until(legacy, "SELECT to_regclass('user_2.marketplace_job_stats') IS NOT NULL")
            blocker.rollback()
    ok(results[0])
    outcomes = column(
        legacy, "SELECT outcome FROM tenancy.journal WHERE schema_name = 'user_1' AND migration ~ '^0020' ORDER BY id"
    )
    assert set(outcomes[:-1]) == {"locked"}
    assert outcomes[-1] == "done"


def test_the_template_is_waited_for_before_any_other(legacy: Connection) -> None:
    """While template_tenant is locked no other tenant is touched, lest clones of the old template be overlooked."""
    with connect(legacy, autocommit=False) as blocker:
        blocker.execute("LOCK TABLE template_tenant.vinted_job_stats IN ACCESS SHARE MODE")
        with running(yoyo, legacy, "apply") as results:
            wait_until(legacy, "SELECT to_regclass('tenancy.journal') IS NOT NULL")
            wait_until(legacy, "SELECT count(*) >= 2 FROM tenancy.journal")
            assert "migrated" not in states(legacy).values()
            blocker.rollback()
    ok(results[0])
    assert "legacy" not in states(legacy).values()


def test_a_clone_in_the_making_is_not_overlooked(legacy: Connection) -> None:
    """A tenant that is being cloned from the old template, uncommitted, is waited for and migrated."""
    with connect(legacy, autocommit=False) as platform:
        platform.execute("CREATE SCHEMA user_0_new")
        platform.execute(
            "CREATE TABLE user_0_new.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL)"
        )
        with running(yoyo, legacy, "apply") as results:
            wait_until(legacy, "SELECT to_regclass('tenancy.journal') IS NOT NULL")
            wait_until(legacy, "SELECT count(*) >= 1 FROM tenancy.journal")
            platform.commit()
    ok(results[0])
    assert states(legacy)["user_0_new"] == "migrated"


def test_a_tenant_that_is_taken_back_meanwhile_is_named(toolkit: Connection) -> None:
    """Done, and undone by somebody before the run ends: the run does not end as if all were done."""
    with connect(toolkit, autocommit=False) as blocker:
        blocker.execute("LOCK TABLE user_2.vinted_job_stats IN ACCESS SHARE MODE")
        with running(psql, toolkit, "-f", UPGRADE) as results:
            wait_until(toolkit, "SELECT to_regclass('user_1.marketplace_job_stats') IS NOT NULL")
            toolkit.execute("DROP VIEW user_1.vinted_job_stats")
            toolkit.execute("ALTER TABLE user_1.marketplace_job_stats RENAME TO vinted_job_stats")
            blocker.rollback()
    assert results[0].returncode != 0
    assert "19 done, 0 done before, 1 FAILED" in results[0].stderr
    assert "user_1: the script has ended, and is pending again: this tenant is changed" in results[0].stderr


def test_a_tenant_dropped_meanwhile_is_no_error(toolkit: Connection) -> None:
    """A customer who leaves while the migration runs does not fail it."""
    with connect(toolkit, autocommit=False) as blocker:
        blocker.execute("LOCK TABLE user_1.vinted_job_stats IN ACCESS SHARE MODE")
        with running(psql, toolkit, "-f", UPGRADE) as results:
            wait_until(toolkit, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
            blocker.execute("DROP SCHEMA user_1 CASCADE")
            blocker.commit()
    ok(results[0])
    assert "user_1" not in states(toolkit)
