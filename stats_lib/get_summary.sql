-- Adds up the last `days` calendar days, today (UTC) included and nothing later: one row for each of `marketplaces`.
--
-- Why action_types and OFFSET 0: see get_stats.sql.
WITH RECURSIVE action_types (id) AS (
    SELECT min(action_type_id)
    FROM {table}
    UNION ALL
    SELECT (SELECT min(action_type_id) FROM {table} WHERE action_type_id > action_types.id)
    FROM action_types
    WHERE action_types.id IS NOT NULL
)

SELECT
    marketplaces.marketplace,
    totals.*
FROM unnest(%(marketplaces)s::text[]) AS marketplaces (marketplace)
CROSS JOIN LATERAL (
    SELECT
        coalesce(sum(total_jobs), 0) AS total_jobs,
        coalesce(sum(success_count), 0) AS success_count,
        coalesce(sum(failure_count), 0) AS failure_count,
        -- Each row's average weighs as much as the row has jobs; NULL if no row that has an average has jobs.
        round(
            sum(avg_duration_ms::bigint * total_jobs)
            / nullif(sum(total_jobs) FILTER (WHERE avg_duration_ms IS NOT NULL), 0)
        )::integer AS avg_duration_ms
    FROM action_types
    CROSS JOIN LATERAL (
        SELECT
            total_jobs,
            success_count,
            failure_count,
            avg_duration_ms
        FROM {table}
        WHERE action_type_id = action_types.id
            AND marketplace = marketplaces.marketplace
            AND date > (now() AT TIME ZONE 'UTC')::date - %(days)s::integer
            AND date <= (now() AT TIME ZONE 'UTC')::date
        OFFSET 0
    ) AS stats
) AS totals
ORDER BY marketplaces.marketplace
