-- Runs plain DDL in every tenant. A migration is one CALL of tenancy.for_each_tenant that holds the DDL for one tenant.
--
-- What it promises:
--   * One transaction per tenant: a tenant is wholly before or wholly after. An error in one leaves the others done.
--   * template_tenant first. It is the canary: an error there stops the run. And because a clone in the making
--     (CREATE TABLE ... LIKE) locks the template until it commits, no clone of the old template is overlooked.
--   * A tenant that is locked is put off, and tried again with more patience when the others are done.
--   * One row at the end, or an error that names each tenant left, why, and what to do. The same command run again
--     does what is left, and touches no tenant that is done.
--   * One run at a time: one that has not ended, and whose process lives, refuses another.
--
-- depends: 0003.effects

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- Keeps a schema's name what it is, to the end of the transaction, by a grant that changes nothing: no lock does. A
-- schema that took its place would be taken for it by the next statement that finds something in it by name. Only where
-- somebody could rename one, who must be allowed to create in the database: it costs as much as the migration itself.
CREATE OR REPLACE PROCEDURE tenancy.pin(tenant name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
BEGIN
    IF EXISTS (
        SELECT FROM pg_database AS d
        CROSS JOIN aclexplode(d.datacl) AS a
        WHERE
            d.datname = current_database()
            AND a.privilege_type = 'CREATE'
            AND a.grantee NOT IN (SELECT r.oid FROM pg_roles AS r WHERE r.rolsuper OR r.rolname = current_user)
            AND a.grantee <> d.datdba
    ) AND NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN -- which would grant it on all workers
        EXECUTE (
            SELECT format(
                CASE
                    WHEN has_schema_privilege(n.nspowner, n.oid, 'USAGE') THEN 'GRANT USAGE ON SCHEMA %I TO %s'
                    ELSE 'REVOKE USAGE ON SCHEMA %I FROM %s'
                END, n.nspname, n.nspowner::regrole
            )
            FROM pg_namespace AS n
            WHERE n.nspname = tenant
        );
    END IF;
END
$procedure$;

-- Runs a script whose unqualified names are the tenant's. As one statement: Citus refuses more than one in an EXECUTE.
-- The settings are those under which undo scripts are written.
CREATE OR REPLACE PROCEDURE tenancy.run_script(tenant name, script text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
SET standard_conforming_strings = on
SET default_tablespace = ''
SET max_parallel_maintenance_workers = 0 -- else an index build is planned, and expressions of statistics are run
AS $procedure$
DECLARE
    block constant text := 'DO ' || quote_literal('BEGIN ' || script || E'\nEND');
BEGIN
    IF NOT has_schema_privilege(tenant, 'USAGE') THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied for schema ' || tenant;
    END IF;
    CALL tenancy.pin(tenant);
    PERFORM set_config('search_path', quote_ident(tenant) || ', pg_temp', true);
    EXECUTE block;
END
$procedure$;

-- Adds to what undoes, for one table, the migration that is being run.
CREATE OR REPLACE PROCEDURE tenancy.remember(target regclass, script text DEFAULT '', renames text DEFAULT '')
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
BEGIN
    MERGE INTO tenancy.undo AS u
    USING (
        SELECT r.migration, n.nspname
        FROM tenancy.runs AS r
        INNER JOIN pg_class AS c ON c.oid = target
        INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
        WHERE r.pid = pg_backend_pid() AND r.finished_at IS NULL
        ORDER BY r.id DESC
        LIMIT 1
    ) AS w ON u.target = remember.target AND u.migration = w.migration AND u.schema_name = w.nspname
    WHEN MATCHED THEN UPDATE SET
        script = concat_ws(E'\n', u.script, remember.script),
        renames = concat_ws(E'\n', u.renames, remember.renames)
    WHEN NOT MATCHED THEN INSERT (target, migration, script, renames, schema_name)
        VALUES (remember.target, w.migration, remember.script, remember.renames, w.nspname);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'only a script of tenancy.for_each_tenant may drop what its rollback is to restore';
    END IF;
END
$procedure$;

-- Runs a script in one tenant, and says how it ended: with is_done, the transaction is to be committed, otherwise rolled
-- back. The outcome is NULL if the tenant has been dropped.
CREATE OR REPLACE PROCEDURE tenancy.run_in_tenant(
    run_id bigint, migration text, tenant name, script text, attempt integer, lock_timeout_ms integer,
    INOUT is_done boolean, INOUT outcome text, INOUT problem text, INOUT milliseconds numeric
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    start constant timestamptz := clock_timestamp();
    context text;
    before jsonb;
BEGIN
    CALL tenancy.begin_step();
    PERFORM setval('tenancy.turn', to_regnamespace(quote_ident(tenant))::oid::bigint); -- in case it ends the session
    IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        SET LOCAL synchronous_commit = off; -- the next synchronous commit, such as yoyo's mark, flushes all
        SET LOCAL plan_cache_mode = force_generic_plan; -- the helpers' queries are planned once, not in each tenant
    END IF;
    SET LOCAL row_security = off; -- an error rather than rows unseen
    SET LOCAL citus.propagate_set_commands = 'local';
    EXECUTE format('SET LOCAL lock_timeout = %s', attempt * lock_timeout_ms);
    IF has_parameter_privilege('deadlock_timeout', 'SET') THEN
        SET LOCAL deadlock_timeout = '10ms'; -- the victim of a deadlock is to be this run, not old code
    END IF;
    is_done := NOT tenancy.is_rehearsal();
    outcome := CASE WHEN is_done THEN 'done' ELSE 'rehearsed' END;
    problem := NULL;
    BEGIN
        IF tenancy.is_to_be_noted(run_id, migration, tenant) THEN
            CALL tenancy.note_before(tenant, before);
        END IF;
        CALL tenancy.run_script(tenant, script);
        IF before IS NOT NULL THEN
            CALL tenancy.note_effects(migration, tenant, before);
        END IF;
        SET LOCAL lock_timeout = 0; -- of Citus' workers, too: here, one that is lost is an error of this tenant
    EXCEPTION -- on Citus: inside no other such block; and so the helpers have none there
        WHEN assert_failure OR OTHERS THEN
            is_done := false;
            IF to_regnamespace(quote_ident(tenant)) IS NULL THEN
                outcome := NULL;
            ELSIF SQLSTATE IN ('55P03', '40P01') THEN -- lock_not_available, deadlock_detected
                outcome := 'locked';
                problem := 'locked by ' || tenancy.lock_holders(tenant);
            ELSE
                outcome := 'failed';
                GET STACKED DIAGNOSTICS problem = PG_EXCEPTION_DETAIL, context = PG_EXCEPTION_CONTEXT;
                -- In one line, and not too long: a tenant's code may have written it.
                problem := concat_ws(
                    ' ',
                    regexp_replace(left(SQLERRM, 1000), '[[:cntrl:]]+', ' ', 'g'),
                    nullif(regexp_replace(left(problem, 1000), '[[:cntrl:]]+', ' ', 'g'), ''),
                    -- Whose code has failed, such as an event trigger's, unless it has said so itself.
                    '(in ' || substring(
                        split_part(left(context, 2000), 'PL/pgSQL function inline_code_block', 1)
                        FROM '^(?:SQL statement "[^\n]*\n)?((?:PL/\S*|SQL) function (?!"?tenancy"?\.|[^\n]*RAISE)[^\n]+)'
                    ) || ')',
                    CASE SQLSTATE WHEN '42501' THEN format('(as role %I: docs/grants.sql)', current_user) END
                );
            END IF;
    END;
    PERFORM pg_advisory_unlock_all(); -- what a tenant's code has taken would outlive its transaction
    milliseconds := round((extract(epoch FROM clock_timestamp() - start) * 1000)::numeric, 1);
END
$procedure$;

-- One run through the tenants, which does what for_each_tenant() promises but for the report. Adds its id to runs, and
-- who has failed to failures.
--
-- A procedure that commits cannot pin its search_path. So those that do name no operator, nor function, nor type that
-- their caller's path could lead astray.
CREATE OR REPLACE PROCEDURE tenancy.run_in_each_tenant(
    migration text, pending text, run text, lock_timeout_ms integer, attempts integer,
    INOUT runs bigint [], INOUT failures text []
)
LANGUAGE plpgsql
AS $procedure$
DECLARE
    this_run bigint;
    queue pg_catalog.name[];
    tenant pg_catalog.name;
    attempt integer := 1;
    is_done boolean;
    outcome pg_catalog.text;
    problem pg_catalog.text;
    milliseconds numeric;
BEGIN
    COMMIT; -- in a transaction block this fails here, not after the first tenant
    CALL tenancy.start_run(migration, pending, run, lock_timeout_ms, attempts, this_run);
    COMMIT;
    LOOP
        CALL tenancy.next_pass(this_run, pending, lock_timeout_ms, attempts, attempt, queue);
        EXIT WHEN queue IS NULL;
        FOREACH tenant IN ARRAY queue LOOP
            CALL tenancy.run_in_tenant(
                this_run, migration, tenant, run, attempt, lock_timeout_ms, is_done, outcome, problem, milliseconds
            );
            IF NOT is_done THEN
                ROLLBACK; -- with a worker of Citus lost, the transaction cannot even write the journal
                CALL tenancy.begin_step();
                SET LOCAL synchronous_commit = off;
            END IF;
            IF outcome IS NOT NULL THEN
                INSERT INTO tenancy.journal (run_id, migration, schema_name, milliseconds, attempt, outcome, problem)
                VALUES (this_run, migration, tenant, milliseconds, attempt, outcome, problem);
            END IF;
            COMMIT;
        END LOOP;
    END LOOP;
    CALL tenancy.rename_left_over(lock_timeout_ms);
    CALL tenancy.finish_run(this_run, migration, pending, failures);
    COMMIT;
    runs := pg_catalog.array_append(runs, this_run);
END
$procedure$;

-- Runs a script, whose unqualified names are the tenant's, in each tenant where it is pending, until there is none.
-- pending is a query of two columns: the oids of the schemas that the migration concerns, and whether it is to be run
-- there (true) or was before (false). Attempt n at a locked tenant waits up to n * lock_timeout_ms for each lock; after
-- a pause of n * 3 * lock_timeout_ms, attempt n + 1 follows.
--
-- Settings, for rehearsals and canaries (psql -c 'SET tenancy.dry_run = on' -f FILE):
--   tenancy.dry_run        on: the script is run in each tenant and rolled back
--   tenancy.tenants        a regular expression: only tenants whose whole name matches
--   tenancy.give_up_after  an interval, after which tenants that are locked are left
-- The first two leave tenants to do. Lest yoyo mark that as applied, only psql gets the row: others an error.
--
-- Returns the migration; how many tenants were done (or rehearsed), were done before, failed; the most milliseconds
-- that one took, which no lock outlasts; and the seconds of the whole.
CREATE OR REPLACE PROCEDURE tenancy.for_each_tenant(
    INOUT migration text,
    pending text,
    run text,
    lock_timeout_ms integer,
    attempts integer,
    INOUT done integer DEFAULT 0, INOUT already_done integer DEFAULT 0, INOUT failed integer DEFAULT 0,
    INOUT slowest_ms numeric DEFAULT 0, INOUT seconds numeric DEFAULT 0
)
LANGUAGE plpgsql
AS $procedure$
DECLARE
    runs bigint[] := '{}';
    failures pg_catalog.text[] := '{}';
BEGIN
    CALL tenancy.run_in_each_tenant(migration, pending, run, lock_timeout_ms, attempts, runs, failures);
    CALL tenancy.report_runs(runs, migration, failures, done, already_done, failed, slowest_ms, seconds);
END
$procedure$;

-- The next migration to sweep, of those that are applied; NULL after the last. One whose latest run was killed is taken
-- after all others: a tenant that ends the session there keeps nobody from these.
CREATE OR REPLACE PROCEDURE tenancy.next_migration(
    swept text [],
    INOUT name text, INOUT pending text, INOUT script text, INOUT lock_timeout_ms integer, INOUT attempts integer
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
BEGIN
    SELECT m.name, m.pending, m.script, m.lock_timeout_ms, m.attempts
    INTO name, pending, script, lock_timeout_ms, attempts
    FROM tenancy.migrations AS m
    WHERE m.is_applied AND m.name <> ALL (swept)
    ORDER BY
        (SELECT r.finished_at FROM tenancy.runs AS r WHERE r.migration = m.name ORDER BY r.id DESC LIMIT 1) IS NULL,
        m.name COLLATE "C"
    LIMIT 1;
END
$procedure$;

-- Runs each migration that is applied to all tenants where it is pending: in tenants that were restored from an old
-- backup, or that had to be left. Those that fail keep no other from being done, and are named at the end, as are those
-- of the runs that came before. Returns how many times it had something to do.
CREATE OR REPLACE PROCEDURE tenancy.sweep(
    INOUT done integer DEFAULT 0, runs bigint [] DEFAULT '{}', failures text [] DEFAULT '{}'
)
LANGUAGE plpgsql
AS $procedure$
DECLARE
    swept pg_catalog.text[] := '{}';
    migration pg_catalog.text;
    pending pg_catalog.text;
    script pg_catalog.text;
    lock_timeout_ms integer;
    attempts integer;
    already_done integer;
    failed integer;
    slowest_ms numeric;
    seconds numeric;
BEGIN
    LOOP
        CALL tenancy.next_migration(swept, migration, pending, script, lock_timeout_ms, attempts);
        EXIT WHEN migration IS NULL;
        CALL tenancy.run_in_each_tenant(migration, pending, script, lock_timeout_ms, attempts, runs, failures);
        swept := pg_catalog.array_append(swept, migration);
    END LOOP;
    CALL tenancy.report_runs(runs, 'sweep', failures, done, already_done, failed, slowest_ms, seconds);
END
$procedure$;

CALL tenancy.make_private('tenancy');
