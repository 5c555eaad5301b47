-- Drops what 0017 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP FUNCTION job_stats.platform_summary;
DROP FUNCTION job_stats.adding_up;
DROP FUNCTION job_stats.durations;
DROP FUNCTION job_stats.more_than_reads;
DROP FUNCTION job_stats.readable;
