-- Every tenant: vinted_job_stats becomes marketplace_job_stats, which counts each marketplace on its own.
--
-- Where: in each schema of tenancy.tenants that has the table, template_tenant first, one transaction each. Locks, per
-- tenant: its table, ACCESS EXCLUSIVE, from the rename to the tenant's commit, which is milliseconds for thousands of
-- rows: nothing is rewritten, the time goes into one scan and two index builds. Then the sequence that it owns; and
-- last vinted.action_types, where a foreign key points at it. Attempt n waits n * 100 ms for a lock at most. Kept: in
-- tenancy.undo, what is dropped and renamed; in tenancy.renames_left, sequences that were in use, which the end of the
-- run renames. Old code goes on through the view. Undone by the rollback file, which loses nothing.
--
-- depends: 0019.version-0.1.0
-- transactional: false

SET statement_timeout = 0; -- a role's timeout would count for the whole CALL

CALL tenancy.for_each_tenant(
    migration => '0020.marketplace-job-stats',
    pending => $$
        SELECT relnamespace, relname = 'vinted_job_stats'
        FROM pg_catalog.pg_class
        WHERE relname IN ('vinted_job_stats', 'marketplace_job_stats') AND relkind IN ('r', 'p')
    $$,
    lock_timeout_ms => 100,
    attempts => 9,
    run => $tenant$
        -- By name, before anything is changed: what PostgreSQL itself would not refuse, or not in such words.
        CALL job_stats.refuse_misfits('vinted_job_stats');

        ALTER TABLE vinted_job_stats RENAME TO marketplace_job_stats;

        -- A change of the catalog: every existing row is Vinted's, and is not touched.
        ALTER TABLE marketplace_job_stats
            ADD COLUMN marketplace varchar(20) NOT NULL DEFAULT 'vinted'
            CONSTRAINT ck_marketplace_job_stats_marketplace CHECK (marketplace::text IN ('vinted', 'ebay', 'etsy'));

        ALTER TABLE marketplace_job_stats
            ADD CONSTRAINT uq_marketplace_job_stats_action_marketplace_date
            UNIQUE (action_type_id, marketplace, date);
        CALL tenancy.drop_unique_keys(
            'marketplace_job_stats', '{action_type_id, date}',
            successor => 'uq_marketplace_job_stats_action_marketplace_date'
        );

        CREATE INDEX ix_marketplace_job_stats_marketplace_created_at
        ON marketplace_job_stats (marketplace, created_at);

        CALL tenancy.rename_parts('marketplace_job_stats', 'vinted_job_stats', 'marketplace_job_stats');

        -- For old code: the Vinted rows, under the old name.
        CALL job_stats.create_legacy_view('marketplace_job_stats');

        -- eBay's and Etsy's action types are not in Vinted's table. Late, since all tenants share what this locks.
        CALL tenancy.drop_foreign_keys('marketplace_job_stats', 'vinted.action_types');

        -- What an earlier rollback has folded.
        CALL job_stats.unfold_marketplaces('marketplace_job_stats');
    $tenant$
);

RESET statement_timeout;
