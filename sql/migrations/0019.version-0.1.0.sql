-- Says which release of these files a database has. Each release has this file under its own number.
--
-- depends: 0018.preflight

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

CREATE OR REPLACE FUNCTION tenancy.version()
RETURNS text
LANGUAGE sql
IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT '0.1.0';
$function$;

CALL tenancy.make_private('tenancy');
