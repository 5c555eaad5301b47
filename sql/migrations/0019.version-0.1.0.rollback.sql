-- Drops what 0019 created. Refuses while a migration is applied to a tenant; and, as the first rollback of the toolkit,
-- while a tenant has a table that only the toolkit takes back, since it was born migrated.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DO $$
DECLARE
    needed constant text[] := ARRAY(
        SELECT s.target::regclass::text FROM job_stats.tables AS s
        WHERE NOT s.is_legacy AND s.schema_oid NOT IN (SELECT l.schema_oid FROM job_stats.tables AS l WHERE l.is_legacy)
        ORDER BY 1
    );
BEGIN
    IF needed <> '{}' THEN
        RAISE EXCEPTION 'the toolkit is still needed for %', array_to_string(
            needed[1:50] || CASE WHEN cardinality(needed) > 50 THEN format('... (%s)', cardinality(needed)) END, ', '
        )
        USING HINT = 'docs/runbook.md, "All the way back", says what to do with each.';
    END IF;
END
$$;

DROP FUNCTION tenancy.version;
