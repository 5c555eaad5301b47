-- The least that a role needs to migrate, where it is neither a superuser nor the owner of all tenants:
--
--     psql -v ON_ERROR_STOP=1 -v migrator=NAME -f docs/grants.sql
--
-- It owns nothing of the tenants', but may act for each role that does. Give it no attributes but LOGIN and INHERIT (the
-- default), and tenants no membership in it. As a tenant is added, so is the role that owns it, with the first statement.

SET search_path = pg_catalog, pg_temp;

-- Each role that owns a tenant's schema or its table; but no superuser, whose rights would come with it.
SELECT DISTINCT format('GRANT %s TO %I;', owners.owner::regrole, :'migrator')
FROM pg_catalog.pg_namespace AS n
LEFT JOIN pg_catalog.pg_class AS c
    ON n.oid = c.relnamespace AND c.relname IN ('vinted_job_stats', 'marketplace_job_stats')
CROSS JOIN LATERAL (VALUES (n.nspowner), (c.relowner)) AS owners (owner)
WHERE (n.nspname = 'template_tenant' OR starts_with(n.nspname, 'user_')) AND owners.owner IN (
    SELECT r.oid FROM pg_catalog.pg_roles AS r WHERE NOT r.rolsuper AND r.rolname <> :'migrator'
)
\gexec

-- A schema of its own for yoyo's tables: yoyo apply --database 'postgresql+psycopg://?schema=yoyo'.
CREATE SCHEMA yoyo AUTHORIZATION :"migrator";

-- For old keys in a tablespace, if there are any: GRANT CREATE ON TABLESPACE ... TO :"migrator".

-- To see whose transactions would stand in its way.
GRANT pg_read_all_stats TO :"migrator";

-- For the foreign keys that the rollback restores.
GRANT USAGE ON SCHEMA vinted TO :"migrator";
GRANT REFERENCES ON vinted.action_types TO :"migrator";

-- For the schemas tenancy and job_stats: needed by 0001 and 0010. Revoke it then.
GRANT CREATE ON DATABASE :"DBNAME" TO :"migrator";
