-- Reads the last `days` calendar days, today (UTC) included and nothing later.
--
-- In the unique key (action_type_id, marketplace, date) the day comes last: it serves one action type and marketplace
-- at a time. So action_types goes from each action type to the next, by one look-up each, and OFFSET 0 has the days of
-- each looked up by themselves. Without, PostgreSQL before 18 reads the whole table, which grows for ever.
WITH RECURSIVE action_types (id) AS (
    SELECT pg_catalog.min(action_type_id)
    FROM {table}
    WHERE action_type_id BETWEEN %(first_action_type_id)s AND %(last_action_type_id)s
    UNION ALL
    SELECT (
        SELECT pg_catalog.min(action_type_id)
        FROM {table}
        WHERE action_type_id > action_types.id AND action_type_id <= %(last_action_type_id)s
    )
    FROM action_types
    WHERE action_types.id < %(last_action_type_id)s -- not so after the last one, NULL
)

SELECT stats.*
FROM action_types
CROSS JOIN pg_catalog.unnest(%(marketplaces)s::pg_catalog.text[]) AS marketplaces (marketplace)
CROSS JOIN LATERAL (
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
    WHERE action_type_id = action_types.id
        AND marketplace::pg_catalog.text = marketplaces.marketplace
        AND date > (pg_catalog.now() AT TIME ZONE 'UTC')::pg_catalog.date - %(days)s::integer
        AND date <= (pg_catalog.now() AT TIME ZONE 'UTC')::pg_catalog.date
    OFFSET 0
) AS stats
ORDER BY stats.date DESC, stats.marketplace, stats.action_type_id
