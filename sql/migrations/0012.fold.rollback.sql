-- Drops what 0012 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP FUNCTION job_stats.assign_rows;
DROP PROCEDURE job_stats.assign_marketplaces;
DROP PROCEDURE job_stats.refuse_unless;
DROP FUNCTION job_stats.is_folded;
DROP FUNCTION job_stats.fold_rows;
DROP FUNCTION job_stats.has_other_marketplaces;
DROP PROCEDURE job_stats.fold_marketplaces;
