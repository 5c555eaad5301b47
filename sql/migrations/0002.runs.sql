-- How a run of a migration through the tenants begins, goes on, is watched and ends. For 0003, which runs it.
--
-- depends: 0001.tenancy

SET LOCAL search_path = pg_catalog, pg_temp;

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
        WHERE t.schema_name ~ %L
        GROUP BY 1', pending, pattern
    );
END
$function$;

-- Begins a run, or refuses to: one runner at a time.
CREATE OR REPLACE PROCEDURE tenancy.start_run(
    migration text, pending text, script text, lock_timeout_ms integer, attempts integer,
    INOUT run_id bigint, INOUT already_done integer
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    matching integer;
    to_do integer;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN -- else a script overlooks what it waited for
        RAISE EXCEPTION 'the isolation level must be read committed, not %', current_setting('transaction_isolation')
        USING HINT = $$PGOPTIONS='-c default_transaction_isolation=read\ committed'$$;
    END IF;
    LOCK TABLE tenancy.runs IN SHARE ROW EXCLUSIVE MODE; -- of two that begin at once, one sees the other
    IF EXISTS (SELECT FROM tenancy.progress AS p WHERE p.state = 'running') THEN
        RAISE EXCEPTION 'the tenants are being migrated already, by pid %', (
            SELECT string_agg(r.pid::text, ', ')
            FROM tenancy.runs AS r
            INNER JOIN tenancy.progress AS p ON r.id = p.run_id
            WHERE p.state = 'running'
        )
        USING HINT = 'It goes on even if its client died. Wait for its end, or pg_terminate_backend(pid); then repeat.';
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
    END IF;
    INSERT INTO tenancy.runs AS r (migration, pid, to_do)
    VALUES (migration, pg_backend_pid(), to_do)
    RETURNING r.id INTO run_id;

    IF NOT tenancy.is_rehearsal() AND NOT tenancy.is_canary() THEN
        DELETE FROM tenancy.migrations AS m WHERE m.name IN (migration, regexp_replace(migration, '\.rollback$', ''));
        INSERT INTO tenancy.migrations
        SELECT migration, pending, script, lock_timeout_ms, attempts WHERE migration !~ '\.rollback$';
    END IF;
    -- Of tables that are gone: their oid may be another's one day.
    DELETE FROM tenancy.undo AS u WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = u.target);
    DELETE FROM tenancy.renames_left AS l WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = l.sequence);
END
$procedure$;

-- The tenants of a run's next pass, NULL if there is none: template_tenant alone, and nobody after it if it failed;
-- then all others. After a pass in which some were locked comes a pause, and an attempt that waits longer, up to
-- attempts.
CREATE OR REPLACE PROCEDURE tenancy.next_pass(
    run_id bigint, pending text, lock_timeout_ms integer, attempts integer, INOUT attempt integer, INOUT queue name[]
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    seen record;
    suspect name;
BEGIN
    SELECT
        coalesce(bool_or(j.outcome = 'locked' AND j.attempt = next_pass.attempt), false) AS some_locked,
        coalesce(bool_or(j.outcome = 'failed' AND j.schema_name = 'template_tenant'), false) AS template_failed
    INTO seen
    FROM tenancy.journal AS j
    WHERE j.run_id = next_pass.run_id;
    queue := NULL;
    IF seen.template_failed OR (seen.some_locked AND attempt = attempts) THEN
        RETURN;
    END IF;
    IF seen.some_locked THEN
        PERFORM pg_sleep(attempt * 3 * lock_timeout_ms / 1000.0);
        attempt := attempt + 1;
    END IF;
    -- Where the last run of this migration was killed, the tenant whose turn it was comes last: if its own code ends
    -- the session, the others are done before.
    SELECT min(l.schema_name) INTO suspect
    FROM tenancy.look(pending) AS l
    INNER JOIN tenancy.progress AS p ON p.run_id = (
        SELECT max(r.id) FROM tenancy.runs AS r
        WHERE r.id < next_pass.run_id AND r.migration = (
            SELECT this.migration FROM tenancy.runs AS this WHERE this.id = next_pass.run_id
        )
    )
    WHERE l.is_pending AND p.state = 'killed' AND l.schema_name > (
        SELECT j.schema_name FROM tenancy.journal AS j WHERE j.run_id = p.run_id ORDER BY j.id DESC LIMIT 1
    );
    SELECT array_agg(
        l.schema_name
        ORDER BY l.schema_name <> 'template_tenant', coalesce(l.schema_name = suspect, false), l.schema_name
    ) INTO queue
    FROM tenancy.look(pending) AS l
    WHERE l.is_pending AND l.schema_name NOT IN (
        SELECT j.schema_name FROM tenancy.journal AS j WHERE j.run_id = next_pass.run_id AND j.outcome <> 'locked'
    );
    IF queue[1] = 'template_tenant' THEN
        queue := queue[1:1];
    END IF;
END
$procedure$;

-- Ends a run. Where a tenant is as before though its script has ended, its own code has undone it: it has failed.
CREATE OR REPLACE PROCEDURE tenancy.finish_run(run_id bigint, migration text, pending text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
BEGIN
    INSERT INTO tenancy.journal (run_id, migration, schema_name, milliseconds, attempt, outcome, problem)
    SELECT
        finish_run.run_id, finish_run.migration, j.schema_name, 0, j.attempt, 'failed',
        'the script has ended, and is pending again'
    FROM tenancy.journal AS j
    WHERE j.run_id = finish_run.run_id AND j.outcome = 'done' AND j.schema_name IN (
        SELECT l.schema_name FROM tenancy.look(pending) AS l WHERE l.is_pending
    );
    UPDATE tenancy.runs AS r SET finished_at = clock_timestamp() WHERE r.id = finish_run.run_id;
END
$procedure$;

-- Says how a run ended, or raises: if tenants were left, or if others than psql might take it for the whole.
CREATE OR REPLACE PROCEDURE tenancy.report_run(
    run_id bigint, attempts integer, migration text, already_done integer,
    INOUT done integer, INOUT failed integer, INOUT slowest_ms numeric, INOUT seconds numeric
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    verb constant text := CASE WHEN tenancy.is_rehearsal() THEN 'rehearsed' ELSE 'done' END;
    failures text[];
    template_failed boolean;
BEGIN
    SELECT
        count(*) FILTER (WHERE j.outcome IN ('done', 'rehearsed')),
        coalesce(max(j.slowest), 0),
        coalesce(bool_or(j.is_left AND j.schema_name = 'template_tenant'), false),
        coalesce(array_agg(format('%s: %s', j.schema_name, j.problem) ORDER BY j.id) FILTER (WHERE j.is_left), '{}')
    INTO done, slowest_ms, template_failed, failures
    FROM (
        SELECT DISTINCT ON (a.schema_name)
            a.*,
            a.outcome = 'failed' OR (a.outcome = 'locked' AND a.attempt = attempts) AS is_left,
            max(a.milliseconds) OVER () AS slowest
        FROM tenancy.journal AS a
        WHERE a.run_id = report_run.run_id
        ORDER BY a.schema_name, a.id DESC
    ) AS j;
    failed := cardinality(failures);
    seconds := round(extract(epoch FROM r.finished_at - r.started_at)::numeric, 1)
        FROM tenancy.runs AS r
        WHERE r.id = run_id;

    IF failed > 0 THEN
        RAISE EXCEPTION '%: % %, % done before, % FAILED', migration, done, verb, already_done, failed
        USING
            DETAIL = array_to_string(
                failures[1:50] || CASE WHEN failed > 50 THEN '... all are in tenancy.journal' END, E'\n'
            ),
            HINT = CASE
                WHEN template_failed THEN 'No tenant is touched before template_tenant. '
                ELSE 'A tenant that failed is as it was. '
            END || 'Mend the cause, then run the same command again: it does what is left.';
    ELSIF (tenancy.is_rehearsal() OR tenancy.is_canary()) AND current_setting('application_name') <> 'psql' THEN
        RAISE EXCEPTION '%: % %, none failed, slowest % ms', migration, done, verb, slowest_ms
        USING HINT = 'An error, lest this be marked as applied: tenancy.dry_run or tenancy.tenants is set.';
    END IF;
END
$procedure$;

-- The runs, newest first, to watch from another session while one goes on.
CREATE OR REPLACE VIEW tenancy.progress AS
SELECT
    r.id AS run_id,
    r.migration,
    CASE
        WHEN r.finished_at IS NOT NULL THEN 'ended'
        WHEN r.pid <> pg_backend_pid() AND EXISTS ( -- with another start, it would be another process of this number
            SELECT FROM pg_stat_activity AS a WHERE a.pid = r.pid AND (a.backend_start <= r.started_at) IS NOT FALSE
        ) THEN 'running'
        ELSE 'killed'
    END AS state,
    j.done,
    greatest(r.to_do - j.done - j.failed, 0) AS still_to_do,
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
ORDER BY r.id DESC;

CALL tenancy.make_private('tenancy');
