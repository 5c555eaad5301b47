-- What is particular about tenants' tables: who would be refused or work differently, and what stops stats_lib.
--
-- depends: 0013.unfold

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- The tables of the statistics, under either name, in any schema.
CREATE OR REPLACE VIEW job_stats.namesakes AS
SELECT
    relnamespace AS schema_oid,
    oid AS target,
    relname = 'vinted_job_stats' AS is_legacy,
    relkind,
    reltype,
    reltuples
FROM pg_class
WHERE relname IN ('vinted_job_stats', 'marketplace_job_stats') AND relkind IN ('r', 'p');

-- Those of them that are tenants'.
CREATE OR REPLACE VIEW job_stats.tables AS
SELECT
    t.schema_name,
    n.*
FROM tenancy.tenants AS t
INNER JOIN job_stats.namesakes AS n ON t.schema_oid = n.schema_oid;

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
FROM job_stats.namesakes AS s
INNER JOIN pg_index AS i ON s.target = i.indrelid
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
LEFT JOIN pg_attribute AS a ON i.indrelid = a.attrelid AND k.attnum = a.attnum
WHERE i.indisunique OR i.indisexclusion
GROUP BY s.target, i.indexrelid, i.indisprimary, i.indisunique, i.indexprs, i.indnkeyatts;

-- Why an archive is not one that can be restored to a table; NULL if it is. Only an ordinary table of the table's owner
-- that fold_marketplaces() made is believed. Of its columns, the tenant's own must be in the table: all but the
-- archive's, and those of migrations that are rolled back.
CREATE OR REPLACE FUNCTION job_stats.misfit_of_archive(archive oid, target oid)
RETURNS text
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT CASE
        WHEN a.relkind <> 'r' OR NOT EXISTS (SELECT FROM job_stats.archives AS k WHERE k.archive = a.oid) THEN
            format('%s is none that a rollback here has made: rename or drop it', a.oid::regclass)
            || '; or, if it came here with its tenant, docs/runbook.md, "Move a tenant"'
        WHEN a.relowner <> t.relowner THEN format(
            '%s belongs to %s, and its table to %s: look at it, and give it that owner',
            a.oid::regclass, a.relowner::regrole, t.relowner::regrole
        )
        ELSE (
            SELECT format(
                '%s has a column that its table lacks, %s: rename or drop it there, too',
                a.oid::regclass, string_agg(quote_ident(c.attname), ', ' ORDER BY c.attnum)
            )
            FROM pg_attribute AS c
            WHERE
                c.attrelid = a.oid AND c.attnum > 0 AND NOT c.attisdropped
                AND c.attname NOT IN ('marketplace', 'untimed_jobs', 'total_duration_ms')
                AND c.attname !~ '^(folded_id|(folded|added)_(total_jobs|success_count|failure_count|avg_duration_ms))$'
                AND c.attname NOT IN (
                    SELECT o.attname FROM pg_attribute AS o WHERE o.attrelid = t.oid AND NOT o.attisdropped
                )
                AND NOT EXISTS (
                    SELECT FROM tenancy.effects AS e CROSS JOIN unnest(e.made) AS m (fact)
                    WHERE e.table_name = 'marketplace_job_stats' AND starts_with(m.fact, 'column ' || c.attname || ' ')
                )
            HAVING count(*) > 0
        )
    END
    FROM pg_class AS a
    CROSS JOIN pg_class AS t
    WHERE a.oid = archive AND t.oid = target;
$function$;

CREATE OR REPLACE VIEW job_stats.findings AS -- first, the columns that everybody's code knows: wider integers do
SELECT
    s.target,
    CASE WHEN s.is_legacy THEN 'refused' ELSE 'stops stats_lib' END AS kind,
    CASE
        WHEN n.types IS NULL THEN
            format('column %s is the tenant''s own, and the migrations add one of this name: rename it', a.attname)
        ELSE format(
            'column %s is %s and should be %s',
            n.column_name, coalesce(format_type(a.atttypid, a.atttypmod), 'missing'), format_type(n.types[1], NULL)
        )
    END AS finding
FROM job_stats.namesakes AS s
CROSS JOIN (
    VALUES
    ('id', '{integer, bigint, smallint}'::regtype[]),
    ('action_type_id', '{integer, bigint, smallint}'),
    ('date', '{date}'),
    ('total_jobs', '{integer, bigint}'),
    ('success_count', '{integer, bigint}'),
    ('failure_count', '{integer, bigint}'),
    ('avg_duration_ms', '{integer, bigint}'),
    ('created_at', '{timestamptz}'),
    ('marketplace', NULL),
    ('untimed_jobs', NULL),
    ('total_duration_ms', NULL)
) AS n (column_name, types)
LEFT JOIN pg_attribute AS a ON s.target = a.attrelid AND n.column_name = a.attname
WHERE CASE
    WHEN n.types IS NULL THEN s.is_legacy AND a.attname IS NOT NULL
    ELSE (a.atttypid = ANY (n.types::oid[])) IS NOT TRUE -- nor a domain, for which anybody may make operators
END
UNION ALL
SELECT
    s.target,
    'refused',
    CASE c.relname
        WHEN 'marketplace_job_stats'
            THEN 'vinted_job_stats and marketplace_job_stats are both there: docs/runbook.md, "Both tables"'
        ELSE job_stats.misfit_of_archive(c.oid, s.target)
    END
FROM job_stats.namesakes AS s
INNER JOIN pg_class AS c ON s.schema_oid = c.relnamespace
WHERE
    s.is_legacy
    AND c.relname IN ('marketplace_job_stats', 'marketplace_job_stats_archive')
    AND (c.relname = 'marketplace_job_stats' OR job_stats.misfit_of_archive(c.oid, s.target) IS NOT NULL)
UNION ALL
SELECT
    s.target,
    'refused',
    CASE s.relkind WHEN 'p' THEN 'it is partitioned' ELSE 'it is a partition' END
FROM job_stats.namesakes AS s
INNER JOIN pg_class AS c ON s.target = c.oid
WHERE s.is_legacy AND (s.relkind = 'p' OR c.relispartition)
UNION ALL
SELECT -- both, since what one tenant's table gets would come to the other's
    t.target,
    'refused',
    format('%s inherits from %s: ALTER TABLE ... NO INHERIT', c.target::regclass, p.target::regclass)
FROM pg_inherits AS i
INNER JOIN job_stats.namesakes AS c ON i.inhrelid = c.target
INNER JOIN job_stats.namesakes AS p ON i.inhparent = p.target
CROSS JOIN unnest(ARRAY[c.target, p.target]) AS t (target)
WHERE p.relkind = 'r'
UNION ALL
SELECT
    k.target,
    'refused',
    format('foreign key %s of %s refers to %s: drop it', f.conname, f.conrelid::regclass, k.indexrelid::regclass)
FROM job_stats.keys AS k
INNER JOIN job_stats.namesakes AS s ON k.target = s.target
INNER JOIN pg_depend AS d ON k.indexrelid = d.refobjid
INNER JOIN pg_constraint AS f ON d.objid = f.oid
WHERE
    k.is_old_key AND s.is_legacy
    AND d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_constraint'::regclass AND f.contype = 'f'
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
INNER JOIN job_stats.namesakes AS s ON k.target = s.target
WHERE NOT k.tells_marketplaces_apart AND NOT (k.is_old_key AND s.is_legacy)
UNION ALL
SELECT
    s.target,
    'stops stats_lib',
    format('foreign key %s admits Vinted''s action types only', f.conname)
FROM job_stats.namesakes AS s
INNER JOIN pg_constraint AS f ON s.target = f.conrelid
WHERE NOT s.is_legacy AND f.contype = 'f' AND f.confrelid = to_regclass('vinted.action_types')
UNION ALL
SELECT
    s.target,
    'stops stats_lib',
    format('rule %s: PostgreSQL refuses ON CONFLICT where there is one', r.rulename)
FROM job_stats.namesakes AS s
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
FROM job_stats.namesakes AS s
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
FROM job_stats.namesakes AS s
INNER JOIN pg_trigger AS t ON s.target = t.tgrelid
WHERE s.is_legacy AND NOT t.tgisinternal
UNION ALL
SELECT DISTINCT
    s.target,
    'differs',
    format('function %s takes or returns rows of it: these will have more columns', d.objid::regprocedure)
FROM job_stats.namesakes AS s
INNER JOIN pg_type AS t ON s.reltype = t.oid
INNER JOIN pg_depend AS d ON d.refobjid IN (t.oid, t.typarray)
WHERE s.is_legacy AND d.refclassid = 'pg_type'::regclass AND d.classid = 'pg_proc'::regclass
UNION ALL
SELECT DISTINCT
    s.target,
    'differs',
    format('view %s will follow the table to its new name, and show every marketplace', r.ev_class::regclass)
FROM job_stats.namesakes AS s
INNER JOIN pg_depend AS d ON s.target = d.refobjid
INNER JOIN pg_rewrite AS r ON d.objid = r.oid
WHERE
    s.is_legacy
    AND d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_rewrite'::regclass AND r.ev_class <> s.target
UNION ALL
SELECT DISTINCT
    s.target,
    'differs',
    format('function %s will follow the table to its new name, and see every marketplace', d.objid::regprocedure)
FROM job_stats.namesakes AS s
INNER JOIN pg_depend AS d ON s.target = d.refobjid
WHERE s.is_legacy AND d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_proc'::regclass;

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

CALL tenancy.make_private('job_stats');
