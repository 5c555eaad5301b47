-- Drops what a migration is to take away from a tenant's table, by definition and not by name, and keeps in
-- tenancy.undo the script that gives it back.
--
-- The helpers get the table as a regclass. What they name of it in a script is unqualified, since the schema may be
-- called otherwise by then, or be in another database; the script is run as a migration's is, in the tenant's path.
--
-- depends: 0005.as-owner

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- How a constraint, or an index, was defined, in words that mean the same under any setting and any schema's name.
CREATE OR REPLACE FUNCTION tenancy.definition(of_constraint oid, of_index oid)
RETURNS text
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
SET extra_float_digits = 1
SET quote_all_identifiers = off
SET standard_conforming_strings = on
AS $function$
DECLARE
    place record;
    text_with_schema text;
BEGIN
    IF of_constraint IS NOT NULL THEN
        RETURN pg_get_constraintdef(of_constraint);
    END IF;
    SELECT
        n.nspname,
        format('CREATE UNIQUE INDEX %I ON ', x.relname) AS beginning,
        format('%I.%I', n.nspname, t.relname) AS qualified,
        format('%I', t.relname) AS unqualified
    INTO place
    FROM pg_index AS i
    INNER JOIN pg_class AS x ON i.indexrelid = x.oid
    INNER JOIN pg_class AS t ON i.indrelid = t.oid
    INNER JOIN pg_namespace AS n ON t.relnamespace = n.oid
    WHERE i.indexrelid = of_index;
    -- What is the tenant's is to be unqualified.
    PERFORM set_config('search_path', quote_ident(place.nspname) || ', pg_temp', true);
    text_with_schema := pg_catalog.pg_get_indexdef(of_index);
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    RETURN place.beginning || place.unqualified
        || substr(text_with_schema, length(place.beginning || place.qualified) + 1);
END
$function$;

-- Drops the unique keys on exactly these columns, in any order: constraints and indexes, whatever they are called. If
-- one is the table's replica identity, its successor, a unique key that is there already, becomes that.
CREATE OR REPLACE PROCEDURE tenancy.drop_unique_keys(target regclass, columns name[], successor name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    table_name constant name := (SELECT relname FROM pg_class WHERE oid = target);
    key record;
BEGIN
    -- Before their definitions are read: constants of a tenant's own types are read by its own code. So is one of no
    -- type (unknown, 705) when the definition is read again, if a function that it is given to is another's by then.
    FOR key IN
        SELECT i.indexrelid::regclass AS index
        FROM pg_index AS i
        WHERE
            i.indrelid = target
            AND i.indisunique
            AND (i.indpred IS NOT NULL OR i.indexprs IS NOT NULL)
            AND (concat(i.indpred::text, i.indexprs::text) ~ ':consttype 705 ' OR EXISTS (
                SELECT FROM pg_depend AS d
                WHERE
                    d.objid = i.indexrelid
                    AND d.classid = 'pg_class'::regclass
                    AND d.refclassid = 'pg_type'::regclass
            ))
    LOOP
        RAISE EXCEPTION '% has a constant of no type, or of one that is not PostgreSQL''s', key.index
        USING DETAIL = '(Drop the index, or write its predicate with a cast, such as ''1''::text, or without.)';
    END LOOP;

    FOR key IN
        SELECT
            i.indisprimary,
            i.indisreplident,
            i.indisvalid,
            i.indexrelid::regclass AS index,
            CASE
                WHEN c.oid IS NULL THEN format('DROP INDEX %s', i.indexrelid::regclass)
                ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', target, c.conname)
            END AS drop_it,
            concat_ws(
                E'\n',
                'SET LOCAL default_tablespace = ' || quote_literal(s.spcname) || ';',
                CASE
                    WHEN c.oid IS NULL THEN tenancy.definition(NULL, i.indexrelid) || ';'
                    ELSE format(
                        'ALTER TABLE %I ADD CONSTRAINT %I %s;',
                        table_name, c.conname, tenancy.definition(c.oid, i.indexrelid)
                    )
                END,
                CASE WHEN s.oid IS NOT NULL THEN 'SET LOCAL default_tablespace = '''';' END,
                CASE WHEN c.oid IS NOT NULL THEN (
                    SELECT format(
                        'ALTER INDEX %I SET (%s);',
                        x.relname, string_agg(format('%I = %L', o.option_name, o.option_value), ', ')
                    )
                    FROM pg_options_to_table(x.reloptions) AS o
                    HAVING count(*) > 0
                ) END,
                format('COMMENT ON INDEX %I IS ', x.relname)
                || quote_literal(obj_description(i.indexrelid, 'pg_class')) || ';',
                format('COMMENT ON CONSTRAINT %s ON %I IS ', quote_ident(c.conname), table_name)
                || quote_literal(obj_description(c.oid, 'pg_constraint')) || ';',
                CASE WHEN i.indisclustered THEN format('ALTER TABLE %I CLUSTER ON %I;', table_name, x.relname) END,
                CASE WHEN i.indisreplident THEN
                    format('ALTER TABLE %I REPLICA IDENTITY USING INDEX %I;', table_name, x.relname)
                END
            ) AS restore
        FROM pg_index AS i
        INNER JOIN pg_class AS x ON i.indexrelid = x.oid
        LEFT JOIN pg_tablespace AS s ON x.reltablespace = s.oid
        LEFT JOIN pg_constraint AS c ON i.indrelid = c.conrelid AND i.indexrelid = c.conindid
        WHERE
            i.indrelid = target
            AND i.indisunique
            AND i.indexprs IS NULL
            AND i.indnkeyatts = cardinality(columns)
            AND (i.indkey::int2[])[0:i.indnkeyatts - 1] <@ (
                SELECT array_agg(a.attnum) FROM pg_attribute AS a
                WHERE a.attrelid = target AND a.attname = ANY (columns)
            )
        ORDER BY x.relname
    LOOP
        IF key.indisprimary THEN
            RAISE EXCEPTION '% is the primary key: give the table another one first', key.index;
        END IF;
        IF key.indisreplident THEN
            EXECUTE format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', target, successor);
        END IF;
        EXECUTE key.drop_it;
        IF key.indisvalid THEN -- else nobody's, left by a CREATE INDEX CONCURRENTLY that failed
            CALL tenancy.remember(target, key.restore);
        END IF;
    END LOOP;
END
$procedure$;

-- Drops the foreign keys that point at the table referenced, if that exists. They come back NOT VALID, which reads no
-- row, and those that were valid are validated with the rights of the table's owner.
CREATE OR REPLACE PROCEDURE tenancy.drop_foreign_keys(target regclass, referenced text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    table_name constant name := (SELECT relname FROM pg_class WHERE oid = target);
    key record;
BEGIN
    FOR key IN
        SELECT
            c.conname,
            concat_ws(
                E'\n',
                format('ALTER TABLE %I ADD CONSTRAINT %I %s', table_name, c.conname, tenancy.definition(c.oid, NULL))
                || CASE WHEN c.convalidated THEN ' NOT VALID' ELSE '' END || ';',
                CASE WHEN c.convalidated THEN 'CALL tenancy.validate' ELSE 'CALL tenancy.check' END
                || format('_foreign_key(%L, %L);', quote_ident(table_name), c.conname),
                format('COMMENT ON CONSTRAINT %I ON %I IS ', c.conname, table_name)
                || quote_literal(obj_description(c.oid, 'pg_constraint')) || ';'
            ) AS restore
        FROM pg_constraint AS c
        WHERE c.conrelid = target AND c.contype = 'f' AND c.confrelid = to_regclass(referenced)
        ORDER BY c.conname
    LOOP
        CALL tenancy.check_foreign_key(target, key.conname); -- now, rather than at the rollback
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', target, key.conname);
        CALL tenancy.remember(target, key.restore);
    END LOOP;
END
$procedure$;

-- Raises if a foreign key could not be restored: without REFERENCES; or if it compares a type of the tenant's own,
-- whose cast PostgreSQL may run with the rights of the table that the key points at.
CREATE OR REPLACE PROCEDURE tenancy.check_foreign_key(target regclass, key name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    found record;
BEGIN
    SELECT
        c.confrelid::regclass AS referenced,
        has_any_column_privilege(c.confrelid, 'REFERENCES') AS may_reference,
        (
            SELECT string_agg(format_type(t.oid, NULL), ', ')
            FROM pg_attribute AS a
            INNER JOIN pg_type AS t ON a.atttypid = t.oid
            LEFT JOIN pg_type AS b ON t.typbasetype = b.oid
            WHERE a.attrelid = target AND a.attnum = ANY (c.conkey)
                AND coalesce(b.typnamespace, t.typnamespace) <> 'pg_catalog'::regnamespace
        ) AS own_types
    INTO found
    FROM pg_constraint AS c
    WHERE c.conrelid = target AND c.conname = key;
    IF NOT found.may_reference THEN
        RAISE EXCEPTION 'foreign key % could not be restored: permission denied for table %', key, found.referenced
        USING DETAIL = format('(GRANT REFERENCES ON %s TO %I.)', found.referenced, current_user);
    ELSIF found.own_types <> '' THEN
        RAISE EXCEPTION 'foreign key % compares a type that is not PostgreSQL''s, %', key, found.own_types
        USING DETAIL = '(Give its column an integer type, or drop the key.)';
    END IF;
END
$procedure$;

-- Marks a foreign key as valid, unless there are rows that violate it: they stay, and new ones are checked.
CREATE OR REPLACE PROCEDURE tenancy.validate_foreign_key(target regclass, key name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    valid boolean;
    all_refer constant text := (
        SELECT format(
            'NOT EXISTS (SELECT 1 FROM %s WHERE (%s) NOT IN (SELECT %s FROM %s))', target,
            string_agg(quote_ident(a.attname), ', '), string_agg(quote_ident(r.attname), ', '), min(c.confrelid)::regclass
        )
        FROM pg_constraint AS c
        CROSS JOIN unnest(c.conkey, c.confkey) AS k (own, referenced)
        INNER JOIN pg_attribute AS a ON c.conrelid = a.attrelid AND k.own = a.attnum
        INNER JOIN pg_attribute AS r ON c.confrelid = r.attrelid AND k.referenced = r.attnum
        WHERE c.conrelid = target AND c.conname = key
    );
BEGIN
    CALL tenancy.check_foreign_key(target, key);
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN -- no EXCEPTION there, as in rename_sequence()
        CALL tenancy.as_owner(target, all_refer, valid);
        IF valid THEN
            EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', target, key);
        END IF;
    ELSE
        CALL tenancy.as_owner(target, format('tenancy.validate_rows(%L, %L)', target, key), valid, false);
    END IF;
END
$procedure$;

-- Gives a table back what a migration took from it, by the script that it left. A table that was born after the
-- migration, as a clone of the template, has none: for it there is the script otherwise. The constraint called mark
-- tells them apart: with it and without a script, the table has come from elsewhere. A script left under another name of
-- the schema is its own, or, in a restored database, a dead one's: a DBA says which, beside another or without the mark.
CREATE OR REPLACE PROCEDURE tenancy.restore(target regclass, of_migration text, mark name, otherwise text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    home constant name := (
        SELECT n.nspname FROM pg_class AS c INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid WHERE c.oid = target
    );
    is_marked constant boolean := EXISTS (SELECT FROM pg_constraint WHERE conrelid = target AND conname = mark);
    kept text[];
    is_its boolean;
    others text;
BEGIN
    WITH gone AS (
        DELETE FROM tenancy.undo AS u
        WHERE u.target = restore.target AND u.migration = of_migration
        RETURNING u.schema_name, u.schema_name = home AS is_its, concat_ws(E'\n', u.script, u.renames) AS script
    )

    SELECT
        coalesce(array_agg(DISTINCT g.script) FILTER (WHERE g.is_its), array_agg(DISTINCT g.script)),
        bool_or(g.is_its),
        string_agg(g.schema_name, ', ')
    INTO kept, is_its, others FROM gone AS g;
    IF cardinality(kept) > 1 THEN
        RAISE EXCEPTION 'tenancy.undo says several things of what % was before %', target, of_migration
        USING DETAIL = '(Delete the rows that are others'': docs/runbook.md, "Backups and standbys".)';
    ELSIF kept IS NULL AND is_marked THEN
        RAISE EXCEPTION 'tenancy.undo does not say what % was before %', target, of_migration
        USING DETAIL = '(If it was moved here, bring its row along: docs/runbook.md, "Move a tenant".)';
    ELSIF NOT (is_its OR is_marked OR mark IS NULL) THEN
        RAISE EXCEPTION '% has no key %, and tenancy.undo says only what a table in % was', target, mark, others
        USING DETAIL = format('(If it is this one, give its key that name; if not, DELETE FROM tenancy.undo WHERE '
            'target::oid = %s AND schema_name <> %L.)', target::oid, home);
    END IF;
    IF tenancy.is_trusted(target) OR EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        CALL tenancy.run_script(home, coalesce(kept[1], otherwise));
    ELSE
        BEGIN
            CALL tenancy.run_script(home, coalesce(kept[1], otherwise));
        EXCEPTION -- not on Citus: it has gone the other way
            WHEN query_canceled THEN -- by the owner's code, such as an index's, which is to end no run
                RAISE EXCEPTION '%', SQLERRM;
        END;
    END IF;
END
$procedure$;

CALL tenancy.make_private('tenancy');
