-- Counts many jobs, all or none. Each element of the arrays stands for jobs of an action type, marketplace and day.
--
-- Rows that are there are locked and updated in the order of their key; then the others are inserted, in that order,
-- too. Only a row that the statement does not see when it begins takes an id: also one that another inserts meanwhile,
-- which is then updated.
--
-- That order is not enough: what one batch sees, and so updates first, may be new to another that began before. So
-- batches of a tenant take turns, by an advisory lock that each keeps to the end of its transaction.
WITH jobs AS MATERIALIZED (
    SELECT
        j.action_type_id,
        j.marketplace,
        coalesce(j.date, (pg_catalog.now() AT TIME ZONE 'UTC')::pg_catalog.date) AS date,
        pg_catalog.sum(j.total_jobs)::bigint AS total_jobs,
        pg_catalog.sum(j.success_count)::bigint AS success_count,
        pg_catalog.sum(j.timed_jobs)::bigint AS timed_jobs,
        pg_catalog.sum(j.total_jobs - j.timed_jobs)::bigint AS untimed_jobs,
        pg_catalog.sum(j.total_duration_ms)::bigint AS total_duration_ms
    FROM unnest(
        %(action_type_id)s::integer[],
        %(marketplace)s::pg_catalog.text[],
        %(date)s::pg_catalog.date[],
        %(total_jobs)s::bigint[],
        %(success_count)s::bigint[],
        %(timed_jobs)s::bigint[],
        %(total_duration_ms)s::bigint[]
    ) AS j (action_type_id, marketplace, date, total_jobs, success_count, timed_jobs, total_duration_ms)
    -- Once, before there is any row of this.
    WHERE (
        SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(%(turn)s::pg_catalog.text, 0))
    ) IS NOT NULL
    GROUP BY 1, 2, 3
),

job AS (
    SELECT locked.* FROM (
        SELECT jobs.*
        FROM {table} AS stats
        INNER JOIN jobs
            ON stats.action_type_id = jobs.action_type_id
            AND stats.marketplace::pg_catalog.text = jobs.marketplace
            AND stats.date = jobs.date
        ORDER BY stats.action_type_id, stats.marketplace::pg_catalog.text, stats.date
        FOR NO KEY UPDATE OF stats
    ) AS locked
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
    total_jobs - success_count,
    CASE WHEN timed_jobs > 0 THEN least((total_duration_ms + timed_jobs / 2) / timed_jobs, 2147483647) END,
    untimed_jobs,
    total_duration_ms
FROM jobs
WHERE (action_type_id, marketplace, date) NOT IN (SELECT * FROM updated)
ORDER BY action_type_id, marketplace, date
ON CONFLICT (action_type_id, marketplace, date) DO UPDATE
SET (total_jobs, success_count, failure_count, avg_duration_ms, untimed_jobs, total_duration_ms) = ({excluded_added})
