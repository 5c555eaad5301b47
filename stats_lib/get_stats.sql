-- Reads the last `days` calendar days, today (UTC) included and nothing later.
SELECT
    id,
    action_type_id,
    marketplace,
    date,
    total_jobs,
    success_count,
    failure_count,
    avg_duration_ms,
    created_at
FROM {table}
WHERE date > (now() AT TIME ZONE 'UTC')::date - %(days)s::integer
    AND date <= (now() AT TIME ZONE 'UTC')::date
    AND marketplace = ANY (%(marketplaces)s)
ORDER BY date DESC, marketplace, action_type_id
