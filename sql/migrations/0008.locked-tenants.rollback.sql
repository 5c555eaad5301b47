-- Drops what 0008 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP PROCEDURE tenancy.next_pass;
DROP FUNCTION tenancy.lock_holders;
