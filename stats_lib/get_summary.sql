-- Adds up, for each marketplace that has any, the rows that get_stats.sql would read.
SELECT
    stats.marketplace::pg_catalog.text AS marketplace,
    pg_catalog.sum(stats.total_jobs)::bigint AS total_jobs,
    pg_catalog.sum(stats.success_count)::bigint AS success_count,
    pg_catalog.sum(stats.failure_count)::bigint AS failure_count,
    pg_catalog.round(
        pg_catalog.sum(old.total_duration_ms) / nullif(pg_catalog.sum(old.timed_jobs), 0)::numeric
    )::bigint AS avg_duration_ms -- NULL if none was timed
FROM {table} AS stats
CROSS JOIN LATERAL ({durations}) AS old
WHERE stats.date > (
    SELECT greatest(
        coalesce(%(until)s::pg_catalog.date, (pg_catalog.now() AT TIME ZONE interval '0')::pg_catalog.date)
        - %(days)s::integer,
        '0001-12-31 BC' -- Python's calendar begins the day after
    )
)
    AND stats.date <= (
        SELECT coalesce(%(until)s::pg_catalog.date, (pg_catalog.now() AT TIME ZONE interval '0')::pg_catalog.date)
    )
    AND {conditions}
GROUP BY stats.marketplace
