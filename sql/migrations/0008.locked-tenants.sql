-- What a run does about tenants that are locked: it names who holds them, and tries them again.
--
-- depends: 0007.rename-parts

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- Who holds locks on a tenant's tables, on what their foreign keys point at, or on what they inherit from or to.
CREATE OR REPLACE FUNCTION tenancy.lock_holders(tenant name)
RETURNS text
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    WITH RECURSIVE concerned (oid) AS (
        SELECT c.oid FROM pg_class AS c WHERE c.relnamespace = to_regnamespace(quote_ident(tenant))
        UNION
        SELECT related.oid
        FROM concerned
        CROSS JOIN LATERAL (
            SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = concerned.oid
            UNION ALL
            SELECT i.inhparent FROM pg_inherits AS i WHERE i.inhrelid = concerned.oid
        ) AS related (oid)
    )

    SELECT coalesce(string_agg(DISTINCT CASE
        WHEN x.gid IS NULL THEN format(
            'pid %s (%s, in a transaction since %s)',
            coalesce(l.pid::text, 'none'),
            coalesce(nullif(a.application_name, ''), a.usename, a.backend_type, 'unknown'),
            coalesce(a.xact_start::timestamptz(0)::text, 'a time that is hidden')
        )
        ELSE format(
            'a prepared transaction (of %s, since %s; to end it: ROLLBACK PREPARED %L)',
            x.owner, x.prepared::timestamptz(0), x.gid
        )
    END, ', '), 'a transaction that was not found: it may have ended')
    FROM pg_locks AS l
    LEFT JOIN pg_stat_activity AS a ON l.pid = a.pid
    LEFT JOIN ( -- its locks have no pid; the one on its own number tells which they are
        SELECT
            k.virtualtransaction,
            p.gid,
            p.owner,
            p.prepared
        FROM pg_locks AS k
        INNER JOIN pg_prepared_xacts AS p ON k.transactionid = p.transaction
        WHERE k.pid IS NULL
    ) AS x ON l.pid IS NULL AND l.virtualtransaction = x.virtualtransaction
    WHERE
        l.granted
        AND l.pid IS DISTINCT FROM pg_backend_pid()
        AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
        AND l.relation IN (
            SELECT concerned.oid FROM concerned
            UNION ALL
            SELECT f.confrelid FROM pg_constraint AS f
            WHERE f.connamespace = to_regnamespace(quote_ident(tenant)) AND f.contype = 'f'
        );
$function$;

-- The tenants of a run's next pass, NULL if there is none: template_tenant alone, and nobody after it if it failed;
-- then all others. Those that were locked are tried again after a pause, with an attempt that waits longer, up to
-- attempts: first ten of them, and if these are all locked still, as when a backup reads everything, no more. The
-- setting tenancy.give_up_after, an interval, ends that earlier.
CREATE OR REPLACE PROCEDURE tenancy.next_pass(
    run_id bigint, pending text, lock_timeout_ms integer, attempts integer, INOUT attempt integer, INOUT queue name[]
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    tried integer; -- tenants, at this attempt
    went boolean; -- whether any of them was not locked
    some_locked boolean;
    template_locked boolean;
    template_failed boolean;
    suspects name[];
    give_up_at timestamptz;
BEGIN
    CALL tenancy.begin_step();
    -- Where runs of this migration were killed, the tenants whose turn it was come last: if their own code ends the
    -- session, the others are done before.
    SELECT array_agg(r.turn) INTO suspects
    FROM tenancy.runs AS this
    INNER JOIN tenancy.runs AS r ON this.migration = r.migration
    WHERE this.id = next_pass.run_id AND r.id < this.id AND r.finished_at IS NULL;
    SELECT r.started_at + nullif(current_setting('tenancy.give_up_after', true), '')::interval INTO give_up_at
    FROM tenancy.runs AS r
    WHERE r.id = next_pass.run_id;
    LOOP
        SELECT
            count(*) FILTER (WHERE j.attempt = next_pass.attempt),
            coalesce(bool_or(j.outcome <> 'locked' AND j.attempt = next_pass.attempt), false),
            coalesce(bool_or(j.outcome = 'failed' AND j.schema_name = 'template_tenant'), false)
        INTO tried, went, template_failed
        FROM tenancy.journal AS j
        WHERE j.run_id = next_pass.run_id;
        SELECT
            array_agg(
                l.schema_name ORDER BY
                    l.schema_name <> 'template_tenant', coalesce(l.schema_name = ANY (suspects), false), t.last_id,
                    l.schema_name
            ) FILTER (WHERE (t.last_attempt = next_pass.attempt) IS NOT TRUE),
            coalesce(bool_or(t.last_id IS NOT NULL), false),
            coalesce(bool_or(l.schema_name = 'template_tenant' AND t.last_attempt = next_pass.attempt), false)
        INTO queue, some_locked, template_locked
        FROM tenancy.look(pending) AS l
        LEFT JOIN (
            SELECT
                j.schema_name,
                max(j.id) AS last_id,
                max(j.attempt) AS last_attempt,
                bool_or(j.outcome <> 'locked') AS has_ended
            FROM tenancy.journal AS j
            WHERE j.run_id = next_pass.run_id
            GROUP BY 1
        ) AS t ON l.schema_name = t.schema_name
        WHERE l.is_pending AND t.has_ended IS NOT TRUE;
        IF template_locked OR template_failed THEN
            queue := NULL;
        ELSIF queue[1] = 'template_tenant' THEN
            queue := queue[1:1];
        ELSIF attempt > 1 AND tried = 0 THEN
            queue := queue[1:10];
        ELSIF attempt > 1 AND NOT went THEN
            queue := NULL;
        END IF;
        EXIT WHEN queue IS NOT NULL OR NOT some_locked OR template_failed;
        EXIT WHEN attempt = attempts OR clock_timestamp() > give_up_at;
        PERFORM pg_sleep(attempt * 3 * lock_timeout_ms / 1000.0);
        attempt := attempt + 1;
    END LOOP;
END
$procedure$;

CALL tenancy.make_private('tenancy');
