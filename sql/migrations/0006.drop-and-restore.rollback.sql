-- Drops what 0006 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP PROCEDURE tenancy.restore;
DROP PROCEDURE tenancy.drop_foreign_keys;
DROP PROCEDURE tenancy.drop_unique_keys;
DROP PROCEDURE tenancy.set_replica_identity;
DROP PROCEDURE tenancy.create_unique_index;
DROP FUNCTION tenancy.definition;
DROP FUNCTION tenancy.can_be_misread;
