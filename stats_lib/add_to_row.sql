-- The row `stats` with the jobs of {jobs} added: put into update_job_stats.sql and its batch where a row is changed.
--
-- The mean is exact, being computed from the sum: avg_duration_ms = total_duration_ms / (jobs that had a duration),
-- rounded half up in integers, at most 2^31 - 1. It is untimed_jobs, those without a duration, that are counted: so a
-- job that old code adds through the legacy view, which knows neither column, is taken for one with a duration, as old
-- code takes it.
--
-- Old code changes the average but not the sum. So the sum is believed only while it gives the average in the row;
-- otherwise (old code, a row from before 0021, a repair by hand) it starts anew, as average times jobs. What that loses
-- is less than truncation would have cost old code for the library's jobs: tests/test_averages.py has the bound.
--
-- Nothing overflows: 2^31 - 1 jobs, as many as a row counts, of 2^32 ms, the longest, last less than 2^63 ms.
SELECT
    new.total_jobs,
    stats.success_count + {jobs}.success_count,
    stats.failure_count + {jobs}.failure_count,
    CASE
        WHEN new.timed_jobs > 0 THEN least((new.total_duration_ms + new.timed_jobs / 2) / new.timed_jobs, 2147483647)
    END,
    new.total_jobs - new.timed_jobs,
    new.total_duration_ms
FROM (
    SELECT
        stats.total_jobs + {jobs}.total_jobs AS total_jobs,
        old.timed_jobs + {jobs}.total_jobs - {jobs}.untimed_jobs AS timed_jobs,
        {jobs}.total_duration_ms + CASE
            WHEN old.timed_jobs = 0 THEN 0
            WHEN stats.total_duration_ms IS NULL
                OR least((stats.total_duration_ms + old.timed_jobs / 2) / old.timed_jobs, 2147483647)
                <> stats.avg_duration_ms
                THEN stats.avg_duration_ms::bigint * old.timed_jobs
            ELSE stats.total_duration_ms
        END AS total_duration_ms
    FROM (
        SELECT CASE
            WHEN stats.avg_duration_ms IS NULL THEN 0
            WHEN stats.untimed_jobs < stats.total_jobs THEN stats.total_jobs - stats.untimed_jobs
            ELSE stats.total_jobs -- untimed_jobs is NULL, or has become impossible
        END AS timed_jobs
    ) AS old
    OFFSET 0 -- computed once: without it the planner copies the expressions to wherever they are used
) AS new
