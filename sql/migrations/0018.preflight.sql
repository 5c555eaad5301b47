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
