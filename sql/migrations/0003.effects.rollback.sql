-- Drops what 0003 created. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP PROCEDURE tenancy.drop_later_columns;
DROP PROCEDURE tenancy.note_effects;
DROP FUNCTION tenancy.is_to_be_noted;
DROP PROCEDURE tenancy.note_before;
DROP FUNCTION tenancy.facts_of;
DROP FUNCTION tenancy.facts;
DROP FUNCTION tenancy.strings;
