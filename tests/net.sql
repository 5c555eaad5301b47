-- A net for what a search_path could take: operators and functions that raise when they are called.
--
-- PostgreSQL calls the operator or function whose argument types fit exactly, wherever in the search_path it is; only
-- where several fit equally does the first schema win, which is pg_catalog. So `varchar = varchar`, which pg_catalog has
-- not got, is whoever's who makes it. The net has, for each name in pg_catalog, what pg_catalog lacks for common types.
-- It is made from the catalog of the server under test, in the schema that the setting net.schema names.

SET check_function_bodies = off;

CREATE FUNCTION pg_temp.trap(signature text, result text) RETURNS text LANGUAGE sql AS $$
    SELECT format(
        'CREATE FUNCTION %s RETURNS %s LANGUAGE plpgsql AS %L',
        signature, result, format('BEGIN RAISE EXCEPTION ''caught in the net: %%'', %L; END', signature)
    )
$$;

DO $do$
DECLARE
    net constant text := current_setting('net.schema');
    common constant regtype[] := ARRAY[
        'bool', '"char"', 'int2', 'int4', 'int8', 'numeric', 'float8', 'text', 'varchar', 'bpchar', 'name', 'date',
        'timestamptz', 'interval', 'oid', 'regclass', 'regnamespace', 'text[]', 'name[]', 'int4[]', 'varchar[]'
    ];
    made record;
BEGIN
    -- Operators. Those of two types share a function: one that returns a boolean, one that returns the left type.
    FOR made IN
        SELECT
            l.type AS l,
            r.type AS r,
            o.oprname,
            o.is_boolean
        FROM unnest(common) AS l (type)
        CROSS JOIN unnest(common) AS r (type)
        CROSS JOIN (
            SELECT oprname, bool_and(oprresult = 'boolean'::regtype) AS is_boolean
            FROM pg_operator
            WHERE
                oprnamespace = 'pg_catalog'::regnamespace
                AND oprkind = 'b'
                AND (oprleft = ANY (common) OR oprleft::regtype::text LIKE 'any%')
            GROUP BY oprname
        ) AS o
        WHERE NOT EXISTS (
            SELECT FROM pg_operator AS e
            WHERE
                e.oprnamespace = 'pg_catalog'::regnamespace
                AND (e.oprname, e.oprleft, e.oprright) = (o.oprname, l.type, r.type)
        )
        ORDER BY 1, 2, 4
    LOOP
        IF to_regprocedure(format('%s.net_%s(%s, %s)', net, made.is_boolean, made.l, made.r)) IS NULL THEN
            EXECUTE pg_temp.trap(
                format('%s.net_%s(%s, %s)', net, made.is_boolean, made.l, made.r),
                CASE WHEN made.is_boolean THEN 'boolean' ELSE made.l::text END
            );
        END IF;
        EXECUTE format(
            'CREATE OPERATOR %s.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = %1$s.net_%5$s)',
            net, made.oprname, made.l, made.r, made.is_boolean
        );
    END LOOP;

    -- Functions: every signature with, for any type, each common one; and with another type in one place.
    FOR made IN
        WITH signatures AS (
            SELECT
                p.proname,
                p.prorettype,
                p.provariadic,
                p.proargtypes::regtype[] AS types
            FROM pg_proc AS p
            WHERE
                p.pronamespace = 'pg_catalog'::regnamespace
                AND p.pronargs BETWEEN 1 AND 4
                AND NOT p.proargtypes::oid[] && ARRAY['internal', 'cstring', 'trigger', 'event_trigger']::regtype[]::oid[]
                AND p.proname !~ '(_in|_out|_recv|_send|typmodin|typmodout|sel|support)$'
        ),

        variants AS (
            SELECT
                s.proname,
                s.prorettype,
                (
                    SELECT array_agg(CASE
                        WHEN t.type::text IN ('anyarray', 'anycompatiblearray')
                            THEN coalesce((SELECT y.typarray::regtype FROM pg_type AS y WHERE y.oid = c.type AND y.typarray <> 0), c.type)
                        WHEN t.type::text LIKE 'any%' OR t.type::text = '"any"' THEN c.type
                        ELSE t.type
                    END ORDER BY t.place)
                    FROM unnest(s.types[0:]) WITH ORDINALITY AS t (type, place)
                ) AS types
            FROM signatures AS s
            CROSS JOIN unnest(common) AS c (type)
            UNION
            SELECT s.proname, s.prorettype, (
                SELECT array_agg(CASE WHEN t.place = p.place THEN n.other ELSE t.type END ORDER BY t.place)
                FROM unnest(s.types[0:]) WITH ORDINALITY AS t (type, place)
            )
            FROM signatures AS s
            CROSS JOIN generate_series(1, 4) AS p (place)
            INNER JOIN (
                VALUES
                ('text'::regtype, 'varchar'::regtype), ('text', 'name'), ('text', 'int4'), ('text', 'date'), ('int8', 'int4'),
                ('numeric', 'int4'), ('numeric', 'int8'), ('int4', 'int8'), ('int4', 'int2'), ('float8', 'int4'),
                ('float8', 'numeric'), ('oid', 'regclass'), ('oid', 'int4'), ('oid', 'regnamespace'), ('regclass', 'oid'),
                ('regclass', 'text'), ('regclass', 'name'), ('name', 'text'), ('name', 'varchar'), ('timestamptz', 'date'),
                ('text[]', 'name[]'), ('text[]', 'varchar[]')
            ) AS n (type, other) ON s.types[p.place - 1] = n.type
            UNION -- format(), concat() and their like
            SELECT s.proname, s.prorettype, array_append(s.types[0:array_length(s.types, 1) - 2], a.type) || b.types
            FROM signatures AS s
            CROSS JOIN unnest(common) AS a (type)
            CROSS JOIN (
                SELECT '{}'::regtype[] AS types
                UNION ALL
                SELECT ARRAY[y.type] FROM unnest(common) AS y (type)
                UNION ALL
                SELECT ARRAY[y.type, z.type] FROM unnest(common[6:12]) AS y (type), unnest(common[6:12]) AS z (type)
            ) AS b
            WHERE s.provariadic = '"any"'::regtype
        )

        SELECT DISTINCT ON (v.proname, v.types)
            format('%s.%I(%s)', net, v.proname, array_to_string(v.types, ', ')) AS signature,
            CASE
                WHEN v.prorettype::regtype::text ~ '^("?any|internal|cstring|record|void|trigger)' THEN v.types[1]::text
                ELSE v.prorettype::regtype::text
            END AS result
        FROM variants AS v
        WHERE
            v.types::text[]::text !~ 'any'
            AND NOT EXISTS (
                SELECT FROM pg_proc AS e
                WHERE
                    e.pronamespace = 'pg_catalog'::regnamespace
                    AND e.proname = v.proname
                    AND (e.proargtypes::oid[])[0:] = v.types::oid[]
            )
        ORDER BY v.proname, v.types
    LOOP
        EXECUTE pg_temp.trap(made.signature, made.result);
    END LOOP;
END
$do$
