-- Restores what 0012 has folded. Its functions that run as the owner are written as those there.
--
-- depends: 0012.fold

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

-- An archive of a table, locked, so that it stays the one that was looked at; NULL if there is none. Raises if there is
-- one that is not believed.
CREATE OR REPLACE PROCEDURE job_stats.lock_archive(target regclass, archive name, INOUT locked regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    home constant regnamespace := (SELECT c.relnamespace FROM pg_class AS c WHERE c.oid = target);
    place constant text := format('%s.%I', home, archive);
    misfit text;
BEGIN
    locked := to_regclass(place);
    misfit := job_stats.misfit_of_archive(locked, target);
    IF locked IS NOT NULL AND misfit IS NULL THEN
        EXECUTE format('LOCK TABLE %s', place);
        IF to_regclass(place) IS DISTINCT FROM locked THEN
            RAISE EXCEPTION '% is no longer what it was', place;
        END IF;
        misfit := job_stats.misfit_of_archive(locked, target);
    END IF;
    IF misfit IS NOT NULL THEN
        RAISE EXCEPTION '%', misfit;
    END IF;
END
$procedure$;

-- Restores what fold_marketplaces() archived, and credits to Vinted what old code has counted since. Refuses where
-- it would have to guess: where a folded row is gone, or counts less than it did.
CREATE OR REPLACE PROCEDURE job_stats.unfold_marketplaces(
    target regclass, archive name DEFAULT 'marketplace_job_stats_archive'
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    its_archive regclass;
    is_written boolean;
BEGIN
    CALL job_stats.lock_archive(target, archive, its_archive);
    IF its_archive IS NOT NULL THEN
        IF archive <> 'marketplace_job_stats_archive' THEN
            EXECUTE format('ALTER TABLE %s RENAME TO marketplace_job_stats_archive', its_archive);
        END IF;
        CALL tenancy.as_owner(
            target,
            format(
                'CASE WHEN job_stats.note_added(%1$L) THEN
                CASE WHEN job_stats.unfold_rows(%1$L) THEN job_stats.is_unfolded(%1$L, %2$L) END END', target, its_archive
            ),
            is_written
        );
        CALL job_stats.refuse_unless(is_written, target);
        DELETE FROM job_stats.archives AS k WHERE k.archive = its_archive;
        EXECUTE format('DROP TABLE %s', its_archive);
    END IF;
END
$procedure$;

-- Leaves to Vinted what is archived of rows that old code has deleted since.
CREATE OR REPLACE PROCEDURE job_stats.forget_deleted(target regclass)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $procedure$
DECLARE
    place constant text := target;
    home constant name := (
        SELECT n.nspname FROM pg_class AS t INNER JOIN pg_namespace AS n ON t.relnamespace = n.oid WHERE t.oid = target
    );
    archive name;
    its_archive regclass;
    forgotten boolean;
BEGIN
    CALL tenancy.pin(home);
    EXECUTE format('LOCK TABLE ONLY %s IN SHARE ROW EXCLUSIVE MODE', place);
    IF to_regclass(place) IS DISTINCT FROM target OR NOT EXISTS (
        SELECT FROM pg_class AS t WHERE t.oid = target AND t.relkind = 'r'
    ) THEN
        RAISE EXCEPTION '% is no longer what it was', place;
    END IF;
    FOR archive IN
        SELECT DISTINCT a.relname
        FROM job_stats.archives AS k
        INNER JOIN pg_class AS a ON k.archive = a.oid
        INNER JOIN pg_attribute AS f ON a.oid = f.attrelid AND f.attname = 'folded_id'
        WHERE a.relnamespace = to_regnamespace(quote_ident(home))
    LOOP
        CALL job_stats.lock_archive(target, archive, its_archive);
        CALL tenancy.as_owner(target, format('job_stats.forget_rows(%L, %L)', target, its_archive), forgotten);
    END LOOP;
END
$procedure$;

CREATE OR REPLACE FUNCTION job_stats.forget_rows(target regclass, archive regclass)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    EXECUTE format('DELETE FROM %s WHERE folded_id NOT IN (SELECT id FROM %s)', archive, target);
    RETURN true;
END
$function$;

-- Notes what old code has added to each row since; where the row is gone, it stays NULL. Raises where the split would
-- have to be guessed, or the archive does not add up to what was folded.
CREATE OR REPLACE FUNCTION job_stats.note_added(target regclass)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    tenant constant regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = target);
    reason text;
    lost text[];
BEGIN
    PERFORM set_config('search_path', tenant::text || ', pg_temp', true);
    UPDATE marketplace_job_stats_archive AS a
    SET
        added_total_jobs = s.total_jobs - a.folded_total_jobs,
        added_success_count = s.success_count - a.folded_success_count,
        added_failure_count = s.failure_count - a.folded_failure_count,
        added_avg_duration_ms = CASE
            WHEN a.folded_avg_duration_ms IS NULL THEN s.avg_duration_ms::numeric
            ELSE pg_catalog.round(
                greatest(
                    s.avg_duration_ms::numeric * s.total_jobs::numeric
                    - a.folded_avg_duration_ms * a.folded_total_jobs::numeric,
                    0::numeric
                ) / nullif(s.total_jobs::numeric - a.folded_total_jobs::numeric, 0::numeric)
            )
        END
    FROM marketplace_job_stats AS s
    WHERE s.id = a.folded_id AND (s.action_type_id, s.date) = (a.action_type_id, a.date);

    SELECT p.reason, pg_catalog.array_agg(DISTINCT pg_catalog.format('action type %s on %s', p.action_type_id, p.date))
    INTO reason, lost
    FROM (
        SELECT 'old code has deleted or lowered' AS reason, a.action_type_id, a.date
        FROM marketplace_job_stats_archive AS a
        WHERE (a.added_total_jobs >= 0 AND a.added_success_count >= 0 AND a.added_failure_count >= 0) IS NOT TRUE
        UNION ALL
        SELECT 'the archive no longer has all that was folded of', a.action_type_id, a.date
        FROM marketplace_job_stats_archive AS a
        GROUP BY
            a.action_type_id, a.date,
            a.folded_id, a.folded_total_jobs, a.folded_success_count, a.folded_failure_count
        HAVING
            NOT bool_or(a.id = a.folded_id)
            OR (
                pg_catalog.sum(a.total_jobs::numeric),
                pg_catalog.sum(a.success_count::numeric),
                pg_catalog.sum(a.failure_count::numeric)
            ) IS DISTINCT FROM (
                a.folded_total_jobs::numeric, a.folded_success_count::numeric, a.folded_failure_count::numeric
            )
    ) AS p
    GROUP BY p.reason
    LIMIT 1;
    IF lost IS NOT NULL THEN
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        RAISE EXCEPTION 'the archived split cannot be restored: % %', reason,
            array_to_string(lost[1:5], ', ')
            || CASE WHEN cardinality(lost) > 5 THEN format(', ... (%s)', cardinality(lost)) ELSE '' END
        USING DETAIL = '(Repair these rows; or delete all that have their folded_id from the archive: then they are Vinted''s.)';
    END IF;
    RETURN true;
END
$function$;

CREATE OR REPLACE FUNCTION job_stats.unfold_rows(target regclass)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    tenant constant regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = target);
    columns constant text := (
        SELECT string_agg(quote_ident(t.attname), ', ')
        FROM pg_attribute AS t
        INNER JOIN pg_attribute AS a USING (attname)
        WHERE
            t.attrelid = target
            AND a.attrelid = to_regclass(format('%s.marketplace_job_stats_archive', tenant))
            AND t.attnum > 0 AND t.attgenerated = '' AND NOT t.attisdropped AND NOT a.attisdropped
    );
    insert_others constant text := format(
        'INSERT INTO marketplace_job_stats (%1$s) OVERRIDING SYSTEM VALUE
        SELECT %1$s FROM marketplace_job_stats_archive WHERE id <> folded_id', columns
    );
BEGIN
    PERFORM set_config('search_path', tenant::text || ', pg_temp', true);

    -- The rows as they were: first the one that is there, then the others; then what was added, as Vinted's.
    UPDATE marketplace_job_stats AS s
    SET
        marketplace = a.marketplace,
        total_jobs = a.total_jobs,
        success_count = a.success_count,
        failure_count = a.failure_count,
        avg_duration_ms = a.avg_duration_ms
    FROM marketplace_job_stats_archive AS a
    WHERE s.id = a.id AND a.id = a.folded_id AND (s.action_type_id, s.date) = (a.action_type_id, a.date);

    EXECUTE insert_others;

    INSERT INTO marketplace_job_stats AS s
        (action_type_id, marketplace, date, total_jobs, success_count, failure_count, avg_duration_ms)
    SELECT
        a.action_type_id,
        'vinted',
        a.date,
        a.added_total_jobs,
        a.added_success_count,
        a.added_failure_count,
        a.added_avg_duration_ms
    FROM marketplace_job_stats_archive AS a
    WHERE a.id = a.folded_id AND (a.added_total_jobs, a.added_success_count, a.added_failure_count) <> (0, 0, 0)
    ON CONFLICT (action_type_id, marketplace, date) DO UPDATE SET
        total_jobs = s.total_jobs + excluded.total_jobs,
        success_count = s.success_count + excluded.success_count,
        failure_count = s.failure_count + excluded.failure_count,
        avg_duration_ms = coalesce(
            pg_catalog.round(
                (
                    s.avg_duration_ms::numeric * s.total_jobs::numeric
                    + excluded.avg_duration_ms::numeric * excluded.total_jobs::numeric
                ) / nullif(s.total_jobs::numeric + excluded.total_jobs::numeric, 0::numeric)
            ),
            s.avg_duration_ms::numeric,
            excluded.avg_duration_ms::numeric
        );
    RETURN true;
END
$function$;

-- Whether the table has what unfold_rows() wrote.
CREATE OR REPLACE FUNCTION job_stats.is_unfolded(target regclass, archive regclass)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    differs boolean;
BEGIN
    EXECUTE format(
        'SELECT EXISTS (
            SELECT FROM (
                SELECT action_type_id, marketplace::text, date, total_jobs, success_count, failure_count
                FROM %1$s
                UNION ALL
                SELECT action_type_id, ''vinted'', date, added_total_jobs, added_success_count, added_failure_count
                FROM %1$s
                WHERE id = folded_id AND (added_total_jobs, added_success_count, added_failure_count) <> (0, 0, 0)
            ) AS a
            LEFT JOIN %2$s AS s ON
                (s.action_type_id, s.marketplace::text, s.date) = (a.action_type_id, a.marketplace, a.date)
            GROUP BY a.action_type_id, a.marketplace, a.date, s.total_jobs, s.success_count, s.failure_count
            HAVING
                (s.total_jobs, s.success_count, s.failure_count)
                IS DISTINCT FROM (sum(a.total_jobs), sum(a.success_count), sum(a.failure_count))
        )', archive, target
    ) INTO differs;
    RETURN NOT differs;
END
$function$;

CALL tenancy.make_private('job_stats');
-- Who own tenants may call these, for as_owner(), and, since they may not use the schema, can name none of them.
GRANT EXECUTE ON FUNCTION
job_stats.note_added, job_stats.unfold_rows, job_stats.is_unfolded, job_stats.forget_rows
TO public;
