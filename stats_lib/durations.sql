-- How many jobs of the row `stats` have a duration, and the sum of these: the stored one, or, if that is not believed,
-- average times jobs. What the latter loses is less than truncation would have cost old code for the library's jobs:
-- tests/test_averages.py has the bound.
SELECT
    CASE
        WHEN stats.avg_duration_ms IS NULL THEN 0
        WHEN stats.untimed_jobs < stats.total_jobs THEN stats.total_jobs - stats.untimed_jobs
        ELSE stats.total_jobs -- untimed_jobs is NULL, or has become impossible
    END AS timed_jobs,
    CASE
        WHEN {is_believed} THEN stats.total_duration_ms
        WHEN stats.avg_duration_ms IS NULL THEN 0
        WHEN stats.untimed_jobs < stats.total_jobs
            THEN stats.avg_duration_ms::bigint * (stats.total_jobs - stats.untimed_jobs)
        ELSE stats.avg_duration_ms::bigint * stats.total_jobs
    END AS total_duration_ms
