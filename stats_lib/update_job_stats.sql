-- Counts jobs in their row if it is there, and if its sum is believed, which is nearly always: one look-up, one new
-- version of the row. Otherwise nothing happens, and upsert_job_stats.sql does it. Each of the two is complete in
-- itself: nothing is lost, or counted twice, whatever happens between them.
--
-- The average is exact, being computed from the sum: total_duration_ms / (jobs that had a duration), rounded half up in
-- integers, at most 2^31 - 1. Nothing overflows: 2^31 - 1 jobs, as many as a row counts, of 2^32 ms, the longest, last
-- less than 2^63 ms. Plain expressions, though longer: a subquery that names their parts takes half as long again.
UPDATE {table} AS stats
SET
    total_jobs = stats.total_jobs + %(total_jobs)s::integer,
    success_count = stats.success_count + %(success_count)s::integer,
    failure_count = stats.failure_count + (%(total_jobs)s::integer - %(success_count)s::integer),
    avg_duration_ms = CASE
        WHEN stats.total_jobs - stats.untimed_jobs + %(timed_jobs)s::integer > 0
            THEN least(
                (
                    stats.total_duration_ms + %(total_duration_ms)s::bigint
                    + (stats.total_jobs - stats.untimed_jobs + %(timed_jobs)s::integer) / 2
                ) / (stats.total_jobs - stats.untimed_jobs + %(timed_jobs)s::integer),
                2147483647
            )
    END,
    untimed_jobs = stats.untimed_jobs + (%(total_jobs)s::integer - %(timed_jobs)s::integer),
    total_duration_ms = stats.total_duration_ms + %(total_duration_ms)s::bigint
WHERE stats.action_type_id = %(action_type_id)s::integer
    AND stats.marketplace::pg_catalog.text = %(marketplace)s::pg_catalog.text
    AND stats.date = (
        SELECT coalesce(%(date)s::pg_catalog.date, (pg_catalog.now() AT TIME ZONE interval '0')::pg_catalog.date)
    )
    AND {is_believed}
