-- Counts jobs in their row, whatever its sum: the first of an action type, marketplace and day inserts it.
--
-- Locks that row until the transaction ends. The key is found by columns: its name differs between tenants. A plain
-- upsert takes an id even where it updates: the integer sequence that thousands of tenants share would run out within
-- months. So only what finds no row to update inserts one; ON CONFLICT is for those that do so at once.
WITH updated AS (
    UPDATE {table} AS stats
    SET (total_jobs, success_count, failure_count, avg_duration_ms, untimed_jobs, total_duration_ms) = ({job_added})
    FROM (
        SELECT
            %(total_jobs)s::integer AS total_jobs,
            %(success_count)s::integer AS success_count,
            %(total_jobs)s::integer - %(timed_jobs)s::integer AS untimed_jobs,
            %(total_duration_ms)s::bigint AS total_duration_ms
    ) AS job
    WHERE stats.action_type_id = %(action_type_id)s::integer
        AND stats.marketplace::pg_catalog.text = %(marketplace)s::pg_catalog.text
        AND stats.date = (
            SELECT coalesce(%(date)s::pg_catalog.date, (pg_catalog.now() AT TIME ZONE interval '0')::pg_catalog.date)
        )
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
    %(action_type_id)s::integer,
    %(marketplace)s::pg_catalog.text,
    coalesce(%(date)s::pg_catalog.date, (pg_catalog.now() AT TIME ZONE interval '0')::pg_catalog.date),
    %(total_jobs)s::integer,
    %(success_count)s::integer,
    %(total_jobs)s::integer - %(success_count)s::integer,
    CASE
        WHEN %(timed_jobs)s::integer > 0
            THEN least(
                (%(total_duration_ms)s::bigint + %(timed_jobs)s::integer / 2) / %(timed_jobs)s::integer, 2147483647
            )
    END,
    %(total_jobs)s::integer - %(timed_jobs)s::integer,
    %(total_duration_ms)s::bigint
WHERE NOT EXISTS (SELECT 1 FROM updated) AND %(total_jobs)s::integer > 0
ON CONFLICT (action_type_id, marketplace, date) DO UPDATE
SET (total_jobs, success_count, failure_count, avg_duration_ms, untimed_jobs, total_duration_ms) = ({excluded_added})
