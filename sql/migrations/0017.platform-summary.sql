-- The sums of all tenants, in one SELECT, for any exporter or dashboard.
--
-- Undone by the rollback file.
--
-- depends: 0016.new-tenants

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- The tables, of the tenants in `schemas`, that are migrated, that the current role may read, and that it can read
-- without running code of somebody's who could not do as much itself.
--
-- Whoever reads a table runs what its owner hung on it, with the rights of whoever reads: policies, views, and, as soon
-- as a query is planned, the expressions of indexes and statistics. So a table is read if its owner and its schema's
-- could do all that the current role can: each is a superuser, that role, or a member of it. Another's is read only by
-- a mere reader, and only if nothing of the kind hangs on it: which can change between this look and the reading, unless
-- the table is locked.
CREATE OR REPLACE FUNCTION job_stats.readable(schemas oid [], mere_reader boolean)
RETURNS SETOF regclass
LANGUAGE plpgsql -- which keeps its plan
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN QUERY
    SELECT c.oid::regclass
    FROM unnest(schemas) AS s (oid)
    INNER JOIN pg_namespace AS n ON s.oid = n.oid
    CROSS JOIN LATERAL (
        SELECT t.*
        FROM pg_class AS t
        WHERE t.relnamespace = n.oid AND t.relname = 'marketplace_job_stats' AND t.relkind = 'r'
        OFFSET 0 -- one look-up each
    ) AS c
    WHERE
        has_schema_privilege(n.oid, 'USAGE')
        AND has_table_privilege(c.oid, 'SELECT')
        -- A child, which may be anybody's, has rows of it, too.
        AND NOT (c.relhassubclass AND EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhparent = c.oid))
        AND 8 = (
            SELECT count(*)
            FROM pg_attribute AS a
            WHERE
                a.attrelid = c.oid
                AND a.attnum > 0
                AND CASE
                    WHEN a.attname = 'date' THEN a.atttypid = 'date'::regtype
                    WHEN a.attname = 'marketplace'
                        THEN a.atttypid = 'varchar'::regtype AND a.atttypmod BETWEEN 5 AND 104 -- up to varchar(100)
                    WHEN a.attname IN (
                        'total_jobs', 'success_count', 'failure_count',
                        'avg_duration_ms', 'untimed_jobs', 'total_duration_ms'
                    ) THEN a.atttypid IN ('integer'::regtype, 'bigint'::regtype)
                END
                AND a.attgenerated = ''
        )
        AND CASE
            WHEN pg_has_role(c.relowner, current_user, 'MEMBER') AND pg_has_role(n.nspowner, current_user, 'MEMBER')
                THEN true
            WHEN
                (SELECT bool_and(o.rolsuper) FROM pg_roles AS o WHERE o.oid IN (c.relowner, n.nspowner))
                THEN true
            ELSE
                mere_reader
                AND NOT c.relrowsecurity
                AND NOT c.relispartition
                AND NOT EXISTS (
                    SELECT FROM pg_index AS i
                    WHERE i.indrelid = c.oid AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)
                )
                AND NOT EXISTS (SELECT FROM pg_statistic_ext AS e WHERE e.stxrelid = c.oid AND e.stxexprs IS NOT NULL)
        END;
END
$function$;

-- Why the current role is no mere reader, NULL if it is one. Such a role is no superuser, makes no roles, owns nothing,
-- and is a member of none but predefined ones that only read: what another group may do, is not looked into. And it
-- sees what has been committed by now, not by the beginning of its transaction.
CREATE OR REPLACE FUNCTION job_stats.more_than_reads()
RETURNS text
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT
        CASE
            WHEN current_setting('transaction_isolation') NOT LIKE 'read %'
                THEN 'its transaction is ' || current_setting('transaction_isolation')
            WHEN r.rolsuper THEN 'it is a superuser'
            WHEN r.rolcreaterole THEN 'it makes roles'
            WHEN
                EXISTS (
                    SELECT FROM pg_shdepend AS d
                    WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid AND d.deptype = 'o'
                )
                THEN 'it owns something'
            ELSE (
                SELECT 'it is a member of ' || string_agg(quote_ident(m.rolname), ', ' ORDER BY m.rolname)
                FROM pg_roles AS m
                WHERE
                    pg_has_role(m.oid, 'MEMBER')
                    AND m.rolname NOT IN (
                        current_user, 'pg_monitor', 'pg_read_all_data',
                        'pg_read_all_settings', 'pg_read_all_stats', 'pg_stat_scan_tables'
                    )
            )
        END
    FROM pg_roles AS r
    WHERE r.rolname = current_user;
$function$;

-- What stats_lib believes of the row `stats`: its timed jobs, and the sum of their durations. A text, so that a query
-- has it inside, and not a call for each row. tests/test_platform.py compares it with stats_lib's.
CREATE OR REPLACE FUNCTION job_stats.durations()
RETURNS text
LANGUAGE sql
IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT $durations$
        SELECT
            CASE
                WHEN stats.avg_duration_ms IS NULL THEN 0
                WHEN stats.untimed_jobs < stats.total_jobs THEN stats.total_jobs - stats.untimed_jobs
                ELSE stats.total_jobs -- untimed_jobs is NULL, or has become impossible
            END AS timed_jobs,
            CASE
                WHEN (CASE
                    WHEN stats.untimed_jobs < stats.total_jobs
                        THEN
                            (stats.total_duration_ms + (stats.total_jobs - stats.untimed_jobs) / 2)
                            / (stats.total_jobs - stats.untimed_jobs) = stats.avg_duration_ms
                            OR (
                                stats.avg_duration_ms = 2147483647 -- which stands for all that is longer
                                AND (stats.total_duration_ms + (stats.total_jobs - stats.untimed_jobs) / 2)
                                / (stats.total_jobs - stats.untimed_jobs) > 2147483647
                            )
                    ELSE
                        stats.untimed_jobs = stats.total_jobs
                        AND stats.total_duration_ms = 0
                        AND stats.avg_duration_ms IS NULL
                END) THEN stats.total_duration_ms
                WHEN stats.avg_duration_ms IS NULL THEN 0
                WHEN stats.untimed_jobs < stats.total_jobs
                    THEN stats.avg_duration_ms::bigint * (stats.total_jobs - stats.untimed_jobs)
                ELSE stats.avg_duration_ms::bigint * stats.total_jobs
            END AS total_duration_ms
    $durations$;
$function$;

-- The query that adds the rows of `tables`, after the day $3 and up to $2, to the sums $1, and their lowest number.
-- The sums are numeric: no tenant's is too big to be added.
CREATE OR REPLACE FUNCTION job_stats.adding_up(tables regclass [])
RETURNS text
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT
        'SELECT jsonb_agg(s), min(s.lowest) FROM (
            SELECT
                r.marketplace, sum(r.tenants) AS tenants, sum(r.total_jobs) AS total_jobs,
                sum(r.success_count) AS success_count, sum(r.failure_count) AS failure_count,
                sum(r.timed_jobs) AS timed_jobs, sum(r.total_duration_ms) AS total_duration_ms,
                min(r.lowest) AS lowest
            FROM (
                SELECT j.*, 0 AS lowest FROM jsonb_to_recordset($1) AS j (
                    marketplace text, tenants bigint, total_jobs numeric, success_count numeric,
                    failure_count numeric, timed_jobs numeric, total_duration_ms numeric
                )
                UNION ALL
                SELECT
                    stats.marketplace::text,
                    (max(stats.total_jobs) > 0)::int,
                    sum(stats.total_jobs), sum(stats.success_count), sum(stats.failure_count),
                    sum(d.timed_jobs), sum(d.total_duration_ms),
                    min(least(
                        stats.total_jobs, stats.success_count, stats.failure_count,
                        stats.avg_duration_ms, stats.untimed_jobs, stats.total_duration_ms
                    ))
                FROM ('
        || string_agg(format(
            'SELECT
                %s AS tenant, marketplace COLLATE "C", total_jobs, success_count, failure_count,
                avg_duration_ms, untimed_jobs, total_duration_ms
            FROM ONLY %s WHERE date > $3 AND date <= $2',
            t.name::oid, t.name
        ), ' UNION ALL ')
        || format(
            ') AS stats CROSS JOIN LATERAL (%s) AS d GROUP BY stats.tenant, stats.marketplace
            ) AS r GROUP BY r.marketplace
        ) AS s', job_stats.durations()
        )
    FROM unnest(tables) AS t (name);
$function$;

-- For each marketplace, the first three without jobs too: how many tenants had jobs there in the last days up to `until`
-- (NULL: today in UTC), the sums, the mean of all durations in milliseconds; and how many tenants could not be read.
--
-- One transaction could not lock all tenants' tables, were there thousands. So a few are read at a time, in a block
-- that ends with an error: with its subtransaction go its locks, while its variables stay. Where that fails for another
-- reason, as for a table that is locked or dropped, they are read one by one, and those that fail are skipped, with a
-- warning. Each block sees what is committed by then. The template is no customer.
CREATE OR REPLACE FUNCTION job_stats.platform_summary(days integer DEFAULT 7, until date DEFAULT NULL)
RETURNS TABLE (
    marketplace text, tenants bigint, total_jobs bigint, success_count bigint, failure_count bigint,
    avg_duration_ms bigint, tenants_skipped bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET constraint_exclusion = off -- which would run checks
SET row_security = off -- rather an error than some of the rows
SET effective_io_concurrency = 0 -- there is little in a table to read ahead, and asking others to costs more
-- not on Citus: there, only the coordinator's own locks are waited for so briefly
SET lock_timeout = '1s'
AS $function$
DECLARE
    last_day constant date := coalesce(until, (now() AT TIME ZONE interval '0')::date); -- UTC: see get_stats.sql
    day_before constant date := greatest(last_day - days, '0001-12-31 BC');
    schemas constant oid[] := ARRAY(
        SELECT t.schema_oid FROM tenancy.tenants AS t WHERE t.schema_name <> 'template_tenant' ORDER BY t.schema_oid
    );
    most constant numeric := 9223372036854775807; -- that a bigint can hold
    at_a_time constant integer := 170;
    more_than_reads constant text := job_stats.more_than_reads();
    mere_reader constant boolean := more_than_reads IS NULL;
    strangers boolean := false; -- that only a mere reader would read
    size integer;
    place integer := 1;
    one_by_one_until integer := 0;
    readable regclass[];
    is_read boolean;
    grown jsonb;
    lowest bigint;
    sums jsonb := '[{"marketplace": "ebay"}, {"marketplace": "etsy"}, {"marketplace": "vinted"}]';
    not_skipped bigint := 0;
BEGIN
    IF (days BETWEEN 1 AND 1000000) IS NOT TRUE THEN
        RAISE EXCEPTION 'days must be from 1 to 1000000, not %', days;
    END IF;
    WHILE place <= cardinality(schemas) LOOP
        size := CASE WHEN place <= one_by_one_until THEN 1 ELSE at_a_time END;
        is_read := false;
        BEGIN
            readable := ARRAY(SELECT job_stats.readable(schemas[place:place + size - 1], mere_reader));
            IF mere_reader AND readable <> '{}' THEN -- looked at again when locked, it is what will be read
                EXECUTE 'LOCK TABLE ONLY ' || array_to_string(readable, ', ') || ' IN ACCESS SHARE MODE';
                readable := ARRAY(SELECT job_stats.readable(schemas[place:place + size - 1], mere_reader));
            END IF;
            strangers := strangers OR (NOT mere_reader AND cardinality(readable) < size AND cardinality(readable) < (
                SELECT count(*) FROM job_stats.readable(schemas[place:place + size - 1], true)
            ));
            grown := sums;
            IF readable <> '{}' THEN
                EXECUTE job_stats.adding_up(readable) INTO grown, lowest USING sums, last_day, day_before;
                IF lowest < 0 OR jsonb_array_length(grown) - jsonb_array_length(sums) > 20 THEN -- to all others' cost
                    RAISE EXCEPTION 'it has negative numbers, or more than 20 marketplaces that no tenant before it has';
                END IF;
            END IF;
            is_read := true;
            RAISE EXCEPTION 'read';
        EXCEPTION -- on Citus: inside no other such block
            WHEN assert_failure OR OTHERS THEN
                IF is_read THEN
                    sums := grown;
                    not_skipped := not_skipped + cardinality(readable);
                    place := place + size;
                ELSIF size = 1 THEN
                    RAISE WARNING '% is skipped: %', schemas[place]::regnamespace, SQLERRM;
                    place := place + 1;
                ELSE
                    one_by_one_until := place + size - 1;
                END IF;
        END;
    END LOOP;
    IF strangers THEN
        RAISE WARNING 'tenants are skipped whose owner could do less than %: %', current_user, more_than_reads
        USING HINT = 'Have a role call it that may only read, under READ COMMITTED.';
    END IF;
    RETURN QUERY
    SELECT
        s.marketplace,
        coalesce(s.tenants, 0),
        least(coalesce(s.total_jobs, 0), most)::bigint,
        least(coalesce(s.success_count, 0), most)::bigint,
        least(coalesce(s.failure_count, 0), most)::bigint,
        CASE WHEN s.timed_jobs > 0 THEN least(round(s.total_duration_ms / s.timed_jobs), most)::bigint END,
        cardinality(schemas) - not_skipped
    FROM jsonb_to_recordset(sums) AS s (
        marketplace text, tenants bigint, total_jobs numeric, success_count numeric,
        failure_count numeric, timed_jobs numeric, total_duration_ms numeric
    )
    WHERE s.marketplace IS NOT NULL
    ORDER BY s.marketplace;
END
$function$;

CALL tenancy.make_private('job_stats');
