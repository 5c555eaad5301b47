-- Drops the toolkit and its journal. Refuses while a tenant is migrated: the journal holds what its rollback restores.

DO $$
DECLARE
    migrated name[] := ARRAY(
        SELECT t.schema_name
        FROM job_stats.tenants AS t
        INNER JOIN pg_catalog.pg_class AS c ON t.schema_oid = c.relnamespace
        WHERE c.relname = 'marketplace_job_stats'
        ORDER BY t.schema_name
    );
BEGIN
    IF migrated <> '{}' THEN
        RAISE EXCEPTION '% tenants are still migrated: %', cardinality(migrated), array_to_string(migrated[1:50], ', ')
        USING HINT = 'Roll 0002 back first; psql -f 0002.marketplace-job-stats.rollback.sql if it is not marked as applied.';
    END IF;
END
$$;

DROP PROCEDURE job_stats.verify;
DROP VIEW job_stats.tenant_status;
DROP FUNCTION job_stats.facts;
DROP PROCEDURE job_stats.unfold_marketplaces;
DROP PROCEDURE job_stats.fold_marketplaces;
DROP PROCEDURE job_stats.create_legacy_view;
DROP PROCEDURE job_stats.hand_over;
DROP PROCEDURE job_stats.rename_parts;
DROP PROCEDURE job_stats.restore_dropped;
DROP PROCEDURE job_stats.add_foreign_key;
DROP PROCEDURE job_stats.drop_foreign_keys;
DROP PROCEDURE job_stats.drop_unique_keys;
DROP PROCEDURE job_stats.drop_and_remember;
DROP PROCEDURE job_stats.for_each_tenant;
DROP PROCEDURE job_stats.run_script;
DROP FUNCTION job_stats.lock_holders;
DROP VIEW job_stats.progress;
DROP TABLE job_stats.journal;
DROP TABLE job_stats.runs;
DROP VIEW job_stats.tenants;
DROP SCHEMA job_stats;
