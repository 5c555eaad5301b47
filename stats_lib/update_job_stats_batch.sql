-- Counts many finished jobs, each element of the arrays standing for jobs of an action type, marketplace and day.
--
-- Comes after insert_missing_rows.sql, which says why the rows are locked in the order of their key, until the caller's
-- transaction ends. A row is inserted here only if it has been deleted since.
WITH jobs AS (
    SELECT
        j.action_type_id,
        j.marketplace,
        coalesce(j.date, (pg_catalog.now() AT TIME ZONE 'UTC')::pg_catalog.date) AS date,
        pg_catalog.sum(j.successes + j.failures)::bigint AS total_jobs,
        pg_catalog.sum(j.successes)::bigint AS success_count,
        pg_catalog.sum(j.failures)::bigint AS failure_count,
        pg_catalog.sum(j.untimed_jobs)::bigint AS untimed_jobs,
        pg_catalog.sum(j.total_duration_ms)::bigint AS total_duration_ms
    FROM unnest(
        %(action_type_ids)s::integer[],
        %(marketplaces)s::pg_catalog.text[],
        %(dates)s::pg_catalog.date[],
        %(successes)s::bigint[],
        %(failures)s::bigint[],
        %(untimed_jobs)s::bigint[],
        %(total_durations_ms)s::bigint[]
    ) AS j (action_type_id, marketplace, date, successes, failures, untimed_jobs, total_duration_ms)
    GROUP BY 1, 2, 3
),

job AS (
    SELECT jobs.*
    FROM {table} AS stats
    INNER JOIN jobs
        ON stats.action_type_id = jobs.action_type_id
        AND stats.marketplace::pg_catalog.text = jobs.marketplace
        AND stats.date = jobs.date
    ORDER BY stats.action_type_id, stats.marketplace, stats.date
    FOR NO KEY UPDATE OF stats
),

updated AS (
    UPDATE {table} AS stats
    SET (total_jobs, success_count, failure_count, avg_duration_ms, untimed_jobs, total_duration_ms) = ({job_added})
    FROM job
    WHERE stats.action_type_id = job.action_type_id
        AND stats.marketplace::pg_catalog.text = job.marketplace
        AND stats.date = job.date
    RETURNING job.action_type_id, job.marketplace, job.date
)

INSERT INTO {table} AS stats (
    action_type_id,
    marketplace,
    date,
    total_jobs,
    success_count,
    failure_count,
    avg_duration_ms,
    untimed_jobs,
    total_duration_ms
)
SELECT
    action_type_id,
    marketplace,
    date,
    total_jobs,
    success_count,
    failure_count,
    CASE
        WHEN total_jobs > untimed_jobs
            THEN least(
                (total_duration_ms + (total_jobs - untimed_jobs) / 2) / (total_jobs - untimed_jobs), 2147483647
            )
    END,
    untimed_jobs,
    total_duration_ms
FROM jobs
WHERE (action_type_id, marketplace, date) NOT IN (SELECT * FROM updated)
ORDER BY action_type_id, marketplace, date
ON CONFLICT (action_type_id, marketplace, date) DO UPDATE
SET (total_jobs, success_count, failure_count, avg_duration_ms, untimed_jobs, total_duration_ms) = ({excluded_added})
