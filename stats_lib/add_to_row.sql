-- The row `stats` with the jobs of {jobs} added, from what is believed of it: put into upsert_job_stats.sql twice.
SELECT
    stats.total_jobs + {jobs}.total_jobs,
    stats.success_count + {jobs}.success_count,
    stats.failure_count + ({jobs}.total_jobs - {jobs}.success_count),
    CASE
        WHEN new.timed_jobs > 0 THEN least((new.total_duration_ms + new.timed_jobs / 2) / new.timed_jobs, 2147483647)
    END,
    stats.total_jobs + {jobs}.total_jobs - new.timed_jobs,
    new.total_duration_ms
FROM (
    SELECT
        old.timed_jobs + ({jobs}.total_jobs - {jobs}.untimed_jobs) AS timed_jobs,
        old.total_duration_ms + {jobs}.total_duration_ms AS total_duration_ms
    FROM ({durations}) AS old
    OFFSET 0 -- computed once: without it the planner copies the expressions to wherever they are used
) AS new
