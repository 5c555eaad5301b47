-- Inserts the rows that a batch of jobs lacks, with counters at 0; update_job_stats_batch.sql then counts in them.
--
-- Both statements take rows in the order of their key, and that no two batches deadlock needs both. In this one a batch
-- waits only for a row being inserted by another, while all that it has inserted itself comes before: such waits go up.
-- After this one, every row of the batch is either committed or its own; so in the next it waits only for rows that
-- others lock in that one, and such waits go up, too. Were rows inserted after others were updated, or in the same
-- statement, whose snapshot cannot see what was inserted meanwhile, two batches could each have what the other needs.
-- (Caller's transactions that count more than once may still deadlock with each other.)
--
-- Only a row that is inserted takes an id from the sequence.
INSERT INTO {table} (action_type_id, marketplace, date)
SELECT DISTINCT
    j.action_type_id,
    j.marketplace,
    coalesce(j.date, (pg_catalog.now() AT TIME ZONE 'UTC')::pg_catalog.date) AS date
FROM unnest(%(action_type_ids)s::integer[], %(marketplaces)s::pg_catalog.text[], %(dates)s::pg_catalog.date[])
AS j (action_type_id, marketplace, date)
WHERE NOT EXISTS (
    SELECT FROM {table} AS stats
    WHERE stats.action_type_id = j.action_type_id
        AND stats.marketplace::pg_catalog.text = j.marketplace
        AND stats.date = coalesce(j.date, (pg_catalog.now() AT TIME ZONE 'UTC')::pg_catalog.date)
)
ORDER BY action_type_id, marketplace, date
ON CONFLICT (action_type_id, marketplace, date) DO NOTHING
