-- Drops what 0013 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP FUNCTION job_stats.is_unfolded;
DROP FUNCTION job_stats.unfold_rows;
DROP FUNCTION job_stats.note_added;
DROP FUNCTION job_stats.forget_rows;
DROP PROCEDURE job_stats.forget_deleted;
DROP PROCEDURE job_stats.unfold_marketplaces;
DROP PROCEDURE job_stats.lock_archive;
