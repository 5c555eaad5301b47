-- Drops what 0011 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP FUNCTION job_stats.outdoes;
DROP PROCEDURE job_stats.create_legacy_view;
DROP FUNCTION job_stats.grants;
