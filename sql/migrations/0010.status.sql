-- What state each tenant is in, and the verification of all.
--
-- depends: 0009.fold

SET LOCAL search_path = pg_catalog, pg_temp;

-- The strings in an expression, sorted, from the form in which it is stored. To print it, as pg_get_expr() does, would
-- open its table, wait for its locks, and read constants by the code of whose type they are.
CREATE OR REPLACE FUNCTION job_stats.strings(expression pg_node_tree)
RETURNS text
LANGUAGE plpgsql -- which keeps its plan
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN (
        SELECT string_agg(c.string, ', ' ORDER BY c.string)
        FROM (
            SELECT (
                SELECT string_agg(chr(b.byte::integer), '' ORDER BY b.place)
                FROM string_to_table(m.found[1], ' ') WITH ORDINALITY AS b (byte, place)
                WHERE b.place > 4 AND b.byte::integer > 0 -- after the length
            ) AS string
            FROM regexp_matches(
                expression::text, ':consttype (?:25|1043) [^{}]*:constvalue [0-9]+ [[] ([-0-9 ]+) []]', 'g'
            ) AS m (found)
        ) AS c
    );
END
$function$;

-- What matters of a table, a fact a row. Opens no tenant's table, which would wait for its locks and stay in the server
-- process's memory.
CREATE OR REPLACE FUNCTION job_stats.facts(target oid)
RETURNS SETOF text
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
SET quote_all_identifiers = off -- which format_type() heeds
AS $function$
    SELECT concat_ws(
        ' ', 'column', a.attname, format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'NOT NULL' END
    )
    FROM pg_attribute AS a
    WHERE a.attrelid = target AND a.attnum > 0
    UNION ALL
    SELECT concat_ws(
        ' ',
        'default of',
        a.attname,
        CASE
            WHEN a.attname = 'marketplace' AND a.attgenerated = '' THEN coalesce(job_stats.strings(d.adbin), 'another')
        END
    )
    FROM pg_attribute AS a
    LEFT JOIN pg_attrdef AS d ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    WHERE a.attrelid = target AND (d.oid IS NOT NULL OR a.attidentity <> '')
    UNION ALL
    SELECT concat('check of marketplace: ', job_stats.strings(c.conbin))
    FROM pg_constraint AS c
    INNER JOIN pg_attribute AS a ON c.conrelid = a.attrelid AND c.conkey = ARRAY[a.attnum]
    WHERE c.conrelid = target AND c.contype = 'c' AND c.convalidated AND a.attname = 'marketplace'
    UNION ALL
    SELECT format('%s on (%s)', CASE WHEN i.indisunique THEN 'unique key' ELSE 'index' END, (
        SELECT string_agg(a.attname, ', ' ORDER BY k.place)
        FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (attnum, place)
        INNER JOIN pg_attribute AS a ON a.attrelid = target AND k.attnum = a.attnum
    ))
    FROM pg_index AS i
    WHERE i.indrelid = target AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
    UNION ALL
    SELECT 'reads as its owner'
    FROM pg_class AS v
    WHERE v.oid = target AND v.relkind = 'v' AND NOT coalesce(v.reloptions @> '{security_invoker=true}', false)
    UNION ALL
    SELECT 'view of the Vinted rows'
    FROM pg_class AS v
    WHERE
        v.oid = target
        AND v.relkind = 'v'
        AND v.reloptions @> '{check_option=cascaded}' -- which PostgreSQL gives only to a view that can be written
        AND (
            SELECT count(*) = 1 AND bool_and(job_stats.strings(r.ev_action) = 'vinted')
            FROM pg_rewrite AS r
            WHERE r.ev_class = v.oid
        );
$function$;

-- What each tenant is: legacy, migrated, contracted (migrated, without the legacy view and the default marketplace),
-- missing (it has no such table) or drifted. Then problem says how, in words; otherwise it is NULL.
CREATE OR REPLACE VIEW job_stats.tenant_status AS
WITH tables AS MATERIALIZED (
    -- By subqueries: joins may be planned as all schemas times all their tables.
    SELECT
        t.*,
        (SELECT oid FROM pg_class WHERE relnamespace = t.schema_oid AND relname = 'vinted_job_stats') AS old,
        (SELECT oid FROM pg_class WHERE relnamespace = t.schema_oid AND relname = 'marketplace_job_stats')
            AS new
    FROM tenancy.tenants AS t
),

renames_left AS MATERIALIZED (
    SELECT
        c.relnamespace,
        c.relname
    FROM tenancy.renames_left AS l
    INNER JOIN pg_class AS c ON l.sequence = c.oid
),

tenant_tables AS MATERIALIZED (
    SELECT
        t.*,
        (SELECT relkind FROM pg_class WHERE oid = t.old) AS old_kind,
        (SELECT relkind FROM pg_class WHERE oid = t.new) AS new_kind,
        (
            SELECT oid FROM pg_class
            WHERE relnamespace = t.schema_oid AND relname = 'marketplace_job_stats_archive'
        ) IS NOT NULL AS has_archive,
        ARRAY(SELECT job_stats.facts(t.old)) AS old_facts,
        ARRAY(SELECT job_stats.facts(t.new)) AS new_facts,
        -- Clones of the template have no key of this name; they, and the template, are born without the view.
        t.schema_name <> 'template_tenant' AND EXISTS (
            SELECT FROM pg_constraint
            WHERE
                connamespace = t.schema_oid
                AND conrelid = t.new
                AND conname = 'uq_marketplace_job_stats_action_marketplace_date'
        ) AS had_view,
        -- Its key was made by the change, which keeps what it takes away: where nothing is kept, it was made elsewhere.
        EXISTS (
            SELECT FROM pg_constraint
            WHERE conrelid = t.new AND conname = 'uq_marketplace_job_stats_action_marketplace_date'
        ) AND NOT EXISTS (SELECT FROM tenancy.undo AS u WHERE u.target = t.new) AS is_stranger,
        (
            SELECT string_agg(format('sequence %s is still to be renamed', l.relname), '; ')
            FROM renames_left AS l
            WHERE l.relnamespace = t.schema_oid
        ) AS renames_left
    FROM tables AS t
),

checked AS MATERIALIZED (
    SELECT
        t.*,
        'default of marketplace vinted' = ANY (t.new_facts) AS has_default,
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
            WHEN c.new_kind IS NULL THEN c.renames_left
            WHEN c.new_kind = 'r' THEN nullif(concat_ws(
                '; ',
                c.renames_left,
                CASE
                    WHEN c.is_stranger THEN 'was migrated elsewhere, and tenancy.undo does not say what it was before'
                END,
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
                    WHEN 'reads as its owner' = ANY (c.old_facts) AND job_stats.outdoes(c.old, c.new)
                        THEN 'view vinted_job_stats may show more than its table: drop it, and create it anew'
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

-- Raises if a tenant has drifted, or is legacy while others are not. With expected, also if a tenant is not in that
-- state, which is what a pipeline should ask for: that yoyo has marked a migration as applied is no proof that it was
-- run. The setting job_stats.verify = off skips it.
CREATE OR REPLACE PROCEDURE job_stats.verify(INOUT verified integer DEFAULT 0, expected text DEFAULT NULL)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    problems text[];
BEGIN
    IF expected NOT IN ('legacy', 'migrated', 'contracted') THEN
        RAISE EXCEPTION 'expected must be legacy, migrated or contracted, not %', expected;
    END IF;
    IF current_setting('job_stats.verify', true) = 'off' THEN
        RETURN;
    END IF;
    SELECT
        count(*),
        array_agg(format('%s: %s', s.schema_name, coalesce(s.problem, s.lag, 'is ' || s.state)) ORDER BY s.schema_name)
        FILTER (
            WHERE s.state = 'drifted' OR (s.state = 'legacy' AND s.any_migrated) OR s.state <> s.expected OR s.lag <> ''
        )
    INTO verified, problems
    FROM (
        SELECT
            t.*,
            CASE WHEN t.state <> 'missing' THEN verify.expected END AS expected,
            CASE WHEN verify.expected <> 'legacy' AND t.state IN ('migrated', 'contracted') AND NOT EXISTS (
                SELECT FROM pg_attribute AS a
                WHERE
                    a.attrelid = to_regclass(format('%I.marketplace_job_stats', t.schema_name))
                    AND a.attname = 'total_duration_ms'
            ) THEN 'has not had 0021' END AS lag,
            bool_or(t.state IN ('migrated', 'contracted')) OVER () AS any_migrated
        FROM job_stats.tenant_status AS t
    ) AS s;
    IF problems <> '{}' THEN
        RAISE EXCEPTION '% of % tenants are not as they should be', cardinality(problems), verified
        USING
            DETAIL = array_to_string(problems[1:50] || CASE WHEN cardinality(problems) > 50 THEN '...' END, E'\n'),
            HINT = 'All: SELECT * FROM job_stats.tenant_status. For stragglers: CALL tenancy.sweep().';
    END IF;
END
$procedure$;

CALL tenancy.make_private('job_stats');
