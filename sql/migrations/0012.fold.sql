-- Folds the rows of several marketplaces into one, as a rollback must; and gives rows to another marketplace.
--
-- depends: 0011.legacy-view

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- Folds the marketplaces of a day and action type into one row, as old code counts: into Vinted's, or else the
-- oldest. The rows as they were go to an archive in the tenant's schema, from which unfold_marketplaces() restores
-- them. A tenant that has nothing to fold gets none. With folded, only these marketplaces' rows are folded, into an
-- archive of another name: so does the rollback of a migration that has added a marketplace.
CREATE OR REPLACE PROCEDURE job_stats.fold_marketplaces(
    target regclass, folded text[] DEFAULT NULL, archive name DEFAULT 'marketplace_job_stats_archive'
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    tenant constant regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = target);
    place constant text := format('%s.marketplace_job_stats_archive', tenant);
    clashes constant text := (
        SELECT string_agg(quote_ident(a.attname), ', ')
        FROM pg_attribute AS a
        WHERE
            a.attrelid = target AND NOT a.attisdropped
            AND a.attname ~ '^(folded_id|(folded|added)_(total_jobs|success_count|failure_count|avg_duration_ms))$'
    );
    needed boolean;
    is_written boolean;
BEGIN
    IF (SELECT c.relkind FROM pg_class AS c WHERE c.oid = target) = 'p' THEN -- which the upgrade refuses
        RAISE EXCEPTION '% is partitioned: make it an ordinary table', target;
    END IF;
    CALL tenancy.as_owner(target, format('job_stats.has_other_marketplaces(%L, %L)', target, folded), needed, false);
    IF NOT needed THEN
        RETURN;
    ELSIF clashes <> '' THEN
        RAISE EXCEPTION 'column % is the tenant''s own, and an archive has one of this name: rename it', clashes;
    END IF;
    EXECUTE format( -- WITH NO DATA, nothing of the table is planned or read
        'CREATE TABLE %s AS
        SELECT
            s.*,
            NULL::bigint AS folded_id,
            NULL::bigint AS folded_total_jobs,
            NULL::bigint AS folded_success_count,
            NULL::bigint AS folded_failure_count,
            NULL::numeric AS folded_avg_duration_ms,
            NULL::bigint AS added_total_jobs, -- since then, which the unfolding finds out
            NULL::bigint AS added_success_count,
            NULL::bigint AS added_failure_count,
            NULL::numeric AS added_avg_duration_ms
        FROM %s AS s
        WITH NO DATA', place, target
    );
    EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', place); -- or, if it is published, it could not be changed
    CALL tenancy.hand_over(place, target);
    DELETE FROM job_stats.archives AS k WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = k.archive);
    INSERT INTO job_stats.archives (archive) VALUES (place::regclass);
    CALL tenancy.as_owner(
        target,
        format(
            'CASE WHEN job_stats.fold_rows(%1$L, %2$L)
            THEN job_stats.is_folded(%1$L, %2$L) AND NOT job_stats.has_other_marketplaces(%1$L, %2$L) END',
            target, folded
        ),
        is_written
    );
    CALL job_stats.refuse_unless(is_written, target);
    IF archive <> 'marketplace_job_stats_archive' THEN
        EXECUTE format('ALTER TABLE %s RENAME TO %I', place, archive);
    END IF;
END
$procedure$;

-- The functions below run as the owner. So that triggers find what they name, the tenant's schema is their search_path;
-- so they cast and qualify what its owner could take: varchar to text, and functions of any type.

CREATE OR REPLACE FUNCTION job_stats.has_other_marketplaces(target regclass, folded text[])
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    has_others boolean;
BEGIN
    EXECUTE format(
        'SELECT EXISTS (
            SELECT FROM %s WHERE marketplace::text <> ''vinted'' AND (marketplace::text = ANY ($1)) IS NOT FALSE
        )',
        target
    ) INTO has_others USING folded;
    RETURN has_others;
END
$function$;

CREATE OR REPLACE FUNCTION job_stats.fold_rows(target regclass, folded text[])
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    tenant constant regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = target);
BEGIN
    PERFORM set_config('search_path', tenant::text || ', pg_temp', true);
    IF EXISTS (
        SELECT FROM marketplace_job_stats AS s
        WHERE
            s.marketplace::text <> 'vinted' AND (s.marketplace::text = ANY (fold_rows.folded)) IS NOT FALSE
            AND (s.action_type_id IS NULL OR s.date IS NULL)
    ) THEN
        RAISE EXCEPTION '%.marketplace_job_stats has rows of other marketplaces without action_type_id or date', tenant
        USING DETAIL = '(Give them both, or delete them: they cannot be folded.)';
    END IF;

    INSERT INTO marketplace_job_stats_archive
    SELECT
        s.*,
        pg_catalog.first_value(s.id) OVER (days ORDER BY s.marketplace::text <> 'vinted', s.id),
        pg_catalog.sum(s.total_jobs) OVER days,
        pg_catalog.sum(s.success_count) OVER days,
        pg_catalog.sum(s.failure_count) OVER days,
        pg_catalog.round(
            pg_catalog.sum(s.avg_duration_ms::numeric * s.total_jobs::numeric) OVER days
            / nullif(
                pg_catalog.sum(s.total_jobs::numeric) FILTER (WHERE s.avg_duration_ms IS NOT NULL) OVER days, 0::numeric
            )
        )
    FROM marketplace_job_stats AS s
    WHERE
        (s.marketplace::text = 'vinted' OR (s.marketplace::text = ANY (fold_rows.folded)) IS NOT FALSE)
        AND (s.action_type_id, s.date) IN (
            SELECT o.action_type_id, o.date
            FROM marketplace_job_stats AS o
            WHERE o.marketplace::text <> 'vinted' AND (o.marketplace::text = ANY (fold_rows.folded)) IS NOT FALSE
        )
    WINDOW days AS (PARTITION BY s.action_type_id, s.date);

    -- A row elsewhere that refers to one that is folded makes the DELETE fail, unless its foreign key changes it
    -- instead.
    IF EXISTS (
        SELECT FROM pg_catalog.pg_trigger AS t -- which has an index by table, and pg_constraint none by confrelid
        INNER JOIN pg_catalog.pg_constraint AS c ON t.tgconstraint = c.oid AND t.tgrelid = c.confrelid
        WHERE t.tgrelid = target::oid AND c.confdeltype NOT IN ('a', 'r')
    ) AND EXISTS (SELECT FROM marketplace_job_stats_archive AS a WHERE a.id <> a.folded_id) THEN
        RAISE EXCEPTION 'a foreign key with an ON DELETE action would change what refers to folded rows'
        USING DETAIL = '(Make it ON DELETE NO ACTION until the rollback is done.)';
    END IF;

    DELETE FROM marketplace_job_stats AS s
    USING marketplace_job_stats_archive AS a
    WHERE
        (s.action_type_id, s.marketplace::text, s.date) = (a.action_type_id, a.marketplace::text, a.date)
        AND a.id <> a.folded_id;

    UPDATE marketplace_job_stats AS s
    SET
        marketplace = 'vinted',
        total_jobs = a.folded_total_jobs,
        success_count = a.folded_success_count,
        failure_count = a.folded_failure_count,
        avg_duration_ms = a.folded_avg_duration_ms
    FROM marketplace_job_stats_archive AS a
    WHERE
        (s.action_type_id, s.marketplace::text, s.date) = (a.action_type_id, a.marketplace::text, a.date)
        AND a.id = a.folded_id;
    RETURN true;
END
$function$;

-- Whether the table has what fold_rows() wrote, and no more of these days and action types.
CREATE OR REPLACE FUNCTION job_stats.is_folded(target regclass, folded text[])
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    tenant constant regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = target);
    differs boolean;
BEGIN
    EXECUTE format(
        'SELECT EXISTS (
            SELECT FROM %s.marketplace_job_stats_archive AS a
            LEFT JOIN %s AS s ON
                (s.action_type_id, s.date) = (a.action_type_id, a.date)
                AND (s.marketplace::text = ''vinted'' OR (s.marketplace::text = ANY ($1)) IS NOT FALSE)
            WHERE (s.id, s.marketplace::text, s.total_jobs, s.success_count, s.failure_count) IS DISTINCT FROM (
                a.folded_id, ''vinted'', a.folded_total_jobs, a.folded_success_count, a.folded_failure_count
            )
        )', tenant, target
    ) INTO differs USING folded;
    RETURN NOT differs;
END
$function$;

-- Raises if not: what triggers and rules of the tenant's do to rows is theirs, but no count is to be lost by it.
CREATE OR REPLACE PROCEDURE job_stats.refuse_unless(is_written boolean, target regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
BEGIN
    IF is_written IS NOT TRUE THEN
        RAISE EXCEPTION 'a trigger or a rule of % has changed, or kept from it, what was written', target
        USING DETAIL = '(Disable it until this is done.)';
    END IF;
END
$procedure$;

-- Gives Vinted's rows to the marketplace that their action type belongs to, by a table of the application's that has
-- the columns id and marketplace, and where an id is of one marketplace only. As the owner, who must be able to read
-- that table.
CREATE OR REPLACE PROCEDURE job_stats.assign_marketplaces(target regclass, action_types regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    assigned boolean;
BEGIN
    CALL tenancy.as_owner(target, format('job_stats.assign_rows(%L, %L)', target, action_types), assigned);
    CALL job_stats.refuse_unless(assigned, target);
END
$procedure$;

CREATE OR REPLACE FUNCTION job_stats.assign_rows(target regclass, action_types regclass)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    tenant constant regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = target);
    lost boolean;
    is_left boolean;
BEGIN
    PERFORM set_config('search_path', tenant::text || ', pg_temp', true);
    -- Where the marketplace has a row of that day already, Vinted's is added to it.
    EXECUTE pg_catalog.format($$
        WITH moved AS (
            DELETE FROM marketplace_job_stats AS s
            USING %1$s AS t, marketplace_job_stats AS o
            WHERE
                s.marketplace::text = 'vinted'
                AND t.id = s.action_type_id
                AND t.marketplace::text <> 'vinted'
                AND (o.action_type_id, o.marketplace::text, o.date) = (s.action_type_id, t.marketplace::text, s.date)
            RETURNING
                s.action_type_id, o.marketplace, s.date,
                s.total_jobs, s.success_count, s.failure_count, s.avg_duration_ms
        ),

        added AS (
            UPDATE marketplace_job_stats AS s
            SET
                total_jobs = s.total_jobs + m.total_jobs,
                success_count = s.success_count + m.success_count,
                failure_count = s.failure_count + m.failure_count,
                avg_duration_ms = coalesce(
                    pg_catalog.round(
                        (
                            s.avg_duration_ms::numeric * s.total_jobs::numeric
                            + m.avg_duration_ms::numeric * m.total_jobs::numeric
                        ) / nullif(s.total_jobs::numeric + m.total_jobs::numeric, 0::numeric)
                    ),
                    s.avg_duration_ms::numeric,
                    m.avg_duration_ms::numeric
                )
            FROM moved AS m
            WHERE (s.action_type_id, s.marketplace::text, s.date) = (m.action_type_id, m.marketplace::text, m.date)
            RETURNING s.date
        )

        SELECT (SELECT pg_catalog.count(*) FROM moved) <> (SELECT pg_catalog.count(*) FROM added)
    $$, action_types) INTO lost;
    EXECUTE pg_catalog.format($$
        UPDATE marketplace_job_stats AS s
        SET marketplace = t.marketplace
        FROM %1$s AS t
        WHERE s.marketplace::text = 'vinted' AND t.id = s.action_type_id AND t.marketplace::text <> 'vinted'
    $$, action_types);
    EXECUTE pg_catalog.format($$
        SELECT EXISTS (
            SELECT FROM marketplace_job_stats AS s
            INNER JOIN %1$s AS t ON s.action_type_id = t.id
            WHERE s.marketplace::text = 'vinted' AND t.marketplace::text <> 'vinted'
        )
    $$, action_types) INTO is_left;
    RETURN NOT (lost OR is_left);
END
$function$;

CALL tenancy.make_private('job_stats');
-- Who own tenants may call these, for as_owner(), and, since they may not use the schema, can name none of them.
GRANT EXECUTE ON FUNCTION
job_stats.has_other_marketplaces, job_stats.fold_rows, job_stats.is_folded, job_stats.assign_rows
TO public;
