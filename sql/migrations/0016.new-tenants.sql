-- One call for a new tenant, right before, during and after each migration; and one for what is lacking or late.
--
-- depends: 0015.status

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- Makes what a tenant lacks: the schema; the table, as template_tenant has it at this moment; and, between the change
-- and the contract, the view for old code. What is there is left alone. For the code that signs up customers, in its
-- own transaction and with its own rights; the table belongs to the schema's owner.
--
-- It waits while the template is being migrated. Until the caller commits, the template is locked against that, so no
-- tenant is overlooked.
CREATE OR REPLACE PROCEDURE job_stats.add_tenant(tenant text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    template regclass;
    source text; -- its table, by its name
    has_table boolean;
    has_view boolean;
    is_sharded constant boolean := current_setting('citus.enable_schema_based_sharding', true) = 'on';
BEGIN
    IF octet_length(tenant) > 63 THEN -- as a name it would be cut, perhaps to another tenant's
        RAISE EXCEPTION 'the name of a schema has at most 63 bytes: %', tenant;
    END IF;
    SET LOCAL citus.enable_schema_based_sharding = off; -- a table that a procedure makes would stay on the coordinator
    IF NOT EXISTS (SELECT FROM pg_namespace AS n WHERE n.nspname = tenant) THEN
        EXECUTE format('CREATE SCHEMA %I', tenant);
    END IF;
    IF tenant NOT IN (SELECT t.schema_name FROM tenancy.tenants AS t) THEN
        RAISE EXCEPTION '% would be no tenant', tenant
        USING HINT = 'The view tenancy.tenants says what a tenant is called.';
    ELSIF tenant IN (SELECT l.schema_name FROM tenancy.left_out AS l) THEN
        RAISE EXCEPTION '% is left out of every run, by tenancy.left_out', tenant;
    END IF;

    -- By its name, which changes while we wait: then look again.
    WHILE source IS NULL LOOP
        BEGIN
            template := (
                SELECT s.target FROM job_stats.tables AS s WHERE s.schema_name = 'template_tenant' AND s.relkind = 'r'
            );
            IF template IS NULL THEN
                RAISE EXCEPTION 'template_tenant has neither vinted_job_stats nor marketplace_job_stats';
            END IF;
            EXECUTE format('LOCK TABLE ONLY %s IN ACCESS SHARE MODE', template);
            source := (SELECT c.relname FROM pg_class AS c WHERE c.oid = template);
        EXCEPTION -- on Citus: inside no other such block while workers are in use
            WHEN undefined_table THEN
                NULL;
            WHEN cardinality_violation THEN
                RAISE EXCEPTION 'template_tenant has vinted_job_stats and marketplace_job_stats';
        END;
    END LOOP;

    IF NOT EXISTS (SELECT FROM job_stats.tables AS s WHERE s.schema_name = tenant) THEN
        EXECUTE format('CREATE TABLE %I.%I (LIKE template_tenant.%2$I INCLUDING ALL)', tenant, source);
        EXECUTE format(
            'ALTER TABLE %I.%I OWNER TO %s',
            tenant, source, (SELECT n.nspowner::regrole FROM pg_namespace AS n WHERE n.nspname = tenant)
        );
        IF is_sharded THEN
            EXECUTE format('SELECT citus_schema_distribute(%L)', quote_ident(tenant));
        END IF;
    END IF;

    SELECT
        bool_or(c.relname = 'marketplace_job_stats' AND c.relkind = 'r'),
        bool_or(c.relname = 'vinted_job_stats')
    INTO has_table, has_view
    FROM pg_class AS c
    WHERE c.relnamespace = quote_ident(tenant)::regnamespace;
    IF has_table AND NOT has_view THEN
        EXECUTE format('LOCK TABLE ONLY %I.marketplace_job_stats IN ACCESS SHARE MODE', tenant); -- so the default stays
        IF EXISTS (
            SELECT FROM pg_attribute AS a
            WHERE
                a.attrelid = format('%I.marketplace_job_stats', tenant)::regclass
                AND a.attname = 'marketplace'
                AND a.atthasdef
        ) THEN
            CALL job_stats.create_legacy_view(format('%I.marketplace_job_stats', tenant));
        END IF;
    END IF;
END
$procedure$;

-- Drops the legacy view, if there is one; another view of its name is somebody's own, and refused.
CREATE OR REPLACE PROCEDURE job_stats.drop_legacy_view(target regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off -- one view is found by the catalogs' indexes, whatever the statistics say
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $procedure$
DECLARE
    legacy_view constant regclass := (
        SELECT v.oid
        FROM pg_class AS t
        INNER JOIN pg_class AS v ON t.relnamespace = v.relnamespace
        WHERE t.oid = target AND v.relname = 'vinted_job_stats'
    );
BEGIN
    IF legacy_view IS NULL THEN
        RETURN; -- as in the template
    ELSIF NOT EXISTS (SELECT FROM job_stats.legacy_views AS v WHERE v.oid = legacy_view) THEN
        RAISE EXCEPTION '% is not as it was created', legacy_view
        USING DETAIL = '(Look at it, and drop or rename it.)';
    END IF;
    EXECUTE format('DROP VIEW %s', legacy_view);
END
$procedure$;

-- Runs add_tenant() for each tenant that lacks its table though it has others of the template's, or its view; and each
-- migration that is applied to all tenants where it is pending. Those that fail keep no other from being done, and are
-- named at the end. Returns how many times it had something to do. As a procedure that commits, it names nothing.
CREATE OR REPLACE PROCEDURE job_stats.sweep(INOUT done integer DEFAULT 0)
LANGUAGE plpgsql
AS $procedure$
DECLARE
    runs bigint[] := '{}';
    failures pg_catalog.text[] := '{}';
BEGIN
    CALL tenancy.run_in_each_tenant(
        'add_tenant',
        'SELECT s.schema_oid, s.is_incomplete FROM job_stats.status() AS s WHERE s.is_incomplete',
        'CALL job_stats.add_tenant(pg_catalog.current_schema());',
        100,
        9,
        runs,
        failures
    );
    CALL tenancy.sweep(done, runs, failures);
END
$procedure$;

CALL tenancy.make_private('job_stats');
