"""Two tenants that do not trust each other, what one of them does to harm the other, and who migrates both."""

from dataclasses import dataclass

from tests.deploy import ROOT, Result, connect, psql, yoyo
from tests.tenants import Connection, column, ok

ROLES = """
DO $$
DECLARE
    role name;
    undo text;
BEGIN
    FOREACH role IN ARRAY '{legacy_evil, legacy_victim, legacy_squatter, legacy_platform, legacy_keeper,
        legacy_backend, legacy_colreader, legacy_member}'::name[] LOOP
        IF to_regrole(role::text) IS NULL THEN
            EXECUTE format('CREATE ROLE %I LOGIN', role);
        END IF;
        EXECUTE format('ALTER ROLE %I NOSUPERUSER INHERIT PASSWORD %L', role, role);
        FOR undo IN -- what another test has left: roles are the server's, not the database's
            SELECT format('REVOKE %s FROM %s', m.roleid::regrole, m.member::regrole)
            FROM pg_auth_members AS m
            WHERE m.member = to_regrole(role::text)
        LOOP
            EXECUTE undo;
        END LOOP;
    END LOOP;
END
$$;
"""

TENANTS = """
CREATE SCHEMA vinted;
CREATE TABLE vinted.action_types (id integer PRIMARY KEY, name text NOT NULL UNIQUE);
INSERT INTO vinted.action_types VALUES (1, 'like'), (2, 'follow'), (3, 'message');
CREATE SCHEMA template_tenant;
CREATE TABLE template_tenant.vinted_job_stats (
    id serial PRIMARY KEY, action_type_id integer NOT NULL, date date NOT NULL,
    total_jobs integer NOT NULL DEFAULT 0, success_count integer NOT NULL DEFAULT 0,
    failure_count integer NOT NULL DEFAULT 0, avg_duration_ms integer, created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_vinted_job_stats_action_date UNIQUE (action_type_id, date),
    CONSTRAINT fk_vinted_job_stats_action_type_id FOREIGN KEY (action_type_id) REFERENCES vinted.action_types (id)
);
DO $$
DECLARE
    tenant name;
BEGIN
    FOREACH tenant IN ARRAY '{evil, victim}'::name[] LOOP
        EXECUTE format(
            'CREATE SCHEMA user_%1$s AUTHORIZATION legacy_%1$s;
            GRANT USAGE ON SCHEMA template_tenant TO legacy_%1$s;
            GRANT USAGE ON SEQUENCE template_tenant.vinted_job_stats_id_seq TO legacy_%1$s;
            CREATE TABLE user_%1$s.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);
            INSERT INTO user_%1$s.vinted_job_stats (action_type_id, date, total_jobs, success_count, avg_duration_ms)
            SELECT a, current_date - d, 10, 10, 100 FROM generate_series(1, 3) AS a, generate_series(0, 4) AS d;
            ALTER TABLE user_%1$s.vinted_job_stats OWNER TO legacy_%1$s', tenant
        );
    END LOOP;
END
$$;

-- What the evil tenant's code does wherever it is called. A sequence counts even what is rolled back: `struck` how
-- often it was called, `escaped` what it could do that its owner may not.
GRANT USAGE ON SCHEMA user_evil TO PUBLIC;
SET ROLE legacy_evil;
CREATE SEQUENCE user_evil.struck;
CREATE SEQUENCE user_evil.escaped;
GRANT USAGE ON SEQUENCE user_evil.struck, user_evil.escaped TO PUBLIC;
CREATE TABLE user_evil.later (id integer);
CREATE FUNCTION user_evil.strike() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    attempt text;
BEGIN
    PERFORM nextval('user_evil.struck');
    IF session_user = 'legacy_evil' THEN
        RETURN true; -- it may do in its own session what it may not do in another's
    ELSIF current_user <> 'legacy_evil' THEN
        PERFORM nextval('user_evil.escaped');
    END IF;
    FOREACH attempt IN ARRAY ARRAY[
        'RESET ROLE',
        'SET ROLE legacy_victim',
        'RESET SESSION AUTHORIZATION',
        'ALTER ROLE legacy_evil SUPERUSER',
        'CREATE TEMPORARY TABLE marketplace_job_stats AS SELECT 1',
        'DECLARE held CURSOR WITH HOLD FOR SELECT user_evil.strike()',
        'PREPARE later AS SELECT user_evil.strike()',
        'SET CONSTRAINTS ALL DEFERRED; INSERT INTO user_evil.later VALUES (1)',
        'UPDATE user_victim.vinted_job_stats SET total_jobs = 0',
        'UPDATE user_victim.marketplace_job_stats SET total_jobs = 0',
        'DELETE FROM user_victim.marketplace_job_stats_archive',
        'SELECT count(*) FROM user_victim.vinted_job_stats',
        'SELECT count(*) FROM user_victim.marketplace_job_stats',
        'INSERT INTO tenancy.undo VALUES (''user_victim.vinted_job_stats'', ''0020'', '''', '''', ''user_victim'')',
        'UPDATE tenancy.undo SET script = ''ALTER ROLE legacy_evil SUPERUSER;''',
        'CREATE FUNCTION job_stats.fold_rows(integer) RETURNS integer LANGUAGE sql AS ''SELECT 1'''
    ] LOOP
        BEGIN
            EXECUTE attempt;
            IF attempt NOT LIKE 'RESET%' OR current_user <> 'legacy_evil' THEN
                PERFORM pg_catalog.nextval('user_evil.escaped');
                RAISE WARNING 'as %: %', current_user, attempt;
            END IF;
        EXCEPTION
            WHEN OTHERS THEN NULL;
        END;
    END LOOP;
    PERFORM set_config('job_stats.undo', 'ALTER ROLE legacy_evil SUPERUSER;', false);
    PERFORM set_config('search_path', 'user_evil', false);
    PERFORM set_config('session_replication_role', 'replica', false);
    RETURN true;
EXCEPTION
    WHEN insufficient_privilege THEN RETURN true;
END
$$;
CREATE FUNCTION user_evil.on_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM user_evil.strike();
    RETURN coalesce(NEW, OLD);
END
$$;
CREATE FUNCTION user_evil.is_fine(x integer) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
    RETURN user_evil.strike();
END
$$;
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON user_evil.later DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION user_evil.on_row();
RESET ROLE;
"""

OWNED = "SELECT rolname FROM pg_roles WHERE rolsuper AND rolname ~ '^legacy_'"


@dataclass(frozen=True)
class Migrator:
    """Who migrates the two tenants, and how it runs yoyo and psql."""

    name: str
    superuser: Connection

    def connect(self) -> Connection:
        """Open a connection of the migrator's own."""
        return as_role(self.superuser, "legacy_member") if self.name == "member" else connect(self.superuser)

    def yoyo(self, *argv: str) -> Result:
        """Run yoyo; the member's has a schema of its own for its tables."""
        with self.connect() as conn:
            database = ["--database", "postgresql+psycopg://?schema=yoyo"] if self.name == "member" else []
            return yoyo(conn, *argv[:1], *database, *argv[1:])

    def psql(self, *args: str, env: dict[str, str] | None = None) -> Result:
        """Run psql."""
        with self.connect() as conn:
            return psql(conn, *args, env=env)


def as_role(conn: Connection, role: str, **options: object) -> Connection:
    """Open another connection, in autocommit, that has logged in as one of the roles above."""
    return connect(conn, user=role, password=role, **options)


def lay_out(conn: Connection, migrator: str) -> Migrator:
    """Make the tenants, and what the migrator needs: a superuser nothing, a member of their owners docs/grants.sql."""
    conn.execute(f"{ROLES}{TENANTS}".encode())
    if migrator == "member":
        conn.execute("ALTER SCHEMA template_tenant OWNER TO legacy_platform")
        conn.execute("ALTER TABLE template_tenant.vinted_job_stats OWNER TO legacy_platform")
        ok(psql(conn, "-v", "migrator=legacy_member", "-f", str(ROOT / "docs/grants.sql")))
    return Migrator(migrator, conn)


def take_over(conn: Connection, migrator: str) -> Migrator:
    """The same in a copy of such a database: roles are not copied with it, nor are rights on it."""
    conn.execute(ROLES.encode())
    if migrator == "member":
        conn.execute("GRANT legacy_evil, legacy_platform, legacy_victim TO legacy_member")
        conn.execute(f'GRANT CREATE ON DATABASE "{conn.info.dbname}" TO legacy_member'.encode())
    return Migrator(migrator, conn)


def counts(conn: Connection, tenant: str) -> list[tuple[object, ...]]:
    """What a harmless tenant has counted, in total, whatever its table is called."""
    (table,) = column(
        conn,
        """
        SELECT oid::regclass::text FROM pg_class
        WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r' AND relname ~ '^(vinted|marketplace)_job_stats$'
        """,
        tenant,
    )
    totals = "count(*), sum(total_jobs), sum(success_count), sum(failure_count), sum(avg_duration_ms)"
    return conn.execute(f"SELECT {totals} FROM {table}".encode()).fetchall()


def unharmed(conn: Connection) -> None:
    """No role of the tenants' has become superuser, and no code of theirs could do what its owner may not."""
    assert column(conn, OWNED) == []
    assert column(conn, "SELECT is_called FROM user_evil.escaped") == [False]


def each_day_on_ebay(conn: Connection, *tenants: str) -> None:
    """Have jobs on eBay counted by the tenants' owners, so that a rollback has something to fold."""
    for tenant in tenants:
        with as_role(conn, tenant.replace("user_", "legacy_")) as owner:
            owner.execute(
                f"""
                INSERT INTO {tenant}.marketplace_job_stats
                    (action_type_id, date, marketplace, total_jobs, success_count)
                SELECT action_type_id, date, 'ebay', 5, 5
                FROM {tenant}.marketplace_job_stats
                WHERE marketplace = 'vinted'
                """.encode()
            )
