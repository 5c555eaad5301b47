-- Drops what 0004 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP PROCEDURE tenancy.sweep;
DROP PROCEDURE tenancy.next_migration;
DROP PROCEDURE tenancy.for_each_tenant;
DROP PROCEDURE tenancy.run_in_each_tenant;
DROP PROCEDURE tenancy.run_in_tenant;
DROP PROCEDURE tenancy.remember;
DROP PROCEDURE tenancy.run_script;
DROP PROCEDURE tenancy.pin;
