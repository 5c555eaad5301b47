-- How a run of a migration through the tenants begins, goes on, is watched and ends. For 0004, which runs it.
--
-- depends: 0001.tenancy

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- Whether scripts are only tried, and rolled back: the setting tenancy.dry_run.
CREATE OR REPLACE FUNCTION tenancy.is_rehearsal()
RETURNS boolean
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT coalesce(nullif(current_setting('tenancy.dry_run', true), '')::boolean, false);
$function$;

-- Whether a run is limited to some tenants: the setting tenancy.tenants, a regular expression for their whole name.
CREATE OR REPLACE FUNCTION tenancy.is_canary()
RETURNS boolean
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT coalesce(current_setting('tenancy.tenants', true), '') <> '';
$function$;

-- The tenants that a run is concerned with: is_pending is NULL where it is not.
CREATE OR REPLACE FUNCTION tenancy.look(pending text)
RETURNS TABLE (schema_name name, is_pending boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_nestloop = off -- which may be planned, with old statistics, as all tenants times all their tables
SET enable_mergejoin = off
AS $function$
DECLARE
    pattern constant text := '^(' || coalesce(nullif(current_setting('tenancy.tenants', true), ''), '.*') || ')$';
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT t.schema_name, bool_or(q.is_pending)
        FROM tenancy.tenants AS t
        LEFT JOIN (%s) AS q (schema_oid, is_pending) ON t.schema_oid = q.schema_oid
        WHERE t.schema_name ~ %L AND t.schema_name NOT IN (SELECT l.schema_name FROM tenancy.left_out AS l)
        GROUP BY 1', pending, pattern
    );
END
$function$;

-- The schemas that a migration would concern, if they were tenants.
CREATE OR REPLACE FUNCTION tenancy.strangers(pending text)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    names text;
BEGIN
    EXECUTE format(
        'SELECT string_agg(quote_ident(n.nspname), '', '' ORDER BY n.nspname)
        FROM pg_namespace AS n
        WHERE n.oid IN (SELECT q.schema_oid FROM (%s) AS q (schema_oid, is_pending)) AND n.oid NOT IN (
            SELECT t.schema_oid FROM tenancy.tenants AS t
        )', pending
    ) INTO names;
    RETURN left(names, 1000);
END
$function$;

-- The settings of a run's own statements, to the end of the transaction. Each step of a run begins so.
CREATE OR REPLACE PROCEDURE tenancy.begin_step()
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
BEGIN
    SET LOCAL citus.propagate_set_commands = 'local';
    SET LOCAL lock_timeout = 0;
    SET LOCAL client_min_messages = error; -- a NOTICE to a client that is gone would end the run
    IF current_setting('transaction_timeout', true) <> '0' THEN -- PostgreSQL has it since 17
        SET LOCAL transaction_timeout = 0;
    END IF;
    IF current_setting('pg_stat_statements.track', true) <> 'none'
        AND has_parameter_privilege('pg_stat_statements.track', 'SET')
    THEN
        SET LOCAL pg_stat_statements.track = 'none'; -- a run's statements would evict the application's
    END IF;
END
$procedure$;

-- Begins a run, or refuses to: one run at a time.
CREATE OR REPLACE PROCEDURE tenancy.start_run(
    migration text, pending text, script text, lock_timeout_ms integer, attempts integer, INOUT run_id bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    matching integer;
    to_do integer;
    already_done integer;
BEGIN
    CALL tenancy.begin_step();
    IF current_setting('transaction_isolation') <> 'read committed' THEN -- else a script overlooks what it waited for
        RAISE EXCEPTION 'the isolation level must be read committed, not %', current_setting('transaction_isolation')
        USING HINT = $$PGOPTIONS='-c default_transaction_isolation=read\ committed'$$;
    ELSIF current_setting('session_replication_role') <> 'origin' THEN -- else no foreign key is heeded
        RAISE EXCEPTION 'session_replication_role must be origin, not %', current_setting('session_replication_role');
    ELSIF current_setting('statement_timeout') <> '0' THEN -- it would end the run, and cannot be lifted from here
        RAISE EXCEPTION 'statement_timeout is %, and would count for all tenants together',
            current_setting('statement_timeout')
        USING HINT = 'SET statement_timeout = 0 first, in the same session: not through a pooler that takes another.';
    END IF;
    LOCK TABLE tenancy.runs IN SHARE ROW EXCLUSIVE MODE; -- of two that begin at once, one sees the other
    IF EXISTS (SELECT FROM tenancy.progress AS p WHERE p.state = 'running') THEN
        RAISE EXCEPTION 'the tenants are being migrated already, by pid %', (
            SELECT string_agg(p.pid::text, ', ') FROM tenancy.progress AS p WHERE p.state = 'running'
        )
        USING HINT =
            'It goes on even if its client died. Wait for its end, or pg_terminate_backend(pid); then repeat this command.';
    END IF;

    SELECT
        count(*),
        count(*) FILTER (WHERE l.is_pending),
        count(*) FILTER (WHERE NOT l.is_pending)
    INTO matching, to_do, already_done
    FROM tenancy.look(pending) AS l;
    IF matching = 0 AND tenancy.is_canary() THEN
        RAISE EXCEPTION 'no tenant matches ^(%)$', current_setting('tenancy.tenants')
        USING HINT = 'See tenancy.tenants: the setting, and the view.';
    ELSIF to_do + already_done = 0 AND NOT tenancy.is_canary() AND tenancy.strangers(pending) <> '' THEN
        RAISE EXCEPTION 'no tenant is concerned, but schemas are that are no tenants: %', tenancy.strangers(pending)
        USING HINT = 'The view tenancy.tenants says what a tenant is: replace it, or rename or drop these schemas.';
    END IF;
    -- Of a run that was killed, for next_pass(): the sequence is soon this run's.
    UPDATE tenancy.runs AS r
    SET turn = (SELECT n.nspname FROM pg_namespace AS n INNER JOIN tenancy.turn AS t ON n.oid = t.last_value)
    WHERE r.finished_at IS NULL AND r.turn IS NULL;
    INSERT INTO tenancy.runs AS r (migration, pid, to_do, already_done)
    VALUES (migration, pg_backend_pid(), to_do, already_done)
    RETURNING r.id INTO run_id;

    -- A migration begins with its number. Anything else is done once, and sweep() does not repeat it.
    IF NOT tenancy.is_rehearsal() AND NOT tenancy.is_canary() AND migration ~ '^[0-9](?!.*\.rollback$)' THEN
        DELETE FROM tenancy.migrations AS m WHERE m.name = migration;
        INSERT INTO tenancy.migrations
        VALUES (migration, already_done > 0, pending, script, lock_timeout_ms, attempts);
    END IF;
    -- Of tables and sequences that are gone: their oid may be another's one day. A tenant's may be restored in its place.
    DELETE FROM tenancy.undo AS u
    WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = u.target AND c.relkind IN ('r', 'p'))
        AND NOT EXISTS (SELECT FROM pg_namespace AS n WHERE n.nspname = u.schema_name);
    DELETE FROM tenancy.renames_left AS l
    WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = l.sequence AND c.relkind = 'S' AND c.relname = l.old_name);
END
$procedure$;

-- Ends a run. Where a tenant is as before though its script has ended, its own code has undone it: it has failed. A
-- migration is forgotten when its rollback has left it nowhere: until then, sweep() takes back what that has done. Adds
-- who has failed, and why, to failures: in memory, since the disk may be full, and the journal be pruned.
CREATE OR REPLACE PROCEDURE tenancy.finish_run(run_id bigint, migration text, pending text, INOUT failures text[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    undone constant text := substring(migration FROM '(.*)\.rollback$'); -- NULL if this is no rollback
BEGIN
    CALL tenancy.begin_step();
    INSERT INTO tenancy.journal (run_id, migration, schema_name, milliseconds, attempt, outcome, problem)
    SELECT
        finish_run.run_id, finish_run.migration, j.schema_name, 0, j.attempt, 'failed',
        'the script has ended, and is pending again: this tenant is changed'
    FROM tenancy.journal AS j
    WHERE j.run_id = finish_run.run_id AND j.outcome = 'done' AND j.schema_name IN (
        SELECT l.schema_name FROM tenancy.look(pending) AS l WHERE l.is_pending
    );
    failures := failures || ARRAY(
        SELECT regexp_replace(concat_ws(': ', j.migration, j.schema_name, j.problem), '[[:cntrl:]]+', ' ', 'g')
        FROM (
            SELECT DISTINCT ON (a.schema_name) a.*
            FROM tenancy.journal AS a
            WHERE a.run_id = finish_run.run_id
            ORDER BY a.schema_name, a.id DESC
        ) AS j
        WHERE j.outcome IN ('failed', 'locked') AND to_regnamespace(quote_ident(j.schema_name)) IS NOT NULL
        ORDER BY j.id
    );
    UPDATE tenancy.runs AS r SET finished_at = clock_timestamp() WHERE r.id = finish_run.run_id;
    BEGIN
        UPDATE tenancy.migrations AS m SET is_applied = true
        WHERE m.name = finish_run.migration AND NOT m.is_applied AND (
            SELECT count(*) = 0 OR NOT bool_and(l.is_pending) FROM tenancy.look(finish_run.pending) AS l
        );
    EXCEPTION -- on Citus: inside no other such block
        WHEN OTHERS THEN
            NULL; -- such as a full disk: the run that does what is left will find some done
    END;

    IF undone <> '' AND NOT tenancy.is_rehearsal() AND NOT tenancy.is_canary() AND NOT EXISTS (
        SELECT FROM tenancy.look(pending) AS l WHERE l.is_pending
    ) THEN
        DELETE FROM tenancy.migrations AS m
        WHERE m.name = undone OR ( -- with a rollback goes what later took something away from the same table
            m.name COLLATE "C" > undone
            AND EXISTS (
                SELECT FROM tenancy.effects AS e
                INNER JOIN tenancy.effects AS f USING (table_name)
                WHERE e.migration = m.name AND f.migration = undone AND e.made = '{}'
            )
        );
    END IF;
END
$procedure$;

-- Says how runs ended, or raises: if tenants were left, or if others than psql might take it for the whole.
CREATE OR REPLACE PROCEDURE tenancy.report_runs(
    runs bigint[], title text, failures text[],
    INOUT done integer, INOUT already_done integer, INOUT failed integer, INOUT slowest_ms numeric, INOUT seconds numeric
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    verb constant text := CASE WHEN tenancy.is_rehearsal() THEN 'rehearsed' ELSE 'done' END;
    named constant text[] := ARRAY(
        SELECT CASE WHEN starts_with(f.said, title || ': ') THEN substr(f.said, length(title) + 3) ELSE f.said END
        FROM unnest(failures) AS f (said)
    );
BEGIN
    SELECT count(*) FILTER (WHERE j.outcome IN ('done', 'rehearsed')), coalesce(max(j.slowest), 0)
    INTO done, slowest_ms
    FROM (
        SELECT DISTINCT ON (a.run_id, a.schema_name) a.outcome, max(a.milliseconds) OVER () AS slowest
        FROM tenancy.journal AS a
        WHERE a.run_id = ANY (runs)
        ORDER BY a.run_id, a.schema_name, a.id DESC
    ) AS j;
    SELECT sum(r.already_done), round(extract(epoch FROM sum(r.finished_at - r.started_at))::numeric, 1)
    INTO already_done, seconds
    FROM tenancy.runs AS r WHERE r.id = ANY (runs);
    failed := cardinality(failures);

    IF failed > 0 THEN
        RAISE EXCEPTION '%: % %, % done before, % FAILED', title, done, verb, already_done, failed
        USING
            DETAIL = array_to_string(
                named[1:50] || CASE WHEN failed > 50 THEN '... all are in tenancy.journal' END, E'\n'
            ),
            HINT = CASE
                WHEN starts_with(named[1], 'template_tenant: ') THEN 'No tenant is touched before template_tenant. '
                ELSE 'A tenant that failed is as it was. '
            END || 'Mend the cause, then run the same command again: it does what is left.';
    ELSIF (tenancy.is_rehearsal() OR tenancy.is_canary()) AND current_setting('application_name') <> 'psql' THEN
        RAISE EXCEPTION '%: % %, none failed, slowest % ms', title, done, verb, slowest_ms
        USING HINT = 'An error, lest yoyo mark it: tenancy.dry_run or .tenants is set, and application_name is not psql.';
    END IF;
END
$procedure$;

-- The runs, newest first, to watch from another session while one goes on.
CREATE OR REPLACE VIEW tenancy.progress AS
SELECT
    p.*,
    round(p.still_to_do / nullif(p.done_per_second, 0) / 60, 1) AS minutes_left
FROM (
    SELECT
        r.id AS run_id,
        r.migration,
        r.pid,
        CASE
            WHEN r.finished_at IS NOT NULL THEN 'ended'
            WHEN pg_is_in_recovery() THEN 'unknown: ask the primary'
            WHEN r.pid <> pg_backend_pid() AND r.started_at >= pg_postmaster_start_time() AND EXISTS (
                SELECT FROM pg_stat_activity AS a -- with another start, which not all may see, it is another's number
                WHERE
                    a.pid = r.pid
                    AND a.datname = current_database()
                    AND (a.backend_start <= r.started_at) IS NOT FALSE
            ) THEN 'running'
            ELSE 'killed'
        END AS state,
        j.done,
        CASE WHEN r.finished_at IS NULL THEN greatest(r.to_do - j.done - j.failed, 0) ELSE 0 END AS still_to_do,
        j.failed,
        j.locked,
        round(j.done / nullif(extract(epoch FROM j.last_at - r.started_at), 0), 1) AS done_per_second
    FROM tenancy.runs AS r
    CROSS JOIN LATERAL (
        SELECT
            count(*) FILTER (WHERE t.outcome IN ('done', 'rehearsed')) AS done,
            count(*) FILTER (WHERE t.outcome = 'failed') AS failed,
            count(*) FILTER (WHERE t.outcome = 'locked') AS locked,
            max(t.finished_at) AS last_at
        FROM (
            SELECT DISTINCT ON (schema_name) * FROM tenancy.journal WHERE run_id = r.id ORDER BY schema_name, id DESC
        ) AS t
    ) AS j
) AS p
ORDER BY p.run_id DESC;

CALL tenancy.make_private('tenancy');
