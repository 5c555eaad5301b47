-- The tenant toolkit: schema job_stats, with which a migration runs plain DDL in every tenant's schema.
--
-- Touches no tenant, and locks nothing that anybody uses. Undone by its rollback file, which refuses while a tenant
-- is migrated.
--
-- A migration is one CALL of job_stats.for_each_tenant that holds the DDL for one tenant. What it promises:
--   * One transaction per tenant: a tenant is wholly before or wholly after. An error in one leaves the others done.
--   * template_tenant first. It is the canary: an error there stops the run. And because a clone in the making
--     (CREATE TABLE ... LIKE) locks the template until it commits, no clone of the old template is overlooked.
--   * A tenant that is locked is put off, and tried again with more patience when the others are done.
--   * One row at the end, or an error that names each tenant left, why, and what to do. The same command run again
--     does what is left; a tenant that is done is not touched.
--   * One runner at a time, by an advisory lock.

CREATE SCHEMA job_stats;

-- What a tenant is: the one place to change.
CREATE VIEW job_stats.tenants AS
SELECT
    oid AS schema_oid,
    nspname AS schema_name
FROM pg_catalog.pg_namespace
WHERE nspname = 'template_tenant' OR starts_with(nspname::text, 'user_');

-- What was tried in each tenant: a row per attempt, written in the tenant's own transaction.
CREATE TABLE job_stats.journal (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_journal PRIMARY KEY,
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

-- The tenants that have such an ordinary table, of those that the setting job_stats.tenants admits.
CREATE FUNCTION job_stats.tenants_with(table_name name)
RETURNS SETOF name
LANGUAGE sql
STABLE
BEGIN ATOMIC
    SELECT t.schema_name
    FROM job_stats.tenants AS t
    INNER JOIN pg_catalog.pg_class AS c ON t.schema_oid = c.relnamespace
    WHERE
        c.relname = table_name
        AND c.relkind = 'r'
        AND t.schema_name ~ ('^(' || coalesce(nullif(current_setting('job_stats.tenants', true), ''), '.*') || ')$');
END;

-- Who holds what the DDL for a tenant may wait for: locks on its tables, and on those that its foreign keys point at.
CREATE FUNCTION job_stats.lock_holders(tenant name)
RETURNS text
LANGUAGE sql
STABLE
BEGIN ATOMIC
    SELECT coalesce(string_agg(DISTINCT format(
        'pid %s (%s, in a transaction since %s)',
        coalesce(l.pid::text, 'none'),
        coalesce(nullif(a.application_name, ''), a.usename, 'a prepared transaction'),
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
            WHERE c.relnamespace = to_regnamespace(quote_ident(tenant)) AND c.relkind IN ('r', 'v', 'S')
            UNION ALL
            SELECT f.confrelid FROM pg_catalog.pg_constraint AS f
            WHERE f.connamespace = to_regnamespace(quote_ident(tenant)) AND f.contype = 'f'
        );
END;

-- Runs a script of several statements: wrapped, because Citus refuses more than one in an EXECUTE.
CREATE PROCEDURE job_stats.run_script(script text)
LANGUAGE plpgsql
AS $procedure$
BEGIN
    EXECUTE 'DO ' || quote_literal('BEGIN ' || script || E'\nEND');
END
$procedure$;

-- Runs a script, whose unqualified names are the tenant's, in each tenant whose table from_table it turns into to_table.
-- Attempt n waits up to n * lock_timeout_ms for each lock; n * 3 * lock_timeout_ms later, attempt n + 1 follows.
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
    from_table name,
    to_table name,
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
    pattern constant text := nullif(current_setting('job_stats.tenants', true), '');
    caller_path constant text := current_setting('search_path');
    run_start constant timestamptz := clock_timestamp();
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

    already_done := count(*) FROM (
        SELECT job_stats.tenants_with(to_table)
        EXCEPT
        SELECT job_stats.tenants_with(from_table)
    ) AS before_us;

    LOOP
        queue := ARRAY(
            SELECT t.schema_name
            FROM job_stats.tenants_with(from_table) AS t (schema_name)
            WHERE t.schema_name <> ALL (tried)
            ORDER BY t.schema_name <> 'template_tenant', t.schema_name
        );
        EXIT WHEN queue = '{}';
        IF queue[1] = 'template_tenant' THEN
            queue := queue[1:1];
        END IF;

        locked := '{}';
        FOREACH tenant IN ARRAY queue LOOP
            tenant_start := clock_timestamp();
            result := 'done';
            reason := NULL;
            restore := NULL;
            SET LOCAL synchronous_commit = off; -- the next synchronous commit, such as the deploy tool's mark, flushes it
            SET LOCAL row_security = off; -- an error rather than rows unseen
            SET LOCAL citus.propagate_set_commands = 'local';
            EXECUTE format('SET LOCAL lock_timeout = %s', attempt * lock_timeout_ms);
            BEGIN
                PERFORM
                    set_config('search_path', quote_ident(tenant) || ', pg_temp', true),
                    set_config('job_stats.undo', '', true);
                IF (SELECT relkind = 'r' FROM pg_catalog.pg_class WHERE oid = to_regclass(quote_ident(to_table))) THEN
                    RAISE EXCEPTION 'both % and % exist: keep the one that counts, rename the other', from_table, to_table;
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
                    result := 'failed';
                    GET STACKED DIAGNOSTICS reason = PG_EXCEPTION_DETAIL;
                    reason := concat_ws(' ', SQLERRM, nullif(reason, ''));
                    failures := failures || format('%s: %s', tenant, reason);
            END;
            tenant_ms := round((extract(epoch FROM clock_timestamp() - tenant_start) * 1000)::numeric, 1);
            INSERT INTO job_stats.journal (migration, schema_name, milliseconds, attempt, outcome, problem, undo)
            VALUES (migration, tenant, tenant_ms, attempt, result, reason, restore);
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
        CONTINUE WHEN locked = '{}';
        IF attempt = attempts THEN
            failures := failures || locked;
            EXIT;
        END IF;
        PERFORM pg_sleep(attempt * 3 * lock_timeout_ms / 1000.0);
        attempt := attempt + 1;
    END LOOP;

    PERFORM pg_advisory_unlock('pg_namespace'::regclass::integer, 'job_stats'::regnamespace::integer);
    failed := cardinality(failures);
    seconds := round(extract(epoch FROM clock_timestamp() - run_start)::numeric, 1);

    IF failed > 0 THEN
        RAISE EXCEPTION '%: % done, % done before, % FAILED', migration, done, already_done, failed
        USING
            DETAIL = array_to_string(failures[1:50] || CASE WHEN failed > 50 THEN '... all are in job_stats.journal' END, E'\n'),
            HINT = CASE
                WHEN queue = '{template_tenant}' THEN 'No tenant is touched before template_tenant. '
                ELSE 'A tenant that failed is as it was; the others are done. '
            END || 'Mend the cause, then run the same command again: it does what is left.';
    ELSIF (dry_run OR pattern IS NOT NULL) AND current_setting('application_name') <> 'psql' THEN
        RAISE EXCEPTION '%: % %, none failed, slowest % ms',
            migration, done, CASE WHEN dry_run THEN 'rehearsed' ELSE 'done' END, slowest_ms
        USING HINT = 'An error, lest this be marked as applied: job_stats.dry_run or job_stats.tenants is set.';
    END IF;
END
$procedure$;

-- For the scripts: each works on the tenant that search_path names. What they drop can be restored: the SQL that does so
-- goes to the setting job_stats.undo, and from there into the journal.

-- Drops the unique keys on exactly these columns, in any order: constraints and indexes, whatever they are called.
CREATE PROCEDURE job_stats.drop_unique_keys(table_name name, columns name[])
LANGUAGE plpgsql
AS $procedure$
DECLARE
    key record;
BEGIN
    FOR key IN
        SELECT
            x.relname,
            c.conname,
            i.indisreplident,
            concat_ws(
                E'\n',
                CASE
                    WHEN c.oid IS NULL THEN pg_get_indexdef(x.oid, 0, true) || ';'
                    ELSE format('ALTER TABLE %I ADD CONSTRAINT %I %s;', table_name, c.conname, pg_get_constraintdef(c.oid))
                END,
                format('ALTER INDEX %I SET (', x.relname) || array_to_string(x.reloptions, ', ') || ');',
                format('COMMENT ON INDEX %I IS ', x.relname) || quote_literal(obj_description(x.oid, 'pg_class')) || ';',
                format('COMMENT ON CONSTRAINT %s ON %I IS ', quote_ident(c.conname), table_name)
                || quote_literal(obj_description(c.oid, 'pg_constraint')) || ';',
                CASE WHEN i.indisclustered THEN format('ALTER TABLE %I CLUSTER ON %I;', table_name, x.relname) END
            ) AS undo
        FROM pg_catalog.pg_index AS i
        INNER JOIN pg_catalog.pg_class AS x ON i.indexrelid = x.oid
        LEFT JOIN pg_catalog.pg_constraint AS c ON i.indexrelid = c.conindid AND i.indrelid = c.conrelid
        WHERE
            i.indrelid = to_regclass(quote_ident(table_name))
            AND i.indisunique
            AND NOT i.indisprimary
            AND i.indpred IS NULL
            AND i.indexprs IS NULL
            AND columns @> (
                SELECT array_agg(a.attname)
                FROM pg_catalog.pg_attribute AS a
                WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
            )
            AND i.indnkeyatts = cardinality(columns)
        ORDER BY x.relname
    LOOP
        IF key.indisreplident THEN
            RAISE EXCEPTION 'index % is the replica identity: give the table another first', key.relname
            USING ERRCODE = 'object_in_use';
        ELSIF key.conname IS NULL THEN
            EXECUTE format('DROP INDEX %I', key.relname);
        ELSE
            EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', table_name, key.conname);
        END IF;
        PERFORM set_config('job_stats.undo', key.undo || E'\n' || current_setting('job_stats.undo'), true);
    END LOOP;
END
$procedure$;

-- Drops the foreign keys that point at this table.
CREATE PROCEDURE job_stats.drop_foreign_keys(table_name name, target text)
LANGUAGE plpgsql
AS $procedure$
DECLARE
    key record;
BEGIN
    FOR key IN
        SELECT
            c.conname,
            concat_ws(
                E'\n',
                format('ALTER TABLE %I ADD CONSTRAINT %I %s;', table_name, c.conname, pg_get_constraintdef(c.oid)),
                format('COMMENT ON CONSTRAINT %I ON %I IS ', c.conname, table_name)
                || quote_literal(obj_description(c.oid, 'pg_constraint')) || ';'
            ) AS undo
        FROM pg_catalog.pg_constraint AS c
        WHERE
            c.conrelid = to_regclass(quote_ident(table_name))
            AND c.contype = 'f'
            AND c.confrelid = to_regclass(target)
        ORDER BY c.conname
    LOOP
        EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', table_name, key.conname);
        PERFORM set_config('job_stats.undo', key.undo || E'\n' || current_setting('job_stats.undo'), true);
    END LOOP;
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

-- Renames what still carries a table's former name: indexes (and so their constraints), sequences the table owns, other
-- constraints. A name that would grow beyond 63 bytes, or that is taken, stays.
CREATE PROCEDURE job_stats.rename_parts(former_name name, table_name name)
LANGUAGE plpgsql
AS $procedure$
DECLARE
    target constant oid := to_regclass(quote_ident(table_name));
    part record;
BEGIN
    FOR part IN
        SELECT p.*
        FROM (
            SELECT
                format('ALTER %s %%I RENAME TO %%I', o.kind) AS change,
                x.relname AS old_name,
                replace(x.relname, former_name, table_name) AS new_name
            FROM (
                SELECT i.indexrelid AS part_oid, 'INDEX' AS kind
                FROM pg_catalog.pg_index AS i
                WHERE i.indrelid = target
                UNION ALL
                SELECT d.objid, 'SEQUENCE'
                FROM pg_catalog.pg_depend AS d
                INNER JOIN pg_catalog.pg_sequence AS s ON d.objid = s.seqrelid
                WHERE (d.refclassid, d.refobjid, d.classid) = ('pg_class'::regclass, target, 'pg_class'::regclass)
            ) AS o
            INNER JOIN pg_catalog.pg_class AS x ON o.part_oid = x.oid
            UNION ALL
            SELECT
                format('ALTER TABLE %I RENAME CONSTRAINT %%I TO %%I', table_name),
                c.conname,
                replace(c.conname, former_name, table_name)
            FROM pg_catalog.pg_constraint AS c
            WHERE
                c.conrelid = target
                AND c.contype IN ('c', 'f', 'n')
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'citus') -- which refuses it
        ) AS p
        WHERE p.new_name <> p.old_name AND octet_length(p.new_name) < 64
    LOOP
        EXECUTE format(part.change, part.old_name, part.new_name);
    END LOOP;
END
$procedure$;

-- What each tenant is: legacy, migrated, missing (it has no such table) or drifted, and then problem says how.
CREATE VIEW job_stats.tenant_status AS
WITH keys AS NOT MATERIALIZED (
    SELECT
        i.indrelid,
        i.indisunique AS is_unique,
        ARRAY(
            SELECT a.attname::text
            FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (attnum, place)
            INNER JOIN pg_catalog.pg_attribute AS a ON i.indrelid = a.attrelid AND k.attnum = a.attnum
            ORDER BY k.place
        ) AS columns
    FROM pg_catalog.pg_index AS i
    WHERE i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
),

tables AS (
    SELECT
        t.schema_name,
        (SELECT c.oid FROM pg_catalog.pg_class AS c WHERE (c.relnamespace, c.relname, c.relkind) = (t.schema_oid, 'vinted_job_stats', 'r')) AS legacy,
        (SELECT c.oid FROM pg_catalog.pg_class AS c WHERE (c.relnamespace, c.relname, c.relkind) = (t.schema_oid, 'marketplace_job_stats', 'r')) AS migrated
    FROM job_stats.tenants AS t
),

checked AS (
    SELECT
        t.*,
        CASE
            WHEN t.migrated IS NULL THEN NULL
            WHEN t.legacy IS NOT NULL THEN 'both vinted_job_stats and marketplace_job_stats exist'
            ELSE nullif(concat_ws(
                '; ',
                CASE WHEN NOT EXISTS (
                    SELECT FROM pg_catalog.pg_attribute AS a
                    WHERE
                        (a.attrelid, a.attname) = (t.migrated, 'marketplace')
                        AND a.attnotnull
                        AND format_type(a.atttypid, a.atttypmod) = 'character varying(20)'
                ) THEN 'no column marketplace varchar(20) NOT NULL' END,
                CASE WHEN NOT EXISTS (
                    SELECT FROM pg_catalog.pg_constraint AS c
                    WHERE
                        (c.conrelid, c.contype) = (t.migrated, 'c')
                        AND c.convalidated
                        AND ARRAY(
                            SELECT m[1] FROM regexp_matches(pg_get_constraintdef(c.oid), '''(\w+)''', 'g') AS m ORDER BY 1
                        ) = '{ebay,etsy,vinted}'
                ) THEN 'no check that marketplace is vinted, ebay or etsy' END,
                CASE WHEN NOT EXISTS (
                    SELECT FROM keys AS k
                    WHERE k.indrelid = t.migrated AND k.is_unique AND k.columns = '{action_type_id,marketplace,date}'
                ) THEN 'no unique key on (action_type_id, marketplace, date)' END,
                CASE WHEN EXISTS (
                    SELECT FROM keys AS k
                    WHERE k.indrelid = t.migrated AND k.is_unique AND k.columns <@ '{action_type_id,date}'
                ) THEN 'a unique key that admits one marketplace only' END,
                CASE WHEN NOT EXISTS (
                    SELECT FROM keys AS k
                    WHERE k.indrelid = t.migrated AND k.columns = '{marketplace,created_at}'
                ) THEN 'no index on (marketplace, created_at)' END
            ), '')
        END AS problem
    FROM tables AS t
)

SELECT
    schema_name,
    CASE
        WHEN problem IS NOT NULL THEN 'drifted'
        WHEN migrated IS NOT NULL THEN 'migrated'
        WHEN legacy IS NOT NULL THEN 'legacy'
        ELSE 'missing'
    END AS state,
    problem
FROM checked;
