-- What state each tenant is in, and the verification of all.
--
-- depends: 0014.findings

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- What each tenant has of the names that matter.
CREATE OR REPLACE VIEW job_stats.tenant_relations AS
SELECT
    t.schema_oid,
    t.schema_name,
    r.old,
    r.old_kind,
    r.new,
    r.new_kind,
    r.has_archive,
    l.schema_name IS NOT NULL AS is_left_out,
    r.relnamespace IS NULL AND b.relnamespace IS NOT NULL AS lacks_table, -- though it has others of the template's
    n.renames_left,
    x.conname IS NOT NULL AS has_key, -- that 0020 has made
    k.target IS NOT NULL AS is_kept, -- what the table was before that
    g.schema_name IS NOT NULL AS has_lost_one -- a table of which that is kept
FROM tenancy.tenants AS t
LEFT JOIN tenancy.left_out AS l ON t.schema_name = l.schema_name
LEFT JOIN (
    SELECT
        c.relnamespace,
        max(c.oid) FILTER (WHERE c.relname = 'vinted_job_stats') AS old,
        max(c.relkind::text) FILTER (WHERE c.relname = 'vinted_job_stats') AS old_kind,
        max(c.oid) FILTER (WHERE c.relname = 'marketplace_job_stats') AS new,
        max(c.relkind::text) FILTER (WHERE c.relname = 'marketplace_job_stats') AS new_kind,
        bool_or(c.relname = 'marketplace_job_stats_archive') AS has_archive
    FROM pg_class AS c
    WHERE c.relname IN ('vinted_job_stats', 'marketplace_job_stats', 'marketplace_job_stats_archive')
    GROUP BY 1
) AS r ON t.schema_oid = r.relnamespace
LEFT JOIN (
    SELECT DISTINCT c.relnamespace FROM pg_class AS c
    WHERE c.relkind IN ('r', 'p') AND c.relname IN (
        SELECT o.relname FROM pg_class AS o
        WHERE o.relnamespace = to_regnamespace('template_tenant') AND o.relkind IN ('r', 'p')
    )
) AS b ON t.schema_oid = b.relnamespace
LEFT JOIN (
    SELECT
        c.relnamespace,
        string_agg(DISTINCT format('sequence %s is still to be renamed', c.relname), '; ') AS renames_left
    FROM tenancy.renames_left AS l
    INNER JOIN pg_class AS c ON l.sequence = c.oid AND l.old_name = c.relname
    GROUP BY 1
) AS n ON t.schema_oid = n.relnamespace
LEFT JOIN pg_constraint AS x ON r.new = x.conrelid AND x.conname = 'uq_marketplace_job_stats_action_marketplace_date'
LEFT JOIN (SELECT DISTINCT u.target FROM tenancy.undo AS u) AS k ON r.new = k.target
LEFT JOIN (
    SELECT DISTINCT u.schema_name
    FROM tenancy.undo AS u
    INNER JOIN tenancy.effects AS e ON u.migration = e.migration
    WHERE e.table_name = 'marketplace_job_stats' AND u.target::oid NOT IN (SELECT c.oid FROM pg_class AS c)
) AS g ON t.schema_name = g.schema_name;

-- The legacy views that are as they were created: they show Vinted's rows, all of these and all legacy columns, and let
-- none be written that they do not show.
CREATE OR REPLACE VIEW job_stats.legacy_views AS
SELECT v.oid
FROM pg_class AS v
INNER JOIN pg_rewrite AS r ON v.oid = r.ev_class
INNER JOIN pg_class AS t ON v.relnamespace = t.relnamespace AND t.relname = 'marketplace_job_stats'
INNER JOIN pg_attribute AS m ON t.oid = m.attrelid AND m.attname = 'marketplace'
WHERE
    v.relname = 'vinted_job_stats'
    AND v.relkind = 'v'
    AND v.reloptions @> '{check_option=cascaded}' -- which PostgreSQL gives only to a view that can be written
    AND pg_column_size(r.ev_action) < 200000
    AND NOT EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgrelid = v.oid)
    AND ARRAY(SELECT a.attname FROM pg_attribute AS a WHERE a.attrelid = v.oid AND a.attnum > 0 ORDER BY a.attnum) = ARRAY(
        SELECT a.attname FROM pg_attribute AS a
        WHERE a.attrelid = t.oid AND a.attnum > 0 AND a.attnum < m.attnum AND NOT a.attisdropped
        ORDER BY a.attnum
    )
GROUP BY 1
HAVING
    count(*) = 1
    -- As it is stored, the one text in it is vinted, a byte a number.
    AND bool_and(position(' 118 105 110 116 101 100 ]' IN r.ev_action::text) > 0)
    AND bool_and(array_length(string_to_array(r.ev_action::text, ':consttype 25 '), 1) = 2)
    AND bool_and(position('{BOOLEXPR ' IN r.ev_action::text) = 0);

-- What each tenant is, and, in words, what is wrong with it. In one pass over the catalogs, for thousands of tenants;
-- locks and opens none. is_incomplete: it lacks a table or view that add_tenant() would make.
CREATE OR REPLACE FUNCTION job_stats.status()
RETURNS TABLE (schema_oid oid, schema_name name, state text, problem text, is_incomplete boolean)
LANGUAGE plpgsql
STABLE
SECURITY DEFINER -- so that a role that monitors needs no right to read tenancy.undo
SET search_path = pg_catalog, pg_temp
SET enable_nestloop = off
SET enable_mergejoin = off
SET jit = off
AS $function$
DECLARE
    tables constant oid[] := ARRAY(SELECT s.target FROM job_stats.tables AS s WHERE NOT s.is_legacy);
BEGIN
    RETURN QUERY
    WITH deviations AS MATERIALIZED (
        SELECT
            d.*,
            'default of marketplace: vinted' = ANY (d.facts) AS has_default
        FROM tenancy.deviations(tables) AS d
    ),

    obstacles AS MATERIALIZED (
        SELECT
            f.target,
            string_agg(f.finding, '; ' ORDER BY f.finding) AS problem
        FROM job_stats.findings AS f
        INNER JOIN unnest(tables) AS t (target) ON f.target = t.target
        WHERE f.kind = 'stops stats_lib'
        GROUP BY 1
    ),

    judged AS (
        SELECT
            r.*,
            d.has_default,
            d.pending,
            coalesce(
                r.new_kind = 'r' AND r.old IS NULL AND d.has_default AND r.schema_name <> 'template_tenant', false
            ) AS lacks_view,
            CASE
                WHEN r.is_left_out THEN NULL
                WHEN r.old_kind IN ('r', 'p') AND r.new_kind IS NOT NULL
                    THEN 'vinted_job_stats and marketplace_job_stats are both there'
                WHEN r.new_kind IS NULL AND r.old_kind <> 'r' THEN 'vinted_job_stats is not an ordinary table'
                WHEN r.new_kind <> 'r' THEN 'marketplace_job_stats is not an ordinary table'
                WHEN r.lacks_table THEN 'has no table for job statistics, though others of the template''s'
                WHEN r.new_kind IS NULL AND r.old_kind IS NULL AND r.has_lost_one
                    THEN 'its table is gone, and tenancy.undo says what it was before'
                WHEN r.new_kind IS NULL THEN r.renames_left
                ELSE nullif(concat_ws(
                    '; ',
                    r.renames_left,
                    CASE
                        WHEN r.has_key AND NOT r.is_kept
                            THEN 'was migrated elsewhere, and tenancy.undo does not say what it was before'
                        WHEN NOT EXISTS (SELECT FROM tenancy.effects) THEN 'no migration that was run here has made it'
                        WHEN r.has_lost_one AND NOT r.is_kept
                            THEN 'is another table than was migrated, and tenancy.undo says what that one was before'
                    END,
                    d.problem,
                    o.problem,
                    CASE
                        WHEN r.old_kind IS NULL THEN NULL
                        WHEN NOT d.has_default THEN 'view vinted_job_stats without a default of marketplace'
                        WHEN v.oid IS NULL THEN 'view vinted_job_stats is not as it was created: drop it, and sweep'
                        WHEN w.relowner <> n.relowner
                            THEN 'view vinted_job_stats is not its table''s owner''s: drop it, and sweep'
                        WHEN (w.reloptions @> '{security_invoker=true}') IS NOT TRUE AND job_stats.outdoes(r.old, r.new)
                            THEN 'view vinted_job_stats may show more than its table: drop it, and sweep'
                    END,
                    CASE WHEN r.has_archive THEN 'marketplace_job_stats_archive is left' END
                ), '')
            END AS problem
        FROM job_stats.tenant_relations AS r
        LEFT JOIN deviations AS d ON r.new = d.target
        LEFT JOIN obstacles AS o ON r.new = o.target
        LEFT JOIN job_stats.legacy_views AS v ON r.old = v.oid
        LEFT JOIN pg_class AS w ON r.old = w.oid
        LEFT JOIN pg_class AS n ON r.new = n.oid
    )

    SELECT
        j.schema_oid,
        j.schema_name,
        CASE
            WHEN j.is_left_out THEN 'left out'
            WHEN j.new_kind IS NULL AND j.old_kind IS NULL THEN 'missing'
            WHEN j.problem IS NOT NULL OR j.lacks_view THEN 'drifted'
            WHEN j.new_kind IS NULL THEN 'legacy'
            WHEN j.has_default THEN 'migrated'
            ELSE 'contracted'
        END,
        nullif(concat_ws('; ', j.pending, j.problem, CASE WHEN j.lacks_view THEN 'no view vinted_job_stats' END), ''),
        NOT j.is_left_out AND (j.lacks_table OR j.lacks_view)
    FROM judged AS j
    ORDER BY j.schema_name;
END
$function$;

-- What each tenant is: legacy, migrated, contracted (migrated, without the legacy view and the default marketplace),
-- missing (it has no such table), left out (by tenancy.left_out) or drifted. Where problem is not NULL, it says in
-- words what is wrong, or late.
CREATE OR REPLACE VIEW job_stats.tenant_status AS
SELECT
    s.schema_name,
    s.state,
    s.problem
FROM job_stats.status() AS s;

-- Raises if a tenant has a problem, or is legacy while others are not. With expected, also if a tenant that has the
-- table is not in that state, which is what a pipeline should ask for: that yoyo has marked a migration as applied is
-- no proof that it was run. Returns how many tenants are as they should be, have no table, and are left out. The
-- setting job_stats.verify = off skips it where nothing is expected.
CREATE OR REPLACE PROCEDURE job_stats.verify(
    INOUT verified integer DEFAULT 0,
    INOUT missing integer DEFAULT 0,
    INOUT left_out integer DEFAULT 0,
    expected text DEFAULT NULL
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    problems text[];
    strangers text;
BEGIN
    CALL tenancy.begin_step();
    IF expected NOT IN ('legacy', 'migrated', 'contracted') THEN
        RAISE EXCEPTION 'expected must be legacy, migrated or contracted, not %', expected;
    END IF;
    IF expected IS NULL AND current_setting('job_stats.verify', true) = 'off' THEN
        RETURN;
    END IF;
    SELECT
        count(*) FILTER (WHERE s.state NOT IN ('missing', 'left out')),
        count(*) FILTER (WHERE s.state = 'missing'),
        count(*) FILTER (WHERE s.state = 'left out'),
        array_agg(
            regexp_replace(
                format('%s: %s', s.schema_name, coalesce(s.problem, s.lag, 'is ' || s.state)), '[[:cntrl:]]+', ' ', 'g'
            ) ORDER BY s.schema_name
        ) FILTER (
            WHERE s.problem <> '' OR (s.state = 'legacy' AND s.any_migrated) OR s.state <> s.expected OR s.lag <> ''
        )
    INTO verified, missing, left_out, problems
    FROM (
        SELECT
            t.*,
            CASE WHEN t.state NOT IN ('missing', 'left out') THEN verify.expected END AS expected,
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
        RAISE EXCEPTION '% of % tenants are not as they should be', cardinality(problems), verified + missing
        USING
            DETAIL = array_to_string(problems[1:50] || CASE WHEN cardinality(problems) > 50 THEN '...' END, E'\n'),
            HINT = 'All: SELECT * FROM job_stats.tenant_status. For what is lacking or late: yoyo apply, then CALL '
            'job_stats.sweep(); see docs/runbook.md, step 6.1.';
    END IF;
    strangers := tenancy.strangers($$
        SELECT c.relnamespace, true FROM pg_class AS c
        WHERE c.relname IN ('vinted_job_stats', 'marketplace_job_stats') AND c.relkind IN ('r', 'p')
    $$);
    IF verified = 0 AND strangers <> '' THEN
        RAISE EXCEPTION 'no tenant has the table, but schemas have that are no tenants: %', strangers
        USING HINT = 'The view tenancy.tenants says what a tenant is.';
    END IF;
END
$procedure$;

CALL tenancy.make_private('job_stats');
REVOKE EXECUTE ON FUNCTION job_stats.status FROM public;
