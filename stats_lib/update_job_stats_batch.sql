-- Counts many jobs, all or none: a DO block is one statement wherever it is sent, autocommit and pipelines
-- included. Each sum is counted as a single call counts, which sees what others have committed meanwhile: so
-- only a row that is inserted takes an id, and one more each time that another is inserting the same row right then.
--
-- Rows are taken in the order of their key, and locked until the transaction ends. So no two batches deadlock: each
-- waits for a row only while all that it has locked itself come before. (Transactions that count more than once may.)
--
-- The block has no parameters: its arrays are literals of numbers, dates and the names of marketplaces.
DO $batch$
DECLARE
    counted record;
BEGIN
    FOR counted IN
        SELECT
            j.action_type_id,
            j.marketplace,
            coalesce(j.date, (pg_catalog.now() AT TIME ZONE 'UTC')::pg_catalog.date) AS date,
            pg_catalog.sum(j.total_jobs)::bigint AS total_jobs,
            pg_catalog.sum(j.success_count)::bigint AS success_count,
            pg_catalog.sum(j.timed_jobs)::bigint AS timed_jobs,
            pg_catalog.sum(j.total_duration_ms)::bigint AS total_duration_ms
        FROM unnest(
            '{action_type_ids}'::integer[],
            '{marketplaces}'::pg_catalog.text[],
            '{dates}'::pg_catalog.date[],
            '{total_jobs}'::bigint[],
            '{success_counts}'::bigint[],
            '{timed_jobs}'::bigint[],
            '{durations_ms}'::bigint[]
        ) AS j (action_type_id, marketplace, date, total_jobs, success_count, timed_jobs, total_duration_ms)
        GROUP BY 1, 2, 3
        ORDER BY 1, 2, 3
    LOOP
        {upsert_job_stats};
    END LOOP;
END
$batch$
