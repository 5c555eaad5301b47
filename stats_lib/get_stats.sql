-- Reads the last `days` calendar days up to and including `until` (today in UTC if that is NULL), and nothing later.
-- UTC is said as an interval: PostgreSQL 18 takes 'UTC' for the session's zone, if that is called so, such as UTC-14.
--
-- Columns are cast, so that ALTER TABLE ... TYPE bigint breaks no prepared statement. 0021's index by day finds the
-- rows; with an action type, the unique key does. The order is that of returned columns: those that it only sorts by,
-- PostgreSQL has to take out of each row again, in a fifth of its time.
SELECT
    stats.id::bigint AS id,
    stats.action_type_id::bigint AS action_type_id,
    stats.marketplace::pg_catalog.text AS marketplace,
    stats.date::pg_catalog.date AS date,
    stats.total_jobs::bigint AS total_jobs,
    stats.success_count::bigint AS success_count,
    stats.failure_count::bigint AS failure_count,
    stats.avg_duration_ms::bigint AS avg_duration_ms,
    greatest( -- within what Python's datetime can hold, in any time zone
        least(stats.created_at, '9999-12-30 00:00+00'), '0001-01-02 00:00+00'
    )::pg_catalog.timestamptz AS created_at
FROM {table} AS stats
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
ORDER BY date DESC, marketplace, action_type_id
