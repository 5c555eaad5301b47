-- The tenant toolkit: schema job_stats, by which a migration runs plain DDL in every tenant's schema.
--
-- Touches no tenant, and locks nothing that anybody uses. Undone by the rollback file, which refuses while a tenant is
-- migrated.
--
-- A migration is one CALL of job_stats.for_each_tenant that holds the DDL for one tenant. What it promises:
--   * One transaction per tenant: a tenant is wholly before or wholly after. An error in one leaves the others done.
--   * template_tenant first. It is the canary: an error there stops the run. And because a clone in the making
--     (CREATE TABLE ... LIKE) locks the template until it commits, no clone of the old template is overlooked.
--   * A tenant that is locked is put off, and tried again with more patience when the others are done.
--   * One row at the end, or an error that names each tenant left, why, and what to do. The same command run again
--     does what is left, and touches no tenant that is done.
--   * One runner at a time, by an advisory lock that its session holds.

-- All of this runs beside what tenants have made, and leaves no name for them to take: here, and in each routine, which
-- has its search_path pinned, names mean PostgreSQL's own or ours. Rows of tenants are touched by as_owner() only.
-- SECURITY.md says why.
SET LOCAL search_path = pg_catalog, pg_temp;
DO $$
BEGIN
    IF pg_catalog.current_setting('search_path') OPERATOR(pg_catalog.<>) 'pg_catalog, pg_temp' THEN
        RAISE EXCEPTION 'this file is to be run in one transaction: by yoyo, or with psql --single-transaction';
    END IF;
END
$$;

-- It is no tenant's: where Citus makes each new schema a distributed one, this one stays on the coordinator.
SET LOCAL citus.enable_schema_based_sharding = off; -- noqa: PRS
CREATE SCHEMA job_stats;

-- What a tenant is: the one place to change.
CREATE VIEW job_stats.tenants AS
SELECT
    oid AS schema_oid,
    nspname AS schema_name
FROM pg_namespace
WHERE nspname = 'template_tenant' OR starts_with(nspname::text, 'user_');


---- Journal and progress ----

CREATE TABLE job_stats.runs (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_runs PRIMARY KEY,
    migration text NOT NULL,
    pid integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz, -- NULL while it runs, and for ever if it was killed
    to_do integer NOT NULL -- tenants, when it started
);

-- A row per attempt at a tenant, written in the tenant's own transaction.
CREATE TABLE job_stats.journal (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_journal PRIMARY KEY,
    run_id bigint NOT NULL CONSTRAINT fk_journal_run_id REFERENCES job_stats.runs (id),
    migration text NOT NULL,
    schema_name name NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    milliseconds numeric NOT NULL,
    attempt integer NOT NULL,
    outcome text NOT NULL CONSTRAINT ck_journal_outcome CHECK (outcome IN ('done', 'rehearsed', 'locked', 'failed')),
    problem text -- NULL if there was none
);

CREATE INDEX ix_journal_schema_name ON job_stats.journal (schema_name);
CREATE INDEX ix_journal_run_id ON job_stats.journal (run_id);

-- What migrations have dropped from a table: the SQL that restores it, name for name. It is run as whoever rolls back, so
-- nobody but the toolkit's owner may write it: it is kept here, not in a setting, which a tenant's code could change.
CREATE TABLE job_stats.dropped (
    target regclass NOT NULL,
    migration text NOT NULL,
    restore text NOT NULL,
    CONSTRAINT pk_dropped PRIMARY KEY (target, migration)
);

-- The archives that fold_marketplaces() made: what else has their name is not believed.
CREATE TABLE job_stats.archives (archive regclass CONSTRAINT pk_archives PRIMARY KEY);

-- The runs, newest first, to watch from another session while one goes on.
CREATE VIEW job_stats.progress AS
SELECT
    r.id AS run_id,
    r.migration,
    CASE
        WHEN r.finished_at IS NOT NULL THEN 'ended'
        WHEN r.pid IN (SELECT l.pid FROM pg_locks AS l WHERE l.locktype = 'advisory') THEN 'running'
        ELSE 'killed'
    END AS state,
    j.done,
    greatest(r.to_do - j.done - j.failed, 0) AS still_to_do,
    j.failed,
    j.locked,
    round(j.done / nullif(extract(epoch FROM j.last_at - r.started_at), 0), 1) AS done_per_second
FROM job_stats.runs AS r
CROSS JOIN LATERAL (
    SELECT
        count(*) FILTER (WHERE t.outcome IN ('done', 'rehearsed')) AS done,
        count(*) FILTER (WHERE t.outcome = 'failed') AS failed,
        count(*) FILTER (WHERE t.outcome = 'locked') AS locked,
        max(t.finished_at) AS last_at
    FROM (
        SELECT DISTINCT ON (schema_name) * FROM job_stats.journal WHERE run_id = r.id ORDER BY schema_name, id DESC
    ) AS t
) AS j
ORDER BY r.id DESC;


---- Running a script in each tenant ----

-- Who holds what the DDL for a tenant may wait for: locks on its statistics, and on what its foreign keys point at.
CREATE FUNCTION job_stats.lock_holders(tenant name)
RETURNS text
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT coalesce(string_agg(DISTINCT format(
        'pid %s (%s, in a transaction since %s)',
        coalesce(l.pid::text, 'none'),
        coalesce(nullif(a.application_name, ''), a.usename, a.backend_type, 'a prepared transaction'),
        coalesce(a.xact_start::timestamptz(0)::text, 'a time that is hidden')
    ), ', '), 'a transaction that has ended')
    FROM pg_locks AS l
    LEFT JOIN pg_stat_activity AS a ON l.pid = a.pid
    WHERE
        l.granted
        AND l.pid IS DISTINCT FROM pg_backend_pid()
        AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
        AND l.relation IN (
            SELECT c.oid FROM pg_class AS c
            WHERE c.relnamespace = to_regnamespace(quote_ident(tenant)) AND c.relname LIKE '%job_stats%'
            UNION ALL
            SELECT f.confrelid FROM pg_constraint AS f
            WHERE f.connamespace = to_regnamespace(quote_ident(tenant)) AND f.contype = 'f'
        );
$function$;

-- The tenants that are still to be tried in a run: those among the schemas that the query pending returns (their oids)
-- whose whole name matches job_stats.tenants, template_tenant first. NULL if there are none.
CREATE FUNCTION job_stats.tenants_to_try(run_id bigint, pending text)
RETURNS name[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    found name[];
BEGIN
    -- IS TRUE makes the IN a lookup in a hash table. As a join it may be planned as all schemas times all their tables.
    EXECUTE format(
        'SELECT array_agg(schema_name ORDER BY schema_name <> ''template_tenant'', schema_name)
        FROM job_stats.tenants
        WHERE
            schema_name ~ %L
            AND (schema_oid IN (%s)) IS TRUE
            AND schema_name NOT IN (SELECT schema_name FROM job_stats.journal WHERE run_id = $1 AND outcome <> ''locked'')',
        job_stats.canary(), pending
    ) INTO found USING run_id;
    RETURN found;
END
$function$;

-- Which tenants a run is limited to, by a regular expression for their whole name: the setting job_stats.tenants.
CREATE FUNCTION job_stats.canary()
RETURNS text
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT '^(' || coalesce(nullif(current_setting('job_stats.tenants', true), ''), '.*') || ')$';
$function$;

-- Whether scripts are only tried, and rolled back: the setting job_stats.dry_run.
CREATE FUNCTION job_stats.is_rehearsal()
RETURNS boolean
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT coalesce(nullif(current_setting('job_stats.dry_run', true), '')::boolean, false);
$function$;

-- Begins a run, or refuses to: one runner at a time.
CREATE PROCEDURE job_stats.start_run(migration text, pending text, INOUT run_id bigint, INOUT already_done integer)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    to_do integer;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN -- else a script overlooks what it waited for
        RAISE EXCEPTION 'the isolation level must be read committed, not %', current_setting('transaction_isolation')
        USING HINT = $$PGOPTIONS='-c default_transaction_isolation=read\ committed'$$;
    END IF;
    IF NOT pg_try_advisory_lock('pg_namespace'::regclass::integer, 'job_stats'::regnamespace::integer) THEN
        RAISE EXCEPTION 'the tenants are being migrated already, by pid %', (
            SELECT l.pid
            FROM pg_locks AS l
            INNER JOIN pg_database AS d ON l.database = d.oid
            WHERE
                (l.classid, l.objid) = ('pg_namespace'::regclass, 'job_stats'::regnamespace)
                AND l.locktype = 'advisory'
                AND l.granted
                AND d.datname = current_database()
        )
        USING HINT = 'It goes on even if its client died. Wait for its end, or pg_terminate_backend(pid); then repeat.';
    END IF;
    IF NOT EXISTS (SELECT FROM job_stats.tenants AS t WHERE t.schema_name ~ job_stats.canary())
        AND current_setting('job_stats.tenants', true) <> '' THEN
        RAISE EXCEPTION 'no tenant matches %', job_stats.canary()
        USING HINT = 'See job_stats.tenants: the setting, and the view.';
    END IF;

    -- Of tables that are gone: their oid may be another's one day.
    DELETE FROM job_stats.dropped AS d WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = d.target);
    DELETE FROM job_stats.archives AS a WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = a.archive);

    to_do := coalesce(cardinality(job_stats.tenants_to_try(0, pending)), 0);
    INSERT INTO job_stats.runs AS r (migration, pid, to_do)
    VALUES (migration, pg_backend_pid(), to_do)
    RETURNING r.id INTO run_id;
    already_done := greatest(count(*) - to_do, 0)
        FROM job_stats.tenants AS t
        WHERE t.schema_name ~ job_stats.canary() AND (t.schema_oid IN (
            SELECT c.relnamespace
            FROM pg_class AS c
            WHERE c.relname IN ('vinted_job_stats', 'marketplace_job_stats') AND c.relkind = 'r'
        )) IS TRUE;
END
$procedure$;

-- The tenants of a run's next pass, NULL if there is none: template_tenant alone, and nobody after it if it failed; then
-- all others. After a pass in which some were locked comes a pause, and an attempt that waits longer, up to attempts.
CREATE PROCEDURE job_stats.next_pass(
    run_id bigint, pending text, lock_timeout_ms integer, attempts integer, INOUT attempt integer, INOUT queue name[]
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    seen record;
BEGIN
    SELECT
        coalesce(bool_or(j.outcome = 'locked' AND j.attempt = next_pass.attempt), false) AS some_locked,
        coalesce(bool_or(j.outcome = 'failed' AND j.schema_name = 'template_tenant'), false) AS template_failed
    INTO seen
    FROM job_stats.journal AS j
    WHERE j.run_id = next_pass.run_id;
    queue := NULL;
    IF seen.template_failed OR (seen.some_locked AND attempt = attempts) THEN
        RETURN;
    END IF;
    IF seen.some_locked THEN
        PERFORM pg_sleep(attempt * 3 * lock_timeout_ms / 1000.0);
        attempt := attempt + 1;
    END IF;
    queue := job_stats.tenants_to_try(run_id, pending);
    IF queue[1] = 'template_tenant' THEN
        queue := queue[1:1];
    END IF;
END
$procedure$;

-- Runs a script whose unqualified names are the tenant's. As one statement: Citus refuses more than one in an EXECUTE.
CREATE PROCEDURE job_stats.run_script(tenant name, script text, lock_timeout_ms integer)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    block constant text := 'DO ' || quote_literal('BEGIN ' || script || E'\nEND');
BEGIN
    SET LOCAL citus.propagate_set_commands = 'local';
    EXECUTE format('SET LOCAL lock_timeout = %s', lock_timeout_ms);
    IF NOT has_schema_privilege(tenant, 'USAGE') THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied for schema ' || tenant;
    END IF;
    PERFORM set_config('search_path', quote_ident(tenant) || ', pg_temp', true);
    EXECUTE block;
END
$procedure$;

-- Runs a script in one tenant, and writes into the journal how it ended.
CREATE PROCEDURE job_stats.run_in_tenant(
    run_id bigint, migration text, tenant name, script text, attempt integer, lock_timeout_ms integer
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    start constant timestamptz := clock_timestamp();
    result text := 'done';
    reason text;
BEGIN
    SET LOCAL synchronous_commit = off; -- the next synchronous commit, such as the deploy tool's mark, flushes all
    SET LOCAL row_security = off; -- an error rather than rows unseen
    SET LOCAL plan_cache_mode = force_generic_plan; -- the helpers' queries are planned once, not in each tenant
    IF has_parameter_privilege('deadlock_timeout', 'SET') THEN
        SET LOCAL deadlock_timeout = '10ms'; -- the victim of a deadlock is to be this run, not old code
    END IF;
    BEGIN
        CALL job_stats.run_script(tenant, script, attempt * lock_timeout_ms);
        IF job_stats.is_rehearsal() THEN
            result := 'rehearsed';
            RAISE EXCEPTION 'to be rolled back';
        END IF;
    EXCEPTION
        WHEN OTHERS THEN
            IF result = 'rehearsed' THEN -- a variable, not the error's code: a tenant's code can raise any
                NULL;
            ELSIF to_regnamespace(quote_ident(tenant)) IS NULL THEN -- the tenant has been dropped
                RETURN;
            ELSIF SQLSTATE IN ('55P03', '40P01') THEN -- lock_not_available, deadlock_detected
                result := 'locked';
                reason := 'locked by ' || job_stats.lock_holders(tenant);
            ELSE
                result := 'failed';
                GET STACKED DIAGNOSTICS reason = PG_EXCEPTION_DETAIL;
                reason := concat_ws(
                    ' ', SQLERRM, nullif(reason, ''),
                    CASE SQLSTATE WHEN '42501' THEN format('(as role %I: docs/grants.sql)', current_user) END
                );
            END IF;
    END;
    INSERT INTO job_stats.journal (run_id, migration, schema_name, milliseconds, attempt, outcome, problem)
    VALUES (
        run_id, migration, tenant, round((extract(epoch FROM clock_timestamp() - start) * 1000)::numeric, 1), attempt,
        result, reason
    );
END
$procedure$;

-- Ends a run.
CREATE PROCEDURE job_stats.finish_run(run_id bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
BEGIN
    UPDATE job_stats.runs AS r SET finished_at = clock_timestamp() WHERE r.id = run_id;
    PERFORM pg_advisory_unlock('pg_namespace'::regclass::integer, 'job_stats'::regnamespace::integer);
END
$procedure$;

-- Says how a run ended, or raises: if tenants were left, or if others than psql might take it for the whole.
CREATE PROCEDURE job_stats.report_run(
    run_id bigint, attempts integer,
    INOUT done integer, INOUT already_done integer, INOUT failed integer, INOUT slowest_ms numeric, INOUT seconds numeric
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    run record;
    template_failed boolean;
    failures text[];
BEGIN
    SELECT
        r.migration,
        CASE WHEN job_stats.is_rehearsal() THEN 'rehearsed' ELSE 'done' END AS outcome,
        round(extract(epoch FROM r.finished_at - r.started_at)::numeric, 1) AS seconds
    INTO run
    FROM job_stats.runs AS r
    WHERE r.id = run_id;
    SELECT
        count(*) FILTER (WHERE j.outcome IN ('done', 'rehearsed')),
        coalesce(max(j.milliseconds), 0),
        run.seconds,
        coalesce(bool_or(j.left_over AND j.schema_name = 'template_tenant'), false),
        coalesce(array_agg(format('%s: %s', j.schema_name, j.problem) ORDER BY j.id) FILTER (WHERE j.left_over), '{}')
    INTO done, slowest_ms, seconds, template_failed, failures
    FROM (
        SELECT *, outcome = 'failed' OR (outcome = 'locked' AND attempt = attempts) AS left_over
        FROM job_stats.journal
    ) AS j
    WHERE j.run_id = report_run.run_id;
    failed := cardinality(failures);

    IF failed > 0 THEN
        RAISE EXCEPTION '%: % %, % done before, % FAILED', run.migration, done, run.outcome, already_done, failed
        USING
            DETAIL = array_to_string(
                failures[1:50] || CASE WHEN failed > 50 THEN '... all are in job_stats.journal' END, E'\n'
            ),
            HINT = CASE
                WHEN template_failed THEN 'No tenant is touched before template_tenant. '
                ELSE 'A tenant that failed is as it was. '
            END || 'Mend the cause, then run the same command again: it does what is left.';
    ELSIF (job_stats.is_rehearsal() OR current_setting('job_stats.tenants', true) <> '')
        AND current_setting('application_name') <> 'psql' THEN
        RAISE EXCEPTION '%: % %, none failed, slowest % ms', run.migration, done, run.outcome, slowest_ms
        USING HINT = 'An error, lest this be marked as applied: job_stats.dry_run or job_stats.tenants is set.';
    END IF;
END
$procedure$;

-- Runs a script, whose unqualified names are the tenant's, in each tenant among the schemas that the query pending
-- returns (their oids), until it returns no more. Attempt n at a locked tenant waits up to n * lock_timeout_ms for each
-- lock; after a pause of n * 3 * lock_timeout_ms, attempt n + 1 follows.
--
-- Settings, for rehearsals and canaries (PGOPTIONS='-c job_stats.dry_run=on' psql -f FILE):
--   job_stats.dry_run    on: the script is run in each tenant and rolled back
--   job_stats.tenants    a regular expression: only tenants whose whole name matches
-- Both leave tenants to do. Lest a deploy tool mark that as applied, only psql gets the row: others get an error.
--
-- Returns how many tenants were done (or rehearsed), were done before, failed; the most milliseconds that one
-- took, which no lock outlasts; and the seconds of the whole.
--
-- A procedure that commits cannot pin its search_path. So this one names no operator, nor function, nor type that its
-- caller's path could lead astray.
CREATE PROCEDURE job_stats.for_each_tenant(
    migration text,
    pending text,
    run text,
    lock_timeout_ms integer,
    attempts integer,
    INOUT done integer DEFAULT 0,
    INOUT already_done integer DEFAULT 0,
    INOUT failed integer DEFAULT 0,
    INOUT slowest_ms numeric DEFAULT 0,
    INOUT seconds numeric DEFAULT 0
)
LANGUAGE plpgsql
AS $procedure$
DECLARE
    this_run bigint;
    queue pg_catalog.name[];
    tenant pg_catalog.name;
    attempt integer := 1;
BEGIN
    COMMIT; -- in a transaction block this fails here, not after the first tenant
    CALL job_stats.start_run(migration, pending, this_run, already_done);
    COMMIT;
    LOOP
        CALL job_stats.next_pass(this_run, pending, lock_timeout_ms, attempts, attempt, queue);
        EXIT WHEN queue IS NULL;
        FOREACH tenant IN ARRAY queue LOOP
            CALL job_stats.run_in_tenant(this_run, migration, tenant, run, attempt, lock_timeout_ms);
            COMMIT;
        END LOOP;
    END LOOP;
    CALL job_stats.finish_run(this_run);
    COMMIT;
    CALL job_stats.report_run(this_run, attempts, done, already_done, failed, slowest_ms, seconds);
END
$procedure$;


---- For the scripts ----

-- The helpers get a tenant's table as a regclass, and name nothing else of the tenant's but by its oid.

-- Drops something of a table, and remembers how to restore it.
CREATE PROCEDURE job_stats.drop_and_remember(target regclass, drop_it text, restore text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
BEGIN
    EXECUTE drop_it;
    INSERT INTO job_stats.dropped AS d (target, migration, restore)
    SELECT drop_and_remember.target, r.migration, drop_and_remember.restore
    FROM job_stats.runs AS r
    WHERE r.pid = pg_backend_pid() AND r.finished_at IS NULL
    ORDER BY r.id DESC
    LIMIT 1
    ON CONFLICT ON CONSTRAINT pk_dropped DO UPDATE SET restore = d.restore || E'\n' || excluded.restore;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'only a script of job_stats.for_each_tenant may drop what its rollback is to restore';
    END IF;
END
$procedure$;

-- Drops the unique keys on exactly these columns, in any order: constraints and indexes, whatever they are called.
CREATE PROCEDURE job_stats.drop_unique_keys(target regclass, columns name[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    key record;
BEGIN
    FOR key IN
        SELECT
            i.indexrelid::regclass AS index_name,
            CASE
                WHEN i.indisprimary THEN 'the primary key'
                WHEN i.indisreplident THEN 'the replica identity'
            END AS other_use,
            CASE
                WHEN c.oid IS NULL THEN format('DROP INDEX %s', i.indexrelid::regclass)
                ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', target, c.conname)
            END AS drop_it,
            concat_ws(
                E'\n',
                CASE
                    WHEN c.oid IS NULL THEN pg_get_indexdef(i.indexrelid) || ';'
                    ELSE format('ALTER TABLE %s ADD CONSTRAINT %I %s;', target, c.conname, pg_get_constraintdef(c.oid))
                END,
                CASE WHEN c.oid IS NOT NULL THEN (
                    SELECT format(
                        'ALTER INDEX %s SET (%s);',
                        i.indexrelid::regclass, string_agg(format('%I = %L', o.option_name, o.option_value), ', ')
                    )
                    FROM pg_options_to_table(x.reloptions) AS o
                    HAVING count(*) > 0
                ) END,
                format('COMMENT ON INDEX %s IS ', i.indexrelid::regclass)
                || quote_literal(obj_description(i.indexrelid, 'pg_class')) || ';',
                format('COMMENT ON CONSTRAINT %s ON %s IS ', quote_ident(c.conname), target)
                || quote_literal(obj_description(c.oid, 'pg_constraint')) || ';',
                CASE WHEN i.indisclustered THEN format('ALTER TABLE %s CLUSTER ON %I;', target, x.relname) END
            ) AS restore
        FROM pg_index AS i
        INNER JOIN pg_class AS x ON i.indexrelid = x.oid
        LEFT JOIN pg_constraint AS c ON i.indrelid = c.conrelid AND i.indexrelid = c.conindid
        WHERE
            i.indrelid = target
            AND i.indisunique
            AND i.indexprs IS NULL
            AND i.indnkeyatts = cardinality(columns)
            AND (i.indkey::int2[])[0:i.indnkeyatts - 1] <@ (
                SELECT array_agg(a.attnum) FROM pg_attribute AS a WHERE a.attrelid = target AND a.attname = ANY (columns)
            )
        ORDER BY x.relname
    LOOP
        IF key.other_use <> '' THEN
            RAISE EXCEPTION '% is %: give the table another one first', key.index_name, key.other_use;
        END IF;
        CALL job_stats.drop_and_remember(target, key.drop_it, key.restore);
    END LOOP;
END
$procedure$;

-- Drops the foreign keys that point at the table referenced, if that exists. They come back NOT VALID, which reads no row,
-- and those that were valid are validated with the rights of the table's owner.
CREATE PROCEDURE job_stats.drop_foreign_keys(target regclass, referenced text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    key record;
BEGIN
    FOR key IN
        SELECT
            c.conname,
            format('ALTER TABLE %s DROP CONSTRAINT %I', target, c.conname) AS drop_it,
            concat_ws(
                E'\n',
                format('ALTER TABLE %s ADD CONSTRAINT %I %s', target, c.conname, pg_get_constraintdef(c.oid))
                || CASE WHEN c.convalidated THEN ' NOT VALID' ELSE '' END || ';',
                CASE WHEN c.convalidated THEN
                    format('CALL job_stats.validate_foreign_key(%L, %L);', target, c.conname)
                END,
                format('COMMENT ON CONSTRAINT %I ON %s IS ', c.conname, target)
                || quote_literal(obj_description(c.oid, 'pg_constraint')) || ';'
            ) AS restore
        FROM pg_constraint AS c
        WHERE c.conrelid = target AND c.contype = 'f' AND c.confrelid = to_regclass(referenced)
        ORDER BY c.conname
    LOOP
        CALL job_stats.check_foreign_key(target, key.conname); -- now, rather than at the rollback
        CALL job_stats.drop_and_remember(target, key.drop_it, key.restore);
    END LOOP;
END
$procedure$;

-- Raises if a foreign key could not be restored: without REFERENCES; or if it compares a type of the tenant's own, whose cast
-- PostgreSQL may run with the rights of the table that the key points at.
CREATE PROCEDURE job_stats.check_foreign_key(target regclass, key name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    found record;
BEGIN
    SELECT
        c.confrelid::regclass AS referenced,
        has_any_column_privilege(c.confrelid, 'REFERENCES') AS may_reference,
        (
            SELECT string_agg(format_type(t.oid, NULL), ', ')
            FROM pg_attribute AS a
            INNER JOIN pg_type AS t ON a.atttypid = t.oid
            LEFT JOIN pg_type AS b ON t.typbasetype = b.oid
            WHERE a.attrelid = target AND a.attnum = ANY (c.conkey)
                AND coalesce(b.typnamespace, t.typnamespace) <> 'pg_catalog'::regnamespace
        ) AS own_types
    INTO found
    FROM pg_constraint AS c
    WHERE c.conrelid = target AND c.conname = key;
    IF NOT found.may_reference THEN
        RAISE EXCEPTION 'foreign key % could not be restored: permission denied for table %', key, found.referenced
        USING DETAIL = format('(GRANT REFERENCES ON %s TO %I.)', found.referenced, current_user);
    ELSIF found.own_types <> '' THEN
        RAISE EXCEPTION 'foreign key % compares a type that is not PostgreSQL''s, %', key, found.own_types
        USING DETAIL = '(Give its column an integer type, or drop the key.)';
    END IF;
END
$procedure$;

-- Marks a foreign key as valid, unless there are rows that violate it: they stay, and new ones are checked.
CREATE PROCEDURE job_stats.validate_foreign_key(target regclass, key name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    valid boolean;
BEGIN
    CALL job_stats.check_foreign_key(target, key);
    CALL job_stats.as_owner(target, format('job_stats.validate_rows(%L, %L)', target, key), valid);
END
$procedure$;

CREATE FUNCTION job_stats.validate_rows(target regclass, key name)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', target, key);
    RETURN true;
EXCEPTION
    WHEN foreign_key_violation THEN
        RETURN false;
END
$function$;

-- Restores what a migration dropped from a table. For tables that were born migrated there is the script otherwise, in
-- which %s is the table.
CREATE PROCEDURE job_stats.restore_dropped(target regclass, migration text, otherwise text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    script text;
BEGIN
    DELETE FROM job_stats.dropped AS d
    WHERE d.target = restore_dropped.target AND d.migration = restore_dropped.migration
    RETURNING d.restore INTO script;
    EXECUTE 'DO ' || quote_literal('BEGIN ' || coalesce(script, format(otherwise, target)) || E'\nEND');
END
$procedure$;

-- Renames what still carries a table's former name: its indexes (and so their constraints), the sequences it owns, its
-- other constraints. A name that would grow beyond 63 bytes stays, and that of a sequence that is in use.
CREATE PROCEDURE job_stats.rename_parts(former_name name, target regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    table_name constant name := (SELECT relname FROM pg_class WHERE oid = target);
    part record;
BEGIN
    FOR part IN
        SELECT
            p.change,
            replace(p.old_name, former_name, table_name) AS new_name
        FROM (
            SELECT
                format('ALTER INDEX %s RENAME TO', i.indexrelid::regclass) AS change,
                x.relname AS old_name
            FROM pg_index AS i
            INNER JOIN pg_class AS x ON i.indexrelid = x.oid
            WHERE i.indrelid = target
            UNION ALL
            SELECT
                format('ALTER SEQUENCE %s RENAME TO', d.objid::regclass),
                x.relname
            FROM pg_depend AS d
            INNER JOIN pg_class AS x ON d.objid = x.oid AND x.relkind = 'S'
            WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = target AND d.classid = 'pg_class'::regclass
            UNION ALL
            SELECT
                format('ALTER TABLE %s RENAME CONSTRAINT %I TO', target, c.conname), -- not on Citus: it refuses that
                c.conname
            FROM pg_constraint AS c
            WHERE
                c.conrelid = target
                AND c.contype IN ('c', 'f', 'n')
                AND c.coninhcount = 0
                AND NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')
        ) AS p
        WHERE position(former_name IN p.old_name) > 0
    LOOP
        CONTINUE WHEN octet_length(part.new_name) > 63;
        BEGIN
            EXECUTE part.change || ' ' || quote_ident(part.new_name);
        EXCEPTION
            WHEN lock_not_available THEN NULL; -- the sequence: an open transaction, of any clone, has drawn from it
        END;
    END LOOP;
END
$procedure$;


---- With the rights of a table's owner ----

-- Whoever reads or changes rows runs what their table's owner hung on it: triggers, rules, checks, generated columns,
-- policies, casts, and index expressions even when a query is planned. As owner that is harmless, but SET ROLE is left by
-- RESET ROLE. What cannot be left is what PostgreSQL does for a materialized view when it refreshes it: it runs the query
-- as the view's owner, forbids to change the role, to make temporary tables, cursors or prepared statements, and to defer
-- triggers, and takes back the settings. So such a view of the owner's calls the function, and is dropped again. It is made
-- in our schema, where the owner can neither name nor rename it.
--
-- Not needed where the owner could do all that we can: it is a superuser, or the role that migrates.
CREATE PROCEDURE job_stats.as_owner(target regclass, call text, INOUT result boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    origin record;
BEGIN
    SELECT
        c.relforcerowsecurity AS forced,
        n.nspname AS schema_name,
        o.rolname AS owner,
        o.rolsuper OR o.rolname = current_user AS trusted,
        has_schema_privilege(o.oid, n.oid, 'USAGE') AS finds_it
    INTO origin
    FROM pg_class AS c
    INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
    INNER JOIN pg_roles AS o ON c.relowner = o.oid
    WHERE c.oid = target;
    IF NOT origin.trusted AND EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        RAISE EXCEPTION 'rows of % are to be changed with the rights of its owner, %: on Citus, migrate as that role',
            target, origin.owner;
    END IF;

    SET CONSTRAINTS ALL IMMEDIATE; -- such a view's query cannot defer triggers, and ALTER TABLE refuses while some wait
    IF origin.forced THEN
        EXECUTE format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', target); -- all rows, or some would be lost
    END IF;
    IF origin.trusted THEN
        EXECUTE 'SELECT ' || call INTO result;
    ELSE
        IF NOT origin.finds_it THEN
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', origin.schema_name, origin.owner);
        END IF;
        EXECUTE 'CREATE MATERIALIZED VIEW job_stats.call AS SELECT ' || call || ' AS result WITH NO DATA';
        CALL job_stats.hand_over('job_stats.call', target);
        BEGIN
            REFRESH MATERIALIZED VIEW job_stats.call;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION '% (with the rights of the table''s owner, %)', SQLERRM, origin.owner;
        END;
        SELECT c.result INTO result FROM job_stats.call AS c;
        DROP MATERIALIZED VIEW job_stats.call;
        IF NOT origin.finds_it THEN
            EXECUTE format('REVOKE USAGE ON SCHEMA %I FROM %I', origin.schema_name, origin.owner);
        END IF;
    END IF;
    IF origin.forced THEN
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
    END IF;
END
$procedure$;

-- Gives a new relation the owner of the table it stems from, and takes back what default privileges have granted.
CREATE PROCEDURE job_stats.hand_over(relation regclass, origin regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    owner constant regrole := (SELECT relowner FROM pg_class WHERE oid = origin);
    home constant regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = relation);
    may_own constant boolean := has_schema_privilege(owner, home, 'CREATE');
    receiver text;
BEGIN
    FOR receiver IN
        SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
        FROM pg_class AS c
        CROSS JOIN aclexplode(c.relacl) AS a
        WHERE c.oid = relation AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s', relation, receiver);
    END LOOP;
    IF owner <> (SELECT relowner FROM pg_class WHERE oid = relation) THEN
        IF NOT may_own THEN -- which ALTER TABLE asks for, for this moment
            EXECUTE format('GRANT CREATE ON SCHEMA %s TO %s', home, owner);
        END IF;
        EXECUTE format('ALTER TABLE %s OWNER TO %s', relation, owner);
        IF NOT may_own THEN
            EXECUTE format('REVOKE CREATE ON SCHEMA %s FROM %s', home, owner);
        END IF;
    END IF;
END
$procedure$;


---- Job statistics: the legacy view, folding and unfolding ----

-- What others than its owner may do with a relation: with all of it, where column_name is NULL, or with a column.
CREATE FUNCTION job_stats.grants(relation oid)
RETURNS TABLE (column_name name, grantee oid, privilege_type text, is_grantable boolean)
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT NULL, a.grantee, a.privilege_type, a.is_grantable
    FROM pg_class AS c
    CROSS JOIN aclexplode(c.relacl) AS a
    WHERE c.oid = relation AND a.grantee <> c.relowner
    UNION ALL
    SELECT t.attname, a.grantee, a.privilege_type, a.is_grantable
    FROM pg_attribute AS t
    CROSS JOIN aclexplode(t.attacl) AS a
    WHERE t.attrelid = relation AND t.attacl IS NOT NULL AND NOT t.attisdropped;
$function$;

-- Shows target's Vinted rows under the legacy name and in the legacy columns, for old code to read and write as before,
-- with the table's owner and grants. Not in the template: CREATE TABLE ... LIKE a view would copy no keys.
CREATE PROCEDURE job_stats.create_legacy_view(target regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    later constant name[] := '{marketplace, untimed_jobs, total_duration_ms}'; -- columns that old code does not know
    origin record;
    permission text;
BEGIN
    SELECT
        c.relnamespace::regnamespace AS tenant,
        (
            SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
            FROM pg_attribute AS a
            WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> ALL (later)
        ) AS columns,
        -- An invoker must be able to read every column of the view, whichever are asked for. Who may read some only
        -- would be refused: for them the owner reads, and the view's grants decide; but never past row-level security.
        c.relrowsecurity OR NOT EXISTS (
            SELECT FROM job_stats.grants(target) AS g WHERE g.column_name IS NOT NULL AND g.privilege_type = 'SELECT'
        ) AS security_invoker
    INTO origin
    FROM pg_class AS c
    WHERE c.oid = target;
    IF origin.tenant = to_regnamespace('template_tenant') THEN
        RETURN;
    END IF;
    EXECUTE format(
        'CREATE VIEW %s.vinted_job_stats WITH (security_invoker = %s) AS
        SELECT %s FROM %s WHERE marketplace::text = ''vinted'' WITH CASCADED CHECK OPTION',
        origin.tenant, origin.security_invoker::text, origin.columns, target
    );
    CALL job_stats.hand_over(format('%s.vinted_job_stats', origin.tenant), target);
    FOR permission IN
        SELECT format(
            'GRANT %s%s ON %s.vinted_job_stats TO %s%s',
            g.privilege_type, ' (' || quote_ident(g.column_name) || ')', origin.tenant,
            CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END,
            CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' END
        )
        FROM job_stats.grants(target) AS g
        WHERE (g.column_name <> ALL (later)) IS NOT FALSE
    LOOP
        EXECUTE permission;
    END LOOP;
END
$procedure$;

-- Folds the marketplaces of a day and action type into one row, as legacy code counts: into Vinted's, or else the
-- oldest. The rows as they were go to marketplace_job_stats_archive, from which unfold_marketplaces() restores them.
-- A tenant that has only Vinted's rows gets no archive.
CREATE PROCEDURE job_stats.fold_marketplaces(target regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    tenant constant regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = target);
    archive constant text := format('%s.marketplace_job_stats_archive', tenant);
    needed boolean;
    folded boolean;
BEGIN
    CALL job_stats.as_owner(target, format('job_stats.has_other_marketplaces(%L)', target), needed);
    IF NOT needed THEN
        RETURN;
    END IF;
    EXECUTE format( -- WITH NO DATA, nothing of the table is planned or read
        'CREATE TABLE %s AS
        SELECT
            s.*,
            NULL::bigint AS folded_id,
            NULL::bigint AS folded_total_jobs,
            NULL::bigint AS folded_success_count,
            NULL::bigint AS folded_failure_count,
            NULL::numeric AS folded_avg_duration_ms
        FROM %s AS s
        WITH NO DATA', archive, target
    );
    EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', archive); -- it may be published: FOR ALL TABLES
    CALL job_stats.hand_over(archive, target);
    INSERT INTO job_stats.archives (archive) VALUES (archive::regclass);
    CALL job_stats.as_owner(target, format('job_stats.fold_rows(%L)', target), folded);
END
$procedure$;

-- The functions below run as the owner. So that triggers find what they name, the tenant's schema is their search_path;
-- so they cast and qualify what its owner could take: varchar to text, and functions of any type.

CREATE FUNCTION job_stats.has_other_marketplaces(target regclass)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    found boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE marketplace::text <> ''vinted'')', target) INTO found;
    RETURN found;
END
$function$;

CREATE FUNCTION job_stats.fold_rows(target regclass)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    tenant constant regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = target);
BEGIN
    PERFORM set_config('search_path', tenant::text || ', pg_temp', true);
    INSERT INTO marketplace_job_stats_archive
    SELECT
        s.*,
        pg_catalog.first_value(s.id) OVER (days ORDER BY s.marketplace::text <> 'vinted', s.id),
        pg_catalog.sum(s.total_jobs) OVER days,
        pg_catalog.sum(s.success_count) OVER days,
        pg_catalog.sum(s.failure_count) OVER days,
        pg_catalog.round(
            pg_catalog.sum(s.avg_duration_ms::numeric * s.total_jobs::numeric) OVER days
            / nullif(
                pg_catalog.sum(s.total_jobs::numeric) FILTER (WHERE s.avg_duration_ms IS NOT NULL) OVER days, 0::numeric
            )
        )
    FROM marketplace_job_stats AS s
    WHERE (s.action_type_id, s.date) IN (
        SELECT o.action_type_id, o.date FROM marketplace_job_stats AS o WHERE o.marketplace::text <> 'vinted'
    )
    WINDOW days AS (PARTITION BY s.action_type_id, s.date);

    -- A row elsewhere that refers to one that is folded makes the DELETE fail, unless its foreign key changes it instead.
    IF EXISTS (
        SELECT FROM pg_catalog.pg_trigger AS t -- which has an index by table, and pg_constraint none by confrelid
        INNER JOIN pg_catalog.pg_constraint AS c ON t.tgconstraint = c.oid AND t.tgrelid = c.confrelid
        WHERE t.tgrelid = target::oid AND c.confdeltype NOT IN ('a', 'r')
    ) AND EXISTS (SELECT FROM marketplace_job_stats_archive AS a WHERE a.id <> a.folded_id) THEN
        RAISE EXCEPTION 'a foreign key with an ON DELETE action would change what refers to folded rows'
        USING DETAIL = '(Make it ON DELETE NO ACTION until the rollback is done.)';
    END IF;

    DELETE FROM marketplace_job_stats AS s
    USING marketplace_job_stats_archive AS a
    WHERE
        (s.action_type_id, s.marketplace::text, s.date) = (a.action_type_id, a.marketplace::text, a.date)
        AND a.id <> a.folded_id;

    UPDATE marketplace_job_stats AS s
    SET
        marketplace = 'vinted',
        total_jobs = a.folded_total_jobs,
        success_count = a.folded_success_count,
        failure_count = a.folded_failure_count,
        avg_duration_ms = a.folded_avg_duration_ms
    FROM marketplace_job_stats_archive AS a
    WHERE
        (s.action_type_id, s.marketplace::text, s.date) = (a.action_type_id, a.marketplace::text, a.date)
        AND a.id = a.folded_id;
    RETURN true;
END
$function$;

-- Leaves to Vinted what is archived of rows that old code has deleted since: to be called by as_owner().
CREATE FUNCTION job_stats.forget_deleted(target regclass)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    EXECUTE format(
        'DELETE FROM %s.marketplace_job_stats_archive WHERE folded_id NOT IN (SELECT id FROM %s)',
        (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = target), target
    );
    RETURN true;
END
$function$;

-- Restores what fold_marketplaces() archived, and credits to Vinted what legacy code has counted since. Refuses where
-- it would have to guess: where a folded row is gone, or counts less than it did.
CREATE PROCEDURE job_stats.unfold_marketplaces(target regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    found record;
    unfolded boolean;
BEGIN
    SELECT
        format('%s.%I', a.relnamespace::regnamespace, a.relname) AS name,
        a.relkind = 'r' AND a.relowner = t.relowner AND a.oid IN (SELECT k.archive FROM job_stats.archives AS k)
            AS believed
    INTO found
    FROM pg_class AS t
    INNER JOIN pg_class AS a ON t.relnamespace = a.relnamespace AND a.relname = 'marketplace_job_stats_archive'
    WHERE t.oid = target;
    IF found.believed THEN
        CALL job_stats.as_owner(target, format('job_stats.unfold_rows(%L)', target), unfolded);
        EXECUTE format('DROP TABLE %s', found.name);
        DELETE FROM job_stats.archives AS k WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = k.archive);
    ELSIF found.name <> '' THEN
        RAISE EXCEPTION '% is none that a rollback here has made', found.name
        USING DETAIL = '(Rename or drop it. If it was moved here with its tenant, see "Roll back" in docs/runbook.md.)';
    END IF;
END
$procedure$;

CREATE FUNCTION job_stats.unfold_rows(target regclass)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    tenant constant regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = target);
    columns constant text := (
        SELECT string_agg(quote_ident(t.attname), ', ')
        FROM pg_attribute AS t
        INNER JOIN pg_attribute AS a USING (attname)
        WHERE
            t.attrelid = target
            AND a.attrelid = to_regclass(format('%s.marketplace_job_stats_archive', tenant))
            AND t.attnum > 0
            AND t.attgenerated = ''
    );
    insert_others constant text := format(
        'INSERT INTO marketplace_job_stats (%1$s) OVERRIDING SYSTEM VALUE
        SELECT %1$s FROM marketplace_job_stats_archive WHERE id <> folded_id', columns
    );
    lost text[];
BEGIN
    PERFORM set_config('search_path', tenant::text || ', pg_temp', true);
    SELECT pg_catalog.array_agg(DISTINCT pg_catalog.format('action type %s on %s', a.action_type_id, a.date)) INTO lost
    FROM marketplace_job_stats_archive AS a
    LEFT JOIN marketplace_job_stats AS s
        ON a.folded_id = s.id AND a.action_type_id = s.action_type_id AND a.date = s.date
    WHERE (
        s.total_jobs >= a.folded_total_jobs
        AND s.success_count >= a.folded_success_count
        AND s.failure_count >= a.folded_failure_count
    ) IS NOT TRUE;
    IF lost IS NOT NULL THEN
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        RAISE EXCEPTION 'the archived split cannot be restored: legacy code has deleted or lowered %',
            array_to_string(lost[1:5] || CASE WHEN cardinality(lost) > 5 THEN format('... (%s)', cardinality(lost)) END, ', ')
        USING DETAIL = '(Repair these rows of vinted_job_stats, or delete theirs from marketplace_job_stats_archive.)';
    END IF;

    -- From here on, folded_... is what has been added since, and folded_avg_duration_ms the average of that.
    UPDATE marketplace_job_stats_archive AS a
    SET
        folded_total_jobs = s.total_jobs - a.folded_total_jobs,
        folded_success_count = s.success_count - a.folded_success_count,
        folded_failure_count = s.failure_count - a.folded_failure_count,
        folded_avg_duration_ms = CASE
            WHEN a.folded_avg_duration_ms IS NULL THEN s.avg_duration_ms::numeric
            ELSE pg_catalog.round(
                greatest(
                    s.avg_duration_ms::numeric * s.total_jobs::numeric
                    - a.folded_avg_duration_ms * a.folded_total_jobs::numeric,
                    0::numeric
                ) / nullif(s.total_jobs::numeric - a.folded_total_jobs::numeric, 0::numeric)
            )
        END
    FROM marketplace_job_stats AS s
    WHERE (s.action_type_id, s.date) = (a.action_type_id, a.date);

    UPDATE marketplace_job_stats AS s
    SET
        marketplace = a.marketplace,
        total_jobs = a.total_jobs,
        success_count = a.success_count,
        failure_count = a.failure_count,
        avg_duration_ms = a.avg_duration_ms
    FROM marketplace_job_stats_archive AS a
    WHERE (s.action_type_id, s.date) = (a.action_type_id, a.date) AND a.id = a.folded_id;

    EXECUTE insert_others;

    INSERT INTO marketplace_job_stats AS s
        (action_type_id, marketplace, date, total_jobs, success_count, failure_count, avg_duration_ms)
    SELECT
        a.action_type_id,
        'vinted',
        a.date,
        a.folded_total_jobs,
        a.folded_success_count,
        a.folded_failure_count,
        a.folded_avg_duration_ms
    FROM marketplace_job_stats_archive AS a
    WHERE a.id = a.folded_id AND (a.folded_total_jobs, a.folded_success_count, a.folded_failure_count) <> (0, 0, 0)
    ON CONFLICT (action_type_id, marketplace, date) DO UPDATE SET
        total_jobs = s.total_jobs + excluded.total_jobs,
        success_count = s.success_count + excluded.success_count,
        failure_count = s.failure_count + excluded.failure_count,
        avg_duration_ms = coalesce(
            pg_catalog.round(
                (
                    s.avg_duration_ms::numeric * s.total_jobs::numeric
                    + excluded.avg_duration_ms::numeric * excluded.total_jobs::numeric
                ) / nullif(s.total_jobs::numeric + excluded.total_jobs::numeric, 0::numeric)
            ),
            s.avg_duration_ms::numeric,
            excluded.avg_duration_ms::numeric
        );
    RETURN true;
END
$function$;


---- Status ----

-- What matters of a table, a fact a row. Opens no tenant's table, which would wait for its locks and stay in the server
-- process's memory, as pg_get_constraintdef, pg_get_viewdef and pg_relation_is_updatable do.
CREATE FUNCTION job_stats.facts(target oid)
RETURNS SETOF text
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
SET quote_all_identifiers = off
AS $function$
    SELECT concat_ws(
        ' ', 'column', a.attname, format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'NOT NULL' END
    )
    FROM pg_attribute AS a
    WHERE a.attrelid = target AND a.attnum > 0
    UNION ALL
    SELECT concat_ws(
        ' ',
        'default of',
        a.attname,
        CASE WHEN a.attname = 'marketplace' AND a.attgenerated = '' THEN pg_get_expr(d.adbin, 0) END
    )
    FROM pg_attribute AS a
    LEFT JOIN pg_attrdef AS d ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    WHERE a.attrelid = target AND (d.oid IS NOT NULL OR a.attidentity <> '')
    UNION ALL
    SELECT concat('check of marketplace: ', (
        -- Its strings. They are the same when the column gets the name of its place in pg_class, which has 33 at least.
        SELECT string_agg(m[1], ', ' ORDER BY m[1])
        FROM regexp_matches(
            pg_get_expr(c.conbin, CASE WHEN a.attnum <= 33 THEN 'pg_class'::regclass ELSE target END),
            '''(.*?)''', 'g'
        ) AS m
    ))
    FROM pg_constraint AS c
    INNER JOIN pg_attribute AS a ON c.conrelid = a.attrelid AND c.conkey = ARRAY[a.attnum]
    WHERE c.conrelid = target AND c.contype = 'c' AND c.convalidated AND a.attname = 'marketplace'
    UNION ALL
    SELECT format('%s on (%s)', CASE WHEN i.indisunique THEN 'unique key' ELSE 'index' END, (
        SELECT string_agg(a.attname, ', ' ORDER BY k.place)
        FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (attnum, place)
        INNER JOIN pg_attribute AS a ON a.attrelid = target AND k.attnum = a.attnum
    ))
    FROM pg_index AS i
    WHERE i.indrelid = target AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
    UNION ALL
    SELECT 'reads as its owner'
    FROM pg_class AS v
    WHERE v.oid = target AND v.relkind = 'v' AND NOT coalesce(v.reloptions @> '{security_invoker=true}', false)
    UNION ALL
    SELECT 'view of the Vinted rows'
    FROM pg_class AS v
    WHERE
        v.oid = target
        AND v.relkind = 'v'
        AND v.reloptions @> '{check_option=cascaded}' -- which PostgreSQL gives only to a view that can be written
        AND (
            -- It has one rule, which compares with 'vinted', in bytes.
            SELECT count(*) = 1 AND bool_and(r.ev_action::text LIKE '%:constvalue 10 [ % 118 105 110 116 101 100 ]%')
            FROM pg_rewrite AS r
            WHERE r.ev_class = v.oid
        );
$function$;

-- Whether a view may show, or let change, more than its table would: if it reads with its owner's rights (as it does for
-- those who may read some columns only; see create_legacy_view), and row-level security, or a REVOKE, or another owner has
-- come to the table since.
CREATE FUNCTION job_stats.outdoes(legacy_view oid, target oid)
RETURNS boolean
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT t.relrowsecurity OR v.relowner <> t.relowner OR EXISTS (
        SELECT FROM job_stats.grants(v.oid) AS has
        WHERE NOT EXISTS (
            SELECT FROM job_stats.grants(t.oid) AS may
            WHERE
                has.grantee = may.grantee
                AND has.privilege_type = may.privilege_type
                AND has.is_grantable <= may.is_grantable
                AND (may.column_name IS NULL OR has.column_name = may.column_name)
        )
    )
    FROM pg_class AS v
    CROSS JOIN pg_class AS t
    WHERE v.oid = legacy_view AND t.oid = target;
$function$;

-- What each tenant is: legacy, migrated, contracted (migrated, without the legacy view and the default marketplace),
-- missing (it has no such table) or drifted. Then problem says how, in words; otherwise it is NULL.
CREATE VIEW job_stats.tenant_status AS
WITH tables AS MATERIALIZED (
    -- By subqueries: joins may be planned as all schemas times all their tables.
    SELECT
        t.*,
        (SELECT oid FROM pg_class WHERE relnamespace = t.schema_oid AND relname = 'vinted_job_stats') AS old,
        (SELECT oid FROM pg_class WHERE relnamespace = t.schema_oid AND relname = 'marketplace_job_stats')
            AS new
    FROM job_stats.tenants AS t
),

tenant_tables AS MATERIALIZED (
    SELECT
        t.*,
        (SELECT relkind FROM pg_class WHERE oid = t.old) AS old_kind,
        (SELECT relkind FROM pg_class WHERE oid = t.new) AS new_kind,
        (
            SELECT oid FROM pg_class
            WHERE relnamespace = t.schema_oid AND relname = 'marketplace_job_stats_archive'
        ) IS NOT NULL AS has_archive,
        ARRAY(SELECT job_stats.facts(t.old)) AS old_facts,
        ARRAY(SELECT job_stats.facts(t.new)) AS new_facts,
        -- Clones of the template have no key of this name; they, and the template, are born without the view.
        t.schema_name <> 'template_tenant' AND EXISTS (
            SELECT FROM pg_constraint
            WHERE
                connamespace = t.schema_oid
                AND conrelid = t.new
                AND conname = 'uq_marketplace_job_stats_action_marketplace_date'
        ) AS had_view
    FROM tables AS t
),

checked AS MATERIALIZED (
    SELECT
        t.*,
        'default of marketplace ''vinted''::character varying' = ANY (t.new_facts) AS has_default,
        (
            SELECT string_agg('no ' || f.fact, '; ')
            FROM unnest(ARRAY[
                'column id integer NOT NULL',
                'column action_type_id integer NOT NULL',
                'column date date NOT NULL',
                'column total_jobs integer NOT NULL',
                'column success_count integer NOT NULL',
                'column failure_count integer NOT NULL',
                'column avg_duration_ms integer',
                'column created_at timestamp with time zone NOT NULL',
                'column marketplace character varying(20) NOT NULL',
                'default of id',
                'default of total_jobs',
                'default of success_count',
                'default of failure_count',
                'default of created_at',
                'check of marketplace: ebay, etsy, vinted',
                'unique key on (action_type_id, marketplace, date)',
                'index on (marketplace, created_at)'
            ] || CASE WHEN (
                -- The template goes first: what it has, every migrated tenant should have.
                SELECT 'column untimed_jobs integer' = ANY (t.new_facts)
                FROM tenant_tables AS t
                WHERE t.schema_name = 'template_tenant'
            ) THEN ARRAY[
                'column untimed_jobs integer',
                'column total_duration_ms bigint'
            ] END) AS f (fact)
            WHERE f.fact <> ALL (t.new_facts)
        ) AS lacking
    FROM tenant_tables AS t
),

judged AS (
    SELECT
        c.*,
        CASE
            WHEN c.old_kind = 'r' AND c.new_kind IS NOT NULL
                THEN 'vinted_job_stats and marketplace_job_stats are both there'
            WHEN c.old_kind <> 'r' AND c.new_kind IS NULL THEN 'vinted_job_stats is not an ordinary table'
            WHEN c.new_kind <> 'r' THEN 'marketplace_job_stats is not an ordinary table'
            WHEN c.new_kind = 'r' THEN nullif(concat_ws(
                '; ',
                c.lacking,
                (
                    SELECT string_agg('has ' || f.fact, '; ')
                    FROM unnest(c.new_facts) AS f (fact)
                    WHERE
                        f.fact IN ('unique key on (action_type_id, date)', 'unique key on (date, action_type_id)')
                        OR (f.fact LIKE 'default of marketplace%' AND NOT c.has_default)
                ),
                CASE
                    WHEN c.old_kind IS NULL AND c.has_default AND c.had_view THEN 'no view vinted_job_stats'
                    WHEN c.old_kind IS NOT NULL AND NOT c.has_default
                        THEN 'view vinted_job_stats without a default of marketplace'
                    WHEN c.old_kind IS NOT NULL AND 'view of the Vinted rows' <> ALL (c.old_facts)
                        THEN 'view vinted_job_stats is not as it was created'
                    WHEN 'reads as its owner' = ANY (c.old_facts) AND job_stats.outdoes(c.old, c.new)
                        THEN 'view vinted_job_stats may show more than its table: drop it, and create it anew'
                END,
                CASE WHEN c.has_archive THEN 'marketplace_job_stats_archive is left' END
            ), '')
        END AS problem
    FROM checked AS c
)

SELECT
    schema_name,
    CASE
        WHEN problem IS NOT NULL THEN 'drifted'
        WHEN new_kind IS NULL AND old_kind IS NULL THEN 'missing'
        WHEN new_kind IS NULL THEN 'legacy'
        WHEN has_default THEN 'migrated'
        ELSE 'contracted'
    END AS state,
    problem
FROM judged;

-- Raises if a tenant has drifted, or is legacy while others are not. With expected, also if a tenant is not in that state,
-- which is what a pipeline should ask for: that yoyo has marked a migration as applied is no proof that it was run.
-- The setting job_stats.verify = off skips it.
CREATE PROCEDURE job_stats.verify(INOUT verified integer DEFAULT 0, expected text DEFAULT NULL)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    problems text[];
BEGIN
    IF expected NOT IN ('legacy', 'migrated', 'contracted') THEN
        RAISE EXCEPTION 'expected must be legacy, migrated or contracted, not %', expected;
    END IF;
    IF current_setting('job_stats.verify', true) = 'off' THEN
        RETURN;
    END IF;
    SELECT
        count(*),
        array_agg(format('%s: %s', s.schema_name, coalesce(s.problem, s.lag, 'is ' || s.state)) ORDER BY s.schema_name)
        FILTER (WHERE s.state = 'drifted' OR (s.state = 'legacy' AND s.any_migrated) OR s.state <> s.expected OR s.lag <> '')
    INTO verified, problems
    FROM (
        SELECT
            t.*,
            CASE WHEN t.state <> 'missing' THEN verify.expected END AS expected,
            CASE WHEN verify.expected <> 'legacy' AND t.state IN ('migrated', 'contracted') AND NOT EXISTS (
                SELECT FROM pg_attribute AS a
                WHERE
                    a.attrelid = to_regclass(format('%I.marketplace_job_stats', t.schema_name))
                    AND a.attname = 'total_duration_ms'
            ) THEN 'has not had 0003' END AS lag,
            bool_or(t.state IN ('migrated', 'contracted')) OVER () AS any_migrated
        FROM job_stats.tenant_status AS t
    ) AS s;
    IF problems <> '{}' THEN
        RAISE EXCEPTION '% of % tenants are not as they should be', cardinality(problems), verified
        USING
            DETAIL = array_to_string(problems[1:50] || CASE WHEN cardinality(problems) > 50 THEN '...' END, E'\n'),
            HINT = 'All: SELECT * FROM job_stats.tenant_status. For stragglers: psql -f each migration, from 0002 on.';
    END IF;
END
$procedure$;


---- Nobody's but its owner's ----

-- Takes back what default privileges have granted here: what a rollback runs is read from this schema. Those who own
-- tenants may call what as_owner() calls for them, and, since they may not use the schema, can name nothing in it.
DO $$
DECLARE
    receiver text;
BEGIN
    FOR receiver IN
        SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
        FROM pg_namespace AS n
        CROSS JOIN LATERAL (
            SELECT n.nspacl AS acl
            UNION ALL
            SELECT c.relacl FROM pg_class AS c WHERE c.relnamespace = n.oid
            UNION ALL
            SELECT p.proacl FROM pg_proc AS p WHERE p.pronamespace = n.oid
        ) AS granted
        CROSS JOIN aclexplode(granted.acl) AS a
        WHERE n.nspname = 'job_stats' AND a.grantee <> n.nspowner
    LOOP
        EXECUTE format('REVOKE ALL ON SCHEMA job_stats FROM %s', receiver);
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA job_stats FROM %s', receiver);
        EXECUTE format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA job_stats FROM %s', receiver);
        EXECUTE format('REVOKE ALL ON ALL ROUTINES IN SCHEMA job_stats FROM %s', receiver);
    END LOOP;
END
$$;

GRANT EXECUTE ON FUNCTION
    job_stats.validate_rows, job_stats.has_other_marketplaces, job_stats.fold_rows, job_stats.unfold_rows,
    job_stats.forget_deleted
TO PUBLIC;
