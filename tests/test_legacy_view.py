"""Old code goes on through the view `vinted_job_stats`: it reads, writes and is refused what it always was."""

import datetime
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from tests.deploy import connect, psql, schema_dump, yoyo
from tests.tenants import DOWN, DOWNGRADE, UP, UPGRADE, Connection, clone, column, ok, rows, states, tenants

DAY = datetime.date(2026, 1, 1)  # long before the rows of `dev/legacy.sql`


def with_view(conn: Connection) -> list[str]:
    """All tenants but the template."""
    return [schema for schema in tenants(conn) if schema != "template_tenant"]


def run(conn: Connection, query: str, schema: str, *params: object) -> psycopg.Cursor[tuple[object, ...]]:
    """Run a statement whose {} stands for the tenant's schema."""
    return conn.execute(sql.SQL(query).format(sql.Identifier(schema)), params or None)


def add_other_marketplaces(conn: Connection, schema: str, action_type_id: int = 1) -> None:
    """Count jobs of eBay and Etsy, on DAY, as new code does."""
    insert = """
        INSERT INTO {}.marketplace_job_stats (action_type_id, date, marketplace, total_jobs, success_count)
        VALUES (%s, %s, 'ebay', 2, 2), (%s, %s, 'etsy', 3, 3)
    """
    run(conn, insert, schema, action_type_id, DAY, action_type_id, DAY)


def test_old_code_sees_what_it_saw(toolkit: Connection) -> None:
    """In every tenant SELECT * gives the same columns, types and rows in the same order; other marketplaces' never."""

    def seen() -> dict[str, object]:
        cursors = {name: run(toolkit, "SELECT * FROM {}.vinted_job_stats ORDER BY id", name) for name in names}
        return {
            name: ([(c.name, c.type_code, c.type_display) for c in cursor.description or []], cursor.fetchall())
            for name, cursor in cursors.items()
        }

    names = with_view(toolkit)
    before = seen()
    ok(psql(toolkit, *UP))
    assert seen() == before
    for name in names:
        add_other_marketplaces(toolkit, name)
    assert seen() == before


def test_old_code_inserts_updates_and_deletes(migrated: Connection) -> None:
    """In every tenant a row is born with an id and counters at 0, as Vinted's, and no statement reaches eBay's rows."""
    others = "SELECT marketplace, total_jobs FROM {}.marketplace_job_stats WHERE date = %s AND marketplace <> 'vinted'"
    for name in with_view(migrated):
        add_other_marketplaces(migrated, name)
        insert = """
            INSERT INTO {}.vinted_job_stats (action_type_id, date) VALUES (1, %s)
            RETURNING id, total_jobs, success_count, failure_count, avg_duration_ms, created_at <= now()
        """
        (inserted,) = run(migrated, insert, name, DAY).fetchall()
        assert inserted[1:] == (0, 0, 0, None, True), name
        marketplace = "SELECT marketplace FROM {}.marketplace_job_stats WHERE id = %s"
        assert run(migrated, marketplace, name, inserted[0]).fetchall() == [("vinted",)]
        with pytest.raises(psycopg.errors.UniqueViolation):  # old code may count on this, and update then
            run(migrated, insert, name, DAY)

        update = """
            UPDATE {}.vinted_job_stats SET total_jobs = 7, success_count = 7 WHERE date = %s RETURNING id, total_jobs
        """
        assert run(migrated, update, name, DAY).fetchall() == [(inserted[0], 7)]
        assert run(migrated, "DELETE FROM {}.vinted_job_stats WHERE date = %s", name, DAY).rowcount == 1
        assert run(migrated, others, name, DAY).fetchall() == [("ebay", 2), ("etsy", 3)]


def test_defaults_and_generated_columns_work_through_the_view(migrated: Connection) -> None:
    """DEFAULT for several rows, a generated column, an identity and a trigger do what they do in the table."""
    several = "INSERT INTO {}.vinted_job_stats (id, action_type_id, date) VALUES (DEFAULT, 8, %s), (DEFAULT, 9, %s)"
    assert run(migrated, several, "user_identity", DAY, DAY).rowcount == 2
    generated = """
        INSERT INTO {}.vinted_job_stats (action_type_id, date, total_jobs, success_count, success_percent, note)
        VALUES (1, %s, 4, 3, DEFAULT, 'x') RETURNING success_percent, note, retries
    """
    assert run(migrated, generated, "user_extra_columns", DAY).fetchall() == [(75, "x", 0)]
    with pytest.raises(psycopg.errors.CheckViolation, match="counts must not be negative"):
        run(migrated, "UPDATE {}.vinted_job_stats SET success_count = -1", "user_trigger")


def test_prepared_statements_survive_the_upgrade_and_the_rollback(toolkit: Connection) -> None:
    """Statements that a live connection has prepared go on, up and down, without being prepared again."""
    statements = {
        "insert (date)": "INSERT INTO {0}.vinted_job_stats (action_type_id, date) VALUES (1, $1) RETURNING *",
        "update (date)": "UPDATE {0}.vinted_job_stats SET total_jobs = total_jobs + 1 WHERE date = $1",
        "select_all (date)": "SELECT * FROM {0}.vinted_job_stats WHERE date = $1",
        "delete (date)": "DELETE FROM {0}.vinted_job_stats WHERE date = $1",
    }
    with connect(toolkit, prepare_threshold=None) as old_code:
        for name in ["user_1", "user_extra_columns"]:
            for prepared, statement in statements.items():
                run(old_code, f"PREPARE {name}_{prepared} AS {statement}", name)

        def work() -> None:
            for name in ["user_1", "user_extra_columns"]:
                (inserted,) = old_code.execute(f"EXECUTE {name}_insert ('{DAY}')").fetchall()
                assert old_code.execute(f"EXECUTE {name}_update ('{DAY}')").rowcount == 1
                (row,) = old_code.execute(f"EXECUTE {name}_select_all ('{DAY}')").fetchall()
                assert row[:8] == (*inserted[:3], 1, *inserted[4:8])
                assert old_code.execute(f"EXECUTE {name}_delete ('{DAY}')").rowcount == 1

        for _ in range(6):  # from the sixth time on, the plan is a generic one that is kept
            work()
        ok(psql(toolkit, *UP))
        for name in ["user_1", "user_extra_columns"]:
            add_other_marketplaces(toolkit, name)
        work()
        run(toolkit, "DELETE FROM {}.marketplace_job_stats WHERE date = %s", "user_1", DAY)
        run(toolkit, "DELETE FROM {}.marketplace_job_stats WHERE date = %s", "user_extra_columns", DAY)
        ok(psql(toolkit, *DOWN))
        work()


ROLES = {
    "legacy_reader": ["user_grants", "user_row_security", "user_1"],
    "legacy_owner": ["user_owner", "user_1"],
    "legacy_columns": ["user_2", "user_3"],  # some columns only: of user_2 to read, of user_3 to write
    "legacy_writer": ["user_2", "user_3"],  # everything but SELECT
}
REFUSED = psycopg.errors.InsufficientPrivilege.sqlstate
ATTEMPTS = [
    "SELECT count(*) FROM {}.vinted_job_stats",
    "SELECT max(id), min(date) FROM {}.vinted_job_stats WHERE action_type_id = 1",
    "SELECT sum(total_jobs) FROM {}.vinted_job_stats",
    "SELECT * FROM {}.vinted_job_stats ORDER BY id",
    "INSERT INTO {}.vinted_job_stats (action_type_id, date) VALUES (2, '2026-01-02')",
    "INSERT INTO {}.vinted_job_stats (action_type_id, date, total_jobs) VALUES (2, '2026-01-02', 1)",
    "UPDATE {}.vinted_job_stats SET total_jobs = 0",
    "UPDATE {}.vinted_job_stats SET total_jobs = total_jobs + 1 WHERE id > 0",
    "UPDATE {}.vinted_job_stats SET success_count = 0",
    "DELETE FROM {}.vinted_job_stats",
    "DELETE FROM {}.vinted_job_stats WHERE id > 0",
]


def attempts(conn: Connection) -> Iterator[tuple[tuple[str, str, str], object]]:
    """What every role gets out of every attempt, each undone: rows, or how many it changed, or the error's code."""
    with connect(conn, autocommit=False) as someone:
        for role, schemas in ROLES.items():
            for schema in schemas:
                for attempt in ATTEMPTS:
                    someone.execute(f"SET LOCAL ROLE {role}")
                    try:
                        cursor = run(someone, attempt, schema)
                        outcome: object = cursor.fetchall() if cursor.description else cursor.rowcount
                    except psycopg.Error as error:
                        outcome = error.sqlstate
                    yield (role, schema, attempt), outcome
                    someone.rollback()


def test_every_role_may_do_what_it_might(toolkit: Connection) -> None:
    """Owner, grants on the table or on some columns of it, row-level security: all the same through the view."""
    for role in ["legacy_columns", "legacy_writer"]:
        if not column(toolkit, "SELECT FROM pg_roles WHERE rolname = %s", role):
            toolkit.execute(f"CREATE ROLE {role}")
    toolkit.execute(
        """
        GRANT USAGE ON SCHEMA template_tenant, user_1, user_2, user_3, user_owner
        TO legacy_columns, legacy_writer, legacy_owner, legacy_reader;
        GRANT USAGE ON SEQUENCE template_tenant.vinted_job_stats_id_seq TO legacy_columns, legacy_writer, legacy_owner;
        GRANT SELECT (id, date, action_type_id) ON user_2.vinted_job_stats TO legacy_columns;
        GRANT INSERT (action_type_id, date), UPDATE (total_jobs), SELECT (id)
        ON user_3.vinted_job_stats TO legacy_columns;
        GRANT INSERT, UPDATE, DELETE ON user_2.vinted_job_stats, user_3.vinted_job_stats TO legacy_writer;
        GRANT SELECT ON user_1.vinted_job_stats TO PUBLIC;
        """
    )
    before = dict(attempts(toolkit))
    everybody = {(role, schema) for role, schemas in ROLES.items() for schema in schemas}
    assert {key[:2] for key, outcome in before.items() if outcome != REFUSED} == everybody
    assert {key[:2] for key, outcome in before.items() if outcome == REFUSED} == everybody - {
        ("legacy_owner", "user_owner")
    }
    last_month = before["legacy_reader", "user_row_security", ATTEMPTS[0]]
    assert last_month != toolkit.execute("SELECT count(*) FROM user_row_security.vinted_job_stats").fetchall()

    ok(psql(toolkit, *UP))
    for schema in {schema for schemas in ROLES.values() for schema in schemas}:
        add_other_marketplaces(toolkit, schema)
    assert dict(attempts(toolkit)) == before


def test_the_view_has_the_owner_and_the_grants_of_the_table(toolkit: Connection) -> None:
    """In every tenant, to the letter: whom, what, on which column, and whether they may pass it on."""
    toolkit.execute("GRANT UPDATE, DELETE ON user_1.vinted_job_stats TO legacy_reader WITH GRANT OPTION")
    toolkit.execute("GRANT SELECT (id, date) ON user_2.vinted_job_stats TO legacy_owner WITH GRANT OPTION")
    toolkit.execute("GRANT SELECT, UPDATE (total_jobs) ON user_2.vinted_job_stats TO PUBLIC")
    ok(psql(toolkit, *UP))
    query = """
        SELECT n.nspname, relowner::regrole::text, attname, p.grantee::regrole::text, p.privilege_type, p.is_grantable
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        JOIN (
            SELECT attrelid, attname, attacl AS acl FROM pg_attribute WHERE attnum > 0 AND attname <> 'marketplace'
            UNION ALL
            SELECT oid, '', coalesce(relacl, acldefault('r', relowner)) FROM pg_class
        ) AS a ON c.oid = attrelid
        CROSS JOIN aclexplode(acl) AS p
        WHERE relname = %s AND nspname = ANY (%s)
        ORDER BY 1, 3, 4, 5
    """
    of_views = toolkit.execute(query, ["vinted_job_stats", with_view(toolkit)]).fetchall()
    assert of_views == toolkit.execute(query, ["marketplace_job_stats", with_view(toolkit)]).fetchall()
    assert {row[0] for row in of_views} == set(with_view(toolkit))
    assert {
        ("user_1", "", "legacy_reader", "DELETE", True),
        ("user_2", "date", "legacy_owner", "SELECT", True),
        ("user_2", "total_jobs", "-", "UPDATE", False),
    } <= {(row[0], *row[2:]) for row in of_views}


def test_clones_of_the_template_have_no_view_unless_asked_for(migrated: Connection) -> None:
    """A view in the template would be cloned as a table without keys; a tenant that needs one gets it by a CALL."""
    assert column(migrated, "SELECT to_regclass('template_tenant.vinted_job_stats')") == [None]
    clone(migrated, "user_New 1", "template_tenant.marketplace_job_stats")
    clone(migrated, "user_without_view", "template_tenant.marketplace_job_stats")
    migrated.execute("CALL job_stats.create_legacy_view('\"user_New 1\".marketplace_job_stats')")
    run(migrated, "INSERT INTO {}.vinted_job_stats (action_type_id, date) VALUES (1, %s)", "user_New 1", DAY)
    assert column(migrated, "SELECT to_regclass('user_without_view.vinted_job_stats')") == [None]
    problem = "SELECT problem FROM job_stats.tenant_status WHERE state = 'drifted'"
    assert column(migrated, problem) == ["no view vinted_job_stats"]
    ok(psql(migrated, "-f", DOWNGRADE))
    assert len(rows(migrated, "user_New 1", "vinted_job_stats")) == 1
    assert set(states(migrated).values()) == {"legacy", "missing"}


def test_views_on_the_legacy_table_survive(legacy: Connection) -> None:
    """A tenant's own views and functions, made before the upgrade, give the same up and down."""
    legacy.execute(
        """
        CREATE VIEW user_1.report AS SELECT date, sum(total_jobs) AS jobs FROM user_1.vinted_job_stats GROUP BY date;
        CREATE MATERIALIZED VIEW user_1.everything AS SELECT * FROM user_1.vinted_job_stats;
        CREATE FUNCTION user_1.jobs() RETURNS bigint
        BEGIN ATOMIC SELECT sum(total_jobs) FROM user_1.vinted_job_stats; END;
        CREATE FUNCTION user_1.jobs_by_name() RETURNS bigint LANGUAGE sql
        AS 'SELECT sum(total_jobs) FROM user_1.vinted_job_stats';
        """
    )
    query = "SELECT user_1.jobs(), user_1.jobs_by_name(), r.* FROM user_1.report AS r ORDER BY date"
    before, seen = schema_dump(legacy, "user_1"), legacy.execute(query).fetchall()
    ok(yoyo(legacy, "apply"))
    legacy.execute("REFRESH MATERIALIZED VIEW user_1.everything")
    assert legacy.execute(query).fetchall() == seen
    ok(yoyo(legacy, "rollback", "--all"))
    assert (schema_dump(legacy, "user_1"), legacy.execute(query).fetchall()) == (before, seen)


def test_what_is_built_on_the_legacy_view_is_not_dropped_with_it(migrated: Connection) -> None:
    """Such a tenant is refused by name at the rollback, the others are done, and the same command finishes later."""
    migrated.execute("CREATE VIEW user_1.report AS SELECT * FROM user_1.vinted_job_stats")
    refused = psql(migrated, "-f", DOWNGRADE)
    assert refused.returncode != 0
    assert "user_1: cannot drop view vinted_job_stats because other objects depend on it" in refused.stderr
    assert [name for name, state in states(migrated).items() if state == "migrated"] == ["user_1"]
    migrated.execute("DROP VIEW user_1.report")
    ok(psql(migrated, "-f", DOWNGRADE))
    ok(psql(migrated, "-f", UPGRADE))


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("TRUNCATE user_1.vinted_job_stats", psycopg.errors.WrongObjectType),
        ("COPY user_1.vinted_job_stats TO '/dev/null'", psycopg.errors.WrongObjectType),
        (
            "INSERT INTO user_1.vinted_job_stats (action_type_id, date) VALUES (1, '2026-01-01')"
            " ON CONFLICT (action_type_id, date) DO NOTHING",
            psycopg.errors.InvalidColumnReference,
        ),
        ("SELECT nextval('user_named_key.vinted_job_stats_id_seq')", psycopg.errors.UndefinedTable),
        (
            "ALTER TABLE user_1.marketplace_job_stats ALTER marketplace SET DEFAULT 'ebay';"
            "INSERT INTO user_1.vinted_job_stats (action_type_id, date) VALUES (1, '2026-01-01')",
            psycopg.errors.WithCheckOptionViolation,
        ),
    ],
)
def test_what_a_view_cannot_do_fails(migrated: Connection, statement: str, error: type[Exception]) -> None:
    """TRUNCATE, COPY, ON CONFLICT (columns), the sequence's old name: an error, and never another marketplace's row."""
    before = rows(migrated, "user_1", "marketplace_job_stats")
    with pytest.raises(error):
        migrated.execute(statement.encode())
    assert rows(migrated, "user_1", "marketplace_job_stats") == before
