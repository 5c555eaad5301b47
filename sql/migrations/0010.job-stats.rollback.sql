-- Drops what 0010 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP TABLE job_stats.archives;
DROP SCHEMA job_stats;
