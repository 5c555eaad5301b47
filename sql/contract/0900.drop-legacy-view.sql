-- Every tenant: the legacy view goes, and with it the default marketplace: a writer that does not name one is refused.
--
-- To be run when no code from before 0020 is left. Locks: per tenant, the view and the table (ACCESS EXCLUSIVE) for a
-- change of the catalog. A view of that name that 0020 has not made is refused, and stays. Undone by the rollback file.
--
-- depends: 0020.marketplace-job-stats
-- transactional: false

SET statement_timeout = 0; -- a role's timeout would count for the whole CALL

CALL tenancy.for_each_tenant(
    migration => '0900.drop-legacy-view',
    pending => $$
        SELECT c.relnamespace, a.atthasdef
        FROM pg_catalog.pg_class AS c
        INNER JOIN pg_catalog.pg_attribute AS a ON c.oid = a.attrelid
        WHERE c.relname = 'marketplace_job_stats' AND c.relkind IN ('r', 'p') AND a.attname = 'marketplace'
    $$,
    lock_timeout_ms => 100,
    attempts => 9,
    run => $tenant$
        CALL job_stats.drop_legacy_view('marketplace_job_stats');
        ALTER TABLE marketplace_job_stats ALTER COLUMN marketplace DROP DEFAULT;
    $tenant$
);

RESET statement_timeout;
