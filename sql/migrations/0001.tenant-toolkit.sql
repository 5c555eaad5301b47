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

-- It is no tenant's: where Citus makes each new schema a distributed one, this one stays on the coordinator.
SET LOCAL citus.enable_schema_based_sharding = off; -- noqa: PRS
CREATE SCHEMA job_stats;

-- What a tenant is: the one place to change.
CREATE VIEW job_stats.tenants AS
SELECT
    oid AS schema_oid,
    nspname AS schema_name
FROM pg_catalog.pg_namespace
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
    problem text, -- NULL if there was none
    undo text -- SQL that restores what was dropped, name for name; NULL if it is not to be run, or has been
);

CREATE INDEX ix_journal_schema_name ON job_stats.journal (schema_name);
CREATE INDEX ix_journal_run_id ON job_stats.journal (run_id);

-- The runs, newest first, to watch from another session while one goes on.
CREATE VIEW job_stats.progress AS
SELECT
    r.id AS run_id,
    r.migration,
    CASE
        WHEN r.finished_at IS NOT NULL THEN 'ended'
        WHEN r.pid IN (SELECT l.pid FROM pg_catalog.pg_locks AS l WHERE l.locktype = 'advisory') THEN 'running'
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
BEGIN ATOMIC
    SELECT coalesce(string_agg(DISTINCT format(
        'pid %s (%s, in a transaction since %s)',
        coalesce(l.pid::text, 'none'),
        coalesce(nullif(a.application_name, ''), a.usename, a.backend_type, 'a prepared transaction'),
        coalesce(a.xact_start::timestamptz(0)::text, 'a time that is hidden')
    ), ', '), 'a transaction that has ended')
    FROM pg_catalog.pg_locks AS l
    LEFT JOIN pg_catalog.pg_stat_activity AS a ON l.pid = a.pid
    WHERE
        l.granted
        AND l.pid IS DISTINCT FROM pg_backend_pid()
        AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
        AND l.relation IN (
            SELECT c.oid FROM pg_catalog.pg_class AS c
            WHERE c.relnamespace = to_regnamespace(quote_ident(tenant)) AND c.relname LIKE '%job_stats%'
            UNION ALL
            SELECT f.confrelid FROM pg_catalog.pg_constraint AS f
            WHERE f.connamespace = to_regnamespace(quote_ident(tenant)) AND f.contype = 'f'
        );
END;

-- Runs several statements as one: Citus refuses more than one in an EXECUTE.
CREATE PROCEDURE job_stats.run_script(script text)
LANGUAGE plpgsql
AS $procedure$
BEGIN
    EXECUTE 'DO ' || quote_literal('BEGIN ' || script || E'\nEND');
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
    dry_run constant boolean := coalesce(nullif(current_setting('job_stats.dry_run', true), ''), 'off');
    canary constant text := nullif(current_setting('job_stats.tenants', true), '');
    pattern constant text := '^(' || coalesce(canary, '.*') || ')$';
    caller_path constant text := current_setting('search_path');
    start constant timestamptz := clock_timestamp();
    -- IS TRUE makes the IN a lookup in a hash table. As a join it may be planned as all schemas times all their tables.
    find_tenants constant text := format(
        'SELECT array_agg(schema_name ORDER BY schema_name <> ''template_tenant'', schema_name)
        FROM job_stats.tenants
        WHERE schema_name ~ %L AND (schema_oid IN (%s)) IS TRUE AND schema_name <> ALL ($1)', pattern, pending
    );
    this_run bigint;
    tenant_start timestamptz;
    tenant_ms numeric;
    attempt integer := 1;
    queue name[];
    tenant name;
    tried name[] := '{}'; -- done, rehearsed or failed: not again in this run
    result text;
    reason text;
    restore text;
    locked text[];
    failures text[] := '{}';
BEGIN
    COMMIT; -- in a transaction block this fails here, not after the first tenant
    IF current_setting('transaction_isolation') <> 'read committed' THEN -- else a script overlooks what it waited for
        RAISE EXCEPTION 'the isolation level must be read committed, not %', current_setting('transaction_isolation')
        USING HINT = $$PGOPTIONS='-c default_transaction_isolation=read\ committed'$$;
    END IF;

    IF NOT pg_try_advisory_lock('pg_namespace'::regclass::integer, 'job_stats'::regnamespace::integer) THEN
        RAISE EXCEPTION 'the tenants are being migrated already, by pid %', (
            SELECT l.pid
            FROM pg_catalog.pg_locks AS l
            INNER JOIN pg_catalog.pg_database AS d ON l.database = d.oid
            WHERE
                (l.classid, l.objid) = ('pg_namespace'::regclass, 'job_stats'::regnamespace)
                AND l.locktype = 'advisory'
                AND l.granted
                AND d.datname = current_database()
        )
        USING HINT = 'It goes on even if its client died. Wait for its end, or pg_terminate_backend(pid); then repeat.';
    END IF;

    IF canary IS NOT NULL AND NOT EXISTS (SELECT FROM job_stats.tenants AS t WHERE t.schema_name ~ pattern) THEN
        RAISE EXCEPTION 'no tenant matches %', pattern USING HINT = 'See job_stats.tenants: the setting, and the view.';
    END IF;
    EXECUTE find_tenants INTO queue USING tried;
    INSERT INTO job_stats.runs AS r (migration, pid, to_do)
    VALUES (migration, pg_backend_pid(), coalesce(cardinality(queue), 0))
    RETURNING r.id INTO this_run;
    already_done := greatest(count(*) - coalesce(cardinality(queue), 0), 0)
        FROM job_stats.tenants AS t
        WHERE t.schema_name ~ pattern AND (t.schema_oid IN (
            SELECT c.relnamespace
            FROM pg_catalog.pg_class AS c
            WHERE c.relname IN ('vinted_job_stats', 'marketplace_job_stats') AND c.relkind = 'r'
        )) IS TRUE;
    COMMIT;

    WHILE queue IS NOT NULL LOOP
        IF queue[1] = 'template_tenant' THEN
            queue := queue[1:1];
        END IF;

        locked := '{}';
        FOREACH tenant IN ARRAY queue LOOP
            tenant_start := clock_timestamp();
            result := 'done';
            reason := NULL;
            restore := NULL;
            SET LOCAL synchronous_commit = off; -- the next synchronous commit, such as the deploy tool's mark, flushes all
            SET LOCAL row_security = off; -- an error rather than rows unseen
            SET LOCAL plan_cache_mode = force_generic_plan; -- the helpers' queries are planned once, not in each tenant
            SET LOCAL citus.propagate_set_commands = 'local';
            EXECUTE format('SET LOCAL lock_timeout = %s', attempt * lock_timeout_ms);
            IF has_parameter_privilege('deadlock_timeout', 'SET') THEN
                SET LOCAL deadlock_timeout = '10ms'; -- the victim of a deadlock is to be this run, not old code
            END IF;
            BEGIN
                PERFORM
                    set_config('search_path', quote_ident(tenant) || ', pg_temp', true),
                    set_config('job_stats.undo', '', true);
                IF current_schema() IS DISTINCT FROM tenant THEN
                    RAISE insufficient_privilege USING MESSAGE = 'permission denied for schema ' || tenant;
                END IF;
                CALL job_stats.run_script(run);
                IF dry_run THEN
                    RAISE SQLSTATE 'JS000';
                END IF;
                restore := current_setting('job_stats.undo');
                PERFORM set_config('search_path', caller_path, true);
            EXCEPTION
                WHEN SQLSTATE 'JS000' THEN
                    result := 'rehearsed';
                WHEN lock_not_available OR deadlock_detected THEN
                    result := 'locked';
                    reason := 'locked by ' || job_stats.lock_holders(tenant);
                    locked := locked || format('%s: %s', tenant, reason);
                WHEN OTHERS THEN
                    CONTINUE WHEN to_regnamespace(quote_ident(tenant)) IS NULL; -- the tenant has been dropped
                    result := 'failed';
                    GET STACKED DIAGNOSTICS reason = PG_EXCEPTION_DETAIL;
                    reason := concat_ws(' ', SQLERRM, nullif(reason, ''));
                    failures := failures || format('%s: %s', tenant, reason);
            END;
            tenant_ms := round((extract(epoch FROM clock_timestamp() - tenant_start) * 1000)::numeric, 1);
            INSERT INTO job_stats.journal
                (run_id, migration, schema_name, milliseconds, attempt, outcome, problem, undo)
            VALUES (this_run, migration, tenant, tenant_ms, attempt, result, reason, restore);
            COMMIT;

            slowest_ms := greatest(slowest_ms, tenant_ms);
            IF result <> 'locked' THEN
                tried := tried || tenant;
            END IF;
            IF result IN ('done', 'rehearsed') THEN
                done := done + 1;
            END IF;
        END LOOP;

        EXIT WHEN queue = '{template_tenant}' AND failures <> '{}';
        IF locked <> '{}' THEN
            IF attempt = attempts THEN
                failures := failures || locked;
                EXIT;
            END IF;
            PERFORM pg_sleep(attempt * 3 * lock_timeout_ms / 1000.0);
            attempt := attempt + 1;
        END IF;
        EXECUTE find_tenants INTO queue USING tried;
    END LOOP;

    UPDATE job_stats.runs AS r SET finished_at = clock_timestamp() WHERE r.id = this_run;
    COMMIT;
    PERFORM pg_advisory_unlock('pg_namespace'::regclass::integer, 'job_stats'::regnamespace::integer);
    failed := cardinality(failures);
    seconds := round(extract(epoch FROM clock_timestamp() - start)::numeric, 1);

    IF failed > 0 THEN
        RAISE EXCEPTION '%: % %, % done before, % FAILED',
            migration, done, CASE WHEN dry_run THEN 'rehearsed' ELSE 'done' END, already_done, failed
        USING
            DETAIL = array_to_string(
                failures[1:50] || CASE WHEN failed > 50 THEN '... all are in job_stats.journal' END, E'\n'
            ),
            HINT = CASE
                WHEN queue = '{template_tenant}' THEN 'No tenant is touched before template_tenant. '
                ELSE 'A tenant that failed is as it was. '
            END || 'Mend the cause, then run the same command again: it does what is left.';
    ELSIF (dry_run OR canary IS NOT NULL) AND current_setting('application_name') <> 'psql' THEN
        RAISE EXCEPTION '%: % %, none failed, slowest % ms',
            migration, done, CASE WHEN dry_run THEN 'rehearsed' ELSE 'done' END, slowest_ms
        USING HINT = 'An error, lest this be marked as applied: job_stats.dry_run or job_stats.tenants is set.';
    END IF;
END
$procedure$;


---- For the scripts ----

-- Procedures with a search_path of their own keep their plans from one tenant to the next; the others work on the
-- tenant that search_path names. What restores the things they drop, as SQL, goes to the setting job_stats.undo, and
-- thence into the journal.

CREATE PROCEDURE job_stats.drop_and_remember(drop_it text, undo text)
LANGUAGE plpgsql
AS $procedure$
BEGIN
    EXECUTE drop_it;
    PERFORM set_config('job_stats.undo', undo || E'\n' || current_setting('job_stats.undo'), true);
END
$procedure$;

-- Drops the unique keys on exactly these columns, in any order: constraints and indexes, whatever they are called.
CREATE PROCEDURE job_stats.drop_unique_keys(target regclass, columns name[])
LANGUAGE plpgsql
SET search_path = pg_catalog
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
                CASE WHEN c.oid IS NOT NULL THEN
                    format('ALTER INDEX %s SET (', i.indexrelid::regclass) || array_to_string(x.reloptions, ', ') || ');'
                END,
                format('COMMENT ON INDEX %s IS ', i.indexrelid::regclass)
                || quote_literal(obj_description(i.indexrelid, 'pg_class')) || ';',
                format('COMMENT ON CONSTRAINT %s ON %s IS ', quote_ident(c.conname), target)
                || quote_literal(obj_description(c.oid, 'pg_constraint')) || ';',
                CASE WHEN i.indisclustered THEN format('ALTER TABLE %s CLUSTER ON %I;', target, x.relname) END
            ) AS undo
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
        CALL job_stats.drop_and_remember(key.drop_it, key.undo);
    END LOOP;
END
$procedure$;

-- Drops the foreign keys that point at the table referenced, if that exists.
CREATE PROCEDURE job_stats.drop_foreign_keys(target regclass, referenced text)
LANGUAGE plpgsql
SET search_path = pg_catalog
AS $procedure$
DECLARE
    key record;
BEGIN
    FOR key IN
        SELECT
            format('ALTER TABLE %s DROP CONSTRAINT %I', target, c.conname) AS drop_it,
            concat_ws(
                E'\n',
                format('CALL job_stats.add_foreign_key(%L, %L, %L);', target, c.conname, pg_get_constraintdef(c.oid)),
                format('COMMENT ON CONSTRAINT %I ON %s IS ', c.conname, target)
                || quote_literal(obj_description(c.oid, 'pg_constraint')) || ';'
            ) AS undo
        FROM pg_constraint AS c
        WHERE c.conrelid = target AND c.contype = 'f' AND c.confrelid = to_regclass(referenced)
        ORDER BY c.conname
    LOOP
        CALL job_stats.drop_and_remember(key.drop_it, key.undo);
    END LOOP;
END
$procedure$;

-- Adds a foreign key, NOT VALID if there are rows that violate it: they stay, and new ones are checked.
CREATE PROCEDURE job_stats.add_foreign_key(target regclass, key name, definition text)
LANGUAGE plpgsql
SET search_path = pg_catalog
AS $procedure$
BEGIN
    EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I %s', target, key, definition);
EXCEPTION
    WHEN foreign_key_violation THEN
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I %s NOT VALID', target, key, definition);
END
$procedure$;

-- Restores what the tenant's last run of a migration dropped; otherwise is for tenants that were born migrated.
CREATE PROCEDURE job_stats.restore_dropped(migration text, otherwise text)
LANGUAGE plpgsql
AS $procedure$
DECLARE
    script text := (
        SELECT j.undo
        FROM job_stats.journal AS j
        WHERE j.schema_name = current_schema() AND j.migration = restore_dropped.migration AND j.undo IS NOT NULL
        ORDER BY j.id DESC
        LIMIT 1
    );
BEGIN
    CALL job_stats.run_script(coalesce(script, otherwise));
    UPDATE job_stats.journal AS j SET undo = NULL
    WHERE j.schema_name = current_schema() AND j.migration = restore_dropped.migration AND j.undo IS NOT NULL;
END
$procedure$;

-- Renames what still carries a table's former name: its indexes (and so their constraints), the sequences it owns, its
-- other constraints. A name that would grow beyond 63 bytes stays, and that of a sequence that is in use.
CREATE PROCEDURE job_stats.rename_parts(former_name name, target regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog
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


---- Job statistics: the legacy view, folding and unfolding ----

-- Gives a new relation the owner of the table it stems from, and takes back what default privileges have granted.
CREATE PROCEDURE job_stats.hand_over(relation regclass, origin regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog
AS $procedure$
DECLARE
    owner constant regrole := (SELECT relowner FROM pg_class WHERE oid = origin);
    receiver text;
BEGIN
    IF owner <> (SELECT relowner FROM pg_class WHERE oid = relation) THEN
        EXECUTE format('ALTER TABLE %s OWNER TO %s', relation, owner);
    END IF;
    FOR receiver IN
        SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
        FROM pg_class AS c
        CROSS JOIN aclexplode(c.relacl) AS a
        WHERE c.oid = relation AND a.grantee <> owner
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s', relation, receiver);
    END LOOP;
END
$procedure$;

-- Shows target's Vinted rows under the legacy name and in the legacy columns, for old code to read and write as before,
-- with the table's owner and grants. Not in the template: CREATE TABLE ... LIKE a view would copy no keys.
CREATE PROCEDURE job_stats.create_legacy_view(target regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog
AS $procedure$
DECLARE
    later constant name[] := '{marketplace, untimed_jobs, total_duration_ms}'; -- columns that old code does not know
    origin record;
    permission text;
BEGIN
    SELECT
        c.relnamespace::regnamespace AS tenant,
        c.relowner AS owner,
        (
            SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
            FROM pg_attribute AS a
            WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> ALL (later)
        ) AS columns,
        -- An invoker must be able to read every column of the view, whichever are asked for. Who may read some only
        -- would be refused: for them the owner reads, and the view's grants decide; but never past row-level security.
        c.relrowsecurity OR NOT EXISTS (
            SELECT FROM pg_attribute AS a
            CROSS JOIN aclexplode(a.attacl) AS g
            WHERE
                a.attrelid = target
                AND a.attacl IS NOT NULL
                AND NOT a.attisdropped
                AND g.privilege_type = 'SELECT'
        ) AS security_invoker
    INTO origin
    FROM pg_class AS c
    WHERE c.oid = target;
    IF origin.tenant = to_regnamespace('template_tenant') THEN
        RETURN;
    END IF;
    EXECUTE format(
        'CREATE VIEW %s.vinted_job_stats WITH (security_invoker = %s) AS
        SELECT %s FROM %s WHERE marketplace = ''vinted'' WITH CASCADED CHECK OPTION',
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
        FROM (
            SELECT NULL AS column_name, a.*
            FROM pg_class AS c
            CROSS JOIN aclexplode(c.relacl) AS a
            WHERE c.oid = target AND a.grantee <> origin.owner
            UNION ALL
            SELECT c.attname, a.*
            FROM pg_attribute AS c
            CROSS JOIN aclexplode(c.attacl) AS a
            WHERE
                c.attrelid = target
                AND c.attacl IS NOT NULL
                AND NOT c.attisdropped
                AND c.attname <> ALL (later)
        ) AS g
    LOOP
        EXECUTE permission;
    END LOOP;
END
$procedure$;

-- Folds the marketplaces of a day and action type into one row, as legacy code counts: into Vinted's, or else the
-- oldest. The rows as they were go to marketplace_job_stats_archive, from which unfold_marketplaces() restores them.
-- A tenant that has only Vinted's rows gets no archive.
CREATE PROCEDURE job_stats.fold_marketplaces()
LANGUAGE plpgsql
AS $procedure$
BEGIN
    IF NOT EXISTS (SELECT FROM marketplace_job_stats WHERE marketplace <> 'vinted') THEN
        RETURN;
    END IF;

    CREATE TABLE marketplace_job_stats_archive AS
    SELECT
        s.*,
        first_value(s.id) OVER (days ORDER BY s.marketplace <> 'vinted', s.id) AS folded_id,
        sum(s.total_jobs) OVER days AS folded_total_jobs,
        sum(s.success_count) OVER days AS folded_success_count,
        sum(s.failure_count) OVER days AS folded_failure_count,
        round(
            sum(s.avg_duration_ms::numeric * s.total_jobs) OVER days
            / nullif(sum(s.total_jobs) FILTER (WHERE s.avg_duration_ms IS NOT NULL) OVER days, 0)
        ) AS folded_avg_duration_ms
    FROM marketplace_job_stats AS s
    WHERE (s.action_type_id, s.date) IN (
        SELECT o.action_type_id, o.date FROM marketplace_job_stats AS o WHERE o.marketplace <> 'vinted'
    )
    WINDOW days AS (PARTITION BY s.action_type_id, s.date);
    ALTER TABLE marketplace_job_stats_archive REPLICA IDENTITY FULL; -- it may be published: FOR ALL TABLES
    CALL job_stats.hand_over('marketplace_job_stats_archive', 'marketplace_job_stats');

    -- A row elsewhere that refers to one that is folded makes the DELETE fail, unless its foreign key changes it instead.
    IF EXISTS (
        SELECT FROM pg_catalog.pg_trigger AS t -- which has an index by table, and pg_constraint none by confrelid
        INNER JOIN pg_catalog.pg_constraint AS c ON t.tgconstraint = c.oid AND t.tgrelid = c.confrelid
        WHERE t.tgrelid = (SELECT to_regclass('marketplace_job_stats')) AND c.confdeltype NOT IN ('a', 'r')
    ) AND EXISTS (SELECT FROM marketplace_job_stats_archive AS a WHERE a.id <> a.folded_id) THEN
        RAISE EXCEPTION 'a foreign key with an ON DELETE action would change what refers to folded rows'
        USING DETAIL = '(Make it ON DELETE NO ACTION until the rollback is done.)';
    END IF;

    DELETE FROM marketplace_job_stats AS s
    USING marketplace_job_stats_archive AS a
    WHERE (s.action_type_id, s.marketplace, s.date) = (a.action_type_id, a.marketplace, a.date) AND a.id <> a.folded_id;

    UPDATE marketplace_job_stats AS s
    SET
        marketplace = 'vinted',
        total_jobs = a.folded_total_jobs,
        success_count = a.folded_success_count,
        failure_count = a.folded_failure_count,
        avg_duration_ms = a.folded_avg_duration_ms
    FROM marketplace_job_stats_archive AS a
    WHERE (s.action_type_id, s.marketplace, s.date) = (a.action_type_id, a.marketplace, a.date) AND a.id = a.folded_id;

    SET CONSTRAINTS ALL IMMEDIATE; -- ALTER TABLE refuses while deferred checks are pending
END
$procedure$;

-- Restores what fold_marketplaces() archived, and credits to Vinted what legacy code has counted since. Refuses where
-- it would have to guess: where a folded row is gone, or counts less than it did.
CREATE PROCEDURE job_stats.unfold_marketplaces()
LANGUAGE plpgsql
AS $procedure$
DECLARE
    lost text[];
    columns text;
BEGIN
    IF to_regclass('marketplace_job_stats_archive') IS NULL THEN
        RETURN;
    END IF;

    SELECT array_agg(DISTINCT format('action type %s on %s', a.action_type_id, a.date)) INTO lost
    FROM marketplace_job_stats_archive AS a
    LEFT JOIN marketplace_job_stats AS s
        ON a.folded_id = s.id AND a.action_type_id = s.action_type_id AND a.date = s.date
    WHERE (
        s.total_jobs >= a.folded_total_jobs
        AND s.success_count >= a.folded_success_count
        AND s.failure_count >= a.folded_failure_count
    ) IS NOT TRUE;
    IF lost <> '{}' THEN
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
            WHEN a.folded_avg_duration_ms IS NULL THEN s.avg_duration_ms
            ELSE round(
                greatest(s.avg_duration_ms::numeric * s.total_jobs - a.folded_avg_duration_ms * a.folded_total_jobs, 0)
                / nullif(s.total_jobs - a.folded_total_jobs, 0)
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

    SELECT string_agg(quote_ident(t.attname), ', ') INTO columns
    FROM pg_catalog.pg_attribute AS t
    INNER JOIN pg_catalog.pg_attribute AS a USING (attname)
    WHERE
        t.attrelid = to_regclass('marketplace_job_stats')
        AND a.attrelid = to_regclass('marketplace_job_stats_archive')
        AND t.attnum > 0
        AND t.attgenerated = '';
    EXECUTE format(
        'INSERT INTO marketplace_job_stats (%1$s) OVERRIDING SYSTEM VALUE
        SELECT %1$s FROM marketplace_job_stats_archive WHERE id <> folded_id', columns
    );

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
            round(
                (s.avg_duration_ms::numeric * s.total_jobs + excluded.avg_duration_ms::numeric * excluded.total_jobs)
                / nullif(s.total_jobs + excluded.total_jobs, 0)
            ),
            s.avg_duration_ms,
            excluded.avg_duration_ms
        );

    DROP TABLE marketplace_job_stats_archive;
    SET CONSTRAINTS ALL IMMEDIATE; -- ALTER TABLE refuses while deferred checks are pending
END
$procedure$;


---- Status ----

-- What matters of a table, a fact a row. Opens no tenant's table, which would wait for its locks and stay in the server
-- process's memory, as pg_get_constraintdef, pg_get_viewdef and pg_relation_is_updatable do.
CREATE FUNCTION job_stats.facts(target oid)
RETURNS SETOF text
LANGUAGE sql
STABLE
SET quote_all_identifiers = off
BEGIN ATOMIC
    SELECT concat_ws(
        ' ', 'column', a.attname, format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'NOT NULL' END
    )
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = target AND a.attnum > 0
    UNION ALL
    SELECT concat_ws(
        ' ',
        'default of',
        a.attname,
        CASE WHEN a.attname = 'marketplace' AND a.attgenerated = '' THEN pg_get_expr(d.adbin, 0) END
    )
    FROM pg_catalog.pg_attribute AS a
    LEFT JOIN pg_catalog.pg_attrdef AS d ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    WHERE a.attrelid = target AND (d.oid IS NOT NULL OR a.attidentity <> '')
    UNION ALL
    SELECT concat('check of marketplace: ', (
        -- Its strings. They are the same when the column gets the name of its place in pg_class, which has 33 at least.
        SELECT string_agg(m[1], ', ' ORDER BY m[1])
        FROM regexp_matches(
            pg_get_expr(c.conbin, CASE WHEN a.attnum <= 33 THEN 'pg_catalog.pg_class'::regclass ELSE target END),
            '''(.*?)''', 'g'
        ) AS m
    ))
    FROM pg_catalog.pg_constraint AS c
    INNER JOIN pg_catalog.pg_attribute AS a ON c.conrelid = a.attrelid AND c.conkey = ARRAY[a.attnum]
    WHERE c.conrelid = target AND c.contype = 'c' AND c.convalidated AND a.attname = 'marketplace'
    UNION ALL
    SELECT format('%s on (%s)', CASE WHEN i.indisunique THEN 'unique key' ELSE 'index' END, (
        SELECT string_agg(a.attname, ', ' ORDER BY k.place)
        FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (attnum, place)
        INNER JOIN pg_catalog.pg_attribute AS a ON a.attrelid = target AND k.attnum = a.attnum
    ))
    FROM pg_catalog.pg_index AS i
    WHERE i.indrelid = target AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
    UNION ALL
    SELECT 'view of the Vinted rows'
    FROM pg_catalog.pg_class AS v
    WHERE
        v.oid = target
        AND v.relkind = 'v'
        AND v.reloptions @> '{check_option=cascaded}' -- which PostgreSQL gives only to a view that can be written
        AND (
            v.reloptions @> '{security_invoker=true}'
            OR EXISTS (SELECT FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = v.oid AND a.attacl IS NOT NULL)
        )
        AND (
            -- It has one rule, which compares with 'vinted', in bytes.
            SELECT count(*) = 1 AND bool_and(r.ev_action::text LIKE '%:constvalue 10 [ % 118 105 110 116 101 100 ]%')
            FROM pg_catalog.pg_rewrite AS r
            WHERE r.ev_class = v.oid
        );
END;

-- What each tenant is: legacy, migrated, contracted (migrated, without the legacy view and the default marketplace),
-- missing (it has no such table) or drifted. Then problem says how, in words; otherwise it is NULL.
CREATE VIEW job_stats.tenant_status AS
WITH tables AS MATERIALIZED (
    -- By subqueries: joins may be planned as all schemas times all their tables.
    SELECT
        t.*,
        (SELECT oid FROM pg_catalog.pg_class WHERE relnamespace = t.schema_oid AND relname = 'vinted_job_stats') AS old,
        (SELECT oid FROM pg_catalog.pg_class WHERE relnamespace = t.schema_oid AND relname = 'marketplace_job_stats')
            AS new
    FROM job_stats.tenants AS t
),

tenant_tables AS MATERIALIZED (
    SELECT
        t.schema_name,
        (SELECT relkind FROM pg_catalog.pg_class WHERE oid = t.old) AS old_kind,
        (SELECT relkind FROM pg_catalog.pg_class WHERE oid = t.new) AS new_kind,
        (
            SELECT oid FROM pg_catalog.pg_class
            WHERE relnamespace = t.schema_oid AND relname = 'marketplace_job_stats_archive'
        ) IS NOT NULL AS has_archive,
        ARRAY(SELECT job_stats.facts(t.old)) AS old_facts,
        ARRAY(SELECT job_stats.facts(t.new)) AS new_facts,
        -- Clones of the template have no key of this name; they, and the template, are born without the view.
        t.schema_name <> 'template_tenant' AND EXISTS (
            SELECT FROM pg_catalog.pg_constraint
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

-- Raises if a tenant has drifted, or is legacy while others are not. The setting job_stats.verify = off skips it.
CREATE PROCEDURE job_stats.verify(INOUT verified integer DEFAULT 0)
LANGUAGE plpgsql
AS $procedure$
DECLARE
    problems text[];
BEGIN
    IF current_setting('job_stats.verify', true) = 'off' THEN
        RETURN;
    END IF;
    SELECT
        count(*),
        array_agg(format('%s: %s', s.schema_name, coalesce(s.problem, 'is legacy')) ORDER BY s.schema_name)
        FILTER (WHERE s.state = 'drifted' OR (s.state = 'legacy' AND s.any_migrated))
    INTO verified, problems
    FROM (
        SELECT *, bool_or(state IN ('migrated', 'contracted')) OVER () AS any_migrated FROM job_stats.tenant_status
    ) AS s;
    IF problems <> '{}' THEN
        RAISE EXCEPTION '% of % tenants are not as they should be', cardinality(problems), verified
        USING
            DETAIL = array_to_string(problems[1:50] || CASE WHEN cardinality(problems) > 50 THEN '...' END, E'\n'),
            HINT = 'All: SELECT * FROM job_stats.tenant_status. For stragglers: psql -f each migration, from 0002 on.';
    END IF;
END
$procedure$;
