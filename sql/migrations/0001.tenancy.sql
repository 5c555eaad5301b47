-- The schema tenancy: which schemas are tenants, and what is kept of the migrations that run in them.
--
-- Touches no tenant, and locks nothing that anybody uses. It knows nothing of any table of the tenants': 0002 to 0009
-- hold the routines, by which a migration of any table runs plain DDL in every tenant's schema. Undone by the rollback
-- file, which refuses while a rollback needs what is kept here.
--
-- Where Citus is, what 0001 to 0019 create stays on the coordinator.
--
-- All of this runs beside what tenants have made, and leaves no name for them to take: here, and in each routine, which
-- has its search_path pinned, names mean PostgreSQL's own or ours. SECURITY.md says why.
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS
DO $$
BEGIN
    IF coalesce(pg_catalog.current_schema(), '') OPERATOR(pg_catalog.<>) 'pg_catalog' THEN
        RAISE EXCEPTION 'this file is to be run in one transaction: by yoyo, or with psql --single-transaction';
    END IF;
END
$$;

CREATE SCHEMA tenancy;

-- What a tenant is: the one place to change.
CREATE VIEW tenancy.tenants AS
SELECT
    oid AS schema_oid,
    nspname AS schema_name
FROM pg_namespace
WHERE nspname = 'template_tenant' OR starts_with(nspname::text, 'user_');

-- Tenants that every run passes over, up and down: for a DBA to fill. By name, so that a renamed one is not forgotten.
CREATE TABLE tenancy.left_out (
    schema_name name CONSTRAINT pk_left_out PRIMARY KEY,
    reason text NOT NULL
);


---- A log, which may be pruned at any time ----

CREATE TABLE tenancy.runs (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_runs PRIMARY KEY,
    migration text NOT NULL,
    pid integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz, -- NULL while it runs, and for ever if it was killed
    to_do integer NOT NULL, -- tenants, when it started
    already_done integer NOT NULL, -- others
    turn name -- of a run that was killed, the tenant whose turn it was
);

-- The oid of the schema whose turn it is: a sequence, which is written at once, and leaves no dead rows.
CREATE SEQUENCE tenancy.turn;

-- A row per attempt at a tenant: if that is done, of the tenant's own transaction.
CREATE TABLE tenancy.journal (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_journal PRIMARY KEY,
    run_id bigint NOT NULL CONSTRAINT fk_journal_run_id REFERENCES tenancy.runs (id) ON DELETE CASCADE,
    migration text NOT NULL,
    schema_name name NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    milliseconds numeric NOT NULL,
    attempt integer NOT NULL,
    outcome text NOT NULL CONSTRAINT ck_journal_outcome CHECK (outcome IN ('done', 'rehearsed', 'locked', 'failed')),
    problem text -- NULL if there was none
);

CREATE INDEX ix_journal_schema_name ON tenancy.journal (schema_name);
CREATE INDEX ix_journal_run_id ON tenancy.journal (run_id);


---- State, which is not to be touched ----

-- These tables hold SQL that is run later, by whoever migrates: nobody but their owner may write them. It is kept here
-- and not in a setting, which a tenant's code could change. A table is known by its oid, which a rename, of it or of
-- its schema, leaves; and which pg_dump writes down as its name at that moment.
--
-- Of a table that is gone, pg_dump writes the bare number, which is another's oid where the dump is restored. So no key
-- with such a number is unique, or the restore could fail; and who reads these tables asks for more than the oid.

-- What a migration took away from a tenant's table: the scripts that give it back, then the names, run as a
-- migration's.
CREATE TABLE tenancy.undo (
    target regclass NOT NULL,
    migration text NOT NULL,
    script text NOT NULL DEFAULT '',
    renames text NOT NULL DEFAULT '',
    schema_name name NOT NULL -- the table's, when it was written
);

CREATE INDEX ix_undo_target ON tenancy.undo (target);
ALTER TABLE tenancy.undo REPLICA IDENTITY FULL; -- or, if it is published, it could not be changed

-- Sequences that were in use when they were to be renamed: the end of each run tries again.
CREATE TABLE tenancy.renames_left (
    sequence regclass NOT NULL,
    old_name name NOT NULL,
    new_name name NOT NULL
);

CREATE INDEX ix_renames_left_sequence ON tenancy.renames_left (sequence);
ALTER TABLE tenancy.renames_left REPLICA IDENTITY FULL;

-- The migrations that were begun for all tenants. Those that some have had, sweep() runs where they are not yet done.
CREATE TABLE tenancy.migrations (
    name text CONSTRAINT pk_migrations PRIMARY KEY,
    is_applied boolean NOT NULL, -- to a tenant at least; or none was concerned
    pending text NOT NULL,
    script text NOT NULL,
    lock_timeout_ms integer NOT NULL,
    attempts integer NOT NULL
);

-- What a migration has made of a table, and removed from it, as seen in the template: what is expected of each tenant.
CREATE TABLE tenancy.effects (
    migration text NOT NULL,
    table_name name NOT NULL,
    made text[] NOT NULL,
    removed text[] NOT NULL,
    CONSTRAINT pk_effects PRIMARY KEY (migration, table_name)
);


---- For the files after this one ----

-- Takes back what default privileges have granted in a schema of ours. Each file that creates something there ends so.
CREATE PROCEDURE tenancy.make_private(home regnamespace)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    receiver text;
BEGIN
    FOR receiver IN
        SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
        FROM pg_default_acl AS d
        CROSS JOIN aclexplode(d.defaclacl) AS a
        WHERE d.defaclrole = current_user::regrole AND d.defaclnamespace IN (0, home) AND a.grantee <> d.defaclrole
    LOOP
        EXECUTE format('REVOKE ALL ON SCHEMA %s FROM %s', home, receiver);
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA %s FROM %s', home, receiver);
        EXECUTE format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA %s FROM %s', home, receiver);
        IF receiver <> 'PUBLIC' THEN -- who may call routines by PostgreSQL's own default, but not use the schema
            EXECUTE format('REVOKE ALL ON ALL ROUTINES IN SCHEMA %s FROM %s', home, receiver);
        END IF;
    END LOOP;
END
$procedure$;

-- Raises while a migration is applied somewhere: each rollback of the files after this one begins so.
CREATE PROCEDURE tenancy.refuse_while_needed()
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    needed text[] := ARRAY(
        SELECT format('%s in %I', u.migration, n.nspname)
        FROM tenancy.undo AS u
        INNER JOIN pg_class AS c ON u.target = c.oid
        INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
        WHERE u.schema_name = n.nspname OR EXISTS (
            SELECT FROM tenancy.effects AS e WHERE e.migration = u.migration AND e.table_name = c.relname
        )
        UNION
        SELECT m.name FROM tenancy.migrations AS m
        UNION
        SELECT format('%s is still to be called %I', c.oid::regclass, l.new_name)
        FROM tenancy.renames_left AS l
        INNER JOIN pg_class AS c ON l.sequence = c.oid AND l.old_name = c.relname
        ORDER BY 1
    );
BEGIN
    IF needed <> '{}' THEN
        RAISE EXCEPTION 'migrations are still applied: %', array_to_string(
            needed[1:50] || CASE WHEN cardinality(needed) > 50 THEN format('... (%s)', cardinality(needed)) END, ', '
        )
        USING HINT = 'Roll them back first; with psql -f and the rollback file, if yoyo has no mark of it.';
    END IF;
END
$procedure$;

CALL tenancy.make_private('tenancy');
