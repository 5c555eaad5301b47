-- Every tenant: the sum of the durations and the index by day go; avg_duration_ms stays, as exact as it is then.
--
-- Stop code that writes the columns first. Locks as 0021 does. Undone by 0021; the sums then start anew, as average
-- times jobs.

SET statement_timeout = 0; -- a role's timeout would count for the whole CALL

CALL tenancy.for_each_tenant(
    migration => '0021.exact-averages.rollback',
    pending => $$
        SELECT c.relnamespace, EXISTS (
            SELECT FROM pg_catalog.pg_attribute AS n
            WHERE
                n.attrelid = c.oid
                AND n.attname = 'untimed_jobs'
                AND n.atttypid IN ('integer'::pg_catalog.regtype, 'bigint'::pg_catalog.regtype)
        )
        FROM pg_catalog.pg_class AS c
        INNER JOIN pg_catalog.pg_attribute AS a ON c.oid = a.attrelid
        WHERE c.relname = 'marketplace_job_stats' AND c.relkind IN ('r', 'p') AND a.attname = 'marketplace'
    $$,
    lock_timeout_ms => 100,
    attempts => 9,
    run => $tenant$
        -- A clone of the migrated template has it under another name, and keeps it while it has a marketplace.
        DROP INDEX IF EXISTS ix_stats_lib_date_marketplace;

        ALTER TABLE marketplace_job_stats
            DROP COLUMN total_duration_ms,
            DROP COLUMN untimed_jobs;
    $tenant$
);

RESET statement_timeout;
