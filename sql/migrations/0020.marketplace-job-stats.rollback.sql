-- Every tenant: marketplace_job_stats becomes vinted_job_stats again, with the names that it had.
--
-- Where several marketplaces have rows, those of a day and action type are folded into one, and the split is kept in
-- marketplace_job_stats_archive, from which 0020 restores it.
--
-- Locks, per tenant: the legacy view, then the table, ACCESS EXCLUSIVE, to the tenant's commit; the time goes into
-- folding, if there is something to fold, and one index build. As long, the sequence that it owns, and
-- vinted.action_types (SHARE ROW EXCLUSIVE) where a foreign key comes back. Attempt n waits n * 100 ms for a lock at
-- most. Undone by 0020.

SET statement_timeout = 0; -- a role's timeout would count for the whole CALL

CALL tenancy.for_each_tenant(
    migration => '0020.marketplace-job-stats.rollback',
    pending => $$
        SELECT relnamespace, relname = 'marketplace_job_stats'
        FROM pg_catalog.pg_class
        WHERE relname IN ('vinted_job_stats', 'marketplace_job_stats') AND relkind IN ('r', 'p')
    $$,
    lock_timeout_ms => 100,
    attempts => 9,
    run => $tenant$
        -- Both only lock: the view, which the template has not, and then the table, as its writers do. Nothing is
        -- counted while we fold. LOCK TABLE would also take a view of that name, and lock what it reads.
        ALTER VIEW IF EXISTS vinted_job_stats SET (check_option = cascaded);
        ALTER TABLE marketplace_job_stats DROP CONSTRAINT IF EXISTS ck_marketplace_job_stats_marketplace;

        -- The view is still there, for triggers that read it.
        CALL job_stats.fold_marketplaces('marketplace_job_stats');
        DROP VIEW IF EXISTS vinted_job_stats;

        -- By the old names, and the old definitions. Tables that were born migrated get those of a clone of the
        -- template.
        CALL tenancy.restore(
            'marketplace_job_stats', '0020.marketplace-job-stats',
            mark => 'uq_marketplace_job_stats_action_marketplace_date',
            otherwise => $clone$
                ALTER TABLE marketplace_job_stats
                    ADD CONSTRAINT vinted_job_stats_action_type_id_date_key UNIQUE (action_type_id, date);
                CALL tenancy.rename_parts(
                    'marketplace_job_stats', 'marketplace_job_stats', 'vinted_job_stats', keep => false
                );
            $clone$
        );

        -- With the column go its check, its unique key and its index, whatever they are called. Later migrations'
        -- columns are gone already, unless these have not been rolled back.
        CALL tenancy.drop_later_columns('marketplace_job_stats', '0020.marketplace-job-stats', 'marketplace');
        ALTER TABLE marketplace_job_stats DROP COLUMN marketplace;

        -- Names that PostgreSQL 18 gave, from this table's, where an older server was upgraded to it meanwhile.
        CALL tenancy.rename_not_nulls('marketplace_job_stats', 'vinted_job_stats');

        ALTER TABLE marketplace_job_stats RENAME TO vinted_job_stats;
    $tenant$
);

RESET statement_timeout;
