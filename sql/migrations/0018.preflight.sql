-- What a DBA should know before the run: what stands in its way, who would be refused, what will work differently.
--
-- depends: 0017.platform-summary

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

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
    format('%s cannot see whether others are in a transaction: GRANT pg_read_all_stats', current_user)
WHERE NOT pg_has_role('pg_read_all_stats', 'USAGE')
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
    'differs',
    format('%s is there, and its table is not: bring that back, or drop the archive', a.oid::regclass)
FROM job_stats.archives AS k
INNER JOIN pg_class AS a ON k.archive = a.oid AND a.relname = 'marketplace_job_stats_archive'
WHERE a.relnamespace NOT IN (SELECT s.schema_oid FROM job_stats.namesakes AS s)
UNION ALL
SELECT
    'refused',
    'no tenant has the table, but schemas have that are no tenants: ' || strangers.names
FROM (SELECT tenancy.strangers(
    $$SELECT relnamespace, true FROM pg_class WHERE relname = 'vinted_job_stats' AND relkind IN ('r', 'p')$$
) AS names) AS strangers
WHERE NOT EXISTS (SELECT FROM job_stats.tables);

-- What PostgreSQL would refuse in a run, by name; and what is no plain key of old code's.
CREATE OR REPLACE VIEW job_stats.obstacles AS
WITH legacy AS (
    SELECT
        s.schema_oid,
        s.target,
        c.relowner,
        c.reloftype,
        t.oid AS row_type,
        t.typarray AS array_type
    FROM job_stats.tables AS s
    INNER JOIN pg_class AS c ON s.target = c.oid
    INNER JOIN pg_type AS t ON c.reltype = t.oid
    WHERE s.is_legacy
),

parts AS ( -- what is renamed with the table
    SELECT
        p.target,
        p.catalog,
        c.relnamespace AS home,
        c.relname AS name
    FROM (
        SELECT indrelid, 'relation', indexrelid FROM pg_index
        UNION
        SELECT refobjid, 'relation', objid FROM pg_depend
        WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND deptype IN ('a', 'i')
    ) AS p (target, catalog, oid)
    INNER JOIN pg_class AS c ON p.oid = c.oid AND c.relkind IN ('i', 'S')
    UNION ALL
    SELECT conrelid, 'constraint', conrelid, conname FROM pg_constraint WHERE contype IN ('c', 'f', 'n')
),

given AS ( -- the names that a run gives
    SELECT
        l.target,
        p.catalog,
        p.home,
        replace(p.name, 'vinted_job_stats', 'marketplace_job_stats') AS name
    FROM legacy AS l
    INNER JOIN parts AS p ON l.target = p.target
    WHERE position('vinted_job_stats' IN p.name) > 0
    UNION ALL
    SELECT l.target, 'relation', l.schema_oid, n.name
    FROM legacy AS l
    CROSS JOIN (
        VALUES
        ('uq_marketplace_job_stats_action_marketplace_date'),
        ('ix_marketplace_job_stats_marketplace_created_at'),
        ('ix_stats_lib_date_marketplace')
    ) AS n (name)
    UNION ALL
    SELECT l.target, 'constraint', l.target, 'ck_marketplace_job_stats_marketplace' FROM legacy AS l
    UNION ALL
    SELECT l.target, 'type', l.schema_oid, 'marketplace_job_stats' FROM legacy AS l
)

SELECT
    g.target,
    'refused' AS kind,
    format('a %s has a name that is needed, %I: rename it', g.catalog, g.name) AS finding
FROM given AS g
INNER JOIN (
    SELECT 'relation', relnamespace, relname FROM pg_class
    UNION ALL
    SELECT 'constraint', conrelid, conname FROM pg_constraint
    UNION ALL
    SELECT 'type', typnamespace, typname FROM pg_type WHERE typrelid = 0
) AS taken (catalog, home, name) ON g.catalog = taken.catalog AND g.home = taken.home AND g.name = taken.name
UNION ALL
SELECT l.target, 'refused', 'it is a typed table: ALTER TABLE ... NOT OF' FROM legacy AS l WHERE l.reloftype <> 0
UNION ALL
SELECT
    l.target,
    'refused',
    format('it belongs to %s, of whom %s is no member', l.relowner::regrole, current_user)
FROM legacy AS l
WHERE NOT pg_has_role(l.relowner, 'USAGE')
UNION ALL
SELECT
    l.target,
    'refused',
    format('column %I of %s has its row type: drop it', a.attname, a.attrelid::regclass)
FROM legacy AS l
CROSS JOIN unnest(ARRAY[l.row_type, l.array_type]) AS t (oid)
INNER JOIN pg_attribute AS a ON t.oid = a.atttypid
INNER JOIN pg_class AS c ON a.attrelid = c.oid
WHERE c.relkind IN ('r', 'p', 'm', 'f')
UNION ALL
SELECT
    l.target,
    'refused',
    format('column %I takes its default from a sequence that is named by a text: cast that to regclass', a.attname)
FROM legacy AS l
INNER JOIN pg_attrdef AS d ON l.target = d.adrelid
INNER JOIN pg_attribute AS a ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE tenancy.names_sequence(d.adbin::text, 'vinted_job_stats')
UNION ALL
SELECT DISTINCT
    k.target,
    'refused',
    format('%s names %s: drop it', pg_describe_object(d.classid, d.objid, 0), k.indexrelid::regclass)
FROM job_stats.keys AS k
INNER JOIN legacy AS l ON k.target = l.target
INNER JOIN pg_constraint AS c ON k.indexrelid = c.conindid AND k.target = c.conrelid
INNER JOIN pg_depend AS d ON c.oid = d.refobjid
WHERE
    k.is_old_key
    AND d.refclassid = 'pg_constraint'::regclass
    AND d.classid IN ('pg_proc'::regclass, 'pg_rewrite'::regclass)
UNION ALL
SELECT
    k.target,
    'differs',
    format(
        '%s is %s, and its successor is not', k.indexrelid::regclass,
        concat_ws(', ', CASE WHEN i.indpred IS NOT NULL THEN 'partial' END,
        CASE WHEN NOT i.indimmediate THEN 'deferrable' END,
        CASE WHEN i.indnullsnotdistinct THEN 'NULLS NOT DISTINCT' END)
    )
FROM job_stats.keys AS k
INNER JOIN legacy AS l ON k.target = l.target
INNER JOIN pg_index AS i ON k.indexrelid = i.indexrelid
WHERE k.is_old_key AND (i.indpred IS NOT NULL OR NOT i.indimmediate OR i.indnullsnotdistinct)
UNION ALL
SELECT
    k.target,
    'differs',
    format('%s is in tablespace %I, where its rollback needs the right to create', k.indexrelid::regclass, s.spcname)
FROM job_stats.keys AS k
INNER JOIN legacy AS l ON k.target = l.target
INNER JOIN pg_class AS c ON k.indexrelid = c.oid
INNER JOIN pg_tablespace AS s ON c.reltablespace = s.oid
WHERE k.is_old_key AND NOT has_tablespace_privilege(s.oid, 'CREATE')
UNION ALL
SELECT
    k.target,
    'differs',
    format(
        '%s is the replica identity, and publication %s has a column list: old code''s UPDATE would fail, '
        'docs/replication.md', k.indexrelid::regclass, p.pubname
    )
FROM job_stats.keys AS k
INNER JOIN legacy AS l ON k.target = l.target
INNER JOIN pg_index AS i ON k.indexrelid = i.indexrelid
INNER JOIN pg_publication_rel AS r ON k.target = r.prrelid
INNER JOIN pg_publication AS p ON r.prpubid = p.oid
WHERE k.is_old_key AND i.indisreplident AND r.prattrs IS NOT NULL
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
    format('some %s rows: it will be locked for some %s s', s.reltuples::numeric, ceil(s.reltuples / 400000))
FROM job_stats.tables AS s
WHERE s.is_legacy AND s.reltuples > 400000
UNION ALL
SELECT
    k.target,
    'refused',
    format(
        'the predicate of %s has what is not PostgreSQL''s own, a constant of no type, or EXTRACT: drop it',
        k.indexrelid::regclass
    )
FROM job_stats.keys AS k
INNER JOIN legacy AS l ON k.target = l.target
INNER JOIN pg_index AS i ON k.indexrelid = i.indexrelid
WHERE k.is_old_key AND i.indpred IS NOT NULL AND tenancy.can_be_misread(k.indexrelid)
UNION ALL
SELECT
    l.target,
    'differs',
    'its row-level security would let who may read some columns only read nothing through the view'
FROM legacy AS l
INNER JOIN pg_class AS c ON l.target = c.oid
WHERE c.relrowsecurity AND EXISTS (
    SELECT FROM job_stats.grants(l.target) AS g WHERE g.column_name IS NOT NULL AND g.privilege_type = 'SELECT'
);

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
        FROM (TABLE job_stats.findings UNION ALL TABLE job_stats.obstacles) AS f
        INNER JOIN job_stats.tables AS s ON f.target = s.target
        WHERE s.is_legacy AND s.schema_name NOT IN (SELECT l.schema_name FROM tenancy.left_out AS l)
        ORDER BY 1 NULLS FIRST, 2, 3';
END
$function$;

CREATE OR REPLACE VIEW job_stats.preflight AS SELECT f.* FROM job_stats.find() AS f;

CALL tenancy.make_private('job_stats');
REVOKE EXECUTE ON FUNCTION job_stats.find FROM public;
