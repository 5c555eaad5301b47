-- Adds up the last `days` calendar days, today (UTC) included and nothing later: one row for each of `marketplaces`.
--
-- Why action_types and OFFSET 0: see get_stats.sql. When a row's total_duration_ms is believed: see add_to_row.sql.
WITH RECURSIVE action_types (id) AS (
    SELECT pg_catalog.min(action_type_id)
    FROM {table}
    UNION ALL
    SELECT (SELECT pg_catalog.min(action_type_id) FROM {table} WHERE action_type_id > action_types.id)
    FROM action_types
    WHERE action_types.id IS NOT NULL
)

SELECT
    marketplaces.marketplace,
    totals.*
FROM pg_catalog.unnest(%(marketplaces)s::pg_catalog.text[]) AS marketplaces (marketplace)
CROSS JOIN LATERAL (
    SELECT
        coalesce(pg_catalog.sum(total_jobs), 0) AS total_jobs,
        coalesce(pg_catalog.sum(success_count), 0) AS success_count,
        coalesce(pg_catalog.sum(failure_count), 0) AS failure_count,
        pg_catalog.round(
            pg_catalog.sum(total_duration_ms) / nullif(pg_catalog.sum(timed_jobs), 0)::numeric
        )::bigint AS avg_duration_ms -- NULL if none was timed
    FROM action_types
    CROSS JOIN LATERAL (
        SELECT
            total_jobs,
            success_count,
            failure_count,
            old.timed_jobs,
            CASE
                WHEN old.timed_jobs = 0 THEN 0
                WHEN total_duration_ms IS NULL
                    OR least((total_duration_ms + old.timed_jobs / 2) / old.timed_jobs, 2147483647) <> avg_duration_ms
                    THEN avg_duration_ms::bigint * old.timed_jobs
                ELSE total_duration_ms
            END AS total_duration_ms
        FROM {table}
        CROSS JOIN LATERAL (
            SELECT CASE
                WHEN avg_duration_ms IS NULL THEN 0
                WHEN untimed_jobs < total_jobs THEN total_jobs - untimed_jobs
                ELSE total_jobs
            END AS timed_jobs
        ) AS old
        WHERE action_type_id = action_types.id
            AND marketplace::pg_catalog.text = marketplaces.marketplace
            AND date > (pg_catalog.now() AT TIME ZONE 'UTC')::pg_catalog.date - %(days)s::integer
            AND date <= (pg_catalog.now() AT TIME ZONE 'UTC')::pg_catalog.date
        OFFSET 0
    ) AS stats
) AS totals
ORDER BY marketplaces.marketplace
