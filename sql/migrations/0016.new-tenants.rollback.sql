-- Drops what 0016 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP PROCEDURE job_stats.sweep;
DROP PROCEDURE job_stats.drop_legacy_view;
DROP PROCEDURE job_stats.add_tenant;
