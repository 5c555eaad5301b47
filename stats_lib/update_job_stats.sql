-- Counts one finished job: the first of its action type, marketplace and day inserts the row, the others add to it.
--
-- Locks that row until the caller's transaction ends. The key is found by columns: its name differs between tenants.
-- A plain upsert takes an id even where it updates: the integer sequence that thousands of tenants share would run out
-- within months. So only a job that finds no row to update inserts one; ON CONFLICT is for those that do so at once.
WITH updated AS (
    UPDATE {table} AS stats
    SET (total_jobs, success_count, failure_count, avg_duration_ms, untimed_jobs, total_duration_ms) = ({job_added})
    FROM (
        SELECT
            1 AS total_jobs,
            %(success)s::integer AS success_count,
            (NOT %(success)s)::integer AS failure_count,
            (%(duration_ms)s::bigint IS NULL)::integer AS untimed_jobs,
            coalesce(%(duration_ms)s, 0) AS total_duration_ms
    ) AS job
    WHERE action_type_id = %(action_type_id)s
        AND marketplace::pg_catalog.text = %(marketplace)s
        AND date = coalesce(%(date)s, (pg_catalog.now() AT TIME ZONE 'UTC')::pg_catalog.date)
    RETURNING 1
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
    %(action_type_id)s,
    %(marketplace)s,
    coalesce(%(date)s, (pg_catalog.now() AT TIME ZONE 'UTC')::pg_catalog.date),
    1,
    %(success)s::integer,
    (NOT %(success)s)::integer,
    CASE WHEN %(duration_ms)s IS NOT NULL THEN least(%(duration_ms)s, 2147483647) END,
    (%(duration_ms)s IS NULL)::integer,
    coalesce(%(duration_ms)s, 0)
WHERE NOT EXISTS (SELECT FROM updated)
ON CONFLICT (action_type_id, marketplace, date) DO UPDATE
SET (total_jobs, success_count, failure_count, avg_duration_ms, untimed_jobs, total_duration_ms) = ({excluded_added})
