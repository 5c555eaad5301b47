"""Rolling back loses nothing: marketplaces are folded into legacy rows, their split is archived, and comes back."""

import datetime
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from tests.deploy import bash, connect, libpq_env, psql, schema_dump
from tests.tenants import (
    DOWN,
    DOWNGRADE,
    EXACT,
    PARTITION,
    UNEXACT,
    UP,
    UPGRADE,
    Connection,
    column,
    definitions,
    ok,
    running,
    states,
    tenants,
    wait_until,
)
from tests.test_docs import blocks

DAY = datetime.date(2026, 1, 1)  # long before the rows of `dev/legacy.sql`
Split = dict[
    tuple[int, str], tuple[int, int, int, int | None]
]  # action type, marketplace: total, success, failure, avg


def downgrade(conn: Connection) -> None:
    """Roll 0020 back in every tenant."""
    ok(psql(conn, "-f", DOWNGRADE))


def upgrade(conn: Connection) -> None:
    """Apply 0020 and 0021 in every tenant."""
    ok(psql(conn, "-f", UPGRADE))
    ok(psql(conn, "-f", EXACT))


def count(
    conn: Connection,
    schema: str,
    action_type_id: int,
    marketplace: str,
    success: int,
    avg: int | None = None,
    **more: Any,
) -> int:
    """Insert a row of new code's on DAY, with `success` jobs and none that failed; return its id."""
    row = {"action_type_id": action_type_id, "date": DAY, "marketplace": marketplace, "avg_duration_ms": avg, **more}
    row = {"total_jobs": success, "success_count": success} | row
    insert = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING id").format(
        sql.Identifier(schema, "marketplace_job_stats"),
        sql.SQL(", ").join(map(sql.Identifier, row)),
        sql.SQL(", ").join(map(sql.Placeholder, row)),
    )
    (key,) = conn.execute(insert, row).fetchone() or ()
    return int(key)


def folded(conn: Connection, schema: str) -> list[tuple[Any, ...]]:
    """DAY's legacy rows: id, action type, total, success, failure, average."""
    query = """
        SELECT id, action_type_id, total_jobs, success_count, failure_count, avg_duration_ms
        FROM {} WHERE date = %s ORDER BY action_type_id
    """
    return conn.execute(sql.SQL(query).format(sql.Identifier(schema, "vinted_job_stats")), [DAY]).fetchall()


def split(conn: Connection, schema: str) -> Split:
    """DAY's rows per marketplace."""
    query = """
        SELECT action_type_id, marketplace, total_jobs, success_count, failure_count, avg_duration_ms
        FROM {} WHERE date = %s
    """
    rows = conn.execute(sql.SQL(query).format(sql.Identifier(schema, "marketplace_job_stats")), [DAY])
    return {(action, marketplace): (*rest,) for action, marketplace, *rest in rows}


def recount(conn: Connection, schema: str, action_type_id: int, success: int, failure: int, avg: int | None) -> None:
    """Update DAY's legacy row as old code does."""
    query = """
        UPDATE {} SET total_jobs = %s, success_count = %s, failure_count = %s, avg_duration_ms = %s
        WHERE action_type_id = %s AND date = %s
    """
    table = sql.Identifier(schema, "vinted_job_stats")
    params = [success + failure, success, failure, avg, action_type_id, DAY]
    assert conn.execute(sql.SQL(query).format(table), params).rowcount == 1


def everything(conn: Connection, schema: str, table: str = "marketplace_job_stats") -> list[dict[str, Any]]:
    """All columns of all rows, whatever the order of the columns."""
    query = sql.SQL("SELECT * FROM {} ORDER BY id").format(sql.Identifier(schema, table))
    return conn.cursor(row_factory=dict_row).execute(query).fetchall()


def archives(conn: Connection) -> list[str]:
    """The tenants that have an archive."""
    query = "SELECT nspname FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace WHERE relname = %s ORDER BY 1"
    return column(conn, query, "marketplace_job_stats_archive")


def test_a_rollback_folds_each_day_into_one_row_and_archives_the_split(toolkit: Connection) -> None:
    """Counts are summed, averages weighted by jobs, the id is Vinted's or else the oldest; others are untouched."""
    names = tenants(toolkit)
    before = schema_dump(toolkit, *names)
    contents = {name: everything(toolkit, name, "vinted_job_stats") for name in names}
    ok(psql(toolkit, *UP))
    ebay = count(toolkit, "user_1", 1, "ebay", 10, 2000, total_jobs=12, failure_count=2)
    vinted = count(toolkit, "user_1", 1, "vinted", 30, 100)
    etsy = count(toolkit, "user_1", 1, "etsy", 5)  # not timed
    only_etsy, only_ebay = count(toolkit, "user_1", 2, "etsy", 1, 50), count(toolkit, "user_1", 2, "ebay", 2, 51)
    only_vinted = count(toolkit, "user_1", 3, "vinted", 7, 70)
    idle = count(toolkit, "user_1", 4, "ebay", 0)
    ok(psql(toolkit, *DOWN))

    assert folded(toolkit, "user_1") == [
        (vinted, 1, 47, 45, 2, round((12 * 2000 + 30 * 100) / 42)),
        (only_etsy, 2, 3, 3, 0, 51),  # 50.67
        (only_vinted, 3, 7, 7, 0, 70),
        (idle, 4, 0, 0, 0, None),
    ]
    archived = (
        "SELECT id, marketplace, total_jobs, avg_duration_ms, folded_id FROM user_1.marketplace_job_stats_archive"
    )
    assert set(toolkit.execute(archived.encode()).fetchall()) == {
        (ebay, "ebay", 12, 2000, vinted),
        (vinted, "vinted", 30, 100, vinted),
        (etsy, "etsy", 5, None, vinted),
        (only_etsy, "etsy", 1, 50, only_etsy),
        (only_ebay, "ebay", 2, 51, only_etsy),
        (idle, "ebay", 0, None, idle),
    }
    assert archives(toolkit) == ["user_1"]

    toolkit.execute("DROP TABLE user_1.marketplace_job_stats_archive")
    toolkit.execute("DELETE FROM user_1.vinted_job_stats WHERE date = %s", [DAY])
    assert schema_dump(toolkit, *names) == before
    assert {name: everything(toolkit, name, "vinted_job_stats") for name in names} == contents


def test_up_down_and_up_again_is_the_same(toolkit: Connection) -> None:
    """Rows of all marketplaces are the same to the last column, ids included: in every tenant, of whatever shape."""
    toolkit.execute(
        """
        ALTER TABLE user_identity.vinted_job_stats ALTER id SET GENERATED ALWAYS;
        INSERT INTO user_foreign_keys.workers VALUES (1), (2);
        """
    )
    ok(psql(toolkit, *UP))
    names = [name for name in tenants(toolkit) if name != "template_tenant"]
    for name in names:
        more: dict[str, Any] = {}
        if name == "user_extra_columns":
            more = {"note": "mine", "retries": 3}
        elif name == "user_foreign_keys":
            more = {"worker_id": 2}
        count(toolkit, name, 1, "ebay", 10, 2000, **more)
        count(toolkit, name, 1, "vinted", 3, None)
        count(toolkit, name, 1, "etsy", 0, 7)
        count(toolkit, name, 901, "etsy", 5, None)
        count(toolkit, name, 901, "ebay", 0, 50, created_at=DAY, **more)
    before = {name: everything(toolkit, name) for name in names}
    status, dump = states(toolkit), schema_dump(toolkit, *names)
    for _ in range(2):
        downgrade(toolkit)
        assert archives(toolkit) == sorted(names)
        upgrade(toolkit)
        assert {name: everything(toolkit, name) for name in names} == before
        assert (archives(toolkit), states(toolkit)) == ([], status)
        assert schema_dump(toolkit, *names) == dump
        assert column(toolkit, "SELECT archive FROM job_stats.archives") == []


def test_what_old_code_counts_meanwhile_is_vinteds(migrated: Connection) -> None:
    """The next upgrade restores the split, eBay's and Etsy's ids included, and credits the difference to Vinted."""
    ids = [count(migrated, "user_1", 1, "ebay", 10, 1000), count(migrated, "user_1", 1, "vinted", 20, 400)]
    ids += [count(migrated, "user_1", 2, "etsy", 5, 300), count(migrated, "user_1", 2, "ebay", 5, 100)]
    ids += [count(migrated, "user_1", 3, "ebay", 4), count(migrated, "user_1", 4, "vinted", 1, 10)]
    before = split(migrated, "user_1")
    downgrade(migrated)
    recount(migrated, "user_1", 1, 33, 7, avg=(600 * 30 + 200 * 10) // 40)
    recount(migrated, "user_1", 2, 11, 1, avg=(200 * 10 + 500 * 2) // 12)
    recount(migrated, "user_1", 3, 5, 0, avg=80)
    recount(migrated, "user_1", 4, 2, 0, avg=20)
    migrated.execute("INSERT INTO user_1.vinted_job_stats (action_type_id, date, total_jobs) VALUES (5, %s, 6)", [DAY])
    upgrade(migrated)
    assert split(migrated, "user_1") == before | {
        (1, "vinted"): (30, 23, 7, round((400 * 20 + 200 * 10) / 30)),
        (2, "vinted"): (2, 1, 1, 500),
        (3, "vinted"): (1, 1, 0, 80),  # eBay's were not timed: the average is that of the new job
        (4, "vinted"): (2, 2, 0, 20),
        (5, "vinted"): (6, 0, 0, None),
    }
    kept = "SELECT id FROM user_1.marketplace_job_stats WHERE date = %s AND id = ANY (%s)"
    assert set(column(migrated, kept, DAY, ids)) == set(ids)


def test_rows_that_old_code_deletes_or_lowers_are_not_guessed(migrated: Connection) -> None:
    """Such a tenant is refused by name and as it was, the others are done; once repaired, the same command finishes."""
    names = ["user_1", "user_2", "user_3"]
    for name in names:
        count(migrated, name, 1, "ebay", 10, 2000)
        count(migrated, name, 1, "vinted", 5, 100)
        count(migrated, name, 2, "etsy", 3)
    before = {name: split(migrated, name) for name in names}
    downgrade(migrated)
    migrated.execute("DELETE FROM user_1.vinted_job_stats WHERE action_type_id = 1 AND date = %s", [DAY])
    recount(migrated, "user_2", 2, 2, 1, None)  # the total is the same, but fewer succeeded
    meanwhile = definitions(migrated, names[:2]), folded(migrated, "user_1"), folded(migrated, "user_2")

    refused = psql(migrated, "-f", UPGRADE)
    assert refused.returncode != 0
    assert "18 done, 0 done before, 2 FAILED" in refused.stderr
    for name, action in [("user_1", 1), ("user_2", 2)]:
        assert f"{name}: the archived split cannot be restored" in refused.stderr
        assert f"old code has deleted or lowered action type {action} on {DAY}" in refused.stderr
    assert [name for name, state in states(migrated).items() if state == "legacy"] == archives(migrated) == names[:2]
    assert (definitions(migrated, names[:2]), folded(migrated, "user_1"), folded(migrated, "user_2")) == meanwhile
    assert split(migrated, "user_3") == before["user_3"]

    # In user_1 give up the split of that day's action type; in user_2 repair the row.
    migrated.execute("DELETE FROM user_1.marketplace_job_stats_archive WHERE action_type_id = 1 AND date = %s", [DAY])
    recount(migrated, "user_2", 2, 3, 0, None)
    upgrade(migrated)
    assert split(migrated, "user_1") == {key: row for key, row in before["user_1"].items() if key[0] == 2}
    assert split(migrated, "user_2") == before["user_2"]
    assert [states(migrated)[name] for name in names] == ["migrated", "migrated", "migrated"]
    assert archives(migrated) == []


def test_failures_that_old_code_lowers_are_not_guessed(migrated: Connection) -> None:
    """Though the total is the same, and more succeeded."""
    count(migrated, "user_1", 1, "ebay", 10, total_jobs=14, failure_count=4)
    count(migrated, "user_1", 1, "vinted", 5)
    downgrade(migrated)
    recount(migrated, "user_1", 1, 16, 3, None)
    refused = psql(migrated, "-f", UPGRADE)
    assert f"old code has deleted or lowered action type 1 on {DAY}" in refused.stderr


def test_averages_that_only_one_side_has(migrated: Connection) -> None:
    """What Vinted is credited with has old code's average: its own, where eBay's is taken out; never below 0."""
    count(migrated, "user_1", 1, "ebay", 10, 100)
    count(migrated, "user_1", 1, "vinted", 5)
    count(migrated, "user_1", 2, "ebay", 10, 1000)
    downgrade(migrated)
    recount(migrated, "user_1", 1, 30, 0, 150)
    recount(migrated, "user_1", 2, 11, 0, 1)
    upgrade(migrated)
    assert {key: row[3] for key, row in split(migrated, "user_1").items()} == {
        (1, "ebay"): 100,
        (1, "vinted"): 200,
        (2, "ebay"): 1000,
        (2, "vinted"): 0,
    }


def test_a_trigger_that_keeps_less_than_was_restored(migrated: Connection) -> None:
    """Not only of the jobs, but of those that succeeded."""
    count(migrated, "user_1", 1, "ebay", 10)
    count(migrated, "user_1", 1, "vinted", 5)
    downgrade(migrated)
    migrated.execute(
        """
        CREATE FUNCTION user_1.forget() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN NEW.success_count := 0; RETURN NEW; END';
        CREATE TRIGGER forget BEFORE INSERT ON user_1.vinted_job_stats FOR EACH ROW EXECUTE FUNCTION user_1.forget()
        """
    )
    refused = psql(migrated, "-f", UPGRADE)
    assert "user_1: a trigger or a rule of user_1.marketplace_job_stats has changed" in refused.stderr


def test_row_level_security_stays_forced(migrated: Connection) -> None:
    """It is lifted while rows are folded and restored, so that all are."""
    forced = "SELECT relforcerowsecurity FROM pg_class WHERE oid = 'user_1.{}_job_stats'::regclass"
    migrated.execute("ALTER TABLE user_1.marketplace_job_stats FORCE ROW LEVEL SECURITY")
    count(migrated, "user_1", 1, "ebay", 10)
    downgrade(migrated)
    assert column(migrated, forced.format("vinted")) == [True]
    upgrade(migrated)
    assert column(migrated, forced.format("marketplace")) == [True]


def test_rows_that_old_code_has_deleted_are_forgotten(migrated: Connection) -> None:
    """The runbook's command clears the archives of all tenants; one whose code does not let it stops nobody."""
    for name in ["user_1", "user_2", "user_3"]:
        count(migrated, name, 1, "ebay", 10)
        count(migrated, name, 1, "vinted", 5)
    downgrade(migrated)
    migrated.execute(
        """
        CREATE FUNCTION user_1.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END';
        CREATE TRIGGER refuse BEFORE DELETE ON user_1.marketplace_job_stats_archive
        FOR EACH ROW EXECUTE FUNCTION user_1.refuse()
        """
    )
    for name in ["user_1", "user_2", "user_3"]:
        migrated.execute(f"DELETE FROM {name}.vinted_job_stats WHERE date = %s".encode(), [DAY])
    (command,) = blocks("docs/runbook.md", "sh", "job_stats.forget_deleted")
    bash(command, libpq_env(migrated))
    refused = psql(migrated, "-f", UPGRADE)
    assert "19 done, 0 done before, 1 FAILED" in refused.stderr
    assert "user_1: the archived split cannot be restored" in refused.stderr


def test_foreign_keys_come_back_not_valid_only_where_folded_rows_need_that(migrated: Connection) -> None:
    """eBay's action types stay though Vinted's table lacks them, and new ones are checked; elsewhere keys are VALID."""
    count(migrated, "user_named_key", 901, "ebay", 1)
    count(migrated, "user_default_key", 1, "ebay", 1)
    count(migrated, "user_foreign_keys", 1, "vinted", 1)
    downgrade(migrated)
    query = "SELECT connamespace::regnamespace::text FROM pg_constraint WHERE contype = 'f' AND NOT convalidated"
    assert column(migrated, query) == ["user_named_key"]
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        migrated.execute(
            "INSERT INTO user_named_key.vinted_job_stats (action_type_id, date) VALUES (902, '2026-01-02')"
        )
    upgrade(migrated)
    assert split(migrated, "user_named_key") == {(901, "ebay"): (1, 1, 0, None)}


@pytest.mark.parametrize("on_delete", ["NO ACTION DEFERRABLE INITIALLY DEFERRED", "CASCADE", "SET NULL"])
def test_rows_of_other_tables_are_not_lost(migrated: Connection, on_delete: str) -> None:
    """A tenant where a row refers to one that would be folded away is refused by name, and as it was."""
    migrated.execute(
        f"""
        CREATE TABLE user_1.notes (
            stats_id integer CONSTRAINT fk_notes REFERENCES user_1.marketplace_job_stats ON DELETE {on_delete}
        )
        """.encode()
    )
    vinted, ebay = count(migrated, "user_1", 1, "vinted", 5), count(migrated, "user_1", 1, "ebay", 10)
    migrated.execute("INSERT INTO user_1.notes VALUES (%s), (%s)", [vinted, ebay])
    before = split(migrated, "user_1")
    refused = psql(migrated, "-f", DOWNGRADE)
    assert refused.returncode != 0
    assert "19 done, 0 done before, 1 FAILED" in refused.stderr
    assert "user_1: " in refused.stderr
    assert "foreign key" in refused.stderr
    assert (split(migrated, "user_1"), archives(migrated)) == (before, [])
    assert column(migrated, "SELECT stats_id FROM user_1.notes ORDER BY 1") == [vinted, ebay]

    migrated.execute("DELETE FROM user_1.notes WHERE stats_id = %s", [ebay])
    migrated.execute("ALTER TABLE user_1.notes DROP CONSTRAINT fk_notes")
    deferred = "FOREIGN KEY (stats_id) REFERENCES user_1.marketplace_job_stats DEFERRABLE INITIALLY DEFERRED"
    migrated.execute(f"ALTER TABLE user_1.notes ADD {deferred}".encode())
    downgrade(migrated)
    upgrade(migrated)
    assert split(migrated, "user_1") == before


def test_counts_beyond_an_integer_are_refused(migrated: Connection) -> None:
    """A tenant whose sums do not fit is refused by name, rather than wrapped; nothing of it has changed."""
    for name in ["user_1", "user_2"]:
        count(migrated, name, 1, "vinted", 2_000_000_000, 2_000_000_000)
    count(migrated, "user_1", 1, "ebay", 147_483_648)
    count(migrated, "user_2", 1, "ebay", 147_483_647, 2_000_000_000)
    before = split(migrated, "user_1"), split(migrated, "user_2")
    refused = psql(migrated, "-f", DOWNGRADE)
    assert refused.returncode != 0
    assert "user_1: integer out of range" in refused.stderr
    assert "19 done, 0 done before, 1 FAILED" in refused.stderr
    assert [row[2:] for row in folded(migrated, "user_2")] == [(2**31 - 1, 2**31 - 1, 0, 2_000_000_000)]
    upgrade(migrated)
    assert (split(migrated, "user_1"), split(migrated, "user_2")) == before


@pytest.mark.parametrize("jobs_before", [0, 5])
def test_what_is_counted_while_the_rollback_waits_is_folded_too(migrated: Connection, jobs_before: int) -> None:
    """Jobs of a transaction that is open when the rollback comes to the tenant are neither lost nor mixed up."""
    if jobs_before:
        count(migrated, "user_index_key", 1, "ebay", jobs_before)
    with connect(migrated, autocommit=False) as new_code:
        if jobs_before:
            new_code.execute("UPDATE user_index_key.marketplace_job_stats SET total_jobs = 6 WHERE date = %s", [DAY])
        else:
            count(new_code, "user_index_key", 1, "ebay", 5, total_jobs=6)
        with running(psql, migrated, "-f", DOWNGRADE) as results:
            wait_until(migrated, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
            new_code.commit()
    ok(results[0])
    assert [row[2] for row in folded(migrated, "user_index_key")] == [6]
    upgrade(migrated)
    assert split(migrated, "user_index_key") == {(1, "ebay"): (6, 5, 0, None)}


def test_ids_that_are_not_unique_lose_no_row(migrated: Connection) -> None:
    """A tenant without a primary key may have an id twice: folding tells rows by their unique key."""
    migrated.execute(
        """
        ALTER TABLE user_1.marketplace_job_stats DROP CONSTRAINT marketplace_job_stats_pkey;
        INSERT INTO user_1.marketplace_job_stats (id, action_type_id, marketplace, date, total_jobs)
        VALUES
            (7000, 91, 'vinted', '2020-01-01', 111),
            (1, 92, 'vinted', '2020-01-01', 9),
            (7000, 92, 'ebay', '2020-01-01', 5),
            (1, 93, 'ebay', '2020-01-01', 7),
            (7001, 94, 'etsy', '2020-01-01', 8),
            (7001, 95, 'ebay', '2020-01-01', 9)
        """
    )
    stats = "SELECT action_type_id, marketplace, total_jobs FROM user_1.marketplace_job_stats WHERE date = '2020-01-01'"
    before = sorted(migrated.execute(stats.encode()).fetchall())
    downgrade(migrated)
    folded = "SELECT action_type_id, total_jobs FROM user_1.vinted_job_stats WHERE date = '2020-01-01' ORDER BY 1"
    assert migrated.execute(folded.encode()).fetchall() == [(91, 111), (92, 14), (93, 7), (94, 8), (95, 9)]
    upgrade(migrated)
    assert sorted(migrated.execute(stats.encode()).fetchall()) == before


@pytest.mark.parametrize("schema", ["user_1", "user_owner"])
@pytest.mark.parametrize("hook", ["INSERT", "UPDATE", "DELETE", "rule"])
def test_history_that_a_tenant_has_frozen(migrated: Connection, schema: str, hook: str) -> None:
    """Where a trigger or a rule suppresses what is folded or unfolded, the tenant is named, and as it was."""
    function = f"FUNCTION {schema}.frozen()"
    migrated.execute(f"CREATE {function} RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'".encode())
    create, drop = (
        ("CREATE RULE frozen AS ON DELETE TO {} DO INSTEAD NOTHING", "DROP RULE frozen ON {}")
        if hook == "rule"
        else (
            f"CREATE TRIGGER frozen BEFORE {hook} ON {{}} FOR EACH ROW EXECUTE {function}",
            "DROP TRIGGER frozen ON {}",
        )
    )
    for marketplace in ("vinted", "ebay", "etsy"):
        count(migrated, schema, 1, marketplace, 5)
    before = split(migrated, schema)
    refused = []
    for script, table in ((DOWNGRADE, "marketplace_job_stats"), (UPGRADE, "vinted_job_stats")):
        migrated.execute(create.format(f"{schema}.{table}").encode())
        ran = psql(migrated, "-f", script)
        if ran.returncode:
            assert f"{schema}: a trigger or a rule of {schema}.marketplace_job_stats has changed" in ran.stderr
            refused.append(script)
            migrated.execute(drop.format(f"{schema}.{table}").encode())
            ok(psql(migrated, "-f", script))
        else:
            other = "marketplace_job_stats" if script == UPGRADE else "vinted_job_stats"
            migrated.execute(drop.format(f"{schema}.{other}").encode())
        if script == DOWNGRADE:
            assert [row[2] for row in folded(migrated, schema)] == [15]
    assert before == split(migrated, schema)
    writes = {"INSERT": [UPGRADE], "UPDATE": [DOWNGRADE, UPGRADE], "DELETE": [DOWNGRADE], "rule": [DOWNGRADE]}
    assert refused == writes[hook]


def test_published_archives_and_default_privileges(migrated: Connection) -> None:
    """Neither a publication for all tables nor default privileges get in the way of an archive, or into it."""
    migrated.execute("CREATE ROLE legacy_nosy")
    migrated.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    migrated.execute("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO legacy_nosy")
    count(migrated, "user_owner", 1, "ebay", 5)
    before = split(migrated, "user_owner")
    downgrade(migrated)
    archive = """
        SELECT relowner::regrole::text, has_table_privilege('legacy_nosy', oid, 'SELECT')
        FROM pg_class WHERE oid = 'user_owner.marketplace_job_stats_archive'::regclass
    """
    assert migrated.execute(archive).fetchall() == [("legacy_owner", False)]
    upgrade(migrated)
    assert split(migrated, "user_owner") == before
    readable = "SELECT has_table_privilege('legacy_nosy', 'user_owner.vinted_job_stats', 'SELECT')"
    assert migrated.execute(readable.encode()).fetchall() == [(False,)]
    migrated.execute("ALTER DEFAULT PRIVILEGES REVOKE SELECT ON TABLES FROM legacy_nosy")


def test_columns_that_are_called_as_ours(migrated: Connection) -> None:
    """A tenant's own columns come through under any name but an archive's own, and by that they are refused."""
    own = ["a", "archive", "columns", "folded", "lost", "s", "target", "tenant"]
    add = "ALTER TABLE user_1.marketplace_job_stats " + ", ".join(f"ADD {name} integer" for name in own)
    migrated.execute(add.encode())
    for number, marketplace in enumerate(["vinted", "ebay", "etsy"]):
        count(migrated, "user_1", 1, marketplace, 5, **dict.fromkeys(own, number))
    before = everything(migrated, "user_1")
    downgrade(migrated)
    upgrade(migrated)
    assert everything(migrated, "user_1") == before

    migrated.execute("ALTER TABLE user_1.marketplace_job_stats ADD added_total_jobs text")
    refused = psql(migrated, "-f", DOWNGRADE)
    assert "user_1: column added_total_jobs is the tenant's own" in refused.stderr
    assert "19 done, 0 done before, 1 FAILED" in refused.stderr


@pytest.mark.parametrize("missing", ["action_type_id", "date"])
def test_rows_that_no_day_or_action_type_has(migrated: Connection, missing: str) -> None:
    """What cannot be folded, and would become Vinted's, is refused by name; a row of Vinted's is none of that."""
    migrated.execute(f"ALTER TABLE user_1.marketplace_job_stats ALTER {missing} DROP NOT NULL".encode())
    for marketplace in ["vinted", "ebay"]:
        count(migrated, "user_1", 1, marketplace, 5)
        count(migrated, "user_1", 2, marketplace, 7)
    migrated.execute(f"UPDATE user_1.marketplace_job_stats SET {missing} = NULL WHERE action_type_id = 2".encode())
    before = everything(migrated, "user_1")
    refused = psql(migrated, "-f", DOWNGRADE)
    assert (
        "user_1: user_1.marketplace_job_stats has rows of other marketplaces without action_type_id or date"
        in refused.stderr
    )
    assert "19 done, 0 done before, 1 FAILED" in refused.stderr
    assert (everything(migrated, "user_1"), archives(migrated)) == (before, [])

    stray = f"DELETE FROM user_1.marketplace_job_stats WHERE marketplace = 'ebay' AND {missing} IS NULL"
    migrated.execute(stray.encode())
    before = everything(migrated, "user_1")
    downgrade(migrated)
    upgrade(migrated)
    assert everything(migrated, "user_1") == before


def test_a_trigger_that_writes_what_is_folded_no_more(migrated: Connection) -> None:
    """A row of another marketplace's that comes while rows are folded is not left to become Vinted's."""
    migrated.execute(
        """
        CREATE FUNCTION user_1.again() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO user_1.marketplace_job_stats (action_type_id, date, marketplace, total_jobs)
            VALUES (77, OLD.date, 'etsy', 9);
            RETURN NULL;
        END
        $$;
        CREATE TRIGGER again AFTER DELETE ON user_1.marketplace_job_stats
        FOR EACH ROW EXECUTE FUNCTION user_1.again()
        """
    )
    for marketplace in ["vinted", "ebay"]:
        count(migrated, "user_1", 1, marketplace, 5)
    before = everything(migrated, "user_1")
    refused = psql(migrated, "-f", DOWNGRADE)
    assert "user_1: a trigger or a rule of user_1.marketplace_job_stats has changed" in refused.stderr
    assert everything(migrated, "user_1") == before


def test_a_table_that_is_partitioned_since(migrated: Connection) -> None:
    """0020's rollback names it and leaves it, 0021 and its rollback change it: none passes it over unsaid."""
    migrated.execute(PARTITION)
    columns = """
        SELECT count(*) FROM pg_attribute
        WHERE attrelid = 'user_1.marketplace_job_stats'::regclass AND attname IN ('untimed_jobs', 'total_duration_ms')
    """
    for script, found in [(UNEXACT, 0), (EXACT, 2), (UNEXACT, 0)]:
        ok(psql(migrated, "-f", script))
        assert column(migrated, columns) == [found]
    before = everything(migrated, "user_1")
    refused = psql(migrated, "-f", DOWNGRADE)
    assert "user_1: user_1.marketplace_job_stats is partitioned: make it an ordinary table" in refused.stderr
    assert "19 done, 0 done before, 1 FAILED" in refused.stderr
    assert everything(migrated, "user_1") == before


def test_an_archive_of_another_owner(migrated: Connection) -> None:
    """Where the table was given away without its archive, that is said, before and by the upgrade, and nothing else."""
    count(migrated, "user_1", 1, "ebay", 5)
    before = split(migrated, "user_1")
    downgrade(migrated)
    migrated.execute("ALTER TABLE user_1.vinted_job_stats OWNER TO legacy_owner")
    reason = "and its table to legacy_owner: look at it, and give it that owner"
    preflight = "SELECT finding FROM job_stats.preflight WHERE schema_name = 'user_1' AND kind = 'refused'"
    (finding,) = column(migrated, preflight)
    refused = psql(migrated, "-f", UPGRADE)
    for text in [finding, refused.stderr]:
        assert "user_1.marketplace_job_stats_archive belongs to " in text
        assert reason in text
        assert "drop it" not in text
    forget = psql(migrated, "-c", "CALL job_stats.forget_deleted('user_1.vinted_job_stats')")
    assert reason in forget.stderr

    migrated.execute("ALTER TABLE user_1.marketplace_job_stats_archive OWNER TO legacy_owner")
    upgrade(migrated)
    assert split(migrated, "user_1") == before


@pytest.mark.parametrize("change", ["RENAME note TO remark", "DROP note"])
def test_a_column_that_is_gone_since(migrated: Connection, change: str) -> None:
    """What the archive has in it is not dropped unsaid: its tenant is named, before and by the upgrade, and mended."""
    for marketplace in ["vinted", "ebay"]:
        count(migrated, "user_extra_columns", 1, marketplace, 5, note=f"{marketplace}'s")
    downgrade(migrated)
    migrated.execute(f"ALTER TABLE user_extra_columns.vinted_job_stats {change}".encode())
    reason = (
        "user_extra_columns.marketplace_job_stats_archive has a column that its table lacks, note: rename or drop it"
    )
    preflight = "SELECT finding FROM job_stats.preflight WHERE schema_name = 'user_extra_columns' AND kind = 'refused'"
    (finding,) = column(migrated, preflight)
    refused = psql(migrated, "-f", UPGRADE)
    for text in [finding, refused.stderr]:
        assert reason in text
    assert "19 done, 0 done before, 1 FAILED" in refused.stderr
    assert archives(migrated) == ["user_extra_columns"]

    migrated.execute(f"ALTER TABLE user_extra_columns.marketplace_job_stats_archive {change}".encode())
    upgrade(migrated)
    assert {key: row[0] for key, row in split(migrated, "user_extra_columns").items()} == {
        (1, "vinted"): 5,
        (1, "ebay"): 5,
    }
    if "remark" in change:
        remarks = "SELECT marketplace, remark FROM user_extra_columns.marketplace_job_stats WHERE date = %s"
        assert set(migrated.execute(remarks, [DAY])) == {("vinted", "vinted's"), ("ebay", "ebay's")}


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM {} WHERE marketplace = 'ebay'",
        "DELETE FROM {} WHERE id = folded_id",
        "UPDATE {} SET total_jobs = 1",
        "UPDATE {} SET success_count = 1",
    ],
)
def test_an_archive_that_is_not_whole(migrated: Connection, change: str) -> None:
    """Where an archive no longer adds up to what was folded, no job is dropped or doubled: its tenant is refused."""
    count(migrated, "user_1", 1, "vinted", 0)
    count(migrated, "user_1", 1, "ebay", 30)
    count(migrated, "user_1", 1, "etsy", 5)
    count(migrated, "user_1", 2, "etsy", 3)
    downgrade(migrated)
    archive = "user_1.marketplace_job_stats_archive"
    migrated.execute(f"{change.format(archive)} AND action_type_id = 1".replace(" = 1 AND", " = 1 WHERE").encode())
    refused = psql(migrated, "-f", UPGRADE)
    assert "user_1: the archived split cannot be restored" in refused.stderr
    assert f"the archive no longer has all that was folded of action type 1 on {DAY}" in refused.stderr
    assert "19 done, 0 done before, 1 FAILED" in refused.stderr
    assert [row[2] for row in folded(migrated, "user_1")] == [35, 3]

    migrated.execute(f"DELETE FROM {archive} WHERE action_type_id = 1".encode())
    upgrade(migrated)
    assert split(migrated, "user_1") == {(1, "vinted"): (35, 35, 0, None), (2, "etsy"): (3, 3, 0, None)}


def test_old_days_that_are_deleted_on_purpose(migrated: Connection) -> None:
    """The runbook's one command clears them from every archive; what is left of the split comes back."""
    for schema in ["user_1", "user_owner"]:
        for marketplace in ["vinted", "ebay"]:
            count(migrated, schema, 1, marketplace, 5)
            count(migrated, schema, 2, marketplace, 7)
    downgrade(migrated)
    for schema in ["user_1", "user_owner"]:
        migrated.execute(f"DELETE FROM {schema}.vinted_job_stats WHERE action_type_id = 1".encode())
    assert "18 done, 0 done before, 2 FAILED" in psql(migrated, "-f", UPGRADE).stderr
    (command,) = blocks("docs/runbook.md", "sh", "job_stats.forget_deleted")
    bash(command, libpq_env(migrated))
    upgrade(migrated)
    for schema in ["user_1", "user_owner"]:
        assert split(migrated, schema) == {(2, name): (7, 7, 0, None) for name in ["vinted", "ebay"]}


def test_an_archive_that_is_no_table(migrated: Connection) -> None:
    """What has an archive's name, and even a dropped one's number, is not read unless it is a table."""
    downgrade(migrated)
    migrated.execute("CREATE VIEW user_1.marketplace_job_stats_archive AS SELECT 1 AS folded_id")
    migrated.execute("INSERT INTO job_stats.archives VALUES ('user_1.marketplace_job_stats_archive')")
    refused = psql(migrated, "-f", UPGRADE)
    assert "user_1: user_1.marketplace_job_stats_archive is none that a rollback here has made" in refused.stderr
    migrated.execute("DROP VIEW user_1.marketplace_job_stats_archive")
    upgrade(migrated)


def test_an_archive_without_its_table(migrated: Connection) -> None:
    """Where the table was moved to another schema and its archive was not, the preflight names the archive."""
    count(migrated, "user_1", 1, "ebay", 5)
    before = split(migrated, "user_1")
    downgrade(migrated)
    findings = "SELECT finding FROM job_stats.preflight WHERE finding LIKE '%%archive%%'"
    assert column(migrated, findings) == []
    migrated.execute("CREATE SCHEMA elsewhere; ALTER TABLE user_1.vinted_job_stats SET SCHEMA elsewhere")
    (finding,) = column(migrated, findings)
    assert finding.startswith("user_1.marketplace_job_stats_archive is there, and its table is not")
    migrated.execute("ALTER TABLE elsewhere.vinted_job_stats SET SCHEMA user_1")
    upgrade(migrated)
    assert split(migrated, "user_1") == before
