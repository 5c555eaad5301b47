-- Drops what 0006 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP PROCEDURE tenancy.restore;
DROP PROCEDURE tenancy.validate_foreign_key;
DROP PROCEDURE tenancy.check_foreign_key;
DROP PROCEDURE tenancy.drop_foreign_keys;
DROP PROCEDURE tenancy.drop_unique_keys;
DROP FUNCTION tenancy.definition;
