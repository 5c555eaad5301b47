-- How tables deviate from what the migrations have made.
--
-- depends: 0008.locked-tenants

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- pending: the migrations that have been run in all tenants, but not in this one; problem: what a table lacks of what
-- the others have made, or has though they have removed it. Both are NULL if there is nothing. Of a migration that was
-- run for a canary only, all is expected where it has been run.
CREATE OR REPLACE FUNCTION tenancy.deviations(tables oid[])
RETURNS TABLE (target oid, facts text[], pending text, problem text)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
SET enable_nestloop = off
SET enable_mergejoin = off
SET jit = off
AS $function$
BEGIN
    RETURN QUERY
    WITH found AS MATERIALIZED (
        SELECT
            f.target,
            coalesce(f.facts, '{}') AS facts,
            c.relname
        FROM tenancy.facts(tables, ARRAY(
            SELECT unnest(e.made || e.removed) FROM tenancy.effects AS e
        )) AS f
        INNER JOIN pg_class AS c ON f.target = c.oid
    ),

    shapes AS MATERIALIZED ( -- of which there are few
        SELECT DISTINCT
            f.relname,
            f.facts
        FROM found AS f
    ),

    expected AS MATERIALIZED (
        SELECT
            s.relname,
            s.facts,
            e.migration,
            e.made,
            e.removed,
            CASE
                WHEN e.made = '{}' THEN e.removed <> '{}' AND e.removed <@ s.facts
                ELSE NOT e.made && s.facts
            END AS is_pending
        FROM shapes AS s
        INNER JOIN tenancy.effects AS e ON s.relname = e.table_name
        WHERE
            e.migration IN (SELECT m.name FROM tenancy.migrations AS m)
            OR (e.made <@ s.facts AND NOT e.removed && s.facts)
    ),

    latest AS ( -- of the migrations that make or remove a fact, the last one
        SELECT DISTINCT ON (x.relname, x.facts, f.fact)
            x.relname,
            x.facts,
            f.fact,
            f.is_made
        FROM expected AS x
        CROSS JOIN LATERAL (
            SELECT unnest(x.made), true
            UNION ALL
            SELECT unnest(x.removed), false
        ) AS f (fact, is_made)
        WHERE NOT x.is_pending
        ORDER BY x.relname, x.facts, f.fact, x.migration COLLATE "C" DESC
    ),

    problems AS (
        SELECT
            x.relname,
            x.facts,
            'has not had ' || x.migration AS pending,
            NULL AS problem
        FROM expected AS x
        WHERE x.is_pending
        UNION ALL
        SELECT
            l.relname,
            l.facts,
            NULL,
            CASE WHEN l.is_made THEN 'no ' ELSE 'has ' END || l.fact
        FROM latest AS l
        WHERE l.is_made <> (l.fact = ANY (l.facts))
    )

    SELECT
        f.target,
        f.facts,
        p.pending,
        p.problem
    FROM found AS f
    LEFT JOIN (
        SELECT
            q.relname,
            q.facts,
            string_agg(q.pending, '; ' ORDER BY q.pending) AS pending,
            string_agg(q.problem, '; ' ORDER BY q.problem) AS problem
        FROM problems AS q
        GROUP BY 1, 2
    ) AS p ON f.relname = p.relname AND f.facts = p.facts;
END
$function$;

CALL tenancy.make_private('tenancy');
