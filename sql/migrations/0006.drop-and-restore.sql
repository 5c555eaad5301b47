-- Drops what a migration is to take away from a tenant's table, by definition and not by name, and keeps in
-- tenancy.undo the script that gives it back.
--
-- The helpers get the table as a regclass. What they name of it in a script is unqualified, since the schema may be
-- called otherwise by then, or be in another database; the script is run as a migration's is, in the tenant's path.
--
-- depends: 0005.as-owner

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- Whether an index's predicate may be read as something else than it is when it is printed and parsed again. What is
-- not PostgreSQL's own is another's by then, as may be what a constant of no type (unknown, 705) stands for; and in
-- what is written with words (COERCE_SQL_SYNTAX, 3), as EXTRACT is, PostgreSQL before 18 quotes nothing.
CREATE OR REPLACE FUNCTION tenancy.can_be_misread(of_index oid)
RETURNS boolean
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT i.indpred::text ~ ':(consttype 705|funcformat 3) ' OR EXISTS (
        SELECT FROM pg_depend AS d
        WHERE
            d.objid = i.indexrelid
            AND d.classid = 'pg_class'::regclass
            AND d.refclassid NOT IN ('pg_class'::regclass, 'pg_constraint'::regclass, 'pg_extension'::regclass)
    )
    FROM pg_index AS i
    WHERE i.indexrelid = of_index;
$function$;

-- How a constraint was defined, or, from its columns on, an index: in words that mean the same under any setting.
CREATE OR REPLACE FUNCTION tenancy.definition(of_constraint oid, of_index oid)
RETURNS text
LANGUAGE plpgsql -- which keeps its plan
STABLE
SET search_path = pg_catalog, pg_temp
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
SET extra_float_digits = 1
SET quote_all_identifiers = off
SET standard_conforming_strings = on
AS $function$
BEGIN
    RETURN CASE WHEN of_constraint IS NOT NULL THEN pg_get_constraintdef(of_constraint) ELSE (
        SELECT substr(
            pg_get_indexdef(of_index),
            length(format('CREATE UNIQUE INDEX %I ON %I.%I', x.relname, n.nspname, t.relname)) + 1
        )
        FROM pg_index AS i
        INNER JOIN pg_class AS x ON i.indexrelid = x.oid
        INNER JOIN pg_class AS t ON i.indrelid = t.oid
        INNER JOIN pg_namespace AS n ON t.relnamespace = n.oid
        WHERE i.indexrelid = of_index
    ) END;
END
$function$;

-- Makes a unique index again, as definition() has kept it. Nothing in it is the tenant's, so it is not parsed in the
-- tenant's path, where a function that fits better could have come.
CREATE OR REPLACE PROCEDURE tenancy.create_unique_index(target regclass, index_name name, definition text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
BEGIN
    EXECUTE format('CREATE UNIQUE INDEX %I ON %s%s', index_name, target, definition);
END
$procedure$;

-- Makes a key of a table its replica identity. PostgreSQL runs an index's expressions then, as whoever says it.
CREATE OR REPLACE PROCEDURE tenancy.set_replica_identity(target regclass, key name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_index AS i
        INNER JOIN pg_class AS x ON i.indexrelid = x.oid
        WHERE i.indrelid = target AND x.relname = key AND i.indpred IS NULL AND i.indexprs IS NULL
    ) THEN
        RAISE EXCEPTION '% of % is no plain key, to be the replica identity', key, target;
    END IF;
    EXECUTE format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', target, key);
END
$procedure$;

-- Drops the unique keys on exactly these columns, in any order: constraints and indexes, whatever they are called. If
-- one is the table's replica identity, its successor, a unique key that is there already, becomes that.
CREATE OR REPLACE PROCEDURE tenancy.drop_unique_keys(target regclass, columns name[], successor name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    table_name constant name := (SELECT relname FROM pg_class WHERE oid = target);
    keys oid[];
    key record;
BEGIN
    keys := ARRAY(
        SELECT i.indexrelid
        FROM pg_index AS i
        WHERE
            i.indrelid = target
            AND i.indisunique
            AND i.indexprs IS NULL
            AND i.indnkeyatts = cardinality(columns)
            AND (i.indkey::int2[])[0:i.indnkeyatts - 1] <@ (
                SELECT array_agg(a.attnum) FROM pg_attribute AS a
                WHERE a.attrelid = target AND a.attname = ANY (columns)
            )
    );
    FOR key IN -- before any definition is printed
        SELECT i.indexrelid::regclass AS index
        FROM pg_index AS i
        WHERE i.indexrelid = ANY (keys) AND i.indpred IS NOT NULL AND tenancy.can_be_misread(i.indexrelid)
    LOOP
        RAISE EXCEPTION 'the predicate of % has what is not PostgreSQL''s own, a constant of no type, or EXTRACT', key.index
        USING DETAIL = '(Drop the index, or write it with PostgreSQL''s functions, and casts such as ''1''::text.)';
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
                    WHEN c.oid IS NULL THEN format(
                        'CALL tenancy.create_unique_index(%L, %L, %L);',
                        quote_ident(table_name), x.relname, tenancy.definition(NULL, i.indexrelid)
                    )
                    ELSE format(
                        'ALTER TABLE %I ADD CONSTRAINT %I %s;', table_name, c.conname, tenancy.definition(c.oid, NULL)
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
                    format('CALL tenancy.set_replica_identity(%L, %L);', quote_ident(table_name), x.relname)
                END
            ) AS restore
        FROM pg_index AS i
        INNER JOIN pg_class AS x ON i.indexrelid = x.oid
        LEFT JOIN pg_tablespace AS s ON x.reltablespace = s.oid
        LEFT JOIN pg_constraint AS c ON i.indrelid = c.conrelid AND i.indexrelid = c.conindid
        WHERE i.indexrelid = ANY (keys)
        ORDER BY x.relname
    LOOP
        IF key.indisprimary THEN
            RAISE EXCEPTION '% is the primary key: give the table another one first', key.index;
        END IF;
        IF key.indisreplident THEN
            CALL tenancy.set_replica_identity(target, successor);
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
    CALL tenancy.run_script(home, coalesce(kept[1], otherwise));
END
$procedure$;

CALL tenancy.make_private('tenancy');
