-- What is particular about tenants' tables: who would be refused or work differently, and what stops stats_lib.
--
-- depends: 0013.unfold

SET LOCAL search_path = pg_catalog, pg_temp;

-- The tables of the statistics, under either name.
CREATE OR REPLACE VIEW job_stats.tables AS
SELECT
    t.schema_oid,
    t.schema_name,
    c.oid AS target,
    c.relname = 'vinted_job_stats' AS is_legacy,
    c.relkind,
    c.reltype,
    c.reltuples
FROM tenancy.tenants AS t
INNER JOIN pg_class AS c ON t.schema_oid = c.relnamespace
WHERE c.relname IN ('vinted_job_stats', 'marketplace_job_stats') AND c.relkind IN ('r', 'p');

-- The unique keys and exclusion constraints of these tables.
CREATE OR REPLACE VIEW job_stats.keys AS
SELECT
    s.target,
    i.indexrelid,
    i.indisprimary,
    i.indisunique AND i.indexprs IS NULL AND i.indnkeyatts = 2
    AND bool_and(k.place > 2 OR a.attname IN ('action_type_id', 'date')) AS is_old_key,
    coalesce(bool_or(a.attname IN ('id', 'marketplace') AND k.place <= i.indnkeyatts), false) OR EXISTS (
        SELECT FROM pg_depend AS d
        INNER JOIN pg_attribute AS e ON d.refobjid = e.attrelid AND d.refobjsubid = e.attnum
        WHERE
            i.indexprs IS NOT NULL
            AND d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
            AND d.refobjid = s.target AND e.attname IN ('id', 'marketplace')
    ) AS tells_marketplaces_apart
FROM job_stats.tables AS s
INNER JOIN pg_index AS i ON s.target = i.indrelid
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
LEFT JOIN pg_attribute AS a ON i.indrelid = a.attrelid AND k.attnum = a.attnum
WHERE i.indisunique OR i.indisexclusion
GROUP BY s.target, i.indexrelid, i.indisprimary, i.indisunique, i.indexprs, i.indnkeyatts;

CREATE OR REPLACE VIEW job_stats.findings AS -- first, the columns that everybody's code knows: wider integers do
SELECT
    s.target,
    CASE WHEN s.is_legacy THEN 'refused' ELSE 'stops stats_lib' END AS kind,
    format(
        'column %s is %s and should be %s',
        n.column_name, coalesce(format_type(a.atttypid, a.atttypmod), 'missing'), format_type(n.types[1], NULL)
    ) AS finding
FROM job_stats.tables AS s
CROSS JOIN (
    VALUES
    ('id', '{integer, bigint, smallint}'::regtype[]),
    ('action_type_id', '{integer, bigint, smallint}'),
    ('date', '{date}'),
    ('total_jobs', '{integer, bigint}'),
    ('success_count', '{integer, bigint}'),
    ('failure_count', '{integer, bigint}'),
    ('avg_duration_ms', '{integer, bigint}'),
    ('created_at', '{timestamptz}')
) AS n (column_name, types)
LEFT JOIN pg_attribute AS a ON s.target = a.attrelid AND n.column_name = a.attname
LEFT JOIN pg_type AS t ON a.atttypid = t.oid
WHERE (coalesce(nullif(t.typbasetype, 0), t.oid) = ANY (n.types::oid[])) IS NOT TRUE
UNION ALL
SELECT
    s.target,
    'refused',
    format('column %s is the tenant''s own, and the migrations add one of this name: rename it', a.attname)
FROM job_stats.tables AS s
INNER JOIN pg_attribute AS a ON s.target = a.attrelid
WHERE s.is_legacy AND a.attname IN ('marketplace', 'untimed_jobs', 'total_duration_ms')
UNION ALL
SELECT
    s.target,
    'refused',
    CASE c.relname
        WHEN 'marketplace_job_stats' THEN 'marketplace_job_stats is there, too: docs/runbook.md, "Both tables"'
        ELSE format('%s is none that a rollback here has made: rename or drop it', c.oid::regclass)
    END
FROM job_stats.tables AS s
INNER JOIN pg_class AS c ON s.schema_oid = c.relnamespace
WHERE
    s.is_legacy
    AND c.relname IN ('marketplace_job_stats', 'marketplace_job_stats_archive')
    AND c.oid NOT IN (SELECT k.archive FROM job_stats.archives AS k)
UNION ALL
SELECT
    s.target,
    'refused',
    'it is partitioned'
FROM job_stats.tables AS s
WHERE s.is_legacy AND s.relkind = 'p'
UNION ALL
SELECT
    k.target,
    'refused',
    format('%s is the primary key, and admits one marketplace a day: make id the primary key', k.indexrelid::regclass)
FROM job_stats.keys AS k
WHERE k.is_old_key AND k.indisprimary
UNION ALL
SELECT
    k.target,
    'stops stats_lib',
    format('%s admits one marketplace only', k.indexrelid::regclass)
FROM job_stats.keys AS k
INNER JOIN job_stats.tables AS s ON k.target = s.target
WHERE NOT k.tells_marketplaces_apart AND NOT (k.is_old_key AND s.is_legacy)
UNION ALL
SELECT
    s.target,
    'stops stats_lib',
    format('foreign key %s admits Vinted''s action types only', f.conname)
FROM job_stats.tables AS s
INNER JOIN pg_constraint AS f ON s.target = f.conrelid
WHERE NOT s.is_legacy AND f.contype = 'f' AND f.confrelid = to_regclass('vinted.action_types')
UNION ALL
SELECT
    s.target,
    'stops stats_lib',
    format('rule %s: PostgreSQL refuses ON CONFLICT where there is one', r.rulename)
FROM job_stats.tables AS s
INNER JOIN pg_rewrite AS r ON s.target = r.ev_class
WHERE r.ev_type IN ('2', '3') -- UPDATE, INSERT
UNION ALL
SELECT
    s.target,
    'stops stats_lib',
    CASE
        WHEN a.attgenerated <> '' THEN format('column %s is generated', a.attname)
        WHEN a.attnotnull THEN format('column %s is NOT NULL without a default', a.attname)
        ELSE format('column %s may be NULL', a.attname)
    END
FROM job_stats.tables AS s
INNER JOIN pg_attribute AS a ON s.target = a.attrelid
CROSS JOIN LATERAL (
    SELECT
        a.attname IN ('action_type_id', 'date', 'total_jobs', 'success_count', 'failure_count') AS is_needed,
        a.attname IN ('marketplace', 'avg_duration_ms', 'untimed_jobs', 'total_duration_ms') AS is_supplied
) AS n
WHERE
    a.attnum > 0
    AND NOT a.attisdropped
    AND (
        (n.is_needed AND NOT a.attnotnull)
        OR ((n.is_needed OR n.is_supplied) AND a.attgenerated <> '')
        OR (
            a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
            AND NOT n.is_needed AND NOT n.is_supplied
        )
    )
UNION ALL
SELECT
    s.target,
    'differs',
    format('trigger %s will see the new name, and columns that come after the old ones', t.tgname)
FROM job_stats.tables AS s
INNER JOIN pg_trigger AS t ON s.target = t.tgrelid
WHERE s.is_legacy AND NOT t.tgisinternal
UNION ALL
SELECT DISTINCT
    s.target,
    'differs',
    format('function %s takes or returns rows of it: these will have more columns', d.objid::regprocedure)
FROM job_stats.tables AS s
INNER JOIN pg_type AS t ON s.reltype = t.oid
INNER JOIN pg_depend AS d ON d.refobjid IN (t.oid, t.typarray)
WHERE s.is_legacy AND d.refclassid = 'pg_type'::regclass AND d.classid = 'pg_proc'::regclass
UNION ALL
SELECT DISTINCT
    s.target,
    'differs',
    format('view %s will follow the table to its new name, and show every marketplace', r.ev_class::regclass)
FROM job_stats.tables AS s
INNER JOIN pg_depend AS d ON s.target = d.refobjid
INNER JOIN pg_rewrite AS r ON d.objid = r.oid
WHERE
    s.is_legacy
    AND d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_rewrite'::regclass AND r.ev_class <> s.target
UNION ALL
SELECT
    s.target,
    'differs',
    concat(
        format('publication %s will publish the new name', p.pubname),
        CASE WHEN r.prattrs IS NOT NULL THEN ', and its column list lacks marketplace' END,
        ': docs/replication.md'
    )
FROM job_stats.tables AS s
INNER JOIN pg_publication_rel AS r ON s.target = r.prrelid
INNER JOIN pg_publication AS p ON r.prpubid = p.oid
WHERE s.is_legacy
UNION ALL
SELECT
    s.target,
    'slow',
    format('some %s rows: it will be locked for some %s s', s.reltuples::bigint, ceil(s.reltuples / 400000))
FROM job_stats.tables AS s
WHERE s.is_legacy AND s.reltuples > 400000;

-- Raises if a tenant's table is not one that 0020 can change: before it does.
CREATE OR REPLACE PROCEDURE job_stats.refuse_misfits(target regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off -- one table's rows are found by the catalogs' indexes, whatever the statistics say
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $procedure$
DECLARE
    misfits constant text := (
        SELECT string_agg(f.finding, '; ' ORDER BY f.finding)
        FROM job_stats.findings AS f
        WHERE f.target = refuse_misfits.target AND f.kind = 'refused'
    );
BEGIN
    IF misfits IS NOT NULL THEN
        RAISE EXCEPTION '%', misfits;
    END IF;
END
$procedure$;

-- What is particular about the database: what stands in a run's way, or should be known before.
CREATE OR REPLACE VIEW job_stats.circumstances AS
SELECT
    'in the way' AS kind,
    format('pid %s (%s) has been in a transaction since %s', a.pid, a.application_name, a.xact_start::timestamptz(0))
        AS finding
FROM pg_stat_activity AS a
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.xact_start < now() - '1 min'::interval
UNION ALL
SELECT
    'in the way',
    format('a prepared transaction of %s, since %s; to end it: ROLLBACK PREPARED %L', x.owner, x.prepared, x.gid)
FROM pg_prepared_xacts AS x
WHERE x.database = current_database()
UNION ALL
SELECT
    'in the way',
    format('%s = %s: %s', s.name, current_setting(s.name), s.advice)
FROM (
    VALUES
    ('idle_session_timeout', 'yoyo''s first connection is idle during a run, and would be ended: lift it'),
    ('statement_timeout', 'the files lift it; before a CALL by hand, SET statement_timeout = 0')
) AS s (name, advice)
WHERE current_setting(s.name) <> '0'
UNION ALL
SELECT
    'unsafe',
    'everybody may create in schema public, where yoyo keeps its tables: docs/runbook.md, "Before"'
FROM pg_namespace AS n
WHERE n.nspname = 'public' AND has_schema_privilege('public', n.oid, 'CREATE')
UNION ALL
SELECT
    'differs',
    format('standby %s: a report there that reads a tenant is cancelled, or delays it', r.application_name)
FROM pg_stat_replication AS r
UNION ALL
SELECT
    'differs',
    format('publication %s will publish new names and archives: docs/replication.md', p.pubname)
FROM pg_publication AS p
WHERE p.puballtables OR p.oid IN (SELECT s.pnpubid FROM pg_publication_namespace AS s)
UNION ALL
SELECT
    'refused',
    'no tenant has the table, but schemas have that are no tenants: ' || strangers.names
FROM (SELECT tenancy.strangers(
    $$SELECT relnamespace, true FROM pg_class WHERE relname = 'vinted_job_stats' AND relkind IN ('r', 'p')$$
) AS names) AS strangers
WHERE NOT EXISTS (SELECT FROM job_stats.tables);

-- A row for each tenant and finding, and, with schema_name NULL, for what concerns all. Reads the catalogs only.
CREATE OR REPLACE FUNCTION job_stats.find()
RETURNS TABLE (schema_name name, kind text, finding text)
LANGUAGE plpgsql
STABLE
SECURITY DEFINER -- for a role that monitors
SET search_path = pg_catalog, pg_temp
SET enable_nestloop = off
SET enable_mergejoin = off
SET jit = off
AS $function$
BEGIN
    RETURN QUERY EXECUTE '
        SELECT NULL::name, c.kind, c.finding FROM job_stats.circumstances AS c
        UNION ALL
        SELECT s.schema_name, f.kind, f.finding
        FROM job_stats.findings AS f
        INNER JOIN job_stats.tables AS s ON f.target = s.target
        WHERE s.is_legacy AND s.schema_name NOT IN (SELECT l.schema_name FROM tenancy.left_out AS l)
        ORDER BY 1 NULLS FIRST, 2, 3';
END
$function$;

CREATE OR REPLACE VIEW job_stats.preflight AS SELECT f.* FROM job_stats.find() AS f;

CALL tenancy.make_private('job_stats');
REVOKE EXECUTE ON FUNCTION job_stats.find FROM public;
