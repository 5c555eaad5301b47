-- Drops the toolkit and its journal. Refuses while a tenant is migrated: the journal holds what its rollback restores.

SET LOCAL search_path = pg_catalog, pg_temp;

DO $$
DECLARE
    migrated name[] := ARRAY(
        SELECT t.schema_name
        FROM job_stats.tenants AS t
        INNER JOIN pg_class AS c ON t.schema_oid = c.relnamespace
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
DROP FUNCTION job_stats.outdoes;
DROP FUNCTION job_stats.facts;
DROP FUNCTION job_stats.unfold_rows;
DROP PROCEDURE job_stats.unfold_marketplaces;
DROP FUNCTION job_stats.forget_deleted;
DROP FUNCTION job_stats.fold_rows;
DROP FUNCTION job_stats.has_other_marketplaces;
DROP PROCEDURE job_stats.fold_marketplaces;
DROP PROCEDURE job_stats.create_legacy_view;
DROP FUNCTION job_stats.grants;
DROP PROCEDURE job_stats.hand_over;
DROP PROCEDURE job_stats.as_owner;
DROP PROCEDURE job_stats.rename_parts;
DROP PROCEDURE job_stats.restore_dropped;
DROP FUNCTION job_stats.validate_rows;
DROP PROCEDURE job_stats.validate_foreign_key;
DROP PROCEDURE job_stats.check_foreign_key;
DROP PROCEDURE job_stats.drop_foreign_keys;
DROP PROCEDURE job_stats.drop_unique_keys;
DROP PROCEDURE job_stats.drop_and_remember;
DROP PROCEDURE job_stats.for_each_tenant;
DROP PROCEDURE job_stats.report_run;
DROP PROCEDURE job_stats.finish_run;
DROP PROCEDURE job_stats.run_in_tenant;
DROP PROCEDURE job_stats.run_script;
DROP PROCEDURE job_stats.next_pass;
DROP PROCEDURE job_stats.start_run;
DROP FUNCTION job_stats.is_rehearsal;
DROP FUNCTION job_stats.canary;
DROP FUNCTION job_stats.tenants_to_try;
DROP FUNCTION job_stats.lock_holders;
DROP VIEW job_stats.progress;
DROP TABLE job_stats.archives;
DROP TABLE job_stats.dropped;
DROP TABLE job_stats.journal;
DROP TABLE job_stats.runs;
DROP VIEW job_stats.tenants;
DROP SCHEMA job_stats;
