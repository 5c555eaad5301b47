-- Drops what 0018 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP VIEW job_stats.preflight;
DROP FUNCTION job_stats.find;
DROP VIEW job_stats.obstacles;
DROP VIEW job_stats.circumstances;
