-- Whether the sum of a row's durations is believed: while it gives the average in the row. The one place that says so.
--
-- Old code changes the average but not the sum; so does a repair by hand; a row from before 0021 has no sum. It is
-- untimed_jobs, those without a duration, that are counted: so a job that old code adds through the legacy view, which
-- knows neither column, is taken for one with a duration, as old code takes it.
SELECT CASE
    WHEN stats.untimed_jobs < stats.total_jobs
        THEN
            (stats.total_duration_ms + (stats.total_jobs - stats.untimed_jobs) / 2)
            / (stats.total_jobs - stats.untimed_jobs) = stats.avg_duration_ms
            OR (
                stats.avg_duration_ms = 2147483647 -- which stands for all that is longer
                AND (stats.total_duration_ms + (stats.total_jobs - stats.untimed_jobs) / 2)
                / (stats.total_jobs - stats.untimed_jobs) > 2147483647
            )
    ELSE
        stats.untimed_jobs = stats.total_jobs
        AND stats.total_duration_ms = 0
        AND stats.avg_duration_ms IS NULL
END
