-- Drops what 0002 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP VIEW tenancy.progress;
DROP PROCEDURE tenancy.report_runs;
DROP PROCEDURE tenancy.finish_run;
DROP PROCEDURE tenancy.start_run;
DROP PROCEDURE tenancy.begin_step;
DROP FUNCTION tenancy.strangers;
DROP FUNCTION tenancy.look;
DROP FUNCTION tenancy.is_canary;
DROP FUNCTION tenancy.is_rehearsal;
