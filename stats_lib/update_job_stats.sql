-- Counts one finished job: the first of its action type, marketplace and day inserts the row, the others add to it.
--
-- Locks that row until the caller's transaction ends. The key is found by its columns: its name differs between tenants.
-- The insert is tried first, so every call draws from the sequence of `id`, even when it updates.
INSERT INTO {table} AS stats (
    action_type_id,
    marketplace,
    date,
    total_jobs,
    success_count,
    failure_count,
    avg_duration_ms
)
VALUES (
    %(action_type_id)s,
    %(marketplace)s,
    coalesce(%(date)s, (now() AT TIME ZONE 'UTC')::date),
    1,
    %(success)s::integer,
    (NOT %(success)s)::integer,
    %(duration_ms)s
)
ON CONFLICT (action_type_id, marketplace, date) DO UPDATE SET
    total_jobs = stats.total_jobs + 1,
    success_count = stats.success_count + excluded.success_count,
    failure_count = stats.failure_count + excluded.failure_count,
    -- mean += (x - mean) / n, rounded to a whole millisecond; if either is NULL, the other one stands.
    avg_duration_ms = coalesce(
        stats.avg_duration_ms
            + round((excluded.avg_duration_ms - stats.avg_duration_ms) / (stats.total_jobs + 1)::numeric),
        stats.avg_duration_ms,
        excluded.avg_duration_ms
    )
