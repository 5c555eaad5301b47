-- Every tenant: marketplace_job_stats gets what stats_lib needs: the sum of the durations, for an exact
-- avg_duration_ms, and an index by day, for reading.
--
-- A running average of whole milliseconds drifts (old code truncates it at each job) or freezes (rounded, 1,000 jobs
-- do not follow a shift of less than half a second). With the sum, stats_lib keeps it equal to the rounded true mean.
-- Both columns are NULL until stats_lib counts the row's next job, which starts from the row's average and counts; no
-- existing column changes, and the legacy view does not show them. How old code's changes are noticed is told in
-- stats_lib/is_believed.sql.
--
-- The index has the marketplace, too, so that it goes with that column, whatever a clone's is called; and so that the
-- unique key is what serves a single action type. Its name is none that a tenant's index gets when it is renamed.
--
-- Locks, per tenant: its table, ACCESS EXCLUSIVE, for a change of the catalog and one index build. No row is written.
-- Attempt n waits n * 100 ms for it at most. Undone by the rollback file, which leaves the average as it is.
--
-- depends: 0020.marketplace-job-stats
-- transactional: false

SET statement_timeout = 0; -- a role's timeout would count for the whole CALL

CALL tenancy.for_each_tenant(
    migration => '0021.exact-averages',
    pending => $$
        SELECT c.relnamespace, NOT EXISTS (
            SELECT FROM pg_catalog.pg_attribute AS n
            WHERE
                n.attrelid = c.oid
                AND n.attname = 'untimed_jobs'
                AND n.atttypid IN ('integer'::pg_catalog.regtype, 'bigint'::pg_catalog.regtype)
        )
        FROM pg_catalog.pg_class AS c
        INNER JOIN pg_catalog.pg_attribute AS a ON c.oid = a.attrelid
        WHERE c.relname = 'marketplace_job_stats' AND c.relkind IN ('r', 'p') AND a.attname = 'marketplace'
        UNION ALL -- an error, rather than nothing done, where 0020 is marked as applied, and is nowhere
        SELECT v.relnamespace, true
        FROM pg_catalog.pg_class AS v
        WHERE v.relname = 'vinted_job_stats' AND v.relkind IN ('r', 'p') AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_class AS m
            WHERE m.relname = 'marketplace_job_stats' AND m.relkind IN ('r', 'p') AND m.relnamespace IN (
                SELECT t.schema_oid FROM tenancy.tenants AS t
            )
        )
    $$,
    lock_timeout_ms => 100,
    attempts => 9,
    run => $tenant$
        ALTER TABLE marketplace_job_stats
            ADD COLUMN untimed_jobs integer, -- how many of total_jobs have no duration
            ADD COLUMN total_duration_ms bigint; -- of all others

        CREATE INDEX ix_stats_lib_date_marketplace ON marketplace_job_stats (date, marketplace);
    $tenant$
);

RESET statement_timeout;
