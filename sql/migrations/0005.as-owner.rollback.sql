-- Drops what 0005 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP PROCEDURE tenancy.hand_over;
DROP PROCEDURE tenancy.validate_foreign_key;
DROP PROCEDURE tenancy.check_foreign_key;
DROP PROCEDURE tenancy.validate_check;
DROP FUNCTION tenancy.validate_rows;
DROP PROCEDURE tenancy.as_owner;
DROP FUNCTION tenancy.is_trusted;
