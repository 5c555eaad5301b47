-- Counts one finished job: the first of its action type, marketplace and day inserts the row, the others add to it.
--
-- Locks that row until the caller's transaction ends. The key is found by columns: its name differs between tenants.
-- A plain upsert takes an id even where it updates: the integer sequence that thousands of tenants share would run out
-- within months. So only a job that finds no row to update inserts one; ON CONFLICT is for those that do so at once.
WITH updated AS (
    UPDATE {table}
    SET
        total_jobs = total_jobs + 1,
        success_count = success_count + %(success)s::integer,
        failure_count = failure_count + (NOT %(success)s)::integer,
        -- mean += (x - mean) / n, rounded to a whole millisecond; if either is NULL, the other one stands.
        avg_duration_ms = coalesce(
            avg_duration_ms + round((%(duration_ms)s - avg_duration_ms) / (total_jobs + 1.0)),
            avg_duration_ms,
            %(duration_ms)s
        )
    WHERE action_type_id = %(action_type_id)s
        AND marketplace = %(marketplace)s
        AND date = coalesce(%(date)s, (now() AT TIME ZONE 'UTC')::date)
    RETURNING 1
)

INSERT INTO {table} AS stats (
    action_type_id,
    marketplace,
    date,
    total_jobs,
    success_count,
    failure_count,
    avg_duration_ms
)
SELECT
    %(action_type_id)s,
    %(marketplace)s,
    coalesce(%(date)s, (now() AT TIME ZONE 'UTC')::date),
    1,
    %(success)s::integer,
    (NOT %(success)s)::integer,
    %(duration_ms)s
WHERE NOT EXISTS (SELECT FROM updated)
ON CONFLICT (action_type_id, marketplace, date) DO UPDATE SET
    total_jobs = stats.total_jobs + 1,
    success_count = stats.success_count + excluded.success_count,
    failure_count = stats.failure_count + excluded.failure_count,
    avg_duration_ms = coalesce(
        stats.avg_duration_ms + round((excluded.avg_duration_ms - stats.avg_duration_ms) / (stats.total_jobs + 1.0)),
        stats.avg_duration_ms,
        excluded.avg_duration_ms
    )
