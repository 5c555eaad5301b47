-- The view by which old code, which was written for vinted_job_stats, goes on after the change.
--
-- depends: 0010.job-stats

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- What others than its owner may do with a relation: with all of it, where column_name is NULL, or with a column.
CREATE OR REPLACE FUNCTION job_stats.grants(relation oid)
RETURNS TABLE (column_name name, grantee oid, privilege_type text, is_grantable boolean)
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT NULL, a.grantee, a.privilege_type, a.is_grantable
    FROM pg_class AS c
    CROSS JOIN aclexplode(c.relacl) AS a
    WHERE c.oid = relation AND a.grantee <> c.relowner
    UNION ALL
    SELECT t.attname, a.grantee, a.privilege_type, a.is_grantable
    FROM pg_attribute AS t
    CROSS JOIN aclexplode(t.attacl) AS a
    WHERE t.attrelid = relation AND t.attacl IS NOT NULL AND NOT t.attisdropped;
$function$;

-- Shows target's Vinted rows under the legacy name and in the legacy columns, those before marketplace, for old code to
-- read and write as before, with the table's owner and grants. Not in the template: CREATE TABLE ... LIKE a view would
-- copy no keys.
CREATE OR REPLACE PROCEDURE job_stats.create_legacy_view(target regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    legacy_columns constant name[] := ARRAY(
        SELECT a.attname
        FROM pg_attribute AS a
        WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped AND a.attnum < (
            SELECT m.attnum FROM pg_attribute AS m WHERE m.attrelid = target AND m.attname = 'marketplace'
        )
        ORDER BY a.attnum
    );
    origin record;
    permission text;
BEGIN
    SELECT
        c.relnamespace::regnamespace AS tenant,
        (SELECT string_agg(quote_ident(l.attname), ', ') FROM unnest(legacy_columns) AS l (attname)) AS columns,
        -- An invoker must be able to read every column of the view, whichever are asked for. Who may read some only
        -- would be refused: for them the owner reads, and the view's grants decide; but never past row-level security.
        c.relrowsecurity OR NOT EXISTS (
            SELECT FROM job_stats.grants(target) AS g WHERE g.column_name IS NOT NULL AND g.privilege_type = 'SELECT'
        ) AS security_invoker
    INTO origin
    FROM pg_class AS c
    WHERE c.oid = target;
    IF origin.tenant = to_regnamespace('template_tenant') THEN
        RETURN;
    END IF;
    EXECUTE format(
        'CREATE VIEW %s.vinted_job_stats WITH (security_invoker = %s) AS
        SELECT %s FROM %s WHERE marketplace::text = ''vinted'' WITH CASCADED CHECK OPTION',
        origin.tenant, origin.security_invoker::text, origin.columns, target
    );
    CALL tenancy.hand_over(format('%s.vinted_job_stats', origin.tenant), target);
    FOR permission IN
        SELECT format(
            'GRANT %s%s ON %s.vinted_job_stats TO %s%s',
            g.privilege_type, ' (' || quote_ident(g.column_name) || ')', origin.tenant,
            CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END,
            CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' END
        )
        FROM job_stats.grants(target) AS g
        WHERE (g.column_name = ANY (legacy_columns)) IS NOT FALSE
    LOOP
        EXECUTE permission;
    END LOOP;
END
$procedure$;

-- Whether a view may show, or let change, more than its table would: if it reads with its owner's rights (as it does
-- for those who may read some columns only; see create_legacy_view), and row-level security, or a REVOKE, has
-- come to the table since.
CREATE OR REPLACE FUNCTION job_stats.outdoes(legacy_view oid, target oid)
RETURNS boolean
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT t.relrowsecurity OR EXISTS (
        SELECT FROM job_stats.grants(v.oid) AS has
        WHERE NOT EXISTS (
            SELECT FROM job_stats.grants(t.oid) AS may
            WHERE
                has.grantee = may.grantee
                AND has.privilege_type = may.privilege_type
                AND has.is_grantable <= may.is_grantable
                AND (may.column_name IS NULL OR has.column_name = may.column_name)
        )
    )
    FROM pg_class AS v
    CROSS JOIN pg_class AS t
    WHERE v.oid = legacy_view AND t.oid = target;
$function$;

CALL tenancy.make_private('job_stats');
