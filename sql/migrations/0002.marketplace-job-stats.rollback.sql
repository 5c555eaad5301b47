-- Every tenant: marketplace_job_stats becomes vinted_job_stats again, with the names that it had.
--
-- Where several marketplaces have rows, those of a day and action type are folded into one, and the split is kept in
-- marketplace_job_stats_archive, from which 0002 restores it.
--
-- Locks, per tenant: the legacy view, then the table, ACCESS EXCLUSIVE, to the tenant's commit; the time goes into
-- folding, if there is something to fold, and one index build. As long, the sequence that it owns, and
-- vinted.action_types (SHARE ROW EXCLUSIVE) where a foreign key comes back. Attempt n waits n * 100 ms for a lock at
-- most. Undone by 0002.

SET statement_timeout = 0; -- a role's timeout would count for the whole CALL

CALL job_stats.for_each_tenant(
    migration => '0002.marketplace-job-stats.rollback',
    pending => $$
        SELECT c.relnamespace
        FROM pg_catalog.pg_class AS c
        INNER JOIN pg_catalog.pg_attribute AS a ON c.oid = a.attrelid
        WHERE c.relname = 'marketplace_job_stats' AND c.relkind = 'r' AND a.attname = 'marketplace'
    $$,
    lock_timeout_ms => 100,
    attempts => 9,
    run => $tenant$
        DROP VIEW IF EXISTS vinted_job_stats; -- clones of the template have none

        LOCK TABLE marketplace_job_stats; -- after the view, as its writers do; nothing is counted while we fold
        CALL job_stats.fold_marketplaces('marketplace_job_stats');

        -- With the column go its check, its unique key and its index, whatever they are called.
        ALTER TABLE marketplace_job_stats
            DROP COLUMN marketplace,
            DROP COLUMN IF EXISTS untimed_jobs, -- 0003's, if that has not been rolled back
            DROP COLUMN IF EXISTS total_duration_ms;

        CALL job_stats.restore_dropped(
            'marketplace_job_stats',
            '0002.marketplace-job-stats',
            otherwise => 'ALTER TABLE %s
                ADD CONSTRAINT vinted_job_stats_action_type_id_date_key UNIQUE (action_type_id, date);'
        );

        ALTER TABLE marketplace_job_stats RENAME TO vinted_job_stats;
        CALL job_stats.rename_parts('marketplace_job_stats', 'vinted_job_stats');
    $tenant$
);

RESET statement_timeout;
