-- Drops what 0014 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP PROCEDURE job_stats.refuse_misfits;
DROP VIEW job_stats.findings;
DROP FUNCTION job_stats.misfit_of_archive;
DROP VIEW job_stats.keys;
DROP VIEW job_stats.tables;
DROP VIEW job_stats.namesakes;
