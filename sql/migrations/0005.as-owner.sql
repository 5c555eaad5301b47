-- Runs a function with the rights of a table's owner, in a way that the owner's code cannot leave.
--
-- depends: 0004.run-in-each-tenant

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- Whether a table's owner could do all that we can: it is a superuser, or the role that migrates.
CREATE OR REPLACE FUNCTION tenancy.is_trusted(target regclass)
RETURNS boolean
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT o.rolsuper OR o.rolname = current_user
    FROM pg_class AS c
    INNER JOIN pg_roles AS o ON c.relowner = o.oid
    WHERE c.oid = target;
$function$;

-- Whoever reads or changes rows runs what their table's owner hung on it: triggers, rules, checks, generated columns,
-- policies, casts, and index expressions even when a query is planned. As owner that is harmless, but SET ROLE is left
-- by RESET ROLE. What cannot be left is what PostgreSQL does for a materialized view when it refreshes it: it runs the
-- query as the view's owner, forbids to change the role, to make temporary tables, cursors or prepared statements, and
-- to defer triggers, and takes back the settings. So such a view of the owner's calls the function, and is dropped
-- again. It is made in our schema, where the owner can neither name nor rename it.
--
-- So it is where the owner could do all that we can, too, unless the call changes no rows: a foreign key of a table
-- elsewhere, whose owner may only reference this one, has that table read, and so its owner's expressions called, when
-- rows here are deleted.
CREATE OR REPLACE PROCEDURE tenancy.as_owner(
    target regclass, call text, INOUT result boolean, changes_rows boolean DEFAULT true
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    is_citus constant boolean := EXISTS (SELECT FROM pg_extension WHERE extname = 'citus');
    origin record;
BEGIN
    SELECT
        c.relforcerowsecurity AS forced,
        n.nspname AS schema_name,
        o.rolname AS owner,
        tenancy.is_trusted(target) AS trusted,
        has_schema_privilege(o.oid, n.oid, 'USAGE') AS finds_it
    INTO origin
    FROM pg_class AS c
    INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
    INNER JOIN pg_roles AS o ON c.relowner = o.oid
    WHERE c.oid = target;
    IF NOT FOUND THEN
        RAISE EXCEPTION '% is gone', target;
    ELSIF is_citus AND NOT origin.trusted THEN
        RAISE EXCEPTION 'rows of % are to be changed with the rights of its owner, %: on Citus, migrate as that role',
            target, origin.owner;
    END IF;

    SET CONSTRAINTS ALL IMMEDIATE; -- such a view's query cannot defer triggers, and ALTER TABLE refuses while some wait
    IF origin.forced THEN
        EXECUTE format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', target); -- all rows, or some would be lost
    END IF;
    IF is_citus OR (origin.trusted AND NOT changes_rows) THEN
        EXECUTE 'SELECT ' || call INTO result;
    ELSE
        IF NOT origin.finds_it THEN
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', origin.schema_name, origin.owner);
        END IF;
        EXECUTE 'CREATE MATERIALIZED VIEW tenancy.call AS SELECT ' || call || ' AS result WITH NO DATA';
        CALL tenancy.hand_over('tenancy.call', target);
        BEGIN
            REFRESH MATERIALIZED VIEW tenancy.call;
        EXCEPTION -- not on Citus: it has been refused above
            WHEN query_canceled OR assert_failure THEN -- which OTHERS does not catch: they would end the run
                IF origin.trusted THEN
                    RAISE; -- it is not the owner's code that is to end no run, but whoever migrates who ends it
                END IF;
                RAISE EXCEPTION '%', SQLERRM;
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION '% (with the rights of the table''s owner, %)', SQLERRM, origin.owner;
        END;
        SELECT c.result INTO result FROM tenancy.call AS c;
        DROP MATERIALIZED VIEW tenancy.call;
        IF NOT origin.finds_it THEN
            EXECUTE format('REVOKE USAGE ON SCHEMA %I FROM %I', origin.schema_name, origin.owner);
        END IF;
    END IF;
    IF origin.forced THEN
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
    END IF;
END
$procedure$;

-- Whether all rows meet a constraint, which is then marked as valid; an error if it is a check that they violate.
CREATE OR REPLACE FUNCTION tenancy.validate_rows(target regclass, key name)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', target, key);
    RETURN true;
EXCEPTION -- not on Citus: validate_foreign_key() and validate_check() do without
    WHEN foreign_key_violation THEN
        RETURN false;
END
$function$;

-- Marks a check as valid that a migration has added NOT VALID: to read rows is to call what their owner hung on them.
CREATE OR REPLACE PROCEDURE tenancy.validate_check(target regclass, check_name name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    valid boolean;
BEGIN
    IF tenancy.is_trusted(target) THEN
        EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', target, check_name);
    ELSE
        CALL tenancy.as_owner(target, format('tenancy.validate_rows(%L, %L)', target, check_name), valid, false);
    END IF;
END
$procedure$;

-- Raises if a foreign key could not be restored: without REFERENCES; or if it compares a type of the tenant's own,
-- whose cast PostgreSQL may run with the rights of the table that the key points at.
CREATE OR REPLACE PROCEDURE tenancy.check_foreign_key(target regclass, key name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    foreign_key record;
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
    INTO foreign_key
    FROM pg_constraint AS c
    WHERE c.conrelid = target AND c.conname = key;
    IF NOT foreign_key.may_reference THEN
        RAISE EXCEPTION 'foreign key % could not be restored: permission denied for table %', key, foreign_key.referenced
        USING DETAIL = format('(GRANT REFERENCES ON %s TO %I.)', foreign_key.referenced, current_user);
    ELSIF foreign_key.own_types <> '' THEN
        RAISE EXCEPTION 'foreign key % compares a type that is not PostgreSQL''s, %', key, foreign_key.own_types
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

-- Gives a new relation the owner of the table it stems from, and takes back what default privileges have granted.
CREATE OR REPLACE PROCEDURE tenancy.hand_over(relation regclass, origin regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    owner constant regrole := (SELECT relowner FROM pg_class WHERE oid = origin);
    home constant regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = relation);
    may_own constant boolean := has_schema_privilege(owner, home, 'CREATE');
    receiver text;
BEGIN
    FOR receiver IN
        SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
        FROM pg_class AS c
        CROSS JOIN aclexplode(c.relacl) AS a
        WHERE c.oid = relation AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s', relation, receiver);
    END LOOP;
    IF owner <> (SELECT relowner FROM pg_class WHERE oid = relation) THEN
        IF NOT may_own THEN -- which ALTER TABLE asks for, for this moment
            EXECUTE format('GRANT CREATE ON SCHEMA %s TO %s', home, owner);
        END IF;
        EXECUTE format('ALTER TABLE %s OWNER TO %s', relation, owner);
        IF NOT may_own THEN
            EXECUTE format('REVOKE CREATE ON SCHEMA %s FROM %s', home, owner);
        END IF;
    END IF;
END
$procedure$;

CALL tenancy.make_private('tenancy');
-- Who own tenants may call it, for as_owner(), and, since they may not use the schema, cannot name it.
GRANT EXECUTE ON FUNCTION tenancy.validate_rows TO public;
