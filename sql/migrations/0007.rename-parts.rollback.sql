-- Drops what 0007 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP PROCEDURE tenancy.rename_not_nulls;
DROP PROCEDURE tenancy.rename_parts;
DROP PROCEDURE tenancy.rename_left_over;
DROP PROCEDURE tenancy.rename_sequence;
DROP PROCEDURE tenancy.rename_part;
DROP FUNCTION tenancy.names_sequence;
DROP PROCEDURE tenancy.refuse_text_default;
