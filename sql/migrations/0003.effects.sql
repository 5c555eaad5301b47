-- What migrations make of a table, as facts: noted when they are run, and later expected of every tenant.
--
-- So nothing is written down by hand of what a table is to look like, and no file that has been applied needs to be
-- changed by a later one: a migration that replaces a check removes what an earlier one has made.
--
-- depends: 0002.runs

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- The strings in an expression, sorted, from the form in which it is stored. To print it, as pg_get_expr() does, would
-- open its table, wait for its locks, and read constants by the code of whose type they are. NULL if it is too long to
-- be ours, or to be taken apart.
CREATE OR REPLACE FUNCTION tenancy.strings(expression text)
RETURNS text
LANGUAGE plpgsql -- which keeps its plan
IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN CASE WHEN length(expression) < 1000000 THEN (
        SELECT string_agg(c.string, ', ' ORDER BY c.string)
        FROM (
            SELECT (
                SELECT string_agg(chr(b.byte::integer), '' ORDER BY b.place)
                FROM string_to_table(m.found[1], ' ') WITH ORDINALITY AS b (byte, place)
                WHERE b.place > 4 AND b.byte::integer > 0 -- after the length
            ) AS string
            FROM regexp_matches(
                expression, ':consttype (?:25|1043) [^{}]*:constvalue [0-9]+ [[] ([-0-9 ]+) []]', 'g'
            ) AS m (found)
        ) AS c
    ) END;
END
$function$;

-- What matters of tables, as sorted texts. Opens none of them, which would wait for its locks and stay in the server
-- process's memory. In one pass over the catalogs, for thousands of tables. With among, only those facts.
CREATE OR REPLACE FUNCTION tenancy.facts(tables oid[], among text[] DEFAULT NULL)
RETURNS TABLE (target oid, facts text[])
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
SET enable_nestloop = off
SET enable_mergejoin = off
SET jit = off
SET quote_all_identifiers = off -- which format_type() heeds
AS $function$
BEGIN
    RETURN QUERY
    WITH targets AS MATERIALIZED (SELECT unnest(tables) AS oid),
    columns AS MATERIALIZED (
        SELECT
            a.attrelid,
            a.attnum,
            a.attname,
            a.attgenerated,
            concat_ws(
                ' ', 'column', a.attname, format_type(a.atttypid, a.atttypmod),
                CASE WHEN a.attnotnull THEN 'NOT NULL' END
            ) AS fact
        FROM targets AS t
        INNER JOIN pg_attribute AS a ON t.oid = a.attrelid
        WHERE a.attnum > 0 AND NOT a.attisdropped
    ),

    stored AS MATERIALIZED ( -- defaults and checks
        SELECT
            s.*,
            CASE WHEN pg_column_size(s.tree) < 10000 THEN s.tree::text END AS expression
        FROM targets AS t
        INNER JOIN (
            SELECT oid, adrelid, ARRAY[adnum], false, adbin FROM pg_attrdef
            UNION ALL
            SELECT oid, conrelid, conkey, true, conbin FROM pg_constraint WHERE contype = 'c' AND convalidated
        ) AS s (oid, relid, attnums, is_check, tree) ON t.oid = s.relid
    ),

    expressions AS MATERIALIZED ( -- each once, which all tenants share
        SELECT
            e.expression,
            tenancy.strings(e.expression) AS strings
        FROM (SELECT DISTINCT s.expression FROM stored AS s) AS e
    ),

    found (target, fact) AS (
        SELECT
            c.attrelid,
            c.fact
        FROM columns AS c
        UNION ALL
        SELECT
            s.relid,
            concat(
                CASE WHEN s.is_check THEN 'check of ' ELSE 'default of ' END,
                string_agg(c.attname, ', ' ORDER BY c.attname),
                ': ' || min(e.strings)
            )
        FROM stored AS s
        INNER JOIN columns AS c ON s.relid = c.attrelid AND c.attnum = ANY (s.attnums)
        LEFT JOIN expressions AS e ON s.expression = e.expression
        WHERE s.is_check OR c.attgenerated = ''
        GROUP BY s.oid, s.is_check, s.relid
        UNION ALL
        SELECT
            i.indrelid,
            format(
                '%s on (%s)',
                CASE WHEN NOT i.indisunique THEN 'index' WHEN i.indimmediate THEN 'unique key' ELSE 'late key' END,
                string_agg(c.attname, ', ' ORDER BY k.place)
            )
        FROM targets AS t
        INNER JOIN pg_index AS i ON t.oid = i.indrelid AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
        CROSS JOIN LATERAL unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (attnum, place)
        INNER JOIN columns AS c ON i.indrelid = c.attrelid AND k.attnum = c.attnum
        GROUP BY i.indexrelid, i.indrelid, i.indisunique, i.indimmediate
        UNION ALL
        SELECT
            f.conrelid,
            format('foreign key on (%s) to %s', string_agg(c.attname, ', ' ORDER BY c.attname), concat(
                CASE WHEN r.relnamespace <> f.connamespace THEN r.relnamespace::regnamespace || '.' END, r.relname
            ))
        FROM targets AS t
        INNER JOIN pg_constraint AS f ON t.oid = f.conrelid AND f.contype = 'f'
        INNER JOIN pg_class AS r ON f.confrelid = r.oid
        INNER JOIN columns AS c ON f.conrelid = c.attrelid AND c.attnum = ANY (f.conkey)
        GROUP BY f.oid, f.conrelid, f.connamespace, r.relnamespace, r.relname
    )

    SELECT
        f.target,
        array_agg(DISTINCT f.fact COLLATE "C") FILTER (WHERE among IS NULL OR a.fact IS NOT NULL)
    FROM found AS f
    LEFT JOIN (SELECT DISTINCT unnest(among) AS fact) AS a ON f.fact = a.fact
    GROUP BY 1;
END
$function$;

-- The facts of all tables of a tenant, by the table's oid.
CREATE OR REPLACE FUNCTION tenancy.facts_of(tenant name)
RETURNS jsonb
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT coalesce(jsonb_object_agg(f.target, to_jsonb(f.facts)), '{}')
    FROM tenancy.facts(ARRAY(
        SELECT c.oid FROM pg_class AS c
        WHERE c.relnamespace = to_regnamespace(quote_ident(tenant)) AND c.relkind IN ('r', 'p')
    )) AS f;
$function$;

-- The same, before a migration: when nobody is changing a table, nor can, till the end of the transaction.
CREATE OR REPLACE PROCEDURE tenancy.note_before(tenant name, INOUT before jsonb)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    target regclass;
BEGIN
    FOR target IN
        SELECT c.oid FROM pg_class AS c
        WHERE
            c.relnamespace = to_regnamespace(quote_ident(tenant))
            AND c.relkind IN ('r', 'p')
            AND has_table_privilege(c.oid, 'SELECT')
    LOOP
        EXECUTE format('LOCK TABLE ONLY %s IN ACCESS SHARE MODE', target);
    END LOOP;
    before := tenancy.facts_of(tenant);
END
$procedure$;

-- Whether the effects of a migration are to be seen in this tenant: it is the template, or, while none are known, the
-- first one.
CREATE OR REPLACE FUNCTION tenancy.is_to_be_noted(run_id bigint, migration text, tenant name)
RETURNS boolean
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN (
        tenant = 'template_tenant'
        OR NOT EXISTS (SELECT FROM tenancy.effects AS e WHERE e.migration = is_to_be_noted.migration)
        AND NOT EXISTS (
            SELECT FROM tenancy.journal AS j WHERE j.run_id = is_to_be_noted.run_id AND j.outcome = 'done'
        )
    ) AND migration ~ '^[0-9]' AND migration !~ '\.rollback$';
END
$function$;

-- Notes what has changed in a tenant since.
CREATE OR REPLACE PROCEDURE tenancy.note_effects(migration text, tenant name, before jsonb)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    present constant jsonb := tenancy.facts_of(tenant);
BEGIN
    DELETE FROM tenancy.effects AS e WHERE e.migration = note_effects.migration;
    INSERT INTO tenancy.effects (migration, table_name, made, removed)
    SELECT
        note_effects.migration,
        c.relname,
        ARRAY(
            SELECT n.fact FROM jsonb_array_elements_text(p.facts) AS n (fact)
            EXCEPT SELECT o.fact FROM jsonb_array_elements_text(before -> p.target) AS o (fact)
        ),
        ARRAY(
            SELECT o.fact FROM jsonb_array_elements_text(before -> p.target) AS o (fact)
            EXCEPT SELECT n.fact FROM jsonb_array_elements_text(p.facts) AS n (fact)
        )
    FROM jsonb_each(present) AS p (target, facts)
    INNER JOIN pg_class AS c ON p.target::oid = c.oid
    WHERE p.facts IS DISTINCT FROM before -> p.target;
END
$procedure$;

-- Drops the columns that later migrations have made: what a rollback takes away with its own column. What the tenant had
-- before that stays, whatever it is called. A replica identity that has the column becomes the default, the primary key:
-- without any, PostgreSQL refuses to UPDATE a table that is published.
CREATE OR REPLACE PROCEDURE tenancy.drop_later_columns(target regclass, of_migration text, own_column name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    later name;
BEGIN
    IF EXISTS (
        SELECT FROM pg_index AS i
        INNER JOIN pg_attribute AS o ON i.indrelid = o.attrelid AND o.attnum = ANY (i.indkey::int2[])
        WHERE i.indrelid = target AND i.indisreplident AND o.attname = own_column
    ) THEN
        EXECUTE format('ALTER TABLE %s REPLICA IDENTITY DEFAULT', target);
    END IF;
    FOR later IN
        SELECT a.attname
        FROM pg_attribute AS a
        INNER JOIN pg_class AS c ON a.attrelid = c.oid
        WHERE
            a.attrelid = target
            AND NOT a.attisdropped
            AND a.attnum > (SELECT o.attnum FROM pg_attribute AS o WHERE o.attrelid = target AND o.attname = own_column)
            AND EXISTS (
                SELECT FROM tenancy.effects AS e
                WHERE
                    e.table_name = c.relname
                    AND e.migration COLLATE "C" > of_migration
                    AND concat_ws(
                        ' ', 'column', a.attname, format_type(a.atttypid, a.atttypmod),
                        CASE WHEN a.attnotnull THEN 'NOT NULL' END
                    ) = ANY (e.made)
            )
    LOOP
        EXECUTE format('ALTER TABLE %s DROP COLUMN %I', target, later);
    END LOOP;
END
$procedure$;

CALL tenancy.make_private('tenancy');
