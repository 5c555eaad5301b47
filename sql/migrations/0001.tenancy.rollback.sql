-- Drops what 0001 created, the journal included. Refuses while a migration is applied to a tenant.

SET LOCAL search_path = pg_catalog, pg_temp;

CALL tenancy.refuse_while_needed();

DROP PROCEDURE tenancy.refuse_while_needed;
DROP PROCEDURE tenancy.make_private;
DROP TABLE tenancy.effects;
DROP TABLE tenancy.migrations;
DROP TABLE tenancy.renames_left;
DROP TABLE tenancy.undo;
DROP TABLE tenancy.journal;
DROP TABLE tenancy.runs;
DROP SEQUENCE tenancy.turn;
DROP TABLE tenancy.left_out;
DROP VIEW tenancy.tenants;
DROP SCHEMA tenancy;
