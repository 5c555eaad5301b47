"""A tenant that means harm gets nothing: its code runs as itself or not at all, and green is true (SECURITY.md)."""

import re
from pathlib import Path

import psycopg
import pytest

from tests.deploy import ROOT, Result, connect, psql, yoyo
from tests.hostile import Migrator, as_role, counts, each_day_on_ebay, lay_out, unharmed
from tests.tenants import (
    DOWN,
    DOWNGRADE,
    EXACT,
    UNEXACT,
    UP,
    UPGRADE,
    VERIFY,
    Connection,
    column,
    definitions,
    ok,
    running,
    states,
    wait_until,
)
from tests.test_docs import blocks

FORGED = "user_evil.marketplace_job_stats_archive is none that a rollback here has made"
ARCHIVE = """
    CREATE TABLE user_evil.marketplace_job_stats_archive AS
    SELECT s.*, 'vinted'::varchar(20) AS marketplace, id AS folded_id, total_jobs::bigint AS folded_total_jobs,
        success_count::bigint AS folded_success_count, failure_count::bigint AS folded_failure_count,
        avg_duration_ms::numeric AS folded_avg_duration_ms
    FROM user_evil.vinted_job_stats AS s LIMIT 1;
    CREATE TRIGGER strikes BEFORE INSERT OR UPDATE ON user_evil.vinted_job_stats
    FOR EACH ROW EXECUTE FUNCTION user_evil.on_row();
"""
ENUM = """
    CREATE TYPE user_evil.e AS ENUM ('1', '2', '3');
    CREATE FUNCTION user_evil.to_int(x user_evil.e) RETURNS integer LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM user_evil.strike();
        RETURN x::text::integer;
    END $$;
    CREATE CAST (user_evil.e AS integer) WITH FUNCTION user_evil.to_int(user_evil.e) AS IMPLICIT;
"""

RAISES = """
    CREATE FUNCTION user_evil.raises() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'said by evil' {};
    END $$;
    CREATE TRIGGER t AFTER UPDATE ON user_evil.marketplace_job_stats
    FOR EACH STATEMENT EXECUTE FUNCTION user_evil.raises()
"""

MISREAD = "has what is not PostgreSQL's own, a constant of no type, or EXTRACT"

# Gives the name of the key that is being built to another index, with a predicate that is run as it is made the replica
# identity; and back.
SWAP = """
    CREATE FUNCTION user_evil.swap() RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF session_user <> 'legacy_evil' AND to_regclass('user_evil.{0}') IS NOT NULL
            AND to_regclass('user_evil.mine') IS NOT NULL
        THEN
            ALTER INDEX user_evil.{0} RENAME TO aside;
            ALTER INDEX user_evil.mine RENAME TO {0};
        END IF;
    END $$;
    CREATE FUNCTION user_evil.k(x text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN x; END $$;
    CREATE UNIQUE INDEX mine ON user_evil.{1} (id) WHERE user_evil.is_fine(1);
    ALTER TABLE user_evil.{1} REPLICA IDENTITY USING INDEX {2};
    CREATE STATISTICS user_evil.s ON (user_evil.k('x')), (user_evil.k(id::text)) FROM user_evil.{1};
    CREATE OR REPLACE FUNCTION user_evil.k(x text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
        $$ BEGIN PERFORM user_evil.swap(); RETURN x; END $$
"""

# Done by the tenant's owner before the change: what the upgrade says of it ("" for nothing: the tenant is migrated).
BEFORE = {
    "operators": (
        """
        CREATE FUNCTION user_evil.op(l varchar, r varchar) RETURNS boolean LANGUAGE sql AS 'SELECT user_evil.strike()';
        CREATE OPERATOR user_evil.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = user_evil.op);
        CREATE OPERATOR user_evil.<> (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = user_evil.op);
        CREATE FUNCTION user_evil.op(l varchar, r text) RETURNS boolean LANGUAGE sql AS 'SELECT user_evil.strike()';
        CREATE OPERATOR user_evil.= (LEFTARG = varchar, RIGHTARG = text, FUNCTION = user_evil.op);
        CREATE FUNCTION user_evil.cardinality(x name[]) RETURNS integer LANGUAGE sql AS 'SELECT 1';
        """,
        "",
    ),
    "forged archive": (ARCHIVE, FORGED),
    "archive that is a view": (
        "CREATE VIEW user_evil.marketplace_job_stats_archive AS"
        " SELECT user_evil.strike() FROM user_evil.vinted_job_stats",
        FORGED,
    ),
    "predicate of the old key": (
        "CREATE UNIQUE INDEX ON user_evil.vinted_job_stats (action_type_id, date) WHERE user_evil.is_fine(total_jobs)",
        MISREAD,
    ),
    "words that PostgreSQL 15 and 17 do not quote in the old key's predicate": (
        "CREATE UNIQUE INDEX ON user_evil.vinted_job_stats (action_type_id, date) WHERE total_jobs > -1 OR"
        " EXTRACT('epoch FROM date) > 0)); ALTER ROLE legacy_evil SUPERUSER; --' FROM date) > 0",
        MISREAD,
    ),
    "constant of no type in the old key's predicate": (  # for which num_nonnulls(integer, dom[]) can come at any time
        "CREATE UNIQUE INDEX ON user_evil.vinted_job_stats (action_type_id, date)"
        " WHERE num_nonnulls(total_jobs, '{1}') > 0",
        MISREAD,
    ),
    "constant of a domain in the old key's predicate": (
        """
        CREATE DOMAIN user_evil.dom AS integer CHECK (user_evil.is_fine(VALUE));
        CREATE UNIQUE INDEX ON user_evil.vinted_job_stats (action_type_id, date)
            WHERE '{1}'::user_evil.dom[] IS NOT NULL
        """,
        MISREAD,
    ),
    "cast under a foreign key": (
        f"""
        {ENUM}
        ALTER TABLE user_evil.vinted_job_stats ALTER action_type_id TYPE user_evil.e
            USING action_type_id::text::user_evil.e;
        ALTER TABLE user_evil.vinted_job_stats ADD FOREIGN KEY (action_type_id) REFERENCES vinted.action_types (id);
        """,
        "column action_type_id is user_evil.e and should be integer",
    ),
    "statistics that swap the new key": (
        SWAP.format(
            "uq_marketplace_job_stats_action_marketplace_date",
            "vinted_job_stats",
            "vinted_job_stats_action_type_id_date_key",
        ),
        "",
    ),
    "index on a constant": (
        "CREATE FUNCTION user_evil.constant(x text) RETURNS text IMMUTABLE LANGUAGE sql"
        " AS 'SELECT user_evil.is_fine(1)::text'; CREATE INDEX ON user_evil.vinted_job_stats (user_evil.constant('x'))",
        "",
    ),
}

# Done by the tenant's owner after the change, before the rollback that folds: what the rollback says of it.
AFTER = {
    "trigger on rows": (
        "CREATE TRIGGER t BEFORE UPDATE OR DELETE ON user_evil.marketplace_job_stats"
        " FOR EACH ROW EXECUTE FUNCTION user_evil.on_row()",
        "",
    ),
    "trigger on statements, and truncation": (
        "CREATE TRIGGER t AFTER UPDATE OR DELETE OR TRUNCATE ON user_evil.marketplace_job_stats"
        " FOR EACH STATEMENT EXECUTE FUNCTION user_evil.on_row()",
        "",
    ),
    "deferred trigger": (
        "CREATE CONSTRAINT TRIGGER t AFTER UPDATE OR DELETE OR INSERT ON user_evil.marketplace_job_stats"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION user_evil.on_row()",
        "",
    ),
    "check": (
        "ALTER TABLE user_evil.marketplace_job_stats ADD CHECK (user_evil.is_fine(total_jobs)) NOT VALID",
        "",
    ),
    "generated column": (
        """
        CREATE FUNCTION user_evil.generated(x integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS
            'BEGIN RETURN user_evil.strike()::integer; END';
        ALTER TABLE user_evil.marketplace_job_stats
            ADD COLUMN generated integer GENERATED ALWAYS AS (user_evil.generated(total_jobs)) STORED
        """,
        "",
    ),
    "index on an expression": (
        "CREATE INDEX ON user_evil.marketplace_job_stats (user_evil.is_fine(total_jobs))",
        "",
    ),
    "index on a constant": (
        "CREATE FUNCTION user_evil.constant(x text) RETURNS text IMMUTABLE LANGUAGE sql AS"
        " 'SELECT user_evil.is_fine(1)::text';"
        "CREATE INDEX ON user_evil.marketplace_job_stats (user_evil.constant('x'))",
        "",
    ),
    "statistics on an expression": (
        "CREATE STATISTICS user_evil.s ON (user_evil.is_fine(1)), (user_evil.is_fine(total_jobs))"
        " FROM user_evil.marketplace_job_stats",
        "",
    ),
    "domain": (
        """
        CREATE DOMAIN user_evil.counter AS integer CHECK (user_evil.is_fine(VALUE));
        DROP VIEW user_evil.vinted_job_stats;
        ALTER TABLE user_evil.marketplace_job_stats ALTER total_jobs TYPE user_evil.counter
        """,
        "",
    ),
    "forced policy": (
        """
        ALTER TABLE user_evil.marketplace_job_stats ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
        CREATE POLICY p ON user_evil.marketplace_job_stats USING (user_evil.is_fine(total_jobs))
        """,
        "",
    ),
    "rule": (
        "CREATE RULE r AS ON UPDATE TO user_evil.marketplace_job_stats DO ALSO SELECT user_evil.strike()",
        "",
    ),
    "cast under a restored foreign key": (
        f"""
        {ENUM}
        DROP VIEW user_evil.vinted_job_stats;
        DELETE FROM user_evil.marketplace_job_stats WHERE marketplace <> 'vinted';
        ALTER TABLE user_evil.marketplace_job_stats ALTER action_type_id TYPE user_evil.e
            USING action_type_id::text::user_evil.e;
        """,
        "compares a type that is not PostgreSQL's, user_evil.e",
    ),
    "default that is read by the code of its type": (
        """
        CREATE DOMAIN user_evil.dom AS integer CHECK (user_evil.is_fine(VALUE));
        ALTER TABLE user_evil.marketplace_job_stats ALTER marketplace SET DEFAULT ('{1}'::user_evil.dom[])::text
        """,
        "",
    ),
    "cancellation": (RAISES.format("USING ERRCODE = '57014'"), "user_evil: said by evil"),
    "assertion": (RAISES.replace("RAISE EXCEPTION 'said by evil' {}", "ASSERT false, 'said by evil'"), "said by evil"),
    "message without end": (RAISES.format("USING DETAIL = repeat('y', 270000000)"), "user_evil: said by evil yyyy"),
    "message of several lines": (
        RAISES.format("USING DETAIL = E'x\\nvictim failed\\n'"),
        "user_evil: said by evil x victim failed",
    ),
    "locks of the session": (
        """
        CREATE FUNCTION user_evil.locks() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            FOR i IN 1..100000 LOOP
                PERFORM pg_advisory_lock(i);
            END LOOP;
            RETURN NULL;
        EXCEPTION
            WHEN OTHERS THEN RETURN NULL;
        END $$;
        CREATE TRIGGER t AFTER UPDATE ON user_evil.marketplace_job_stats
        FOR EACH STATEMENT EXECUTE FUNCTION user_evil.locks()
        """,
        "user_evil: ",
    ),
    "what the script did undone": (
        """
        CREATE FUNCTION user_evil.undoes() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            ALTER TABLE user_evil.marketplace_job_stats_archive ADD COLUMN IF NOT EXISTS more integer;
            ALTER TABLE user_evil.marketplace_job_stats RENAME TO away;
            CREATE TABLE user_evil.marketplace_job_stats (LIKE user_evil.away INCLUDING ALL);
            RETURN NULL;
        END $$;
        CREATE TRIGGER t AFTER UPDATE ON user_evil.marketplace_job_stats
        FOR EACH STATEMENT EXECUTE FUNCTION user_evil.undoes()
        """,
        "user_evil: ",
    ),
    "errors of ours": (
        """
        CREATE FUNCTION user_evil.lies() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'to be rolled back' USING ERRCODE = 'JS000'; END $$;
        CREATE TRIGGER t AFTER UPDATE ON user_evil.marketplace_job_stats
        FOR EACH ROW EXECUTE FUNCTION user_evil.lies()
        """,
        "user_evil: to be rolled back",
    ),
}

# Done by the tenant's owner between the rollback and the next upgrade: what that says of it.
FOLDED = {
    "trigger on the archive": (
        "CREATE TRIGGER t BEFORE UPDATE ON user_evil.marketplace_job_stats_archive"
        " FOR EACH ROW EXECUTE FUNCTION user_evil.on_row()",
        "",
    ),
    "trigger on the table": (
        "CREATE TRIGGER t BEFORE INSERT OR UPDATE ON user_evil.vinted_job_stats"
        " FOR EACH ROW EXECUTE FUNCTION user_evil.on_row()",
        "",
    ),
    "another archive": (
        """
        ALTER TABLE user_evil.marketplace_job_stats_archive RENAME TO was_here;
        CREATE TABLE user_evil.marketplace_job_stats_archive (LIKE user_evil.was_here INCLUDING ALL);
        INSERT INTO user_evil.marketplace_job_stats_archive TABLE user_evil.was_here
        """,
        FORGED,
    ),
    "a view in the archive's place": (
        """
        ALTER TABLE user_evil.marketplace_job_stats_archive RENAME TO was_here;
        CREATE VIEW user_evil.marketplace_job_stats_archive AS TABLE user_evil.was_here
        """,
        FORGED,
    ),
    "rule on the archive": (
        "CREATE RULE r AS ON UPDATE TO user_evil.marketplace_job_stats_archive DO ALSO SELECT user_evil.strike()",
        "",
    ),
    "cast out of the archive": (
        f"""
        {ENUM}
        CREATE FUNCTION user_evil.to_count(x text) RETURNS integer LANGUAGE sql AS 'SELECT user_evil.strike()::integer';
        ALTER TABLE user_evil.marketplace_job_stats_archive
            ADD CHECK (user_evil.is_fine(1)), ALTER total_jobs SET DEFAULT user_evil.to_count('')
        """,
        "",
    ),
}


@pytest.fixture(params=["superuser", pytest.param("member", marks=pytest.mark.slow)])
def pioneer(request: pytest.FixtureRequest, empty: Connection) -> Migrator:
    """Who will migrate the two tenants, before the toolkit is there."""
    return lay_out(empty, request.param)


def do(migrator: Migrator, attack: str) -> None:
    """Have the evil tenant's owner do something."""
    with as_role(migrator.superuser, "legacy_evil") as evil:
        evil.execute(attack.encode())


def rehearse(migrator: Migrator, *files: str) -> None:
    """Run files in every tenant and roll back; who is refused does not matter here."""
    for file in files:
        migrator.psql("-f", file, env={"PGOPTIONS": "-c tenancy.dry_run=on"})
    unharmed(migrator.superuser)


def expect(migrator: Migrator, done: Result, said: str) -> None:
    """All went, or the evil tenant alone was refused, in these words."""
    if said:
        assert done.returncode != 0
        assert re.findall(r"\b(user_\w+): ", done.stderr) == ["user_evil"]
        assert said in done.stderr
    else:
        ok(done)
    unharmed(migrator.superuser)


@pytest.mark.parametrize(("attack", "said"), BEFORE.values(), ids=BEFORE)
def test_before_the_change(migrator: Migrator, attack: str, said: str) -> None:
    """Whatever a tenant has prepared, it is migrated or refused by name, and the others are done, up and down."""
    conn = migrator.superuser
    before = counts(conn, "user_victim")
    conn.execute("GRANT USAGE ON SCHEMA vinted TO legacy_evil; GRANT ALL ON vinted.action_types TO legacy_evil")
    do(migrator, attack)
    conn.execute("ALTER TABLE vinted.action_types OWNER TO legacy_keeper")
    rehearse(migrator, UPGRADE)
    expect(migrator, migrator.psql(*UP), said)
    assert states(conn) == {
        "template_tenant": "migrated",
        "user_evil": "drifted" if "archive" in said else "legacy" if said else "migrated",
        "user_victim": "migrated",
    } or (said and states(conn)["user_evil"] == "legacy")
    assert counts(conn, "user_victim") == before
    each_day_on_ebay(conn, "user_victim", *["user_evil"] * (not said))
    for file in [UNEXACT, DOWNGRADE]:
        rehearse(migrator, file)
        ok(migrator.psql("-f", file))
        unharmed(conn)
    (folded,) = counts(conn, "user_victim")
    assert folded[:2] == (15, 15 * (10 + 5))


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name == "message without end"))
        for name, case in AFTER.items()
    ],
)
def test_after_the_change(migrator: Migrator, attack: str, said: str) -> None:
    """What a tenant hangs on its table runs as the tenant when a rollback folds and when an upgrade restores."""
    conn = migrator.superuser
    conn.execute(
        """
        GRANT USAGE ON SCHEMA vinted TO legacy_evil, legacy_victim;
        GRANT ALL ON vinted.action_types TO legacy_evil;
        ALTER TABLE user_evil.vinted_job_stats ADD FOREIGN KEY (action_type_id) REFERENCES vinted.action_types (id)
        """
    )
    before = counts(conn, "user_victim")
    ok(migrator.psql(*UP))
    each_day_on_ebay(conn, "user_evil", "user_victim")
    counted = counts(conn, "user_victim")
    do(migrator, attack)
    rehearse(migrator, UNEXACT, DOWNGRADE)
    expect(migrator, migrator.psql(*DOWN), said)
    assert states(conn)["user_victim"] == "legacy"
    assert states(conn)["user_evil"] == ("legacy" if not said else states(conn)["user_evil"])
    rehearse(migrator, UPGRADE)
    again = migrator.psql("-f", UPGRADE)
    assert set(re.findall(r"\b(user_\w+): ", again.stderr)) <= {"user_evil"}
    unharmed(conn)
    assert counts(conn, "user_victim") == counted != before


@pytest.mark.parametrize(("attack", "said"), FOLDED.values(), ids=FOLDED)
def test_between_rollback_and_upgrade(migrator: Migrator, attack: str, said: str) -> None:
    """An archive is believed if it is the one that a rollback made; what hangs on it runs as the tenant."""
    conn = migrator.superuser
    ok(migrator.psql(*UP))
    each_day_on_ebay(conn, "user_evil", "user_victim")
    counted = counts(conn, "user_victim")
    ok(migrator.psql(*DOWN))
    do(migrator, attack)
    rehearse(migrator, UPGRADE)
    expect(migrator, migrator.psql(*UP), said)
    assert counts(conn, "user_victim") == counted


def test_the_evil_code_does_run(empty: Connection) -> None:
    """So that the tests above can fail: what hangs on the table is called, as its owner, and escapes from SET ROLE."""
    migrator = lay_out(empty, "superuser")
    ok(migrator.yoyo("apply"))
    each_day_on_ebay(empty, "user_evil")
    do(migrator, AFTER["trigger on rows"][0])
    ok(migrator.yoyo("rollback", "--revision", "0020"))
    assert column(empty, "SELECT is_called FROM user_evil.struck") == [True]
    unharmed(empty)
    try:
        empty.execute("SET ROLE legacy_evil; UPDATE user_evil.vinted_job_stats SET total_jobs = 1")
        with pytest.raises(AssertionError):
            unharmed(empty)
    finally:
        empty.execute("RESET ROLE; ALTER ROLE legacy_evil NOSUPERUSER")


def test_what_a_rollback_runs_is_the_toolkits_owners(pioneer: Migrator) -> None:
    """Default privileges give nobody a way into the toolkit's schema: not to write, read, call or create there."""
    empty = pioneer.superuser
    with pioneer.connect() as creator:
        creator.execute(
            """
        ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO legacy_backend, PUBLIC;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO legacy_backend, PUBLIC;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO legacy_backend WITH GRANT OPTION;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON ROUTINES TO legacy_backend;
        """
        )
    ok(pioneer.yoyo("apply"))
    each_day_on_ebay(empty, "user_evil")
    ok(pioneer.yoyo("rollback", "--revision", "0020"))
    with as_role(empty, "legacy_backend") as backend:
        for query in [
            "UPDATE tenancy.undo SET script = 'ALTER ROLE legacy_backend SUPERUSER;'",
            "SELECT * FROM tenancy.journal",
            "CALL tenancy.restore('user_evil.vinted_job_stats', '', '', '')",
            "CREATE TABLE job_stats.mine ()",
            "SELECT * FROM user_evil.marketplace_job_stats_archive",
        ]:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                backend.execute(query.encode())
    granted = """
        SELECT c.relname || ' to ' || a.grantee::regrole FROM pg_class AS c, aclexplode(c.relacl) AS a
        WHERE relnamespace IN ('job_stats'::regnamespace, 'tenancy'::regnamespace) AND a.grantee <> c.relowner
        UNION ALL
        SELECT p.proname || ' to ' || a.grantee::regrole FROM pg_proc AS p, aclexplode(p.proacl) AS a
        WHERE pronamespace IN ('job_stats'::regnamespace, 'tenancy'::regnamespace) AND a.grantee NOT IN (0, p.proowner)
    """
    assert column(empty, granted) == []


@pytest.mark.parametrize("schema", ["public", "of the role's name"])
def test_a_strangers_functions_are_not_called(pioneer: Migrator, schema: str) -> None:
    """Functions and types in an open public, or in a schema that is named as the role, are not the toolkit's."""
    empty = pioneer.superuser
    user = "legacy_member" if pioneer.name == "member" else empty.info.user
    home = "public" if schema == "public" else f'"{user}"'
    if schema != "public":
        empty.execute(f"CREATE SCHEMA {home}".encode())
    empty.execute(f"GRANT CREATE, USAGE ON SCHEMA {home} TO PUBLIC".encode())
    with as_role(empty, "legacy_squatter") as squatter:
        squatter.execute(f"SET search_path = {home}".encode())
        squatter.execute(
            """
            CREATE FUNCTION cardinality(x name[]) RETURNS int LANGUAGE plpgsql AS $$
            BEGIN
                BEGIN EXECUTE 'ALTER ROLE legacy_squatter SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
                RETURN pg_catalog.cardinality(x);
            END $$;
            CREATE FUNCTION format(x text, y name) RETURNS text LANGUAGE plpgsql AS $$
            BEGIN
                BEGIN EXECUTE 'ALTER ROLE legacy_squatter SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
                RETURN pg_catalog.format(x, y);
            END $$;
            CREATE FUNCTION set_config(x text, y text, z boolean) RETURNS text LANGUAGE sql AS 'SELECT x';
            CREATE FUNCTION starts_with(x name, y text) RETURNS boolean LANGUAGE plpgsql AS $$
            BEGIN
                BEGIN EXECUTE 'ALTER ROLE legacy_squatter SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
                RETURN true;
            END $$;
            CREATE TABLE tenants (schema_oid oid, schema_name name);
            CREATE TABLE vinted_job_stats (id integer)
            """
        )
    ok(pioneer.yoyo("apply"))
    ok(pioneer.yoyo("rollback", "--all"))
    empty.execute("DROP SCHEMA IF EXISTS yoyo CASCADE")
    ok(psql(empty, "-v", "migrator=legacy_member", "-f", str(ROOT / "docs/grants.sql")))
    unharmed(empty)


def test_the_toolkit_is_not_made_outside_of_a_transaction(empty: Connection) -> None:
    """psql without --single-transaction would make it under the caller's search_path: refused, with what to do."""
    migrator = lay_out(empty, "superuser")
    toolkit = str(ROOT / "sql/migrations/0001.tenancy.sql")
    refused = migrator.psql("-f", toolkit)
    assert refused.returncode != 0
    assert "psql --single-transaction" in refused.stderr
    assert column(empty, "SELECT to_regnamespace('tenancy')") == [None]
    for file in sorted((ROOT / "sql/migrations").glob("00[01]*.sql")):
        if not file.stem.endswith(".rollback"):
            ok(migrator.psql("--single-transaction", "-f", str(file)))
    ok(migrator.psql("-f", UPGRADE))


OUTLIVED = {
    "row-level security": "ALTER TABLE user_victim.marketplace_job_stats ENABLE ROW LEVEL SECURITY",
    "revoke on the columns": (
        "REVOKE SELECT (action_type_id, total_jobs, date) ON user_victim.marketplace_job_stats FROM legacy_colreader"
    ),
    "revoke on a column": "REVOKE SELECT (total_jobs) ON user_victim.marketplace_job_stats FROM legacy_colreader",
    "revoke of all": "REVOKE ALL ON user_victim.marketplace_job_stats FROM legacy_backend",
    "revoke of the grant option": (
        "REVOKE GRANT OPTION FOR SELECT ON user_victim.marketplace_job_stats FROM legacy_backend"
    ),
    "another owner": "ALTER TABLE user_victim.marketplace_job_stats OWNER TO legacy_platform",
}


@pytest.mark.parametrize("change", OUTLIVED.values(), ids=OUTLIVED)
def test_a_view_that_shows_more_than_its_table_is_drift(migrator: Migrator, change: str) -> None:
    """Where the view reads with its owner's rights, it is drift once the table shows less; made anew, it shows less."""
    empty = migrator.superuser
    empty.execute(
        """
        GRANT USAGE ON SCHEMA user_victim TO legacy_colreader;
        GRANT SELECT (action_type_id, total_jobs, date) ON user_victim.vinted_job_stats TO legacy_colreader;
        GRANT SELECT ON user_victim.vinted_job_stats TO legacy_backend WITH GRANT OPTION;
        """
    )
    ok(migrator.psql(*UP))
    empty.execute(change.encode())
    assert states(empty)["user_victim"] == "drifted"
    refused = psql(empty, "-f", VERIFY)
    said = "is not its table's owner's" if "OWNER" in change else "may show more than its table"
    assert f"user_victim: view vinted_job_stats {said}" in refused.stderr
    empty.execute("DROP VIEW user_victim.vinted_job_stats")
    empty.execute("CALL job_stats.create_legacy_view('user_victim.marketplace_job_stats')")
    ok(psql(empty, "-f", VERIFY))
    if change == OUTLIVED["row-level security"]:
        with as_role(empty, "legacy_colreader") as reader, pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("SELECT total_jobs FROM user_victim.vinted_job_stats")


def test_others_are_not_held_up(migrator: Migrator) -> None:
    """While a tenant's code sleeps as long as it likes, all others read and change vinted.action_types."""
    empty = migrator.superuser
    empty.execute("GRANT USAGE ON SCHEMA vinted TO legacy_evil; GRANT REFERENCES ON vinted.action_types TO legacy_evil")
    do(
        migrator,
        """
        ALTER TABLE user_evil.vinted_job_stats ADD FOREIGN KEY (action_type_id) REFERENCES vinted.action_types (id);
        CREATE FUNCTION user_evil.sleeps() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM nextval('user_evil.struck');
            PERFORM pg_sleep(1000);
        END $$;
        """,
    )
    ok(migrator.psql(*UP))
    each_day_on_ebay(empty, "user_evil")
    do(
        migrator,
        "CREATE TRIGGER t BEFORE UPDATE ON user_evil.marketplace_job_stats"
        " FOR EACH STATEMENT EXECUTE FUNCTION user_evil.sleeps()",
    )
    with running(migrator.psql, "-f", DOWNGRADE) as results:
        wait_until(empty, "SELECT is_called FROM user_evil.struck")
        with connect(empty, options="-c lock_timeout=1s") as other:
            other.execute("SELECT FROM vinted.action_types")
            other.execute("INSERT INTO vinted.action_types VALUES (4, 'offer')")
            other.execute("SELECT FROM user_victim.marketplace_job_stats")
        empty.execute("SELECT pg_cancel_backend(pid) FROM tenancy.runs ORDER BY id DESC LIMIT 1")
    assert results[0].returncode != 0
    forgotten = {name for name, state in states(empty).items() if state == "drifted"}
    assert forgotten == set()


@pytest.mark.parametrize("migrator", ["superuser"], indirect=True)
def test_a_tenant_that_ends_the_session_keeps_no_other_from_its_turn(migrator: Migrator) -> None:
    """From 17 on tenants' code can end the session; when the command is given again, their turns come last."""
    empty = migrator.superuser
    if empty.info.server_version < 170000:
        pytest.skip("before PostgreSQL 17 there is no transaction_timeout")
    empty.execute(
        """
        CREATE SCHEMA user_fiend AUTHORIZATION legacy_evil;
        CREATE TABLE user_fiend.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);
        ALTER TABLE user_fiend.vinted_job_stats OWNER TO legacy_evil
        """
    )
    ok(migrator.psql(*UP))
    each_day_on_ebay(empty, "user_evil", "user_victim")
    do(
        migrator,
        """
        INSERT INTO user_fiend.marketplace_job_stats (action_type_id, date, marketplace)
        SELECT 1, '2026-01-01', name FROM unnest('{vinted, ebay}'::text[]) AS name;
        CREATE FUNCTION user_evil.ends() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM set_config('transaction_timeout', '50', true), pg_sleep(10);
            RETURN NULL;
        END $$;
        CREATE TRIGGER t AFTER UPDATE ON user_evil.marketplace_job_stats
        FOR EACH STATEMENT EXECUTE FUNCTION user_evil.ends();
        CREATE TRIGGER t AFTER UPDATE ON user_fiend.marketplace_job_stats
        FOR EACH STATEMENT EXECUTE FUNCTION user_evil.ends()
        """,
    )
    for turn, state in [("user_evil", "migrated"), ("user_fiend", "migrated"), ("user_evil", "legacy")]:
        assert "terminating connection" in migrator.psql("-f", DOWNGRADE).stderr
        assert column(empty, "SELECT nspname FROM tenancy.turn JOIN pg_namespace AS n ON n.oid = last_value") == [turn]
        assert states(empty)["user_victim"] == state
    do(migrator, "DROP FUNCTION user_evil.ends CASCADE")
    ok(migrator.psql("-f", DOWNGRADE))
    unharmed(empty)


@pytest.mark.parametrize("migrator", ["superuser"], indirect=True)
def test_a_tenant_that_ends_the_session_keeps_no_other_from_the_next_migration(migrator: Migrator) -> None:
    """A sweep that it ends goes on, when it is called again, with the migrations where nobody has done so."""
    superuser = migrator.superuser
    ok(migrator.psql(*UP))
    each_day_on_ebay(superuser, "user_evil")
    ok(migrator.psql(*DOWN, env={"PGOPTIONS": "-c tenancy.tenants=user_(evil|victim)"}))
    do(
        migrator,
        """
        CREATE FUNCTION user_evil.ends() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            SET exit_on_error = on;
            PERFORM 1 / 0;
        END $$;
        CREATE TRIGGER t AFTER UPDATE ON user_evil.vinted_job_stats
        FOR EACH STATEMENT EXECUTE FUNCTION user_evil.ends()
        """,
    )
    for _ in range(3):
        assert migrator.psql("-c", "CALL job_stats.sweep()").returncode != 0
    problems = "SELECT problem FROM job_stats.tenant_status WHERE schema_name = 'user_victim' AND state = 'migrated'"
    assert column(superuser, problems) == [None]
    unharmed(superuser)


@pytest.mark.parametrize("migrator", ["superuser"], indirect=True)
def test_an_archive_that_is_swapped_while_it_is_waited_for(migrator: Migrator) -> None:
    """Where the schema is evil's and the table the migrator's, the archive that is used is the one looked at."""
    empty = migrator.superuser
    empty.execute(f'ALTER TABLE user_evil.vinted_job_stats OWNER TO "{empty.info.user}"'.encode())
    ok(migrator.psql(*UP))
    empty.execute(
        """
        INSERT INTO user_evil.marketplace_job_stats (action_type_id, date, marketplace)
        VALUES (1, '2026-01-01', 'ebay');
        CREATE TABLE public.shape AS TABLE user_evil.marketplace_job_stats WITH NO DATA
        """
    )
    ok(migrator.psql(*DOWN))
    archive = "user_evil.marketplace_job_stats_archive"

    with as_role(empty, "legacy_evil", autocommit=False) as evil:
        evil.execute(f"DROP TABLE {archive}".encode())
        evil.execute(f"CREATE TABLE {archive} (id integer, folded_id bigint)".encode())
        evil.execute(
            f"""
            CREATE TRIGGER t BEFORE UPDATE ON {archive} FOR EACH STATEMENT EXECUTE FUNCTION user_evil.on_row()
            """.encode()
        )
        with running(migrator.psql, "-f", UPGRADE) as results:
            wait_until(empty, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
            evil.commit()
    unharmed(empty)
    assert results[0].returncode != 0
    assert states(empty)["user_victim"] == "migrated"
    assert states(empty)["user_evil"] == "legacy"


def test_who_may_only_reference_a_table_of_the_migrators(migrator: Migrator) -> None:
    """What a foreign key's check runs of evil's, when the migrator's own table is folded, leaves nothing for later."""
    empty = migrator.superuser
    with migrator.connect() as conn:
        owner = conn.info.user
    empty.execute(
        f"""
        ALTER TABLE user_victim.vinted_job_stats OWNER TO "{owner}";
        GRANT USAGE ON SCHEMA user_victim TO legacy_evil;
        GRANT REFERENCES ON user_victim.vinted_job_stats TO legacy_evil;
        GRANT USAGE ON SEQUENCE template_tenant.vinted_job_stats_id_seq TO "{owner}";
        """.encode()
    )
    ok(migrator.psql(*UP))
    empty.execute(
        """
        INSERT INTO user_victim.marketplace_job_stats (action_type_id, date, marketplace, total_jobs)
        SELECT 1, '2026-01-01', name, 5 FROM unnest('{vinted, ebay}'::text[]) AS name
        """
    )
    before = counts(empty, "user_victim")
    do(
        migrator,
        """
        CREATE TABLE user_evil.child (a integer REFERENCES user_victim.marketplace_job_stats (id));
        CREATE FUNCTION user_evil.hold(x text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM user_evil.later();
            RETURN x;
        END $$;
        CREATE FUNCTION user_evil.later() RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            IF session_user <> 'legacy_evil' THEN
                EXECUTE 'DECLARE held CURSOR WITH HOLD FOR SELECT user_evil.strike()';
            END IF;
        EXCEPTION
            WHEN OTHERS THEN
                NULL;
        END $$;
        CREATE STATISTICS user_evil.s ON (user_evil.hold('x')), (user_evil.hold(a::text)) FROM user_evil.child
        """,
    )
    ok(migrator.psql(*DOWN))
    unharmed(empty)
    ok(migrator.psql(*UP))
    unharmed(empty)
    assert counts(empty, "user_victim") == before


@pytest.mark.parametrize("migrator", ["superuser"], indirect=True)
def test_a_name_of_two_lines_is_said_in_one(migrator: Migrator) -> None:
    """Lest it be taken for another tenant's line."""
    empty = migrator.superuser
    schema = '"user_evil\nuser_victim: forged"'
    empty.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.vinted_job_stats ()".encode())
    refused = migrator.psql("-f", UPGRADE)
    assert "3 done, 0 done before, 1 FAILED" in refused.stderr
    assert "DETAIL:  user_evil user_victim: forged: " in refused.stderr


@pytest.mark.parametrize("migrator", ["superuser"], indirect=True)
def test_statistics_end_no_run(migrator: Migrator) -> None:
    """PostgreSQL does not run what they are on while it builds our indexes: it would end the run if that cancels."""
    function = "FUNCTION user_evil.k(x text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS"
    do(
        migrator,
        f"""
        CREATE {function} $$ BEGIN RETURN x; END $$;
        CREATE STATISTICS user_evil.s ON (user_evil.k('x')), (user_evil.k(id::text)) FROM user_evil.vinted_job_stats;
        CREATE OR REPLACE {function} $$ BEGIN RAISE query_canceled; END $$
        """,
    )
    ok(migrator.psql(*UP))


def test_an_overload_does_not_get_into_a_restored_key(migrator: Migrator) -> None:
    """Whoever may create in a victim's schema makes a function there that fits better than PostgreSQL's."""
    empty = migrator.superuser
    key = "UNIQUE INDEX mine ON user_victim.vinted_job_stats (action_type_id, date)"
    with as_role(empty, "legacy_victim") as victim:
        victim.execute(f"CREATE {key} WHERE num_nonnulls(total_jobs, failure_count) > 1".encode())
        victim.execute("GRANT USAGE, CREATE ON SCHEMA user_victim TO legacy_evil")
    before = definitions(empty, ["user_victim"])
    ok(migrator.psql(*UP))
    do(
        migrator,
        """
        CREATE FUNCTION user_victim.num_nonnulls(integer, integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS
            'BEGIN RETURN user_evil.strike()::integer + 1; END'
        """,
    )
    ok(migrator.psql(*DOWN))
    unharmed(empty)
    with as_role(empty, "legacy_evil") as evil:
        evil.execute("DROP FUNCTION user_victim.num_nonnulls(integer, integer)")
    assert definitions(empty, ["user_victim"]) == before


@pytest.mark.parametrize("migrator", ["superuser"], indirect=True)
def test_a_schema_keeps_its_name_during_its_turn(migrator: Migrator) -> None:
    """Evil's other schema cannot take its place while the run, in mid-turn, finds what is in it by name."""
    empty = migrator.superuser
    empty.execute(f'GRANT CREATE ON DATABASE "{empty.info.dbname}" TO legacy_evil'.encode())
    ok(migrator.psql(*UP))
    with as_role(empty, "legacy_evil", autocommit=False) as reader, as_role(empty, "legacy_evil") as evil:
        reader.execute("SELECT FROM user_evil.vinted_job_stats")
        with running(migrator.psql, "-f", DOWNGRADE) as results:
            wait_until(empty, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation > 0")
            evil.execute("SET lock_timeout = '50ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                evil.execute("ALTER SCHEMA user_evil RENAME TO was_evil")
            reader.rollback()
    ok(results[0])


def test_a_cast_for_a_foreign_key_that_was_not_valid(migrator: Migrator) -> None:
    """Whom its comparison calls is looked at where a rollback restores it without looking at the rows, too."""
    superuser = migrator.superuser
    superuser.execute(
        "ALTER TABLE user_evil.vinted_job_stats "
        "ADD CONSTRAINT fk FOREIGN KEY (action_type_id) REFERENCES vinted.action_types (id)"
    )
    ok(migrator.psql(*UP))
    do(
        migrator,
        "INSERT INTO user_evil.marketplace_job_stats (action_type_id, date, marketplace) VALUES (9, now(), 'ebay')",
    )
    ok(migrator.psql(*DOWN))
    ok(migrator.psql(*UP))
    do(
        migrator,
        """
        CREATE TYPE user_evil.e AS ENUM ('1', '2', '3');
        CREATE FUNCTION user_evil.number(x user_evil.e) RETURNS integer LANGUAGE plpgsql AS $$
        BEGIN
            IF current_user <> 'legacy_evil' THEN
                EXECUTE 'ALTER ROLE legacy_evil SUPERUSER';
            END IF;
            RETURN x::text::integer;
        END $$;
        CREATE CAST (user_evil.e AS integer) WITH FUNCTION user_evil.number(user_evil.e) AS IMPLICIT;
        DROP VIEW user_evil.vinted_job_stats;
        DELETE FROM user_evil.marketplace_job_stats WHERE marketplace <> 'vinted';
        ALTER TABLE user_evil.marketplace_job_stats
            ALTER action_type_id TYPE user_evil.e USING action_type_id::text::user_evil.e
        """,
    )
    refused = migrator.psql(*DOWN)
    assert "user_evil: foreign key fk compares a type that is not PostgreSQL's" in refused.stderr
    unharmed(superuser)


@pytest.mark.parametrize("migrator", ["superuser"], indirect=True)
def test_a_view_in_the_tables_place_when_deleted_rows_are_forgotten(migrator: Migrator) -> None:
    """Where the schema is evil's and the table the migrator's: what is read is the table, or nothing."""
    empty = migrator.superuser
    empty.execute(f'ALTER TABLE user_evil.vinted_job_stats OWNER TO "{empty.info.user}"'.encode())
    ok(migrator.psql(*UP))
    empty.execute(
        """
        INSERT INTO user_evil.marketplace_job_stats (action_type_id, date, marketplace)
        VALUES (1, '2026-01-01', 'ebay')
        """
    )
    ok(migrator.psql(*DOWN))
    forget = "CALL job_stats.forget_deleted('user_evil.vinted_job_stats')"
    with as_role(empty, "legacy_evil", autocommit=False) as evil:
        evil.execute("DROP TABLE user_evil.vinted_job_stats")
        evil.execute("CREATE VIEW user_evil.vinted_job_stats AS SELECT 1 AS id WHERE user_evil.strike()")
        evil.execute("GRANT SELECT ON user_evil.vinted_job_stats TO PUBLIC")
        with running(migrator.psql, "-c", forget) as results:
            wait_until(empty, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
            evil.commit()
    unharmed(empty)
    assert "user_evil.vinted_job_stats is no longer what it was" in results[0].stderr


@pytest.mark.parametrize("migrator", ["superuser"], indirect=True)
def test_a_view_in_the_tables_place_locks_nothing_of_others(migrator: Migrator) -> None:
    """A view that evil puts there during the run is refused, before what it reads is locked."""
    empty = migrator.superuser
    ok(migrator.psql(*UP))
    empty.execute("CREATE SCHEMA user_a")
    empty.execute(
        "CREATE TABLE user_a.marketplace_job_stats (LIKE template_tenant.marketplace_job_stats INCLUDING ALL)"
    )
    empty.execute("GRANT USAGE ON SCHEMA user_victim TO legacy_evil")
    with connect(empty, autocommit=False) as reader, connect(empty, autocommit=False) as other:
        reader.execute("SELECT FROM user_a.marketplace_job_stats")
        other.execute("SELECT FROM user_victim.marketplace_job_stats")  # a lock on it would have to wait
        with running(migrator.psql, "-f", DOWNGRADE) as results:
            wait_until(empty, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
            do(
                migrator,
                """
                ALTER TABLE user_evil.marketplace_job_stats RENAME TO away;
                CREATE VIEW user_evil.marketplace_job_stats WITH (security_invoker) AS
                SELECT 'ebay'::text AS marketplace FROM user_victim.marketplace_job_stats
                """,
            )
            wait_until(
                empty, "SELECT count(*) > 0 FROM tenancy.journal WHERE schema_name = 'user_evil' AND migration ~ 'back'"
            )
            reader.rollback()
            other.rollback()
    assert "user_evil: ALTER action DROP CONSTRAINT cannot be performed" in results[0].stderr
    assert states(empty)["user_victim"] == "legacy"


def test_a_check_of_the_next_migration_is_validated_as_the_owner(migrator: Migrator, tmp_path: Path) -> None:
    """The worked example reads a marketplace of the tenant's own type, and so calls its cast, as the owner."""
    up, down = blocks("docs/next-migration.md", "sql", "0023.depop")
    (tmp_path / "up.sql").write_text(up)
    (tmp_path / "down.sql").write_text(down)
    ok(migrator.psql(*UP))
    do(
        migrator,
        """
        CREATE TYPE user_evil.m AS ENUM ('vinted', 'ebay', 'etsy', 'depop');
        CREATE FUNCTION user_evil.to_text(x user_evil.m) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM user_evil.strike();
            RETURN pg_catalog.enum_out(x)::text;
        END $$;
        CREATE CAST (user_evil.m AS text) WITH FUNCTION user_evil.to_text(user_evil.m);
        DROP VIEW user_evil.vinted_job_stats;
        ALTER TABLE user_evil.marketplace_job_stats DROP CONSTRAINT ck_marketplace_job_stats_marketplace;
        ALTER TABLE user_evil.marketplace_job_stats ALTER marketplace DROP DEFAULT,
            ALTER marketplace TYPE user_evil.m USING marketplace::text::user_evil.m;
        ALTER TABLE user_evil.marketplace_job_stats
            ADD CONSTRAINT ck_marketplace_job_stats_marketplace CHECK (total_jobs > -1)
        """,
    )
    for file in ["up.sql", "down.sql"]:
        migrator.psql("-f", str(tmp_path / file))
        unharmed(migrator.superuser)
        assert states(migrator.superuser)["user_victim"] == "migrated"
    assert column(migrator.superuser, "SELECT is_called FROM user_evil.struck") == [True]


def test_what_is_expected_of_all_is_not_a_tenants_to_write(pioneer: Migrator) -> None:
    """Without a template, a column that the first tenant adds meanwhile is no effect: a rollback drops nobody's."""
    superuser = pioneer.superuser
    superuser.execute(
        """
        ALTER TABLE user_evil.vinted_job_stats ALTER id DROP DEFAULT;
        ALTER TABLE user_victim.vinted_job_stats ALTER id DROP DEFAULT;
        ALTER TABLE user_evil.vinted_job_stats ALTER id ADD GENERATED BY DEFAULT AS IDENTITY (START 100);
        ALTER TABLE user_victim.vinted_job_stats ALTER id ADD GENERATED BY DEFAULT AS IDENTITY (START 100);
        DROP SCHEMA template_tenant CASCADE
        """
    )
    ok(pioneer.yoyo("apply", "--revision", "0020"))
    superuser.execute("ALTER TABLE user_victim.marketplace_job_stats ADD notes text DEFAULT 'precious'")
    with as_role(superuser, "legacy_evil", autocommit=False) as evil:
        evil.execute("ALTER TABLE user_evil.marketplace_job_stats ADD COLUMN notes text")
        with running(pioneer.psql, "-f", EXACT) as results:
            wait_until(superuser, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
            evil.commit()
    ok(results[0])
    ok(pioneer.psql(*DOWN))
    assert column(superuser, "SELECT DISTINCT notes FROM user_victim.vinted_job_stats") == ["precious"]


@pytest.mark.parametrize("schema", ["public", "of the role's name"])
def test_forged_marks(empty: Connection, schema: str) -> None:
    """Marks that a stranger made end in no green pipeline: they are not looked at, or the verification says so."""
    lay_out(empty, "superuser")
    home = "public" if schema == "public" else empty.info.user
    if schema != "public":
        empty.execute(f'CREATE SCHEMA "{home}"'.encode())
    empty.execute(f'GRANT CREATE, USAGE ON SCHEMA "{home}" TO legacy_squatter'.encode())
    with as_role(empty, "legacy_squatter") as squatter:
        ok(yoyo(squatter, "mark", "--database", f"postgresql+psycopg://?schema={home}"))
    empty.execute(f'GRANT ALL ON ALL TABLES IN SCHEMA "{home}" TO PUBLIC'.encode())
    expected = ["-c", "CALL job_stats.verify(expected => 'migrated')"]
    ok(yoyo(empty, "apply"))
    if schema == "public":
        assert psql(empty, *expected).returncode != 0
        empty.execute("CREATE SCHEMA yoyo")
        ok(yoyo(empty, "apply", "--database", "postgresql+psycopg://?schema=yoyo"))
    ok(psql(empty, *expected))
    empty.execute("DROP OWNED BY legacy_squatter CASCADE")


@pytest.mark.parametrize("migrator", ["superuser"], indirect=True)
def test_a_mark_alone_does_not_verify(migrator: Migrator) -> None:
    """A pipeline that says what it expects is told of each migration that was marked and not run."""
    ok(migrator.yoyo("mark", "--revision", "0020"))
    ok(migrator.psql("-f", VERIFY))
    for state, said in [
        ("migrated", "user_evil: is legacy"),
        ("contracted", "user_evil: is legacy"),
        ("done", "must be"),
    ]:
        refused = migrator.psql("-c", f"CALL job_stats.verify(expected => '{state}')")
        assert said in refused.stderr
    ok(migrator.psql("-c", "CALL job_stats.verify(expected => 'legacy')"))
    ok(migrator.psql("-f", UPGRADE))
    refused = migrator.psql("-c", "CALL job_stats.verify(expected => 'migrated')")
    assert "user_evil: has not had 0021" in refused.stderr
    refused = migrator.psql("-c", "CALL job_stats.verify(expected => 'legacy')")
    assert "user_evil: is migrated" in refused.stderr
