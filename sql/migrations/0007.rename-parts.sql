-- Renames what carries the former name of a tenant's table, and keeps in tenancy.undo what it was called.
--
-- depends: 0006.drop-and-restore

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- Raises if a column's default names a sequence as a text, which a rename would leave: no row could be inserted.
CREATE OR REPLACE PROCEDURE tenancy.refuse_text_default(target regclass, part_of_name name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    columns constant text := (
        SELECT string_agg(quote_ident(a.attname), ', ')
        FROM pg_attrdef AS d
        INNER JOIN pg_attribute AS a ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE tenancy.names_sequence(d.adbin::text, part_of_name) AND d.adrelid = target
    );
BEGIN
    IF columns <> '' THEN
        RAISE EXCEPTION 'column % takes its default from a sequence that is named by a text', columns
        USING DETAIL = '(Give it one with nextval(''...''::regclass), or without ''...''::text.)';
    END IF;
END
$procedure$;

-- Whether an expression, in the form in which it is stored, calls nextval() with a text of such a name.
CREATE OR REPLACE FUNCTION tenancy.names_sequence(expression text, part_of_name name)
RETURNS boolean
LANGUAGE sql
IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT expression LIKE '%:funcid 1574 %' AND strpos(tenancy.strings(expression), part_of_name) > 0;
$function$;

-- Renames one index, sequence or constraint of a table, if it is still there. A sequence from which an open transaction
-- has drawn, of any tenant that shares it, is left to the end of the run, or of the next.
CREATE OR REPLACE PROCEDURE tenancy.rename_part(target regclass, old_name name, new_name name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    home constant oid := (SELECT relnamespace FROM pg_class WHERE oid = target);
    has_children constant boolean := EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhparent = target);
    part record;
BEGIN
    SELECT
        x.oid::regclass AS name,
        x.relkind = 'S' AS is_sequence
    INTO part
    FROM pg_class AS x
    WHERE
        x.relnamespace = home
        AND (x.relname = old_name OR (x.relname = new_name AND x.oid IN (SELECT sequence FROM tenancy.renames_left)))
        AND (
            x.oid IN (SELECT i.indexrelid FROM pg_index AS i WHERE i.indrelid = target)
            OR x.relkind = 'S' AND x.oid IN (
                SELECT d.objid FROM pg_depend AS d
                WHERE
                    d.refclassid = 'pg_class'::regclass
                    AND d.refobjid = target
                    AND d.classid = 'pg_class'::regclass
            )
        );
    IF part.is_sequence THEN
        CALL tenancy.refuse_text_default(target, old_name);
        CALL tenancy.rename_sequence(part.name, new_name);
    ELSIF part.name IS NOT NULL THEN
        EXECUTE format('ALTER INDEX %s RENAME TO %I', part.name, new_name);
    ELSIF EXISTS (
        SELECT FROM pg_constraint AS c
        WHERE c.conrelid = target AND c.conname = old_name AND NOT (c.contype = 'n' AND has_children)
    ) THEN
        -- not on Citus: rename_parts() finds none there
        EXECUTE format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', target, old_name, new_name);
    END IF;
END
$procedure$;

-- Renames a sequence, or, if it is in use, leaves that to the end of the run.
CREATE OR REPLACE PROCEDURE tenancy.rename_sequence(sequence regclass, new_name name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    change constant text := format('ALTER SEQUENCE %s RENAME TO %I', sequence, new_name);
    in_use boolean := false;
BEGIN
    IF (new_name <> (SELECT c.relname FROM pg_class AS c WHERE c.oid = sequence)) IS NOT TRUE THEN
        NULL; -- it has the name, or is gone
    ELSIF EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        in_use := EXISTS (
            SELECT FROM pg_locks AS l WHERE l.relation = sequence AND l.pid IS DISTINCT FROM pg_backend_pid()
        );
        IF NOT in_use THEN
            EXECUTE change;
        END IF;
    ELSE
        BEGIN
            EXECUTE change;
        EXCEPTION -- not on Citus: if a worker is lost, such a block inside another crashes the coordinator
            WHEN lock_not_available THEN
                in_use := true;
        END;
    END IF;
    DELETE FROM tenancy.renames_left AS l WHERE l.sequence = rename_sequence.sequence;
    IF in_use THEN
        INSERT INTO tenancy.renames_left (sequence, old_name, new_name)
        SELECT c.oid, c.relname, rename_sequence.new_name FROM pg_class AS c WHERE c.oid = sequence;
    END IF;
END
$procedure$;

-- At the end of a run: the sequences that were in use. What cannot be renamed stays, to be named in its tenant's
-- status: it is not to end everybody's run.
CREATE OR REPLACE PROCEDURE tenancy.rename_left_over(lock_timeout_ms integer)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    start constant timestamptz := clock_timestamp();
    left_over record;
BEGIN
    CALL tenancy.begin_step();
    SET LOCAL citus.propagate_set_commands = 'local';
    EXECUTE format('SET LOCAL lock_timeout = %s', lock_timeout_ms);
    FOR left_over IN
        SELECT l.sequence, l.new_name
        FROM tenancy.renames_left AS l
        INNER JOIN pg_class AS c ON l.sequence = c.oid AND l.old_name = c.relname AND c.relkind = 'S'
        ORDER BY random() -- and not for long: one tenant may have many that are always in use
    LOOP
        EXIT WHEN clock_timestamp() > start + interval '2 s';
        BEGIN
            CALL tenancy.rename_sequence(left_over.sequence, left_over.new_name);
        EXCEPTION -- on Citus: inside no other such block; and rename_sequence() has none there
            WHEN OTHERS THEN
                NULL;
        END;
    END LOOP;
    SET LOCAL lock_timeout = 0;
END
$procedure$;

-- Renames what still carries a table's former name: its indexes (and so their constraints), the sequences it owns, its
-- other constraints. A name that would grow beyond 63 bytes stays, as does that of a NOT NULL where there are children,
-- whose own PostgreSQL would rename with it: they may have others. The names that they had are kept, unless told
-- otherwise.
CREATE OR REPLACE PROCEDURE tenancy.rename_parts(
    target regclass, former_name name, present_name name, keep boolean DEFAULT true
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    table_name constant name := (SELECT relname FROM pg_class WHERE oid = target);
    has_children constant boolean := EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhparent = target);
    part record;
    back text[] := '{}';
BEGIN
    CALL tenancy.refuse_text_default(target, former_name);
    FOR part IN
        SELECT
            p.change,
            p.sequence,
            p.old_name,
            replace(p.old_name, former_name, present_name) AS new_name
        FROM (
            SELECT
                format('ALTER INDEX %s RENAME TO', i.indexrelid::regclass) AS change,
                NULL::regclass AS sequence,
                x.relname AS old_name
            FROM pg_index AS i
            INNER JOIN pg_class AS x ON i.indexrelid = x.oid
            WHERE i.indrelid = target
            UNION ALL
            SELECT NULL, x.oid, x.relname
            FROM pg_depend AS d
            INNER JOIN pg_class AS x ON d.objid = x.oid AND x.relkind = 'S'
            WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = target AND d.classid = 'pg_class'::regclass
            UNION ALL
            SELECT
                format('ALTER TABLE %s RENAME CONSTRAINT %I TO', target, c.conname), -- not on Citus: it refuses that
                NULL,
                c.conname
            FROM pg_constraint AS c
            WHERE
                c.conrelid = target
                AND c.contype IN ('c', 'f', 'n')
                AND c.coninhcount = 0
                AND NOT (c.contype = 'n' AND has_children)
                AND NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')
        ) AS p
        WHERE
            position(former_name IN p.old_name) > 0
            AND octet_length(replace(p.old_name, former_name, present_name)) <= 63
    LOOP
        IF part.sequence IS NOT NULL THEN
            CALL tenancy.rename_sequence(part.sequence, part.new_name);
        ELSE
            EXECUTE part.change || ' ' || quote_ident(part.new_name);
        END IF;
        back := back || format(
            'CALL tenancy.rename_part(%L, %L, %L);', quote_ident(table_name), part.new_name, part.old_name
        );
    END LOOP;
    IF keep THEN -- even none: by its row a table is known not to have come from elsewhere
        CALL tenancy.remember(target, renames => array_to_string(back, E'\n'));
    END IF;
END
$procedure$;

-- Renames NOT NULL constraints of names that PostgreSQL has made from the table's name.
CREATE OR REPLACE PROCEDURE tenancy.rename_not_nulls(target regclass, new_table_name name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    part record;
BEGIN
    FOR part IN
        SELECT
            n.conname,
            format('%s_%s_not_null', new_table_name, a.attname) AS new_name
        FROM pg_constraint AS n
        INNER JOIN pg_class AS c ON n.conrelid = c.oid
        INNER JOIN pg_attribute AS a ON n.conrelid = a.attrelid AND n.conkey = ARRAY[a.attnum]
        WHERE
            n.conrelid = target
            AND n.contype = 'n'
            AND n.conname = format('%s_%s_not_null', c.relname, a.attname)
            AND n.coninhcount = 0
            AND NOT EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhparent = target)
    LOOP
        -- not on Citus: of the PostgreSQL that it runs on, these have no names
        EXECUTE format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', target, part.conname, part.new_name);
    END LOOP;
END
$procedure$;

CALL tenancy.make_private('tenancy');
