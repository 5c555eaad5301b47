-- Every tenant: the default marketplace and the legacy view come back.
--
-- Locks, per tenant: the table (ACCESS EXCLUSIVE) for a change of the catalog. Undone by 0900.

SET statement_timeout = 0; -- a role's timeout would count for the whole CALL

CALL tenancy.for_each_tenant(
    migration => '0900.drop-legacy-view.rollback',
    pending => $$
        SELECT c.relnamespace, NOT a.atthasdef
        FROM pg_catalog.pg_class AS c
        INNER JOIN pg_catalog.pg_attribute AS a ON c.oid = a.attrelid
        WHERE c.relname = 'marketplace_job_stats' AND c.relkind IN ('r', 'p') AND a.attname = 'marketplace'
    $$,
    lock_timeout_ms => 100,
    attempts => 9,
    run => $tenant$
        ALTER TABLE marketplace_job_stats ALTER COLUMN marketplace SET DEFAULT 'vinted';
        CALL job_stats.create_legacy_view('marketplace_job_stats');
    $tenant$
);

RESET statement_timeout;
