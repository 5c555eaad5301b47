-- Drops what 0015 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP PROCEDURE job_stats.verify;
DROP VIEW job_stats.tenant_status;
DROP FUNCTION job_stats.status;
DROP VIEW job_stats.legacy_views;
DROP VIEW job_stats.tenant_relations;
